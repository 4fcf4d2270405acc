"""
How well measures that need no environment rank the checkpoints of a run, beside their true returns.

``python benchmarks/offline_selection.py --datasets zoo/hopper/medium-v0 zoo/pen/noisy-v0 zoo/pointmaze/umaze-v0`` trains
DMPO and, at every checkpoint, measures it on the dataset and lets it act. The rows go to ``results/offline_selection.csv``,
Spearman's rank correlations and the returns of the checkpoints that each criterion would have chosen to
``offline_selection_summary.csv``. ``--plot FILE.png`` draws the rows that are there.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_dmpo import ALGOS
from sb3_dmpo.cli.configs import RUN_KEYS, config_path, find_entry, parse_values
from sb3_dmpo.cli.results import commit, read_rows, write_rows
from sb3_dmpo.common.evaluation import evaluate_policy
from sb3_dmpo.common.offline_selection import offline_measures, offline_score
from sb3_dmpo.data import dataset_spaces, load_transitions
from sb3_dmpo.envs.registration import make_evaluation_env
from sb3_dmpo.files.save_util import preserved_random_state

CRITERIA = ("fqe", "initial_value", "action_distance")
COLUMNS = ("algorithm", "dataset", "seed", "updates", "return_mean", "return_std", "n_episodes", "fqe", "fqe_std")
COLUMNS += ("initial_value", "action_distance", "components_used", "seconds", "command", "commit")
SUMMARY = (
    "algorithm",
    "dataset",
    "seed",
    "criterion",
    "checkpoints",
    "spearman",
    "return_chosen",
    "return_best",
    "return_last",
)
SUMMARY += ("return_average",)


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """
    Ranks from 0; equal values share the mean of theirs. Same shape.

    :param values: shape ``(n,)``
    """
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2.0)[inverse]


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """
    Spearman's rank correlation; NaN where all values of one are equal.

    :param first: shape ``(n,)``
    :param second: shape ``(n,)``
    """
    a, b = (ranks(values) - ranks(values).mean() for values in (first, second))
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0.0 else float("nan")


class Checkpoints(BaseCallback):
    """
    Measures and true returns at every checkpoint.

    :param every: updates between checkpoints
    :param data: the dataset
    :param env: where the policy acts
    :param n_episodes: episodes of the true return
    """

    def __init__(self, every: int, data: Any, env: Any, n_episodes: int) -> None:
        super().__init__()
        self.every, self.data, self.env, self.n_episodes = every, data, env, n_episodes
        self.rows: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        if self.n_calls % self.every == 0:
            since = time.monotonic()
            measures = offline_measures(self.model, self.data)
            seconds = time.monotonic() - since
            with preserved_random_state():
                # The same episodes for every checkpoint.
                self.env.seed(12345)
                result = evaluate_policy(self.model, self.env, self.n_episodes)
            row = {"updates": self.num_timesteps, "return_mean": result.mean_return, "return_std": result.std_return}
            self.rows.append(row | measures | {"n_episodes": self.n_episodes, "seconds": round(seconds, 1)})
            print(
                {name: value if isinstance(value, int) else float(f"{value:.4g}") for name, value in self.rows[-1].items()},
                flush=True,
            )
        return True


def run(dataset: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """
    Train once and measure every checkpoint.

    :param dataset: Minari id
    :param options: parsed options
    """
    settings = parse_values(find_entry(str(config_path(options.algo)), dataset)[1])
    settings = {name: value for name, value in settings.items() if name not in RUN_KEYS}
    env = make_vec_env(lambda: make_evaluation_env(dataset), options.episodes)
    policy = "MultiInputPolicy" if hasattr(dataset_spaces(dataset)[0], "spaces") else "MlpPolicy"
    model = ALGOS[options.algo](policy, dataset=dataset, seed=options.seed, device="cpu", **settings)
    callback = Checkpoints(options.updates // options.checkpoints, load_transitions(dataset), env, options.episodes)
    model.learn(options.updates, callback=callback, log_interval=None)
    constant = {"algorithm": options.algo, "dataset": dataset, "seed": options.seed, "command": options.command}
    return [constant | row | {"commit": options.commit} for row in callback.rows]


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    Rank correlations with the true return and what every criterion would have chosen, by run.

    :param rows: rows of checkpoints
    """
    result = []
    for run_key in dict.fromkeys((row["algorithm"], row["dataset"], row["seed"]) for row in rows):
        of_run = [row for row in rows if (row["algorithm"], row["dataset"], row["seed"]) == run_key]
        returns = np.array([float(row["return_mean"]) for row in of_run])
        for criterion in CRITERIA:
            if any(row.get("initial_value") in (None, "") for row in of_run) and criterion == "initial_value":
                continue
            known = [{name: float(value) for name, value in row.items() if name in COLUMNS[7:11]} for row in of_run]
            scores = [offline_score(measures, criterion) for measures in known]
            values = [*run_key, criterion, len(of_run), f"{spearman(scores, returns):.3f}"]
            outcomes = (returns[int(np.argmax(scores))], returns.max(), returns[-1], returns.mean())
            result.append(dict(zip(SUMMARY, [*values, *(f"{value:.2f}" for value in outcomes)], strict=True)))
    return result


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """
    A row with as many digits as say something.

    :param row: the row
    """
    return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """
    Draw true returns over the measures, one row of pictures by dataset; the colour is the number of updates.

    :param rows: rows of checkpoints
    :param path: PNG file to write
    """
    from matplotlib.figure import Figure

    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    figure = Figure(figsize=(11.0, 2.9 * len(datasets)), layout="constrained")
    grid = figure.subplots(len(datasets), len(CRITERIA), squeeze=False)
    names = {"fqe": "fitted Q: value of initial states", "initial_value": "own critics: value of initial states"}
    for line, dataset in zip(grid, datasets, strict=True):
        found = [row for row in rows if row["dataset"] == dataset]
        updates = [int(row["updates"]) for row in found]
        returns = [float(row["return_mean"]) for row in found]
        for axes, criterion in zip(line, CRITERIA, strict=True):
            values = [float(row[criterion]) for row in found]
            points = axes.scatter(values, returns, c=updates, cmap="viridis", edgecolors="black", linewidths=0.5)
            if criterion == "fqe":
                errors = [float(row["fqe_std"]) for row in found]
                axes.errorbar(values, returns, xerr=errors, fmt="none", ecolor="#999999", zorder=0)
            label = names.get(criterion, "distance of the actions from the data")
            scores = [offline_score({name: float(row[name]) for name in COLUMNS[7:11]}, criterion) for row in found]
            correlation = spearman(scores, returns)
            axes.set(xlabel=label, ylabel="true return", title=f"{dataset}: rank corr. {correlation:+.2f}")
            axes.title.set_fontsize(9)
        figure.colorbar(points, ax=line[-1], label="updates")
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Measure, or draw what was measured.

    :param argv: arguments; None: those of the process
    :return: exit code
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=[])
    # Those with critics, all of whose measures there are.
    algorithms = sorted(name for name, algorithm in ALGOS.items() if algorithm.learns_online)
    parser.add_argument("--algo", default="dmpo", choices=algorithms)
    parser.add_argument("--updates", type=int, default=8000)
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "offline_selection.csv")
    parser.add_argument("--plot", type=Path, default=None, metavar="FILE.png", help="draw the rows of --output")
    options = parser.parse_args(argv)
    if not options.datasets and options.plot is None:
        parser.error("nothing to do: pass --datasets ID ... to measure, or --plot FILE.png to draw what was measured")
    for name in ("updates", "checkpoints", "episodes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}, expected at least 1")
    if options.checkpoints > options.updates:
        parser.error(f"--updates {options.updates} are fewer than --checkpoints {options.checkpoints}")
    th.set_num_threads(1)
    options.commit = commit()
    options.command = shlex.join(["python", "benchmarks/offline_selection.py", *(sys.argv[1:] if argv is None else argv)])
    for dataset in options.datasets:
        new = run(dataset, options)
        key = (options.algo, dataset, str(options.seed))
        kept = [row for row in read_rows(options.output) if (row["algorithm"], row["dataset"], row["seed"]) != key]
        write_rows(options.output, COLUMNS, [*kept, *map(rounded, new)])
        rows = read_rows(options.output)
        write_rows(options.output.with_name(f"{options.output.stem}_summary.csv"), SUMMARY, summary(rows))
    if options.plot is not None:
        plot(read_rows(options.output), options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
