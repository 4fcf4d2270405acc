"""The picture that a description of a dataset ends with."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from sb3_dmpo.data.report import DatasetReport

_BLUE, _ORANGE = "#0072B2", "#D55E00"
_N_BINS = 40


def _bin_edges(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """
    Edges of the bins of a histogram, also where the values differ by no more than rounding, which NumPy refuses.

    :param values: finite numbers
    """
    low, high = float(np.min(values)), float(np.max(values))
    edges = np.linspace(low, high, _N_BINS + 1)
    if not (np.diff(edges) > 0.0).all():
        margin = max(0.5, 1e-6 * abs(low))
        edges = np.linspace(low - margin, high + margin, _N_BINS + 1)
    return edges


def plot_report(report: DatasetReport, path: Path) -> None:
    """
    Draw how returns and lengths of the episodes are spread, and how often every action entry lies on a bound.

    :param report: the report
    :param path: PNG file to write
    """
    figure = Figure(figsize=(12.0, 3.8), layout="constrained")
    returns, lengths, actions = figure.subplots(1, 3)
    for axes, values, name in ((returns, report.returns, "return"), (lengths, report.lengths, "steps")):
        axes.hist(values, bins=_bin_edges(values), color=_BLUE)
        axes.axvline(float(np.mean(values)), color=_ORANGE, linestyle="--", label=f"mean {np.mean(values):.4g}")
        axes.set(xlabel=f"{name} of an episode", ylabel="episodes")
        axes.legend(frameon=False)
    entries = np.arange(len(report.saturation))
    actions.bar(entries, 100.0 * report.saturation, color=_BLUE)
    actions.set(xlabel="action entry", ylabel="on a bound [% of transitions]", ylim=(0.0, 100.0))
    actions.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(
        f"{report.dataset_id or 'dataset'}: {len(report.returns):,} episodes, {report.n_transitions:,} transitions"
    )
    figure.savefig(path, dpi=110)
