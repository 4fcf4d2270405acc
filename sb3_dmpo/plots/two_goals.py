"""Pictures of the TwoGoals toy: what a model does there, and which sub-policy acts where."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_dmpo.data import load_transitions
from sb3_dmpo.envs import TWO_GOALS_DATASET_ID
from sb3_dmpo.envs.two_goals import GOAL_RADIUS, GOALS, LIMIT, OBSTACLE_RADIUS, OBSTACLES, START, START_NOISE
from sb3_dmpo.plots.common import ONE_POLICY, colour_of

_START, _GOAL, _OBSTACLE = "#0072B2", "#D55E00", "#000000"
SUCCESS_COLOUR, FAILURE_COLOUR = "#009E73", "#CC79A7"
_LEGEND: dict[str, Any] = {
    "loc": "lower center",
    "bbox_to_anchor": (0.5, -0.3),
    "ncols": 3,
    "fontsize": 9,
    "frameon": False,
}
#: Points per side of the map of components.
RESOLUTION = 150
#: Half the size of a label, in such points.
_LABEL_SIZE = 8


def plot_two_goals(
    model: BaseAlgorithm,
    path: str | Path,
    title: str = "",
    n_trajectories: int = 20,
    seed: int = 0,
    dataset: Any = TWO_GOALS_DATASET_ID,
) -> None:
    """
    Draw what a model does on the toy: its trajectories over the demonstrations and, if its policy is a mixture, which
    sub-policy acts where.

    :param model: model trained on TwoGoals
    :param path: PNG file to write
    :param title: name of the algorithm
    :param n_trajectories: number of trajectories
    :param seed: seed of the first one; the others have those after it
    :param dataset: the demonstrations
    """
    is_mixture = hasattr(model.policy, "select_component")
    figure = Figure(figsize=(11.0 if is_mixture else 6.0, 5.6), layout="constrained")
    axes = figure.subplots(1, 2 if is_mixture else 1, squeeze=False)[0]
    paths, returns = trajectories(model, n_trajectories, seed)
    data = load_transitions(dataset, progress_bar=False).observations
    handles = draw_trajectories(axes[0], data, paths, returns, title)
    axes[0].legend(handles=handles, **_LEGEND)
    if is_mixture:
        policy: Any = model.policy
        components, is_one = component_map(policy, RESOLUTION), policy.acts_as_one(data)
        axes[1].legend(handles=draw_components(axes[1], components, policy.n_components, is_one), **_LEGEND)
    figure.savefig(path, dpi=120)


def trajectories(model: Any, n: int, seed: int) -> tuple[list[NDArray[np.float32]], list[float]]:
    """
    Positions of episodes, each of shape (steps + 1, 2), and their returns.

    :param model: model trained on TwoGoals, or whatever has its ``predict``
    :param n: number of episodes
    :param seed: seed of the first episode; the others have those after it
    """
    paths, returns = [], []
    with contextlib.closing(gym.make("TwoGoals-v0")) as env:
        for i in range(n):
            observation, _ = env.reset(seed=seed + i)
            positions, total, state, done = [observation], 0.0, None, False
            while not done:
                action, state = model.predict(observation, state, np.array([len(positions) == 1]), deterministic=True)
                observation, reward, terminated, truncated, _ = env.step(action)
                positions.append(observation)
                total += float(reward)
                done = terminated or truncated
            paths.append(np.array(positions))
            returns.append(total)
    return paths, returns


def all_actions(policy: Any, observation: NDArray[np.float32]) -> NDArray[np.float32]:
    """
    What every sub-policy would do, shape (n_components, 2): the toy's actions need no scaling.

    :param policy: policy of a mixture
    :param observation: shape (2,)
    """
    with th.no_grad():
        scaled = policy.scale_observations(th.as_tensor(observation[None]))
        actions: NDArray[np.float32] = policy.acting("actor").all_components(scaled)[0].numpy()
    return actions


def component_map(policy: Any, resolution: int) -> NDArray[np.int64]:
    """
    Which sub-policy acts where on the plane, shape (resolution, resolution), lowest y first.

    :param policy: policy of a mixture
    :param resolution: points per side
    """
    ticks = np.linspace(-LIMIT, LIMIT, resolution, dtype=np.float32)
    plane = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    components: NDArray[np.int64] = policy.select_component(plane).reshape(resolution, resolution)
    return components


def draw_map(axes: Axes, goal_colour: str = _GOAL) -> list[Any]:
    """
    Draw goals, obstacles and start; their entries of the legend.

    :param axes: where
    :param goal_colour: colour of the goals
    """
    for centre in GOALS:
        axes.add_patch(Circle(tuple(centre), GOAL_RADIUS, facecolor=goal_colour, edgecolor="black", linewidth=2, zorder=3))
    for centre in OBSTACLES:
        axes.add_patch(Circle(tuple(centre), OBSTACLE_RADIUS, facecolor=_OBSTACLE, zorder=3))
    axes.add_patch(Circle(tuple(START), START_NOISE, facecolor=_START, edgecolor="white", zorder=5))
    axes.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), xlabel="x position", ylabel="y position", aspect="equal")
    return [
        Line2D([], [], marker="o", linestyle="", color=_START, label="start"),
        Line2D([], [], marker="o", linestyle="", markersize=10, color=goal_colour, markeredgecolor="black", label="goal (+1)"),
        Line2D([], [], marker="o", linestyle="", markersize=10, color=_OBSTACLE, label="obstacle (-1)"),
    ]


def draw_trajectories(
    axes: Axes, data: NDArray[Any], paths: Sequence[NDArray[np.float32]], returns: Sequence[float], title: str
) -> list[Any]:
    """
    Draw trajectories over the demonstrations; entries of the legend.

    :param axes: where
    :param data: positions in the dataset, shape (n, 2)
    :param paths: positions of the episodes, each of shape (steps, 2)
    :param returns: their returns
    :param title: name of the algorithm
    """
    axes.plot(*data.T, ".", markersize=1.5, color="#BBBBBB", zorder=1)
    handles = [Line2D([], [], marker=".", linestyle="", color="#BBBBBB", label="demonstrations")]
    for positions, total in zip(paths, returns, strict=True):
        colour, style = (SUCCESS_COLOUR, "-") if total > 0 else (FAILURE_COLOUR, "--")
        axes.plot(*positions.T, style, color=colour, linewidth=1.6, alpha=0.85, zorder=4)
    if max(returns) > 0:
        handles.append(Line2D([], [], color=SUCCESS_COLOUR, label="reaches a goal"))
    if min(returns) <= 0:
        handles.append(Line2D([], [], color=FAILURE_COLOUR, linestyle="--", label="reaches no goal"))
    handles += draw_map(axes)
    prefix = f"{title}: " if title else ""
    axes.set_title(f"{prefix}{len(paths)} trajectories, mean return {np.mean(returns):.2f}")
    return handles


def draw_components(axes: Axes, components: NDArray[Any], n_components: int, is_one: bool = False) -> list[Any]:
    """
    Draw which sub-policy acts where; entries of the legend.

    :param axes: where
    :param components: as of :func:`component_map`
    :param n_components: number of sub-policies
    :param is_one: whether they are as good as the same: what the gate chooses among them says nothing then
    """
    ticks = np.linspace(-LIMIT, LIMIT, len(components))
    colours = [colour_of(0 if is_one else component) for component in range(n_components)]
    axes.imshow(
        components,
        origin="lower",
        extent=(-LIMIT, LIMIT, -LIMIT, LIMIT),
        cmap=ListedColormap(colours),
        norm=BoundaryNorm(np.arange(n_components + 1) - 0.5, n_components),
        interpolation="nearest",
    )
    # White, because the regions take up all colours.
    draw_map(axes, "white")
    if is_one:
        axes.set_title(f"{ONE_POLICY[0].upper()}{ONE_POLICY[1:]}")
        return [Patch(facecolor=colours[0], label=f"all {n_components} sub-policies")]
    active = np.unique(components)
    for component in active:
        row, column = _widest_spot(components == component)
        axes.annotate(
            str(component),
            (ticks[column], ticks[row]),
            ha="center",
            va="center",
            zorder=6,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "black", "linewidth": 0.5},
        )
    axes.set_title(f"Active sub-policy ({len(active)} of {n_components} in use)")
    return [Patch(facecolor=colours[component], label=f"sub-policy {component}") for component in active[:12]]


def _widest_spot(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """
    The place in a region with most of the region around it, where a label covers nothing else.

    :param mask: the region, shape (n, n)
    """
    sums = np.pad(mask, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    n = len(mask)
    low = np.clip(np.arange(n) - _LABEL_SIZE, 0, n)
    high = np.clip(np.arange(n) + _LABEL_SIZE + 1, 0, n)
    around = sums[np.ix_(high, high)] - sums[np.ix_(low, high)] - sums[np.ix_(high, low)] + sums[np.ix_(low, low)]
    row, column = np.unravel_index(np.argmax(np.where(mask, around, -1)), mask.shape)
    return int(row), int(column)
