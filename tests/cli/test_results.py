"""Files that are appended to: rows are whole or not there."""

import csv
import errno
import os
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.logger import Logger

from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.cli.results import TRAINING_COLUMNS, ResultsFile, append_lines, read_rows, read_tables, write_rows
from sb3_dmpo.cli.train.callbacks import UPDATES, WALL_SECONDS, ProgressFile, read_progress

HEADER = "a,b,c\n"


@contextmanager
def room(size: int) -> Iterator[None]:
    """Files may not grow beyond this size: as on a full disk, a part of a write is done."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("extra", [0, 3, 7, 20])
def test_a_full_disk_leaves_no_half_row(tmp_path: Path, extra: int) -> None:
    path = tmp_path / "r.csv"
    append_lines(path, "1,2,3\n", HEADER)
    before = path.read_text()
    with room(len(before) + extra), pytest.raises(OSError, match=r"r\.csv") as error:
        append_lines(path, "4444444,5555555,6666666\n", HEADER)
    assert error.value.errno == errno.EFBIG and path.read_text() == before
    append_lines(path, "7,8,9\n", HEADER)
    assert path.read_text() == before + "7,8,9\n"


def test_a_file_is_replaced_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.csv"
    rows = [{"a": 'say "no", or\nnot', "b": 1.5}, {"b": ""}]
    write_rows(path, ("a", "b", "c"), rows)
    assert read_rows(path) == [{"a": rows[0]["a"], "b": "1.5", "c": ""}, {"a": "", "b": "", "c": ""}]
    before = path.read_bytes()
    assert b"\r" not in before
    with pytest.raises(ValueError, match="'d'"):
        write_rows(path, ("a", "b", "c"), [{"a": 1}, {"d": 2}])
    with room(3), pytest.raises(OSError):
        write_rows(path, ("a", "b"), [])
    assert path.read_bytes() == before and os.listdir(path.parent) == ["r.csv"]


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\r", "\v", "\x1c", "\x85", "\u2028"])
def test_rows_of_fields_with_line_breaks_are_kept(tmp_path: Path, separator: str) -> None:
    file = ResultsFile(tmp_path / "r.csv", {}, ("a", "b", "c"))
    command = f"train -params 'x:dict(y=[8],{separator} z=2)'"
    for i in "1223":
        file.append_rows([{"a": i, "b": command, "c": "v"}])
    rows = read_rows(file.path)
    assert [row["a"] for row in rows] == ["1", "2", "3"] and all(row["c"] == "v" for row in rows)
    assert rows[0]["b"] == "train -params 'x:dict(y=[8],  z=2)'"
    assert len(file.path.read_text(encoding="utf-8").splitlines()) == 4


@pytest.mark.parametrize("torn", ["4,5", "4,\u00e4", '4,5,"6'])
def test_what_a_kill_has_left_of_a_row_is_removed(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(f"{HEADER}1,2,3\n{torn}", encoding="utf-8")
    with pytest.warns(UserWarning, match=re.escape(f"r.csv ended in the middle of a line, which has been removed: {torn!r}")):
        append_lines(path, "7,8,9\n", HEADER)
    assert path.read_text() == f"{HEADER}1,2,3\n7,8,9\n"


def test_half_a_header_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("a,b")
    with pytest.warns(UserWarning, match="ended in the middle"):
        append_lines(path, "", HEADER)
    assert path.read_text() == HEADER


@pytest.mark.parametrize("content", ["a,b,c", "a,b,c\n1,2,3", "\ufeffa,b,c\r\n1,2,3\r\n", "\ufeffa,b,c\r\n1,2,3"])
def test_rows_saved_by_an_editor_or_a_spreadsheet_are_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes(content.encode("utf-8"))
    append_lines(path, "1,2,3\n4,5,6\n", HEADER, is_unique=True)
    assert read_rows(path) == [{"a": "1", "b": "2", "c": "3"}, {"a": "4", "b": "5", "c": "6"}]
    assert path.read_bytes().startswith(content.encode("utf-8"))


@pytest.mark.parametrize(
    "content", ["my only line", "a,x\n1,2\nlast row", "a,b,c,d\n1,2,3,4", "a,b,c\n1,2,3\n".encode("utf-16"), b"a,b,c\n\xff\n"]
)
def test_a_file_of_something_else_is_refused_as_it_is(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "notes.csv"
    before = content.encode("utf-8") if isinstance(content, str) else content
    path.write_bytes(before)
    for write in (ResultsFile(path, {}, ("a", "b", "c")).check, lambda: append_lines(path, "1,2,3\n", HEADER)):
        with pytest.raises(UsageError, match=r"notes\.csv (has other columns; expected a,b,c|is not a CSV file in UTF-8)"):
            write()
        assert path.read_bytes() == before


def test_a_check_writes_nothing(tmp_path: Path) -> None:
    ResultsFile(tmp_path / "new" / "folder" / "r.csv", {}).check()
    assert not os.listdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory: '.*file/r\.csv'"):
        ResultsFile(tmp_path / "file" / "r.csv", {}).check()
    with pytest.raises(OSError, match=r"Is a directory: '.*'"):
        ResultsFile(tmp_path, {}).check()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "r.csv"
    append_lines(path, "1,2,3\n", HEADER)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*r\.csv'"):
        append_lines(path, "4,5,6\n", HEADER)
    assert path.read_text() == f"{HEADER}1,2,3\n"


class _Model:
    num_timesteps = 5

    def __init__(self) -> None:
        self.logger = Logger(None, [])


def progress(path: Path) -> tuple[ProgressFile, Logger]:
    callback: Any = ProgressFile(path)
    callback.model, callback.num_timesteps = _Model(), 5
    callback._on_training_start()
    return callback, callback.model.logger


def dump(logger: Logger, updates: int, **values: float) -> None:
    for name, value in {UPDATES: updates, **values}.items():
        logger.record(name, value)
    logger.dump(updates)


def test_the_log_beside_the_model_has_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    _, logger = progress(path)
    dump(logger, 1, loss=0.5)
    dump(logger, 2, loss=0.25, score=7.0)
    before = path.read_text()
    with room(len(before) + 3), pytest.raises(OSError, match=r"progress\.csv"):
        dump(logger, 3, loss=0.125, score=8.0)
    assert path.read_text() == before
    dump(logger, 4, loss=0.1)  # the score that could not be written is still in the logger
    rows = read_progress(path)
    assert [(row[UPDATES], row["loss"], row["score"]) for row in rows] == [
        ("1", "0.5", ""),
        ("2", "0.25", "7.0"),
        ("4", "0.1", "8.0"),
    ]
    assert list(rows[0]) == [UPDATES, "loss", WALL_SECONDS, "score"]


def test_a_new_column_on_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    _, logger = progress(path)
    dump(logger, 1, loss=0.5)
    before = path.read_text()
    with room(len(before) + 3), pytest.raises(OSError, match=r"progress\.csv"):
        dump(logger, 2, loss=0.25, score=7.0)
    assert path.read_text() == before and len(list(tmp_path.glob("*.tmp"))) == 0


def test_tables_of_the_first_release_are_read(tmp_path: Path) -> None:
    """They have no columns for the diagnostics of a mixture."""
    old = [column for column in TRAINING_COLUMNS if column not in ("mutual_information", "posterior_entropy", "gate_support")]
    old = [column for column in old if not column.endswith("_distance")]
    with open(tmp_path / "old.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, old)
        writer.writeheader()
        writer.writerow(dict.fromkeys(old, "1"))
    (row,) = read_tables([tmp_path / "old.csv"], TRAINING_COLUMNS)
    assert list(row) == list(TRAINING_COLUMNS) and row["mutual_information"] == "" and row["bellman_error_p95"] == "1"
    assert not read_tables([tmp_path / "old.csv"], ("algorithm", "dataset"))
    assert len(read_rows(tmp_path / "old.csv")) == 1
