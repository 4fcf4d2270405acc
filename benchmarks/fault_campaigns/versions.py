"""Zips of other versions, other machines and other libraries: they open as they were, or a clear error says why not."""

import base64
import io
import json
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3 import TD3
from stable_baselines3.common.save_util import load_from_zip_file

from benchmarks.fault_campaigns.common import (
    OBSERVATIONS,
    OURS,
    STOCK,
    Row,
    make_buffer,
    make_model,
    make_stock,
    row,
    saved,
    weights_hash,
)
from benchmarks.fault_campaigns.damage import unzipped, zipped
from sb3_dmpo import DMPO
from sb3_dmpo.data import load_transitions
from sb3_dmpo.files.safe_zip import DamagedFileError, UnsafeFileError

Entries = dict[str, bytes]
Change = Callable[[Entries], Entries]


def _attributes(change: Callable[[dict[str, Any]], Any]) -> Change:
    def apply(entries: Entries) -> Entries:
        attributes = json.loads(entries["data"])
        change(attributes)
        changed = {"data": json.dumps(attributes).encode()}
        if "settings.json" in entries:
            settings = json.loads(entries["settings.json"])
            change(settings["attributes"])
            changed["settings.json"] = json.dumps(settings).encode()
        return entries | changed

    return apply


def _without(*names: str) -> Change:
    def change(attributes: dict[str, Any]) -> None:
        for name in names:
            attributes.pop(name, None)

    return _attributes(change)


def _from_cuda(entries: Entries) -> Entries:
    """As a GPU writes it: every storage says that it was on ``cuda:0``, and so do the random states."""
    entries = dict(entries)
    for name in [name for name in entries if name.endswith(".pth")]:
        inner = unzipped(entries[name])
        for part in [part for part in inner if part.endswith("data.pkl")]:
            inner[part] = inner[part].replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            # A file on which the replacement did nothing would prove nothing.
            if b"cuda:0" not in inner[part] and b"torch" in inner[part]:
                raise AssertionError(f"no storage of {name} could be marked")
        entries[name] = zipped(inner)

    def change(attributes: dict[str, Any]) -> None:
        if "_random_state" in attributes:
            # CUDA's generators have a seed and an offset of 8 bytes each.
            state = base64.b64encode(bytes(16)).decode()
            changed = {"noise": state, "buffer": state, "buffer_device": "cuda"}
            of_device = {name: changed[name] for name in changed.keys() & attributes["_random_state"].keys()}
            attributes["_random_state"] |= {"device": "cuda", "cuda": [state], **of_device}

    return _attributes(change)(entries)


def _system_info(text: str) -> Change:
    return lambda entries: entries | {"system_info.txt": text.encode()}


#: Has to open with the same weights.
OPENS: dict[str, Change] = {
    "older: without newer attributes": _without("dataset_fingerprint", "online_ratio", "last_evaluation", "reward_shift"),
    "older: without random states": _without("_random_state"),
    "older: without system_info.txt": lambda entries: {n: v for n, v in entries.items() if n != "system_info.txt"},
    "older Stable-Baselines3": lambda entries: entries | {"_stable_baselines3_version": b"1.8.0"},
    "newer Stable-Baselines3": lambda entries: entries | {"_stable_baselines3_version": b"99.0.0"},
    "newer PyTorch in system_info.txt": _system_info("- OS: Plan 9\n- PyTorch: 99.0\n"),
    "CUDA zip on the CPU": _from_cuda,
}
#: Has to be refused by name.
REFUSED: dict[str, tuple[Change, str]] = {
    "newer: unknown attributes": (_attributes(lambda a: a.update(entropy_bonus=0.1, n_heads=4)), "entropy_bonus, n_heads"),
    "attributes of the wrong type": (_attributes(lambda a: a.update(policy_kwargs=3)), "settings"),
    "no attributes": (lambda entries: {n: v for n, v in entries.items() if n != "data"}, "no model"),
    "no weights": (lambda entries: {n: v for n, v in entries.items() if n != "policy.pth"}, "no model"),
    "device in the attributes": (_attributes(lambda a: a.update(device="cuda")), "device"),
}


def other_versions() -> list[Row]:
    """Every case once, the ones that stock SB3 can have there too."""
    problems = [f"{name}: {problem}" for name, problem in _ours() if problem]
    n_cases = len(OPENS) + len(REFUSED) + 5
    detail = (
        "; ".join(problems)
        or f"{len(OPENS)} of other versions open, {len(REFUSED)} are refused by name, 5 more, see versions.py"
    )
    rows = [row("other versions", OURS, n_cases, n_cases - len(problems), detail)]
    model = make_stock()
    content, failed = saved(model), []
    for name, change in OPENS.items():
        problem = _opens(lambda file: TD3.load(file, device="cpu"), zipped(change(unzipped(content))), weights_hash(model))
        if problem:
            failed.append(f"{name}: {problem}")
    rows.append(row("other versions", STOCK, len(OPENS), len(OPENS) - len(failed), "; ".join(failed) or "those that open"))
    return rows


def _opens(load: Callable[[io.BytesIO], Any], content: bytes, expected: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = load(io.BytesIO(content))
            model.predict(OBSERVATIONS)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:100]}"
    return "" if weights_hash(model) == expected else "other weights"


def _refused(load: Callable[[io.BytesIO], Any], content: bytes, words: str) -> str:
    try:
        load(io.BytesIO(content))
    except (DamagedFileError, UnsafeFileError) as error:
        return "" if words in str(error) else f"the error does not say {words!r}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "opened"


def _ours() -> list[tuple[str, str]]:
    data = load_transitions(make_buffer())
    model = make_model("dmpo", data).learn(6)
    content, expected = saved(model), weights_hash(model)

    def load(file: io.BytesIO) -> Any:
        return DMPO.load(file, device="cpu")

    results = []
    for name, change in OPENS.items():
        changed = zipped(change(unzipped(content)))
        problem = _opens(load, changed, expected)
        if not problem:
            DMPO.load(io.BytesIO(changed), dataset=data, device="cpu").learn(2, reset_num_timesteps=False)
        results.append((name, problem))
    for name, (change, words) in REFUSED.items():
        results.append((name, _refused(load, zipped(change(unzipped(content))), words)))
    # Those who trust the file can have it.
    newer = zipped(REFUSED["newer: unknown attributes"][0](unzipped(content)))
    results.append(("trusted", _opens(lambda file: DMPO.load(file, device="cpu", trust_pickle=True), newer, expected)))
    results.append(("another algorithm's zip", _refused(load, saved(make_model("iql")), "")))
    results.append(("a zip of stock SB3", _refused(load, saved(make_stock()), "")))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in unzipped(content).items():
            archive.writestr(name, value)
    results.append(("packed again by another tool", _opens(load, file.getvalue(), expected)))
    results.append(("opened by SB3's own tool", _opened_by_stock_tool(model, content)))
    return results


def _opened_by_stock_tool(model: Any, content: bytes) -> str:
    attributes, parameters, _ = load_from_zip_file(io.BytesIO(content), device="cpu")
    same = all(np.array_equal(value, parameters["policy"][name]) for name, value in model.get_parameters()["policy"].items())
    return "" if same and attributes["n_components"] == model.n_components else "other weights"
