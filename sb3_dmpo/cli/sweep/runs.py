"""One run of a sweep: its folder, its command, how far it is, and the worker that does it."""

import argparse
import contextlib
import fcntl
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from sb3_dmpo.cli.checkpoints import checkpoints
from sb3_dmpo.cli.configs import config_path, find_entry
from sb3_dmpo.cli.errors import Parser, UsageError
from sb3_dmpo.cli.literals import parse_value
from sb3_dmpo.cli.results import COLUMNS, FINETUNE_COLUMNS, TRAINING_METRICS, read_tables
from sb3_dmpo.cli.train.callbacks import UPDATES, read_progress
from sb3_dmpo.cli.train.finetune import episodes_of, transitions_of
from sb3_dmpo.cli.train.resume import check_settings
from sb3_dmpo.envs.registration import environment_name
from sb3_dmpo.files.save_util import atomic_write

#: Arguments of Python that train.
TRAIN = ("-m", "sb3_dmpo", "train")
#: Options of train that the sweep sets.
_OWN_OPTIONS = (
    *(("--algo",), ("--dataset",), ("--seed",), ("--seeds",), ("-n", "--n-timesteps"), ("--num-threads",), ("--save-freq",)),
    *(("--resume",), ("-f", "--log-folder"), ("--results",), ("-params", "--hyperparams")),
)
#: Set by a worker once its run is whole, and how the last attempt ended.
_FINISHED, _EXIT = "finished.json", "exit.json"


