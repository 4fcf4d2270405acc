"""Damaged files: a clear error of ours, or a model with the same weights."""

import io
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3 import TD3
from tqdm import tqdm

from benchmarks.fault_campaigns.common import OURS, STOCK, Row, make_model, make_stock, row, saved, weights_hash
from sb3_dmpo import DMPO
from sb3_dmpo.files.safe_zip import DamagedFileError, UnsafeFileError


def bit_flip(content: bytes, rng: np.random.Generator) -> bytes:
    """One bit of the file, anywhere."""
    damaged = bytearray(content)
    damaged[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def truncation(content: bytes, rng: np.random.Generator) -> bytes:
    """The file's beginning."""
    return content[: int(rng.integers(len(content)))]


def bit_flip_inside(content: bytes, rng: np.random.Generator) -> bytes:
    """One bit of an entry, packed again with a right checksum: damage that happened before the file was zipped."""
    entries = unzipped(content)
    names = [name for name in entries if name.endswith(".pth")]
    sizes = np.array([len(entries[name]) for name in names], float)
    name = names[int(rng.choice(len(names), p=sizes / sizes.sum()))]
    entries[name] = bit_flip(entries[name], rng)
    return zipped(entries)


def unzipped(content: bytes) -> dict[str, bytes]:
    """Entries of a zip."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(entries: dict[str, bytes]) -> bytes:
    """A zip of entries."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in entries.items():
            archive.writestr(name, value)
    return file.getvalue()


KINDS: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "bit flip": bit_flip,
    "truncation": truncation,
    "bit flip inside": bit_flip_inside,
}


def damaged_files(trials: int) -> list[Row]:
    """Bit flips and truncations of a zip."""
    rows = []
    for system, model, load in ((OURS, make_model("dmpo"), DMPO.load), (STOCK, make_stock(), TD3.load)):
        content, expected = saved(model), weights_hash(model)
        for kind, damage in KINDS.items():
            rng, counts = np.random.default_rng(0), {"clear error": 0, "same": 0, "foreign error": 0, "silent change": 0}
            for _ in tqdm(range(trials), desc=f"{kind}, {system}"):
                counts[outcome_of_load(load, damage(content, rng), expected)] += 1
            detail = ", ".join(f"{count} {name}" for name, count in counts.items())
            rows.append(row(kind, system, trials, counts["clear error"] + counts["same"], detail))
    return rows


def outcome_of_load(load: Callable[..., Any], content: bytes, expected: str) -> str:
    """How loading a file ends."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = load(io.BytesIO(content), device="cpu")
            return "same" if weights_hash(model) == expected else "silent change"
    except (DamagedFileError, UnsafeFileError):
        return "clear error"
    except ValueError as error:
        # What SB3 says itself of a file that is no zip; ours has errors of its own.
        return "clear error" if load == TD3.load and "wasn't a zip-file" in str(error) else "foreign error"
    except Exception:
        return "foreign error"
