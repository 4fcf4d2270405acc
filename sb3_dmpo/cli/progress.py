"""What the log says, kept beside the model: ``progress.csv`` in SB3's own format, which a resumed run goes on with."""

import contextlib
import csv
import os
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat

#: The column that says after how many updates a row was written.
UPDATES = "time/total_timesteps"


class ProgressFile(BaseCallback):
    """
    Writes every dump of the log into a CSV file.

    :param path: the file
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def _on_training_start(self) -> None:
        rows = [row for row in read_progress(self.path) if float(row[UPDATES]) <= self.num_timesteps]
        # SB3's writer empties its file: that must not be the one with what is known already.
        new = f"{self.path}.new"
        writer = CSVOutputFormat(new)
        for row in rows:
            writer.write({key: float(value) for key, value in row.items() if value != ""}, {}, 0)
        os.replace(new, self.path)
        self.logger.output_formats.append(writer)

    def _on_step(self) -> bool:
        return True


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
