"""The fault campaigns at a small scale: everything has to pass."""

from typing import Any

import pytest

pytest.importorskip("rl_zoo3")

from benchmarks.fault_campaigns import damage, disk, hdf5, hostile, hostile_kinds, inputs, kills, soak, versions


def passed(rows: list[dict[str, Any]]) -> None:
    ours = [row for row in rows if row["system"] == "sb3_dmpo"]
    assert ours
    for row in ours:
        assert row["passed"] == row["trials"] > 0, row


def test_kills_during_save() -> None:
    passed(kills.kills_during_save(8))


def test_damaged_files() -> None:
    passed(damage.damaged_files(20))


@pytest.mark.slow
def test_hostile_files_are_live_elsewhere_and_dead_here() -> None:
    rows = hostile.hostile_files()
    passed(rows)
    stock = next(row for row in rows if row["system"] == "stable-baselines3")
    # PyTorch itself refuses those in place of the weights.
    assert stock["trials"] - stock["passed"] >= 3 * 30


@pytest.mark.slow
def test_hostile_files_that_execute_nothing() -> None:
    rows = hostile_kinds.hostile_kinds(20)
    passed(rows)
    stock = [row for row in rows if row["system"] == "stable-baselines3" and row["campaign"].startswith("hostile")]
    assert sum(row["passed"] for row in stock) < sum(row["trials"] for row in stock) / 10


@pytest.mark.slow
def test_wrong_input() -> None:
    assert len(hdf5.HDF5_FAULTS) >= 12 and len(inputs.CONFIGURATION_FAULTS) + len(inputs.DATASET_FAULTS) >= 40
    passed(inputs.wrong_input())


def test_full_disks_and_two_writers() -> None:
    rows = disk.disk_faults(3)
    passed([row for row in rows if "may not be mounted" not in row["detail"]])


def test_other_versions() -> None:
    passed(versions.other_versions())


@pytest.mark.slow
def test_kills_during_training() -> None:
    passed(kills.kills_during_training(3, 1, 1))


@pytest.mark.slow
def test_soak() -> None:
    (row,) = soak.soak(20.0, 15.0, 4.0, ("toy",))
    # So short a run is no measure of memory; nothing else may grow in it either.
    assert "children 0, temporary files left 0" in row["detail"], row
    assert int(row["detail"].split(" checkpoints")[0].split()[-1]) >= 4
