"""Runs that are killed and resumed end as if nothing had happened."""

import contextlib
import csv
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_dmpo import DMPO, MAPLE
from sb3_dmpo.common.evaluation import EvaluationResult
from sb3_dmpo.common.type_aliases import Metrics, OfflineBatch
from sb3_dmpo.envs import TwoGoals
from tests.cli.conftest import PLOT
from tests.cli.test_train import Outcome, assert_one_line
from tests.contract import assert_same as assert_equal

pytest.importorskip("rl_zoo3")

from sb3_dmpo.cli.episodes import EVAL_SEED_OFFSET
from sb3_dmpo.cli.train.callbacks import UPDATES, WALL_SECONDS, RunEvalCallback, read_progress
from sb3_dmpo.cli.train.resume import lock_run
from tests.doors import enjoy, train

N_UPDATES = 40
RUN = ["--algo", "dmpo", "-n", str(N_UPDATES), "--seed", "1", "--save-freq", "10", "--eval-freq", "8", "--eval-episodes", "2"]
RUN += ["--log-interval", "10"]
RUN += ["-params", "policy_kwargs:dict(net_arch=[8])", "batch_size:16"]
FOLDER = Path("dmpo/TwoGoals-v0_1")


def weights(log_folder: Path) -> dict[str, th.Tensor]:
    return DMPO.load(log_folder / FOLDER / "TwoGoals-v0.zip").policy.state_dict()


def assert_same(log_folder: Path, other: Path) -> None:
    for (name, first), second in zip(weights(log_folder).items(), weights(other).values(), strict=True):
        assert th.equal(first, second), name


def test_resumed_run_ends_with_the_same_weights(call: Callable[..., Outcome], tmp_path: Path, whole: Path) -> None:
    killed = Path(shutil.copytree(whole, tmp_path / "killed"))
    # What SIGKILL after update 25 leaves: two checkpoints, three evaluations, and half a checkpoint that never got its name.
    (killed / FOLDER / "TwoGoals-v0.zip").unlink()
    for updates in (30, 40):
        (killed / FOLDER / f"rl_model_{updates}_steps.zip").unlink()
    code, out, err = call(train, *RUN, "-f", "killed", "--resume")
    assert code == 0, err
    assert "Resuming killed/dmpo/TwoGoals-v0_1/rl_model_20_steps.zip" in out
    assert_same(killed, whole)
    assert [path.name for path in (killed / "dmpo").iterdir()] == ["TwoGoals-v0_1"]
    evaluations = np.load(killed / FOLDER / "evaluations.npz")["timesteps"]
    assert evaluations.tolist() == [8, 16, 24, 32, 40]
    progress = read_progress(killed / FOLDER / "progress.csv")
    assert [float(row[UPDATES]) for row in progress if row["eval/mean_reward"]] == [8, 16, 24, 32, 40]
    assert [row["train/critic_loss"] != "" for row in progress if row["train/n_updates"]] == [True] * 4

    code, out, _ = call(train, *RUN, "-f", "killed", "--resume")
    assert code == 0 and "was finished before" in out


