"""Search spaces for ``-optimize``: one table for all algorithms, of which each takes the parameters that it has."""

from collections.abc import Callable
from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import convert_offpolicy_params
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_dmpo.common.arguments import constructor_arguments

Suggest = Callable[[optuna.Trial], Any]

#: Argument of the algorithm, name in the study (rl_zoo3 converts the names that differ), and what is tried.
SEARCH_SPACE: tuple[tuple[str, str, Suggest], ...] = (
    ("learning_rate", "learning_rate", lambda trial: trial.suggest_float("learning_rate", 1e-5, 2e-3, log=True)),
    ("batch_size", "batch_size_pow", lambda trial: trial.suggest_int("batch_size_pow", 6, 10)),
    ("gamma", "one_minus_gamma", lambda trial: trial.suggest_float("one_minus_gamma", 1e-3, 3e-2, log=True)),
    ("tau", "tau", lambda trial: trial.suggest_float("tau", 1e-3, 5e-2, log=True)),
    ("policy_kwargs", "net_arch", lambda trial: trial.suggest_categorical("net_arch", ["small", "medium", "large"])),
    ("n_components", "n_components", lambda trial: trial.suggest_categorical("n_components", [4, 8, 16, 32])),
    ("advantage_scale", "advantage_scale", lambda trial: trial.suggest_float("advantage_scale", 1.0, 20.0, log=True)),
    ("kl_coef", "kl_coef", lambda trial: trial.suggest_float("kl_coef", 0.1, 10.0, log=True)),
    ("alpha", "alpha", lambda trial: trial.suggest_float("alpha", 0.5, 10.0, log=True)),
    ("expectile", "expectile", lambda trial: trial.suggest_float("expectile", 0.6, 0.95)),
    (
        "conservative_weight",
        "conservative_weight",
        lambda trial: trial.suggest_float("conservative_weight", 0.1, 20.0, log=True),
    ),
    ("eta", "eta", lambda trial: trial.suggest_float("eta", 0.05, 5.0, log=True)),
    (
        "info_learning_rate",
        "info_learning_rate",
        lambda trial: trial.suggest_float("info_learning_rate", 1e-7, 1e-5, log=True),
    ),
)


def make_sampler(algorithm: type[BaseAlgorithm]) -> Callable[..., dict[str, Any]]:
    """
    A sampler as rl_zoo3 wants it: called with the trial, the number of actions, of environments and further settings.

    :param algorithm: the algorithm whose parameters are sampled
    """
    arguments = constructor_arguments(algorithm)

    def sample(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
        sampled = {name: suggest(trial) for argument, name, suggest in SEARCH_SPACE if argument in arguments}
        return convert_offpolicy_params(sampled)

    return sample
