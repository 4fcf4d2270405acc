"""Saves that cannot succeed, and saves at the same time: the previous file stays, and the error says what is wrong."""

import contextlib
import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import TD3
from tqdm import tqdm

from benchmarks.fault_campaigns.common import OURS, STOCK, Row, in_child, make_model, make_stock, row, weights_hash
from benchmarks.fault_campaigns.kills import kill
from sb3_dmpo import DMPO


def disk_faults(trials: int) -> list[Row]:
    """Full disk, file size limit, read-only target, attribute that cannot be pickled, two writers."""
    rows = []
    for system, make, load in ((OURS, _ours, DMPO.load), (STOCK, _stock, TD3.load)):
        rows.append(_limited_files(system, make, load, trials))
        for name, place in PLACES.items():
            passed, detail = _one_save(make, load, place)
            rows.append(row(name, system, 1, passed, detail))
        rows.append(_two_writers(system, make, load, trials))
    return rows


def _ours(seed: int) -> Any:
    return make_model("dmpo", seed=seed)


def _stock(seed: int) -> Any:
    return make_stock(seed=seed)


def _weights(load: Callable[..., Any], path: Path) -> str | None:
    try:
        return weights_hash(load(path, device="cpu"))
    except Exception:
        return None


def _saved_in_child(model: Any, path: Path, before: Callable[[], None] | None = None) -> str:
    """Save in a child; returns the error's type and text, empty if there was none."""
    reader, writer = os.pipe()

    def task() -> None:
        if before is not None:
            before()
        try:
            model.save(path)
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}"[:2000].encode())

    pid = in_child(task)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        message = pipe.read()
    os.waitpid(pid, 0)
    return message


def _is_clear(message: str, path: Path) -> bool:
    return message.startswith(("OSError", "PermissionError", "IsADirectoryError")) and str(path) in message


def _limited_files(system: str, make: Callable[[int], Any], load: Callable[..., Any], trials: int) -> Row:
    """The disk takes so many bytes and no more (RLIMIT_FSIZE)."""
    rng, intact, clear, model = np.random.default_rng(0), 0, 0, make(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.zip")
        make(0).save(path)
        expected, size, content = _weights(load, path), path.stat().st_size, path.read_bytes()
        for _ in tqdm(range(trials), desc=f"limited files, {system}"):
            path.write_bytes(content)
            limit = int(rng.integers(size))

            def restrict(limit: int = limit) -> None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

            message = _saved_in_child(model, path, restrict)
            is_intact = _weights(load, path) == expected
            is_clear = _is_clear(message, path)
            intact, clear = intact + is_intact, clear + (is_intact and is_clear)
        left = len(list(Path(folder).glob(".*.tmp")))
    detail = f"previous file intact {intact}, and the error names the file {clear}, temporary files left {left}"
    return row("full disk", system, trials, clear, detail)


@contextlib.contextmanager
def _tiny_disk() -> Iterator[Path]:
    """A file system of 256 KiB; a folder where it may not be mounted."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            raise PermissionError("file systems may not be mounted here")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], capture_output=True, check=False)


@contextlib.contextmanager
def _full_tmpfs(model: Any) -> Iterator[Path]:
    with _tiny_disk() as folder:
        model.save(folder / "model.zip")
        room = os.statvfs(folder)
        (folder / "ballast").write_bytes(b"\0" * max(room.f_bavail * room.f_frsize - 8192, 0))
        yield folder / "model.zip"


@contextlib.contextmanager
def _read_only_tmpfs(model: Any) -> Iterator[Path]:
    with _tiny_disk() as folder:
        model.save(folder / "model.zip")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], capture_output=True, check=True)
        yield folder / "model.zip"


@contextlib.contextmanager
def _unpicklable(model: Any) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "model.zip"))
        yield Path(folder, "model.zip")


PLACES = {"full tmpfs": _full_tmpfs, "read-only target": _read_only_tmpfs, "unpicklable attribute": _unpicklable}


def _one_save(make: Callable[[int], Any], load: Callable[..., Any], place: Callable[[Any], Any]) -> tuple[int, str]:
    """One save that has to fail; the old file has to be the same afterwards."""
    model = make(1)
    if place is _unpicklable:
        model.lock = threading.Lock()
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(place(make(0)))
        except PermissionError as error:
            return 0, str(error)
        expected, before = _weights(load, path), path.read_bytes()
        message = _saved_in_child(model, path)
        is_intact = path.is_file() and path.read_bytes() == before and _weights(load, path) == expected
        is_clear = "'lock'" in message if place is _unpicklable else _is_clear(message, path)
        message = message.replace(str(path.parent), "...")
    return int(is_intact and is_clear), f"previous file {'intact' if is_intact else 'lost'}; {message[:200] or 'no error'}"


def _two_writers(system: str, make: Callable[[int], Any], load: Callable[..., Any], trials: int) -> Row:
    """Two processes save different models under one name, without pause, until both are killed."""
    rng, whole, models = np.random.default_rng(0), 0, (make(0), make(1))
    hashes = {weights_hash(model) for model in models}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.zip")
        for _ in tqdm(range(trials), desc=f"two writers, {system}"):

            def write(model: Any) -> Callable[[], None]:
                def save_for_ever() -> None:
                    while True:
                        model.save(path)

                return save_for_ever

            pids = [in_child(write(model)) for model in models]
            while not path.exists():
                time.sleep(0.001)
            for pid, seconds in zip(pids, (float(rng.uniform(0.05, 0.15)), 0.0), strict=True):
                kill(pid, seconds)
            whole += _weights(load, path) in hashes
            path.unlink(missing_ok=True)
    return row("two writers", system, trials, whole, "the file is one of the two models")
