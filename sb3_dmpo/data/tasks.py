"""What is known about the tasks that people have data of: one table for settings, conversion, scores and labels."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sb3_dmpo.data.transitions import DatasetSource


class Task(NamedTuple):
    """
    A task by the name that D4RL gives it.

    :param family: the tasks of a family share settings
    :param environments: pattern of the ids of its environments; sparse and dense variants of a reward are others
    :param reference: lowest and highest reference score. D4RL measured them on its own environments and with its own
        versions of the simulator
    :param env_id: the environment nearest to the one that D4RL's data were recorded in
    :param time_limit: D4RL's, where it is not that of ``env_id``
    """

    family: str
    environments: str = ""
    reference: tuple[float, float] | None = None
    env_id: str | None = None
    time_limit: int | None = None


TASKS: dict[str, Task] = {
    "hopper": Task("mujoco", r"Hopper-v\d+", (-20.272305, 3234.3), "Hopper-v4"),
    "halfcheetah": Task("mujoco", r"HalfCheetah-v\d+", (-280.178953, 12135.0), "HalfCheetah-v4"),
    "walker2d": Task("mujoco", r"Walker2d-v\d+", (1.629008, 4592.3), "Walker2d-v4"),
    "ant": Task("mujoco", env_id="Ant-v4"),
    **dict.fromkeys(("humanoid", "humanoidstandup", "swimmer", "reacher", "pusher"), Task("mujoco")),
    "pen": Task("adroit", r"AdroitHandPen-v\d+", (96.262799, 3076.8331017826877), "AdroitHandPen-v1", 100),
    "hammer": Task("adroit", r"AdroitHandHammer-v\d+", (-274.856578, 12794.134825156867), "AdroitHandHammer-v1"),
    "door": Task("adroit", r"AdroitHandDoor-v\d+", (-56.512833, 2880.5693087298737), "AdroitHandDoor-v1"),
    "relocate": Task("adroit", r"AdroitHandRelocate-v\d+", (-6.425911, 4233.877797728884), "AdroitHandRelocate-v1"),
    "antmaze": Task("antmaze", r"AntMaze_(?!.*Dense).*-v\d+", (0.0, 1.0)),
    **dict.fromkeys(("pointmaze", "maze2d"), Task("pointmaze")),
    "kitchen": Task("kitchen"),
    "two-goals": Task("two-goals", r"TwoGoals-v\d+", (0.0, 1.0)),
}

#: What the data of a namespace are. Only D4RL's own data give scores that compare with published ones.
_DATA_OF_NAMESPACE = {
    "D4RL": "Minari port of D4RL",
    "mujoco": "Minari MuJoCo, not D4RL",
    "sb3_dmpo": "toy",
    "zoo": "stand-in, not D4RL",
}
#: Names of the files of D4RL's server whose task is known, and of OGBench's files and folders.
_D4RL_FILE = re.compile(r"(.*-v\d.*|Ant_maze_.*)\.hdf5", re.IGNORECASE)
_OGBENCH_FILE = re.compile(r".*-(navigate|stitch|explore|play|noisy)(-100m)?-v\d+(-val)?(\.npz)?", re.IGNORECASE)

#: How D4RL's first files of Adroit call what the data are.
_QUALITIES = {"v0-demos-clipped": "human", "demos-v0-bc-combined": "cloned", "v0-expert-clipped": "expert"}


def task_and_quality(dataset: str) -> tuple[str, str]:
    """
    What a dataset is by its name, in lower case: ``pen`` and ``human`` for ``D4RL/pen/human-v2`` and for
    ``pen-v0_demos_clipped.hdf5``, ``hopper`` and ``medium-replay`` for ``hopper_medium_replay-v2.hdf5``.

    :param dataset: Minari id, or path of a D4RL file by the name of its task or by the one that D4RL's server gives it
    """
    parts = re.sub(r"(-v\d+)?(\.\w+)?$", "", dataset).lower().split("/")
    if len(parts) > 1 and parts[-2] in TASKS:
        return parts[-2], parts[-1]
    task, _, quality = parts[-1].replace("_", "-").partition("-")
    return task, _QUALITIES.get(quality, quality)


def entry_keys(dataset: str) -> list[str]:
    """
    Keys under which the settings for a dataset are looked up, the most specific first: its id, task and quality, family
    and quality, task, family, ``default``. For ``D4RL/pen/human-v2``: that id, ``pen-human``, ``adroit-human``, ``pen``,
    ``adroit``, ``default``.

    :param dataset: Minari id, or path of a D4RL file (``hopper-medium-v2.hdf5``)
    """
    task, quality = task_and_quality(dataset)
    keys = [dataset]
    if task in TASKS:
        family = TASKS[task].family
        keys += [f"{task}-{quality}", f"{family}-{quality}", task, family]
    return list(dict.fromkeys([*keys, "default"]))


def describe_data(dataset: str) -> str:
    """
    What a dataset is by its name, so that nobody takes the score on one for the score on another.

    :param dataset: Minari id or path of a file
    """
    if not re.search(r"\.\w+$|/$", dataset):
        return _DATA_OF_NAMESPACE.get(dataset.split("/")[0], "own data")
    name = dataset.rstrip("/").rpartition("/")[2]
    if _D4RL_FILE.fullmatch(name) and task_and_quality(name)[0] in TASKS:
        return "D4RL file"
    return "OGBench file" if _OGBENCH_FILE.fullmatch(name) else "own data"


class ReferenceScores(NamedTuple):
    """
    What 0 and 100 mean in a normalised score.

    :param min: mean return that counts as 0
    :param max: mean return that counts as 100
    :param source: where the two come from, in words
    """

    min: float
    max: float
    source: str

    def normalize(self, returns: ArrayLike) -> NDArray[np.float64]:
        """
        Scores between 0 and 100 for returns between ``min`` and ``max``, same shape.

        :param returns: undiscounted returns of episodes
        """
        return 100.0 * (np.asarray(returns, np.float64) - self.min) / (self.max - self.min)


def _metadata(dataset: Any) -> Mapping[str, Any]:
    """A dataset's metadata, empty if it is not there: scores are a courtesy that must not end an evaluation."""
    if isinstance(dataset, DatasetSource):
        return dataset.metadata
    from minari.dataset.minari_storage import MinariStorage
    from minari.storage import get_dataset_path

    path = get_dataset_path(dataset) / "data" if isinstance(dataset, str) else dataset.storage.data_path
    try:
        return dict(MinariStorage.read_raw_metadata(path))
    except (OSError, ValueError):
        return {}


