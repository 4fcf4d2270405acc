"""
Online steps after a run on a dataset, beside Stable-Baselines3's TD3 that starts from nothing in the same environment.

Rows of the fine-tuned model: ``python benchmarks/train.py --dataset zoo/hopper/medium-v0 -n 20000 --finetune 30000 --seed 0
--eval-freq 2500 --results FILE``. Rows of TD3, with networks, batches, learning rate, exploration noise and first steps like
those of the fine-tuned model: ``python benchmarks/finetune.py scratch --dataset zoo/hopper/medium-v0 -n 30000 --seed 0
--eval-freq 2500 --results FILE``. Both are drawn by ``python benchmarks/finetune.py plot FILE``.
"""

import argparse
import csv
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3 import TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise

import sb3_dmpo
from sb3_dmpo.cli.episodes import EVAL_SEED_OFFSET
from sb3_dmpo.cli.results import FINETUNE_COLUMNS, ResultsFile, commit
from sb3_dmpo.cli.train.callbacks import RunEvalCallback
from sb3_dmpo.cli.train.finetune import DEFAULTS
from sb3_dmpo.common.evaluation import EvaluationResult
from sb3_dmpo.data.tasks import describe_data
from sb3_dmpo.envs.registration import make_evaluation_env

#: Name of the baseline in the results.
SCRATCH = "td3_from_scratch"


def scratch(options: argparse.Namespace) -> None:
    """
    Train TD3 in the environment of a dataset, without the dataset.

    :param options: parsed options
    """
    th.set_num_threads(1)
    results = ResultsFile(
        Path(options.results),
        {
            "algorithm": SCRATCH,
            "dataset": options.dataset,
            "label": describe_data(options.dataset),
            "seed": options.seed,
            "command": f"python benchmarks/finetune.py {' '.join(options.argv)}",
            "commit": commit(),
            "version": sb3_dmpo.__version__,
        },
        FINETUNE_COLUMNS,
    )
    results.check()
    train_env, eval_env = (
        make_vec_env(lambda: make_evaluation_env(options.dataset), n_envs, seed)
        for n_envs, seed in ((1, options.seed), (options.eval_episodes, options.seed + EVAL_SEED_OFFSET))
    )
    size = train_env.action_space.shape[0]
    model = TD3(
        "MlpPolicy",
        train_env,
        learning_rate=3e-4,
        batch_size=256,
        learning_starts=options.learning_starts,
        action_noise=NormalActionNoise(np.zeros(size), np.full(size, DEFAULTS["noise_std"])),
        policy_kwargs={"net_arch": [256, 256]},
        seed=options.seed,
        device="cpu",
    )
    since = time.monotonic()

    def on_result(result: EvaluationResult, steps: int, is_final: bool) -> None:
        results.append(
            result,
            updates=model._n_updates,
            env_steps=steps,
            evaluation="final" if is_final else "training",
            wall_seconds=f"{time.monotonic() - since:.1f}",
        )

    callback = RunEvalCallback(
        eval_env,
        options.dataset,
        options.eval_episodes,
        options.seed,
        on_result,
        n_eval_episodes=options.eval_episodes,
        eval_freq=options.eval_freq,
        deterministic=True,
        verbose=0,
    )
    model.learn(options.n_timesteps, callback=callback, log_interval=None)
    callback.evaluate_at_end()


def curves(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    Environment steps and scores, shape ``(seeds, evaluations)``, by algorithm. The score at step 0 is the last one offline.

    :param path: results of runs with ``--finetune``, and of ``scratch``
    """
    found: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            # Later rows replace earlier ones: of the offline stage its last evaluation remains.
            found[row["algorithm"]][row["seed"]][int(row["env_steps"])] = float(row["score"])
    result = {}
    for algorithm, seeds in found.items():
        steps = sorted(set.intersection(*(set(scores) for scores in seeds.values())))
        result[algorithm] = np.array(steps), np.array([[scores[step] for step in steps] for scores in seeds.values()])
    return result


def plot(options: argparse.Namespace) -> None:
    """
    Draw the mean over the seeds, and their range.

    :param options: parsed options
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    axes = figure.subplots()
    colours = iter(("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"))
    for algorithm, (steps, scores) in sorted(curves(Path(options.results)).items()):
        seeds = f"{len(scores)} seed{'s' if len(scores) > 1 else ''}"
        if algorithm == SCRATCH:
            colour, style, label = "#D55E00", "--", f"TD3 of Stable-Baselines3, from scratch ({seeds})"
        else:
            colour, style, label = next(colours), "-", f"{algorithm}, after learning from the dataset ({seeds})"
        axes.plot(steps, scores.mean(axis=0), style, color=colour, linewidth=2, label=label)
        axes.fill_between(steps, scores.min(axis=0), scores.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="environment steps", ylabel="normalised score", title=options.title)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    figure.savefig(options.output or Path(options.results).with_suffix(".png"), dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a subcommand.

    :param argv: arguments; None: those of the process
    :return: exit code
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("scratch", help="train TD3 from scratch")
    train.add_argument("--dataset", required=True, help="whose environment is used")
    train.add_argument("-n", "--n-timesteps", type=int, required=True)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--eval-freq", type=int, default=2500)
    train.add_argument("--eval-episodes", type=int, default=10)
    train.add_argument(
        "--learning-starts", type=int, default=DEFAULTS["learning_starts"], help="steps before the first update"
    )
    train.add_argument("--results", required=True, metavar="FILE.csv")
    train.set_defaults(run=scratch)
    draw = commands.add_parser("plot", help="draw the results")
    draw.add_argument("results", metavar="FILE.csv")
    draw.add_argument("--title", default="From offline to online")
    draw.add_argument("--output", default=None, metavar="FILE.png")
    draw.set_defaults(run=plot)
    options = parser.parse_args(argv)
    options.argv = sys.argv[1:] if argv is None else list(argv)
    options.run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
