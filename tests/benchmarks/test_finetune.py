"""The baseline of the fine-tuning runs, and what is drawn of both."""

import csv
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rl_zoo3")

from benchmarks.finetune import SCRATCH, curves, main
from sb3_dmpo.cli.results import FINETUNE_COLUMNS
from sb3_dmpo.envs import TWO_GOALS_DATASET_ID, make_two_goals_dataset


def test_rows_of_the_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_two_goals_dataset()
    seeds: list[int] = []
    monkeypatch.setattr("sb3_dmpo.cli.train.callbacks.seed_episodes", lambda env, seed: seeds.append(seed))
    path = tmp_path / "r.csv"
    arguments = ["--dataset", TWO_GOALS_DATASET_ID, "-n", "6", "--eval-freq", "4", "--eval-episodes", "2"]
    assert main(["scratch", *arguments, "--results", str(path)]) == 0
    rows = list(csv.DictReader(path.open()))
    found = [(row["algorithm"], row["updates"], row["env_steps"], row["evaluation"]) for row in rows]
    # The first steps are random ones, without updates.
    assert found == [(SCRATCH, "0", "4", "training"), (SCRATCH, "0", "6", "final")]
    # The final evaluation has the episodes of the model beside it: the offset is added to the run's seed once.
    assert set(seeds) == {0}


def test_figure(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FINETUNE_COLUMNS, restval="")
        writer.writeheader()
        for seed, shift in ((0, 0.0), (1, 10.0)):
            # Two evaluations offline, of which the last one counts.
            for steps, score in ((0, 1.0), (0, 20.0), (5, 30.0), (10, 40.0)):
                writer.writerow({"algorithm": "dmpo", "seed": seed, "env_steps": steps, "score": score + shift})
        writer.writerow({"algorithm": "dmpo", "seed": 1, "env_steps": 15, "score": 99.0})
        writer.writerow({"algorithm": SCRATCH, "seed": 0, "env_steps": 5, "score": 3.0})
    steps, scores = curves(path)["dmpo"]
    # What only some of the seeds have reached is left out.
    assert steps.tolist() == [0, 5, 10]
    np.testing.assert_array_equal(scores, [[20, 30, 40], [30, 40, 50]])
    pytest.importorskip("matplotlib")
    assert main(["plot", str(path)]) == 0
    assert path.with_suffix(".png").stat().st_size > 5000
