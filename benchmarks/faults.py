"""
Fault campaigns: kills, damaged files, hostile files, wrong input; beside stock Stable-Baselines3 where it applies.

``python benchmarks/faults.py --campaign all`` runs them at full length and writes ``benchmarks/results/faults.csv``;
``--scale 0.01`` runs a hundredth of the trials.
"""

import argparse
import base64
import bz2
import codecs
import contextlib
import cProfile
import csv
import gzip
import hashlib
import io
import json
import logging
import lzma
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import timeit
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import TD3
from stable_baselines3.common import logger as sb3_logger
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper
from tqdm import tqdm

import sb3_dmpo
from sb3_dmpo import ALGOS, DMPO
from sb3_dmpo.cli.results import commit
from sb3_dmpo.cli.resume import newest_state
from sb3_dmpo.common.checked_load import DamagedFileError, UnsafeFileError
from sb3_dmpo.common.datasets import DatasetError, load_transitions
from sb3_dmpo.envs.spaces_only import SpacesOnlyEnv

try:
    from fault_campaigns.soak import soak
except ImportError:
    from benchmarks.fault_campaigns.soak import soak

OBSERVATION_SPACE, ACTION_SPACE = spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-2.0, 2.0, (2,))
OBSERVATIONS = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
Row = dict[str, Any]

# What the campaigns work on -------------------------------------------------------------------------------------


def make_buffer(n: int = 200) -> ReplayBuffer:
    """Random transitions in a buffer of SB3."""
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(n, OBSERVATION_SPACE, ACTION_SPACE, device="cpu")
    for step in range(n):
        arrays = rng.normal(size=(2, 1, 3)).astype(np.float32)
        action = rng.uniform(-1, 1, (1, 2)).astype(np.float32)
        buffer.add(*arrays, action, rng.normal(size=1), np.array([step % 10 == 9]), [{}])
    return buffer


SMALL: dict[str, dict[str, Any]] = {"decision_transformer": {"embed_dim": 8, "n_layers": 1, "context_length": 4}}


def make_model(name: str, data: Any = None, **arguments: Any) -> Any:
    """A small model of an algorithm, with the given dataset or none."""
    own = SMALL.get(name, {"policy_kwargs": {"net_arch": [8, 8]}})
    source = {"dataset": data} if data is not None else {"env": SpacesOnlyEnv(OBSERVATION_SPACE, ACTION_SPACE)}
    return ALGOS[name]("MlpPolicy", **source, batch_size=16, seed=0, device="cpu", **own, **arguments)


def make_stock() -> TD3:
    """A model of SB3, about as large."""
    env = _SteppableEnv(OBSERVATION_SPACE, ACTION_SPACE)
    return TD3("MlpPolicy", env, policy_kwargs={"net_arch": [8, 8]}, buffer_size=10, seed=0, device="cpu")


class _SteppableEnv(SpacesOnlyEnv):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # type: ignore[override]
        return np.zeros(3, np.float32), {}


def weights_hash(model: Any) -> str:
    """Hash of all weights and optimizer states that a zip holds."""
    digest = hashlib.sha256()
    for name, state in sorted(model.get_parameters().items()):
        buffer = io.BytesIO()
        tensors = [value for value in _flatten(state) if isinstance(value, th.Tensor)]
        for tensor in tensors:
            buffer.write(tensor.detach().cpu().numpy().tobytes())
        digest.update(name.encode() + buffer.getvalue())
    return digest.hexdigest()


