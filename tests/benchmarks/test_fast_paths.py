"""The comparison of scores with and without the fast paths."""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import fast_paths
from sb3_dmpo.cli.results import COLUMNS, read_rows


def row(variant: str, seed: int, score: float, evaluation: str = "final") -> dict[str, str]:
    return {"variant": variant, "dataset": "a/b-v0", "seed": str(seed), "evaluation": evaluation, "score": str(score)}


def test_sign_flips() -> None:
    assert fast_paths.sign_flip_p_value(np.ones(5)) == 2 / 32
    assert fast_paths.sign_flip_p_value(np.array([1.0, -1.0])) == 1.0
    assert fast_paths.sign_flip_p_value(np.array([3.0, 1.0, -1.0])) == 0.75


def test_comparison_is_by_seed() -> None:
    rows = [row("float32", seed, 10.0 * seed) for seed in range(3)] + [row("fast", seed, 10.0 * seed + 1) for seed in range(4)]
    rows.append(row("fast", 0, 5.0, "training"))
    lines = fast_paths.compare(rows)
    assert lines[2] == "| `a/b-v0` | all evaluations | 3 | 10.0 ± 10.0 | 11.7 ± 9.0 | +1.7 ± 0.7 | 0.25 |"
    assert lines[3] == "| `a/b-v0` | last | 3 | 10.0 ± 10.0 | 11.0 ± 10.0 | +1.0 ± 0.0 | 0.25 |"
    assert len(fast_paths.compare(rows[:1])) == 2


def test_only_missing_runs_are_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []

    def train(command: list[str], **options: Any) -> None:
        commands.append(command)
        path = Path(command[command.index("--results") + 1])
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            found = {"dataset": command[command.index("--dataset") + 1], "seed": command[command.index("--seed") + 1]}
            writer.writerow(dict.fromkeys(COLUMNS, "") | found | {"evaluation": "final", "updates": "7", "score": "1.0"})

    monkeypatch.setattr(fast_paths.subprocess, "run", train)
    arguments = [
        "fast_paths.py",
        "--run",
        "--datasets",
        "a/b-v0",
        "-n",
        "7",
        "--output",
        str(tmp_path / "rows.csv"),
        "--seeds",
    ]
    for seeds, expected in (("1", 2), ("2", 4), ("2", 4)):
        monkeypatch.setattr(sys, "argv", [*arguments, seeds])
        fast_paths.main()
        assert len(commands) == expected
    assert commands[0][-2:] == ["compile:False", "gating_dtype:'float32'"] and commands[1][-2] == "compile:True"
    assert [(r["variant"], r["seed"]) for r in read_rows(tmp_path / "rows.csv")] == [
        *(("float32", "0"), ("fast", "0"), ("float32", "1"), ("fast", "1")),
    ]
