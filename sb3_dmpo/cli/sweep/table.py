"""A file of grids, as of the paper's tables: YAML, whose words are the options of ``sweep``."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sb3_dmpo.cli.errors import UsageError, suggest
from sb3_dmpo.cli.literals import read_yaml
from sb3_dmpo.cli.sweep.options import make_grid
from sb3_dmpo.cli.sweep.runs import PlannedRun
from sb3_dmpo.cli.zoo import algorithm_name
from sb3_dmpo.envs import TWO_GOALS_DATASET_ID

#: Words of a grid, with the types of their values and what is said of them.
_WORDS: dict[str, tuple[tuple[type, ...], str]] = {
    "algos": ((list,), "a list of algorithms"),
    "datasets": ((list,), "a list of datasets"),
    "seeds": ((str, int, list), "numbers and ranges, e.g. 0-4"),
    "n_timesteps": ((int,), "a whole number"),
    "hyperparams": ((dict,), "hyperparameters with their values"),
    "label": ((str,), "a text"),
    "vary": ((dict,), "hyperparameters with lists of values"),
    "train": ((list,), "a list of options of train"),
}


def read_table(path: Path, arguments: Iterable[str] = ()) -> list[PlannedRun]:
    """
    The runs of a file, which is a list of grids::

        - algos: [dmpo, infodmpo]
          datasets: [D4RL/pen/human-v2]
          seeds: 0-4
          hyperparams: {kl_coef: 0.5}
          vary: {n_components: [4, 8]}
          train: [--download]

    :param path: the file
    :param arguments: options of ``train`` for all runs, beside those of their grid
    :raises UsageError: it cannot be read, or a grid says what it must not
    """
    try:
        grids = read_yaml(path.expanduser())
    except UsageError as error:
        raise UsageError(f"The table {path} cannot be read: {error}") from error
    if not isinstance(grids, list) or not grids or not all(isinstance(grid, dict) for grid in grids):
        raise UsageError(f"The table {path} has to be a list of grids: - {{algos: [dmpo], datasets: [ID], seeds: 0-4}}.")
    runs: list[PlannedRun] = []
    for number, grid in enumerate(grids, start=1):
        try:
            _check(grid)
            runs += make_grid(_options(grid), [*grid.get("train", []), *arguments])
        except UsageError as error:
            raise UsageError(f"The table {path}, grid {number}: {error}") from error
    # A grid may hold runs of another one: a method that stands in two blocks of a table.
    return list(dict.fromkeys(runs))


def _check(grid: dict[str, Any]) -> None:
    for word, value in grid.items():
        if word not in _WORDS:
            raise UsageError(f"There is no {word!r} in a grid. {suggest(str(word), _WORDS)}")
        types, expected = _WORDS[word]
        is_right = isinstance(value, types) and not isinstance(value, bool)
        if not is_right or (types == (list,) and not all(isinstance(item, str) for item in value)):
            raise UsageError(f"{word} is {value!r}, expected {expected}.")
    if not grid.get("algos"):
        raise UsageError("It names no algorithm: write algos: [dmpo].")
    if not grid.get("datasets", [TWO_GOALS_DATASET_ID]):
        raise UsageError(f"It names no dataset: write datasets: [{TWO_GOALS_DATASET_ID}].")
    for key, values in grid.get("vary", {}).items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"vary has {values!r} for {key}, expected the list of its values.")


def _options(grid: dict[str, Any]) -> argparse.Namespace:
    """A grid as the parsed options that say the same."""
    seeds = grid.get("seeds", 0)
    return argparse.Namespace(
        algos=[algorithm_name(algo) for algo in grid["algos"]],
        datasets=grid.get("datasets", [TWO_GOALS_DATASET_ID]),
        seeds=[str(seed) for seed in (seeds if isinstance(seeds, list) else [seeds])],
        n_timesteps=grid.get("n_timesteps", -1),
        hyperparams=[f"{key}:{value}" for key, value in grid.get("hyperparams", {}).items()],
        label=grid.get("label", ""),
        vary=[[str(key), *map(str, values)] for key, values in grid.get("vary", {}).items()],
    )
