"""
Figures 2 to 5 of the DMPO paper, long runs, performance profiles, and trajectories in a maze, from committed data:
``python benchmarks/figures.py``.

Reads the results files and the ``.npz`` files in ``benchmarks/results`` (``figure_data.py`` makes the latter) and writes PNG
files into ``benchmarks/results/figures``. What is not there is said and left out.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib.figure import Figure

from sb3_dmpo.cli.errors import exit_code
from sb3_dmpo.files.save_util import atomic_write
from sb3_dmpo.plots.common import ONE_POLICY, PALETTE, colour_of
from sb3_dmpo.plots.two_goals import draw_components, draw_map, draw_trajectories

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figure_styles import STYLES, Drawing, style
from benchmarks.learning_curves import figure_3, long_runs
from benchmarks.maze_trajectories import maze_trajectories
from benchmarks.scores import ScoresByDataset, collect_cells, performance_profile, profile_band, read_results
from benchmarks.tables import TABLES, comparable

HERE = Path(__file__).parent
DPI = 130


def figure_2(folder: Path) -> Drawing:
    """
    The toy: map, trajectories of every method, and which sub-policy acts where.

    :param folder: folder of the results
    """
    path = folder / "figure_2.npz"
    if not path.is_file():
        return None, f"{path} is not there: python benchmarks/figure_data.py toy TD3+BC=... AWAC=... LP-AWAC=... DMPO=... ..."
    with np.load(path) as arrays:
        names = [str(name) for name in arrays["names"]]
        mixtures = [name for name in names if f"components_{name}" in arrays]
        n_panels = 1 + len(names) + len(mixtures)
        n_columns = 4 if n_panels > 6 else 3
        n_rows = -(-n_panels // n_columns)
        figure = Figure(figsize=(4.6 * n_columns, 4.75 * n_rows + 0.8), layout="constrained")
        axes = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
        handles: dict[str, Any] = {}
        axes[0].plot(*arrays["data"].T, ".", markersize=1.5, color="#BBBBBB")
        draw_map(axes[0])
        axes[0].set_title("(a) task and demonstrations")
        for i, name in enumerate(names, start=1):
            drawn = draw_trajectories(axes[i], arrays["data"], arrays[f"paths_{name}"], arrays[f"returns_{name}"], name)
            axes[i].set_title(f"({'abcdefghijkl'[i]}) {name}, mean return {arrays[f'returns_{name}'].mean():.2f}")
            handles |= {handle.get_label(): handle for handle in drawn}
        for i, name in enumerate(mixtures, start=1 + len(names)):
            is_one = bool(arrays[f"is_one_{name}"])
            draw_components(axes[i], arrays[f"components_{name}"], int(arrays[f"n_components_{name}"]), is_one)
            what = ONE_POLICY if is_one else "who acts, each alone"
            if not is_one:
                for component, path in enumerate(arrays[f"alone_{name}"]):
                    axes[i].plot(*path.T, color="black", linewidth=3.2, zorder=5)
                    axes[i].plot(*path.T, color=colour_of(component), linewidth=2.0, zorder=5)
            axes[i].set_title(f"({'abcdefghijkl'[i]}) {name}: {what}")
        for unused in axes[n_panels:]:
            unused.set_axis_off()
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=len(handles), frameon=False)
    return figure, ""


def figure_4(folder: Path) -> Drawing:
    """
    Histograms of Bellman errors.

    :param folder: folder of the results
    """
    path = folder / "figure_4.npz"
    if not path.is_file():
        return None, f"{path} is not there: python benchmarks/figure_data.py bellman --dataset ID AWAC=... mixAWAC=... ..."
    with np.load(path) as arrays:
        names = [str(name) for name in arrays["names"]]
        errors = {name: arrays[f"errors_{name}"].ravel() for name in names}
        updates = {name: int(arrays[f"updates_{name}"]) for name in names}
        dataset = str(arrays["dataset"])
    limit = max(float(np.quantile(np.abs(values), 0.995)) for values in errors.values())
    bins = np.linspace(-limit, limit, 61)
    figure = Figure(figsize=(3.5 * len(names) + 0.4, 3.6), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False, sharex=True, sharey=True)[0]
    for panel, name in zip(axes, names, strict=True):
        panel.hist(np.clip(errors[name], -limit, limit), bins=bins, color=STYLES.get(name, (PALETTE[0],))[0])
        low, high = np.quantile(errors[name], [0.05, 0.95])
        panel.set_title(f"{name}, {updates[name]:,} updates\nstd {errors[name].std():.2f}, 5% to 95%: {low:.2f} to {high:.2f}")
        panel.set_xlabel("Bellman error Q(s, a) - y")
        panel.grid(alpha=0.25)
    axes[0].set_ylabel("number of samples")
    figure.suptitle(f"{dataset}: {len(errors[names[0]]):,} errors each (both critics)", fontsize=11)
    return figure, ""


def figure_5(folder: Path) -> Drawing:
    """
    Frames of episodes, values of the sub-policies at them, and which sub-policy acts when.

    :param folder: folder of the results
    """
    path = folder / "figure_5.npz"
    if not path.is_file():
        return None, f"{path} is not there: python benchmarks/figure_data.py episode --dataset ID DMPO=MODEL.zip"
    with np.load(path) as arrays:
        data: dict[str, Any] = dict(arrays)
    n_episodes, steps = int(data["n_episodes"]), [int(step) for step in data["frame_steps"]]
    figure = Figure(figsize=(3.1 * len(steps) * n_episodes / 1.35, 7.4), layout="constrained")
    title = f"{data['algorithm']} on {data['dataset']} after {int(data['updates']):,} updates"
    for episode, part in enumerate(np.atleast_1d(figure.subfigures(1, n_episodes, wspace=0.04))):
        values, components = data[f"values_{episode}"], data[f"components_{episode}"]
        n_components = values.shape[1]
        colours = [colour_of(k) for k in range(n_components)]
        shown = [step for step in steps if step < len(values)]
        grid = part.add_gridspec(3, len(steps), height_ratios=[1.25, 1.0, 1.0])
        # They differ by little beside what all of them have in common.
        differences = values - values.mean(axis=1, keepdims=True)
        limit = 1.15 * float(np.abs(differences[shown]).max()) + 1e-6
        for column, step in enumerate(shown):
            frame, bars = part.add_subplot(grid[0, column]), part.add_subplot(grid[1, column])
            frame.imshow(data[f"frames_{episode}"][column])
            frame.set_axis_off()
            frame.set_title(f"step {step}")
            chosen = int(components[step])
            bars.bar(range(n_components), differences[step], color=colours)
            bars.patches[chosen].set(edgecolor="black", linewidth=2)
            bars.axhline(0.0, color="black", linewidth=0.8)
            bars.set(ylim=(-limit, limit), xlabel="sub-policy")
            bars.set_title(f"{chosen} acts, mean Q {values[step].mean():.1f}", fontsize=10)
            bars.set_xticks(range(n_components))
            if column == 0:
                bars.set_ylabel("Q - mean over\nsub-policies")
            else:
                bars.set_yticklabels([])
        timeline = part.add_subplot(grid[2, :])
        time = np.arange(len(components))
        timeline.step(time, components, where="mid", color="#999999", linewidth=0.8, zorder=1)
        timeline.scatter(time, components, c=[colours[k] for k in components], s=16, zorder=2)
        timeline.set(xlabel="step", ylabel="active sub-policy", ylim=(-0.5, n_components - 0.5))
        timeline.set_yticks(range(n_components))
        timeline.grid(alpha=0.25)
        used = len(np.unique(components))
        part.suptitle(
            f"{title}, episode {episode + 1}\nreturn {float(data[f'return_{episode}']):.0f}, "
            f"{used} of {n_components} sub-policies act",
            fontsize=11,
        )
    return figure, ""


def n_runs(methods: Mapping[str, ScoresByDataset]) -> int:
    """
    Number of runs of all methods.

    :param methods: scores of every method
    """
    return sum(len(values) for scores in methods.values() for values in scores.values())


def profiles(folder: Path) -> Drawing:
    """
    Performance profiles of the largest comparable set of runs of each of tables 4 to 6.

    :param folder: folder of the results
    """
    cells = collect_cells(read_results(folder))
    groups = []
    for table in TABLES[2:5]:
        found = comparable(table, cells)
        if found:
            (updates, _), (datasets, methods) = max(found.items(), key=lambda item: n_runs(item[1][1]))
            groups.append((table.title, updates, datasets, methods))
    if not groups:
        return None, "no two methods have results on the same datasets"
    figure = Figure(figsize=(5.6 * len(groups) + 1.9, 4.4), layout="constrained")
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    for panel, (title, updates, datasets, methods) in zip(axes, groups, strict=True):
        values = np.concatenate([values for scores in methods.values() for values in scores.values()])
        thresholds = np.linspace(min(0.0, values.min()), values.max() * 1.02, 201)
        for method, scores in methods.items():
            name = method.partition("(")[0]
            panel.plot(thresholds, performance_profile(scores, thresholds), label=method, linewidth=1.8, **style(name))
            low, high = profile_band(scores, thresholds)
            panel.fill_between(thresholds, low, high, color=style(name)["color"], alpha=0.12, linewidth=0)
        panel.set(xlabel="normalised score", ylim=(-0.02, 1.02))
        panel.set_title(f"{title}, {updates:,} updates\n{', '.join(datasets)}", fontsize=10)
        panel.grid(alpha=0.25)
        panel.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes[0].set_ylabel("share of runs above the score")
    return figure, ""


FIGURES: dict[str, Callable[[Path], Drawing]] = {
    "figure_2": figure_2,
    "figure_3": figure_3,
    "long_runs": long_runs,
    "figure_4": figure_4,
    "figure_5": figure_5,
    "performance_profiles": profiles,
    "maze_trajectories": maze_trajectories,
}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Draw all figures for which there are data.

    :param argv: arguments; None: those of the process
    :return: exit code
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the results files")
    parser.add_argument("--output", type=Path, help="folder to write to (default: RESULTS/figures)")
    parser.add_argument("--only", nargs="+", choices=list(FIGURES), default=list(FIGURES), help="figures to draw")
    options = parser.parse_args(argv)
    if not options.results.is_dir():
        parser.error(f"--results {options.results} is no folder")
    output = options.output or options.results / "figures"
    for name in options.only:
        figure, message = FIGURES[name](options.results)
        if message:
            print(f"missing: {name}: {message}")
        if figure is not None:
            # No date and no version inside: the same data give the same file.
            with atomic_write(output / f"{name}.png") as file:
                figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
            print(f"Figure: {output / name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main, "figures.py"))
