"""Ctrl-C at every moment of a run: saved once, exit code 130, and nothing lost for ``--resume``."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_dmpo import DMPO
from tests.cli.test_resume import FOLDER, RUN, assert_same
from tests.cli.test_train import Outcome

pytest.importorskip("rl_zoo3")

from sb3_dmpo.cli.results import read_rows
from sb3_dmpo.cli.train.exp_manager import OfflineExperimentManager
from tests.doors import train

ZIP = FOLDER / "TwoGoals-v0.zip"


def press_before(patch: pytest.MonkeyPatch, owner: type, method: str, when: Callable[[Any], bool]) -> list[int]:
    """Press Ctrl-C before a method is called, as often as a condition holds; the list grows with every time."""
    original, pressed = getattr(owner, method), list[int]()

    def pressing(self: Any, *args: Any, **kwargs: Any) -> Any:
        if when(self):
            pressed.append(getattr(self, "num_timesteps", 0))
            signal.raise_signal(signal.SIGINT)
        return original(self, *args, **kwargs)

    patch.setattr(owner, method, pressing)
    return pressed


def test_again_while_saving(call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = signal.getsignal(signal.SIGINT)
    press_before(monkeypatch, DMPO, "update", lambda model: model._n_updates == 25)
    saved = press_before(monkeypatch, DMPO, "save", lambda model: model._n_updates == 25)
    code, out, err = call(train, *RUN, "-f", "run")
    assert (code, err.splitlines()[-1]) == (130, "sb3_dmpo train: interrupted")
    assert len(saved) == 1 and out.count("Saving to") == 1
    assert DMPO.load(tmp_path / "run" / ZIP).num_timesteps == 25
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("times", [1, 2])
def test_between_training_and_saving(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """What was trained is not lost by a Ctrl-C that comes when the last update is done."""
    handler = signal.getsignal(signal.SIGINT)
    for _ in range(times):
        press_before(monkeypatch, OfflineExperimentManager, "save_trained_model", lambda manager: True)
    code, out, err = call(train, *RUN, "-n", "4", "--eval-freq", "-1", "-f", "run")
    assert (code, err.splitlines()[-1]) == (130, "sb3_dmpo train: interrupted")
    assert out.count("Saving to") == 1 and DMPO.load(tmp_path / "run" / ZIP).num_timesteps == 4
    assert signal.getsignal(signal.SIGINT) is handler


def test_before_the_final_evaluation(call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All updates are done and saved; what is missing is made up for by --resume, once."""
    with monkeypatch.context() as patch:
        press_before(patch, DMPO, "update", lambda model: model._n_updates == 40)
        assert call(train, *RUN, "--eval-freq", "7", "-f", "run")[0] == 130
    assert DMPO.load(tmp_path / "run" / ZIP).num_timesteps == 40
    code, out, err = call(train, *RUN, "--eval-freq", "7", "-f", "run", "--resume", "--results", "r.csv")
    assert code == 0 and "Score: " in out, err
    assert [(row["updates"], row["evaluation"]) for row in read_rows(tmp_path / "r.csv")] == [("40", "final")]
    assert "was finished before" in call(train, *RUN, "--eval-freq", "7", "-f", "run", "--resume")[1]


def test_a_resumed_run_interrupted_again(
    call: Callable[..., Outcome], tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for update in (13, 27):
        with monkeypatch.context() as patch:
            press_before(patch, DMPO, "update", lambda model, update=update: model._n_updates == update)  # type: ignore[misc]
            assert call(train, *RUN, "-f", "again", "--resume")[0] == 130
        assert DMPO.load(tmp_path / "again" / ZIP).num_timesteps == update
    assert call(train, *RUN, "-f", "again", "--resume")[0] == 0
    assert_same(tmp_path / "again", whole)
    evaluations = np.load(tmp_path / "again" / FOLDER / "evaluations.npz")["timesteps"]
    assert evaluations.tolist() == [8, 16, 24, 32, 40]


def test_while_fine_tuning(call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ["--algo", "dmpo", "-n", "6", "--seed", "1", "--eval-freq", "-1", "--save-freq", "8"]
    run += ["--finetune", "24", "--finetune-params", "learning_starts:2", *RUN[-3:]]
    stage = tmp_path / "logs" / FOLDER / "finetune"
    with monkeypatch.context() as patch:
        press_before(patch, DMPO, "update", lambda model: model._is_online and model.num_timesteps == 13)
        saved = press_before(patch, DMPO, "save", lambda model: model._n_updates > 6 and model.num_timesteps % 8 > 0)
        code, out, err = call(train, *run)
    assert (code, err.splitlines()[-1]) == (130, "sb3_dmpo train: interrupted")
    assert len(saved) == 1 and "finetune/interrupted.zip (14 steps" in out
    assert DMPO.load(stage / "interrupted.zip").num_timesteps == 14 and not (stage / "TwoGoals-v0.zip").exists()
    assert call(train, *run, "--resume")[0] == 0
    assert DMPO.load(stage / "TwoGoals-v0.zip").num_timesteps == 24
