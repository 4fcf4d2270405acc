"""What may be asked of a policy: its name or class, and ``policy_kwargs``."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch as th
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from sb3_dmpo.common.arguments import NO_FEATURES, OF_FEATURES, constructor_arguments, is_whole, near_names
from sb3_dmpo.common.policies import OfflinePolicy
from sb3_dmpo.data import names_dataset

#: Arguments of a policy that the algorithm gives it.
_GIVEN = frozenset({"observation_space", "action_space", "lr_schedule", "average"})


def find_policy(algorithm: type[Any], name: str) -> type[BasePolicy]:
    """
    The policy of a name.

    :param algorithm: class of the algorithm
    :param name: as given to the constructor
    :raises ValueError: there is no policy of that name; the message says what there is instead
    """
    aliases: Mapping[str, type[BasePolicy]] = algorithm.policy_aliases
    if name in aliases:
        return aliases[name]
    owner, known = algorithm.__name__, " and ".join(map(repr, aliases))
    if name.lower().startswith("cnn"):
        raise ValueError(f"{owner} has no {name!r}. {NO_FEATURES}")
    if names_dataset(name):
        raise ValueError(f"{owner}: {name!r} is no policy. A dataset is passed by name: {owner}(dataset={name!r}).")
    by_lower = {alias.lower(): alias for alias in aliases}
    near = near_names(name.lower(), by_lower)
    for lower, alias in by_lower.items():
        near = near.replace(lower, repr(alias))
    raise ValueError(f"{owner}: policy {name!r} is unknown; there are {known} (for Dict observations).{near}")


def check_policy_class(algorithm: type[Any], policy: Any) -> None:
    """
    Check that a class is a policy that the algorithm can train.

    :param algorithm: class of the algorithm
    :param policy: as given to the constructor
    :raises TypeError: it is none
    """
    own = algorithm.policy_aliases["MlpPolicy"]
    is_policy = isinstance(policy, type) and issubclass(policy, OfflinePolicy)
    # One of the user's own may have the same parts without the same base.
    is_of_another = is_policy and not issubclass(policy, own) and policy.__module__.startswith("sb3_dmpo.")
    if not is_policy or is_of_another:
        name = policy.__name__ if isinstance(policy, type) else repr(policy)
        raise TypeError(
            f"{algorithm.__name__} cannot train the policy {name}: pass 'MlpPolicy' or a subclass of {own.__name__}."
        )


def check_policy_kwargs(
    algorithm: type[Any], policy: type[BasePolicy], given: Collection[str], policy_kwargs: Mapping[str, Any]
) -> None:
    """
    Check the arguments of a policy.

    :param algorithm: class of the algorithm
    :param policy: class of the policy
    :param given: names of the arguments that the algorithm gives it
    :param policy_kwargs: those that the user gives it
    :raises TypeError: it has no argument of a name; the message has the near ones
    :raises ValueError: a value is none that it can have
    """
    known = constructor_arguments(policy).keys() - _GIVEN - {*given}
    # What a constructor of the user's own takes is the user's business.
    is_ours = any(policy.__init__ is alias.__init__ for alias in algorithm.policy_aliases.values())
    for name in policy_kwargs:
        if name not in known and (is_ours or name in given):
            raise unknown_policy_argument(algorithm, policy, name, known)
    owner = f"{algorithm.__name__}: policy_kwargs"
    if policy_kwargs.get("net_arch") is not None:
        _check_net_arch(owner, policy_kwargs["net_arch"], getattr(policy, "min_hidden_layers", 0))
    for name, base, example in (
        ("activation_fn", nn.Module, "nn.Tanh"),
        ("optimizer_class", th.optim.Optimizer, "th.optim.AdamW"),
    ):
        value = policy_kwargs.get(name, base)
        if not isinstance(value, type) or not issubclass(value, base):
            raise ValueError(f"{owner}['{name}'] is {value!r}, expected a class, e.g. {example}.")
    optimizer = policy_kwargs.get("optimizer_class", th.optim.Adam)
    names = inspect.signature(optimizer).parameters
    options = policy_kwargs.get("optimizer_kwargs") or {}
    if not isinstance(options, Mapping):
        raise ValueError(f"{owner}['optimizer_kwargs'] is {options!r}, expected a dict, e.g. dict(eps=1e-5).")
    for name in options:
        if name in ("lr", "params"):
            raise ValueError(f"{owner}['optimizer_kwargs'] has {name!r}: pass `learning_rate` to {algorithm.__name__} itself.")
        if name not in names and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in names.values()):
            raise TypeError(f"{owner}: {optimizer.__name__} has no argument '{name}'.{near_names(name, names)}")


def unknown_policy_argument(algorithm: type[Any], policy: type[BasePolicy], name: str, known: Collection[str]) -> TypeError:
    """
    The error for a key of ``policy_kwargs`` that there is not.

    :param algorithm: class of the algorithm
    :param policy: class of the policy
    :param name: the key
    :param known: those that the user may give it
    """
    start = f"{algorithm.__name__}: policy_kwargs has no '{name}'."
    if name in constructor_arguments(algorithm):
        return TypeError(f"{start} It is an argument of the algorithm: {algorithm.__name__}(..., {name}=...).")
    if name in OF_FEATURES:
        return TypeError(f"{start} {NO_FEATURES}")
    return TypeError(f"{start}{near_names(name, known)} {policy.__name__} takes {', '.join(sorted(known))}.")


def _check_net_arch(owner: str, net_arch: Any, min_layers: int) -> None:
    is_dict = isinstance(net_arch, dict) and {"pi", "qf"} <= net_arch.keys()
    parts = [net_arch["pi"], net_arch["qf"]] if is_dict else [net_arch]
    if not all(isinstance(widths, list) and all(is_whole(width, 1) for width in widths) for widths in parts):
        raise ValueError(
            f"{owner}['net_arch'] is {net_arch!r}, expected a list of widths, e.g. [256, 256], or one for the actor and one "
            "for the critics: dict(pi=[256, 256], qf=[256, 256])."
        )
    if any(len(widths) < min_layers for widths in parts):
        raise ValueError(f"{owner}['net_arch'] is {net_arch!r}, but the policy needs {min_layers} hidden layer or more.")
