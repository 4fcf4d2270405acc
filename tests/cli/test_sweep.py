"""Sweeps: the grid, runs that die, and that every result is there at the end."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gymnasium as gym
import minari
import pytest

from sb3_dmpo.envs import TWO_GOALS_DATASET_ID
from sb3_dmpo.envs.two_goals_data import demonstrations
from tests.cli.test_train import Outcome, assert_one_line

pytest.importorskip("rl_zoo3")
pytest.importorskip("submitit")

from sb3_dmpo.cli.results import COLUMNS, FINETUNE_COLUMNS, read_tables
from sb3_dmpo.cli.sweep.jobs import LocalJobs
from sb3_dmpo.cli.sweep.options import minutes
from sb3_dmpo.cli.sweep.runs import PlannedRun, Worker
from tests.doors import sweep

REPOSITORY = Path(__file__).parents[2]
#: Stands in for ``train``: two evaluations; dies before the second one on its first attempt with seed 1.
FAKE_TRAIN = """
import csv, os, signal, sys
from pathlib import Path
options = dict(zip(sys.argv[1:], sys.argv[2:]))
path = Path(options["--results"])
columns = {columns!r}
def row(updates, kind):
    known = dict(algorithm=options["--algo"], dataset=options["--dataset"], seed=options["--seed"], updates=updates,
                 evaluation=kind, score=50.0, command=" ".join(sys.argv))
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\\n")
        if is_new:
            writer.writeheader()
        writer.writerow({{column: known.get(column, "") for column in columns}})
if options["--algo"] == "cql":
    print("train.py: error: what was asked for cannot be done")
    sys.exit(2)
resumed = path.exists()
row(10, "training")
if options["--seed"] == "1" and not resumed:
    os.kill(os.getpid(), signal.SIGKILL)
row(20, "final")
(path.parent / "algo" / "run_1").mkdir(parents=True)
(path.parent / "algo" / "run_1" / "progress.csv").write_text(
    "time/total_timesteps,train/n_updates,train/critic_loss,eval/mean_reward\\n10.0,10.0,0.123456789,\\n10,,,1.0\\n20,20"
)
"""


class InProcessJobs:
    """Does a worker where it is submitted; loses the first one that goes on with seed 0."""

    poll_seconds = 0.0

    def __init__(self, loses_one: bool = False) -> None:
        self.loses_one, self.limit = loses_one, 2
        self.submitted: list[str] = []

    def submit(self, workers: Sequence[Worker]) -> list[str]:
        for worker in workers:
            self.submitted.append(worker.folder)
            if self.loses_one and worker.folder.endswith("seed_0"):
                self.loses_one = False
            else:
                worker()
        return [worker.attempt for worker in workers]

    def alive(self, job_ids: Sequence[str]) -> set[str]:
        return set()

    def stop(self, workers: Sequence[Worker]) -> str:
        return "stopped"


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcessJobs:
    """Sweeps run a stand-in for ``train``, in this process's time."""
    (tmp_path / "train.py").write_text(FAKE_TRAIN.format(columns=COLUMNS))
    monkeypatch.setattr("sb3_dmpo.cli.sweep.runs.TRAIN", (str(tmp_path / "train.py"),))
    jobs = InProcessJobs()
    monkeypatch.setattr("sb3_dmpo.cli.sweep.command.make_jobs", lambda options: jobs)
    return jobs


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_grid_and_commands(call: Callable[..., Outcome]) -> None:
    grid = ["--algos", "dmpo", "infodmpo", "--seeds", "0-1", "7", "-n", "100", "--vary", "n_components", "4", "8"]
    code, out, err = call(sweep, *grid, "-params", "tau:0.1", "--dry-run", "--", "--eval-freq", "50")
    lines = [line for line in out.splitlines() if not line.startswith("#")]
    assert code == 0 and len(lines) == 2 * 3 * 2, err
    assert lines[0].startswith("python -m sb3_dmpo train --algo dmpo --dataset sb3_dmpo/two-goals/demonstrations-v0 --seed 0")
    assert lines[0].endswith("--eval-freq 50 -params tau:0.1 n_components:4")
    assert "--resume" in lines[0] and "sweeps/dmpo-tau=0.1-n_components=4/TwoGoals-v0/seed_0" in lines[0]
    assert PlannedRun("dmpo", "a/b-v0", 0, label="n_components=4").name == "dmpo[n_components=4]"
    both = ["--vary", "tau", "0.1", "0.2", "--vary", "gamma", "0.9", "0.99"]
    code, out, err = call(sweep, "--algos", "bc", "--seeds", "0", *both, "--dry-run")
    settings = [line.split("-params ")[1] for line in out.splitlines() if not line.startswith("#")]
    assert settings == ["tau:0.1 gamma:0.9", "tau:0.1 gamma:0.99", "tau:0.2 gamma:0.9", "tau:0.2 gamma:0.99"], err


