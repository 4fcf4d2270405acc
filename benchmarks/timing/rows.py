"""Rows of the tables: medians with their spread, ratios, and what is needed to get them again."""

import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

import sb3_dmpo
from sb3_dmpo.cli.results import commit, read_rows, write_rows

COLUMNS = (
    "table",
    "case",
    "system",
    "variant",
    "setting",
    "device",
    "threads",
    "measure",
    "median",
    "low",
    "high",
    "repeats",
    "ratio_to",
    "ratio",
    "ratio_low",
    "ratio_high",
    "command",
    "commit",
    "version",
    "cpu",
    "torch",
)
Row = dict[str, Any]


def cpu_name() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return f"{names[0]}, {len(names)} cores"
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def origin() -> Row:
    """Columns that say where the rows of this process come from."""
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": commit(),
        "version": sb3_dmpo.__version__,
        "cpu": cpu_name(),
        "torch": th.__version__,
    }


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """
    Median, and lower and upper quartile.

    :param values: one per repeat
    """
    low, median, high = np.quantile(np.asarray(values, np.float64), [0.25, 0.5, 0.75])
    return float(median), float(low), float(high)


def number(value: float) -> str:
    """
    Four significant digits, without an exponent.

    :param value: the number
    """
    return np.format_float_positional(value, precision=4, unique=False, fractional=False, trim="-")


def measured(values: Sequence[float], base: Sequence[float] | None = None, ratio_to: str = "", **columns: Any) -> Row:
    """
    A row; ratios are taken repeat by repeat, so that what slows both down cancels out.

    :param values: one per repeat
    :param base: those of the system to compare with, measured in turn
    :param ratio_to: its name
    :param columns: further columns
    """
    row: Row = dict(columns) | {"repeats": len(values)}
    row |= dict(zip(("median", "low", "high"), map(number, spread(values)), strict=True))
    if base is not None:
        ratios = spread([value / other for value, other in zip(values, base, strict=True)])
        row |= dict(zip(("ratio", "ratio_low", "ratio_high"), map(number, ratios), strict=True)) | {"ratio_to": ratio_to}
    return row


def write(path: Path, rows: Sequence[Row]) -> None:
    """
    Write the rows; those of tables and cases that were not measured now stay in the file.

    :param path: CSV file
    :param rows: the rows
    """
    measured_now = {(row["table"], row["case"], str(row.get("threads", ""))) for row in rows}
    kept: list[Row] = [row for row in read_rows(path) if (row["table"], row["case"], row["threads"]) not in measured_now]
    write_rows(path, COLUMNS, sorted([*kept, *rows], key=lambda row: str(row["table"])))


def line(row: Row) -> str:
    """
    A row on the screen.

    :param row: the row
    """
    what = f"{row['case']:22} {row['system']:17} {row.get('variant', ''):16} {row['setting']:34} {row['threads']} thr"
    value = f"{row['median']:>9} {row['measure']} ({row['low']} to {row['high']})"
    ratio = f"  {row['ratio']}x {row['ratio_to']} ({row['ratio_low']} to {row['ratio_high']})" if row.get("ratio") else ""
    return f"{what} {value}{ratio}"
