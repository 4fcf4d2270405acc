"""
Exported policies beside ``predict``: largest difference over 10,000 random observations and over whole episodes, and time.

``python benchmarks/export_parity.py --datasets zoo/hopper/medium-v0 zoo/pointmaze/umaze-v0`` trains every algorithm for a
while, exports it to ONNX, and writes ``benchmarks/results/export_parity.csv``. Times are medians of single calls on one
thread. Observations are drawn around the data, three times as wide.
"""

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnxruntime
import torch as th
from gymnasium import spaces

import sb3_dmpo
from sb3_dmpo import ALGOS, OfflineAlgorithm
from sb3_dmpo.cli.results import commit, write_rows
from sb3_dmpo.data.preprocessing import flat_slices
from sb3_dmpo.envs.registration import make_evaluation_env

#: What has to agree, up to this.
TOLERANCE = 1e-5
#: Width of the random observations in standard deviations of the data.
WIDTH = 3.0
#: Others have their memory as further inputs.
MEMORYLESS = [name for name, algorithm in ALGOS.items() if not algorithm.policy_aliases["MlpPolicy"].has_memory]
Observations = Any
Act = Callable[[Observations], np.ndarray]


def load_session(path: Path) -> Act:
    """
    A function from a batch of observations to actions, of an ONNX file.

    :param path: the file
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def act(observations: Observations) -> np.ndarray:
        feed = observations if isinstance(observations, dict) else {"observation": observations}
        feed = {key: np.asarray(value, np.float32) for key, value in feed.items()}
        return np.asarray(session.run(["action"], feed)[0])

    return act


def batch_of_one(observation: Observations) -> Observations:
    """The observation with a first dimension of 1."""
    if isinstance(observation, dict):
        return {key: np.asarray(value)[None] for key, value in observation.items()}
    return np.asarray(observation)[None]


def random_observations(model: OfflineAlgorithm, n: int) -> Observations:
    """
    Observations around the data that the model was trained on.

    :param model: the model
    :param n: how many
    """
    noise = np.random.default_rng(0).normal(size=(n, model.policy.observation_size))
    mean, std = (tensor.numpy() for tensor in (model.policy.observation_mean, model.policy.observation_std))
    flat = (mean + WIDTH * std * noise).astype(np.float32)
    space = model.observation_space
    if isinstance(space, spaces.Dict):
        return {key: flat[:, part].reshape(n, *(space[key].shape or ())) for key, part in flat_slices(space).items()}
    return flat.reshape(n, *(space.shape or ()))


def episode(model: OfflineAlgorithm, act: Act, env: gym.Env[Any, Any]) -> tuple[float, int, float, float]:
    """
    An episode that the exported policy acts in: largest difference to ``predict`` on the way, number of steps, the return,
    and the return of an episode from the same start that ``predict`` acts in.

    :param model: the model
    :param act: the exported policy
    :param env: the environment
    """
    returns, largest, steps = [], 0.0, 0
    for is_exported in (True, False):
        observation, _ = env.reset(seed=0)
        total, done = 0.0, False
        while not done:
            expected, _ = model.predict(observation, deterministic=True)
            action = expected
            if is_exported:
                action = act(batch_of_one(model_keys(model, observation)))[0]
                largest, steps = max(largest, float(np.abs(action - expected).max())), steps + 1
            observation, reward, terminated, truncated, _ = env.step(action)
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    return largest, steps, returns[0], returns[1]


def model_keys(model: OfflineAlgorithm, observation: Observations) -> Observations:
    """Only the keys that the model uses."""
    return {key: observation[key] for key in model.observation_space} if isinstance(observation, dict) else observation


def median_ms(function: Callable[[], Any], repeats: int = 300) -> float:
    """
    Median time of a call in milliseconds.

    :param function: what is called
    :param repeats: number of calls
    """
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def measure(name: str, dataset: str, updates: int, n_observations: int, folder: Path) -> dict[str, Any]:
    """
    One line of the results.

    :param name: algorithm
    :param dataset: Minari id
    :param updates: number of updates
    :param n_observations: number of random observations
    :param folder: for the file
    """
    env = make_evaluation_env(dataset)
    is_dict = isinstance(env.observation_space, spaces.Dict)
    model = ALGOS[name]("MultiInputPolicy" if is_dict else "MlpPolicy", dataset=dataset, seed=0, device="cpu").learn(updates)
    path = folder / f"{name}.onnx"
    model.export(path)
    act = load_session(path)
    observations = random_observations(model, n_observations)
    differences = np.abs(act(observations) - model.predict(observations, deterministic=True)[0]).max(axis=1)
    episode_largest, steps, exported_return, predict_return = episode(model, act, env)
    one, _ = env.reset(seed=0)
    batch = batch_of_one(model_keys(model, one))
    env.close()
    return {
        "algorithm": name,
        "dataset": dataset,
        "updates": updates,
        "observations": n_observations,
        "max_abs_difference": f"{differences.max():.2e}",
        "beyond_tolerance": int((differences > TOLERANCE).sum()),
        "episode_steps": steps,
        "episode_max_abs_difference": f"{episode_largest:.2e}",
        "episode_return_onnx": f"{exported_return:.4f}",
        "episode_return_predict": f"{predict_return:.4f}",
        "predict_ms": f"{median_ms(lambda: model.predict(one, deterministic=True)):.3f}",
        "onnx_ms": f"{median_ms(lambda: act(batch)):.3f}",
        "file_kB": round(path.stat().st_size / 1000),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["zoo/hopper/medium-v0", "zoo/pointmaze/umaze-v0"], metavar="ID")
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--observations", type=int, default=10_000)
    parser.add_argument("--algorithms", nargs="+", choices=MEMORYLESS, default=MEMORYLESS)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/export_parity.csv"))
    options = parser.parse_args()
    th.set_num_threads(1)
    common = {
        "command": shlex.join(["python", "benchmarks/export_parity.py", *sys.argv[1:]]),
        "commit": commit(),
        "version": sb3_dmpo.__version__,
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for dataset in options.datasets:
            for name in options.algorithms:
                rows.append(measure(name, dataset, options.updates, options.observations, Path(folder)) | common)
                sys.stdout.write(", ".join(f"{key} {value}" for key, value in rows[-1].items() if key not in common) + "\n")
    write_rows(options.output, list(rows[0]), rows)


if __name__ == "__main__":
    main()
