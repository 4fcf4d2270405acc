"""Hostile files: none of them is executed."""

import base64
import bz2
import codecs
import contextlib
import cProfile
import gzip
import io
import json
import logging
import lzma
import os
import pathlib
import pickle
import pickletools
import shutil
import subprocess
import tarfile
import tempfile
import time
import timeit
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch as th
from stable_baselines3 import TD3
from stable_baselines3.common import logger as sb3_logger
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

from benchmarks.fault_campaigns.common import OURS, STOCK, Row, make_model, make_stock, row, saved
from benchmarks.fault_campaigns.damage import unzipped, zipped
from sb3_dmpo import DMPO
from sb3_dmpo.files.safe_zip import SETTINGS


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
    """
    Every payload in attributes that are pickled, in place of the weights, and as names in the settings: how many are
    executed. Ours are attacked as they are and without settings, as early versions wrote them.
    """
    rows = []
    for system, model, load in ((OURS, make_model("dmpo"), DMPO.load), (STOCK, make_stock(), TD3.load)):
        executed, trials = [], 0
        entries = unzipped(saved(model))
        forms = [entries] if SETTINGS not in entries else [entries, {k: v for k, v in entries.items() if k != SETTINGS}]
        for form in forms:
            places = ("learning_rate", "observation_space", "ep_info_buffer", "policy.pth", *({SETTINGS} & set(form)))
            for place in places:
                for name in executed_payloads(lambda file, load=load: load(file, device="cpu"), zipped(form), place):
                    trials += 1
                    executed += [name] if name is not None else []
        rows.append(row("hostile file", system, trials, trials - len(executed), f"{len(executed)} executed"))
    return rows


def executed_payloads(load: Callable[[io.BytesIO], Any], content: bytes, place: str) -> Iterator[str | None]:
    """Load every payload; yields the name of those that were executed, None for the others."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as null:
        marker = os.path.join(folder, "executed")
        for name, payload in payloads(marker).items():
            change = {"policy.pth": with_tensors, SETTINGS: with_settings}.get(place, partial(with_attribute, key=place))
            hostile = change(content, payload=payload)
            with contextlib.suppress(BaseException), warnings.catch_warnings(), contextlib.redirect_stdout(null):
                warnings.simplefilter("ignore")
                load(io.BytesIO(hostile))
            is_executed = os.path.lexists(marker)
            if is_executed:
                shutil.rmtree(marker) if os.path.isdir(marker) else os.unlink(marker)
            yield name if is_executed else None


def with_tensors(content: bytes, payload: bytes) -> bytes:
    """The zip with a payload in place of the pickle that describes the weights."""
    entries = unzipped(content)
    inner = unzipped(entries["policy.pth"])
    inner[next(name for name in inner if name.endswith("data.pkl"))] = payload
    return zipped(entries | {"policy.pth": zipped(inner)})


def with_settings(content: bytes, payload: bytes) -> bytes:
    """The zip whose settings name what the payload calls, or hold the payload itself, wherever an object may stand."""
    entries = unzipped(content)
    settings = json.loads(entries[SETTINGS])
    called = next((argument for code, argument, _ in pickletools.genops(payload) if code.name == "GLOBAL"), None)
    texts = [argument for code, argument, _ in pickletools.genops(payload) if "UNICODE" in code.name]
    name = ":".join(called.split(" ") if called else texts[:2])
    serialized = base64.b64encode(payload).decode()
    settings["policy"] = name
    settings["attributes"] |= {
        "learning_rate": {"$type": "class", "name": name},
        "policy_kwargs": {"activation_fn": {"$type": "class", "name": name}},
        "observation_space": {":type:": name, ":serialized:": serialized},
        "train_freq": {"$type": name, "arguments": texts},
    }
    return zipped(entries | {SETTINGS: json.dumps(settings).encode()})


def with_attribute(content: bytes, key: str, payload: bytes) -> bytes:
    """The zip with a payload in place of an attribute."""
    entries = unzipped(content)
    attributes = json.loads(entries["data"])
    attributes[key] = {":type:": "x", ":serialized:": base64.b64encode(payload).decode()}
    return zipped(entries | {"data": json.dumps(attributes).encode()})
