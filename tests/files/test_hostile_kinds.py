"""Every kind of hostile file at every door: refused with its name, in bounded time and memory, and nothing changes."""

import io
import json
import os
import random
import resource
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch as th
from gymnasium.envs.registration import EnvSpec

import sb3_dmpo
from sb3_dmpo import DMPO
from sb3_dmpo.__main__ import main
from sb3_dmpo.cli.terminal import PlainStream
from sb3_dmpo.cli.train.resume import newest_state
from sb3_dmpo.data import DatasetError, load_transitions
from sb3_dmpo.data.recorded_env import make_recorded_environment
from sb3_dmpo.files.plain_text import FileError, plain
from sb3_dmpo.files.safe_zip import DamagedFileError, UnsafeFileError, check_archive
from sb3_dmpo.hub import load_from_hub
from sb3_dmpo.hub.summary import read_summary
from tests.files.test_hostile_pickles import FLOATS, call, named, new, raw_bytes, value
from tests.files.test_hostile_pickles import load as unpickle
from tests.files.test_safe_zip import pickled, rewritten, with_attribute, with_setting
from tests.toy_data import make_transitions

Entries = dict[str, bytes]
ESCAPE = "\x1b[2J\x1b]0;owned\x07\r\u202e"


@pytest.fixture(scope="module")
def model() -> DMPO:
    settings: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "batch_size": 4, "seed": 0, "device": "cpu"}
    return DMPO("MlpPolicy", dataset=make_transitions(), n_components=2, **settings).learn(2)


@pytest.fixture(scope="module")
def content(model: DMPO) -> bytes:
    file = io.BytesIO()
    model.save(file)
    return file.getvalue()


def torch_file(value: Any) -> bytes:
    file = io.BytesIO()
    th.save(value, file)
    return file.getvalue()


def entries_of(content: bytes) -> Entries:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def put(**changes: bytes) -> Callable[[Entries], None]:
    return lambda entries: entries.update(changes)


def with_optimizer(change: Callable[[dict[str, Any]], Any]) -> Callable[[Entries], None]:
    def rewrite(entries: Entries) -> None:
        state = th.load(io.BytesIO(entries["critic_optimizer.pth"]))
        change(state)
        entries["critic_optimizer.pth"] = torch_file(state)

    return rewrite


def with_weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Entries], None]:
    def rewrite(entries: Entries) -> None:
        weights = th.load(io.BytesIO(entries["policy.pth"]))
        change(weights)
        entries["policy.pth"] = torch_file(weights)

    return rewrite


def with_inner(change: Callable[[Entries], Any], compression: int = zipfile.ZIP_STORED) -> Callable[[Entries], None]:
    def rewrite(entries: Entries) -> None:
        entries["policy.pth"] = rewritten(entries["policy.pth"], change, compression).getvalue()

    return rewrite


def duplicated(inner: Entries) -> None:
    """A record in another case, which PyTorch's reader takes for the same."""
    pickle_name = next(name for name in inner if name.endswith("data.pkl"))
    inner[pickle_name.replace("data.pkl", "DATA.PKL")] = inner[pickle_name]


def option(key: str, value: Any) -> Callable[[Entries], None]:
    return with_optimizer(lambda state: state["param_groups"][0].update({key: value}))


def state_of_first(key: str, value: Any) -> Callable[[Entries], None]:
    return with_optimizer(lambda state: state["state"][0].update({key: value}))


