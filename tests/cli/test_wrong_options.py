"""What is typed wrong or lies damaged in a log folder is refused, or passed over, before anything is made or called."""

import contextlib
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import optuna
import pytest
import yaml

from sb3_dmpo import DMPO
from tests.cli.test_train import Outcome, assert_one_line
from tests.doors import collect, enjoy, sweep, train

pytest.importorskip("rl_zoo3")

from sb3_dmpo.cli.checkpoints import checkpoints
from sb3_dmpo.cli.enjoy.command import _run_folder
from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.cli.sweep.runs import Worker
from sb3_dmpo.cli.sweep.table import read_table
from sb3_dmpo.cli.train.exp_manager import OfflineExperimentManager
from sb3_dmpo.cli.train.resume import find_run, newest_state
from sb3_dmpo.cli.zoo import prepared_zoo
from sb3_dmpo.envs import make_two_goals_dataset

DATASET, ENV = "sb3_dmpo/two-goals/demonstrations-v0", "TwoGoals-v0"
#: Were it not refused, a run would be over soon.
SMALL = ["policy_kwargs:dict(net_arch=[8])", "batch_size:16", "n_timesteps:2"]
QUICK = ["--eval-freq", "-1", "-params", *SMALL]
#: Bytes of a YAML file that is damaged in one way each.
DAMAGED = {
    "no UTF-8": b"default: {label: caf\xe9}\n",
    "too deep": b"[" * 700,
    "broken": b"default: {",
    "a month that is none": b"2001-99-99",
    "no number": b"!!int ''",
    "a key twice": b"default: {n_timesteps: 2, label: a, label: b}",
}


class Called(Exception):
    """Something was called that must not be."""


def not_to_be_called(*args: Any, **kwargs: Any) -> None:
    raise Called()


# Options of train -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-n", "0"], ["-n 0", "at least 1"]),
        (["-n", "-5"], ["-n -5", "at least 1"]),
        (["--device", "gpu"], ["--device", "gpu", "cpu"]),
        (["--device", "cuda:99"], ["--device", "cuda:99"]),
        (["--device", "meta"], ["--device", "meta"]),
        (["--seed", "99999999999"], ["--seed 99999999999", "4294967295"]),
        (["--log-interval", "0"], ["--log-interval 0", "at least 1"]),
        (["-optimize", "--n-trials", "0"], ["--n-trials is 0", "at least 1"]),
        (["-optimize", "--n-jobs", "0"], ["--n-jobs is 0", "at least 1"]),
        (["-optimize", "--n-evaluations", "0"], ["--n-evaluations is 0", "at least 1"]),
        (
            ["-optimize", "--storage", "sqlite:///no/x.db"],
            ["--storage sqlite:///no/x.db", "unable to open", "sqlite:///study.db"],
        ),
        (["-optimize", "--storage", "foo://x"], ["--storage foo://x", "sqlite:///study.db"]),
        (["-optimize", "--storage", "one.txt"], ["--storage one.txt", "study.log"]),
        (["-optimize", "--results", "r.csv"], ["--results is for one run"]),
        (["-optimize", "--save-freq", "10"], ["--save-freq is for one run"]),
        (["-optimize", "-i", str(Path(__file__).parents[1] / "files" / "old_zips" / "dmpo.zip")], ["-i is for one run"]),
        (["--storage", "study.log"], ["--storage names a study", "-optimize", "--trial-id"]),
        (["--trial-id", "0"], ["--trial-id", "--storage", "--study-name"]),
        (["--trial-id", "0", "--storage", "sqlite:///x.db", "--study-name", "s"], ["sqlite:///x.db", "no such file"]),
        (["--trial-id", "0", "--storage", "x.log", "--study-name", "s"], ["x.log", "no such file"]),
    ],
)
def test_wrong_options_of_train_make_no_folder(
    call: Callable[..., Outcome], tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    assert_one_line(call(train, *arguments, *QUICK), *words)
    assert not list(tmp_path.iterdir())


def test_a_refused_run_leaves_no_results_and_no_folder(call: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("notes")
    assert_one_line(call(train, "--results", "new/r.csv", *QUICK, "nonsense:1"), "nonsense")
    assert_one_line(call(sweep, "--algos", "bc", "--datasets", "no/x-v0", "--results", "new/r.csv"), "no/x-v0")
    assert_one_line(call(train, "--algo", "bc", "-tb", "file", *QUICK), "file", "Not a directory", code=1)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() or "_1" in path.name] == ["file"]


def test_arguments_that_are_no_text(call: Callable[..., Outcome], tmp_path: Path) -> None:
    assert_one_line(call(train, "-f", "l\udcf6gs", *QUICK), "The argument 'l\\udcf6gs' is no text in UTF-8")
    assert not list(tmp_path.iterdir())


def test_trials_that_are_not_there(call: Callable[..., Outcome], tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'x.db'}"
    optuna.create_study(storage=storage, study_name="pen").add_trial(optuna.trial.create_trial(value=1.0))
    (tmp_path / "other.log").write_text("my only line\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    which = ["--storage", storage, "--trial-id"]
    assert_one_line(call(train, *which, "0", "--study-name", "door", *QUICK), storage, "no study 'door'", "'pen'")
    assert_one_line(call(train, *which, "1", "--study-name", "pen", *QUICK), "--trial-id is 1", "'pen' has 1 trial")
    assert_one_line(call(train, "-optimize", "--storage", "other.log", *QUICK), "other.log", "log of something else")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "other.log").read_text() == "my only line\n"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["gamma"], ["'gamma' is no setting", "NAME:VALUE"]),
        (["gamma:"], ["'gamma:' is no setting", "NAME:VALUE"]),
        (["gamma:", "0.5"], ["'gamma:' is no setting", "NAME:VALUE"]),
        ([":0.5"], ["':0.5' is no setting", "NAME:VALUE"]),
        (["tau:0.1", "gamma:0.9.9"], ["gamma: cannot read the value '0.9.9'"]),
    ],
)
def test_settings_that_are_none_are_named(
    call: Callable[..., Outcome], tmp_path: Path, typed: list[str], words: list[str]
) -> None:
    for option in ("-params", "--env-kwargs", "--eval-env-kwargs"):
        assert_one_line(call(train, option, *typed), option, *words)
    assert_one_line(call(enjoy, "--env-kwargs", *typed), "--env-kwargs", *words)
    assert_one_line(call(collect, "--dataset", "a/b-v0", "--env", ENV, "--env-kwargs", *typed), "--env-kwargs", *words)
    assert_one_line(call(sweep, "--algos", "bc", "--dry-run", "-params", *typed), *words)
    assert not list(tmp_path.iterdir())


