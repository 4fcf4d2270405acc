"""Search spaces for ``-optimize``: one table for all algorithms, of which each takes the parameters that it has."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rl_zoo3.hyperparams_opt import convert_offpolicy_params

from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.cli.literals import parse_value
from sb3_dmpo.common.arguments import constructor_arguments
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm

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


#: Stand in for what rl_zoo3's conversion needs and a study lacks, as it was typed.
_NEEDED = {"one_minus_gamma": 0.01, "net_arch": "medium"}


def check_search(options: argparse.Namespace) -> None:
    """
    Find out before anything is made whether a search can be done, or the trial of one be found.

    :param options: options of rl_zoo3's ``train``
    :raises UsageError: a number that makes no sense; no such storage, study or trial
    """
    for name in ("n_trials", "max_total_trials", "n_jobs", "n_evaluations"):
        value = getattr(options, name)
        # All cores, for Optuna.
        if value is not None and value < 1 and not (name == "n_jobs" and value == -1):
            raise UsageError(f"--{name.replace('_', '-')} is {value}, expected a whole number of at least 1.")
    if options.optimize_hyperparameters:
        for option, is_typed in (
            ("-i", options.trained_agent),
            ("--results", options.results),
            ("--save-freq", options.save_freq > 0),
        ):
            if is_typed:
                raise UsageError(f"{option} is for one run, and -optimize compares short ones: leave it out.")
    is_trial = options.trial_id is not None and not options.optimize_hyperparameters
    if is_trial and not (options.storage and options.study_name):
        raise UsageError("--trial-id is a trial of a study: say which, with --storage and --study-name.")
    if options.storage and not (is_trial or options.optimize_hyperparameters):
        raise UsageError("--storage names a study, which -optimize goes on with and --trial-id reads: add one of them.")
    if options.storage:
        studies = _studies(options.storage, is_new=not is_trial)
        if is_trial:
            if options.study_name not in studies:
                found = ", ".join(map(repr, studies)) or "none"
                raise UsageError(f"{options.storage} has no study {options.study_name!r}; there is {found}.")
            n_trials = count_trials(options.storage, options.study_name)
            if not 0 <= options.trial_id < n_trials:
                raise UsageError(
                    f"--trial-id is {options.trial_id}, but {options.study_name!r} has {n_trials} trial(s), from 0."
                )


def count_trials(storage: str | None, study_name: str | None) -> int:
    """
    How many trials a study has; none if there is no such study yet.

    :param storage: where it is
    :param study_name: its name
    """
    if not (storage and study_name) or study_name not in _studies(storage, is_new=True):
        return 0
    return len(optuna.load_study(study_name=study_name, storage=_storage(storage)).trials)


def _studies(storage: str, is_new: bool) -> list[str]:
    """Names of the studies of a storage; a database is made if it may be a new one."""
    # Not with the module: every training imports it, and few have a storage.
    import sqlalchemy

    try:
        path: str | None = storage
        if not storage.endswith(".log"):
            url = sqlalchemy.make_url(storage)
            path = url.database if url.drivername.startswith("sqlite") else None
        if path and not Path(path).exists():
            if not is_new:
                raise UsageError(f"--storage {storage}: there is no such file.")
            if path == storage:
                return []
        # Before: another worker may begin the study meanwhile.
        is_written = path == storage and Path(path).stat().st_size > 0
        studies = optuna.get_all_study_names(_storage(storage))
        # Optuna takes a single line of something else for one that is being written.
        if is_written and not studies:
            raise ValueError("it is the log of something else")
        return studies
    except (OSError, ValueError, ImportError, optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError) as error:
        what = str(error).partition("\n")[0]
        raise UsageError(f"--storage {storage}: {what}. Write e.g. study.log, or sqlite:///study.db.") from error


def _storage(storage: str) -> Any:
    if not storage.endswith(".log"):
        return storage
    return JournalStorage(JournalFileBackend(storage))


def convert_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Arguments of the algorithm for what was sampled.

    :param sampled_params: values by their names in the study
    """
    absent = {name: value for name, value in _NEEDED.items() if name not in sampled_params}
    converted = convert_offpolicy_params({**absent, **sampled_params})
    return {name: value for name, value in converted.items() if name not in {_ARGUMENTS[name] for name in absent}}


def _policy_kwargs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param settings: settings, parsed or as they were written
    :raises UsageError: its ``policy_kwargs`` are no dict
    """
    found = parse_value(settings.get("policy_kwargs")) or {}
    if not isinstance(found, Mapping):
        raise UsageError(f"policy_kwargs is {found!r}, expected dict(name=value, ...).")
    return dict(found)


def _is_typed(name: str, typed: Mapping[str, Any]) -> bool:
    """
    Whether ``-params`` says what would be sampled.

    :param name: name in the study
    :param typed: settings of ``-params``
    """
    return name in _policy_kwargs(typed) if name == "net_arch" else _ARGUMENTS.get(name, name) in typed


def make_sampler(
    algorithm: type[OfflineAlgorithm], settings: Mapping[str, Any] | None = None, typed: Mapping[str, Any] | None = None
) -> Callable[..., dict[str, Any]]:
    """
    A sampler as rl_zoo3 wants it: called with the trial, the number of actions, of environments and further settings.

    :param algorithm: the algorithm whose parameters are sampled
    :param settings: those of all trials; what they say in ``policy_kwargs`` beside what is sampled stays
    :param typed: those of them that ``-params`` says, which are not sampled
    """
    arguments = constructor_arguments(algorithm).keys() - set(algorithm.unused_arguments)
    names = [name for name in SEARCH_SPACE if _ARGUMENTS.get(name, name) in arguments and not _is_typed(name, typed or {})]
    kept = _policy_kwargs(settings or {})

    def sample(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
        found = convert_params({name: SEARCH_SPACE[name](trial, name) for name in names})
        return {**found, "policy_kwargs": {**kept, **_policy_kwargs(found)}}

    return sample


def with_trial(written: Mapping[str, Any], trial: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """
    The settings of a trial, as it had them in its search: those of the config, the sampled ones over them, those typed over
    both, and so in ``policy_kwargs``.

    :param written: settings of the config
    :param trial: what was sampled, as arguments of the algorithm
    :param typed: settings of ``-params``
    """
    settings = {**written, **trial, **typed}
    # As without a trial, typed policy_kwargs stand for those of the config.
    policy_kwargs = {**_policy_kwargs({**written, **typed}), **_policy_kwargs(trial), **_policy_kwargs(typed)}
    return {**settings, "policy_kwargs": policy_kwargs} if policy_kwargs else settings
