"""Downloading Minari datasets so that either the whole dataset arrives or nothing is left behind."""

import contextlib
import difflib
import json
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from sb3_dmpo.data.transitions import DatasetError
from sb3_dmpo.files.temporary import temporary_folder

ROOT_VARIABLE = "MINARI_DATASETS_PATH"
REMOTE_VARIABLE = "MINARI_REMOTE"
#: Characters of an id that are compared and shown: what is longer is none
LONGEST_ID = 200
#: Minari reads its root from the environment, which belongs to the whole process
_environment_lock = threading.Lock()


@contextlib.contextmanager
def _minari_root(folder: Path) -> Iterator[None]:
    """Let Minari store its datasets in another folder for a while."""
    with _environment_lock:
        previous = os.environ.get(ROOT_VARIABLE)
        os.environ[ROOT_VARIABLE] = str(folder)
        try:
            yield
        finally:
            if previous is None:
                del os.environ[ROOT_VARIABLE]
            else:
                os.environ[ROOT_VARIABLE] = previous


def near_ids(dataset_id: str, known: Iterable[str]) -> list[str]:
    """
    Up to five ids near to one that is not known: whatever the case, and first of all the same dataset in other namespaces.

    :param dataset_id: what was asked for
    :param known: the ids that there are
    """
    wanted = dataset_id.lower()[:LONGEST_ID]
    by_lower_case = {name.lower(): name for name in known}

    def without_namespace(name: str) -> str:
        return name.partition("/")[2] or name

    def without_version(name: str) -> str:
        return re.sub(r"-v\d+$", "", name)

    tail = without_version(without_namespace(wanted))
    same = [name for name in by_lower_case if without_version(name).endswith(tail) and tail]
    same.sort(key=lambda name: difflib.SequenceMatcher(None, wanted, name).ratio(), reverse=True)
    near = difflib.get_close_matches(wanted, by_lower_case, n=5, cutoff=0.5)
    return [by_lower_case[name] for name in dict.fromkeys([*same, *near])][:5]


def local_dataset_ids(root: Path) -> list[str]:
    """
    Ids of the datasets below a Minari root, sorted; each is the path of its folder.

    :param root: folder, e.g. ``~/.minari/datasets``
    """
    found = []
    for folder, subfolders, _ in os.walk(root):
        if "data" in subfolders and os.path.isfile(os.path.join(folder, "data", "metadata.json")):
            found.append(Path(folder).relative_to(root).as_posix())
            subfolders.clear()
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
    return sorted(found)


def _check_whole(staging: Path) -> None:
    """Open every HDF5 file that was announced: one that is cut short does not open."""
    import h5py

    for folder in local_dataset_ids(staging):
        metadata = json.loads((staging / folder / "data" / "metadata.json").read_text(encoding="utf-8"))
        if metadata.get("data_format", "hdf5") == "hdf5":
            h5py.File(staging / folder / "data" / "main_data.hdf5", "r").close()


def _move_into_place(staging: Path, root: Path, dataset_id: str) -> None:
    """
    Move what was downloaded and is not there yet; the requested dataset last, each in one rename.

    Parts of a combined dataset come along as datasets of their own.
    """
    for metadata in staging.rglob("namespace_metadata.json"):
        target = root / metadata.relative_to(staging)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(metadata, target)
    for folder in sorted(local_dataset_ids(staging), key=lambda name: name == dataset_id):
        target = root / folder
        if not (target / "data").exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / folder, target)


def _reason(err: BaseException) -> str:
    """First line of an error, with its kind unless it is a plain sentence of Minari."""
    text = str(err).strip().splitlines()
    line = text[0][:300].rstrip(".") if text else ""
    if isinstance(err, ValueError):
        return line
    return f"{type(err).__name__}: {line}" if line else type(err).__name__


def download_minari(dataset_id: str, root: Path) -> None:
    """
    Fetch a dataset from Minari's remote (``MINARI_REMOTE``) into a local root.

    Everything is downloaded into a hidden folder beside the other datasets first and then moved into place, so that a
    failure or a kill leaves no half dataset.

    :param dataset_id: Minari id
    :param root: Minari root
    :raises DatasetError: if the dataset cannot be had, in one sentence
    """
    import minari
    from minari.storage import remotes

    remote = os.environ.get(REMOTE_VARIABLE) or getattr(remotes, "DEFAULT_REMOTE", "Minari's remote")
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Hidden, so that Minari does not take it for a namespace
        with temporary_folder(root / "download") as staging:
            # Minari reports on stdout, which belongs to the program that uses this package
            with _minari_root(staging), contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                minari.download_dataset(dataset_id)
            if dataset_id not in local_dataset_ids(staging):
                raise ValueError("the remote did not deliver it")
            _check_whole(staging)
            _move_into_place(staging, root, dataset_id)
    # Remotes raise errors of many libraries (requests, httpx, huggingface_hub, google.cloud), which none of us imports
    except Exception as err:
        raise DatasetError(
            f"Dataset {dataset_id!r} could not be downloaded from {remote} to {root} ({_reason(err)}): check the id, the "
            f"network connection and {REMOTE_VARIABLE}, or copy the dataset to {root / dataset_id}."
        ) from None
