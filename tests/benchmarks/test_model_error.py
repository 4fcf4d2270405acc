"""The figure of a model's errors over the horizon."""

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from benchmarks import model_error
from sb3_dmpo.envs import make_two_goals_dataset
from tests.contract import SMALL, make


def test_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_two_goals_dataset()
    make("maple", dataset=data, **SMALL["maple"]).learn_model().save(tmp_path / "model.zip")  # type: ignore[attr-defined]
    assert model_error.main([str(tmp_path / "model.zip"), "--horizon", "4", "--output", str(tmp_path / "error.png")]) == 0
    assert (tmp_path / "error.png").stat().st_size > 10_000
    out = capsys.readouterr().out
    assert "step 1: observations " in out and "step 4: observations " in out and "nothing changes" in out
