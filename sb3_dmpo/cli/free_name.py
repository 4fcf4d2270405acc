"""Names of files that nobody has asked for by name: they replace nothing."""

from pathlib import Path


def free_name(path: Path) -> Path:
    """
    A name that is not taken: ``dmpo.mp4``, ``dmpo-2.mp4``, ...

    :param path: the name that is wanted
    """
    name, number = path, 1
    while name.exists():
        number += 1
        name = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return name
