"""
Tables 2 to 9 of the DMPO paper from results files, beside the paper's own numbers: ``python benchmarks/tables.py``.

Reads ``benchmarks/results/*.csv`` and ``benchmarks/paper/table_*.csv``; writes ``tables.md`` and one CSV per table into
``benchmarks/results/tables``. Ours are mean and standard deviation over seeds of the last evaluation (10 episodes, 100 on
AntMaze); what is not there is a dash, and is said at the end.
"""

import argparse
import csv
import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sb3_dmpo.cli.errors import exit_code
from sb3_dmpo.data.tasks import entry_keys
from sb3_dmpo.files.save_util import atomic_write
from sb3_dmpo.plots.common import METHOD_NAMES

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.scores import (
    RUN_UPDATES,
    ScoresByDataset,
    TableCell,
    bootstrap_interval,
    collect_cells,
    interquartile_mean,
    read_results,
    second_half,
)

HERE = Path(__file__).parent
#: Our algorithms by the papers' names.
METHODS = {name: algo for algo, name in METHOD_NAMES.items()} | {"CQL(rho)": "cql"}
MISSING = "-"
#: Evaluations in the second half of a run that say something about its steadiness.
MIN_LATE_EVALUATIONS = 5
Cells = dict[tuple[str, int, str], TableCell]


def task_of(dataset: str) -> str:
    """
    The task that a dataset stands for, without its version: ``D4RL/pen/human-v2`` and ``pen-human-v0`` are ``pen-human``.

    :param dataset: Minari id, path of a D4RL file or the paper's name
    """
    keys = entry_keys(dataset)
    return keys[1].rstrip("-") if len(keys) > 2 else dataset


def family_of(dataset: str) -> str:
    """
    The family of tasks that a dataset belongs to, ``default`` if to none.

    :param dataset: as in :func:`task_of`
    """
    keys = entry_keys(dataset)
    return keys[-2] if len(keys) > 2 else "default"


@dataclass(frozen=True)
class Table:
    """
    A table of the paper.

    :param number: its number
    :param title: what it shows
    :param families: families of tasks whose datasets belong to it
    :param extra: columns that the paper does not have
    :param uses_returns: whether it shows returns and not normalised scores
    """

    number: int
    title: str
    families: tuple[str, ...]
    extra: tuple[str, ...] = ()
    uses_returns: bool = False

    def paper(self) -> dict[str, dict[str, str]]:
        """The paper's cells, by task and method."""
        cells: dict[str, dict[str, str]] = {}
        with open(HERE / "paper" / f"table_{self.number}.csv", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                text = f"{row['mean']} ± {row['std']}" if row["std"] else row["mean"]
                cells.setdefault(row["task"], {})[row["method"]] = text
        return cells

    def methods(self) -> list[str]:
        """Columns."""
        names = [method for cells in self.paper().values() for method in cells]
        return [*self.extra, *dict.fromkeys(names)]

    def algorithms(self, method: str, dataset: str) -> tuple[str, ...]:
        """
        Names of a column in the results, the first that is there counts.

        :param method: name of the column
        :param dataset: id of the dataset
        """
        if self.number == 8:
            k = method.removeprefix("K = ")
            return (f"infodmpo[n_components={k}]", *(("infodmpo",) if k == "8" else ()))
        algorithm = METHODS.get(method)
        if algorithm is None:
            return ()
        if self.number == 3 and family_of(dataset) == "antmaze" and algorithm == "dmpo":
            # Table 3 has DMPO without value targets there, which is not what the config of AntMaze says.
            return ("dmpo[plain]",)
        return (algorithm,)


TABLES = (
    Table(2, "Toy task, return", ("two-goals",), ("BC", "mixAWAC", "CQL", "IQL", "LAPO", "Diffusion QL", "infoDMPO"), True),
    Table(3, "Structure of the policy", ("mujoco", "antmaze")),
    Table(4, "MuJoCo", ("mujoco",), ("BC",)),
    Table(5, "AntMaze, last 100 episodes", ("antmaze",), ("BC",)),
    Table(6, "Adroit", ("adroit",), ("BC", "AWAC", "mixAWAC", "LP-AWAC", "Decision Transformer")),
    Table(8, "infoDMPO with other numbers of components", ("mujoco", "adroit")),
    Table(9, "More baselines on MuJoCo (our MAPLE in a reduced setting, see docs/results.rst)", ("mujoco",)),
)


def format_cell(cell: TableCell, uses_returns: bool) -> str:
    """
    Mean, standard deviation over seeds and number of seeds: ``5.4 ± 3.0 (5)``; of one seed ``5.4 (1)``.

    :param cell: the cell
    :param uses_returns: whether returns are shown
    """
    values, digits = (cell.returns, 2) if uses_returns else (cell.scores, 1)
    spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread} ({len(values)})"


