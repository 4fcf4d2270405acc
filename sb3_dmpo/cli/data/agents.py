"""Agents of Stable-Baselines3 from zips that somebody else may have made."""

import inspect
import itertools
from pathlib import Path
from typing import Any

import gymnasium as gym
from rl_zoo3.utils import ALGOS as ZOO_ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_dmpo import ALGOS
from sb3_dmpo.cli.errors import UsageError, suggest
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.stored_weights import make_tensors
from sb3_dmpo.files.safe_values import classes_by_name
from sb3_dmpo.files.safe_zip import DamagedFileError, UnsafeFileError, read_model

#: Attributes that decide what a policy looks like; nothing else of the zip is decoded.
_NEEDED = ("policy_class", "policy_kwargs", "use_sde")

#: What plain policies of Stable-Baselines3 and SB3-Contrib may be made with.
_POLICY_KWARGS = frozenset(
    {
        *("net_arch", "activation_fn", "n_critics", "n_quantiles", "share_features_extractor", "normalize_images"),
        *("log_std_init", "ortho_init", "use_sde", "full_std", "use_expln", "squash_output", "clip_mean"),
        *("optimizer_class", "optimizer_kwargs"),
    }
)
_MAX_COUNT = 1_000


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
        text = str(error).partition(" If you trust")[0].removeprefix(f"{path}: ")
        raise UsageError(f"{path}: {text} If you trust the file, use --trust-pickle.") from error
    except (OSError, DamagedFileError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        what = str(error).removeprefix(f"{path}: ")
        raise UsageError(f"{path} cannot be loaded as {name} for {env.unwrapped}: {what}") from error


def _check_policy_kwargs(policy_kwargs: Any, n_bytes: int) -> None:
    """
    Refuse networks far larger than the stored weights: Stable-Baselines3's can only be built by taking memory for them.

    :param policy_kwargs: as the file has them
    :param n_bytes: size of its weights
    :raises UnsafeFileError: they need more, or name what no plain policy has
    """
    unknown = sorted(set(policy_kwargs) - _POLICY_KWARGS) if isinstance(policy_kwargs, dict) else ["no dict"]
    if unknown:
        raise UnsafeFileError(f"The file's policy_kwargs have {', '.join(map(str, unknown))}.")
    net_arch = policy_kwargs.get("net_arch") or []
    for widths in net_arch.values() if isinstance(net_arch, dict) else [net_arch]:
        if not isinstance(widths, list) or not all(type(width) is int and width > 0 for width in widths):
            raise UnsafeFileError(f"The file's net_arch is {net_arch!r:.80}, expected lists of positive widths.")
        if 4 * sum(a * b for a, b in itertools.pairwise([1, *widths])) > n_bytes:
            raise UnsafeFileError(f"The file's net_arch {widths!r:.80} needs more than the {n_bytes} bytes of its weights.")
    for name in ("n_critics", "n_quantiles"):
        if not 0 < int(policy_kwargs.get(name, 1)) <= _MAX_COUNT:
            raise UnsafeFileError(f"The file's {name} is not between 1 and {_MAX_COUNT}.")


def _load_checked(algorithm: type[BaseAlgorithm], content: bytes, env: gym.Env[Any, Any]) -> BaseAlgorithm:
    stored = read_model(content)
    names, policies = set(stored.attributes), set(algorithm.policy_aliases.values())
    data = stored.decode(names, classes_by_name(policies), replaced=names - set(_NEEDED))
    policy_kwargs = data.get("policy_kwargs") or {}
    weights = make_tensors(stored.tensors["policy"])
    if not isinstance(weights, dict):
        raise DamagedFileError("its policy.pth holds no weights by name.")
    _check_policy_kwargs(policy_kwargs, sum(tensor.nbytes for tensor in weights.values()))
    arguments: dict[str, Any] = {"policy_kwargs": policy_kwargs}
    if issubclass(algorithm, OffPolicyAlgorithm):
        # Nothing is learned, so nothing has to be remembered.
        arguments["buffer_size"] = 1
    if data.get("use_sde") and "use_sde" in inspect.signature(algorithm).parameters:
        arguments["use_sde"] = True
    policy = data.get("policy_class")
    if policy not in policies:
        raise DamagedFileError(f"its policy is {policy}, expected one of {', '.join(sorted(algorithm.policy_aliases))}.")
    model = algorithm(policy, env, **arguments, device="cpu")
    model.policy.load_state_dict(weights)
    model.policy.set_training_mode(False)
    return model