def read_json(path: Path) -> dict[str, Any]:
    """
    A JSON object from a file, empty if the file is not there.

    :param path: the file
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """
    Write a JSON object in one piece.

    :param path: the file
    :param content: the object
    """
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=1).encode("utf-8"))


@functools.lru_cache
def _config_entry(config: str, dataset: str) -> Mapping[str, Any]:
    """
    What a config says about a dataset, read once: a table has hundreds of runs.

    :param config: as in :func:`~sb3_dmpo.cli.configs.load_config`
    :param dataset: id of the dataset
    :raises UsageError: it cannot be read, or says nothing
    """
    return MappingProxyType(find_entry(config, dataset)[1])


class _RefuseOption(argparse.Action):
    """An option of ``train`` that is the sweep's to set, however it is spelt: ``-n50``, ``--hyperp gamma:0.5``."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """
        :param args: what argparse says of the option
        :param kwargs: what argparse says of the option
        :raises UsageError: always
        """
        name = "/".join(self.option_strings)
        raise UsageError(f"{name} behind -- is set by the sweep: write it before the --, where it has an option.")


@functools.lru_cache
def options_of_train(arguments: tuple[str, ...]) -> argparse.Namespace:
    """
    Those options of ``train`` that the sweep has to know, abbreviated as ``train`` takes them.

    :param arguments: options of ``train``
    :raises UsageError: one of them has no value, or is set by the sweep
    """
    parser = Parser(add_help=False)
    for names in _OWN_OPTIONS:
        parser.add_argument(*names, nargs="*", action=_RefuseOption)
    parser.add_argument("--download", action="store_true")
    parser.add_argument("-conf", "--conf-file")
    parser.add_argument("--finetune", default="0")
    # These only decide how others are read: -Pn50 is -P -n50, and --fine may be either.
    parser.add_argument("-P", "--progress", action="store_true")
    parser.add_argument("--finetune-params", nargs="*")
    return parser.parse_known_args(arguments)[0]


@dataclass(frozen=True)
class PlannedRun:
    """
    One run of a sweep.

    :param algo: name of the algorithm
    :param dataset: id of the dataset
    :param seed: seed
    :param n_timesteps: option ``-n``; -1: as in the config
    :param params: option ``-params``, as typed
    :param label: name of the setting where it is not the config's; stands behind the algorithm in the results
    :param arguments: further options of ``train``
    """

    algo: str
    dataset: str
    seed: int
    n_timesteps: int = -1
    params: tuple[str, ...] = ()
    label: str = ""
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the algorithm and of its setting, as it stands in the results: ``infodmpo[n_components=4]``."""
        return f"{self.algo}[{self.label}]" if self.label else self.algo

    @property
    def group(self) -> tuple[str, str]:
        """What the runs have in common that differ in their seeds only."""
        return self.name, self.dataset

    def folder(self, root: Path) -> Path:
        """
        The run's own folder, relative to where the sweep was started if ``root`` is.

        :param root: folder of the sweep
        """
        return root / re.sub(r"[^\w.=-]+", "-", self.name).strip("-") / environment_name(self.dataset) / f"seed_{self.seed}"

    def finetune_steps(self) -> int:
        """
        Steps in the environment that follow on the updates; 0 without ``--finetune``.

        :raises UsageError: it is no number of steps
        """
        text: str = options_of_train(self.arguments).finetune
        if not text.isdecimal():
            raise UsageError(f"--finetune {text}: write a positive number of steps.")
        return int(text)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the run's results."""
        return FINETUNE_COLUMNS if self.finetune_steps() else COLUMNS

    @property
    def settings(self) -> dict[str, Any]:
        """
        What the config says about the dataset, and over it ``-params`` as typed.

        :raises UsageError: there is no config, or it says nothing
        """
        config = options_of_train(self.arguments).conf_file or str(config_path(self.algo))
        return {**_config_entry(config, self.dataset), **dict(item.split(":", 1) for item in self.params if ":" in item)}

    def total_updates(self) -> int:
        """
        Number of updates of the whole run; each step of ``--finetune`` counts as one.

        :raises UsageError: there is no config, or neither it nor the command line says
        """
        return self._offline_updates() + self.finetune_steps()

    def _offline_updates(self) -> int:
        settings = self.settings
        if self.n_timesteps > 0:
            return self.n_timesteps
        if "n_timesteps" not in settings:
            raise UsageError(f"The config of {self.algo} does not say how many updates to do on {self.dataset}: use -n.")
        return int(parse_value(settings["n_timesteps"]))

    def command(self, root: Path, save_freq: int, threads: int) -> list[str]:
        """
        Arguments of Python for the run; they begin it and go on with it.

        :param root: folder of the sweep
        :param save_freq: updates between checkpoints
        :param threads: threads of PyTorch
        """
        folder = self.folder(root)
        command = [*TRAIN, "--algo", self.algo, "--dataset", self.dataset, "--seed", str(self.seed)]
        if self.n_timesteps > 0:
            command += ["-n", str(self.n_timesteps)]
        command += ["--num-threads", str(threads), "--save-freq", str(save_freq), "--resume"]
        command += ["-f", str(folder), "--results", str(folder / "results.csv")]
        command += self.arguments
        return [*command, "-params", *self.params] if self.params else command

    def prepare(self, root: Path) -> None:
        """
        Make the folder, or find that it is this run's.

        :param root: folder of the sweep
        :raises UsageError: it holds a run with other settings
        """
        folder = self.folder(root)
        folder.mkdir(parents=True, exist_ok=True)
        # As JSON has it: tuples come back as lists.
        now: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        before = read_json(folder / "cell.json")
        if not before:
            write_json(folder / "cell.json", now)
        check_settings(str(folder), before or now, now, remedy=": name another --folder")

    def is_finished(self, root: Path) -> bool:
        """
        Whether the run is whole.

        :param root: folder of the sweep
        """
        return (self.folder(root) / _FINISHED).is_file()

    def rows(self, root: Path) -> list[dict[str, str]]:
        """
        Evaluations so far; a run that was killed has repeated some, of which the last counts.

        :param root: folder of the sweep
        """
        return read_tables([self.folder(root) / "results.csv"], self.columns)

    def training_rows(self, root: Path) -> list[dict[str, str]]:
        """
        What the log said about the losses, in the columns :data:`~sb3_dmpo.cli.results.TRAINING_COLUMNS`.

        :param root: folder of the sweep
        """
        constant = {"algorithm": self.name, "dataset": self.dataset, "seed": str(self.seed)}
        rows = []
        for path in sorted(self.folder(root).glob("*/*/progress.csv")):
            for row in read_progress(path):
                values = {name: row.get(f"train/{name}") or "" for name in TRAINING_METRICS}
                if row.get("train/n_updates"):
                    short = {name: f"{float(value):.6g}" if value else "" for name, value in values.items()}
                    rows.append(constant | {"updates": str(int(float(row[UPDATES])))} | short)
        return rows

    def last_words(self, root: Path) -> str:
        """
        The last line that the run has said.

        :param root: folder of the sweep
        """
        try:
            lines = (self.folder(root) / "train.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""


def check_folders(plans: Iterable[PlannedRun], root: Path) -> None:
    """
    Refuse runs with different settings that would share a folder: its name has no brackets, commas and signs.

    :param plans: the runs
    :param root: folder of the sweep
    :raises UsageError: the first two of them; the message says what differs
    """
    found: dict[Path, PlannedRun] = {}
    for plan in plans:
        first = found.setdefault(plan.folder(root), plan)
        before, now = asdict(first), asdict(plan)
        both = [f"{name} {before[name]!r} and {now[name]!r}" for name in now if now[name] != before[name]]
        if both:
            raise UsageError(
                f"Two runs would share the folder {plan.folder(root)}, with {'; '.join(both)}: spell one of them differently, "
                "or do it in a sweep of its own with another --label."
            )


@contextlib.contextmanager
def _only_worker(folder: Path) -> Iterator[IO[bytes]]:
    """Only one process at a time works on a run; its process inherits the lock and holds it even if its worker is killed."""
    with open(folder / "lock", "ab") as file:
        # Not a FileLock: that one ends with the worker.
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield file


@dataclass(frozen=True)
class Worker:
    """
    Does one run; this is what goes to the cluster. Called again, it goes on where the run is.

    :param folder: the run's folder
    :param command: arguments of the Python interpreter
    :param environment: environment variables to set, or to remove (None)
    :param attempt: says which attempt ``exit.json`` belongs to
    """

    folder: str
    command: tuple[str, ...]
    environment: dict[str, str | None]
    attempt: str

    def __call__(self) -> int:
        """Exit code of the run; negative: the signal that ended it."""
        folder = Path(self.folder)
        with _only_worker(folder) as lock:
            code = 0 if (folder / _FINISHED).is_file() else self._run(folder, lock)
        write_json(folder / _EXIT, {"attempt": self.attempt, "code": code})
        return code

    def _run(self, folder: Path, lock: IO[bytes]) -> int:
        environment = {name: value for name, value in (os.environ | self.environment).items() if value is not None}
        with open(folder / "train.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(lock.fileno(),),
            )
            write_json(folder / "running.json", {"host": os.uname().nodename, "pid": process.pid})
            code = process.wait()
        (folder / "running.json").unlink(missing_ok=True)
        if code == 0:
            for checkpoint in checkpoints(folder, below=True):
                for path in (checkpoint, transitions_of(checkpoint), episodes_of(checkpoint)):
                    path.unlink(missing_ok=True)
            write_json(folder / _FINISHED, {"command": list(self.command)})
        return code

    def checkpoint(self) -> Any:
        """What SLURM is to do with the job when its time is over: queue it again (submitit calls this)."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def exit_code_of(folder: Path, attempt: str) -> int | None:
    """
    Exit code with which an attempt ended; None: it has not, or its worker was killed before it could say.

    :param folder: the run's folder
    :param attempt: the attempt
    """
    content = read_json(folder / _EXIT)
    return int(content["code"]) if content.get("attempt") == attempt else None
