"""Scores on the screen and in CSV files, with everything that is needed to get them again."""

import csv
import io
import os
import subprocess
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

import sb3_dmpo
from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.common.evaluation import EvaluationResult
from sb3_dmpo.common.updates import ERROR_PERCENTILES
from sb3_dmpo.files.save_util import atomic_write, check_writable

COLUMNS = (
    "algorithm",
    "dataset",
    "label",
    "seed",
    "updates",
    "evaluation",
    "score",
    "score_kind",
    "return_mean",
    "return_std",
    "success_rate",
    "n_episodes",
    "wall_seconds",
    "command",
    "commit",
    "version",
)

_NO_UTF8 = "is not a CSV file in UTF-8: give another file, or save it in UTF-8 first."
#: What says which evaluation a row is.
EVALUATION_KEYS = ("algorithm", "dataset", "seed", "updates", "env_steps", "evaluation")
#: Columns of runs that go on in the environment: its steps, beside the updates of both stages.
FINETUNE_COLUMNS = (*COLUMNS[:5], "env_steps", *COLUMNS[5:])
#: Whether a mixture is one. Files of early versions lack these columns.
DIAGNOSTICS = ("mutual_information", "posterior_entropy", "gate_support", "assigned_distance", "gate_distance")
#: What a sweep keeps of the logs of its runs, for the figures.
TRAINING_METRICS = (
    *("critic_loss", "value_loss", "actor_loss", "kl", "info_loss", "weight_ess", "component_entropy"),
    *DIAGNOSTICS,
    *(f"bellman_error_p{level:02d}" for level in ERROR_PERCENTILES),
)
TRAINING_COLUMNS = ("algorithm", "dataset", "seed", "updates", *TRAINING_METRICS)


