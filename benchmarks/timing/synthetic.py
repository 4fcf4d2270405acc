"""Random transitions of the shape of D4RL's HalfCheetah and Walker2d, for every library from the same arrays."""

from typing import Any

import numpy as np
import numpy.typing as npt

OBSERVATION_SIZE, ACTION_SIZE, EPISODE_LENGTH = 17, 6, 1000


def arrays(n: int, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """
    Observations, actions and rewards of ``n`` steps in episodes of 1000 steps that end by truncation.

    :param n: number of transitions, a multiple of 1000
    :param seed: seed
    """
    rng = np.random.default_rng(seed)
    return {
        "observations": rng.normal(size=(n, OBSERVATION_SIZE)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(n, ACTION_SIZE)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "timeouts": np.arange(n) % EPISODE_LENGTH == EPISODE_LENGTH - 1,
    }
