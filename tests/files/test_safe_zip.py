"""Files from elsewhere: nothing in them is executed, and a damaged one is said to be damaged."""

import base64
import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

import sb3_dmpo
from sb3_dmpo import DMPO, IQL
from sb3_dmpo.envs.spaces_only import SpacesOnlyEnv
from sb3_dmpo.files.safe_zip import DamagedFileError, UnsafeFileError, check_archive

OBSERVATION = np.array([0.1, -0.2, 0.3], np.float32)


def small_model(**arguments: Any) -> DMPO:
    env = SpacesOnlyEnv(spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-2.0, 2.0, (2,)))
    return DMPO("MlpPolicy", env=env, n_components=3, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu", **arguments)


@pytest.fixture(scope="module")
def content() -> bytes:
    file = io.BytesIO()
    small_model().save(file)
    return file.getvalue()


def rewritten(content: bytes, change: Callable[[dict[str, bytes]], None], compression: int = zipfile.ZIP_STORED) -> io.BytesIO:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, value in entries.items():
            archive.writestr(name, value)
    file.seek(0)
    return file


def with_attribute(content: bytes, key: str, value: Any) -> io.BytesIO:
    """A zip as early versions wrote it, with pickles as attributes and no settings, and one attribute changed."""

    def change(entries: dict[str, bytes]) -> None:
        entries.pop("settings.json", None)
        attributes = json.loads(entries["data"])
        attributes[key] = value
        entries["data"] = json.dumps(attributes).encode()

    return rewritten(content, change)


def with_setting(content: bytes, key: str, value: Any) -> io.BytesIO:
    """A zip of today with one attribute changed."""

    def change(entries: dict[str, bytes]) -> None:
        settings = json.loads(entries["settings.json"])
        settings["attributes"][key] = value
        entries["settings.json"] = json.dumps(settings).encode()

    return rewritten(content, change)


def pickled(payload: bytes) -> dict[str, str]:
    return {":type:": "x", ":serialized:": base64.b64encode(payload).decode()}


class Reduce:
    """Pickles to a call of anything."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], tuple(self.call[1:])


def touch(path: str) -> str:
    return f"open({path!r}, 'w').close()"


def cloudpickle_wrapper_gadget(path: str) -> bytes:
    # __setstate__ of this SB3 class unpickles what it is given: a prefix allow-list would let it through.
    wrapper = CloudpickleWrapper.__new__(CloudpickleWrapper)
    inner = pickle.dumps(Reduce(exec, touch(path)))
    return pickle.dumps(Reduce(_build, wrapper.__class__, inner))


def _build(cls: type, state: bytes) -> Any:  # pragma: no cover (never executed by a safe loader)
    built = cls.__new__(cls)
    built.__setstate__(state)
    return built


def raw_cloudpickle_wrapper(path: str) -> bytes:
    inner = pickle.dumps(Reduce(exec, touch(path)))
    name = b"cstable_baselines3.common.vec_env.base_vec_env\nCloudpickleWrapper\n"
    return name + b")\x81" + pickle.dumps(inner, protocol=2)[2:-1] + b"b."


def logger_gadget(path: str) -> bytes:
    from stable_baselines3.common.logger import HumanOutputFormat

    return pickle.dumps(Reduce(HumanOutputFormat, path))


PAYLOADS: dict[str, Callable[[str], bytes]] = {
    "exec": lambda path: pickle.dumps(Reduce(exec, touch(path))),
    "eval": lambda path: pickle.dumps(Reduce(eval, f"open({path!r}, 'w')")),
    "open": lambda path: pickle.dumps(Reduce(open, path, "w")),
    "os.system": lambda path: pickle.dumps(Reduce(os.system, f"touch {path}")),
    "os.mkdir": lambda path: pickle.dumps(Reduce(os.mkdir, path)),
    "getattr": lambda path: pickle.dumps(Reduce(getattr, path, "upper")),
    "getattr of an enumeration": lambda path: pickle.dumps(Reduce(getattr, TrainFrequencyUnit, "__members__")),
    "lambda": lambda path: cloudpickle.dumps(lambda progress: open(path, "w")),
    "wrapper called": cloudpickle_wrapper_gadget,
    "wrapper built": raw_cloudpickle_wrapper,
    "logger": logger_gadget,
    "numpy load": lambda path: pickle.dumps(Reduce(np.load, path, None, True)),
    "torch load": lambda path: pickle.dumps(Reduce(th.load, path)),
    "import": lambda path: pickle.dumps(Reduce(__import__, "antigravity")),
    "random": lambda path: pickle.dumps(Reduce(random.seed, 0)),
}


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("key", ["learning_rate", "observation_space"])
def test_payload_is_not_executed(content: bytes, tmp_path: Path, name: str, key: str) -> None:
    target = tmp_path / "executed"
    file = with_attribute(content, key, pickled(PAYLOADS[name](str(target))))
    with pytest.raises(UnsafeFileError, match=f"'{key}' asks for .*trust_pickle"):
        DMPO.load(file)
    assert not target.exists()


def test_units_as_some_pythons_write_them(content: bytes) -> None:
    """Python 3.11.2 writes members of enumerations as ``getattr(cls, name)``."""
    for unit in TrainFrequencyUnit:
        frequency = pickled(pickle.dumps(Reduce(TrainFreq, 1, Reduce(getattr, TrainFrequencyUnit, unit.name))))
        assert DMPO.load(with_attribute(content, "train_freq", frequency)).train_freq == TrainFreq(1, unit)


def test_payload_would_run_in_a_plain_loader(content: bytes, tmp_path: Path) -> None:
    """The payloads are live: SB3's loader executes them, and ours does not look at them."""
    for name in ("exec", "os.mkdir", "wrapper built", "logger"):
        target = tmp_path / name.replace(" ", "-")
        load_from_zip_file(with_attribute(content, "learning_rate", pickled(PAYLOADS[name](str(target)))))
        assert target.exists(), name


@pytest.mark.parametrize("name", PAYLOADS)
def test_pickles_beside_the_settings_are_not_looked_at(content: bytes, tmp_path: Path, name: str) -> None:
    target = tmp_path / "executed"

    def change(entries: dict[str, bytes]) -> None:
        payload = pickled(PAYLOADS[name](str(target)))
        entries["data"] = json.dumps(json.loads(entries["data"]) | {"learning_rate": payload, "more": payload}).encode()

    model = DMPO.load(rewritten(content, change), device="cpu")
    assert model.lr_schedule(0.5) == 3e-4 and not hasattr(model, "more") and not target.exists()


def test_trust_pickle_and_custom_objects() -> None:
    file = io.BytesIO()
    small_model(learning_rate=lambda progress: 1e-3 * progress).save(file)
    old = with_attribute(file.getvalue(), "verbose", 0)
    with pytest.raises(UnsafeFileError, match="'learning_rate' asks for"):
        DMPO.load(old)
    assert DMPO.load(io.BytesIO(file.getvalue())).lr_schedule(0.5) == 5e-4
    trusted = DMPO.load(io.BytesIO(file.getvalue()), trust_pickle=True)
    assert trusted.lr_schedule(0.5) == 5e-4
    replaced = DMPO.load(io.BytesIO(file.getvalue()), custom_objects={"learning_rate": 1e-4})
    assert replaced.lr_schedule(0.5) == 1e-4


def test_unknown_attribute_and_absurd_sizes(content: bytes) -> None:
    for change in (with_attribute, with_setting):
        with pytest.raises(UnsafeFileError, match="does not have: predict"):
            DMPO.load(change(content, "predict", 1))
        with pytest.raises(UnsafeFileError, match="need networks of more than"):
            DMPO.load(change(content, "policy_kwargs", {"net_arch": [100_000, 100_000]}))
    huge = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I10000000000\ntS'd'\ntR."
    with pytest.raises(UnsafeFileError, match="array of shape"):
        DMPO.load(with_attribute(content, "_last_obs", pickled(huge)))
    bomb = rewritten(content, lambda entries: entries.update(bomb=b"\0" * 10**7), zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsafeFileError, match="would grow"):
        DMPO.load(bomb)


def test_damaged_files(content: bytes) -> None:
    """Truncations and bit flips: a clear error, or the same model."""
    rng = np.random.default_rng(0)
    expected, _ = DMPO.load(io.BytesIO(content)).predict(OBSERVATION)
    for length in rng.integers(0, len(content), 20):
        with pytest.raises(DamagedFileError):
            DMPO.load(io.BytesIO(content[:length]))
    refused = 0
    for position in rng.integers(0, len(content), 40):
        flipped = bytearray(content)
        flipped[position] ^= 1 << rng.integers(8)
        try:
            action, _ = DMPO.load(io.BytesIO(bytes(flipped))).predict(OBSERVATION)
        except (DamagedFileError, UnsafeFileError):
            refused += 1
        else:
            np.testing.assert_array_equal(action, expected)
    assert refused > 20


def test_damaged_end_of_the_directory(content: bytes) -> None:
    """Every bit of the record that a reader begins with."""
    for position in range(len(content) - 22, len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            try:
                check_archive(bytes(flipped))
            except (DamagedFileError, UnsafeFileError):
                continue


def test_other_algorithm_and_no_model(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="no model"):
        DMPO.load(rewritten(content, lambda entries: entries.pop("policy.pth")))
    with pytest.raises(DamagedFileError, match=r"This is a DMPO zip: use DMPO\.load"):
        IQL.load(io.BytesIO(content))
    assert type(sb3_dmpo.load(io.BytesIO(content))) is DMPO
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        DMPO.load(tmp_path / "nothing-here")
