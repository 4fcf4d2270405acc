"""Checkpoints in a run's folder, as rl_zoo3 and Stable-Baselines3 name them."""

import re
from pathlib import Path

_NAME = re.compile(r"rl_model_([0-9]+)_steps\.zip")


def updates_of(checkpoint: Path) -> int:
    """
    Updates of a checkpoint, or steps in the environment, by its name.

    :param checkpoint: one of :func:`checkpoints`
    """
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None, checkpoint
    return int(match[1])


def checkpoints(folder: Path, *, below: bool = False) -> list[Path]:
    """
    The checkpoints in a folder, that of most updates first. What somebody has put beside them under a similar name
    (``rl_model_best_steps.zip``) is none.

    :param folder: the folder
    :param below: whether to look in the folders below it as well
    """
    paths = folder.rglob("rl_model_*_steps.zip") if below else folder.glob("rl_model_*_steps.zip")
    return sorted((path for path in paths if _NAME.fullmatch(path.name)), key=lambda path: -updates_of(path))