def _env_ids(metadata: Mapping[str, Any]) -> list[str]:
    specs = [metadata[key] for key in ("eval_env_spec", "env_spec") if key in metadata]
    return [match[1] for spec in specs if (match := re.search(r'"id":\s*"([^"]+)"', str(spec)))]


def reference_scores(dataset: Any = None, env_id: str | None = None) -> ReferenceScores | None:
    """
    Reference scores: those in the dataset's metadata, or else D4RL's for the family of its environment, or of ``env_id``.

    :param dataset: Minari id (read if it is local, never downloaded), ``MinariDataset`` or what ``open_dataset`` gave; an
        environment id is understood too
    :param env_id: id of the environment
    :return: the scores and where they come from, or None if nothing is known
    """
    names = []
    if dataset is not None:
        metadata = _metadata(dataset)
        low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
        if isinstance(low, int | float) and isinstance(high, int | float) and math.isfinite(high - low) and high > low:
            return ReferenceScores(float(low), float(high), f"the metadata of {metadata.get('dataset_id', dataset)}")
        names = _env_ids(metadata) + ([dataset] if isinstance(dataset, str) else [])
    for name in [*names, env_id or ""]:
        for task, known in TASKS.items():
            if known.reference is not None and re.fullmatch(known.environments, name.rpartition(":")[2]):
                source = "the definition of TwoGoals" if task == "two-goals" else f"D4RL's table for {task}"
                return ReferenceScores(*known.reference, source)
    return None
