"""The command that compares exported policies with ``predict``, at a small scale."""

import csv
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
export_parity = pytest.importorskip("benchmarks.export_parity")


@pytest.mark.slow
def test_parity_on_the_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_dmpo.envs import TWO_GOALS_DATASET_ID, make_two_goals_dataset

    make_two_goals_dataset()
    output = tmp_path / "parity.csv"
    arguments = ["--datasets", TWO_GOALS_DATASET_ID, "--updates", "200", "--algorithms", "dmpo", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["export_parity.py", *arguments])
    export_parity.main()
    with output.open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert float(row["max_abs_difference"]) < 1e-5 and float(row["episode_max_abs_difference"]) < 1e-5
    assert row["observations"] == "10000" and row["beyond_tolerance"] == "0"
    assert row["episode_return_onnx"] == row["episode_return_predict"]
