"""Zips whose settings or tensors ask for more than they hold: refused before networks take memory."""

import base64
import io
import json
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_dmpo import ALGOS, DMPO
from sb3_dmpo.common.arguments import constructor_arguments
from sb3_dmpo.envs.spaces_only import SpacesOnlyEnv
from sb3_dmpo.files.safe_zip import MAX_DATA_BYTES, DamagedFileError, UnsafeFileError, check_archive
from sb3_dmpo.files.settings import encode
from tests.contract import SMALL
from tests.files.test_hostile_pickles import named
from tests.files.test_safe_zip import pickled, rewritten, with_attribute, with_setting
from tests.toy_data import make_transitions

#: Integers of the constructors that nothing is allocated for.
HARMLESS = {"seed", "verbose", "ema_start", "warmup_steps", "pretraining_updates", "stats_window_size", "ema_every"}


@pytest.fixture(scope="module")
def contents() -> Callable[[str], bytes]:
    """A small trained model of every algorithm, as the content of a zip."""
    known: dict[str, bytes] = {}

    def content(name: str) -> bytes:
        if name not in known:
            small: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}}
            if name == "decision_transformer":
                small = {"embed_dim": 8, "n_layers": 1, "context_length": 4}
            if name == "maple":
                small |= SMALL["maple"]
            model = ALGOS[name]("MlpPolicy", dataset=make_transitions(), seed=0, device="cpu", batch_size=4, **small)
            file = io.BytesIO()
            model.learn(1).save(file)
            known[name] = file.getvalue()
        return known[name]

    return content


@pytest.fixture(scope="module")
def dmpo(contents: Callable[[str], bytes]) -> bytes:
    return contents("dmpo")


def attributes_of(content: bytes) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        attributes: dict[str, Any] = json.loads(archive.read("data"))
    return attributes


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, with_setting) for name in ALGOS),
        # Once decoded, the attributes of old zips are checked by the same code.
        *((name, with_attribute) for name in ("dmpo", "decision_transformer", "maple")),
    ],
)
def test_absurd_sizes_of_every_algorithm(contents: Callable[[str], bytes], name: str, change: Any) -> None:
    content = contents(name)
    stored = attributes_of(content)
    counts = {
        key for key in set(stored) & set(constructor_arguments(ALGOS[name])) - HARMLESS if type(stored[key]) in (int, list)
    }
    counts |= {"n_components", "n_action_samples", "latent_size"} & set(stored)
    assert "batch_size" in counts
    for key in sorted(counts):
        for size in (10**9, 10**4 if key in ("embed_dim", "n_components", "latent_size") else 10**12):
            value = [size] if isinstance(stored[key], list) else size
            with pytest.raises(UnsafeFileError, match=r"The file's|The weights"):
                ALGOS[name].load(change(content, key, value), device="cpu")


def policy_kwargs(entry: str, value: bytes) -> dict[str, str]:
    return pickled(b"\x80\x04}(" + pickle.dumps(entry, protocol=2)[2:-1] + value + b"u.")


HOSTILE_ATTRIBUTES = {
    "activation of an optimizer": ("policy_kwargs", policy_kwargs("activation_fn", named("torch.optim.sgd", "SGD"))),
    "activation of a deque": ("policy_kwargs", policy_kwargs("activation_fn", named("collections", "deque"))),
    "optimizer of an activation": (
        "policy_kwargs",
        policy_kwargs("optimizer_class", named("torch.nn.modules.activation", "ReLU")),
    ),
    "policy of another kind": ("policy_class", pickled(named("collections", "deque") + b".")),
    "policy of text": ("policy_class", "MlpPolicy"),
    "rate of a class": ("learning_rate", pickled(named("torch.optim.sgd", "SGD") + b".")),
    "rate of text": ("learning_rate", "fast"),
    "widths of text": ("policy_kwargs", {"net_arch": ["8"]}),
    "widths below zero": ("policy_kwargs", {"net_arch": [-8]}),
    "other widths": ("policy_kwargs", {"net_arch": [9]}),
    "many layers": ("policy_kwargs", {"net_arch": [1] * 10**5}),
    "unknown argument": ("policy_kwargs", {"no_such_argument": 1}),
    "arguments of text": ("policy_kwargs", "net_arch"),
    "space of text": ("observation_space", "Box"),
    "space that is missing": ("action_space", None),
    "gamma of text": ("gamma", "0.99"),
    "components of text": ("n_components", "3"),
    "seed of text": ("seed", "zero"),
    "negative seed": ("seed", -5),
}


