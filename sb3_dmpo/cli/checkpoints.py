"""Checkpoints in a run's folder, as rl_zoo3 and Stable-Baselines3 name them."""

import re
from pathlib import Path

_NAME = re.compile(r"rl_model_([0-9]+)_steps\.zip")


def checkpoints(folder: Path, *, below: bool = False) -> list[Path]:
    """
    The checkpoints in a folder, that of most updates first. What somebody has put beside them under a similar name
    (``rl_model_best_steps.zip``) is none.

    :param folder: the folder
    :param below: whether to look in the folders below it as well
    """
    paths = folder.rglob("rl_model_*_steps.zip") if below else folder.glob("rl_model_*_steps.zip")
    updates = {path: int(match[1]) for path in paths if (match := _NAME.fullmatch(path.name))}
    return sorted(updates, key=lambda path: -updates[path])