def ours(table: Table, cells: Cells) -> list[tuple[str, int, str, dict[str, str]]]:
    """
    Our rows of a table: dataset, updates, what the data are, and texts by column.

    :param table: the table
    :param cells: all cells
    """
    rows = []
    for dataset, updates in sorted({key[:2] for key in cells}):
        if family_of(dataset) not in table.families:
            continue
        found: dict[str, TableCell] = {}
        for method in table.methods():
            for algorithm in table.algorithms(method, dataset):
                if method not in found and (dataset, updates, algorithm) in cells:
                    found[method] = cells[dataset, updates, algorithm]
        # One number of components is no comparison.
        if len(found) > (1 if table.number == 8 else 0):
            texts = {method: format_cell(cell, table.uses_returns) for method, cell in found.items()}
            rows.append((dataset, updates, next(iter(found.values())).label, texts))
    return rows


def build(table: Table, cells: Cells, missing: list[str]) -> list[list[str]]:
    """
    Rows of a table, the header first; the paper's row of a task stands above ours.

    :param table: the table
    :param cells: all cells
    :param missing: is told which of our cells are not there
    """
    methods, paper, rows = table.methods(), table.paper(), ours(table, cells)
    lines = [["task or dataset", "source", "updates", *methods]]
    left = list(rows)
    for task, texts in paper.items():
        updates = "" if task in ("total", "two-goals") else "10,000" if "human" in task else "1,000,000"
        lines.append([task, "paper", updates, *(texts.get(method, MISSING) for method in methods)])
        matching = [row for row in left if task_of(row[0]) == task_of(task) or task == family_of(row[0])]
        left = [row for row in left if row not in matching]
        lines += [_own_line(row, methods) for row in matching]
    lines += [_own_line(row, methods) for row in left]
    for dataset, n, _, texts in rows:
        absent = [method for method in methods if method not in texts and table.algorithms(method, dataset)]
        if absent:
            missing.append(f"table {table.number}: {dataset} after {n:,} updates: {', '.join(absent)}")
    if not rows:
        missing.append(f"table {table.number}: no results of our own")
    return lines


def _own_line(row: tuple[str, int, str, dict[str, str]], methods: Sequence[str]) -> list[str]:
    dataset, updates, label, texts = row
    return [dataset, label, f"{updates:,}", *(texts.get(method, MISSING) for method in methods)]


def timing_table(rows: Iterable[dict[str, str]]) -> list[list[str]]:
    """
    Table 7: the paper's wall-clock times, and what our runs took with their evaluations.

    :param rows: evaluations
    """
    lines = [["what", "method", "paper (RTX A6000)", "ours"]]
    speeds: dict[str, list[float]] = {}
    for row in rows:
        if row["evaluation"] == "final" and family_of(row["dataset"]) == "mujoco" and float(row["wall_seconds"]) > 0:
            speeds.setdefault(row["algorithm"], []).append(float(row["wall_seconds"]) / 60 / int(row["updates"]) * 1e6)
    with open(HERE / "paper" / "table_7.csv", encoding="utf-8", newline="") as file:
        for paper in csv.DictReader(file):
            found = speeds.get(METHODS[paper["method"]], []) if "training" in paper["task"] else []
            text = f"{np.median(found):,.0f} (median of {len(found)} runs)" if found else MISSING
            lines.append([paper["task"], paper["method"], paper["mean"], text])
    return lines