@pytest.mark.parametrize("name", HOSTILE_ATTRIBUTES)
def test_settings_that_make_no_model(dmpo: bytes, name: str) -> None:
    with pytest.raises((UnsafeFileError, DamagedFileError)):
        DMPO.load(with_attribute(dmpo, *HOSTILE_ATTRIBUTES[name]), device="cpu")


def array(content: bytes = b"\0" * 4, dtype: Any = "f4", shape: Any = (1,)) -> dict[str, Any]:
    text = base64.b64encode(content).decode()
    return {"$type": "array", "dtype": dtype, "shape": shape, "content": text}


def box(low: Any, high: Any, **more: Any) -> dict[str, Any]:
    return {"$type": "Box", "low": low, "high": high, "generator": None} | more


def dict_space(inner: Any, **more: Any) -> dict[str, Any]:
    return {"$type": "Dict", "inner": inner, "sort_keys": True, "generator": None} | more


def nested(value: Any, wrap: Callable[[Any], Any], times: int) -> Any:
    for _ in range(times):
        value = wrap(value)
    return value


HUGE = 10**11
HOSTILE_SETTINGS: dict[str, tuple[str, Any]] = {
    **{name: value for name, value in HOSTILE_ATTRIBUTES.items() if ":serialized:" not in repr(value)},
    **{
        f"{key} of the class {name}": (key, value if key == "learning_rate" else {"activation_fn": value})
        for key in ("learning_rate", "policy_kwargs")
        for name in (
            "os:system",
            "builtins:eval",
            "torch.optim.sgd:SGD",
            "torch.nn.modules.linear:Linear",
            "nowhere",
            ":",
            "a:b.c",
        )
        for value in [{"$type": "class", "name": name}]
    },
    "class of a number": ("policy_kwargs", {"activation_fn": {"$type": "class", "name": 1}}),
    "class without a name": ("policy_kwargs", {"activation_fn": {"$type": "class"}}),
    "another type": ("learning_rate", {"$type": "eval", "value": "1"}),
    "type of a list": ("learning_rate", {"$type": ["float"], "value": "nan"}),
    "type of nothing": ("learning_rate", {"$type": None}),
    "rate that is nan": ("learning_rate", {"$type": "float", "value": "nan"}),
    "rate that is infinite": ("learning_rate", {"$type": "float", "value": "inf"}),
    "float of a word": ("learning_rate", {"$type": "float", "value": "1e-3"}),
    "gamma that is infinite": ("gamma", {"$type": "float", "value": "-inf"}),
    "gamma that is nan": ("gamma", {"$type": "float", "value": "nan"}),
    "schedule without values": ("learning_rate", {"$type": "PlainSchedule"}),
    "schedule of few values": ("learning_rate", {"$type": "PlainSchedule", "formula": "table", "values": [1.0]}),
    "schedule of texts": ("learning_rate", {"$type": "PlainSchedule", "formula": "table", "values": ["1"] * 1025}),
    "schedule of infinities": (
        "learning_rate",
        {"$type": "PlainSchedule", "formula": "table", "values": [{"$type": "float", "value": "inf"}] * 1025},
    ),
    "another formula": ("learning_rate", {"$type": "PlainSchedule", "formula": "eval", "values": [1.0, 1.0]}),
    "formula of texts": ("learning_rate", {"$type": "PlainSchedule", "formula": "constant", "values": ["1", 1.0]}),
    "schedule with a method": ("learning_rate", {"$type": "ConstantSchedule", "val": 1.0, "__class__": 1}),
    "schedule of a class": (
        "learning_rate",
        {"$type": "FloatSchedule", "value_schedule": {"$type": "class", "name": "torch.optim.sgd:SGD"}},
    ),
    "schedules in schedules": (
        "learning_rate",
        nested(
            {"$type": "ConstantSchedule", "val": 1.0}, lambda inner: {"$type": "FloatSchedule", "value_schedule": inner}, 200
        ),
    ),
    "lists in lists": ("_last_obs", nested(1, lambda inner: [inner], 200)),
    "array without bytes": ("_last_obs", array(shape=[HUGE])),
    "array of a negative shape": ("_last_obs", array(shape=[-1])),
    "array of many axes": ("_last_obs", array(shape=[1] * 1000)),
    "array of a text": ("_last_obs", array(shape="1")),
    "array of floats as shape": ("_last_obs", array(shape=[1.0])),
    "array of objects": ("_last_obs", array(dtype="O8", content=b"\0" * 8)),
    "array of fields": ("_last_obs", array(dtype=[["a", "f4"]])),
    "array of no base64": ("_last_obs", array() | {"content": "?"}),
    "array of a number": ("_last_obs", array() | {"content": 1}),
    "box without bounds": ("observation_space", {"$type": "Box"}),
    "box of numbers": ("observation_space", box(1.0, 2.0)),
    "box of two shapes": ("observation_space", box(array(), array(b"\0" * 8, shape=[2]))),
    "box of two types": ("observation_space", box(array(), array(b"\0" * 8, dtype="f8"))),
    "box of nan": ("observation_space", box(array(b"\0\0\xc0\x7f"), array())),
    "box with a generator": ("observation_space", box(array(), array(), generator={"$type": "generator", "numbers": [HUGE]})),
    "box with a generator of floats": (
        "observation_space",
        box(array(), array(), generator={"$type": "generator", "numbers": [1.0, 1, 1, 1]}),
    ),
    "box with a negative generator": (
        "observation_space",
        box(array(), array(), generator={"$type": "generator", "numbers": [-1, 1, 1, 1]}),
    ),
    "dict of texts": ("observation_space", dict_space({"a": "b"})),
    "dict of a list": ("observation_space", dict_space([1])),
    "dicts in dicts": ("observation_space", nested(box(array(), array()), lambda inner: dict_space({"a": inner}), 100)),
    "box with a text as generator": ("observation_space", box(array(), array(), generator="PCG64")),
    "frequency of a list": ("train_freq", {"$type": "TrainFreq", "frequency": [1], "unit": "step"}),
    "frequency of years": ("train_freq", {"$type": "TrainFreq", "frequency": 1, "unit": "year"}),
    "deque of a negative length": ("ep_info_buffer", {"$type": "deque", "items": [], "maxlen": -1}),
    "deque of a number": ("ep_info_buffer", {"$type": "deque", "items": 3, "maxlen": 1}),
    "tuple of a number": ("policy_kwargs", {"net_arch": {"$type": "tuple", "items": 3}}),
    "policy of its own": ("policy_class", {"$type": "class", "name": "os:system"}),
    "another attribute": ("__class__", 1),
    "a method": ("save", 1),
    "a dataset": ("dataset", "D4RL/pen/human-v2"),
    "a device": ("device", "cuda"),
}