def test_seconds_of_a_resumed_run_include_those_before(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those up to the checkpoint, not those of the lost updates: else the run would look faster or slower than it was."""
    # Ten updates may need less than what is rounded away: a second passes whenever the clock is read.
    clock = itertools.count(1.0)
    monkeypatch.setattr("sb3_dmpo.cli.train.callbacks.time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert call(train, *RUN, "-f", "killed")[0] == 0
    folder = tmp_path / "killed" / FOLDER
    for name in ("TwoGoals-v0.zip", "rl_model_30_steps.zip", "rl_model_40_steps.zip"):
        (folder / name).unlink()
    rows = read_progress(folder / "progress.csv")
    with (folder / "progress.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {WALL_SECONDS: str(100 * float(row[UPDATES]))} for row in rows)
    assert call(train, *RUN, "-f", "killed", "--resume", "--results", "r.csv")[0] == 0
    with (tmp_path / "r.csv").open(newline="") as file:
        seconds = {row["updates"]: float(row["wall_seconds"]) for row in csv.DictReader(file)}
    assert list(seconds) == ["24", "32", "40"]
    assert all(2000 < value < 2300 for value in seconds.values()), seconds
    progress = [(float(row[UPDATES]), float(row[WALL_SECONDS])) for row in read_progress(folder / "progress.csv")]
    assert [value for updates, value in progress if updates <= 20] == [800, 1000, 1600, 2000]
    assert all(2000 < value < 2300 for updates, value in progress if updates > 20)


def test_damaged_or_missing_checkpoints_cost_updates_only(call: Callable[..., Outcome], tmp_path: Path, whole: Path) -> None:
    killed = Path(shutil.copytree(whole, tmp_path / "killed"))
    for name in ("TwoGoals-v0.zip", "rl_model_40_steps.zip", "rl_model_30_steps.zip"):
        path = killed / FOLDER / name
        path.write_bytes(path.read_bytes()[:1000])
    assert "rl_model_20_steps" in call(train, *RUN, "-f", "killed", "--resume")[1]
    assert_same(killed, whole)
    for path in (killed / FOLDER).glob("*.zip"):
        path.unlink()
    assert call(train, *RUN, "-f", "killed", "--resume")[0] == 0
    assert_same(killed, whole)


def test_resume_refuses_other_settings(call: Callable[..., Outcome], tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "whole")
    assert_one_line(
        call(train, *RUN, "gamma:0.9", "-f", "whole", "--resume"), "gamma: not set before, 0.9 now", "other settings"
    )
    assert_one_line(call(train, *RUN, "-f", "whole", "--resume", "-n", "50"), "-n: 40 before, 50 now")
    assert_one_line(call(train, *RUN, "-f", "whole", "--resume", "-i", "x.zip"), "x.zip")
    other_env = ["--env-kwargs", "max_episode_steps:20", "-f", "whole", "--resume"]
    assert_one_line(call(train, *RUN, *other_env), "--env-kwargs: None before, {'max_episode_steps': 20} now")
    for path in (tmp_path / "whole" / FOLDER).glob("*[04].zip"):
        path.unlink()  # but for two checkpoints
    kept = sorted(path.name for path in (tmp_path / "whole" / FOLDER).iterdir())
    more = ["-f", "whole", "--resume", "--eval-episodes", "3"]
    assert_one_line(call(train, *RUN, *more), "--eval-episodes: 2 before, 3 now", "other settings")
    assert sorted(path.name for path in (tmp_path / "whole" / FOLDER).iterdir()) == kept
    # No evaluations, no contradiction
    code, _, err = call(train, *RUN, *more, "--eval-freq", "-1")
    assert code == 0, err
    code, out, _ = call(train, *RUN, "-n", "4", "--eval-freq", "-1", "-f", "elsewhere", "--resume")
    assert code == 0 and "no run of dmpo" in out


def test_resume_refuses_another_environment(
    call: Callable[..., Outcome], tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "whole")
    gym.register("OtherGoals-v0", entry_point=TwoGoals, max_episode_steps=40)
    # What a dataset's environment is called leads to the other one for the rest of the process.
    monkeypatch.setitem(gym.registry, "TwoGoals-v0", gym.spec("TwoGoals-v0"))
    outcome = call(train, *RUN, "--env", "OtherGoals-v0", "-f", "whole", "--resume")
    assert_one_line(outcome, "--env: None before, OtherGoals-v0 now")


@pytest.mark.parametrize("checkpoint", [60, None])
def test_a_run_that_continues_an_agent_is_resumed(
    call: Callable[..., Outcome], tmp_path: Path, whole: Path, checkpoint: int | None
) -> None:
    """Its updates come on top of the agent's, whether there is a checkpoint or not."""
    options = RUN[: RUN.index("-params")]
    assert call(train, *options, "-i", str(whole / FOLDER / "TwoGoals-v0.zip"), "-f", "more")[0] == 0
    folder = tmp_path / "more" / FOLDER
    expected, at = weights(tmp_path / "more"), [48, 56, 64, 72, 80]
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == at
    for path in folder.glob("*.zip"):
        if checkpoint is None or path.name not in ("rl_model_50_steps.zip", f"rl_model_{checkpoint}_steps.zip"):
            path.unlink()
    code, _, err = call(train, *options, "-f", "more", "--resume")
    assert code == 0, err
    model = DMPO.load(folder / "TwoGoals-v0.zip")
    assert model.num_timesteps == model._n_updates == 80
    assert all(th.equal(value, expected[name]) for name, value in model.policy.state_dict().items())
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == at
    assert sorted(path.name for path in folder.glob("rl_model_*")) == [
        f"rl_model_{updates}_steps.zip" for updates in (50, 60, 70, 80)
    ]


def test_what_ctrl_c_has_saved_stands_behind_later_checkpoints(
    call: Callable[..., Outcome], tmp_path: Path, whole: Path
) -> None:
    """It has the name of the final zip, and the run may have been resumed from it and killed."""
    killed = Path(shutil.copytree(whole, tmp_path / "killed"))
    (killed / FOLDER / "rl_model_10_steps.zip").replace(killed / FOLDER / "TwoGoals-v0.zip")
    for updates in (30, 40):
        (killed / FOLDER / f"rl_model_{updates}_steps.zip").unlink()
    assert "rl_model_20_steps.zip" in call(train, *RUN, "-f", "killed", "--resume")[1]
    assert_same(killed, whole)


def test_an_evaluation_that_was_killed_is_repeated(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a checkpoint is due after the same update."""
    evaluate = RunEvalCallback._log_evaluation

    def killed(self: RunEvalCallback, result: EvaluationResult) -> None:
        if self.num_timesteps == 20:
            raise OSError("killed")
        evaluate(self, result)

    options = ["10" if word == "8" else word for word in RUN]
    with monkeypatch.context() as patch:
        patch.setattr(RunEvalCallback, "_log_evaluation", killed)
        assert call(train, *options, "-f", "run")[0] == 1
    code, out, err = call(train, *options, "-f", "run", "--resume")
    assert code == 0 and "rl_model_10_steps.zip" in out, err
    assert np.load(tmp_path / "run" / FOLDER / "evaluations.npz")["timesteps"].tolist() == [10, 20, 30, 40]


def diverge(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Make a weight that no later loss uses infinite after some update."""
    update = DMPO.update

    def poisoned(self: DMPO, batch: OfflineBatch) -> Metrics:
        metrics = update(self, batch)
        if self._n_updates == at:
            self.policy.register_buffer("spoilt", th.full((2,), np.inf))
        return metrics

    monkeypatch.setattr(DMPO, "update", poisoned)


def test_diverged_run_keeps_and_names_its_last_good_checkpoint(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge(monkeypatch, at=25)
    error = "sb3_dmpo train: error: spoilt holds inf after update 30"
    without_evaluation = [word if word != "8" else "-1" for word in RUN]
    last = "The last good state is logs/dmpo/TwoGoals-v0_1/rl_model_20_steps.zip."
    assert_one_line(call(train, *without_evaluation), error, last, code=1)
    written = sorted(path.name for path in (tmp_path / "logs" / FOLDER).glob("*.zip"))
    assert written == ["rl_model_10_steps.zip", "rl_model_20_steps.zip"]
    # Resumed with the same settings, it fails in the same way.
    assert_one_line(call(train, *without_evaluation, "--resume"), error, last, code=1)


def test_diverged_fine_tuning_names_the_offline_model(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["--algo", "dmpo", "-n", "6", "--seed", "1", "--eval-freq", "-1", "--finetune", "12", *RUN[-3:]]
    diverge(monkeypatch, at=9)
    outcome = call(train, *run[:-3], "--finetune-params", "learning_starts:2", *run[-3:])
    assert_one_line(outcome, "spoilt", "logs/dmpo/TwoGoals-v0_1/TwoGoals-v0.zip.", code=1)
    assert not list((tmp_path / "logs" / FOLDER / "finetune").glob("*.zip"))


def test_a_run_that_was_killed_before_its_settings_were_written_is_passed_over(
    call: Callable[..., Outcome], tmp_path: Path
) -> None:
    settings = tmp_path / "killed" / FOLDER / "TwoGoals-v0"
    settings.mkdir(parents=True)
    (settings / "config.yml").write_text("n_timesteps: 4")
    (settings / "args.yml").write_text("")
    code, out, err = call(train, *RUN, "-n", "4", "--eval-freq", "-1", "-f", "killed", "--resume")
    assert code == 0 and "no run of dmpo" in out, err
    assert (tmp_path / "killed" / "dmpo" / "TwoGoals-v0_2" / "TwoGoals-v0.zip").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("seconds_after_first_checkpoint", [0.0, 0.1, 0.35])
def test_sigkill_while_training(
    call: Callable[..., Outcome], tmp_path: Path, whole: Path, seconds_after_first_checkpoint: float
) -> None:
    script = "import sys, torch; torch.set_num_threads(1); from sb3_dmpo.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "train", *RUN, "-f", "killed"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").rglob("rl_model_10_steps.zip")) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(seconds_after_first_checkpoint)
    process.send_signal(signal.SIGKILL)
    process.wait()
    code, _, err = call(train, *RUN, "-f", "killed", "--resume")
    assert code == 0, err
    assert_same(tmp_path / "killed", whole)


MAPLE_RUN = ["--algo", "maple", "-n", "30", "--seed", "1", "--save-freq", "10", "--eval-freq", "15", "--eval-episodes", "2"]
MAPLE_RUN += ["-params", "policy_kwargs:dict(net_arch=[8])", "batch_size:16", "n_models:2", "n_elites:1", "model_arch:(8,)"]
MAPLE_RUN += ["model_max_epochs:3", "rollout_batch_size:10", "rollout_interval:6", "n_retained_rollouts:2"]
MAPLE_RUN += ["refresh_interval:12", "real_ratio:0.25"]
KILLED_AT = """
import os, signal, sys, torch
torch.set_num_threads(1)
import sb3_dmpo.maple.dynamics, sb3_dmpo.maple.maple
from sb3_dmpo.__main__ import main
owner = eval("sb3_dmpo.maple." + sys.argv.pop(1))
name, last = sys.argv.pop(1), int(sys.argv.pop(1))
original, calls = getattr(owner, name), []
def deadly(*args, **kwargs):
    calls.append(name)
    if len(calls) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
setattr(owner, name, deadly)
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "owner, name, call_number, checkpoint",
    [
        ("dynamics.EnsembleTraining", "_train_step", 30, 0),
        ("dynamics.DynamicsEnsemble", "step", 13, 10),
        ("maple.MAPLE", "update", 27, 20),
    ],
)
def test_maple_killed_in_each_of_its_phases(
    call: Callable[..., Outcome], tmp_path: Path, owner: str, name: str, call_number: int, checkpoint: int
) -> None:
    """In the second epoch of its ensemble, in the middle of imagined episodes, and between updates."""
    path = Path("maple/TwoGoals-v0_1")
    assert call(train, *MAPLE_RUN, "-f", "whole")[0] == 0
    command = [sys.executable, "-c", KILLED_AT, owner, name, str(call_number), "train", *MAPLE_RUN, "-f", "killed"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True).returncode == -signal.SIGKILL
    left = {file.name for file in (tmp_path / "killed" / path).glob("*.zip")}
    assert f"rl_model_{checkpoint}_steps.zip" in left and f"rl_model_{checkpoint + 10}_steps.zip" not in left
    code, out, err = call(train, *MAPLE_RUN, "-f", "killed", "--resume")
    assert code == 0 and f"rl_model_{checkpoint}_steps.zip" in out, err
    models = [MAPLE.load(tmp_path / folder / path / "TwoGoals-v0.zip") for folder in ("killed", "whole")]
    for model in models:
        model._unpack()
    first, second = models
    assert_equal(first.get_parameters(), second.get_parameters())
    assert_equal(first.dynamics.ensemble.to_arrays(), second.dynamics.ensemble.to_arrays())


def test_a_log_folder_with_brackets(call: Callable[..., Outcome], tmp_path: Path) -> None:
    """Neither an endless search for a free number nor a run in the folder of another."""
    folder = "runs [v1] [0-9]"
    for _ in range(3):
        code, _, err = call(train, "--algo", "bc", "--eval-freq", "-1", "-n", "4", "--save-freq", "2", "-f", folder)
        assert code == 0, err
    assert {path.name for path in (tmp_path / folder / "bc").glob("TwoGoals-v0_*")} == {f"TwoGoals-v0_{i}" for i in (1, 2, 3)}
    code, out, err = call(enjoy, "--algo", "bc", "-f", folder, "--episodes", "1", "--load-last-checkpoint")
    assert code == 0 and "Score" in out, err


def test_two_processes_on_one_run(call: Callable[..., Outcome], tmp_path: Path, whole: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    with contextlib.ExitStack() as locks:
        lock_run(next(run.glob("*/*_1")), locks)
        code, _, err = call(train, *RUN, "-f", "run", "--resume")
        assert code == 2 and "is being trained by another process" in err
    code, out, err = call(train, *RUN, "-f", "run", "--resume")
    assert code == 0 and "finished before" in out, err


def test_the_last_evaluation_is_repeated_by_enjoy(call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's seed gives the same episodes, in the text, in the picture and when they are watched."""

    def score(text: str) -> str:
        return next(line for line in text.splitlines() if line.startswith("Score: ")).split(",")[0]

    drawn: list[tuple[int, int]] = []
    monkeypatch.setattr(PLOT, lambda *args, seed, n_trajectories, **options: drawn.append((seed, n_trajectories)))
    code, out, err = call(train, *RUN, "-f", "again")
    code_of_enjoy, seen, err_of_enjoy = call(enjoy, "--algo", "dmpo", "-f", "again", "--episodes", "2")
    assert code == code_of_enjoy == 0, err + err_of_enjoy
    assert score(out) == score(seen)
    assert drawn == [(1 + EVAL_SEED_OFFSET, 2)]
