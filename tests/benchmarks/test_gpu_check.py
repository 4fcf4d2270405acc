"""benchmarks/gpu_check.py at its smallest and without a GPU: that it does not fail for a typo when there is one."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch as th

gpu_check = pytest.importorskip("benchmarks.gpu_check")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_check_is_run_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "folder" / "gpu.csv"
    assert gpu_check.main(["--device", "cpu", "--quick", "--algos", "iql", "--output", str(path)]) == 0
    found = read(path)
    checks = ["captured equals compiled", "waits for nothing", "speed", "kernels", "one seed", "2 seeds at once"]
    assert list(dict.fromkeys(row["check"] for row in found)) == [*checks, "resumed equals whole", "whole run"]
    assert {row["mode"] for row in found if row["check"] == "speed"} == set(gpu_check.MODES)
    assert all(row["value"] == "yes" for row in found if row["check"] in (*checks[:2], "resumed equals whole"))
    assert all(float(row["value"]) > 0 for row in found if row["unit"] and row["check"] != "whole run")
    assert all(row["device"].startswith("CPU") and row["torch"] == th.__version__ and row["commit"] for row in found)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(found)


def test_what_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that fails, one that finds a difference, and no time for the others."""

    def broken(self: object, algorithm: str) -> None:
        raise RuntimeError("CUDA error: misaligned address\nand much more")

    monkeypatch.setattr(gpu_check.Check, "captured_equals_compiled", broken)
    monkeypatch.setattr(
        gpu_check.Check, "waits", lambda self, algorithm: [gpu_check.Row("waits", algorithm, "", "differs: x")]
    )
    clock = iter([0.0, 0.0, 1.0])
    monkeypatch.setattr(gpu_check, "time", SimpleNamespace(monotonic=lambda: next(clock, 1e9)))
    path = tmp_path / "gpu.csv"
    assert gpu_check.main(["--device", "cpu", "--quick", "--algos", "iql", "--output", str(path)]) == 1
    first, second, *others = read(path)
    assert (first["value"], first["note"]) == ("failed", "RuntimeError: CUDA error: misaligned address")
    assert second["value"] == "differs: x"
    assert others and all(row["value"] == "no time left" for row in others)


def test_differences_are_found() -> None:
    ones, twos = {"weights": [th.ones(2), th.zeros(0)]}, {"weights": [th.tensor([1.0, 1.5]), th.zeros(0)]}
    assert gpu_check.difference(ones, ones) == ""
    assert gpu_check.difference(ones, twos) == "differs: weights by 0.5"


@pytest.mark.skipif(th.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main([])
    assert "finds no CUDA device; --device cpu --quick tries" in capsys.readouterr().err
