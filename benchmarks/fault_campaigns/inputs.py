"""Wrong input: an error before training that names what is wrong, not a traceback from inside."""

import contextlib
import os
import pickle
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from benchmarks.fault_campaigns.common import ACTION_SPACE, OBSERVATION_SPACE, OURS, STOCK, Row, make_buffer, make_stock, row
from benchmarks.fault_campaigns.hdf5 import HDF5_FAULTS
from benchmarks.fault_campaigns.hostile import Call
from sb3_dmpo import ALGOS
from sb3_dmpo.data import DatasetError, load_transitions

CONFIGURATION_FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("dmpo", {"gamma": 1.5}),
    ("dmpo", {"gamma": -0.1}),
    ("dmpo", {"gamma": float("nan")}),
    ("dmpo", {"tau": 0.0}),
    ("dmpo", {"tau": 2.0}),
    ("dmpo", {"batch_size": 0}),
    ("dmpo", {"batch_size": -3}),
    ("dmpo", {"batch_size": 2.5}),
    ("dmpo", {"policy_delay": 0}),
    ("dmpo", {"n_components": 1}),
    ("dmpo", {"n_components": 2.0}),
    ("dmpo", {"learning_rate": -1.0}),
    ("dmpo", {"learning_rate": float("inf")}),
    ("dmpo", {"learning_rate": "fast"}),
    ("dmpo", {"gumbel_temperature": 0.0}),
    ("dmpo", {"kl_coef": -1.0}),
    ("dmpo", {"advantage_scale": float("nan")}),
    ("dmpo", {"min_q_weight": 2.0}),
    ("dmpo", {"value_bounds": (1.0, 1.0)}),
    ("dmpo", {"n_component": 4}),
    ("dmpo", {"device": "cuda:9"}),
    ("infodmpo", {"info_learning_rate": -1.0}),
    ("iql", {"expectile": 0.0}),
    ("iql", {"expectile": 1.0}),
    ("td3_bc", {"alpha": 0.0}),
    ("cql", {"n_action_samples": 0}),
]


def _broken(**changes: Callable[[np.ndarray], Any]) -> Callable[[], Any]:
    """A buffer of SB3 with some of its arrays changed."""

    def build() -> Any:
        buffer = make_buffer()
        for name, change in changes.items():
            setattr(buffer, name, change(getattr(buffer, name)))
        return buffer

    return build


def _with(value: float, *index: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[index] = value
        return array

    return change


def _file(name: str, content: bytes) -> Callable[[], Any]:
    def build() -> Any:
        path = Path(tempfile.mkdtemp()) / name
        path.write_bytes(content)
        return path

    return build


DATASET_FAULTS: dict[str, Callable[[], Any]] = {
    "NaN observation": _broken(observations=_with(np.nan, 7, 0, 1)),
    "infinite observation": _broken(observations=_with(np.inf, 0, 0, 0)),
    "NaN next observation": _broken(next_observations=_with(np.nan, 9, 0, 0)),
    "NaN action": _broken(actions=_with(np.nan, 3, 0, 0)),
    "action outside the space": _broken(actions=_with(3.0, 3, 0, 0)),
    "NaN reward": _broken(rewards=_with(np.nan, 5, 0)),
    "infinite reward": _broken(rewards=_with(-np.inf, 5, 0)),
    "empty buffer": lambda: ReplayBuffer(5, OBSERVATION_SPACE, ACTION_SPACE, device="cpu"),
    "discrete actions": lambda: ReplayBuffer(5, OBSERVATION_SPACE, spaces.Discrete(2), device="cpu"),
    "unbounded actions": lambda: ReplayBuffer(5, OBSERVATION_SPACE, spaces.Box(-np.inf, np.inf, (2,)), device="cpu"),
    "unknown id": lambda: "no/such/dataset-v0",
    "id without version": lambda: "no/such/dataset",
    "no dataset at all": lambda: 3,
    "missing HDF5 file": lambda: "/nowhere/data.hdf5",
    "missing pickle": lambda: "/nowhere/buffer.pkl",
    "HDF5 of garbage": _file("data.hdf5", b"garbage" * 100),
    "empty HDF5": _file("data.hdf5", b""),
    "pickle of garbage": _file("buffer.pkl", b"garbage"),
    "pickle of something else": _file("buffer.pkl", pickle.dumps([1, 2])),
    "pickle that runs code": _file("buffer.pkl", pickle.dumps(Call(os.getcwd))),
    "wrong width of next observations": _broken(next_observations=lambda array: array[..., :2]),
    **HDF5_FAULTS,
}


#: What SB3's TD3 has too.
_SHARED = ("gamma", "tau", "batch_size", "policy_delay", "learning_rate", "device")


def wrong_input() -> list[Row]:
    """Configuration and dataset faults: is each an error before training?"""
    rows = []
    with _restored_environment("MINARI_DATASETS_PATH"):
        problems = [*_accepted_configurations(), *_accepted_datasets()]
    trials = len(CONFIGURATION_FAULTS) + len(DATASET_FAULTS)
    detail = "; ".join(problems) or "each a clear error before training"
    rows.append(row("wrong input", OURS, trials, trials - len(problems), detail))
    faults = [arguments for _, arguments in CONFIGURATION_FAULTS if next(iter(arguments)) in _SHARED]
    accepted = [str(arguments) for arguments in faults if _is_accepted_by_stock(arguments)]
    detail = f"settings that both have; TD3 accepts {', '.join(accepted)}"
    rows.append(row("wrong input", STOCK, len(faults), len(faults) - len(accepted), detail))
    return rows


@contextlib.contextmanager
def _restored_environment(name: str) -> Iterator[None]:
    value = os.environ.get(name)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def _accepted_configurations() -> Iterator[str]:
    data = load_transitions(make_buffer())
    for name, arguments in CONFIGURATION_FAULTS:
        try:
            ALGOS[name]("MlpPolicy", dataset=data, **({"device": "cpu"} | arguments))
            yield f"{arguments} accepted"
        except (ValueError, TypeError, RuntimeError) as error:
            if next(iter(arguments)) not in str(error):
                yield f"{arguments}: {error}"


def _accepted_datasets() -> Iterator[str]:
    for fault, build in DATASET_FAULTS.items():
        try:
            load_transitions(build(), cache=False)
            yield f"{fault} accepted"
        except DatasetError as error:
            if "larger than memory" in fault and not re.search(r"needs .*iB .* only .*iB are left", str(error)):
                yield f"{fault}: {error}"
        except Exception:
            yield f"{fault}: {traceback.format_exc().splitlines()[-1]}"


def _is_accepted_by_stock(arguments: dict[str, Any]) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make_stock(**arguments)
    except Exception:
        return False
    return True
