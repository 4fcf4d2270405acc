"""
The picture at the top of the README: ``python benchmarks/hero.py`` trains BC and DMPO on the toy, some minutes on one CPU
core, and draws the data, the actions of both where the demonstrations cross, and what DMPO's sub-policies propose on the way.

DMPO is trained with ``kl_coef=0.2``. With the published 1.0 its sub-policies hardly differ on this toy, and neither would
what is drawn here.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch as th

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb3_dmpo import BC, DMPO
from sb3_dmpo.data.loading import Transitions, load_transitions
from sb3_dmpo.envs import make_two_goals_dataset
from sb3_dmpo.envs.two_goals import GOALS, OBSTACLES, STEP_SIZE
from sb3_dmpo.plots.two_goals import all_actions, draw_map, trajectories

#: The toy's settings of zoo_configs/, and the one that lets the sub-policies part.
SETTINGS: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 128, "policy_kwargs": {"net_arch": [64, 64]}, "seed": 0}
KL_COEF = 0.2
N_UPDATES = 3_000
#: Where the demonstrations cross, and how far around it logged actions are shown.
CROSSING, NEIGHBOURHOOD = np.zeros(2, np.float32), 0.08
#: Every so many steps of a trajectory the sub-policies' actions are drawn, this much longer than they are.
FAN_EVERY, FAN_LENGTH = 2, 1.6
UPPER, LOWER, SUB_POLICY, CHOSEN, REGRESSION = "#56B4E9", "#E69F00", "#009E73", "#005C43", "#CC3377"


def proposals(model: DMPO, observation: np.ndarray) -> tuple[np.ndarray, int]:
    """
    The actions of all sub-policies, shape (n_components, 2), and which of them the critics choose.

    :param model: trained on the toy, whose actions need no scaling
    :param observation: shape (2,)
    """
    return all_actions(model.policy, observation), int(model.policy.select_component(observation[None])[0])


def draw_data(axes: Axes, data: Transitions) -> None:
    """
    Demonstrations in the colour of their goal.

    :param axes: where
    :param data: the toy's transitions
    """
    ends = np.flatnonzero(data.terminations.ravel())
    for start, end in zip([0, *(ends[:-1] + 1)], ends, strict=True):
        path = np.vstack([data.observations[start : end + 1], data.next_observations[end]])
        is_upper = np.linalg.norm(path[-1] - GOALS[0]) < np.linalg.norm(path[-1] - GOALS[1])
        axes.plot(*path.T, color=UPPER if is_upper else LOWER, linewidth=0.4, alpha=0.35)
    draw_map(axes)
    for places, word in ((GOALS, "goal"), (OBSTACLES, "obstacle")):
        for place in places:
            axes.annotate(word, place, color="white", fontsize=8, ha="center", va="center", zorder=8)
    axes.set_title("The data: two ways to act in the same places")


def draw_crossing(axes: Axes, data: Transitions, bc: BC, dmpo: DMPO) -> None:
    """
    Actions at the crossing: logged ones, BC's, and those of DMPO's sub-policies.

    :param axes: where
    :param data: the toy's transitions
    :param bc: the unimodal policy
    :param dmpo: the mixture
    """
    is_near = np.linalg.norm(data.observations - CROSSING, axis=1) < NEIGHBOURHOOD
    actions, chosen = proposals(dmpo, CROSSING)
    axes.plot(*data.actions[is_near].T, ".", color="#B8B8B8", markersize=5, label="logged action")
    axes.plot(*bc.predict(CROSSING)[0], "X", color=REGRESSION, markersize=13, label="BC: the average")
    axes.plot(*actions.T, "o", color=SUB_POLICY, markersize=8, label="DMPO: eight sub-policies")
    axes.plot(
        *actions[chosen], "o", markersize=17, fillstyle="none", color=CHOSEN, markeredgewidth=2.5, label="the critics' choice"
    )
    axes.set(xlim=(-1.02, 1.02), ylim=(-1.02, 1.02), xlabel="step in x", ylabel="step in y", aspect="equal")
    axes.legend(loc="lower left", fontsize=9, framealpha=0.95)
    axes.set_title("Actions at the crossing, (0, 0)")


def draw_acting(axes: Axes, data: Transitions, dmpo: DMPO) -> None:
    """
    DMPO's trajectories, and along one of them what every sub-policy proposes.

    :param axes: where
    :param data: the toy's transitions
    :param dmpo: the mixture
    """
    axes.plot(*data.observations.T, ".", markersize=1.2, color="#CFCFCF", zorder=1)
    draw_map(axes)
    paths, returns = trajectories(dmpo, 20, seed=0)
    for path in paths:
        axes.plot(*path.T, color=SUB_POLICY, linewidth=0.8, alpha=0.35, zorder=4)
    for position in paths[0][:-1:FAN_EVERY]:
        actions, chosen = proposals(dmpo, position)
        for i, action in enumerate(actions):
            tip = position + FAN_LENGTH * STEP_SIZE * action
            is_chosen = i == chosen
            arrow = {
                "arrowstyle": "-|>",
                "color": CHOSEN if is_chosen else SUB_POLICY,
                "shrinkA": 0,
                "shrinkB": 0,
                "mutation_scale": 9,
            }
            arrow |= {"linewidth": 2.2 if is_chosen else 0.9, "alpha": 1.0 if is_chosen else 0.8}
            axes.annotate("", tip, position, arrowprops=arrow, zorder=7 if is_chosen else 6)
    n_reached = sum(total > 0 for total in returns)
    axes.set_title(f"DMPO acts: {n_reached} of {len(returns)} episodes reach a goal")


def main(argv: Sequence[str] | None = None) -> int:
    """
    Train, and draw.

    :param argv: arguments, by default those of the process
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parent.parent / "docs" / "images" / "hero.png"
    parser.add_argument("--output", type=Path, default=default, help="PNG file (default: docs/images/hero.png)")
    parser.add_argument("-n", type=int, default=N_UPDATES, help=f"updates of both (default: {N_UPDATES})")
    options = parser.parse_args(argv)
    th.set_num_threads(1)
    dataset = make_two_goals_dataset()
    data = load_transitions(dataset, progress_bar=False)
    bc = BC("MlpPolicy", dataset=dataset, device="cpu", **SETTINGS).learn(options.n)
    dmpo = DMPO("MlpPolicy", dataset=dataset, device="cpu", kl_coef=KL_COEF, **SETTINGS).learn(options.n)
    figure = Figure(figsize=(14.4, 5.0), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    draw_data(left, data)
    draw_crossing(middle, data, bc, dmpo)
    draw_acting(right, data, dmpo)
    for axes in (left, right):
        axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), xlabel="", ylabel="")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=100)
    return 0


if __name__ == "__main__":
    sys.exit(main())
