"""
Hostile files that execute nothing: what nobody has declared, what grows, what takes time, what fails later on; and good files
that several threads load.
"""

import base64
import io
import json
import os
import pickle
import resource
import signal
import struct
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch as th
from stable_baselines3 import TD3
from stable_baselines3.common.utils import ConstantSchedule

from benchmarks.fault_campaigns.common import OURS, STOCK, Row, make_buffer, make_model, make_stock, row, saved
from benchmarks.fault_campaigns.damage import unzipped, zipped
from sb3_dmpo import DMPO
from sb3_dmpo.data import DatasetError, load_transitions
from sb3_dmpo.files.plain_text import FileError
from sb3_dmpo.files.safe_zip import SETTINGS

Entries = dict[str, bytes]
#: What a load may take: so many times the size of the file and so many bytes, and seconds of the processor.
_FACTOR, _BYTES, _SECONDS, _HANG = 30, 64 * 2**20, 1.0, 10


@dataclass(frozen=True)
class _System:
    """
    Whose loader is attacked.

    :param name: for the results
    :param model: a model of it
    :param content: its zip
    :param optimizer: name of an entry with an optimizer
    :param refusal: what its own errors are
    """

    name: str
    model: Any
    content: bytes
    optimizer: str
    refusal: type[Exception]

    def files(self) -> dict[str, dict[str, bytes]]:
        """Hostile files by the kind of harm and by name."""
        changes = _CHANGES | {"fails later": _CHANGES["fails later"] | _of_optimizer(self.optimizer)}
        return {
            kind: {name: _changed(self.content, change) for name, change in named.items()} for kind, named in changes.items()
        }


def _torch_file(value: Any) -> bytes:
    file = io.BytesIO()
    th.save(value, file)
    return file.getvalue()


def _changed(content: bytes, change: Callable[[Entries], bytes | None]) -> bytes:
    entries = unzipped(content)
    result = change(entries)
    return zipped(entries) if result is None else result


def _put(**changes: bytes) -> Callable[[Entries], None]:
    return lambda entries: entries.update(changes)


def _inner(change: Callable[[Entries], Any], compression: int = zipfile.ZIP_STORED) -> Callable[[Entries], None]:
    def rewrite(entries: Entries) -> None:
        inner = unzipped(entries["policy.pth"])
        change(inner)
        entries["policy.pth"] = _packed(inner, compression)

    return rewrite


