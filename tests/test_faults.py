"""The fault campaigns at a small scale: everything has to pass."""

from typing import Any

import pytest

faults = pytest.importorskip("benchmarks.faults")


def passed(rows: list[dict[str, Any]]) -> None:
    ours = [row for row in rows if row["system"] == "sb3_dmpo"]
    assert ours
    for row in ours:
        assert row["passed"] == row["trials"] > 0, row


def test_kills_during_save() -> None:
    passed(faults.kills_during_save(8))


def test_damaged_files() -> None:
    passed(faults.damaged_files(25))


def test_hostile_files_are_live_elsewhere_and_dead_here() -> None:
    rows = faults.hostile_files()
    passed(rows)
    stock = next(row for row in rows if row["system"] == "stable-baselines3")
    assert stock["passed"] == 0 and stock["trials"] >= 90


def test_wrong_input() -> None:
    assert len(faults.CONFIGURATION_FAULTS) + len(faults.DATASET_FAULTS) >= 40
    passed(faults.wrong_input())


@pytest.mark.slow
def test_kills_during_training() -> None:
    passed(faults.kills_during_training(3, 1))
