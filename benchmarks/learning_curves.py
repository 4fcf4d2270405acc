"""Figure 3 of the DMPO paper, score and critic loss along the runs, and all evaluations of the long runs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.figure_styles import COMPARED, STYLES, Drawing, style
from benchmarks.scores import RUN_UPDATES, read_results, read_training
from benchmarks.tables import METHODS
from sb3_dmpo.plots.common import METHOD_NAMES, PALETTE

#: Blocks of updates over which the critic loss is averaged, as in the paper.
BLOCK = 5_000
#: Datasets beside each other.
N_COLUMNS = 3
#: Updates of a long run.
LONG = 200_000
#: Evaluations in the running mean of a long run.
RUNNING = 10


def band(axes: Axes, points: Mapping[int, Sequence[float]], method: str) -> None:
    """
    A curve of means over seeds with a band of one standard deviation.

    :param axes: where
    :param points: values of the seeds by number of updates
    :param method: name of the method
    """
    updates = np.array(sorted(points))
    mean, std = (np.array([function(points[update]) for update in updates]) for function in (np.mean, np.std))
    axes.plot(updates, mean, label=method, linewidth=1.8, **style(method))
    axes.fill_between(updates, mean - std, mean + std, color=STYLES[method][0], alpha=0.18, linewidth=0)


def by_updates(rows: Iterable[Mapping[str, str]], name: str, block: int = 1) -> dict[int, list[float]]:
    """
    A column averaged over the blocks of each seed, by the updates of a block's last row.

    :param rows: rows of one method on one dataset
    :param name: name of the column
    :param block: updates of a block
    """
    values: dict[int, dict[str, list[float]]] = {}
    ends: dict[int, int] = {}
    for row in rows:
        if row[name]:
            updates = int(row["updates"])
            number = -(-updates // block)
            values.setdefault(number, {}).setdefault(row["seed"], []).append(float(row[name]))
            ends[number] = max(updates, ends.get(number, 0))
    return {ends[number]: [float(np.mean(own)) for own in seeds.values()] for number, seeds in values.items()}


def panels(rows: Iterable[Mapping[str, str]]) -> list[tuple[str, int]]:
    """
    Dataset and length of the runs of every column: those where two methods or more have evaluations along the runs.

    :param rows: evaluations
    """
    evaluated: dict[tuple[str, int], dict[str, set[str]]] = {}
    for row in rows:
        methods = evaluated.setdefault((row["dataset"], int(row[RUN_UPDATES])), {})
        methods.setdefault(row["algorithm"], set()).add(row["updates"])
    # Two points are no curve.
    return [
        panel
        for panel, methods in sorted(evaluated.items())
        if sum(len(methods.get(METHODS[method], ())) > 2 for method in COMPARED) > 1
    ]


def losses(results: Iterable[Mapping[str, str]], training: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """
    Losses with the length of the evaluated run that they belong to: the last line of its log may stand before its end.

    :param results: evaluations
    :param training: losses
    """
    lengths: dict[tuple[str, str], set[int]] = {}
    for row in results:
        lengths.setdefault((row["algorithm"], row["dataset"]), set()).add(int(row[RUN_UPDATES]))
    rows: list[Mapping[str, str]] = []
    for row in training:
        own = int(row[RUN_UPDATES])
        length = min((known for known in lengths.get((row["algorithm"], row["dataset"]), ()) if known >= own), default=own)
        rows.append({**row, RUN_UPDATES: str(length)})
    return rows


def figure_3(folder: Path) -> Drawing:
    """
    Score and critic loss against updates. Learning rates follow the length of a run, so those of one length share a panel.

    :param folder: folder of the results
    """
    results = read_results(folder)
    training = losses(results, read_training(folder))
    found = panels(results)
    if not found:
        return None, f"no dataset in {folder} has evaluations along the runs of two of {', '.join(COMPARED)}"
    n_columns = min(len(found), N_COLUMNS)
    n_rows = -(-len(found) // n_columns)
    figure = Figure(figsize=(4.4 * n_columns + 1.0, 6.0 * n_rows + 0.6), layout="constrained")
    axes = figure.subplots(2 * n_rows, n_columns, squeeze=False)
    without_loss = []
    for i, (dataset, length) in enumerate(found):
        above, below = axes[2 * (i // n_columns) :][:2, i % n_columns]
        for method in COMPARED:
            key = (METHODS[method], dataset, str(length))
            score, loss = (
                [row for row in rows if (row["algorithm"], row["dataset"], row[RUN_UPDATES]) == key]
                for rows in (results, training)
            )
            if score:
                band(above, by_updates(score, "score"), method)
            points = by_updates(loss, "critic_loss", BLOCK if length >= 4 * BLOCK else max(length // 12, 1))
            if points:
                band(below, points, method)
            elif score:
                without_loss.append(f"{method} on {dataset}")
        above.set_title(f"{dataset}, {length:,} updates", fontsize=11)
        for panel in (above, below):
            panel.set_xlabel("updates")
            panel.xaxis.set_major_formatter("{x:,.0f}")
            panel.tick_params(axis="x", labelrotation=25)
            panel.grid(alpha=0.25)
        if below.lines:
            below.set_yscale("log")
        else:
            below.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=below.transAxes)
            below.set(xticks=[], yticks=[])
    for first in range(0, 2 * n_rows, 2):
        axes[first, 0].set_ylabel("normalised score")
        axes[first + 1, 0].set_ylabel("critic loss (squared Bellman error)")
    for i in range(len(found), n_rows * n_columns):
        for unused in axes[2 * (i // n_columns) :][:2, i % n_columns]:
            unused.set_axis_off()
    handles = [Line2D([], [], label=method, linewidth=1.8, **style(method)) for method in COMPARED]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure, f"no critic losses of {', '.join(without_loss)}" if without_loss else ""


def long_runs(folder: Path) -> Drawing:
    """
    Every evaluation of the runs of :data:`LONG` updates and more, a thin line for each seed, and the mean over
    :data:`RUNNING` of them in a row: a row for each dataset, a panel for each method and length.

    :param folder: folder of the results
    """
    runs: dict[str, dict[tuple[str, int], dict[str, dict[int, float]]]] = {}
    for row in read_results(folder):
        if int(row[RUN_UPDATES]) >= LONG:
            panel = METHOD_NAMES.get(row["algorithm"], row["algorithm"]), int(row[RUN_UPDATES])
            seeds = runs.setdefault(row["dataset"], {}).setdefault(panel, {})
            # The final evaluation stands behind that of the same updates, and takes its place.
            seeds.setdefault(row["seed"], {})[int(row["updates"])] = float(row["score"])
    if not runs:
        return None, f"no run in {folder} has {LONG:,} updates"
    n_columns = max(map(len, runs.values()))
    figure = Figure(figsize=(2.9 * n_columns + 0.6, 3.1 * len(runs)), layout="constrained")
    grid = figure.subplots(len(runs), n_columns, squeeze=False, sharey="row")
    for of_dataset, (dataset, panels_of_dataset) in zip(grid, sorted(runs.items()), strict=True):
        of_dataset[0].set_ylabel(f"{dataset}\nnormalised score")
        for axes in of_dataset[len(panels_of_dataset) :]:
            axes.set_axis_off()
        for axes, ((method, length), seeds) in zip(of_dataset, sorted(panels_of_dataset.items()), strict=False):
            for points in seeds.values():
                updates = np.array(sorted(points)) / 1000
                scores = np.array([points[update] for update in sorted(points)])
                axes.plot(updates, scores, linewidth=0.7, color="#999999")
                if len(scores) >= RUNNING:
                    means = np.convolve(scores, np.full(RUNNING, 1 / RUNNING), "valid")
                    axes.plot(updates[RUNNING - 1 :], means, linewidth=2.0, color=PALETTE[0])
            axes.set_title(f"{method}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}\n{length:,} updates", fontsize=10)
            axes.set(xlabel="thousand updates", xlim=(0, length / 1000))
            axes.grid(alpha=0.25)
    return figure, ""
