"""The figure of mazes: what every method does in one, seen from above."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.figure_styles import Drawing
from sb3_dmpo.plots.common import PALETTE
from sb3_dmpo.plots.two_goals import FAILURE_COLOUR, SUCCESS_COLOUR

_START, _GOAL = PALETTE[0], PALETTE[5]
_MOST_COLUMNS = 4
#: How much of the outer walls is shown, in cells.
_SEEN_OF_WALLS = 0.4


def draw_maze(axes: Axes, walls: np.ndarray, cell_size: float) -> None:
    """
    Draw the walls.

    :param axes: where
    :param walls: which cells are walls, shape (rows, columns), the first row at the top
    :param cell_size: length of a cell
    """
    half_height, half_width = (cell_size * n / 2 for n in walls.shape)
    axes.imshow(walls, cmap=ListedColormap(["white", "#BBBBBB"]), extent=(-half_width, half_width, -half_height, half_height))
    hidden = (1 - _SEEN_OF_WALLS) * cell_size
    axes.set(xlim=(hidden - half_width, half_width - hidden), ylim=(hidden - half_height, half_height - hidden))
    axes.set(xticks=[], yticks=[], aspect="equal")


def count_near_failures(paths: np.ndarray, goals: np.ndarray, successes: np.ndarray, distance: float) -> int:
    """
    How many of the episodes without success end near their goal.

    :param paths: positions in metres, NaN after the end of an episode, shape (n_episodes, steps, 2)
    :param goals: goals in metres, shape (n_episodes, 2)
    :param successes: which episodes reach the goal, shape (n_episodes,)
    :param distance: what counts as near, in metres
    """
    last = (~np.isnan(paths[..., 0])).sum(axis=1) - 1
    ends = paths[np.arange(len(paths)), last]
    return int((~successes & (np.linalg.norm(ends - goals, axis=1) < distance)).sum())


def maze_trajectories(folder: Path) -> Drawing:
    """
    Trajectories of every method in a maze, a panel each.

    :param folder: folder of the results
    """
    path = folder / "maze_trajectories.npz"
    if not path.is_file():
        return None, f"{path} is not there: python benchmarks/figure_data.py maze --dataset ID IQL=... DMPO=..."
    with np.load(path) as arrays:
        data: dict[str, Any] = dict(arrays)
    names = [str(name) for name in data["names"]]
    n_rows = -(-len(names) // _MOST_COLUMNS)
    n_columns = -(-len(names) // n_rows)
    figure = Figure(figsize=(3.4 * n_columns, 3.9 * n_rows + 0.8), layout="constrained")
    axes = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    cell_size = float(data["cell_size"])
    for panel, name in zip(axes, names, strict=False):
        draw_maze(panel, data["walls"], cell_size)
        paths, successes = data[f"paths_{name}"], data[f"successes_{name}"]
        for positions, is_success in zip(paths, successes, strict=True):
            colour, line = (SUCCESS_COLOUR, "-") if is_success else (FAILURE_COLOUR, "--")
            panel.plot(*positions.T, line, color=colour, linewidth=1.2, alpha=0.8)
        panel.plot(*paths[:, 0].T, "o", color=_START, markersize=4)
        panel.plot(*data[f"goals_{name}"].T, "*", color=_GOAL, markersize=10, markeredgecolor="black", markeredgewidth=0.5)
        title = f"{name}: {successes.mean():.0%} of {len(successes)} episodes\n{int(data[f'updates_{name}']):,} updates"
        if not successes.all():
            n_near = count_near_failures(paths, data[f"goals_{name}"], successes, cell_size)
            title += f"\n{n_near} of {int((~successes).sum())} failures end within {cell_size:g} m of the goal"
        panel.set_title(title, fontsize=10)
    for unused in axes[len(names) :]:
        unused.set_axis_off()
    figure.suptitle(f"{data['dataset']}: episodes that reach the goal", fontsize=12)
    handles = [
        Line2D([], [], color=SUCCESS_COLOUR, label="reaches the goal"),
        Line2D([], [], color=FAILURE_COLOUR, linestyle="--", label="does not"),
        Line2D([], [], marker="o", linestyle="", color=_START, label="start"),
        Line2D([], [], marker="*", linestyle="", color=_GOAL, markersize=10, markeredgecolor="black", label="goal"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure, ""
