"""Demonstrations for the two-goal task: trajectories to both goals that cross on their way, none of them failed."""

from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from minari.storage import get_dataset_path
from numpy.typing import NDArray

from sb3_dmpo.data.minari_write import write_in_one_piece
from sb3_dmpo.envs.two_goals import GOALS, START, START_NOISE, move, outcome

TWO_GOALS_DATASET_ID = "sb3_dmpo/two-goals/demonstrations-v0"

#: The dataset is the same whatever the seed of a training run.
GENERATOR_SEED = 0
N_DEMONSTRATIONS = 400
MAX_DEMONSTRATION_STEPS = 400


def _way_points(upper: bool, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """
    The three points a demonstration follows: first to the *other* side of the axis than its goal, then through the
    crossing, then to the goal. At the crossing nothing tells the two kinds of trajectories apart.

    :param upper: whether it goes to the upper goal
    :param rng: random generator
    """
    side = 1.0 if upper else -1.0
    detour = np.array([-0.5, -0.5 * side]) + rng.normal(0.0, 0.05, 2)
    crossing = rng.normal(0.0, [0.02, 0.05])
    return [detour, crossing, GOALS[0 if upper else 1]]


def _attempt(upper: bool, rng: np.random.Generator) -> EpisodeBuffer | None:
    """
    One demonstration, or None if it touched an obstacle or did not arrive.

    :param upper: whether it goes to the upper goal
    :param rng: random generator
    """
    way_points = _way_points(upper, rng)
    positions = [START + rng.uniform(-START_NOISE, START_NOISE, 2)]
    actions: list[NDArray[np.float64]] = []
    for _ in range(MAX_DEMONSTRATION_STEPS):
        while len(way_points) > 1 and np.linalg.norm(way_points[0] - positions[-1]) < 0.08:
            way_points.pop(0)
        offset = way_points[0] - positions[-1]
        distance = float(np.linalg.norm(offset))
        # At full speed a step covers 0.16; nearer than that the point is hit exactly (but for the noise).
        speed = 0.8 * min(1.0, distance / 0.16)
        direction = offset / max(distance, 1e-8)
        actions.append(np.clip(speed * direction + rng.normal(0.0, 0.3, 2), -1.0, 1.0))
        positions.append(move(positions[-1], actions[-1]))
        reward, terminated = outcome(positions[-1])
        if terminated:
            return _episode(positions, actions) if reward > 0 else None
    return None


def _episode(positions: list[NDArray[np.float64]], actions: list[NDArray[np.float64]]) -> EpisodeBuffer:
    arrived = np.arange(len(positions)) == len(positions) - 1
    return EpisodeBuffer(
        observations=np.array(positions, np.float32),
        actions=np.array(actions, np.float32),
        rewards=arrived[1:].astype(np.float32),
        terminations=arrived[1:],
        truncations=np.zeros(len(actions), bool),
        infos={"is_success": arrived},
    )


def demonstrations(n_episodes: int = N_DEMONSTRATIONS, seed: int = GENERATOR_SEED) -> list[EpisodeBuffer]:
    """
    Successful demonstrations, alternately to the upper and the lower goal. Each holds T + 1 observations, shape
    (T + 1, 2), and T actions, shape (T, 2). Failed attempts are drawn again.

    :param n_episodes: how many
    :param seed: seed of the generator
    """
    rng = np.random.default_rng(seed)
    episodes: list[EpisodeBuffer] = []
    while len(episodes) < n_episodes:
        episode = _attempt(len(episodes) % 2 == 0, rng)
        if episode is not None:
            episodes.append(episode)
    return episodes


def make_two_goals_dataset() -> minari.MinariDataset:
    """
    The toy dataset from the local Minari root (``MINARI_DATASETS_PATH``), written there on first use: 400 episodes,
    6,645 transitions, id ``sb3_dmpo/two-goals/demonstrations-v0``.

    It appears under its name complete or not at all, also when several processes ask for it at once: each writes its
    own copy into a hidden folder, one of them is renamed, the others are dropped.

    :return: the dataset
    :raises OSError: the Minari root cannot be written
    """
    try:
        target = get_dataset_path(TWO_GOALS_DATASET_ID)
        if not (target / "data").exists():
            write_in_one_piece(TWO_GOALS_DATASET_ID, _write_storage)
    except OSError as error:
        raise OSError(
            f"Cannot write the toy dataset {TWO_GOALS_DATASET_ID}: {error}. "
            "Set MINARI_DATASETS_PATH to a folder that can be written."
        ) from error
    return minari.load_dataset(TWO_GOALS_DATASET_ID)


def _write_storage(path: Path) -> None:
    spec = gym.spec("TwoGoals-v0")
    env = gym.make(spec)
    storage = MinariStorage.new(path, observation_space=env.observation_space, action_space=env.action_space, env_spec=spec)
    storage.update_episodes(demonstrations())
    storage.update_metadata(
        {
            "dataset_id": TWO_GOALS_DATASET_ID,
            "minari_version": minari.__version__,
            "eval_env_spec": spec.to_json(),
            "algorithm_name": "way points with noise",
            "author": {"the sb3_dmpo developers"},
            "description": (
                "TwoGoals-v0: 200 noisy demonstrations to each of two goals; their paths cross, and none of them fails. "
                "Returns are -1, 0 or 1, so the normalised score is 100 times the mean return."
            ),
            "ref_min_score": 0.0,
            "ref_max_score": 1.0,
        }
    )