ONE = th.full((1,), 7.0)
HOSTILE: dict[str, Callable[[Entries], Any]] = {
    # What nobody has declared.
    **{
        f"variables: {key}": put(**{name: torch_file({key: ONE})})
        for key, name in {
            "policy.actor.__class__": "pytorch_variables.pth",
            "__class__": "pytorch_variables.pth",
            "policy.__init__.__globals__": "tensors.pth",
            "policy.log_ent_coef": "pytorch_variables.pth",
            "gamma": "Pytorch_Variables.pth",
        }.items()
    },
    "entry: a pickle": put(**{"replay_buffer.pkl": b"\x80\x04N."}),
    "entry: a path": put(**{"../../evil.txt": b""}),
    "entry: escapes": put(**{f"x{ESCAPE}.txt": b"\0"}),
    "entry: weights of a path": put(**{"policy.actor.pth": torch_file({"a": ONE})}),
    "entry: weights in another case": put(**{"POLICY.PTH": torch_file({"a": ONE})}),
    "entry: settings in another case": put(**{"Settings.json": b"{}"}),
    "entry: a folder": put(**{"policy.pth/": b""}),
    "record: in another case": with_inner(duplicated),
    "record: code": with_inner(lambda inner: inner.update({"archive/code/a.py": b""})),
    "record: nothing refers to it": with_inner(lambda inner: inner.update({"archive/data/999": b"\0" * 4})),
    "record: another order of bytes": with_inner(lambda inner: inner.update({"archive/byteorder": b"big"})),
    "record: compressed": with_inner(lambda inner: None, zipfile.ZIP_DEFLATED),
    # Totals.
    "weights of one storage": with_weights(
        lambda weights: weights.update(dict.fromkeys(map(str, range(300)), th.zeros(8000)))
    ),
    "weights of another type": with_weights(lambda weights: weights.update({k: v.double() for k, v in weights.items()})),
    "weights that are not finite": with_weights(lambda weights: [v.fill_(np.nan) for v in weights.values() if v.dim() == 2]),
    # What learn would find out.
    "optimizer: step of another kind": state_of_first("step", th.zeros(3)),
    "optimizer: negative step": state_of_first("step", th.tensor(-1.0)),
    "optimizer: another state": state_of_first("more", ONE),
    "optimizer: state of text": state_of_first("exp_avg", "text"),
    "optimizer: state of another type": with_optimizer(
        lambda state: state["state"][0].update(exp_avg=state["state"][0]["exp_avg"].double())
    ),
    "optimizer: infinite state": with_optimizer(lambda state: state["state"][0]["exp_avg"].fill_(np.inf)),
    "optimizer: state of nobody": with_optimizer(lambda state: state["state"].update({10**6: {}})),
    "optimizer: another option": option("hook", 1),
    "optimizer: betas of text": option("betas", ("a", "b")),
    "optimizer: betas of 1": option("betas", (1.0, 1.0)),
    "optimizer: rate of text": option("lr", "fast"),
    "optimizer: negative rate": option("lr", -1.0),
    "optimizer: infinite eps": option("eps", float("inf")),
    "optimizer: state missing": option("amsgrad", True),
    "optimizer: more groups": with_optimizer(lambda state: state["param_groups"].append(state["param_groups"][0])),
    "optimizer: no state": put(**{"critic_optimizer.pth": torch_file([1])}),
    "optimizer: of nobody": put(**{"foo_optimizer.pth": torch_file({"state": {}, "param_groups": []})}),
}
#: What can only be seen when networks and optimizers are built, which inspect and the search for a checkpoint do not do.
SEEN_WHEN_BUILT = ("weights of another type", "weights that are not finite", "optimizer:")
#: Doors that read the file as all do and then go through `load`: one kind of each sort is enough there.
BEFORE_LOAD = ("load of any", "load_from_hub")
FIRST_OF_ITS_SORT = {name.partition(" ")[0]: name for name in reversed(HOSTILE)}.values()


