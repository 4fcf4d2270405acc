"""``torchrun -m sb3_dmpo train``, and workers that share a search."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch as th

from sb3_dmpo import TD3BC
from tests.cli.test_train import Outcome

pytest.importorskip("rl_zoo3")

from sb3_dmpo.common import ranks
from tests.doors import train

WORLD = 2
ROOT = Path(__file__).parents[2]
FOLDER = Path("td3_bc/TwoGoals-v0_1")
ZIP = FOLDER / "TwoGoals-v0.zip"
RUN = ["--algo", "td3_bc", "-n", "600", "--seed", "1", "--save-freq", "100", "--eval-freq", "300", "--eval-episodes", "2"]
RUN += ["--log-interval", "100", "-params", "policy_kwargs:dict(net_arch=[8])", "batch_size:16"]


def started(folder: Path, *arguments: str, world: int = WORLD) -> subprocess.Popen[str]:
    """``torchrun`` in a folder, or Python itself with one process."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
    command = [sys.executable, *launcher, "-m", "sb3_dmpo", "train", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=environment, cwd=folder, text=True, **pipes)


def finished(folder: Path, *arguments: str, world: int = WORLD) -> str:
    """What a command says that comes to its end."""
    process = started(folder, *arguments, world=world)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


@contextlib.contextmanager
def at_update(process: subprocess.Popen[str], folder: Path, updates: int) -> Iterator[None]:
    """A block at the moment when a checkpoint is there."""
    try:
        until = time.monotonic() + 300
        while not (folder / FOLDER / f"rl_model_{updates}_steps.zip").exists():
            assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
            time.sleep(0.005)
        yield
    finally:
        process.kill()


def worker(process: subprocess.Popen[str], rank: int) -> int:
    """Process id of a process that torchrun has started."""
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split():
        if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text(encoding="utf-8").split("\0"):
            return int(pid)
    raise AssertionError("it is not there")


def assert_same(folder: Path, other: Path) -> None:
    for (name, first), second in zip(
        TD3BC.load(folder / ZIP).policy.state_dict().items(), TD3BC.load(other / ZIP).policy.state_dict().values(), strict=True
    ):
        assert th.equal(first, second), name


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="it looks for the processes there")
def test_killed_interrupted_and_resumed(tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    whole.mkdir()
    again.mkdir()
    said = finished(whole, *RUN, "--results", "results.csv", "-tb", "tensorboard")
    assert said.count("Log path:") == said.count("Model:") == 1
    assert [path.name for path in (whole / "logs" / "td3_bc").iterdir()] == ["TwoGoals-v0_1"]
    assert len((whole / "results.csv").read_text(encoding="utf-8").splitlines()) == 3
    assert len(list(whole.glob("tensorboard/*/*/*"))) == 1
    command = (whole / "logs" / FOLDER / "TwoGoals-v0" / "command.txt").read_text(encoding="utf-8")
    assert command.startswith("torchrun --nproc-per-node 2 -m sb3_dmpo train --algo td3_bc")

    process = started(again, *RUN)
    with at_update(process, again / "logs", 200):
        os.kill(worker(process, 1), signal.SIGKILL)
        since = time.monotonic()
        said, _ = process.communicate(timeout=60)
        assert time.monotonic() - since < 60
    assert process.returncode == 1 and "rank      : 1 (local_rank: 1)" in said and "SIGKILL" in said
    assert not (again / "logs" / ZIP).exists()

    process = started(again, *RUN, "--resume")
    with at_update(process, again / "logs", 400):
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert "Resuming" in said and "Stopping after this update" in said and "train: interrupted" in said
    assert 400 <= TD3BC.load(again / "logs" / ZIP).num_timesteps < 600

    assert "Resuming" in finished(again, *RUN, "--resume")
    assert_same(again / "logs", whole / "logs")


@pytest.mark.slow
def test_two_workers_share_a_study(tmp_path: Path) -> None:
    import optuna

    pytest.importorskip("pandas")
    search = ["--algo", "bc", "-optimize", "--storage", "study.log", "--study-name", "bc", "-n", "4", "--n-evaluations", "1"]
    search += ["--eval-episodes", "1", "--n-trials", "2", "--n-startup-trials", "4", "--no-optim-plots"]
    workers = [started(tmp_path, *search, "--seed", str(seed), world=1) for seed in range(2)]
    for process in workers:
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))
    study = optuna.load_study(study_name="bc", storage=optuna.storages.JournalStorage(backend))
    trials = study.get_trials()
    assert len(trials) == 4 and all(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials)
    assert len({str(trial.params) for trial in trials}) == 4
    assert len(list(tmp_path.glob("logs/bc/report_*.csv"))) > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "0-1"], "--seeds does not go with torchrun"),
        (["--finetune", "10"], "--finetune does not go with torchrun"),
        (["-optimize"], "--storage and --study-name"),
        (["-params", "batch_size:15"], "batch_size is 15, and 2 processes share it equally: choose a multiple of 2"),
    ],
)
def test_refused_before_anything_is_made(
    call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], words: str
) -> None:
    class Pair:
        rank, world = 0, 2

        def reduced(self, own: th.Tensor, how: str) -> th.Tensor:
            return own

        meet = staticmethod(lambda: None)

    monkeypatch.setattr(ranks._Group, "current", Pair())
    monkeypatch.setattr(ranks, "object_of_first", lambda own: own)
    code, _, err = call(train, "--algo", "bc", "-n", "4", "--seed", "0", *arguments)
    assert (code, words in err, err.count("\n")) == (2, True, 1), err
    assert not list(tmp_path.glob("logs/*/*"))
