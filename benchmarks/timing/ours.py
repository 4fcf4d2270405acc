"""Contenders of this package and of Stable-Baselines3."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3 import TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger

from benchmarks.timing import synthetic
from sb3_dmpo import ALGOS
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.envs.spaces_only import SpacesOnlyEnv

N_TRANSITIONS = 100_000
OBSERVATION_SPACE = spaces.Box(-np.inf, np.inf, (synthetic.OBSERVATION_SIZE,), np.float32)
ACTION_SPACE = spaces.Box(-1.0, 1.0, (synthetic.ACTION_SIZE,), np.float32)
#: Constructor arguments by variant; what an algorithm has no argument for, it has no variant of
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "eager float32": {"compile": False, "gating_dtype": "float32"},
    "eager": {"compile": False},
    "compiled float32": {"compile": True, "gating_dtype": "float32"},
    "compiled": {"compile": True},
}


def replay_buffer(n: int | None = None) -> ReplayBuffer:
    """
    The synthetic transitions in a buffer of SB3.

    :param n: number of transitions, by default ``N_TRANSITIONS``
    """
    n = n or N_TRANSITIONS
    data = synthetic.arrays(n)
    buffer = ReplayBuffer(n, OBSERVATION_SPACE, ACTION_SPACE, device="cpu")
    buffer.observations[:, 0] = data["observations"]
    buffer.next_observations[:, 0] = np.roll(data["observations"], -1, axis=0)
    buffer.actions[:, 0] = data["actions"]
    buffer.rewards[:, 0] = data["rewards"]
    buffer.dones[:, 0] = buffer.timeouts[:, 0] = data["timeouts"]
    buffer.full = True
    return buffer


def signature(name: str) -> dict[str, inspect.Parameter]:
    """
    Constructor arguments of an algorithm, those of its base classes included.

    :param name: as in ``ALGOS``
    """
    classes = [cls for cls in ALGOS[name].__mro__ if issubclass(cls, OfflineAlgorithm)]
    return {key: value for cls in reversed(classes) for key, value in inspect.signature(cls.__init__).parameters.items()}


def variants(name: str) -> dict[str, dict[str, Any]]:
    """
    The variants that an algorithm has, by name; what would be the same as another one is left out.

    :param name: as in ``ALGOS``
    """
    known = signature(name)
    found: dict[str, dict[str, Any]] = {}
    for variant, arguments in VARIANTS.items():
        possible = {key: value for key, value in arguments.items() if key in known}
        if possible not in found.values():
            found[variant] = possible
    return found


def setting(name: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """
    Arguments of an algorithm, its own but for 2x256 networks where it lets one choose, and what they are in words.

    :param name: as in ``ALGOS``
    :param arguments: deviations
    """
    known = signature(name)
    own_batch = known["batch_size"].default
    result: dict[str, Any] = {"batch_size": own_batch, **arguments}
    words = [f"batch {result['batch_size']}"]
    if "embed_dim" in known:
        words.append(f"{known['n_layers'].default} layers of {known['embed_dim'].default}")
    else:
        result.setdefault("policy_kwargs", {"net_arch": [256, 256]})
        arch = result["policy_kwargs"]["net_arch"]
        words.append(f"{len(arch)}x{arch[0]}")
    if "n_components" in known:
        words.append(f"|Z| {result.get('n_components', known['n_components'].default)}")
    for steps in ("n_diffusion_steps", "context_length"):
        if steps in known:
            words.append(f"{known[steps].default} {steps.replace('_', ' ').removeprefix('n ')}")
    return result, ", ".join(words)


def make_model(name: str, device: str = "cpu", **arguments: Any) -> OfflineAlgorithm:
    """
    A model with the synthetic data.

    :param name: as in ``ALGOS``
    :param device: its device
    :param arguments: deviations from :func:`setting`
    """
    model = ALGOS[name]("MlpPolicy", dataset=replay_buffer(), seed=0, device=device, **setting(name, arguments)[0])
    model.set_logger(Logger(None, []))
    return model


def sb3_model(device: str = "cpu", net_arch: tuple[int, ...] = (256, 256), batch_size: int = 256) -> TD3:
    """
    SB3's TD3 with the synthetic data.

    :param device: its device
    :param net_arch: widths of the hidden layers
    :param batch_size: minibatch size
    """
    env = SpacesOnlyEnv(OBSERVATION_SPACE, ACTION_SPACE)
    arguments: dict[str, Any] = {"policy_kwargs": {"net_arch": list(net_arch)}, "batch_size": batch_size, "buffer_size": 1}
    model = TD3("MlpPolicy", env, device=device, seed=0, **arguments)
    model.replay_buffer = replay_buffer()
    model.replay_buffer.device = model.device
    model.set_logger(Logger(None, []))
    return model


def waiting(run: Callable[[int], Any], device: str) -> Callable[[int], None]:
    """
    The function, ended when the device has done its work.

    :param run: enqueues work
    :param device: where
    """
    import torch as th

    def run_and_wait(n: int) -> None:
        run(n)
        if device.startswith("cuda"):
            th.cuda.synchronize()

    return run_and_wait


# Factories of the server ----------------------------------------------------------------------------------------


def train(algo: str, device: str = "cpu", **arguments: Any) -> Callable[[int], None]:
    """
    Updates through ``learn``.

    :param algo: as in ``ALGOS``
    :param device: device of the model
    :param arguments: deviations from :func:`setting`
    """
    model = make_model(algo, device, **arguments)
    return waiting(lambda n: model.learn(n, reset_num_timesteps=False), device)


def sb3_train(device: str = "cpu", **arguments: Any) -> Callable[[int], None]:
    """
    Updates of SB3's TD3 through ``train``: its ``learn`` would step an environment as well.

    :param device: device of the model
    :param arguments: as of :func:`sb3_model`
    """
    model = sb3_model(device, **arguments)
    return waiting(lambda n: model.train(n, model.batch_size), device)