def test_the_default_of_n_means_the_config(call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OfflineExperimentManager, "create_log_folder", not_to_be_called)
    with pytest.raises(Called):
        call(train, "-n", "-1", *QUICK)


def test_wrong_options_of_enjoy_and_sweep(
    call: Callable[..., Outcome], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["-f", str(tiny), "--no-render", "--episodes", "1"]
    # What is typed stands in for the dataset's own environment, as long as the process lives.
    monkeypatch.setitem(gym.registry, ENV, gym.registry[ENV])
    assert_one_line(call(enjoy, *options, "--env-kwargs", "foo:1"), "TwoGoals-v0 cannot be made", "'foo'")
    assert_one_line(
        call(enjoy, *options, "--env", "Pendulum-v1"), "demonstrations-v0", "observation space", "Choose the envir"
    )
    assert_one_line(call(enjoy, *options, "--seed", "99999999999"), "--seed 99999999999", "4294967295")
    assert_one_line(call(enjoy, *options, "--seed", "-3"), "--seed -3")
    assert_one_line(call(enjoy, *options, "--device", "gpu"), "--device", "gpu")
    assert_one_line(call(enjoy, *options, "-n", "5"), "--episodes and -n", "leave one of them out")
    for option in ("--episodes", "-n", "--n-envs"):
        for value in ("0", "-2"):
            assert_one_line(call(enjoy, *options[:-2], option, value), f"{option} {value}", "at least 1")
    assert_one_line(call(sweep, "--dry-run", "--algos", "bc", "-n", "0"), "-n 0", "at least 1")
    (tmp_path / "table.yml").write_text("- {algos: [bc], n_timesteps: -2}")
    assert_one_line(call(sweep, "--dry-run", "--table", "table.yml"), "table.yml", "-n -2", "at least 1")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("callback:tests.cli.test_wrong_options.not_to_be_called", ["not_to_be_called", "BaseCallback"]),
        ("callback:sys.exit", ["sys.exit", "BaseCallback"]),
        ("callback:['sys.exit']", ["sys.exit", "BaseCallback"]),
        ("callback:[{'sys.exit': {}}]", ["sys.exit", "BaseCallback"]),
        ("callback:[{'sys.exit': {}, 'os.abort': {}}]", ["callback", "os.abort"]),
        ("callback:[3]", ["callback", "3"]),
        ("callback:exit", ["'exit'", "package.module.Class"]),
        ("policy:tests.cli.test_wrong_options.not_to_be_called", ["not_to_be_called", "BasePolicy"]),
    ],
)
def test_only_callbacks_and_policies_are_called(
    call: Callable[..., Outcome], tmp_path: Path, setting: str, words: list[str]
) -> None:
    assert_one_line(call(train, *QUICK, setting), *words)
    assert not list(tmp_path.iterdir())