@pytest.fixture
def doors(model: DMPO) -> Iterator[dict[str, Callable[[Path], Any]]]:
    class Hub:
        def hf_hub_download(self, repo_id: str, filename: str) -> str:
            return filename

    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    yield {
        "load": lambda path: DMPO.load(path, device="cpu"),
        "load of any": lambda path: sb3_dmpo.load(path, device="cpu"),
        "load with trust": lambda path: DMPO.load(path, device="cpu", trust_pickle=True),
        "set_parameters": lambda path: model.set_parameters(str(path), device="cpu"),
        "set_parameters, not all": lambda path: model.set_parameters(str(path), exact_match=False, device="cpu"),
        "load_from_hub": lambda path: load_from_hub("user/name", str(path), api=Hub(), device="cpu"),
        "inspect": read_summary,
    }
    assert all(th.equal(tensor, before[name]) for name, tensor in model.policy.state_dict().items())


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_at_every_door(content: bytes, doors: dict[str, Callable[[Path], Any]], tmp_path: Path, name: str) -> None:
    path = tmp_path / "hostile.zip"
    path.write_bytes(rewritten(content, HOSTILE[name]).getvalue())
    attributes = {cls: set(vars(cls)) for cls in (DMPO, th.nn.Parameter, th.nn.Module, type(DMPO.load))}
    for door, enter in doors.items():
        if door == "inspect" and name.startswith(SEEN_WHEN_BUILT):
            continue
        if door in BEFORE_LOAD and name not in FIRST_OF_ITS_SORT:
            continue
        with pytest.raises((UnsafeFileError, DamagedFileError)) as caught:
            enter(path)
        assert str(caught.value).startswith(f"{path}: ") and str(caught.value).count(str(path)) == 1, door
        assert str(caught.value).isprintable() and len(str(caught.value)) < 2000
    assert {cls: set(vars(cls)) for cls in attributes} == attributes


def test_an_interrupted_run_goes_on_from_a_checkpoint_that_is_right(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "rl_model_10_steps.zip").write_bytes(content)
    (tmp_path / "rl_model_20_steps.zip").write_bytes(rewritten(content, HOSTILE["entry: a pickle"]).getvalue())
    assert newest_state(tmp_path, "env") == tmp_path / "rl_model_10_steps.zip"


def test_optimizers_as_older_versions_wrote_them(content: bytes) -> None:
    """Steps as numbers, and options that are not there yet."""

    def older(state: dict[str, Any]) -> None:
        state["param_groups"][0].pop("decoupled_weight_decay", None)
        for one in state["state"].values():
            one["step"] = 2

    found = DMPO.load(rewritten(content, with_optimizer(older)), device="cpu", dataset=make_transitions())
    found.learn(1, reset_num_timesteps=False)
    assert found._n_updates == 3


# Totals ---------------------------------------------------------------------------------------------------------


