"""
Scores of many runs: reading results files, and statistics that few seeds can carry.

Interquartile mean, stratified bootstrap and performance profile are those of Agarwal, Schwarzer, Castro, Courville,
Bellemare: *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, NeurIPS 2021.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.cli.results import COLUMNS, EVALUATION_KEYS, TRAINING_COLUMNS, read_rows, read_tables

FloatArray = npt.NDArray[np.float64]
#: Scores of one algorithm: of every dataset, one per seed.
ScoresByDataset = Mapping[str, FloatArray]

#: Columns that hold numbers in every row.
_NUMBERS: dict[str, Callable[[str], float]] = {"seed": int, "updates": int, "score": float, "return_mean": float}
#: Column that is added on reading a folder: all updates of the run that a row comes from.
RUN_UPDATES = "run_updates"


def read_runs(folder: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """
    Rows of the CSV files of a folder as ``read_tables`` reads them, with the length of their runs in the column
    :data:`RUN_UPDATES`: what two runs of different length say after the same number of updates is not the same evaluation.

    :param folder: the folder
    :param columns: names of all columns
    :raises UsageError: a file cannot be read, or has something else than a number where there has to be one
    """
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for path in sorted(folder.glob("*.csv")):
        runs: dict[tuple[str, ...], list[dict[str, str]]] = {}
        for row in read_tables([path], columns):
            _check_numbers(path, row)
            # A run that was interrupted and finished is one run.
            command = row.get("command", "").replace(" --resume", "")
            runs.setdefault((row["algorithm"], row["dataset"], row["seed"], command), []).append(row)
        for run in runs.values():
            length = str(max(int(row["updates"]) for row in run))
            rows |= {(length, *(row.get(key, "") for key in EVALUATION_KEYS)): row | {RUN_UPDATES: length} for row in run}
    return list(rows.values())


def _check_numbers(path: Path, row: Mapping[str, str]) -> None:
    for column, kind in _NUMBERS.items():
        try:
            kind(row.get(column, "0"))
        except (TypeError, ValueError):  # None where a row is too short
            raise UsageError(
                f"{path}: the row of {row['algorithm']} on {row['dataset']}, seed {row['seed']}, updates {row['updates']}, "
                f"has {row[column]!r} as its {column}, expected {'a whole number' if kind is int else 'a number'}."
            ) from None


def check_lengths(path: Path, dataset: str, updates: int) -> None:
    """
    End the program if a file holds runs of another length, which would be taken for those that are asked for.

    :param path: results file
    :param dataset: id
    :param updates: updates of the runs to come
    """
    runs: dict[tuple[str, ...], int] = {}
    for row in read_rows(path):
        if row["dataset"] == dataset:
            run = (row["variant"], row["seed"])
            runs[run] = max(runs.get(run, 0), int(row["updates"]))
    if other := set(runs.values()) - {updates}:
        sys.exit(
            f"{path} has runs of {' and '.join(f'{n:,}' for n in sorted(other))} updates on {dataset}: "
            f"pass -n {max(other)} to go on with them, or another --output."
        )


def read_results(folder: Path) -> list[dict[str, str]]:
    """
    All evaluations in a folder of results files.

    :param folder: the folder
    """
    return read_runs(folder, COLUMNS)


def read_training(folder: Path) -> list[dict[str, str]]:
    """
    What the logs of all runs say about the losses, in a folder of results files.

    :param folder: the folder
    """
    return read_runs(folder, TRAINING_COLUMNS)


@dataclass(frozen=True)
class TableCell:
    """
    What one number of a table is made of.

    :param scores: of every seed, the mean over the episodes of its last evaluation, shape (seeds,)
    :param returns: the same as returns
    :param label: what the data are
    """

    scores: FloatArray
    returns: FloatArray
    label: str


def collect_cells(rows: Iterable[Mapping[str, str]], at: int | None = None) -> dict[tuple[str, int, str], TableCell]:
    """
    Final evaluations by dataset, number of updates and algorithm.

    :param rows: evaluations
    :param at: take those after so many updates instead, of whatever kind; of a seed's runs, those of the shortest one
    """
    chosen: dict[tuple[str, int, str], dict[int, Mapping[str, str]]] = {}
    for row in sorted(rows, key=lambda row: -int(row.get(RUN_UPDATES, 0))):
        if row["evaluation"] == "final" if at is None else int(row["updates"]) == at:
            key = (row["dataset"], int(row["updates"]), row["algorithm"])
            chosen.setdefault(key, {})[int(row["seed"])] = row
    return {
        key: TableCell(
            np.array([float(by_seed[seed]["score"]) for seed in sorted(by_seed)]),
            np.array([float(by_seed[seed]["return_mean"]) for seed in sorted(by_seed)]),
            next(iter(by_seed.values()))["label"],
        )
        for key, by_seed in sorted(chosen.items())
    }


def second_half(run: Sequence[Mapping[str, str]]) -> list[float]:
    """
    Scores of the evaluations in the second half of one run, in order. After the last update only the final evaluation counts.

    :param run: its evaluations
    """
    last = max(int(row["updates"]) for row in run)
    counted = [row for row in run if row["evaluation"] == "final" or int(row["updates"]) < last]
    scores = {int(row["updates"]): float(row["score"]) for row in counted}
    return [scores[updates] for updates in sorted(scores) if 2 * updates > last]


def interquartile_mean(scores: Iterable[FloatArray]) -> float:
    """
    Mean of the middle half of the scores of all runs.

    :param scores: scores of the seeds, of every dataset
    """
    values = np.sort(np.concatenate(list(scores)))
    cut = len(values) // 4
    return float(values[cut : len(values) - cut].mean())


def bootstrap_interval(
    scores: ScoresByDataset,
    statistic: Callable[[list[FloatArray]], float] = interquartile_mean,
    level: float = 0.95,
    n_samples: int = 2_000,
    seed: int = 0,
) -> tuple[float, float]:
    """
    Percentile interval of a statistic; seeds are drawn again with replacement, dataset by dataset.

    :param scores: of every dataset, shape (seeds,)
    :param statistic: of the scores of all datasets
    :param level: probability that the interval is to have
    :param n_samples: bootstrap samples
    :param seed: seed of the samples
    """
    rng = np.random.default_rng(seed)
    samples = [statistic([rng.choice(values, len(values)) for values in scores.values()]) for _ in range(n_samples)]
    low, high = np.quantile(samples, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def performance_profile(scores: ScoresByDataset, thresholds: FloatArray) -> FloatArray:
    """
    Share of the runs with a score above each threshold, averaged over the datasets, shape of ``thresholds``.

    :param scores: of every dataset, shape (seeds,)
    :param thresholds: scores, shape (n,)
    """
    shares: FloatArray = np.mean([(values[:, None] > thresholds).mean(axis=0) for values in scores.values()], axis=0)
    return shares


def profile_band(
    scores: ScoresByDataset, thresholds: FloatArray, level: float = 0.95, n_samples: int = 500, seed: int = 0
) -> FloatArray:
    """
    Pointwise percentile band of a performance profile, shape (2, n).

    :param scores: of every dataset, shape (seeds,)
    :param thresholds: scores, shape (n,)
    :param level: probability that the band is to have at each threshold
    :param n_samples: bootstrap samples
    :param seed: seed of the samples
    """
    rng = np.random.default_rng(seed)
    samples = [
        performance_profile({name: rng.choice(values, len(values)) for name, values in scores.items()}, thresholds)
        for _ in range(n_samples)
    ]
    band: FloatArray = np.quantile(samples, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return band