def _packed(entries: Mapping[str, bytes], compression: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, value in entries.items():
            archive.writestr(name, value)
    return file.getvalue()


def _twin(inner: Entries) -> None:
    """The pickle once more in another case, which PyTorch's reader takes for the same; with other numbers."""
    name = next(name for name in inner if name.endswith("data.pkl"))
    bomb = unzipped(_torch_file({"a": th.zeros(1, dtype=th.float64).expand(5 * 10**7)}))
    inner[name.replace("data.pkl", "DATA.PKL")] = next(value for key, value in bomb.items() if key.endswith("data.pkl"))


def _weights(value: Callable[[dict[str, Any]], Any]) -> Callable[[Entries], None]:
    def rewrite(entries: Entries) -> None:
        weights = th.load(io.BytesIO(entries["policy.pth"]))
        value(weights)
        entries["policy.pth"] = _torch_file(weights)

    return rewrite


def _repeated(weights: dict[str, Any]) -> None:
    name = next(iter(weights))
    weights[name] = th.zeros(1, dtype=th.float64).expand(5 * 10**7)


def _attributes(**values: Any) -> Callable[[Entries], None]:
    """Attributes as Stable-Baselines3 keeps them, and as early versions did."""

    def rewrite(entries: Entries) -> None:
        entries.pop(SETTINGS, None)
        entries["data"] = json.dumps(json.loads(entries["data"]) | values).encode()

    return rewrite


def _pickled(payload: bytes) -> dict[str, str]:
    return {":type:": "x", ":serialized:": base64.b64encode(b"\x80\x04" + payload + b".").decode()}


def _doubled(levels: int) -> bytes:
    """A dict whose key is a tuple of the same tuple twice, and so on: looking it up takes 2^levels steps."""
    return b"}K\x01\x85\x94" + b"".join(b"h" + bytes([level]) + b"\x86\x94" for level in range(levels)) + b"K\x01s"


def _colliding(n: int) -> bytes:
    numbers = (((2**61 - 1) * (i + 1)).to_bytes(16, "little") for i in range(n))
    return b"}(" + b"".join(b"\x8a\x10" + number + b"N" for number in numbers) + b"u"


def _text(content: bytes) -> Callable[[Entries], None]:
    def rewrite(entries: Entries) -> None:
        entries[SETTINGS if SETTINGS in entries else "data"] = content

    return rewrite


def _of_optimizer(name: str) -> dict[str, Callable[[Entries], None]]:
    """Changes of an optimizer's state."""

    def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Entries], None]:
        def rewrite(entries: Entries) -> None:
            state = th.load(io.BytesIO(entries[name]))
            if not state["state"]:
                # That of a model that has not learned.
                shapes = [
                    value.shape for key, value in th.load(io.BytesIO(entries["policy.pth"])).items() if "target" not in key
                ]
                one = {"step": th.tensor(1.0), "exp_avg": th.zeros(shapes[0]), "exp_avg_sq": th.zeros(shapes[0])}
                state["state"][0] = one
            change(state)
            entries[name] = _torch_file(state)

        return rewrite

    def first(**values: Any) -> Callable[[Entries], None]:
        return changed(lambda state: state["state"][0].update(values))

    def option(**values: Any) -> Callable[[Entries], None]:
        return changed(lambda state: state["param_groups"][0].update(values))

    return {
        "state of another shape": first(exp_avg=th.zeros(3, 2)),
        "state of another kind": first(exp_avg="text"),
        "steps below zero": first(step=th.tensor(-1.0)),
        "state that repeats a number": first(exp_avg=th.zeros(1, dtype=th.float64).expand(5 * 10**7)),
        "option that is unknown": option(hook=1),
        "betas of text": option(betas=("a", "b")),
        "betas of 1": option(betas=(1.0, 1.0)),
        "rate of text": option(lr="fast"),
        "state of nobody": changed(lambda state: state["state"].update({10**6: {}})),
    }


_ONE = th.full((1,), 7.0)
_CHANGES: dict[str, dict[str, Callable[[Entries], bytes | None]]] = {
    "nobody declared it": {
        **{
            f"{file} sets {key}": _put(**{file: _torch_file({key: _ONE})})
            for key in ("policy.actor.__class__", "__class__", "policy.actor", "policy.optimizer.__class__", "gamma")
            for file in ("pytorch_variables.pth", "tensors.pth")
        },
        "a pickle": _put(**{"replay_buffer.pkl": b"\x80\x04N."}),
        "a path": _put(**{"../../evil.txt": b""}),
        "escapes": _put(**{"x\x1b[2J.txt": b""}),
        "weights of a path": _put(**{"policy.actor.pth": _torch_file({"a": _ONE})}),
        "code beside tensors": _inner(lambda inner: inner.update({"archive/code/a.py": b""})),
        "numbers of nobody": _inner(lambda inner: inner.update({"archive/data/999": b"\0" * 4})),
    },
    "it grows": {
        "a record in another case": _inner(_twin),
        "records packed twice": lambda entries: (
            _weights(lambda weights: weights.update(more=th.zeros(2 * 10**7)))(entries),
            _inner(lambda inner: None, zipfile.ZIP_DEFLATED)(entries),
            _packed(entries, zipfile.ZIP_DEFLATED),
        )[-1],
        "weights of one storage": _weights(
            lambda weights: weights.update(dict.fromkeys(map(str, range(4000)), th.zeros(10**5)))
        ),
        "a number that is repeated": _weights(_repeated),
        "spaces before settings": lambda entries: _packed(entries | {"data": b" " * 2 * 10**8 + b"{}"}, zipfile.ZIP_DEFLATED),
        "another compression": lambda entries: _packed(entries, zipfile.ZIP_LZMA),
        "30,000 entries": lambda entries: zipped(entries | {f"a{i}.txt": b"" for i in range(30_000)}),
    },
    "it takes time": {
        **{
            f"{name} in {key}": _attributes(**{key: _pickled(payload)})
            for key in ("ep_info_buffer", "policy_kwargs")
            for name, payload in {
                "a key that takes for ever": _doubled(60),
                "keys that collide": _colliding(20_000),
                "operations without an end": b"N0" * 15 * 10**5 + b"N",
                "a long number": b"\x8b" + struct.pack("<i", 10**5) + b"\x7f" * 10**5,
            }.items()
        },
        "a number of many digits": _text(b'{"a": ' + b"9" * 10**6 + b"}"),
        "JSON nested deep": _text(b"[" * 10**6),
        "JSON of many entries": _text(b"[" + b"[]," * 10**6 + b"[]]"),
    },
    "fails later": {
        f"{key} is {value!r:.20}": _attributes(**{key: value})
        for key, value in {
            "_n_updates": "many",
            "num_timesteps": [1],
            "ep_info_buffer": 5,
            "gamma": "high",
            "batch_size": None,
            "_last_obs": "here",
            "_stats_window_size": 1.5,
            "tensorboard_log": 3,
            "learning_rate": {"a": 1},
            "policy_kwargs": {"net_arch": ["8"]},
        }.items()
    },
}