def announced(content: bytes, name: str, size: int, packed: bytes) -> bytes:
    """A zip whose directory says that an entry is small, and whose packed content is large."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, value in entries_of(content).items():
            archive.writestr(entry, value if entry != name else b"")
    unpacked = zlib.decompressobj(-15).decompress(packed, size)
    result = file.getvalue()
    header = struct.pack("<III", zlib.crc32(unpacked), len(packed), size)
    for signature, offset in ((b"PK\x03\x04", 30), (b"PK\x01\x02", 46)):
        position = -1
        while (position := result.index(signature, position + 1)) >= 0:
            if result[position + offset :].startswith(name.encode()):
                break
        start = position + (14 if offset == 30 else 16)
        result = result[:start] + header + result[start + 12 :]
    return result


def test_what_a_file_becomes_is_counted_before_it_is_made(content: bytes) -> None:
    big = with_weights(lambda weights: weights.update(dict.fromkeys(map(str, range(300)), th.zeros(8000).expand(8000))))
    many = rewritten(content, lambda entries: entries.update({f"a{i}_optimizer.pth": b"" for i in range(30_000)}))
    files = {
        "shared numbers": rewritten(content, big).getvalue(),
        "one entry": rewritten(content, put(data=b" " * 2**25), zipfile.ZIP_DEFLATED).getvalue(),
        "many entries": many.getvalue(),
        "announced as small": announced(content, "data", 100, zlib.compress(b"\0" * 2**27, 9, -15)),
        "another compression": rewritten(content, lambda entries: None, zipfile.ZIP_LZMA).getvalue(),
    }
    for name, file in files.items():
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        with pytest.raises(FileError):
            DMPO.load(io.BytesIO(file), device="cpu")
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown < 64 + 10 * len(file) / 2**20, (name, grown)
        assert time.process_time() - start < 3, name


# Time -----------------------------------------------------------------------------------------------------------


def doubled_key(levels: int) -> bytes:
    """A dict whose key is a tuple of the same tuple twice, and so on: looking it up takes 2^levels steps."""
    return b"}K\x01\x85\x94" + b"".join(b"h" + bytes([level]) + b"\x86\x94" for level in range(levels)) + b"K\x01s"


def colliding_keys(n: int) -> bytes:
    """Numbers that Python looks up at the same place."""
    numbers = (((2**61 - 1) * (i + 1)).to_bytes(16, "little") for i in range(n))
    return b"}(" + b"".join(b"\x8a\x10" + number + b"N" for number in numbers) + b"u"


SLOW_PICKLES = {
    "key that takes for ever": doubled_key(200),
    "keys that collide": colliding_keys(50_000),
    "key of a float": b"}G" + struct.pack(">d", 1.5) + b"Ns",
    "key of a new dict": b"(" + b"K\x01\x85" + b"N" + b"d",
    "number of many digits": b"L" + b"9" * 10**6 + b"L\n",
    "line without an end": b"V" + b"x" * 10**6 + b"\n",
    "long number": b"\x8b" + struct.pack("<i", 10**5) + b"\x7f" * 10**5,
    "operations without an end": b"N0" * 10**6 + b"N",
    "operations without an end in a frame": b"\x95" + struct.pack("<Q", 2 * 10**6) + b"N0" * 10**6 + b"N",
}


def test_arrays_that_are_made_of_the_same_bytes() -> None:
    content = raw_bytes(b"\0" * 2**16) + b"q\xf0"
    array = call("numpy._core.multiarray", "_reconstruct", named("numpy", "ndarray"), (0,), raw_bytes(b"b"))
    array += value((1, (2**14,), call("numpy", "dtype", "f4", False, True), False, b"h\xf0")) + b"b"
    box = new("gymnasium.spaces.box", "Box", {"_shape": (2**14,), "dtype": FLOATS, "low": b"h\xf1", "high": b"h\xf1"})
    for many in (array * 2000, array + b"q\xf1" + box * 2000):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(UnsafeFileError, match="With an array"):
            unpickle(b"\x80\x04](" + content + b"0" + many + b"e.")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.mark.parametrize("name", SLOW_PICKLES)
def test_pickles_that_take_time(content: bytes, tmp_path: Path, name: str) -> None:
    payload = b"\x80\x04" + SLOW_PICKLES[name] + b"."
    start = time.process_time()
    with pytest.raises(UnsafeFileError):
        unpickle(payload)
    with pytest.raises(UnsafeFileError, match="'policy_kwargs'"):
        DMPO.load(with_attribute(content, "policy_kwargs", pickled(payload)), device="cpu")
    (tmp_path / "buffer.pkl").write_bytes(payload)
    with pytest.raises(DatasetError, match=r"buffer\.pkl"):
        load_transitions(tmp_path / "buffer.pkl", cache=False)
    assert time.process_time() - start < 6


SLOW_TEXTS = {
    "digits": b'{"a": ' + b"9" * 4000 + b"}",
    "more digits": b'{"a": ' + b"9" * 10**6 + b"}",
    "nested": b"[" * 900 + b"]" * 900,
    "nested dicts": b'{"a":' * 900 + b"1" + b"}" * 900,
    "nested deep": b"[" * 10**6,
    "many entries": b"[" + b"[]," * 10**6 + b"[]]",
}


@pytest.mark.parametrize("member", ["settings.json", "data"])
@pytest.mark.parametrize("name", SLOW_TEXTS)
def test_settings_that_take_time(content: bytes, tmp_path: Path, name: str, member: str) -> None:
    def rewrite(entries: Entries) -> None:
        if member == "data":
            del entries["settings.json"]
        entries[member] = SLOW_TEXTS[name]

    path = tmp_path / "slow.zip"
    path.write_bytes(rewritten(content, rewrite).getvalue())
    start = time.process_time()
    for enter in (partial(DMPO.load, device="cpu"), sb3_dmpo.load, read_summary):
        with pytest.raises(DamagedFileError, match=r"slow\.zip: .*attributes"):
            enter(path)
    assert time.process_time() - start < 5


# Threads --------------------------------------------------------------------------------------------------------


def test_threads_load_and_nothing_of_the_process_changes(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generators are neither seeded nor set back, which would change what other threads draw."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("something of the process was changed")

    watched = {random: ("seed", "setstate"), np.random: ("seed", "set_state"), th: ("manual_seed",), os: ("umask",)}
    for module, names in watched.items():
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    state, numpy_state = th.get_rng_state(), np.random.get_state()[1].tolist()
    environment, threads = dict(os.environ), threading.active_count()
    big = DMPO("MlpPolicy", dataset=make_transitions(), policy_kwargs={"net_arch": [32] * 12}, device="cpu", n_components=2)
    state, file = th.get_rng_state(), io.BytesIO()
    big.save(file)

    def load(i: int) -> th.Tensor:
        found = DMPO.load(io.BytesIO((content, file.getvalue())[i % 2]), device="cpu")
        found.save(tmp_path / f"{i}.zip")
        return next(iter(found.policy.state_dict().values()))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(load, range(24)))
    assert all(th.equal(one, found[i % 2]) for i, one in enumerate(found))
    assert th.equal(th.get_rng_state(), state) and np.random.get_state()[1].tolist() == numpy_state
    assert dict(os.environ) == environment and threading.active_count() == threads


# One kind of error ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_n_updates", "many"),
        ("_n_updates", -1),
        ("num_timesteps", [1]),
        ("num_timesteps", 2**70),
        ("gamma", 10**60),
        ("_total_timesteps", None),
        ("ep_info_buffer", 5),
        ("ep_info_buffer", {"$type": "deque", "items": [[1]], "maxlen": 3}),
        ("dataset_id", 7),
        ("dataset_fingerprint", ["a"]),
        ("tensorboard_log", 3),
        ("tensorboard_log", "\0"),
        ("verbose", "loud"),
        ("use_sde", True),
        ("n_envs", "one"),
        ("start_time", "now"),
        ("_last_obs", "here"),
        ("_scaler_is_set", 3),
        ("_is_compiled", "yes"),
        ("_stats_window_size", 1.5),
        ("_current_progress_remaining", "half"),
        ("replay_buffer_kwargs", {"a": 1}),
        ("last_evaluation", "good"),
        ("learning_rate", {"$type": "LinearSchedule", "start": -1.0, "end": 1.0, "end_fraction": 1.0}),
        ("learning_rate", {"$type": "LinearSchedule", "start": 1.0, "end": 1.0, "end_fraction": 0.0}),
        ("learning_rate", {"$type": "PlainSchedule", "formula": "constant", "values": [-1.0, -1.0]}),
    ],
    ids=str,
)
def test_attributes_that_learn_would_stumble_over(content: bytes, key: str, value: Any) -> None:
    with pytest.raises((UnsafeFileError, DamagedFileError), match=r"^The (file|attribute|settings)"):
        DMPO.load(with_setting(content, key, value), device="cpu")


def test_saved_transitions(model: DMPO, tmp_path: Path) -> None:
    """The door beside the zip: arrays that announce more than they are, other entries, pickles, damage."""

    def array(shape: str, descr: str = "'<f4'", content: bytes = b"\0" * 4) -> bytes:
        header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(118)
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content

    hostile: dict[str, Entries] = {
        "shape": {"rewards.npy": array("(100000000000, 1)")},
        "overflow": {"rewards.npy": array(f"({2**62}, {2**62})")},
        "negative": {"rewards.npy": array("(-1, -1)")},
        "objects": {"rewards.npy": array("(1,)", "'|O'")},
        "fields": {"rewards.npy": array("(1,)", "[('a', '<f4')]")},
        "call": {"rewards.npy": array("__import__('os').getpid()")},
        "nothing": {"rewards.npy": array("(10000000000000,)", "'<U0'", b"")},
        "more": {"more.npy": array("(1,)")},
        "no array": {"evil.py": b""},
        "cut": {"rewards.npy": b"\x93NUMPY"},
    }
    for name, entries in hostile.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(rewritten(_empty_zip(), put(**entries)).getvalue())
        with pytest.raises((UnsafeFileError, DamagedFileError), match=rf"{name}\.npz: "):
            model.load_replay_buffer(path)
    bomb = tmp_path / "bomb.npz"
    bomb.write_bytes(rewritten(_empty_zip(), put(**{"rewards.npy": b"\0" * 2**26}), zipfile.ZIP_DEFLATED).getvalue())
    with pytest.raises(UnsafeFileError, match="would grow"):
        model.load_replay_buffer(bomb)


def _empty_zip() -> bytes:
    file = io.BytesIO()
    zipfile.ZipFile(file, "w").close()
    return file.getvalue()


def test_damage_of_every_compression(content: bytes) -> None:
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        packed = rewritten(content, lambda entries: None, compression).getvalue()
        if compression == zipfile.ZIP_DEFLATED:
            DMPO.load(io.BytesIO(packed), device="cpu")
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            places = [(e.header_offset + 30 + len(e.filename), e.compress_size) for e in archive.infolist() if e.file_size]
        for start, size in places:
            damaged = bytearray(packed)
            damaged[start + size // 2] ^= 0xFF
            with pytest.raises(FileError):
                check_archive(bytes(damaged))


# Text -----------------------------------------------------------------------------------------------------------


def test_text_that_a_terminal_obeys() -> None:
    assert plain("a\x1b[2Jb\x07\u202e\x9b\udc80\n") == "a\\x1b[2Jb\\x07\\u202e\\x9b\\udc80\n"
    raw = io.StringIO()
    stream = PlainStream(raw)
    print(f"name{ESCAPE}\tvalue \x1b[33mcoloured\x1b[0m", file=stream)
    stream.writelines(["\r 10%|#", "\r 20%|##", "a\rb\n"])
    assert raw.getvalue() == ("name\\x1b[2J\\x1b]0;owned\\x07\\r\\u202e\tvalue coloured\n\r 10%|#\r 20%|##a\\rb\n")
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print("Müller \N{SNOWMAN}", file=PlainStream(narrow))
    narrow.seek(0)
    assert narrow.read() == "M\\xfcller \\u2603\n"


def test_text_of_files_in_every_command(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of entries, attributes, file names, ids and metadata of datasets, folders of runs."""
    named = tmp_path / f"model{ESCAPE}.zip"
    named.write_bytes(content)
    entry = tmp_path / "entry.zip"
    entry.write_bytes(rewritten(content, HOSTILE["entry: escapes"]).getvalue())
    attribute = tmp_path / "attribute.zip"
    attribute.write_bytes(with_setting(content, "dataset_id", f"a/b{ESCAPE}-v0").getvalue())
    head = tmp_path / "head.zip"
    head.write_bytes(
        rewritten(content, lambda entries: entries.update({"system_info.txt": f"- OS: {ESCAPE}".encode()})).getvalue()
    )
    (tmp_path / "logs" / "dmpo" / f"Toy{ESCAPE}-v0_1").mkdir(parents=True)
    (tmp_path / f"data{ESCAPE}.hdf5").write_bytes(b"no HDF5")
    commands = [
        *(["inspect", str(path)] for path in (named, entry, attribute, head, tmp_path / f"missing{ESCAPE}")),
        ["enjoy", "--algo", "dmpo", "-f", str(tmp_path / "logs"), "--no-render"],
        ["describe", str(tmp_path / f"data{ESCAPE}.hdf5")],
        ["train", "--algo", f"dmpo{ESCAPE}"],
        ["push", str(entry), "user/name", "--folder", str(tmp_path / "card")],
        [f"verb{ESCAPE}"],
    ]
    for command in commands:
        main(command)
        output = capsys.readouterr()
        for text in (output.out, output.err):
            assert all(character.isprintable() or character in "\n\t" for character in text), command


