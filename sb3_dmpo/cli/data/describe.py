"""``sb3_dmpo describe ID``: what a dataset is like, before anything is trained on it."""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np

from sb3_dmpo.cli.errors import Parser, UsageError, check_env_id
from sb3_dmpo.cli.free_name import free_name
from sb3_dmpo.data import load_transitions
from sb3_dmpo.data.multimodality import FALSE_ALARMS, Multimodality
from sb3_dmpo.data.paths import FILE_SUFFIXES
from sb3_dmpo.data.report import DatasetReport, describe_dataset

_QUARTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def run(argv: Sequence[str]) -> None:
    """
    Say what a dataset is like, and draw it.

    :param argv: arguments
    :raises DatasetError: the dataset is not there or not usable
    :raises UsageError: the figure is to be something else than a picture
    """
    parser = Parser(prog="sb3_dmpo describe", description="Episodes, returns, actions, and whether DMPO is likely to help.")
    parser.add_argument("dataset", help="Minari id, or path of a file (D4RL, d3rlpy, OGBench) or of a replay buffer")
    parser.add_argument("--download", action="store_true", help="fetch the dataset through Minari if it is not there")
    parser.add_argument(
        "--figure",
        metavar="FILE.png",
        help="where the histograms go (default: <dataset>.png, <dataset>-2.png, ... in this folder)",
    )
    parser.add_argument("--env", metavar="ID", help="environment whose bounds of the actions held, if the dataset has none")
    parser.add_argument("--clip-actions", action="store_true", help="clip actions outside the bounds, and say how many")
    options = parser.parse_args(argv)
    if options.figure and Path(options.figure).suffix.lower() != ".png":
        raise UsageError(f"--figure {options.figure} has to end in .png.")
    if options.env is not None:
        check_env_id(options.env)
    with contextlib.closing(gym.make(options.env)) if options.env is not None else contextlib.nullcontext() as env:
        transitions = load_transitions(options.dataset, download=options.download, env=env, clip_actions=options.clip_actions)
    report = describe_dataset(transitions)
    if not transitions.has_rewards:
        print(f"{'rewards':<14} none are recorded: only BC can learn from it, and the returns below mean nothing")
    for name, value in report_lines(report):
        print(f"{name:<14} {value}")
    path = Path(options.figure) if options.figure else free_name(Path(_picture_name(options.dataset)))
    try:
        from sb3_dmpo.plots.dataset import plot_report
    except ImportError:
        print(f"{'figure':<14} not drawn, matplotlib is missing (pip install 'sb3_dmpo[plots]')")
        return
    plot_report(report, path)
    print(f"{'figure':<14} {path}")


def _picture_name(dataset: str) -> str:
    """Name of a dataset's picture, e.g. ``D4RL-pen-human-v2.png``."""
    name = Path(dataset).stem if dataset.lower().endswith(FILE_SUFFIXES) else dataset
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    return f"{plain or 'dataset'}.png"


def report_lines(report: DatasetReport) -> list[tuple[str, str]]:
    """
    A report as names and texts.

    :param report: the report
    """
    n_episodes = len(report.returns)
    low, median, high = np.quantile(report.lengths, (0.0, 0.5, 1.0))
    quartiles = "min {:.2f}, quartiles {:.2f} {:.2f} {:.2f}, max {:.2f}".format(*np.quantile(report.returns, _QUARTILES))
    keys = f" in {report.observation_keys} entries" if report.observation_keys else ""
    worst = int(report.saturation.argmax())
    return [
        ("dataset", report.dataset_id or "without a name"),
        ("transitions", f"{report.n_transitions:,} in {n_episodes:,} episodes"),
        ("lengths", f"{low:.0f} to {high:.0f} steps, median {median:.0f}; {report.n_terminated:,} end by a termination"),
        ("returns", f"mean {report.returns.mean():.2f}, std {report.returns.std():.2f}"),
        ("", quartiles),
        ("observations", f"{report.observation_size} numbers{keys}"),
        ("actions", f"{len(report.saturation)} numbers, {_bounds(report)}"),
        (
            "saturation",
            f"{100 * report.saturation.mean():.1f}% of the entries lie on a bound (most: entry {worst}, "
            f"{100 * report.saturation[worst]:.1f}%)",
        ),
        ("multimodality", _multimodality(report.multimodality)),
        ("advice", report.advice),
        ("model-based", report.cost_of_a_model),
    ]


def _multimodality(found: Multimodality | None) -> str:
    if found is None:
        return "not estimated"
    by_chance = f"by chance alone: up to {100 * FALSE_ALARMS:.0f}%"
    text = f"two ways of acting in {100 * found.share:.0f}% of {found.n_states} states ({by_chance})"
    if found.share <= FALSE_ALARMS:
        return text
    return f"{text}, {found.gap:.2f} apart; the observation tells which one in {100 * found.told_apart:.0f}% of the cases"


def _bounds(report: DatasetReport) -> str:
    if len({*report.action_low, *report.action_high}) <= 2:
        return f"each from {report.action_low[0]:g} to {report.action_high[0]:g}"
    return f"from {report.action_low.tolist()} to {report.action_high.tolist()}"