def commit() -> str:
    """
    The git commit of the package's checkout, ``-dirty`` with uncommitted changes (but for results, which change no score),
    ``unknown`` outside of one.
    """
    package = Path(sb3_dmpo.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        # Installed into the environment of some other project, that project's commit would say nothing.
        git("ls-files", "--error-unmatch", "__init__.py")
        revision = git("rev-parse", "HEAD")
        code = (":/", ":(top,exclude)benchmarks/results")
        return f"{revision}-dirty" if git("status", "--porcelain", "--untracked-files=no", *code) else revision
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def score_of(result: EvaluationResult) -> tuple[float, str]:
    """
    The score of an evaluation and its kind: normalised (0 to 100) where reference scores are known, else the mean return.

    :param result: the evaluation
    """
    if result.normalized_score is None:
        return result.mean_return, "return"
    return result.normalized_score, "normalized"


def score_line(result: EvaluationResult, with_source: bool = True) -> str:
    """
    An evaluation in one line.

    :param result: the evaluation
    :param with_source: whether to say what the normalised score refers to
    """
    parts = [f"return {result.mean_return:.2f} +/- {result.std_return:.2f} over {len(result.returns)} episodes"]
    if result.reference is not None:
        low, high, source = result.reference
        meaning = f" (0 is a return of {low:g}, 100 of {high:g}, from {source})" if with_source else ""
        parts.append(f"normalised score {result.normalized_score:.1f}{meaning}")
    if result.success_rate is not None:
        parts.append(f"success rate {100 * result.success_rate:.0f}%")
    return ", ".join(parts)


@dataclass(frozen=True)
class ResultsFile:
    """
    A CSV file that several runs may append to at once.

    :param path: the file; it and its folder are made if they are not there
    :param constant: columns that are the same in every row of this run
    :param columns: names of all columns
    """

    path: Path
    constant: dict[str, Any]
    columns: Sequence[str] = COLUMNS

    def check(self) -> None:
        """
        Find out before training whether rows can be appended. Nothing is written: a refused run leaves no file.

        :raises UsageError: the file has other columns
        :raises OSError: it cannot be written
        """
        if self.path.exists():
            with open(self.path, "r+b") as file:
                _whole_lines(self.path, file.read(), csv_line(self.columns))
        else:
            check_writable(self.path)

    def append(self, result: EvaluationResult, **columns: Any) -> None:
        """
        Write one row.

        :param result: the evaluation
        :param columns: further columns
        """
        score, kind = score_of(result)
        success = result.success_rate
        row = {
            **self.constant,
            "score": f"{score:.4f}",
            "score_kind": kind,
            "return_mean": f"{result.mean_return:.4f}",
            "return_std": f"{result.std_return:.4f}",
            "success_rate": "" if success is None else f"{success:.4f}",
            "n_episodes": len(result.returns),
            **columns,
        }
        self._append(csv_line([row[column] for column in self.columns]))

    def append_rows(self, rows: Sequence[Mapping[str, str]]) -> None:
        """
        Write rows of other results files, but for those that are there already.

        :param rows: values of all columns
        """
        lines = [csv_line([row[column] for column in self.columns]) for row in rows]
        self._append("".join(dict.fromkeys(lines)), is_unique=True)

    def _append(self, lines: str, is_unique: bool = False) -> None:
        append_lines(self.path, lines, csv_line(self.columns), is_unique)


def append_lines(path: Path, lines: str, header: str, is_unique: bool = False) -> None:
    """
    Append lines to a CSV file that several processes may write to: all of them or, on a full disk, none. What a kill has
    left of a line is removed first, with a warning; a last line that only lacks its end gets it.

    :param path: the file; it and its folder are made if they are not there
    :param lines: lines with their ends
    :param header: the file's first line
    :param is_unique: whether lines that are there already are left out
    :raises UsageError: the file has another header, or is no text
    :raises OSError: it cannot be written (the message names the file)
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")), open(path, "a+b", buffering=0) as file:
            file.seek(0)
            content = file.read()
            found, torn = _whole_lines(path, content, header)
            if torn:
                file.truncate(len(content) - len(torn))
                text = torn.decode("utf-8", "backslashreplace")
                warnings.warn(f"{path} ended in the middle of a line, which has been removed: {text!r}", stacklevel=2)
            if is_unique:
                lines = "".join(line for line in lines.splitlines(keepends=True) if line.rstrip("\n") not in found)
            start = "" if found else header
            if found and not torn and not content.endswith(b"\n"):
                start = "\n"
            _write_whole(file, (start + lines).encode("utf-8"))
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _whole_lines(path: Path, content: bytes, header: str) -> tuple[list[str], bytes]:
    """
    The lines of a CSV file, without their ends, and what a kill has left of a last one. Spreadsheets' byte order mark and line
    ends of Windows are passed over. A last line without an end is whole if it has all its fields.

    :param path: the file, for the message
    :param content: what it contains
    :param header: the first line that is expected
    :raises UsageError: there is something else in it
    """
    n_columns = len(next(csv.reader([header])))
    end = content.rfind(b"\n") + 1
    torn = content[end:]
    try:
        if len(next(csv.reader([torn.decode("utf-8")], strict=True), ())) == n_columns:
            end, torn = len(content), b""
    except (UnicodeDecodeError, csv.Error):  # torn within a letter, or a quoted field
        pass
    try:
        lines = content[:end].decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"{path} {_NO_UTF8}") from None
    is_ours = lines[0] == header.strip() if lines else header.encode("utf-8").startswith(torn)
    if not is_ours:
        raise UsageError(f"{path} has other columns; expected {header.strip()}.")
    return lines, torn


def _write_whole(file: Any, content: bytes) -> None:
    size = os.fstat(file.fileno()).st_size
    try:
        rest = memoryview(content)
        while rest:
            # A disk that is nearly full takes a part of it, and says so only the next time.
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except BaseException:
        file.truncate(size)
        raise


def read_tables(paths: Iterable[Path], columns: Sequence[str]) -> list[dict[str, str]]:
    """
    Rows of the CSV files that have certain columns; others are passed over. Of rows that say the same evaluation, the last
    counts: a run that was killed has repeated some.

    :param paths: the files
    :param columns: names of all columns
    """
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for path in paths:
        found = read_rows(path)
        # None are those of fields that are too many.
        there = set(found[0]) - {None} if found else set()
        if there and there == {column for column in columns if column in there or column not in DIAGNOSTICS}:
            found = [{column: row.get(column, "") for column in columns} for row in found]
            rows |= {tuple(row.get(key, "") for key in EVALUATION_KEYS): row for row in found}
    return list(rows.values())


def read_rows(path: Path) -> list[dict[str, str]]:
    """
    Rows of a CSV file, none if it is not there.

    :param path: the file
    :raises UsageError: it is no text in UTF-8
    """
    if not path.exists():
        return []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    except UnicodeDecodeError:
        raise UsageError(f"{path} {_NO_UTF8}") from None


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """
    Replace a CSV file, in one piece.

    :param path: the file; its folder is made if it is not there
    :param columns: names of all columns
    :param rows: values by column; what is missing is left empty
    :raises ValueError: a row has a value for no column
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode("utf-8"))


def csv_line(values: Sequence[Any]) -> str:
    """
    A line of a CSV file, with its end. Line breaks within a value become spaces: a row is a line, and a kill tears one row.

    :param values: of its columns
    """
    text = io.StringIO()
    values = [" ".join(value.splitlines()) if isinstance(value, str) else value for value in values]
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
