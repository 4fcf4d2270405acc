"""
What the figures are drawn from, computed from trained models; ``figures.py`` draws it without any of them.

``python benchmarks/figure_data.py toy DMPO=model.zip AWAC=model.zip ...``: trajectories on the toy and its map of sub-policies
(Figure 2); ``bellman --dataset ID NAME=model.zip ...``: Bellman errors on a sample of the data (Figure 4);
``episode --dataset ID DMPO=model.zip``: what the gate does over two episodes, with rendered frames (Figure 5);
``maze --dataset ID NAME=model.zip ...``: trajectories in the dataset's maze (maze_trajectories).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_dmpo import load
from sb3_dmpo.cli.errors import UsageError, exit_code
from sb3_dmpo.data import load_transitions
from sb3_dmpo.envs import TWO_GOALS_DATASET_ID, make_two_goals_dataset
from sb3_dmpo.envs.registration import make_evaluation_env
from sb3_dmpo.files.save_util import atomic_write
from sb3_dmpo.plots.maze_view import from_above
from sb3_dmpo.plots.two_goals import RESOLUTION, all_actions, component_map, trajectories

RESULTS = Path(__file__).parent / "results"
#: Steps of an episode at which a frame is kept.
FRAME_STEPS = (20, 40, 60, 80)
#: Every so many pixels of a frame are kept.
FRAME_STRIDE = 2
Arrays = dict[str, np.ndarray]


class Alone:
    """
    One sub-policy of a mixture, as a model that acts on the toy.

    :param model: the mixture
    :param component: index of the sub-policy
    """

    def __init__(self, model: Any, component: int) -> None:
        self.policy, self.component = model.policy, component

    def predict(
        self, observation: np.ndarray, state: None = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, None]:
        """
        The sub-policy's action; there is no state.

        :param observation: shape (2,)
        :param state: has no effect
        :param episode_start: has no effect
        :param deterministic: has no effect
        """
        return all_actions(self.policy, observation)[self.component], None


def padded(paths: Sequence[np.ndarray]) -> np.ndarray:
    """
    Paths of different lengths as one array with NaN behind the ends, shape (n, steps, 2).

    :param paths: each of shape (steps, 2)
    """
    rows = np.full((len(paths), max(map(len, paths)), 2), np.nan, np.float32)
    for row, positions in zip(rows, paths, strict=True):
        row[: len(positions)] = positions
    return rows


def toy_arrays(models: dict[str, str], n_trajectories: int, seed: int) -> Arrays:
    """
    Trajectories of every model, padded with NaN, shape (n, steps, 2), their returns, the data's positions, and of every
    mixture which sub-policy acts where, and where each gets to alone from the first start.

    :param models: paths by name
    :param n_trajectories: trajectories of every model
    :param seed: seed of their starts
    """
    make_two_goals_dataset()
    arrays: Arrays = {
        "names": np.array(list(models)),
        "data": load_transitions(TWO_GOALS_DATASET_ID, progress_bar=False).observations.astype(np.float16),
    }
    for name, path in models.items():
        model = load(path, device="cpu")
        paths, returns = trajectories(model, n_trajectories, seed)
        arrays |= {f"paths_{name}": padded(paths), f"returns_{name}": np.array(returns)}
        if hasattr(model.policy, "select_component"):
            arrays |= {
                f"components_{name}": component_map(model.policy, RESOLUTION).astype(np.int16),
                f"n_components_{name}": np.array(model.n_components),
                f"is_one_{name}": np.array(model.policy.acts_as_one(arrays["data"].astype(np.float32))),
            }
            paths, returns = zip(*(trajectories(Alone(model, k), 1, seed) for k in range(model.n_components)), strict=True)
            arrays |= {f"alone_{name}": padded([path for (path,) in paths]), f"alone_returns_{name}": np.array(returns)[:, 0]}
    return arrays


def bellman_arrays(models: dict[str, str], dataset: str, n_samples: int) -> Arrays:
    """
    Bellman errors of every model on transitions drawn from the data, both critics, shape (2, n_samples).

    :param models: paths by name
    :param dataset: id of the dataset
    :param n_samples: number of transitions
    """
    arrays: Arrays = {"names": np.array(list(models)), "dataset": np.array(dataset)}
    for name, path in models.items():
        model = load(path, dataset=dataset, device="cpu")
        model._setup_dataset()
        errors = model.bellman_errors(model.sample_batch(n_samples))
        if errors is None:
            raise UsageError(f"{name} has no critics.")
        arrays[f"errors_{name}"] = errors.squeeze(2).cpu().numpy().astype(np.float32)
        arrays[f"updates_{name}"] = np.array(model.num_timesteps)
    return arrays


def episode_arrays(path: str, dataset: str, n_episodes: int, seed: int) -> Arrays:
    """
    Values of all sub-policies at every step, shape (steps, n_components), which one acts, and frames.

    :param path: model
    :param dataset: id of the dataset, whose environment is run
    :param n_episodes: number of episodes
    :param seed: seed of the environment
    """
    model = load(path, device="cpu")
    env = from_above(make_evaluation_env(dataset, render_mode="rgb_array"))
    arrays: Arrays = {
        "dataset": np.array(dataset),
        "algorithm": np.array(type(model).__name__),
        "updates": np.array(model.num_timesteps),
        "n_episodes": np.array(n_episodes),
        "frame_steps": np.array(FRAME_STEPS),
    }
    for episode in range(n_episodes):
        observation, _ = env.reset(seed=seed if episode == 0 else None)
        values, components, frames, total, done = [], [], [], 0.0, False
        while not done:
            values.append(model.policy.component_q_values(observation)[0])
            components.append(model.policy.select_component(observation)[0])
            if len(values) - 1 in FRAME_STEPS:
                frames.append(np.asarray(env.render())[::FRAME_STRIDE, ::FRAME_STRIDE])
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            done = terminated or truncated
        arrays |= {
            f"values_{episode}": np.array(values, np.float32),
            f"components_{episode}": np.array(components, np.int16),
            f"frames_{episode}": np.array(frames, np.uint8),
            f"return_{episode}": np.array(total),
        }
    env.close()
    return arrays


def maze_arrays(models: dict[str, str], dataset: str, n_episodes: int, seed: int) -> Arrays:
    """
    The maze of a dataset, and of every model the paths of its episodes up to the goal, shape (n_episodes, steps, 2), their
    goals, and whether they are reached.

    :param models: paths by name
    :param dataset: id of the dataset, whose environment is run
    :param n_episodes: episodes of every model
    :param seed: seed of the first episode; the others have those after it, as in a run's last evaluation
    """
    env = make_evaluation_env(dataset)
    maze = getattr(env.unwrapped, "maze", None)
    if maze is None:
        raise UsageError(f"The environment of {dataset} is no maze: name a dataset of AntMaze or PointMaze.")
    arrays: Arrays = {
        "names": np.array(list(models)),
        "dataset": np.array(dataset),
        "walls": np.array([[cell == 1 for cell in row] for row in maze.maze_map]),
        "cell_size": np.array(maze.maze_size_scaling),
    }
    for name, path in models.items():
        model = load(path, device="cpu")
        paths, goals, successes = [], [], []
        for episode in range(n_episodes):
            observation, _ = env.reset(seed=seed + episode)
            goals.append(observation["desired_goal"])
            positions, state, has_ended, is_success = [observation["achieved_goal"]], None, False, False
            while not (has_ended or is_success):
                action, state = model.predict(observation, state, deterministic=True)
                observation, _, terminated, truncated, info = env.step(action)
                positions.append(observation["achieved_goal"])
                has_ended, is_success = terminated or truncated, info["is_success"]
            paths.append(np.array(positions))
            successes.append(is_success)
        arrays |= {
            f"paths_{name}": padded(paths),
            f"goals_{name}": np.array(goals, np.float32),
            f"successes_{name}": np.array(successes),
            f"updates_{name}": np.array(model.num_timesteps),
        }
    env.close()
    return arrays


def main(argv: Sequence[str] | None = None) -> int:
    """
    Compute the data of a figure.

    :param argv: arguments; None: those of the process
    :return: exit code
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("toy", "bellman", "episode", "maze"))
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL.zip")
    parser.add_argument("--dataset", help="Minari id (bellman, episode, maze)")
    parser.add_argument("--samples", type=int, default=2_000, help="transitions (bellman)")
    parser.add_argument("--episodes", type=int, default=20, help="episodes of every model (maze)")
    parser.add_argument("--seed", type=int, default=100, help="seed of the environment (toy, episode, maze)")
    parser.add_argument("--output", type=Path, help="file to write (default: benchmarks/results/FIGURE.npz)")
    options = parser.parse_args(argv)

    def program() -> None:
        models = dict(item.split("=", 1) for item in options.models if "=" in item)
        if len(models) != len(options.models):
            raise UsageError("Write models as NAME=MODEL.zip.")
        if options.episodes < 1:
            raise UsageError(f"--episodes is {options.episodes}: it has to be at least 1.")
        if options.what != "toy" and options.dataset is None:
            raise UsageError(f"{options.what} needs --dataset.")
        if options.what == "toy":
            figure, arrays = "figure_2", toy_arrays(models, 20, options.seed)
        elif options.what == "bellman":
            figure, arrays = "figure_4", bellman_arrays(models, options.dataset, options.samples)
        elif options.what == "episode":
            figure, arrays = "figure_5", episode_arrays(next(iter(models.values())), options.dataset, 2, options.seed)
        else:
            figure = "maze_trajectories"
            arrays = maze_arrays(models, options.dataset, options.episodes, options.seed)
        path = options.output or RESULTS / f"{figure}.npz"
        with atomic_write(path) as file:
            np.savez_compressed(file, **arrays)
        print(f"Data of {figure}: {path} ({path.stat().st_size / 1024:.0f} KiB)")

    return exit_code(program, "figure_data.py")


if __name__ == "__main__":
    sys.exit(main())
