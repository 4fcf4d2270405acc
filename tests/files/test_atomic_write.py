"""Files that are old or new but never half, and what becomes of those that were begun."""

import os
import signal
import stat
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from benchmarks.fault_campaigns.common import in_child
from sb3_dmpo.files.save_util import atomic_write
from sb3_dmpo.files.temporary import SUFFIX, new_temporary


def exit_code_of(task: Callable[[], None]) -> int:
    """How a fork of this process ends that does a task: minus a signal, or 0 where it outlives the task."""

    def bounded() -> None:
        signal.alarm(60)
        task()

    with warnings.catch_warnings():
        # It has no threads, and needs no lock that one of this process may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = in_child(bounded)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def write(path: Path, content: bytes = b"new") -> None:
    with atomic_write(path) as file:
        file.write(content)


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "model.zip", tmp_path / "model.zip"
    real.parent.mkdir()
    link.symlink_to(real)  # of nothing yet
    for content in (b"first", b"second"):
        write(link, content)
        assert link.is_symlink() and real.read_bytes() == content
    assert os.listdir(real.parent) == ["model.zip"]


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o640])
def test_what_is_replaced_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(b"old")
    path.chmod(mode)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_bytes() == b"new"


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_device_stays_a_device(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write(fifo, b"content")
    assert os.read(reader, 100) == b"content" and stat.S_ISFIFO(fifo.stat().st_mode)
    os.close(reader)


def test_a_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=str(tmp_path)), atomic_write(tmp_path):
        pytest.fail("the block must not be entered")
    assert os.listdir(tmp_path.parent) and not list(tmp_path.parent.glob(f"*{SUFFIX}"))


def test_kills_leave_one_temporary_file_at_most(tmp_path: Path) -> None:
    def killed(path: Path) -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    for name in ("a", "b"):
        assert exit_code_of(partial(killed, tmp_path / name)) == -signal.SIGKILL
        assert len(os.listdir(tmp_path)) == 1
    write(tmp_path / "d")
    assert os.listdir(tmp_path) == ["d"]


def test_a_file_that_is_being_written_is_not_taken_for_abandoned(tmp_path: Path) -> None:
    temporary, descriptor = new_temporary(tmp_path / "slow", is_folder=True)
    with atomic_write(tmp_path / "outer") as file:
        file.write(b"outer")
        write(tmp_path / "inner")
    assert temporary.is_dir() and sorted(os.listdir(tmp_path)) == sorted([temporary.name, "inner", "outer"])
    os.close(descriptor)
    write(tmp_path / "inner")
    assert not temporary.exists()


def test_a_name_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    write(tmp_path / ("ü" * 127))
    assert len(os.listdir(tmp_path)) == 1