# Datasets -------------------------------------------------------------------------------------------------------


def d4rl(path: Path, name: str, put_array: Callable[[h5py.File, str], Any]) -> Path:
    arrays: dict[str, Any] = {
        "observations": np.zeros((20, 3), "f4"),
        "actions": np.zeros((20, 2), "f4"),
        "rewards": np.zeros(20, "f4"),
        "terminals": np.arange(20) % 10 == 9,
        "timeouts": np.zeros(20, bool),
    }
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            if key == name:
                put_array(file, key)
            else:
                file[key] = values
    return path


def virtual(source: str) -> Callable[[h5py.File, str], None]:
    def put_virtual(file: h5py.File, key: str) -> None:
        layout = h5py.VirtualLayout((20, 3), "f4")
        layout[:] = h5py.VirtualSource(source, "observations", (20, 3))
        file.create_virtual_dataset(key, layout)

    return put_virtual


ELSEWHERE: dict[str, Callable[[h5py.File, str], Any]] = {
    "external storage": lambda file, key: file.create_dataset(key, (20, 3), "u1", external=[("/etc/passwd", 0, 60)]),
    "external link": lambda file, key: file.__setitem__(key, h5py.ExternalLink("/etc/passwd", "/x")),
    "soft link to an external link": lambda file, key: (
        file.__setitem__("there", h5py.ExternalLink("other.hdf5", "/")),
        file.__setitem__(key, h5py.SoftLink("/there/observations")),
    ),
    "virtual array": virtual("other.hdf5"),
    "virtual array of nothing": virtual("/nowhere.hdf5"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_arrays_that_lie_elsewhere(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    d4rl(tmp_path / "other.hdf5", "", lambda file, key: None)
    assert len(load_transitions(tmp_path / "other.hdf5", cache=False, progress_bar=False)) > 0
    hostile = d4rl(tmp_path / "hostile.hdf5", "observations", ELSEWHERE[name])
    with pytest.raises(DatasetError, match=r"hostile\.hdf5.*(link|another file)"):
        load_transitions(hostile, cache=False, progress_bar=False)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"xml_file": "/etc/passwd"},
        {"xml_file": "ant.xml"},
        {"xml_file": "model"},
        {"xml_file": {"$type": "x", "path": "a/b"}},
        {"reward_type": "../../secret"},
        {"reward_type": "C:\\secret"},
        {"maze_map": [[1, "https://example.org"]]},
        {"reward_type": ["a", {"b": "~/secret"}]},
        {"reward_type": f"sparse{ESCAPE}"},
    ],
    ids=str,
)
def test_environments_that_a_dataset_points_at_files(kwargs: dict[str, Any]) -> None:
    spec = EnvSpec("TwoGoals-v0", entry_point="os:system").to_json()
    with pytest.raises(DatasetError, match="can point at a file") as caught:
        make_recorded_environment(json.dumps(json.loads(spec) | {"kwargs": kwargs}), "Dataset 'a/b-v0'")
    assert str(caught.value).isprintable()


