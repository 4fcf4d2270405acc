"""The comparison of measures without an environment with true returns."""

import shlex
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rl_zoo3")

from benchmarks.offline_selection import main, spearman, summary
from sb3_dmpo.cli.results import read_rows
from sb3_dmpo.envs import TWO_GOALS_DATASET_ID, make_two_goals_dataset


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 400]) == 1.0
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == -1.0
    # scipy.stats.spearmanr gives the same for ties.
    assert spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(0.9486832980505138)
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_summary_names_what_each_criterion_chooses() -> None:
    rows = [
        {"algorithm": "dmpo", "dataset": "a/b-v0", "seed": "0", "return_mean": mean, "fqe": fqe, "fqe_std": 0.0}
        | {"initial_value": value, "action_distance": distance}
        for mean, fqe, value, distance in (("1", "5", "9", "0.1"), ("3", "6", "7", "0.2"), ("2", "7", "8", "0.3"))
    ]
    found = {row["criterion"]: (row["spearman"], row["return_chosen"]) for row in summary(rows)}
    assert found == {"fqe": ("0.500", "2.00"), "initial_value": ("-1.000", "1.00"), "action_distance": ("-0.500", "1.00")}
    assert summary(rows)[0]["return_best"] == "3.00" and summary(rows)[0]["return_last"] == "2.00"


def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_two_goals_dataset()
    monkeypatch.setattr(
        "benchmarks.offline_selection.offline_measures",
        lambda model, data: {
            "fqe": model.num_timesteps,
            "fqe_std": 0.0,
            "initial_value": 1.0,
            "action_distance": 2.0,
            "components_used": 3.0,
        },
    )
    path = tmp_path / 'a "strange", long name.csv'
    arguments = ["--datasets", TWO_GOALS_DATASET_ID, "--updates", "4", "--checkpoints", "2", "--episodes", "2"]
    for _ in range(2):
        # The same run again replaces its rows.
        assert main([*arguments, "--output", str(path)]) == 0
    assert [row["updates"] for row in read_rows(path)] == ["2", "4"]
    assert len(read_rows(path.with_name(f"{path.stem}_summary.csv"))) == 3
    command = read_rows(path)[0]["command"]
    assert shlex.split(command)[2:] == [*arguments, "--output", str(path)]
    for wrong in (["--updates", "0"], ["--checkpoints", "5"], ["--episodes", "-1"], ["--algo", "bc"], ["--algo", "maple"]):
        with pytest.raises(SystemExit, match="2"):
            main([*arguments, "--output", str(path), *wrong])
    assert [row["updates"] for row in read_rows(path)] == ["2", "4"]
    pytest.importorskip("matplotlib")
    assert main(["--plot", str(path.with_suffix(".png")), "--output", str(path)]) == 0
    assert path.with_suffix(".png").stat().st_size > 5000
