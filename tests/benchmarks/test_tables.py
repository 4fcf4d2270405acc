"""Scores of many runs, and the paper's tables made of them."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.scores import (
    bootstrap_interval,
    collect_cells,
    interquartile_mean,
    performance_profile,
    profile_band,
    read_results,
)
from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.cli.results import COLUMNS

tables = pytest.importorskip("benchmarks.tables")
figures = pytest.importorskip("benchmarks.figures")


def row(algorithm: str, dataset: str, seed: int, score: float, **other: Any) -> dict[str, str]:
    known = {"updates": 20, "evaluation": "final", "return_mean": score / 100, "label": "stand-in", "wall_seconds": 60}
    known |= {"algorithm": algorithm, "dataset": dataset, "seed": seed, "score": score, **other}
    return {column: str(known.get(column, "")) for column in COLUMNS}


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def test_tasks() -> None:
    assert [tables.task_of(name) for name in ("D4RL/pen/human-v2", "pen-human-v0", "x/hopper-medium-replay-v2.hdf5")] == [
        "pen-human",
        "pen-human",
        "hopper-medium-replay",
    ]
    names = ("D4RL/antmaze/umaze-v1", "walker2d-medium-v2", "my/robot-v0", "sb3_dmpo/two-goals/demonstrations-v0")
    assert [tables.family_of(name) for name in names] == ["antmaze", "mujoco", "default", "two-goals"]


def test_statistics() -> None:
    scores = {"a": np.array([0.0, 10.0, 20.0, 1000.0]), "b": np.array([10.0, 10.0, 20.0, 20.0])}
    # The middle four of 0 10 10 10 20 20 20 1000.
    assert interquartile_mean(scores.values()) == 15.0
    assert bootstrap_interval({"a": np.full(3, 7.0)}) == (7.0, 7.0)
    low, high = bootstrap_interval(scores, n_samples=200)
    assert low < 15.0 < high and (low, high) == bootstrap_interval(scores, n_samples=200)
    thresholds = np.array([-1.0, 5.0, 10.0, 2000.0])
    assert performance_profile(scores, thresholds).tolist() == [1.0, 0.875, 0.5, 0.0]
    band = profile_band(scores, thresholds, n_samples=50)
    assert band.shape == (2, 4) and (band[0] <= band[1]).all() and band[:, 0].tolist() == [1.0, 1.0]


def test_final_rows_count_and_the_last_of_repeated_ones() -> None:
    rows = [row("dmpo", "zoo/pen/noisy-v0", seed, score) for seed, score in ((1, 10.0), (0, 30.0))]
    rows.append(row("dmpo", "zoo/pen/noisy-v0", 0, 99.0, updates=10, evaluation="training"))
    cells = collect_cells(rows)
    assert list(cells) == [("zoo/pen/noisy-v0", 20, "dmpo")]
    assert tables.format_cell(cells["zoo/pen/noisy-v0", 20, "dmpo"], False) == "20.0 ± 10.0 (2)"
    assert tables.format_cell(cells["zoo/pen/noisy-v0", 20, "dmpo"], True) == "0.20 ± 0.10 (2)"
    assert list(collect_cells(rows, at=10)) == [("zoo/pen/noisy-v0", 10, "dmpo")]


def test_of_runs_of_two_lengths_the_shorter_one_counts(tmp_path: Path) -> None:
    """In the middle of a longer run the learning rate is still high."""
    short = row("dmpo", "zoo/pen/noisy-v0", 0, 30.0, updates=10, command="-n 10")
    long = [row("dmpo", "zoo/pen/noisy-v0", 0, s, updates=u, command="-n 20") for s, u in ((10.0, 10), (20.0, 20))]
    write(tmp_path / "a.csv", [short])
    write(tmp_path / "b.csv", long)
    cell = collect_cells(read_results(tmp_path), at=10)["zoo/pen/noisy-v0", 10, "dmpo"]
    assert cell.scores.tolist() == [30.0]


def test_a_run_that_was_interrupted_and_finished_is_one(tmp_path: Path) -> None:
    scores = ((10.0, 5, "train"), (20.0, 10, "train"), (30.0, 15, "train --resume"), (40.0, 20, "train --resume"))
    write(tmp_path / "a.csv", [row("dmpo", "a/b-v0", 0, s, updates=u, command=command) for s, u, command in scores])
    assert [row["run_updates"] for row in read_results(tmp_path)] == ["20"] * 4


def test_files_that_were_edited(tmp_path: Path) -> None:
    """The order of the columns says nothing; what is no number is named with its place."""
    path = tmp_path / "a.csv"
    path.write_text(f"score,{','.join(column for column in COLUMNS if column != 'score')}\n7{',1' * (len(COLUMNS) - 1)}\n")
    assert [row["score"] for row in read_results(tmp_path)] == ["7"]
    for column, value in (("score", ""), ("updates", "20.0"), ("seed", "x")):
        write(path, [row("dmpo", "a/b-v0", 0, 1.0) | {column: value}])
        with pytest.raises(UsageError, match=rf"a\.csv: the row of dmpo on a/b-v0.*{value!r} as its {column}, expected a"):
            read_results(tmp_path)
    path.write_bytes("algorithm\n".encode("utf-16"))
    with pytest.raises(UsageError, match=r"a\.csv is not a CSV file in UTF-8"):
        read_results(tmp_path)


def test_tables_stand_beside_the_papers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("dmpo", "zoo/hopper/medium-v0", 0, 50.0), row("awac", "zoo/hopper/medium-v0", 0, 40.0)]
    rows += [row(name, "zoo/hopper/medium-v0", 1, score) for name, score in (("dmpo", 60.0), ("awac", 40.0))]
    rows += [row(f"infodmpo[n_components={k}]", "zoo/pen/noisy-v0", 0, 10.0 * k) for k in (4, 16)]
    write(tmp_path / "a.csv", [*rows, row("dmpo", "zoo/hopper/medium-v0", 0, 60.0)])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert len(read_results(tmp_path)) == 6
    assert tables.main(["--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "missing: table 3: zoo/hopper/medium-v0 after 20 updates: mixAWAC, LP-AWAC" in out
    lines = (tmp_path / "tables" / "tables.md").read_text().splitlines()
    place = lines.index("| hopper-medium-v2 | paper | 1,000,000 | 57.5 ± 3.0 | 57.2 ± 3.9 | 52.8 ± 3.8 | 71.2 ± 6.5 |")
    assert lines[place + 1] == "| zoo/hopper/medium-v0 | stand-in | 20 | 40.0 ± 0.0 (2) | - | - | 60.0 ± 0.0 (2) |"
    assert "| zoo/pen/noisy-v0 | stand-in | 20 | 40.0 (1) | - | 160.0 (1) | - |" in lines
    assert any(line.startswith("| 3 | zoo/hopper/medium-v0 | 20 | AWAC | 2 | 40.0 |") for line in lines)
    with open(tmp_path / "tables" / "table_3.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 1 + 21 + 1
    for draw in (tables.main, figures.main):
        with pytest.raises(SystemExit, match="2"):
            draw(["--results", str(tmp_path / "nowhere")])
    assert not (tmp_path / "nowhere").exists()


def test_the_papers_numbers_add_up() -> None:
    """Totals of table 4 are the sums of its means, and both tables that show DMPO show the same."""
    paper = {table.number: table.paper() for table in tables.TABLES}
    for method, total in paper[4]["total"].items():
        values = [float(cells[method].split()[0]) for task, cells in paper[4].items() if task != "total"]
        # The total printed for Diffusion QL is not the sum of what is printed above it.
        expected = 944.8 if method == "Diffusion QL" else float(total)
        assert len(values) == 15 and sum(values) == pytest.approx(expected, abs=0.3), method
    for task, cells in paper[4].items():
        if task != "total":
            assert cells["DMPO"] == paper[3][task]["DMPO"]
    assert [len(cells) for cells in paper.values()] == [1, 21, 16, 6, 8, 5, 9]


def late_rows(algorithm: str, seed: int, scores: list[float], dataset: str = "zoo/hopper/mixed-v0") -> list[dict[str, str]]:
    place = {"algorithm": algorithm, "dataset": dataset, "seed": str(seed), "run_updates": str(10 * len(scores))}
    rows = [
        place | {"updates": str(10 * (number + 1)), "evaluation": "training", "score": str(score)}
        for number, score in enumerate(scores)
    ]
    # The last one is evaluated again, with more episodes.
    return [*rows[:-1], rows[-1] | {"score": "-1000"}, rows[-1] | {"evaluation": "final"}]


def test_second_half_of_the_runs() -> None:
    early = [0.0] * 5
    rows = late_rows("dmpo", 0, [*early, 10.0, 20.0, 30.0, 40.0, 50.0]) + late_rows(
        "dmpo", 1, [*early, 50.0, 50.0, 50.0, 50.0, 0.0]
    )
    rows += late_rows("one_step_dmpo", 0, [*early, 90.0, 90.0, 90.0, 90.0, 90.0]) + late_rows("bc", 0, [0.0, 1.0, 2.0, 3.0])
    rows += late_rows("bc", 0, [*early, 7.0, 7.0, 7.0, 7.0, 7.0], dataset="zoo/pen/noisy-v0")
    found = tables.late_scores(rows)
    assert tables.late_lines(found)[1:] == [
        ["zoo/hopper/mixed-v0", "100", "DMPO", "2", "35.0 ± 5.0", "0.0", "25.0"],
        ["zoo/hopper/mixed-v0", "100", "OneStepDMPO", "1", "90.0", "90.0", "90.0"],
        ["zoo/pen/noisy-v0", "100", "BC", "1", "7.0", "7.0", "7.0"],
    ]
    assert tables.peer_lines(found)[1:] == [["DMPO", "1", "2 / 1", "35.0", "30.0 to 40.0", "90.0", "-"]]