def comparable(table: Table, cells: Cells) -> dict[tuple[int, str], tuple[list[str], dict[str, ScoresByDataset]]]:
    """
    What can be averaged: for every number of updates and kind of data, the datasets, and the scores of the methods that
    have results on all of them. A single seed says nothing about others.

    :param table: the table
    :param cells: all cells
    """
    groups: dict[tuple[int, str], dict[str, dict[str, np.ndarray]]] = {}
    for (dataset, updates, algorithm), cell in cells.items():
        if family_of(dataset) in table.families and len(cell.scores) > 1:
            by_method = groups.setdefault((updates, cell.label), {})
            for method in table.methods():
                if algorithm in table.algorithms(method, dataset):
                    by_method.setdefault(method, {})[dataset] = cell.scores
    result = {}
    for key, by_method in groups.items():
        datasets = sorted({dataset for scores in by_method.values() for dataset in scores})
        whole = {method: by_method[method] for method in by_method if set(by_method.get(method, {})) == set(datasets)}
        if len(whole) > 1:
            result[key] = datasets, whole
    return result


def aggregate_lines(cells: Cells) -> list[list[str]]:
    """
    Interquartile means over all runs of what can be compared, with 95% intervals.

    :param cells: all cells
    """
    lines = [["table", "datasets", "updates", "method", "runs", "interquartile mean", "95% interval"]]
    for table in TABLES[1:5]:
        for (updates, _), (datasets, methods) in comparable(table, cells).items():
            for method, scores in methods.items():
                low, high = bootstrap_interval(scores)
                n = sum(len(values) for values in scores.values())
                middle = f"{interquartile_mean(scores.values()):.1f}"
                names = ", ".join(datasets)
                lines.append([str(table.number), names, f"{updates:,}", method, str(n), middle, f"{low:.1f} to {high:.1f}"])
    return lines


@dataclass(frozen=True)
class LateScores:
    """
    The second half of a run's evaluations.

    :param mean: of their scores
    :param lowest: the lowest
    :param last: the last
    """

    mean: float
    lowest: float
    last: float


def late_scores(rows: Iterable[dict[str, str]]) -> dict[tuple[str, int, str], dict[int, LateScores]]:
    """
    What the evaluations in the second half of every run say, by dataset, updates of the run and algorithm, then by seed.
    Runs that were evaluated less than :data:`MIN_LATE_EVALUATIONS` times there are left out.

    :param rows: evaluations
    """
    runs: dict[tuple[str, int, str, int], list[dict[str, str]]] = {}
    for row in rows:
        runs.setdefault((row["dataset"], int(row[RUN_UPDATES]), row["algorithm"], int(row["seed"])), []).append(row)
    found: dict[tuple[str, int, str], dict[int, LateScores]] = {}
    for (*place, seed), run in sorted(runs.items()):
        scores = second_half(run)
        if len(scores) >= MIN_LATE_EVALUATIONS:
            found.setdefault(tuple(place), {})[seed] = LateScores(float(np.mean(scores)), min(scores), scores[-1])
    return found


def late_lines(found: dict[tuple[str, int, str], dict[int, LateScores]]) -> list[list[str]]:
    """
    The second half of the runs as a table: over seeds, the mean (± their standard deviation), the lowest evaluation of all,
    and the mean of the last.

    :param found: of :func:`late_scores`
    """
    lines = [["dataset", "updates", "method", "seeds", "mean of the second half", "lowest", "last"]]
    for (dataset, updates, algorithm), seeds in found.items():
        means = np.array([scores.mean for scores in seeds.values()])
        spread = f" ± {means.std():.1f}" if len(means) > 1 else ""
        lowest = min(scores.lowest for scores in seeds.values())
        last = np.mean([scores.last for scores in seeds.values()])
        name = METHOD_NAMES.get(algorithm, algorithm)
        lines.append(
            [dataset, f"{updates:,}", name, str(len(means)), f"{means.mean():.1f}{spread}", f"{lowest:.1f}", f"{last:.1f}"]
        )
    return lines