@pytest.mark.parametrize("name", HOSTILE_SETTINGS)
def test_hostile_settings(dmpo: bytes, name: str) -> None:
    """Wrong kinds, counts, names and numbers in the settings: refused before anything large is allocated."""
    hostile = with_setting(dmpo, *HOSTILE_SETTINGS[name])
    tracemalloc.start()
    try:
        with pytest.raises((UnsafeFileError, DamagedFileError)) as caught:
            DMPO.load(hostile, device="cpu")
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": "1"},
        {"algorithm": 1},
        {"algorithm": "eval"},
        {"algorithm": "\x1b[2J"},
        {"policy": "os:system"},
        {"policy": "MixturePolicy"},
        {"policy": None},
        {"attributes": []},
        {"more": 1},
    ],
    ids=str,
)
def test_hostile_heads(dmpo: bytes, change: dict[str, Any]) -> None:
    def rewrite(entries: dict[str, bytes]) -> None:
        entries["settings.json"] = json.dumps(json.loads(entries["settings.json"]) | change).encode()

    with pytest.raises((UnsafeFileError, DamagedFileError)) as caught:
        DMPO.load(rewritten(dmpo, rewrite), device="cpu")
    assert str(caught.value).isprintable()


def test_observations_of_many_entries(dmpo: bytes) -> None:
    """They fit into the file, and the first layer over them does not."""
    space = spaces.Box(-1, 1, (4 * 10**5,), np.int8)
    for hostile in (
        with_attribute(dmpo, "observation_space", pickled(pickle.dumps(space))),
        with_setting(dmpo, "observation_space", encode(space)),
    ):
        with pytest.raises(UnsafeFileError, match=r"need networks of more than|The weights"):
            DMPO.load(hostile, device="cpu")


