"""A picture of what the sub-policies of any mixture do on a dataset."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sb3_dmpo.plots.common import ONE_POLICY, colour_of, raw_observations, some_of


def plot_components(policy: Any, observations: NDArray[np.float32], path: str | Path, title: str = "") -> None:
    """
    Draw which sub-policy acts where and how often: the observations in the plane of their two principal components, and
    the share of every sub-policy. Sub-policies that act as one get one colour, and the title says so.

    :param policy: a mixture policy
    :param observations: flat observations of its dataset, shape ``(n, observation_size)``
    :param path: PNG file to write
    :param title: name of the algorithm
    """
    chosen = some_of(observations)
    raw = raw_observations(policy.observation_space, chosen)
    active, is_one = policy.select_component(raw), policy.acts_as_one(raw)
    scaled = (chosen - chosen.mean(axis=0)) / (chosen.std(axis=0) + 1e-3)
    directions = np.linalg.svd(scaled, full_matrices=False)[2][:2]
    plane = np.zeros((len(scaled), 2))
    plane[:, : len(directions)] = scaled @ directions.T
    colours = [colour_of(0 if is_one else component) for component in range(policy.n_components)]
    figure = Figure(figsize=(10.0, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    left.scatter(*plane.T, s=6, c=[colours[component] for component in active], linewidths=0)
    left.set(xlabel="first principal component of the observations", ylabel="second", xticks=[], yticks=[])
    what = ONE_POLICY if is_one else "which sub-policy acts where"
    left.set_title(f"{title}: {what}" if title else what[0].upper() + what[1:])
    shares = 100 * np.bincount(active, minlength=policy.n_components) / len(active)
    bars = right.barh(np.arange(policy.n_components), shares, color=colours, edgecolor="black", linewidth=0.5)
    right.bar_label(bars, fmt="%.0f%%", padding=3)
    right.set(xlabel=f"share of {len(active):,} observations, %", ylabel="sub-policy", yticks=range(policy.n_components))
    right.set_xlim(0, 1.15 * max(float(shares.max()), 1.0))
    right.invert_yaxis()
    right.set_title("How often the gate chooses each")
    figure.savefig(path, dpi=120)
