"""Search spaces for ``-optimize``: one table for all algorithms, of which each takes the parameters that it has."""

from collections.abc import Callable
from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import convert_offpolicy_params
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_dmpo.common.arguments import constructor_arguments

Suggest = Callable[[optuna.Trial, str], Any]


def _logarithmic(low: float, high: float) -> Suggest:
    return lambda trial, name: trial.suggest_float(name, low, high, log=True)


#: What is tried, by the name in the study.
SEARCH_SPACE: dict[str, Suggest] = {
    "learning_rate": _logarithmic(1e-5, 2e-3),
    "batch_size_pow": lambda trial, name: trial.suggest_int(name, 6, 10),
    "one_minus_gamma": _logarithmic(1e-3, 3e-2),
    "tau": _logarithmic(1e-3, 5e-2),
    "net_arch": lambda trial, name: trial.suggest_categorical(name, ["small", "medium", "large"]),
    "n_components": lambda trial, name: trial.suggest_categorical(name, [4, 8, 16, 32]),
    "advantage_scale": _logarithmic(1.0, 20.0),
    "kl_coef": _logarithmic(0.1, 10.0),
    "alpha": _logarithmic(0.5, 10.0),
    "expectile": lambda trial, name: trial.suggest_float(name, 0.6, 0.95),
    "conservative_weight": _logarithmic(0.1, 20.0),
    "eta": _logarithmic(0.05, 5.0),
    "info_learning_rate": _logarithmic(1e-7, 1e-5),
}
#: The arguments of the algorithms whose names in a study differ; rl_zoo3 converts them.
_ARGUMENTS = {"batch_size_pow": "batch_size", "one_minus_gamma": "gamma", "net_arch": "policy_kwargs"}


def make_sampler(algorithm: type[BaseAlgorithm]) -> Callable[..., dict[str, Any]]:
    """
    A sampler as rl_zoo3 wants it: called with the trial, the number of actions, of environments and further settings.

    :param algorithm: the algorithm whose parameters are sampled
    """
    arguments = constructor_arguments(algorithm)

    def sample(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
        names = [name for name in SEARCH_SPACE if _ARGUMENTS.get(name, name) in arguments]
        return convert_offpolicy_params({name: SEARCH_SPACE[name](trial, name) for name in names})

    return sample
