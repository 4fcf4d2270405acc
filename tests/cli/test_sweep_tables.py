"""Files of grids: those of the paper's tables, and what a dry run says of them."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from sb3_dmpo import ALGOS
from sb3_dmpo.envs import TWO_GOALS_DATASET_ID
from tests.cli.test_train import Outcome, assert_one_line

pytest.importorskip("rl_zoo3")
pytest.importorskip("submitit")

from benchmarks.tables import TABLES, task_of
from sb3_dmpo.cli.configs import check_hyperparameters, parse_values
from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.cli.sweep import command
from sb3_dmpo.cli.sweep.needs import read_times
from sb3_dmpo.cli.sweep.runs import PlannedRun
from sb3_dmpo.cli.sweep.table import read_table
from sb3_dmpo.data import DatasetError
from sb3_dmpo.data.tasks import TASKS
from tests.cli.test_sweep import REPOSITORY, rows_of, slurm  # noqa: F401 (a fixture)
from tests.doors import sweep

PAPER = REPOSITORY / "benchmarks" / "paper"
NUMBERS = [table.number for table in TABLES]
#: Datasets that Minari has under this id, or D4RL under this name of its file.
KNOWN = (
    r"D4RL/antmaze/(umaze|umaze-diverse|(medium|large)-(play|diverse))-v1|D4RL/(pen|hammer|door|relocate)/(human|cloned)-v2"
)
KNOWN += r"|~/\.d4rl/datasets/(hopper|halfcheetah|walker2d)_(random|expert|medium(_replay|_expert)?)-v2\.hdf5"


def test_every_table_that_is_trained_for_has_a_file() -> None:
    assert sorted(path.name for path in PAPER.glob("*.yml")) == [f"table_{number}.yml" for number in NUMBERS]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_table_names_what_is_known_and_has_all_cells_of_the_paper(number: int) -> None:
    runs = read_table(PAPER / f"table_{number}.yml")
    for plan in runs:
        assert re.fullmatch(KNOWN, plan.dataset) or (number == 2 and plan.dataset == TWO_GOALS_DATASET_ID), plan.dataset
        settings = parse_values(plan.settings)
        check_hyperparameters(settings, ALGOS[plan.algo], plan.algo)
        assert plan.total_updates() >= 3_000
        if plan.dataset.endswith(".hdf5"):
            assert plan.arguments == ("--env", TASKS[task_of(plan.dataset).partition("-")[0]].env_id)
    table = next(table for table in TABLES if table.number == number)
    groups = {(task_of(plan.dataset), plan.name): set[int]() for plan in runs}
    for plan in runs:
        groups[task_of(plan.dataset), plan.name].add(plan.seed)
    assert set(map(frozenset, groups.values())) == {frozenset(range(5))}
    for paper_task, cells in table.paper().items():
        if paper_task != "total":
            of_task = {name for task, name in groups if task == task_of(paper_task) or number == 2}
            for method in cells:
                assert of_task & set(table.algorithms(method, paper_task)), (paper_task, method)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_dry_run_prints_jobs_hours_and_gpus(call: Callable[..., Outcome], number: int) -> None:
    path = PAPER / f"table_{number}.yml"
    slurm_options = ["--cluster", "slurm", "--gres", "gpu:1", "--jobs", "50"]
    code, out, err = call(sweep, "--table", str(path), "--dry-run", *slurm_options)
    assert code == 0, err
    commands = [line for line in out.splitlines() if line.startswith("python -m sb3_dmpo train --algo ")]
    said = [line for line in out.splitlines() if line not in commands]
    assert len(commands) == len(set(commands)) == len(read_table(path))
    # What is printed is a shell script, and remains one.
    assert all(line.startswith("# ") or line == "#" for line in said), said
    text = "\n".join(said)
    assert f"{len(commands)} runs" in text and "SLURM jobs of at most 24 hours" in text
    assert "Each job asks for gpu:1" in text and "No time on a GPU has been measured" in text
    hours = re.search(r"Together ([\d.,]+) hours of one CPU core; with --jobs 50 at least [\d.,]+ hours", text)
    assert hours
    page = (REPOSITORY / "docs" / "cli.rst").read_text(encoding="utf-8")
    row = re.search(rf"table_{number}\.yml``\n     - ([\d,]+)\n     - ([\d,]+)", page)
    assert row, "the page has no row for the table"
    n_runs, n_hours = (float(value.replace(",", "")) for value in row.groups())
    assert n_runs == len(commands) and n_hours == round(float(hours[1].replace(",", ""))), "docs/cli.rst"
    assert "speed.csv" in text and ("Without maple: not measured" in text) == (number == 9)


def test_hours_are_those_of_the_measurements(call: Callable[..., Outcome], tmp_path: Path) -> None:
    columns = "table,case,system,variant,setting,device,threads,measure,median,cpu,torch"
    measured = "sb3_dmpo,eager float32,|Z| {},cpu,1,updates per CPU-second,{},C,2"
    rows = ["train,bc," + measured.format(8, 100), "train,dmpo," + measured.format(8, 10)]
    rows += [f"scaling,dmpo by |Z|,{measured.format(n, rate)}" for n, rate in ((8, 40), (32, 20))]
    rows += ["train,bc,other,eager float32,,cpu,1,updates per CPU-second,1,C,2"]
    path = tmp_path / "times.csv"
    path.write_text("\n".join([columns, *rows]) + "\n")
    times = read_times(path)
    assert times.seconds_per_update(PlannedRun("bc", "a/b-v0", 0)) == 0.01
    assert times.seconds_per_update(PlannedRun("dmpo", "a/b-v0", 0)) == 0.1
    assert times.seconds_per_update(PlannedRun("dmpo", "a/b-v0", 0, params=("n_components:32",))) == 0.2
    assert times.seconds_per_update(PlannedRun("iql", "a/b-v0", 0)) is None
    grid = ["--algos", "bc", "iql", "--seeds", "0-1", "-n", "3600000", "--dry-run", "--times", str(path)]
    _, out, _ = call(sweep, *grid)
    assert "Together 20 hours of one CPU core; with --jobs 1 at least 20 hours. The longest run takes 10." in out
    assert "Without iql: not measured." in out and f"Estimated from {path}" in out
    _, out, _ = call(sweep, *grid, "--cluster", "slurm", "--time", "04:00:00")
    # Ten hours are three jobs of four; what has not been measured counts as one.
    assert "# 8 SLURM jobs of at most 4 hours" in out and "No GPU is asked for" in out
    path.write_text("a,b\n1,2\n")
    assert_one_line(call(sweep, *grid), "times.csv")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "list of grids"),
        ("algos: [bc]", "list of grids"),
        ("- algos: [bc", "cannot be read"),
        ("- datasets: [a/b-v0]", "names no algorithm"),
        ("- {algos: [bc]}\n- {algos: [dpmo]}", "grid 2: There is no algorithm 'dpmo'. Did you mean dmpo"),
        ("- {algos: bc}", "algos is 'bc', expected a list"),
        ("- {algos: [bc], dataset: [a/b-v0]}", "Did you mean datasets"),
        ("- {algos: [bc], datasets: [1]}", "datasets is"),
        ("- {algos: [bc], datasets: []}", "names no dataset"),
        ("- {algos: [bc], seeds: 1.5}", "seeds is 1.5, expected numbers and ranges"),
        ("- {algos: [bc], seeds: x}", "--seeds x"),
        ("- {algos: [bc], n_timesteps: yes}", "n_timesteps is True"),
        ("- {algos: [bc], vary: {tau: 1}}", "tau"),
        ("- {algos: [bc], train: [--seed, '3']}", "--seed behind"),
        ("- {algos: [bc], train: [-n50]}", "-n/--n-timesteps behind"),
        ("- {algos: [bc, iql], hyperparams: {expectile: 0.7}}", "grid 1: bc has no hyperparameter 'expectile'"),
    ],
)
def test_what_a_grid_must_not_say(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "t.yml"
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(word)):
        read_table(path)


def test_a_table_and_a_grid_exclude_each_other(call: Callable[..., Outcome], tmp_path: Path) -> None:
    path = tmp_path / "t.yml"
    path.write_text("- {algos: [bc], seeds: 0-1}\n- {algos: [bc], seeds: [1, 2]}\n")
    assert [plan.seed for plan in read_table(path)] == [0, 1, 2]
    assert_one_line(call(sweep, "--table", str(path), "--algos", "bc", "-n", "5"), "leave out --algos, -n")
    assert_one_line(call(sweep, "--seeds", "0"), "--table FILE.yml")
    assert_one_line(call(sweep, "--table", str(tmp_path / "none.yml")), "cannot be read")


def test_options_of_train_behind_the_dashes_are_added(call: Callable[..., Outcome], tmp_path: Path) -> None:
    path = tmp_path / "t.yml"
    path.write_text("- {algos: [bc], train: [--env, Hopper-v5], hyperparams: {tau: 0.1}}\n")
    _, out, _ = call(sweep, "--table", str(path), "--dry-run", "--", "--eval-freq", "5")
    assert out.splitlines()[0].endswith("--env Hopper-v5 --eval-freq 5 -params tau:0.1")


def test_a_table_names_classes_as_a_config_does(tmp_path: Path) -> None:
    path = tmp_path / "t.yml"
    policy_kwargs = "{net_arch: [16], activation_fn: nn.ReLU}"
    path.write_text(
        f"- {{algos: [bc], hyperparams: {{policy_kwargs: {policy_kwargs}}}}}\n"
        f"- {{algos: [bc], vary: {{policy_kwargs: [{policy_kwargs}]}}}}\n"
    )
    for plan in read_table(path):
        assert parse_values(plan.settings)["policy_kwargs"] == {"net_arch": [16], "activation_fn": nn.ReLU}


def test_data_are_downloaded_once_before_the_jobs_start(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster the workers may have no network."""
    asked = {}

    def found(dataset: str, download: bool) -> None:
        asked[dataset] = download
        if len(asked) == 2:
            raise DatasetError("enough")

    monkeypatch.setattr(command, "open_dataset", found)
    path = tmp_path / "t.yml"
    path.write_text("- {algos: [bc], datasets: [a/b-v0]}\n- {algos: [bc], datasets: [c/d-v0], seeds: 0-1, train: [--down]}\n")
    assert_one_line(call(sweep, "--table", str(path), "--folder", str(tmp_path / "s")), "enough")
    assert asked == {"a/b-v0": False, "c/d-v0": True}