def test_a_callback_whose_module_fails(call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_callbacks.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert_one_line(
        call(train, *QUICK, "callback:failing_callbacks.Callback"), "failing_callbacks.Callback", "division by zero"
    )


def out_of_memory(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
        "800000000000 bytes. Error code 12 (Cannot allocate memory)"
    )


def test_a_batch_that_does_not_fit_into_memory(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DMPO, "learn", out_of_memory)
    outcome = call(train, "--seed", "1", *QUICK, "batch_size:1000000")
    assert_one_line(outcome, "memory", "800000000000 bytes", "batch_size is 1000000")
    assert not list(tmp_path.rglob("*_1"))


def test_memory_that_is_missing_later_costs_nothing_that_was_done(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_and_fail(model: DMPO, *args: Any, **kwargs: Any) -> None:
        model.save(next(tmp_path.rglob(f"{ENV}_1")) / "rl_model_0_steps.zip")
        out_of_memory()

    monkeypatch.setattr(DMPO, "learn", save_and_fail)
    with pytest.raises(RuntimeError, match="allocate memory"):
        call(train, *QUICK)
    assert list(tmp_path.rglob("rl_model_0_steps.zip"))


def test_a_setting_that_learn_refuses_leaves_no_folder(call: Callable[..., Outcome], tmp_path: Path) -> None:
    run = ["--algo", "decision_transformer", "-n", "2", "--eval-freq", "-1", "-f", "logs", "-params", "reward_scale:0.1"]
    assert_one_line(call(train, *run), "decision_transformer on ", "reward_scale")
    assert not list(tmp_path.rglob("*_1"))


def test_memory_that_several_seeds_do_not_get(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sb3_dmpo.cli.train.seeds.learn_together", out_of_memory)
    assert_one_line(call(train, "--seeds", "0-1", *QUICK), "memory", "800000000000 bytes", "batch_size is 16")
    assert not list(tmp_path.rglob(f"{ENV}_*"))


def test_other_faults_of_the_first_update_are_not_taken_for_memory(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(DMPO, "learn", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        call(train, *QUICK)
    assert list(tmp_path.rglob("*_1"))


# What lies in a log folder --------------------------------------------------------------------------------------


def test_only_numbered_checkpoints_count(tmp_path: Path, tiny: Path) -> None:
    folder = tmp_path / "dmpo" / f"{ENV}_1"
    folder.mkdir(parents=True)
    whole = next(tiny.rglob(f"{ENV}.zip")).read_bytes()
    for name in ("best", "20", "100", "-1", "1_0", "²"):
        (folder / f"rl_model_{name}_steps.zip").write_bytes(whole)
    expected = [folder / "rl_model_100_steps.zip", folder / "rl_model_20_steps.zip"]
    assert checkpoints(folder) == expected and checkpoints(tmp_path, below=True) == expected
    assert newest_state(folder, ENV) == expected[0]


def test_enjoy_takes_the_last_numbered_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from argparse import Namespace

    from huggingface_sb3 import EnvironmentName
    from rl_zoo3.utils import get_model_path

    folder = tmp_path / "[1]" / "dmpo" / f"{ENV}_1"
    folder.mkdir(parents=True)
    (folder / "rl_model_best_steps.zip").touch()
    options = Namespace(load_best=False, load_checkpoint=None, load_last_checkpoint=True)
    vars(options).update(exp_id=0, folder=str(tmp_path / "[1]"), algo="dmpo")
    with prepared_zoo():
        with pytest.raises(UsageError, match="No checkpoint found"):
            _run_folder(options, EnvironmentName(ENV))
        (folder / "rl_model_20_steps.zip").touch()
        assert _run_folder(options, EnvironmentName(ENV)) == str(folder)
        path = get_model_path(0, options.folder, "dmpo", EnvironmentName(ENV), load_last_checkpoint=True)[1]
    assert path == str(folder / "rl_model_20_steps.zip")


def test_a_finished_run_of_a_sweep_keeps_what_is_no_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "dmpo" / "run_1"
    run.mkdir(parents=True)
    for name in ("best", "20"):
        (run / f"rl_model_{name}_steps.zip").touch()
    assert Worker(str(tmp_path), ("-c", "pass"), {}, "1")() == 0
    assert [path.name for path in run.iterdir()] == ["rl_model_best_steps.zip"]
    # The online stage keeps more beside a checkpoint
    (run / "finetune").mkdir()
    (tmp_path / "finished.json").unlink()
    for name in ("rl_model_20_steps.zip", "rl_model_replay_buffer_20_steps.npz", "rl_model_episodes_20_steps.json", "T.zip"):
        (run / "finetune" / name).touch()
    assert Worker(str(tmp_path), ("-c", "pass"), {}, "2")() == 0
    assert [path.name for path in (run / "finetune").iterdir()] == ["T.zip"]


def make_run(folder: Path, number: int) -> Path:
    """A run's settings, where rl_zoo3 keeps them."""
    settings = folder / "dmpo" / f"{ENV}_{number}" / ENV
    settings.mkdir(parents=True)
    (settings / "config.yml").write_text("batch_size: 16\n")
    (settings / "args.yml").write_text(yaml.safe_dump({"dataset": DATASET, "seed": 1, "n_timesteps": 5}))
    return settings


def test_resume_passes_over_damaged_folders(tmp_path: Path) -> None:
    make_run(tmp_path, 1)
    numbers = itertools.count(2)
    for content in (*DAMAGED.values(), b"[[1], 2]", b"5", b""):
        for name in ("args.yml", "config.yml"):
            (make_run(tmp_path, next(numbers)) / name).write_bytes(content)
    for seed, n_timesteps in (("one", "5"), ("99999999999", "5"), ("1", "[5]")):
        options = f"{{dataset: {DATASET}, seed: {seed}, n_timesteps: {n_timesteps}}}"
        (make_run(tmp_path, next(numbers)) / "args.yml").write_text(options)
    with contextlib.ExitStack() as locks:
        found = find_run(str(tmp_path), "dmpo", ENV, DATASET, -1, locks)
    assert found is not None and found.folder.name == f"{ENV}_1" and found.seed == 1


def test_enjoy_runs_what_a_program_has_saved(call: Callable[..., Outcome], tmp_path: Path) -> None:
    model = DMPO(dataset=make_two_goals_dataset(), policy_kwargs={"net_arch": [8]}, seed=0, device="cpu")
    for path in (tmp_path / "dmpo" / ENV, tmp_path / "dmpo" / f"{ENV}_1" / ENV):
        model.save(path)
    for exp_id in ("-1", "1"):
        code, out, err = call(enjoy, "-f", str(tmp_path), "--exp-id", exp_id, "--no-render", "--episodes", "1")
        assert code == 0 and "1 episodes" in out, (out, err)


def test_enjoy_names_settings_that_are_damaged(call: Callable[..., Outcome], tmp_path: Path) -> None:
    settings = make_run(tmp_path, 1)
    settings.parent.joinpath(f"{ENV}.zip").touch()
    for content in DAMAGED.values():
        (settings / "args.yml").write_bytes(content)
        assert_one_line(call(enjoy, "-f", str(tmp_path), "--no-render", "--episodes", "1"), "args.yml", "cannot be read")


# Configs and tables ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_yaml_is_refused_by_name(call: Callable[..., Outcome], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.yml").write_bytes(content)
    assert_one_line(call(train, "-conf", "file.yml", *QUICK), "file.yml", "cannot be read")
    with pytest.raises(UsageError, match=r"file.yml cannot be read"):
        read_table(tmp_path / "file.yml")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.yml", "default: {3: 4}", ["'default'", "3", "name of a hyperparameter"]),
        ("config.yml", "default: {policy_kwargs: {3: 4}}", ["3", "policy_kwargs"]),
        ("config.py", "hyperparams = {", ["SyntaxError", "line 1"]),
        ("config.py", "hyperparams = unknown_name", ["NameError", "unknown_name"]),
        ("config.py", "1 / 0", ["ZeroDivisionError"]),
        ("config.py", "import sys; sys.exit(0)", ["SystemExit"]),
        ("config.py", "settings = {}", ["hyperparams"]),
        ("config.py", "hyperparams = {'default': {3: 4}}", ["'default'", "3", "name of a hyperparameter"]),
        ("wrong_config", "1 / 0", ["ZeroDivisionError"]),
        ("wrong_config", "settings = {}", ["hyperparams"]),
    ],
)
def test_wrong_configs_are_refused_by_name(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, words: list[str]
) -> None:
    (tmp_path / (name if "." in name else f"{name}.py")).write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wrong_config", raising=False)
    is_of_policy = "policy_kwargs" in words
    assert_one_line(call(train, "-conf", name, "-n", "2", "--eval-freq", "-1"), *words, *([] if is_of_policy else [name]))
    assert not list(tmp_path.rglob("*_1"))