def hostile_kinds(loads: int) -> list[Row]:
    """
    Every kind through ``load`` and, unless it lies in the attributes, ``set_parameters``, each in a process of its own; and
    good files in four threads.

    :param loads: number of loads in threads
    """
    trained = make_model("dmpo", make_buffer())
    trained.learn(2)
    stock = make_stock()
    systems = (
        _System(OURS, trained, saved(trained), "critic_optimizer.pth", FileError),
        _System(STOCK, stock, saved(stock), "critic.optimizer.pth", ValueError),
    )
    rows = []
    for system in systems:
        for kind, files in system.files().items():
            outcomes: Counter[str] = Counter()
            for content in files.values():
                doors = (_load, _set_parameters) if _weights_of(content) != _weights_of(system.content) else (_load,)
                outcomes.update(_outcome(partial(door, system), content, system) for door in doors)
            detail = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
            rows.append(row(f"hostile: {kind}", system.name, sum(outcomes.values()), outcomes[_REFUSED], detail))
        rows.append(_in_threads(system, loads))
    return [*rows, _other_files()]


_REFUSED = "refused in a sentence"


def _weights_of(content: bytes) -> Entries:
    return {name: value for name, value in unzipped(content).items() if name not in ("data", SETTINGS)}


def _load(system: _System, content: bytes) -> None:
    type(system.model).load(io.BytesIO(content), device="cpu")


def _set_parameters(system: _System, content: bytes) -> None:
    system.model.set_parameters(io.BytesIO(content), device="cpu")


def _state_of_process() -> str:
    classes = (th.nn.Parameter, th.nn.Module, th.Tensor, th.nn.Linear, ConstantSchedule, DMPO, TD3)
    weights = [sorted(vars(cls)) for cls in classes]
    return f"{weights} {th.get_rng_state().tolist()} {np.random.get_state()[1].tolist()} {sorted(os.environ)}"