def test_environments_of_plain_values() -> None:
    spec = json.loads(EnvSpec("TwoGoals-v0", entry_point="os:system").to_json())
    with pytest.raises(DatasetError, match="cannot be read"):
        make_recorded_environment('{"id":' + "[" * 10**5, "Dataset 'a/b-v0'")
    values = {"reward_type": "sparse", "maze_map": [[1, "g", 0.5], [None, True]]}
    with pytest.raises(DatasetError, match=r"could not be made with .*'sparse'"):
        make_recorded_environment(json.dumps(spec | {"kwargs": values}), "Dataset 'a/b-v0'")
    make_recorded_environment(json.dumps(spec), "Dataset 'a/b-v0'").close()


@pytest.mark.slow
def test_a_hostile_file_leaves_the_process_as_it_was(content: bytes, tmp_path: Path) -> None:
    """In a process of its own: classes of PyTorch, modules, and the settings of the process."""
    path = tmp_path / "hostile.zip"
    path.write_bytes(rewritten(content, HOSTILE["variables: policy.actor.__class__"]).getvalue())
    script = (
        "import sys, torch, sb3_dmpo; before = set(dir(torch.nn.Module)) | set(sys.modules)\n"
        f"try: sb3_dmpo.load({str(path)!r}, device='cpu')\n"
        "except sb3_dmpo.files.safe_zip.UnsafeFileError: pass\n"
        "else: sys.exit(1)\n"
        "sys.exit('data' in vars(type(torch.nn.Linear(1, 1))))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
