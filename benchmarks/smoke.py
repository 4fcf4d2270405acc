"""
A short run of every algorithm on one dataset, beside a policy that acts at random.

``python benchmarks/smoke.py --dataset zoo/pen/noisy-v0 -n 2000`` trains each with ``benchmarks/train.py`` and
lets its zip act in a fresh process, which has neither dataset nor environment. A run whose losses or weights are not finite
fails by itself. The exit code is 1 if anything failed or did not score above the random policy.
"""

import argparse
import csv
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_dmpo
from sb3_dmpo import ALGOS
from sb3_dmpo.cli.results import ResultsFile, commit, score_of
from sb3_dmpo.common.evaluation import evaluate_policy
from sb3_dmpo.data.tasks import describe_data
from sb3_dmpo.envs.registration import environment_name, make_evaluation_env

PREDICT = """
import sys
import numpy as np
from sb3_dmpo import ALGOS
model = ALGOS[sys.argv[1]].load(sys.argv[2], device="cpu")
sample = model.observation_space.sample()
action, _ = model.predict(sample)
assert model.replay_buffer is None and model.env is None
assert np.isfinite(action).all() and model.action_space.contains(action), action
"""


class RandomPolicy:
    """
    Uniform random actions, with the ``predict`` of a model.

    :param action_space: bounds of the actions
    :param seed: seed of the actions
    """

    def __init__(self, action_space: spaces.Space, seed: int) -> None:
        self.action_space = action_space
        self.action_space.seed(seed)

    def predict(self, observation, state=None, episode_start=None, deterministic=False):  # type: ignore[no-untyped-def]
        """
        One action for every observation of a batch, shape ``(batch, A)``.

        :param observation: array or dict of arrays
        :param state: passed through
        :param episode_start: its length is the batch's
        :param deterministic: ignored
        """
        return np.stack([self.action_space.sample() for _ in episode_start]), state


def score_random(options: argparse.Namespace) -> float:
    """
    Score of the random policy on the dataset's evaluation environment; the row is written too.

    :param options: of the command line
    """
    n_envs = min(10, options.episodes)
    env = DummyVecEnv([lambda: make_evaluation_env(options.dataset)] * n_envs)
    env.seed(options.seed + 100)
    policy = RandomPolicy(env.action_space, options.seed)
    result = evaluate_policy(policy, env, options.episodes, dataset=options.dataset, warn=False)
    env.close()
    constant = {
        "algorithm": "random",
        "dataset": options.dataset,
        "label": describe_data(options.dataset),
        "seed": options.seed,
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": commit(),
        "version": sb3_dmpo.__version__,
    }
    ResultsFile(Path(options.results), constant).append(result, updates=0, evaluation="final", wall_seconds=0)
    return score_of(result)[0]


def run(algorithm: str, options: argparse.Namespace) -> str | None:
    """
    Train an algorithm and let its zip act in a fresh process; what failed, or None.

    :param algorithm: name in ``sb3_dmpo.ALGOS``
    :param options: of the command line
    """
    train = os.path.relpath(Path(__file__).parent / "train.py")
    command = [sys.executable, train, "--algo", algorithm, "--dataset", options.dataset, "-n", str(options.n_timesteps)]
    command += ["--seed", str(options.seed), "--num-threads", "1", "-f", options.log_folder, "--results", options.results]
    command += ["-params", f"final_eval_episodes:{options.episodes}"]
    log = Path(options.log_folder) / f"{algorithm}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode != 0:
            return f"training failed: {log.read_text(encoding='utf-8').strip().splitlines()[-1]}"
    name = environment_name(options.dataset)
    runs = Path(options.log_folder, algorithm).glob(f"{name}_*/{name}.zip")
    newest = max(runs, key=lambda path: path.stat().st_mtime)
    acting = subprocess.run([sys.executable, "-c", PREDICT, algorithm, str(newest)], capture_output=True, text=True)
    return None if acting.returncode == 0 else f"predict failed: {acting.stderr.strip().splitlines()[-1]}"


def main() -> int:
    """Run the algorithms one after the other; 0 if each is whole and better than chance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="zoo/pen/noisy-v0")
    parser.add_argument("--algos", nargs="+", choices=list(ALGOS), default=list(ALGOS), metavar="ALGO")
    parser.add_argument("-n", "--n-timesteps", type=int, default=2_000, help="updates")
    parser.add_argument("--episodes", type=int, default=100, help="episodes of the last evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-f", "--log-folder", default="logs/smoke")
    parser.add_argument("--results", default="benchmarks/results/smoke.csv")
    options = parser.parse_args()
    chance = score_random(options)
    print(f"random: {chance:.1f}", flush=True)
    failed = False
    for algorithm in options.algos:
        fault = run(algorithm, options)
        if fault is None:
            with open(options.results, newline="", encoding="utf-8") as file:
                score = float([row for row in csv.DictReader(file) if row["algorithm"] == algorithm][-1]["score"])
            fault = None if np.isfinite(score) and score > chance else "not better than chance"
            print(f"{algorithm}: {score:.1f}", flush=True)
        if fault is not None:
            failed = True
            print(f"{algorithm}: {fault}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
