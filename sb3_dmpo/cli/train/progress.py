"""What the log says, kept beside the model: ``progress.csv`` in SB3's own format, which a resumed run goes on with."""

import contextlib
import csv
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat

#: The column that says after how many updates a row was written.
UPDATES = "time/total_timesteps"
#: The column that says how long the run has learned by then. SB3's ``time/time_elapsed`` starts anew when it is resumed.
WALL_SECONDS = "time/wall_seconds"


class ProgressFile(BaseCallback):
    """
    Writes every dump of the log into a CSV file, and with it how long the run has learned.

    :param path: the file
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._since = 0.0

    def wall_seconds(self) -> float:
        """
        Wall-clock seconds of learning, evaluations included. In a resumed run those up to its checkpoint (the last row of the
        file before it) count; the time in between and the updates that were lost do not.
        """
        return time.monotonic() - self._since

    def _on_training_start(self) -> None:
        rows = [row for row in read_progress(self.path) if float(row[UPDATES]) <= self.num_timesteps]
        # SB3's writer empties its file: that must not be the one with what is known already.
        new = f"{self.path}.new"
        writer = _TimedCSV(new, self.wall_seconds)
        for row in rows:
            writer.write_row({key: float(value) for key, value in row.items() if value != ""})
        os.replace(new, self.path)
        self._since = time.monotonic() - max((float(row.get(WALL_SECONDS) or 0) for row in rows), default=0.0)
        self.logger.output_formats.append(writer)

    def _on_step(self) -> bool:
        return True


class _TimedCSV(CSVOutputFormat):
    def __init__(self, filename: str, wall_seconds: Callable[[], float]) -> None:
        super().__init__(filename)
        self._wall_seconds = wall_seconds

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        super().write(key_values | {WALL_SECONDS: round(self._wall_seconds(), 1)}, key_excluded | {WALL_SECONDS: ()}, step)

    def write_row(self, key_values: dict[str, Any]) -> None:
        """Write a row as it is."""
        super().write(key_values, {}, 0)


def read_progress(path: Path) -> list[dict[str, str]]:
    """
    Whole rows of a progress file, none if it is not there; a kill may have left half of the last one.

    :param path: the file
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    whole = []
    for row in rows:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            float(row[UPDATES])
            whole.append({key: value or "" for key, value in row.items() if key is not None})
    return whole