def test_a_shell_reads_the_printed_commands_as_the_runs_are_started(call: Callable[..., Outcome]) -> None:
    setting = "policy_kwargs:dict(net_arch=[16], activation_fn=nn.ReLU)"
    code, out, err = call(sweep, "--algos", "bc", "-n", "5", "--folder", "my sw", "-params", setting, "--dry-run")
    words = shlex.split(out.splitlines()[0])
    plan = PlannedRun("bc", TWO_GOALS_DATASET_ID, 0, 5, (setting,), setting.replace(":", "=", 1))
    assert code == 0 and words == ["python", *plan.command(Path("my sw"), 5000, 1)], err


def test_numbers_of_updates_are_read_as_in_a_run(call: Callable[..., Outcome], tmp_path: Path) -> None:
    for updates in ("1e5", "100000.0", "100_000"):
        code, out, err = call(sweep, "--algos", "bc", "--dry-run", "-params", f"n_timesteps:{updates}")
        assert code == 0 and "100,000" in out, err
    assert call(sweep, "--algos", "bc", "--dry-run", "--vary", "n_timesteps", "1e5", "2e5")[0] == 0
    Path("table.yml").write_text("- {algos: [bc], hyperparams: {n_timesteps: 100000.0}}")
    assert call(sweep, "--table", "table.yml", "--dry-run")[0] == 0
    # A step of the online stage takes about as long as an update.
    out = call(sweep, "--algos", "bc", "--dry-run", "-n", "100", "--", "--finetune", "50")[1]
    assert "  150  " in out
    assert "1,234" in call(sweep, "--algos", "bc", "--dry-run", "-n", "1000", "--", "--finetune=234")[1]


@pytest.mark.parametrize(
    "option", [["-conf", "my.yml"], ["--conf-file", "my.yml"], ["--conf-file=my.yml"], ["--conf", "my.yml"]]
)
def test_the_config_that_the_runs_use_says_how_long_they_are(
    call: Callable[..., Outcome], tmp_path: Path, option: list[str]
) -> None:
    Path("my.yml").write_text("default: {n_timesteps: 4321, n_components: 16}")
    code, out, err = call(sweep, "--algos", "dmpo", "--dry-run", "--", *option)
    assert code == 0 and " 4,321 " in out, err
    plan = PlannedRun("dmpo", TWO_GOALS_DATASET_ID, 0, params=("tau:0.1",), arguments=tuple(option))
    assert plan.settings == {"n_timesteps": 4321, "n_components": 16, "tau": "0.1"}