def peer_lines(found: dict[tuple[str, int, str], dict[int, LateScores]], algorithm: str = "one_step_dmpo") -> list[list[str]]:
    """
    Interquartile means over all runs (each the mean of its second half) of every method and of one that it is compared with,
    on the datasets and numbers of updates where both have results.

    :param found: of :func:`late_scores`
    :param algorithm: the one
    """
    own_name = METHOD_NAMES[algorithm]
    lines = [["method", "datasets", "runs", "interquartile mean", "95% interval", own_name, "95% interval"]]
    # Variants (``infodmpo[n_components=4]``) have tables of their own.
    for peer in sorted({key[2] for key in found if "[" not in key[2]} - {algorithm}):
        places = [key[:2] for key in found if key[2] == peer and (*key[:2], algorithm) in found]
        if not places:
            continue
        texts, runs = [], []
        for name in (peer, algorithm):
            by_place = {f"{place}": found[(*place, name)].values() for place in places}
            scores = {place: np.array([run.mean for run in values]) for place, values in by_place.items()}
            low, high = bootstrap_interval(scores)
            # Of single seeds there is nothing to draw again.
            is_drawn = all(len(values) > 1 for values in scores.values())
            texts += [f"{interquartile_mean(scores.values()):.1f}", f"{low:.1f} to {high:.1f}" if is_drawn else MISSING]
            runs.append(str(sum(len(values) for values in scores.values())))
        lines.append([METHOD_NAMES.get(peer, peer), str(len(places)), " / ".join(runs), *texts])
    return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """
    A Markdown table.

    :param lines: cells, the header first
    """
    texts = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([texts[0], "|" + "---|" * len(lines[0]), *texts[1:]])


def write_csv(path: Path, lines: Sequence[Sequence[str]]) -> None:
    """
    Write a CSV file.

    :param path: the file
    :param lines: cells, the header first
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode("utf-8"))


INTRODUCTION = """# Tables

Made by `python benchmarks/tables.py` from the rows in `benchmarks/results/*.csv`. A line with the source "paper" has the
paper's numbers (5 seeds, on D4RL's own data); the lines below it are ours: mean ± standard deviation over seeds of the last
evaluation, and the number of seeds. **Stand-in data are not D4RL's: only the lines of one source compare with each other.**
A dash is what the paper does not have, or what has not been run.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """
    Write all tables.

    :param argv: arguments; None: those of the process
    :return: exit code
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the results files")
    parser.add_argument("--output", type=Path, help="folder to write to (default: RESULTS/tables)")
    parser.add_argument("--at", type=int, help="evaluations after so many updates, instead of the final ones")
    options = parser.parse_args(argv)
    if not options.results.is_dir():
        parser.error(f"--results {options.results} is no folder")
    output = options.output or options.results / "tables"
    rows = read_results(options.results)
    cells = collect_cells(rows, options.at)
    missing: list[str] = []
    parts = [INTRODUCTION]
    for table in TABLES:
        lines = build(table, cells, missing)
        write_csv(output / f"table_{table.number}.csv", lines)
        parts.append(f"## Table {table.number}: {table.title}\n\n{markdown(lines)}\n")
        if table.number == 6:
            timing = timing_table(rows)
            write_csv(output / "table_7.csv", timing)
            note = "Ours: minutes per million updates, evaluations included, on two shared CPU cores."
            parts.append(f"## Table 7: Time\n\n{note}\n\n{markdown(timing)}\n")
    lines = aggregate_lines(cells)
    if len(lines) > 1:
        write_csv(output / "interquartile_means.csv", lines)
        note = (
            "Of all runs of a method on the named datasets; seeds are drawn again for the intervals. Methods that have no "
            "results on some of the datasets are left out."
        )
        parts.append(f"## Interquartile means\n\n{note}\n\n{markdown(lines)}\n")
    late = late_scores(rows)
    lines, peers = late_lines(late), peer_lines(late)
    if len(lines) > 1:
        write_csv(output / "second_half.csv", lines)
        note = (
            f"Of runs with at least {MIN_LATE_EVALUATIONS} evaluations there: a policy that one evaluation finds good and the "
            "next bad is not to be trusted. Mean ± standard deviation over seeds, lowest evaluation of any seed, mean of the "
            "last ones."
        )
        parts.append(f"## The second half of the runs\n\n{note}\n\n{markdown(lines)}\n")
    if len(peers) > 1:
        write_csv(output / "second_half_peers.csv", peers)
        note = (
            "Of the means of the second half, on the datasets where both have such runs; runs: the method's / OneStepDMPO's."
        )
        parts.append(f"### OneStepDMPO beside each method, interquartile means\n\n{note}\n\n{markdown(peers)}\n")
    with atomic_write(output / "tables.md") as file:
        file.write("\n".join(parts).encode("utf-8"))
    for text in missing:
        print(f"missing: {text}")
    print(f"Tables: {output / 'tables.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main, "tables.py"))