def _flatten(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _flatten(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _flatten(item)
    else:
        yield value


def in_child(task: Callable[[], None]) -> int:
    """Run a task in a fork of this process; returns its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
                task()
            code = 0
        except BaseException:
            code = 1
        finally:
            os._exit(code)
    return pid


# Kills ----------------------------------------------------------------------------------------------------------


def kills_during_save(trials: int) -> list[Row]:
    """SIGKILL at a random moment while a model is saved over an older one again and again."""
    rows = []
    for system, model, load in (("sb3_dmpo", make_model("dmpo"), DMPO.load), ("stable-baselines3", make_stock(), TD3.load)):
        rng, readable = np.random.default_rng(0), 0
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.zip")
            model.save(path)
            started = time.monotonic()
            for _ in range(3):
                model.save(path)
            duration = (time.monotonic() - started) / 3
            for _ in tqdm(range(trials), desc=f"kills during save, {system}"):
                model.save(path)

                def save_for_ever(model: Any = model, path: str = path) -> None:
                    while True:
                        model.save(path)

                pid = in_child(save_for_ever)
                time.sleep(float(rng.uniform(0.2, 2.0)) * duration)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                with contextlib.suppress(Exception):
                    load(path, device="cpu").predict(OBSERVATIONS)
                    readable += 1
        rows.append(row("kill during save", system, trials, readable, "file readable afterwards"))
    return rows


def kills_during_training(trials: int, trials_others: int) -> list[Row]:
    """SIGKILL at a random moment of a training with checkpoints; resumed, it has to end with the same weights."""
    data, updates = load_transitions(make_buffer()), 60
    rows = []
    for name in ALGOS:
        rng, n, same = np.random.default_rng(0), trials if name == "dmpo" else trials_others, 0
        whole = make_model(name, data)
        started = time.monotonic()
        whole.learn(updates)
        expected, duration = weights_hash(whole), time.monotonic() - started
        for _ in tqdm(range(n), desc=f"kills during training, {name}"):
            with tempfile.TemporaryDirectory() as folder:

                def train(name: str = name, folder: str = folder) -> None:
                    make_model(name, data).learn(updates, callback=CheckpointCallback(5, folder))

                pid = in_child(train)
                time.sleep(float(rng.uniform(0.0, 2.0)) * duration)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                state = newest_state(Path(folder), "none")
                resumed = make_model(name, data) if state is None else ALGOS[name].load(state, dataset=data, device="cpu")
                resumed.learn(updates - resumed.num_timesteps, reset_num_timesteps=state is None)
                same += weights_hash(resumed) == expected
        rows.append(row("kill during training", "sb3_dmpo", n, same, f"{name}: weights and optimizers bit-identical"))
    return rows


# Damaged and hostile files --------------------------------------------------------------------------------------


def damaged_files(trials: int) -> list[Row]:
    """Bit flips and truncations of a zip: a clear error of ours, or a model with the same weights."""
    rows = []
    for system, model, load in (("sb3_dmpo", make_model("dmpo"), DMPO.load), ("stable-baselines3", make_stock(), TD3.load)):
        file = io.BytesIO()
        model.save(file)
        content, expected = file.getvalue(), weights_hash(model)
        for kind in ("bit flip", "truncation"):
            rng, counts = np.random.default_rng(0), {"clear error": 0, "same": 0, "foreign error": 0, "silent change": 0}
            for _ in tqdm(range(trials), desc=f"{kind}, {system}"):
                damaged = bytearray(content)
                if kind == "bit flip":
                    damaged[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
                else:
                    del damaged[int(rng.integers(len(content))) :]
                counts[_outcome_of_load(load, bytes(damaged), expected)] += 1
            detail = ", ".join(f"{count} {name}" for name, count in counts.items())
            rows.append(row(kind, system, trials, counts["clear error"] + counts["same"], detail))
    return rows


def _outcome_of_load(load: Callable[..., Any], content: bytes, expected: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = load(io.BytesIO(content), device="cpu")
            return "same" if weights_hash(model) == expected else "silent change"
    except (DamagedFileError, UnsafeFileError):
        return "clear error"
    except ValueError as error:
        # What SB3 says itself of a file that is no zip.
        return "clear error" if "wasn't a zip-file" in str(error) else "foreign error"
    except Exception:
        return "foreign error"


class Call:
    """Pickles to a call of anything."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], tuple(self.call[1:])


def payloads(path: str) -> dict[str, bytes]:
    """Pickles that leave a file or folder under a path when they are loaded, by what they use."""
    source = f"open({path!r}, 'w').close()"
    script = path + ".script.py"
    Path(script).write_text(source, encoding="utf-8")
    calls: dict[str, tuple[Any, ...]] = {
        "exec": (exec, source),
        "eval": (eval, f"open({path!r}, 'w')"),
        "open": (open, path, "w"),
        "os.open": (os.open, path, os.O_CREAT),
        "os.mkdir": (os.mkdir, path),
        "os.makedirs": (os.makedirs, path),
        "os.symlink": (os.symlink, os.devnull, path),
        "os.mkfifo": (os.mkfifo, path),
        "os.system": (os.system, f"touch {path}"),
        "os.spawnlp": (os.spawnlp, os.P_WAIT, "touch", "touch", path),
        "subprocess.call": (subprocess.call, ["touch", path]),
        "subprocess.run": (subprocess.run, ["touch", path]),
        "subprocess.check_output": (subprocess.check_output, ["touch", path]),
        "shutil.copyfile": (shutil.copyfile, os.devnull, path),
        "shutil.copytree": (shutil.copytree, os.path.dirname(pickle.__file__) + "/json", path),
        "pathlib.Path.touch": (pathlib.Path.touch, pathlib.Path(path)),
        "pathlib.Path.mkdir": (pathlib.Path.mkdir, pathlib.Path(path)),
        "numpy.savetxt": (np.savetxt, path, [1.0]),
        "torch.save": (th.save, {}, path),
        "logging.FileHandler": (logging.FileHandler, path),
        "zipfile.ZipFile": (zipfile.ZipFile, path, "w"),
        "tarfile.open": (tarfile.open, path, "w"),
        "gzip.open": (gzip.open, path, "w"),
        "bz2.open": (bz2.open, path, "w"),
        "lzma.open": (lzma.open, path, "w"),
        "codecs.open": (codecs.open, path, "w"),
        "timeit.timeit": (timeit.timeit, source, "pass", time.perf_counter, 1),
        "cProfile.run": (cProfile.run, source, os.devnull),
        "pickle.loads": (pickle.loads, pickle.dumps(Call(exec, source))),
        "cloudpickle.loads": (cloudpickle.loads, pickle.dumps(Call(exec, source))),
        "SB3 HumanOutputFormat": (sb3_logger.HumanOutputFormat, path),
        "SB3 JSONOutputFormat": (sb3_logger.JSONOutputFormat, path),
        "SB3 CSVOutputFormat": (sb3_logger.CSVOutputFormat, path),
        "SB3 logger.configure": (sb3_logger.configure, path, ["stdout"]),
    }
    result = {name: pickle.dumps(Call(*call)) for name, call in calls.items()}
    inner = pickle.dumps(pickle.dumps(Call(exec, source)), protocol=2)[2:-1]
    name = f"c{CloudpickleWrapper.__module__}\nCloudpickleWrapper\n".encode()
    result["SB3 CloudpickleWrapper.__setstate__"] = name + b")\x81" + inner + b"b."
    result["cloudpickled lambda in a reduce"] = cloudpickle.dumps(Call(_call_it, lambda: open(path, "w").close()))
    return result


def _call_it(function: Callable[[], None]) -> None:
    function()


def hostile_files() -> list[Row]:
    """Every payload in every attribute that is pickled: how many are executed."""
    rows = []
    for system, model, load in (("sb3_dmpo", make_model("dmpo"), DMPO.load), ("stable-baselines3", make_stock(), TD3.load)):
        file = io.BytesIO()
        model.save(file)
        executed, trials = [], 0
        for attribute in ("learning_rate", "observation_space", "ep_info_buffer"):
            with tempfile.TemporaryDirectory() as folder:
                marker = os.path.join(folder, "executed")
                for name, payload in payloads(marker).items():
                    trials += 1
                    hostile = _with_attribute(file.getvalue(), attribute, payload)
                    devnull = open(os.devnull, "w")
                    with contextlib.suppress(BaseException), warnings.catch_warnings(), contextlib.redirect_stdout(devnull):
                        warnings.simplefilter("ignore")
                        load(io.BytesIO(hostile), device="cpu")
                    if os.path.lexists(marker):
                        executed.append(name)
                        shutil.rmtree(marker) if os.path.isdir(marker) else os.unlink(marker)
        rows.append(row("hostile file", system, trials, trials - len(executed), f"{len(executed)} executed"))
    return rows


def _with_attribute(content: bytes, key: str, payload: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    attributes = json.loads(entries["data"])
    attributes[key] = {":type:": "x", ":serialized:": base64.b64encode(payload).decode()}
    entries["data"] = json.dumps(attributes).encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in entries.items():
            archive.writestr(name, value)
    return file.getvalue()


# Wrong input ----------------------------------------------------------------------------------------------------

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
}


def wrong_input() -> list[Row]:
    """Configuration and dataset faults: an error before training that names what is wrong, not a traceback from inside."""
    data, clear, details = load_transitions(make_buffer()), 0, []
    for name, arguments in CONFIGURATION_FAULTS:
        try:
            ALGOS[name]("MlpPolicy", dataset=data, **({"device": "cpu"} | arguments))
            details.append(f"{arguments} accepted")
        except (ValueError, TypeError, RuntimeError) as error:
            is_named = next(iter(arguments)).split("_")[0] in str(error).lower() or "cuda" in str(error).lower()
            clear += is_named
            if not is_named:
                details.append(f"{arguments}: {error}")
    for fault, build in DATASET_FAULTS.items():
        try:
            load_transitions(build(), cache=False)
            details.append(f"{fault} accepted")
        except DatasetError:
            clear += 1
        except Exception:
            details.append(f"{fault}: {traceback.format_exc().splitlines()[-1]}")
    trials = len(CONFIGURATION_FAULTS) + len(DATASET_FAULTS)
    return [row("wrong input", "sb3_dmpo", trials, clear, "; ".join(details) or "each a clear error before training")]


# Results --------------------------------------------------------------------------------------------------------


def row(campaign: str, system: str, trials: int, passed: int, detail: str) -> Row:
    """A line of the results."""
    return {"campaign": campaign, "system": system, "trials": trials, "passed": passed, "detail": detail}


def main() -> None:
    """Run campaigns and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    campaigns: dict[str, Callable[[float], list[Row]]] = {
        "save": lambda scale: kills_during_save(max(1, round(1000 * scale))),
        "train": lambda scale: kills_during_training(max(1, round(100 * scale)), max(1, round(20 * scale))),
        "damage": lambda scale: damaged_files(max(1, round(2000 * scale))),
        "hostile": lambda scale: hostile_files(),
        "input": lambda scale: wrong_input(),
        "soak": lambda scale: soak(3600.0 * scale),
    }
    parser.add_argument("--campaign", choices=["all", *campaigns], default="all")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full number of trials")
    parser.add_argument("--output", default="benchmarks/results/faults.csv")
    options = parser.parse_args()
    th.set_num_threads(1)
    chosen = campaigns if options.campaign == "all" else {options.campaign: campaigns[options.campaign]}
    command = f"python benchmarks/faults.py --campaign {options.campaign} --scale {options.scale:g}"
    common = {"command": command, "commit": commit(), "version": sb3_dmpo.__version__}
    rows = [result | common for campaign in chosen.values() for result in campaign(options.scale)]
    output = Path(options.output)
    kept = []
    if output.is_file():
        with output.open(newline="", encoding="utf-8") as file:
            names = {result["campaign"] for result in rows}
            kept = [result for result in csv.DictReader(file) if result["campaign"] not in names]
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])
    for result in rows:
        sys.stdout.write(
            f"{result['campaign']}, {result['system']}: {result['passed']}/{result['trials']} ({result['detail']})\n"
        )


if __name__ == "__main__":
    main()