def test_a_config_that_does_not_fit_is_refused_before_any_run(call: Callable[..., Outcome], tmp_path: Path) -> None:
    Path("pen.yml").write_text("pen-human: {n_timesteps: 4321}")
    assert_one_line(call(sweep, "--algos", "dmpo", "--", "-conf", "pen.yml"), "pen.yml", "no entry for")
    assert_one_line(call(sweep, "--algos", "dmpo", "-n", "5", "--", "-conf", "nothing.yml"), "nothing.yml")
    assert_one_line(call(sweep, "--algos", "dmpo", "--", "-conf"), "-conf/--conf-file")
    assert not list(tmp_path.glob("sweeps/*"))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--seeds", "x"], "--seeds x"),
        (["--vary", "n_components"], "--vary"),
        (["--vary", "foo", "1", "2", "--dry-run"], "dmpo has no hyperparameter 'foo'"),
        (["--vary", "n_components", "0", "2", "--dry-run"], "n_components is 0, expected a whole number of at least 2"),
        (["-params", "gamma", "--dry-run"], "'gamma' is no setting: write NAME:VALUE"),
        (["-params", "batch_size:dict(", "--dry-run"], "cannot read the value"),
        (["--jobs", "0"], "--jobs"),
        (["--datasets", "nobody/knows/it-v0"], "nobody/knows/it-v0"),
        (["--", "--seed", "3"], "--seed"),
        (["--cluster", "slurm", "--time", "soon"], "soon"),
        (["--cluster", "slurm", "--slurm", "account"], "KEY=VALUE"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(call: Callable[..., Outcome], arguments: list[str], word: str) -> None:
    assert_one_line(call(sweep, "--algos", "dmpo", *arguments), word)


AMBIGUOUS = ["--see 5", "--eval-freq -1 --res=x.csv"]


@pytest.mark.parametrize(
    "spelling",
    [
        *("--hyperp gamma:0.5", "-par gamma:0.5", "-params=gamma:0.5", "-n50", "-Pn50", "-n=50", "--n-timest 50"),
        *("--log-fo=/other", "-f/other", "--seed=5", "--seeds 0-4", "--alg bc", "--resum", "--save-fr 5", "--num-th 2"),
        *("--datas a/b-v0", *AMBIGUOUS),
    ],
)
def test_options_of_the_sweep_are_refused_behind_the_dashes_however_they_are_spelt(
    call: Callable[..., Outcome], spelling: str
) -> None:
    word = "could match" if spelling in AMBIGUOUS else "is set by the sweep"
    assert_one_line(call(sweep, "--algos", "td3_bc", "-n", "20", "--dry-run", "--", *spelling.split()), word)


def test_options_of_train_that_begin_alike_are_let_through(call: Callable[..., Outcome]) -> None:
    options = ["--eval-freq", "-1", "--log-interval", "5", "--n-eval-envs", "2", "--env-kwargs", "a:1"]
    options += ["--finetune", "5", "--finetune-params", "n_envs:1", "--device", "cpu"]
    code, out, err = call(sweep, "--algos", "td3_bc", "-n", "20", "--dry-run", "--", *options)
    assert code == 0 and out.splitlines()[0].endswith(" ".join(options)), err


@pytest.mark.parametrize(
    "values",
    [
        ["policy_kwargs", "dict(net_arch=[16])", "dict(net_arch=(16))"],
        ["learning_rate", "1e-3", "1e+3"],
    ],
)
def test_runs_that_would_share_a_folder_are_refused_at_once(
    call: Callable[..., Outcome], tmp_path: Path, values: list[str]
) -> None:
    outcome = call(sweep, "--algos", "bc", "--seeds", "0-1", "--vary", *values, "--dry-run")
    assert_one_line(outcome, "share the folder sweeps/bc-", f"{values[0]}:{values[1]}", f"{values[0]}:{values[2]}", "--label")
    # The same run twice is one.
    assert call(sweep, "--algos", "bc", "--vary", "tau", "0.1", "0.1", "--dry-run")[0] == 0


def test_grids_of_a_table_with_one_label_are_refused(call: Callable[..., Outcome], tmp_path: Path) -> None:
    Path("t.yml").write_text("[{algos: [bc], label: a, n_timesteps: 5}, {algos: [bc], label: a, n_timesteps: 6}]")
    assert_one_line(call(sweep, "--table", "t.yml", "--dry-run"), "sweeps/bc-a/", "n_timesteps 5 and 6")


def test_times() -> None:
    assert [minutes(text) for text in ("90", "01:30:00", "1-00:00:30")] == [90, 90, 24 * 60 + 1]


def test_dead_and_lost_runs_go_on_and_finished_ones_are_skipped(
    call: Callable[..., Outcome], tmp_path: Path, jobs: InProcessJobs
) -> None:
    jobs.loses_one = True
    grid = ["--algos", "dmpo", "bc", "--seeds", "0-1", "-n", "20", "--folder", "s"]
    code, out, err = call(sweep, *grid)
    assert code == 0, err + out
    assert "died (exit code -9)" in out and "died (its worker was lost)" in out
    rows = rows_of(tmp_path / "s" / "results.csv")
    assert sorted((row["algorithm"], row["seed"], row["updates"]) for row in rows) == sorted(
        (algorithm, seed, updates) for algorithm in ("bc", "dmpo") for seed in "01" for updates in ("10", "20")
    )
    training = rows_of(tmp_path / "s" / "results_training.csv")
    assert [(row["updates"], row["critic_loss"], row["kl"]) for row in training[:2]] == [
        ("10", "0.123457", ""),
        ("20", "", ""),
    ]
    assert len(training) == 4 * 2

    n_submitted = len(jobs.submitted)
    assert n_submitted == 4 + 3

    code, out, _ = call(sweep, *grid, "--seeds", "0-2", "--results", "all.csv")
    assert code == 0 and sorted(jobs.submitted[n_submitted:]) == [f"s/{name}/TwoGoals-v0/seed_2" for name in ("bc", "dmpo")]
    assert len(rows_of(tmp_path / "all.csv")) == 3 * 4

    assert_one_line(call(sweep, *grid, "-n", "30"), "n_timesteps: 20 before, 30 now", "--folder")


@pytest.mark.usefixtures("jobs")
def test_failures_end_the_run_but_not_the_sweep(call: Callable[..., Outcome], tmp_path: Path) -> None:
    code, out, _ = call(sweep, "--algos", "cql", "bc", "--seeds", "1", "-n", "20", "--retries", "0", "--jobs", "2")
    assert code == 1
    assert "has failed (exit code 2): train.py: error: what was asked for cannot be done" in out
    assert "has failed (exit code -9)" in out and not (tmp_path / "sweeps" / "results.csv").exists()
    code, out, _ = call(sweep, "--algos", "bc", "--seeds", "1", "-n", "20", "-params", "gamma:0.9")
    assert code == 0 and rows_of(tmp_path / "sweeps" / "results.csv")[-1]["algorithm"] == "bc[gamma=0.9]"


def test_results_are_merged_without_doubles(tmp_path: Path) -> None:
    from sb3_dmpo.cli.results import ResultsFile

    rows = [{column: column for column in COLUMNS} | {"seed": seed} for seed in ("0", "1")]
    results = ResultsFile(tmp_path / "r.csv", {})
    results.append_rows(rows[:1])
    results.append_rows(rows)
    assert rows_of(tmp_path / "r.csv") == rows
    results.append_rows([rows[0] | {"score": "7"}])
    assert [row["score"] for row in read_tables([tmp_path / "r.csv"], COLUMNS)] == ["7", "score"]


def other_dataset() -> str:
    """A second dataset of the toy; its id."""
    name = "tests/two-goals/other-v0"
    if name not in minari.list_local_datasets():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            minari.create_dataset_from_buffers(name, demonstrations(20, seed=1), env=gym.make("TwoGoals-v0"))
    return name


def kill_worker(pid: int) -> None:
    """
    SIGKILL for a run and for the worker that started it, which cannot tell anybody.

    :param pid: process of the run
    """
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    for number in (parent, pid):
        os.kill(number, signal.SIGKILL)


FAKE_FINETUNING = """
import csv, sys
options = dict(zip(sys.argv[1:], sys.argv[2:]))
columns = {columns!r} if "--finetune" in options else {plain!r}
with open(options["--results"], "w", newline="") as file:
    writer = csv.DictWriter(file, columns, lineterminator="\\n", extrasaction="ignore")
    writer.writeheader()
    offline, online = [(10, 0, "training", 1), (10, 0, "final", 2)], [(10, 5, "training", 3), (15, 10, "final", 4)]
    for updates, steps, kind, score in offline + online:
        if steps == 0 or "--finetune" in options:
            known = dict(algorithm=options["--algo"], dataset=options["--dataset"], seed=options["--seed"], updates=updates)
            known |= dict(env_steps=steps, evaluation=kind, score=score)
            writer.writerow({{column: known.get(column, "") for column in columns}})
"""


def test_rows_of_both_stages_are_collected(call: Callable[..., Outcome], tmp_path: Path, jobs: InProcessJobs) -> None:
    (tmp_path / "train.py").write_text(FAKE_FINETUNING.format(columns=FINETUNE_COLUMNS, plain=COLUMNS))
    (tmp_path / "t.yml").write_text(
        "[{algos: [td3_bc], n_timesteps: 10, train: [--finetune, '10']}, {algos: [bc], n_timesteps: 10}]"
    )
    code, out, err = call(sweep, "--table", "t.yml", "--folder", "s")
    assert code == 0, err
    rows = rows_of(tmp_path / "s" / "results.csv")
    assert tuple(rows[0]) == FINETUNE_COLUMNS
    found = [(row["algorithm"], row["updates"], row["env_steps"], row["evaluation"], row["score"]) for row in rows]
    offline = [("10", "0", "training", "1"), ("10", "0", "final", "2")]
    online = [("10", "5", "training", "3"), ("15", "10", "final", "4")]
    assert sorted(found) == sorted([*[("td3_bc", *row) for row in offline + online], *[("bc", *row) for row in offline]])
    assert "td3_bc on sb3_dmpo/two-goals/demonstrations-v0, seed 0 is finished, score 4.0" in out
    # The same sweep again adds nothing
    assert call(sweep, "--table", "t.yml", "--folder", "s")[0] == 0 and rows_of(tmp_path / "s" / "results.csv") == rows
    assert_one_line(call(sweep, "--algos", "td3_bc", "-n", "10", "--", "--finetune", "-5"), "--finetune -5", "number of steps")


def sweep_with_a_kill(folder: Path, *arguments: str, **environment: str) -> str:
    """
    The grid of 2 algorithms x 2 datasets x 2 seeds with one worker killed once its run has a checkpoint; what the sweep
    said.

    :param folder: where it runs
    :param arguments: further options of the sweep
    :param environment: further environment variables
    """
    datasets = [TWO_GOALS_DATASET_ID, other_dataset()]
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "sweep.py"), "--algos", "dmpo", "bc", "--datasets", *datasets]
    command += ["--seeds", "0", "1", "-n", "600", "--save-freq", "50", "--jobs", "2", *arguments]
    command += ["-params", "policy_kwargs:dict(net_arch=[8])", "batch_size:16", "--label", "small"]
    command += ["--", "--eval-freq", "200", "--eval-episodes", "2"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    deadline, killed = time.monotonic() + 300, False
    while not killed and time.monotonic() < deadline and process.poll() is None:
        for path in folder.rglob("running.json"):
            if not killed and list(path.parent.rglob("rl_model_*_steps.zip")):
                kill_worker(json.loads(path.read_text())["pid"])
                killed = True
        time.sleep(0.01)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and killed, out
    return out


def assert_all_there(folder: Path, out: str) -> None:
    """
    Eight final results, one of them of a run that was resumed.

    :param folder: where the sweep ran
    :param out: what it said
    """
    assert out.count("is finished") == 8 and out.count("died (its worker was lost)") == 1, out
    rows = rows_of(folder / "sweeps" / "results.csv")
    final = [row for row in rows if row["evaluation"] == "final"]
    assert len({(row["algorithm"], row["dataset"], row["seed"]) for row in final}) == len(final) == 8
    assert {row["updates"] for row in final} == {"600"} and {row["algorithm"] for row in final} == {"dmpo[small]", "bc[small]"}
    assert "Resuming" in "".join(path.read_text() for path in folder.rglob("train.log"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker's process under /proc")
def test_local_sweep_with_a_killed_worker(tmp_path: Path) -> None:
    assert_all_there(tmp_path, sweep_with_a_kill(tmp_path))


@pytest.fixture
def slurm() -> Iterator[Path]:
    """A real SLURM of two nodes on this machine; the folder of its files."""
    missing = [program for program in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and SLURM (apt-get install slurm-wlm munge); missing: {', '.join(missing) or 'root'}")
    # Not below the other tests' folders, whose names are too long for a socket.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        script = [str(REPOSITORY / "tests" / "slurm_cluster.sh")]
        try:
            subprocess.run([*script, "start", name], check=True, timeout=120)
            yield Path(name)
        finally:
            subprocess.run([*script, "stop", name], check=True, timeout=60)
            time.sleep(2)


@pytest.mark.slow
def test_slurm_sweep_with_a_killed_worker(tmp_path: Path, slurm: Path) -> None:
    options = ["--cluster", "slurm", "--partition", "main", "--time", "00:30:00", "--mem", "1500MB"]
    out = sweep_with_a_kill(tmp_path, *options, SLURM_CONF=str(slurm / "slurm.conf"))
    assert_all_there(tmp_path, out)
    for node in ("node1", "node2"):
        assert "launch task" in (slurm / f"slurmd-{node}.log").read_text(), node


def test_a_job_that_has_ended_stays_so(tmp_path: Path) -> None:
    """It is asked for again while its files may be on their way."""
    assert LocalJobs(tmp_path, n_jobs=1).alive(["7"]) == set()