SMALL = f"""
- algos: [bc, td3_bc]
  datasets: [{TWO_GOALS_DATASET_ID}]
  seeds: 0-1
  n_timesteps: 60
  label: small
  hyperparams: {{batch_size: 16, policy_kwargs: "dict(net_arch=[8])"}}
  train: [--eval-freq, "30", --eval-episodes, "1"]
"""


def run_small_table(folder: Path, *options: str, **environment: str) -> None:
    """
    A table of four short runs, and their rows.

    :param folder: where it runs
    :param options: further options of the sweep
    :param environment: further environment variables
    """
    (folder / "table.yml").write_text(SMALL)
    words = [sys.executable, "-m", "sb3_dmpo", "sweep", "--table", "table.yml", "--jobs", "2", *options]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    final = [row for row in rows_of(folder / "sweeps" / "results.csv") if row["evaluation"] == "final"]
    assert sorted((row["algorithm"], row["seed"]) for row in final) == [
        (f"{algo}[small]", seed) for algo in ("bc", "td3_bc") for seed in "01"
    ]


@pytest.mark.slow
def test_a_table_runs_on_this_machine(tmp_path: Path) -> None:
    run_small_table(tmp_path)


@pytest.mark.slow
def test_a_table_runs_on_slurm(tmp_path: Path, slurm: Path) -> None:  # noqa: F811
    options = ["--cluster", "slurm", "--partition", "main", "--time", "00:30:00", "--mem", "1500MB"]
    run_small_table(tmp_path, *options, SLURM_CONF=str(slurm / "slurm.conf"))