def _outcome(enter: Callable[[bytes], None], content: bytes, system: _System) -> str:
    """How a door takes a file, in words; tried in a fork of this process, which is ended if it takes too long."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        # Seconds of the processor: others may be busy with it.
        signal.setitimer(signal.ITIMER_PROF, _HANG)
        with suppress(BaseException), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            os.write(writing, _tried(enter, content, system).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said or f"ended after {_HANG} s or by the system"


def _tried(enter: Callable[[bytes], None], content: bytes, system: _System) -> str:
    actors = [type(module) for module in system.model.policy.modules()]
    before, attributes = _state_of_process(), [set(vars(cls)) for cls in actors]
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        enter(content)
        outcome = "accepted"
    except system.refusal:
        outcome = _REFUSED
    except Exception:
        outcome = "foreign error"
    seconds, grown = time.process_time() - start, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
    if [set(vars(cls)) for cls in actors] != attributes or (system.name == OURS and _state_of_process() != before):
        return "the process was changed"
    if grown > _FACTOR * len(content) + _BYTES:
        return f"more memory than {_FACTOR} times the file"
    return outcome if seconds < _SECONDS else f"more than {_SECONDS:.0f} s"


def _in_threads(system: _System, loads: int) -> Row:
    large = make_model("dmpo", policy_kwargs={"net_arch": [64] * 10}) if system.name == OURS else make_stock()
    contents = [system.content, saved(large)]
    # Not the seed of the models: a loader that seeds the generator would leave no trace.
    th.manual_seed(1)
    state, failed = th.get_rng_state(), []

    def load(number: int) -> None:
        try:
            _load(system, contents[number % 2])
        except Exception as error:
            failed.append(f"{type(error).__name__}: {error}"[:100])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load, range(loads)))
    is_same = th.equal(th.get_rng_state(), state)
    detail = f"{len(failed)} refused; PyTorch's generator is {'as it was' if is_same else 'another one'}"
    return row("good files in four threads", system.name, loads, (loads - len(failed)) * is_same, detail)


def _other_files() -> Row:
    """HDF5 files whose numbers lie elsewhere, replay buffers that take time, and saved transitions that are none."""
    model = make_model("td3_bc", make_buffer())
    model.learn(1)
    refused, names = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for name, build in _OTHERS.items():
            path = build(Path(folder))
            start = time.process_time()
            try:
                if path.suffix == ".npz":
                    model.load_replay_buffer(path)
                else:
                    load_transitions(path, cache=False, progress_bar=False)
            except (DatasetError, FileError) as error:
                refused += path.name in str(error) and time.process_time() - start < _SECONDS
            names.append(name)
    detail = "external storage, links and virtual arrays in HDF5, replay buffers, saved transitions: refused with the name"
    return row("hostile: other files", OURS, len(names), refused, detail)


def _hdf5(put: Callable[[h5py.File, str], Any]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = folder / "data.hdf5"
        flags = np.arange(20) % 10 == 9
        with h5py.File(path, "w") as file:
            for name, values in {"actions": np.zeros((20, 2)), "rewards": np.zeros(20), "terminals": flags}.items():
                file[name] = values
            file["timeouts"] = np.zeros(20, bool)
            put(file, "observations")
        return path

    return build


def _virtual(file: h5py.File, name: str) -> None:
    layout = h5py.VirtualLayout((20, 3), "f4")
    layout[:] = h5py.VirtualSource("/nowhere.hdf5", "observations", (20, 3))
    file.create_virtual_dataset(name, layout)


def _buffer(payload: bytes) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = folder / "buffer.pkl"
        path.write_bytes(b"\x80\x04" + payload + b".")
        return path

    return build


def _transitions(**entries: bytes) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = folder / "added.npz"
        path.write_bytes(_packed({f"{name}.npy": value for name, value in entries.items()}, zipfile.ZIP_DEFLATED))
        return path

    return build


def _array(shape: str, kind: str = "'<f4'") -> bytes:
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(118)
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 4


_OTHERS: dict[str, Callable[[Path], Path]] = {
    "external storage": _hdf5(
        lambda file, name: file.create_dataset(name, (20, 3), "u1", external=[("/etc/passwd", 0, 60)]),
    ),
    "external link": _hdf5(lambda file, name: file.__setitem__(name, h5py.ExternalLink("/etc/passwd", "/x"))),
    "soft link": _hdf5(lambda file, name: file.__setitem__(name, h5py.SoftLink("/observations"))),
    "virtual array": _hdf5(_virtual),
    "key that takes for ever": _buffer(_doubled(60)),
    "keys that collide": _buffer(_colliding(20_000)),
    "call": _buffer(pickle.dumps(os.getcwd, protocol=2)[2:-1] + b")R"),
    "shape": _transitions(rewards=_array("(100000000000, 1)")),
    "objects": _transitions(rewards=_array("(1,)", "'|O'")),
    "bomb": _transitions(rewards=b"\0" * 2**27),
}
