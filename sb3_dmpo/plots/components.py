"""A picture of what the sub-policies of any mixture do on a dataset."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sb3_dmpo.data.preprocessing import flat_slices
from sb3_dmpo.plots.overlay import colour_of

#: Observations in a picture.
_MAX_POINTS = 4000


def plot_components(policy: Any, observations: NDArray[np.float32], path: str | Path, title: str = "") -> None:
    """
    Draw which sub-policy acts where and how often: the observations in the plane of their two principal components, and
    the share of every sub-policy.

    :param policy: a mixture policy
    :param observations: flat observations of its dataset, shape ``(n, observation_size)``
    :param path: PNG file to write
    :param title: name of the algorithm
    """
    chosen = observations[np.random.default_rng(0).permutation(len(observations))[:_MAX_POINTS]]
    space = policy.observation_space
    parts = {key: chosen[:, part].reshape(-1, *space[key].shape) for key, part in flat_slices(space).items() if key}
    active = policy.select_component(parts or chosen.reshape(-1, *space.shape))
    scaled = (chosen - chosen.mean(axis=0)) / (chosen.std(axis=0) + 1e-3)
    directions = np.linalg.svd(scaled, full_matrices=False)[2][:2]
    plane = np.zeros((len(scaled), 2))
    plane[:, : len(directions)] = scaled @ directions.T
    colours = [colour_of(component) for component in range(policy.n_components)]
    figure = Figure(figsize=(10.0, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    left.scatter(*plane.T, s=6, c=[colours[component] for component in active], linewidths=0)
    left.set(xlabel="first principal component of the observations", ylabel="second", xticks=[], yticks=[])
    left.set_title(f"{title}: which sub-policy acts where" if title else "Which sub-policy acts where")
    shares = 100 * np.bincount(active, minlength=policy.n_components) / len(active)
    bars = right.barh(np.arange(policy.n_components), shares, color=colours, edgecolor="black", linewidth=0.5)
    right.bar_label(bars, fmt="%.0f%%", padding=3)
    right.set(xlabel=f"share of {len(active):,} observations, %", ylabel="sub-policy", yticks=range(policy.n_components))
    right.set_xlim(0, 1.15 * max(float(shares.max()), 1.0))
    right.invert_yaxis()
    right.set_title("How often")
    figure.savefig(path, dpi=120)