def test_no_memory_is_taken_for_what_is_not_in_the_file(dmpo: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of 16 GB is refused by the time that its first layer, of 32 kB, is known."""
    largest: list[int] = []
    original = nn.Linear.__init__

    def watched(self: nn.Linear, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if not self.weight.is_meta:
            largest.append(self.weight.numel())

    monkeypatch.setattr(nn.Linear, "__init__", watched)
    with pytest.raises(UnsafeFileError, match="need networks of more than"):
        DMPO.load(with_setting(dmpo, "policy_kwargs", {"net_arch": [1000, 2**32]}), device="cpu")
    with pytest.raises(UnsafeFileError, match="need networks of more than"):
        DMPO.load(with_attribute(dmpo, "policy_kwargs", {"net_arch": [1000, 2**32]}), device="cpu")
    assert largest == []
    DMPO.load(io.BytesIO(dmpo), device="cpu")
    assert max(largest, default=0) > 0


def torch_file(value: Any, change: Callable[[bytes], bytes] = bytes) -> bytes:
    file = io.BytesIO()
    th.save(value, file)
    return rewritten(
        file.getvalue(), lambda entries: entries.update({key: change(entries[key]) for key in entries if "data.pkl" in key})
    ).getvalue()


FOUR = {"a": th.ones(4)}
TENSORS = {
    "tensor that repeats a number": torch_file(
        FOUR, lambda data: data.replace(b"K\x04\x85", b"J\0\0\0\x70\x85").replace(b"K\x01\x85", b"K\0\x85")
    ),
    "tensor beyond its numbers": torch_file(FOUR, lambda data: data.replace(b"K\x04\x85", b"J\0\0\0\x70\x85")),
    "tensor that begins beyond": torch_file(FOUR, lambda data: data.replace(b"QK\0", b"QK\x05")),
    "tensor with a negative stride": torch_file(FOUR, lambda data: data.replace(b"K\x01\x85", b"J\xff\xff\xff\xff\x85")),
    "numbers that are not there": torch_file(FOUR, lambda data: data.replace(b"K\x04tq", b"J\0\0\0\x10tq")),
    "numbers of another name": torch_file(FOUR, lambda data: data.replace(b"X\x01\0\0\x000", b"X\x01\0\0\x009")),
    "bytes of a length": torch_file(FOUR, lambda data: b"\x80\x02cbuiltins\nbytearray\nJ\0\0\0\x70\x85R."),
    "another class": torch_file(FOUR, lambda data: data.replace(b"torch._utils\n_rebuild_tensor_v2", b"os\nsystem")),
    "sparse tensor": torch_file({"a": th.eye(3).to_sparse()}),
    "no tensors": torch_file([1, 2]),
    "no names": torch_file(th.ones(3)),
    "other names": torch_file(FOUR),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_not_what_they_say(dmpo: bytes, name: str) -> None:
    file = rewritten(dmpo, lambda entries: entries.update({"policy.pth": TENSORS[name]}))
    with pytest.raises(UnsafeFileError, match=r"policy\.pth|bytes of weights|The weights"):
        DMPO.load(file, device="cpu")


def test_tensors_of_an_optimizer(dmpo: bytes) -> None:
    """They are checked like weights, and have to fit them: PyTorch itself notices only at the next update."""
    with zipfile.ZipFile(io.BytesIO(dmpo)) as archive:
        state = th.load(io.BytesIO(archive.read("critic_optimizer.pth")))
    state["state"][0]["exp_avg"] = th.zeros(3, 2)
    with pytest.raises(DamagedFileError, match=r"exp_avg of critic_optimizer has the shape \(3, 2\)"):
        DMPO.load(rewritten(dmpo, lambda entries: entries.update({"critic_optimizer.pth": torch_file(state)})), device="cpu")
    repeated = TENSORS["tensor that repeats a number"]
    with pytest.raises(UnsafeFileError, match=r"critic_optimizer\.pth"):
        check_archive(rewritten(dmpo, lambda entries: entries.update({"critic_optimizer.pth": repeated})).getvalue())


def put(entries: dict[str, bytes], content: bytes) -> None:
    entries["critic_optimizer.pth"] = content


@pytest.mark.parametrize("arguments", [{}, {"dataset": "D4RL/pen/human-v2"}, {"verbose": 0}], ids=str)
def test_optimizer_of_other_groups(dmpo: bytes, arguments: dict[str, Any]) -> None:
    """The file is to blame, whatever else is passed to load."""
    with zipfile.ZipFile(io.BytesIO(dmpo)) as archive:
        state = th.load(io.BytesIO(archive.read("critic_optimizer.pth")))
    for groups in (3, [{**state["param_groups"][0], "params": [0]}]):
        changed = torch_file(state | {"param_groups": groups})
        file = rewritten(dmpo, partial(put, content=changed))
        with pytest.raises(DamagedFileError, match="critic_optimizer has other groups"):
            DMPO.load(file, device="cpu", **arguments)


def test_what_the_caller_passes_is_not_the_files_fault(dmpo: bytes) -> None:
    env = SpacesOnlyEnv(spaces.Box(-1, 1, (77,)), spaces.Box(-1, 1, (2,)))
    with pytest.raises(ValueError, match="Observation spaces do not match") as caught:
        DMPO.load(io.BytesIO(dmpo), env=env, device="cpu")
    assert not isinstance(caught.value, DamagedFileError)


NO_OBJECTS = [b"[" * 10**6, b'{"gamma":' * 10**5, b"[1]", b"\xff", b"{", b'"' + b"x" * MAX_DATA_BYTES + b'"']


@pytest.mark.parametrize("data", NO_OBJECTS)
def test_attributes_that_are_no_object(dmpo: bytes, data: bytes) -> None:
    with pytest.raises((DamagedFileError, UnsafeFileError), match="attributes"):
        DMPO.load(rewritten(dmpo, lambda entries: (entries.update(data=data), entries.pop("settings.json"))))


@pytest.mark.parametrize(
    "text",
    [
        *NO_OBJECTS,
        b"{}",
        b'{"format": 1, "format": 1}',
        b'{"format": NaN}',
        b'{"format": Infinity}',
        b'{"format": 1e999}',
        b"9" * 10**5,
        b'{"format": 1, "algorithm": "DMPO", "policy": "MlpPolicy", "attributes": {"gamma": 0.9, "gamma": 0.9}}',
    ],
)
def test_settings_that_are_no_object(dmpo: bytes, text: bytes) -> None:
    with pytest.raises((DamagedFileError, UnsafeFileError), match="attributes"):
        DMPO.load(rewritten(dmpo, lambda entries: entries.update({"settings.json": text})))


def test_numbers_beyond_floats(dmpo: bytes) -> None:
    def change(entries: dict[str, bytes]) -> None:
        entries["settings.json"] = entries["settings.json"].replace(b'"gamma": 0.99', b'"gamma": 1e999')

    with pytest.raises(UnsafeFileError, match="'gamma' asks for the number inf"):
        DMPO.load(rewritten(dmpo, change))


@pytest.mark.parametrize(
    "state",
    [
        {"python": 1},
        {"device": "cpu"},
        [],
        "text",
        {"torch": "AAAA"},
        {"torch": "?"},
        {"numpy": ["MT19937", [1], 1, 0, 0.0]},
        {"noise": "AAAA"},
        {"buffer": 3},
        {"numpy": ["MT19937", [1] * 624, 10**6, 0, 0.0]},
        {"python": [3, [1] * 624 + [10**6], None]},
        {"device": ["cpu"]},
    ],
    ids=str,
)
def test_random_states_that_are_none(dmpo: bytes, state: Any) -> None:
    """Found out when the file is loaded, not in `learn`; what was there before stays."""
    stored = attributes_of(dmpo)["_random_state"]
    changed = stored | state if isinstance(state, dict) and state != {"device": "cpu"} else state
    before = th.get_rng_state()
    with pytest.raises(DamagedFileError, match="random states"):
        DMPO.load(with_setting(dmpo, "_random_state", changed), device="cpu")
    assert th.equal(th.get_rng_state(), before)
