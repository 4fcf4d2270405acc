"""Agents of Stable-Baselines3 from zips that somebody else may have made."""

import inspect
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from rl_zoo3.utils import ALGOS as ZOO_ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_dmpo import ALGOS
from sb3_dmpo.cli.errors import UsageError, suggest
from sb3_dmpo.common.checked_load import DamagedFileError, UnsafeFileError, check_archive, check_widths, read_attributes
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm

#: Attributes that decide what a policy looks like; nothing else of the zip is decoded.
_NEEDED = ("policy_class", "policy_kwargs", "use_sde")


def agent_class(name: str) -> type[BaseAlgorithm]:
    """
    An algorithm of this package, of Stable-Baselines3 or of SB3-Contrib.

    :param name: as in rl_zoo3, e.g. ``sac``
    :raises UsageError: unknown; the nearest are named
    """
    known: dict[str, type[BaseAlgorithm]] = {**ZOO_ALGOS, **ALGOS}
    if name not in known:
        raise UsageError(f"There is no algorithm {name!r}. {suggest(name, known)}")
    return known[name]


def load_agent(name: str, path: str, env: gym.Env[Any, Any], trust_pickle: bool = False) -> BaseAlgorithm:
    """
    An agent that can act in an environment. Of a zip of Stable-Baselines3 only the architecture and the weights are read,
    through the list of classes that models may name; its own ``load`` would unpickle all of it.

    :param name: as in :func:`agent_class`
    :param path: zip
    :param env: environment with the agent's spaces
    :param trust_pickle: use the algorithm's own ``load``, which executes what the file says
    :raises UsageError: it cannot be loaded, or not without unpickling
    """
    algorithm = agent_class(name)
    try:
        if issubclass(algorithm, OfflineAlgorithm):
            return algorithm.load(path, env=env, device="cpu", trust_pickle=trust_pickle)
        if trust_pickle:
            return algorithm.load(path, env=env, device="cpu")
        return _load_checked(algorithm, Path(path).read_bytes(), env)
    except UnsafeFileError as error:
        text = str(error).partition(" If you trust")[0]
        raise UsageError(f"{path}: {text} If you trust the file, use --trust-pickle.") from error
    except (OSError, DamagedFileError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"{path} cannot be loaded as {name} for {env.unwrapped}: {error}") from error


def _load_checked(algorithm: type[BaseAlgorithm], content: bytes, env: gym.Env[Any, Any]) -> BaseAlgorithm:
    check_archive(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = set(json.loads(archive.read("data")))
        weights = th.load(io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True)
    policies = set(algorithm.policy_aliases.values())
    data = read_attributes(content, names, policies, replaced=names - set(_NEEDED))
    policy_kwargs = data.get("policy_kwargs") or {}
    check_widths(policy_kwargs, content)
    arguments: dict[str, Any] = {"policy_kwargs": policy_kwargs, "device": "cpu"}
    if issubclass(algorithm, OffPolicyAlgorithm):
        # Nothing is learned, so nothing has to be remembered.
        arguments["buffer_size"] = 1
    if data.get("use_sde") and "use_sde" in inspect.signature(algorithm).parameters:
        arguments["use_sde"] = True
    policy = data.get("policy_class")
    if policy not in policies:
        raise DamagedFileError(f"its policy is {policy}, expected one of {', '.join(sorted(algorithm.policy_aliases))}.")
    model = algorithm(policy, env, **arguments)
    model.policy.load_state_dict(weights)
    model.policy.set_training_mode(False)
    return model
