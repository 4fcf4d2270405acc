"""What the campaigns work on, and what they return."""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import TD3
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_dmpo import ALGOS
from sb3_dmpo.envs.spaces_only import SpacesOnlyEnv

OBSERVATION_SPACE, ACTION_SPACE = spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-2.0, 2.0, (2,))
OBSERVATIONS = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
OURS, STOCK = "sb3_dmpo", "stable-baselines3"
Row = dict[str, Any]

_SMALL: dict[str, dict[str, Any]] = {
    "decision_transformer": {"embed_dim": 8, "n_layers": 1, "context_length": 4},
    "maple": {
        **{"n_models": 2, "n_elites": 1, "model_arch": (8,), "model_max_epochs": 1, "gru_size": 8, "context_size": 4},
        **{"rollout_length": 2, "rollout_batch_size": 8, "rollout_interval": 10, "termination_fn": "never"},
        "policy_kwargs": {"net_arch": [8, 8]},
    },
}


def row(campaign: str, system: str, trials: int, passed: int, detail: str) -> Row:
    """A line of the results."""
    return {"campaign": campaign, "system": system, "trials": trials, "passed": passed, "detail": detail}


def make_buffer(n: int = 200) -> ReplayBuffer:
    """Random transitions in a buffer of SB3."""
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(n, OBSERVATION_SPACE, ACTION_SPACE, device="cpu")
    for step in range(n):
        arrays = rng.normal(size=(2, 1, 3)).astype(np.float32)
        action = rng.uniform(-1, 1, (1, 2)).astype(np.float32)
        buffer.add(*arrays, action, rng.normal(size=1), np.array([step % 10 == 9]), [{}])
    return buffer


def make_model(name: str, data: Any = None, **arguments: Any) -> Any:
    """A small model of an algorithm, with the given dataset or none."""
    own = _SMALL.get(name, {"policy_kwargs": {"net_arch": [8, 8]}})
    source = {"dataset": data} if data is not None else {"env": SpacesOnlyEnv(OBSERVATION_SPACE, ACTION_SPACE)}
    return ALGOS[name]("MlpPolicy", **source, **({"batch_size": 16, "seed": 0, "device": "cpu"} | own | arguments))


def make_stock(**arguments: Any) -> TD3:
    """A model of SB3, about as large."""
    env = _SteppableEnv(OBSERVATION_SPACE, ACTION_SPACE)
    own: dict[str, Any] = {"policy_kwargs": {"net_arch": [8, 8]}, "buffer_size": 10, "seed": 0, "device": "cpu"}
    return TD3("MlpPolicy", env, **(own | arguments))


class _SteppableEnv(SpacesOnlyEnv):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # type: ignore[override]
        return np.zeros(3, np.float32), {}


def saved(model: Any) -> bytes:
    """The zip of a model."""
    file = io.BytesIO()
    model.save(file)
    return file.getvalue()


def weights_hash(model: Any) -> str:
    """Hash of all weights and optimizer states that a zip holds."""
    digest = hashlib.sha256()
    for name, state in sorted(model.get_parameters().items()):
        digest.update(name.encode())
        for path, value in _flatten(state):
            content = value.detach().cpu().numpy().tobytes() if isinstance(value, th.Tensor) else repr(value).encode()
            digest.update(path.encode() + content)
    return digest.hexdigest()


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{path}/{index}")
    else:
        yield path, value


def in_child(task: Callable[[], None]) -> int:
    """Run a task in a fork of this process, quietly; returns its pid. Exit code 0: it has ended without an error."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
                task()
            code = 0
        finally:
            os._exit(code)
    return pid
