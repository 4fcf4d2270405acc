"""
How good a MAPLE model's ensemble of dynamics is: ``python benchmarks/model_error.py MODEL.zip --output error.png``.

The elites follow recorded actions on their own predictions, from held-out steps of the dataset that the model was trained
on; the figure shows how far they stray over the horizon, and how far off it would be to predict that nothing changes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

from sb3_dmpo import MAPLE
from sb3_dmpo.files.save_util import atomic_write
from sb3_dmpo.maple.fitted_dynamics import OpenLoopErrors


def draw(errors: OpenLoopErrors, title: str) -> Figure:
    """
    Errors over the horizon.

    :param errors: of the ensemble
    :param title: above the figure
    """
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = range(1, len(errors.unchanged) + 1)
    for panel, values in ((left, errors.observations), (right, errors.rewards)):
        panel.fill_between(steps, values.min(axis=0), values.max(axis=0), alpha=0.2, linewidth=0, color="C0")
        panel.plot(steps, values.mean(axis=0), color="C0", label="elites: mean and range")
        panel.set(xlabel="step", ylim=(0.0, None))
        panel.grid(alpha=0.25)
    left.plot(steps, errors.unchanged, color="0.4", linestyle="--", label="nothing changes")
    left.set_title("observations: RMSE in standard deviations", fontsize=10)
    right.set_title("reward of a step: mean absolute error", fontsize=10)
    left.legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """
    Draw the figure.

    :param argv: arguments; None: those of the process
    :return: exit code
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL.zip")
    parser.add_argument("--dataset", help="the data that it was trained on (default: as the zip names them)")
    parser.add_argument("--horizon", type=int, help="number of steps (default: the model's rollout_length)")
    parser.add_argument("--output", type=Path, default=Path("model_error.png"))
    options = parser.parse_args(argv)
    arguments = {} if options.dataset is None else {"dataset": options.dataset}
    model = MAPLE.load(options.model, device="cpu", **arguments)
    errors = model.open_loop_errors(options.horizon)
    title = f"MAPLE on {options.dataset or model.dataset_id}, {errors.n_pieces} pieces from held-out steps"
    with atomic_write(options.output) as file:
        draw(errors, title).savefig(file, format="png", dpi=130, metadata={"Software": None})
    for step in {0, len(errors.unchanged) - 1}:
        mean, unchanged = errors.observations[:, step].mean(), errors.unchanged[step]
        print(f"step {step + 1}: observations {mean:.3f} (nothing changes: {unchanged:.3f}) standard deviations")
    print(f"Figure: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
