"""What a path leads to, by its content: datasets of the formats that are read, and words for everything else."""

import os
import zipfile
from pathlib import Path
from typing import Literal

from sb3_dmpo.data.faults import readable_or_fault, reading_fault
from sb3_dmpo.data.npz import SUFFIX as NPZ_SUFFIX
from sb3_dmpo.data.npz import shards_of
from sb3_dmpo.data.transitions import DatasetError

Format = Literal["hdf5", "npz", "pickle"]
_FORMATS: dict[str, Format] = {".hdf5": "hdf5", ".h5": "hdf5", NPZ_SUFFIX: "npz", ".pkl": "pickle", ".pickle": "pickle"}
#: Endings of the files that are datasets.
FILE_SUFFIXES = tuple(_FORMATS)
_READ = (
    "Datasets are files of D4RL or d3rlpy (*.hdf5, *.h5), of OGBench (*.npz, or a folder of them) and pickled replay buffers "
    "(*.pkl)"
)
#: What is in the folder of a Minari dataset, or in the folder ``data`` in it.
_MINARI_FILES = ("metadata.json", "data/metadata.json")
#: How files begin that are sometimes taken for datasets, what they are, and what to do.
_BEGINNINGS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "`git lfs pull` fetches the file"),
    (
        b"\x93NUMPY",
        "a single array (.npy)",
        "Pass arrays as dataset=dict(observations=..., ...), or write them with numpy.savez",
    ),
    (b"PAR1", "a Parquet file", "Pass its columns as arrays: dataset=dict(observations=..., ...)"),
    (b"ARROW1", "an Arrow file", "Pass its columns as arrays: dataset=dict(observations=..., ...)"),
    (b"\x1f\x8b", "compressed with gzip", "Unpack it with gunzip"),
    (b"<!DOCTYPE html", "a web page: the download has failed", "Download it again"),
    (b"<html", "a web page: the download has failed", "Download it again"),
)


def is_path(dataset: str) -> bool:
    """
    Whether a string is written like a path and cannot be the id of a Minari dataset.

    :param dataset: what was given as a dataset
    """
    return dataset.lower().endswith(FILE_SUFFIXES) or dataset.startswith(("~", ".", os.sep)) or dataset.endswith(("/", os.sep))


def format_of(path: Path, label: str) -> Format:
    """
    Format of a file or a folder of shards.

    :param path: the path; where nothing is, its ending decides
    :param label: how messages name it
    :raises DatasetError: it is something else, and what
    """
    readable_or_fault(label, path)
    by_name = _FORMATS.get(path.suffix.lower())
    if path.is_dir():
        return _format_of_folder(path, label)
    if not path.exists():
        if by_name is None or path.is_symlink():
            raise DatasetError(f"{label} does not exist: check the path.")
        return by_name
    if not path.is_file():
        raise DatasetError.at(label, "it is no regular file", _READ)
    try:
        with open(path, "rb") as file:
            start = file.read(512)
        if start.startswith(b"PK"):
            return _format_of_zip(path, label)
    except (OSError, zipfile.BadZipFile) as err:
        raise reading_fault(label, "it cannot be opened", err, path, "Download or write the file again") from None
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if not start:
        raise DatasetError.at(label, "it is empty", "Download or write the file again")
    for beginning, what, how in _BEGINNINGS:
        if start.startswith(beginning):
            raise DatasetError.at(label, f"it is {what}", how)
    if by_name == "pickle" or (by_name == "hdf5" and _may_be_hdf5(path)):
        return by_name
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        how = "If it is a replay buffer of Stable-Baselines3, let its name end in .pkl; nothing else is unpickled"
        raise DatasetError.at(label, "it is a pickle", how)
    is_text = all(byte >= 32 or byte in b"\t\r\n" for byte in start)
    raise DatasetError.at(label, f"it is {'a text file' if is_text else 'no file of a known format'}", _READ)


def _may_be_hdf5(path: Path) -> bool:
    """HDF5 may begin after a block of somebody else's."""
    import h5py

    return bool(h5py.is_hdf5(path))


def _format_of_zip(path: Path, label: str) -> Format:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if {"fingerprint.npy", "newest.npy", "oldest.npy", "transform.npy"} <= set(names):
        what = "it holds transitions that learn_online has collected beside a dataset, as save_replay_buffer writes them"
        how = "Give it to load_replay_buffer of a model with that dataset; for data of an agent there is `sb3_dmpo collect`"
        raise DatasetError.at(label, what, how)
    if any(name.endswith(".npy") for name in names):
        return "npz"
    if "data" in names and any(name.endswith(".pth") for name in names):
        raise DatasetError.at(
            label, "it is the zip of a model", "Load it with the load method of its class; a dataset is a file of its own"
        )
    raise DatasetError.at(label, "it is a zip file without arrays", "Unpack it and name the file inside")


def is_minari_folder(path: Path) -> bool:
    """
    Whether a folder is that of a Minari dataset, or the folder ``data`` in it.

    :param path: a folder
    """
    return any(os.path.isfile(path / name) for name in _MINARI_FILES)


def _format_of_folder(path: Path, label: str) -> Format:
    for name in _MINARI_FILES:
        readable_or_fault(label, path / name)
    if is_minari_folder(path):
        folder = (path if (path / "data" / "metadata.json").is_file() else path.parent).resolve()
        how = (
            "Pass its id, which is its path below the Minari root (MINARI_DATASETS_PATH, or ~/.minari/datasets), "
            f"e.g. {'/'.join(folder.parts[-2:])}"
        )
        raise DatasetError.at(label, "it is the folder of a Minari dataset", how)
    try:
        if shards_of(path):
            return "npz"
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as err:
        raise reading_fault(label, "it cannot be opened", err, path, "Check the path") from None
    found = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "") if names else "nothing"
    raise DatasetError.at(label, f"it is a folder without a dataset; it holds {found}", _READ)
