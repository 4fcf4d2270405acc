"""Finding the run that ``--resume`` goes on with."""

import argparse
import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sb3_dmpo.cli.checkpoints import checkpoints, updates_of
from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.cli.literals import as_yaml, read_yaml
from sb3_dmpo.common.arguments import SEED, is_whole
from sb3_dmpo.common.callbacks import read_evaluations
from sb3_dmpo.data.minari import recorded_environment_spec
from sb3_dmpo.files.safe_zip import DamagedFileError, UnsafeFileError, check_archive
from sb3_dmpo.hub.summary import read_summary

#: Options that a run cannot be continued with others of, beside its settings, and their names in ``args.yml``.
_OPTIONS = {
    **{"-n": "n_timesteps", "--clip-actions": "clip_actions"},
    **{"--env": "eval_env_id", "--env-kwargs": "env_kwargs", "--eval-env-kwargs": "eval_env_kwargs"},
}


@dataclass(frozen=True)
class InterruptedRun:
    """
    A run that was begun earlier.

    :param folder: where it writes
    :param seed: its seed
    :param options: the options it was begun with, by their names in ``args.yml``
    :param config: its settings as they were written
    :param checkpoint: its newest whole state; None: it ended before the first one
    """

    folder: Path
    seed: int
    options: dict[str, Any]
    config: dict[str, Any]
    checkpoint: Path | None

    def check_config(self, config: dict[str, Any], options: argparse.Namespace) -> None:
        """
        Refuse to go on with other settings than those the run began with.

        :param config: settings of this command, as they were written
        :param options: options of this command
        :raises UsageError: they differ
        """
        known = {option: name for option, name in _OPTIONS.items() if name in self.options}
        if self.options.get("eval_env_id") is None and recorded_environment_spec(options.source.metadata, True) is None:
            # There was no environment, e.g. before fine-tuning.
            known.pop("--env", None)
        before = {option: self.options[name] for option, name in known.items()}
        now = {option: as_yaml(getattr(options, name)) for option, name in known.items()}
        check_settings(f"--resume: {self.folder}", self.config | before, as_yaml(config) | now)


def lock_run(folder: Path, locks: contextlib.ExitStack) -> None:
    """
    Keep other processes from working on a run. File systems without locks let them.

    :param folder: the run's folder
    :param locks: gives the lock back when it is closed; so does the end of the process
    :raises UsageError: somebody is working on it
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        what = f"{folder} is being trained by another process"
        raise UsageError(f"{what}: wait until it has ended, or begin another run (without --resume).") from None
    except (NotImplementedError, OSError):
        return
    locks.callback(lock.release)


def check_settings(what: str, before: dict[str, Any], now: dict[str, Any], remedy: str = "") -> None:
    """
    Refuse to go on with other settings than those that something was begun with.

    :param what: what is gone on with, for the message
    :param before: settings that are written down there
    :param now: settings of this command
    :param remedy: what to do about it
    :raises UsageError: they differ; every difference is shown
    """
    changes = [
        f"{key}: {before.get(key, 'not set')} before, {now.get(key, 'not set')} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changes:
        raise UsageError(f"{what} was begun with other settings ({'; '.join(changes)}){remedy}.")


def check_episodes(folder: Path, n_eval_episodes: int) -> None:
    """
    Refuse evaluations of another number of episodes than those that were written, which lie in the same arrays.

    :param folder: folder of the run, or of a stage of it, that goes on
    :param n_eval_episodes: episodes of an evaluation by this command
    :raises UsageError: it is another one
    :raises OSError: the evaluations cannot be read
    """
    path = folder / "evaluations.npz"
    if path.exists():
        before = read_evaluations(str(path))["results"].shape[1]
        check_settings(f"--resume: {folder}", {"--eval-episodes": before}, {"--eval-episodes": n_eval_episodes})


def find_run(
    log_folder: str, algo: str, env_id: str, dataset: str, seed: int, locks: contextlib.ExitStack
) -> InterruptedRun | None:
    """
    The newest run of an algorithm on a dataset, or None.

    :param log_folder: option ``-f``
    :param algo: name of the algorithm
    :param env_id: id of the evaluation environment, which names the run's folder
    :param dataset: id of the dataset
    :param seed: seed of the run; negative: any
    :param locks: as of :func:`lock_run`
    :raises UsageError: another process is working on it
    """
    folders = [
        path for path in Path(log_folder, algo).glob(f"{env_id}_*") if re.fullmatch(r"\d+", path.name[len(env_id) + 1 :])
    ]
    for folder in sorted(folders, key=lambda path: -int(path.name[len(env_id) + 1 :])):
        try:
            options, config = (read_yaml(folder / env_id / name) for name in ("args.yml", "config.yml"))
        except UsageError:
            continue
        # Killed before its settings were written, a run has nothing to go on with.
        if not isinstance(config, dict) or not isinstance(options, dict) or not _can_be_resumed(options):
            continue
        if options["dataset"] == dataset and seed in (options["seed"], min(seed, -1)):
            # Before looking for its newest state, which somebody might be writing.
            lock_run(folder, locks)
            return InterruptedRun(folder, options["seed"], options, config, newest_state(folder, env_id))
    return None


def _can_be_resumed(options: dict[str, Any]) -> bool:
    """Whether the options of a run say what has to be known to go on with it."""
    seed, n_timesteps = options.get("seed"), options.get("n_timesteps")
    if options.get("trained_agent") and not is_whole(options.get("first_timestep"), 0):
        return False
    # None is a seed of a model, not of a run.
    return "dataset" in options and seed is not None and SEED.accepts(seed) and is_whole(n_timesteps, -1)


def newest_state(folder: Path, env_id: str, is_usable: Callable[[Path], bool] = lambda path: True) -> Path | None:
    """
    The newest state of a run that is whole: its final zip, unless a checkpoint has more updates. Ctrl-C writes a final zip,
    too, and the run may have gone on from it.

    :param folder: the run's folder
    :param env_id: id of the evaluation environment, which names the final zip
    :param is_usable: what else a checkpoint has to fulfil
    """
    final = folder / f"{env_id}.zip"
    newest = next(filter(_is_whole, filter(is_usable, checkpoints(folder))), None)
    if not _is_whole(final):
        return newest
    if newest is not None and updates_of(newest) > read_summary(final).attributes.get("num_timesteps", 0):
        return newest
    return final


def _is_whole(path: Path) -> bool:
    try:
        check_archive(path.read_bytes())
    except (OSError, DamagedFileError, UnsafeFileError):
        return False
    return True
