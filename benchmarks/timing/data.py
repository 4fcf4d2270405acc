"""Loading a million transitions of a Minari dataset, each time in a fresh process: seconds and memory."""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.timing import synthetic
from benchmarks.timing.server import ROOT

DATASET_ID = "speed/synthetic-v0"


def record(n: int) -> None:
    """
    Write the synthetic transitions as a Minari dataset into the current root.

    :param n: number of transitions
    """
    import minari
    import numpy as np
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    data, length = synthetic.arrays(n), synthetic.EPISODE_LENGTH
    episodes = []
    for start in range(0, n, length):
        rows = slice(start, start + length)
        observations = data["observations"][rows]
        ends = data["timeouts"][rows]
        episodes.append(
            EpisodeBuffer(
                observations=np.concatenate([observations, observations[-1:]]),
                actions=data["actions"][rows],
                rewards=data["rewards"][rows],
                terminations=np.zeros_like(ends),
                truncations=ends,
            )
        )
    size = synthetic.OBSERVATION_SIZE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari asks for an author
        minari.create_dataset_from_buffers(
            DATASET_ID,
            episodes,
            observation_space=spaces.Box(-np.inf, np.inf, (size,), np.float32),
            action_space=spaces.Box(-1.0, 1.0, (synthetic.ACTION_SIZE,), np.float32),
        )


def _status(name: str) -> int:
    """A size of this process in bytes, as Linux counts it."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def load(memory_map: bool) -> dict[str, float]:
    """
    Seconds and memory from the files to a buffer that can be sampled; memory and the copy on disk as shares of the float32
    arrays that the copy holds, and what those were if the next observations stood apart.

    :param memory_map: whether the data stay on disk
    """
    from sb3_dmpo.common.buffers import OfflineReplayBuffer
    from sb3_dmpo.data import load_transitions
    from sb3_dmpo.data.cache import cache_folder

    # The peak begins here, without what imports and the code of torch that is run take.
    few = load_transitions({name: array[:300] for name, array in synthetic.arrays(300).items()} | {"terminals": [False] * 300})
    OfflineReplayBuffer.from_transitions(few, seed=0).sample(256)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, anonymous = _status("VmRSS"), _status("RssAnon")
    start = time.perf_counter()
    transitions = load_transitions(DATASET_ID, memory_map=memory_map)
    table = transitions.table
    size, apart = table.rows.nbytes, (table.rows.shape[1] + table.observation_size) * len(table) * table.rows.itemsize
    del table
    buffer = OfflineReplayBuffer.from_transitions(transitions, seed=0)
    buffer.sample(256)
    return {
        "seconds": time.perf_counter() - start,
        "peak": (_status("VmHWM") - before) / size,
        "anonymous": (_status("RssAnon") - anonymous) / size,
        "disk": sum(file.stat().st_size for file in cache_folder().rglob("*") if file.is_file()) / size,
        "apart": apart / size,
    }


def in_child(*arguments: str, folder: Path) -> dict[str, Any]:
    """
    Run this module in a process of its own.

    :param arguments: its arguments
    :param folder: where dataset and cache are
    """
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.timing.data", *arguments],
        cwd=ROOT,
        env=os.environ | environment(folder) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise RuntimeError(result.stderr[-3000:])
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def environment(folder: Path) -> dict[str, str]:
    """
    Environment variables for dataset and cache in a folder.

    :param folder: the folder
    """
    return {"MINARI_DATASETS_PATH": str(folder / "minari"), "SB3_DMPO_CACHE": str(folder / "cache")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=int, default=0)
    parser.add_argument("--memory-map", action="store_true")
    options = parser.parse_args()
    found: dict[str, float] = {}
    if options.record:
        record(options.record)
    else:
        found = load(options.memory_map)
    print(json.dumps(found))
