"""The tables of ``benchmarks/speed.py`` beside training: data, predictions, evaluations."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.timing import data
from benchmarks.timing.ours import setting
from benchmarks.timing.rows import Row, measured
from benchmarks.timing.tables import SB3
from benchmarks.timing.turns import OURS, Effort, arena, in_turn
from sb3_dmpo.data.minari_download import local_dataset_ids

#: Updates between two evaluations, and episodes of one, where the zoo's files say nothing else
ZOO_EVAL_FREQUENCY, ZOO_EVAL_EPISODES = 5_000, 10
EVAL_DATASET, EVAL_ENV, MAX_EPISODE_STEPS = "zoo/hopper/medium-v0", "Hopper-v5", 1_000
#: Size of SB3's buffer that sampling is compared with
SB3_TRANSITIONS = 1_000_000


def predict_rows(algos: list[str], threads: int, effort: Effort) -> Iterator[Row]:
    """
    Time of ``predict`` for one observation and for batches beside that of SB3's TD3.

    :param algos: names as in ``ALGOS``
    :param threads: number of threads
    :param effort: how long to measure
    """
    effort = Effort(effort.seconds / 4, effort.repeats, effort.warm_up)
    for batch in (1, 10, 256):
        with arena(threads) as processes:
            contenders = {
                name: processes.enter(f"{name} {batch}", OURS, "predict", algo=name, batch=batch) for name in ("sb3", *algos)
            }
            in_turn(list(contenders.values()), effort)
        for name, contender in contenders.items():
            columns = {
                "table": "predict",
                "case": SB3 if name == "sb3" else name,
                "system": SB3 if name == "sb3" else "sb3_dmpo",
                "setting": f"{batch} observation{'s' * (batch > 1)}, 2x256",
                "device": "cpu",
                "threads": threads,
                "measure": "median CPU-ms per call",
            }
            base = None if name == "sb3" else contenders["sb3"].values
            yield measured(contender.values, base, SB3, **columns)


def data_rows(threads: int, effort: Effort, n: int) -> Iterator[Row]:
    """
    Loading a dataset of Minari, its memory, and drawing minibatches from it.

    :param threads: number of threads
    :param effort: how long to measure
    :param n: number of transitions
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data.in_child("--record", str(n), folder=folder)
        time.sleep(2.5)  # what has just been written is not cached
        shared = {"table": "data", "system": "sb3_dmpo", "setting": f"{n} transitions", "device": "cpu", "threads": threads}
        modes = (("first load", [], True), ("second load", [], False), ("memory-mapped load", ["--memory-map"], False))
        for case, arguments, forget in modes:
            found = []
            for _ in range(min(effort.repeats, 5)):
                if forget:
                    for entry in (folder / "cache").glob("*"):
                        entry.rename(folder / f"old-{time.monotonic_ns()}")
                found.append(data.in_child(*arguments, folder=folder))
            for key, measure in (
                ("seconds", "seconds per million transitions"),
                ("peak", "peak memory / float32 arrays"),
                ("anonymous", "memory that is not the page cache / float32 arrays"),
            ):
                if key == "seconds":
                    seconds = [1e6 / n * answer[key] for answer in found]
                    yield measured(seconds, case=case, measure=measure, **shared)
                else:
                    yield _size_row(found, key, case=case, measure=measure, **shared)
        yield _size_row(found, "disk", case="copy on disk", measure="bytes / float32 arrays", **shared)
        yield from _sample_rows(folder, effort, shared)


def _size_row(found: list[dict[str, Any]], key: str, **columns: Any) -> Row:
    apart = [answer["apart"] for answer in found]
    return measured([answer[key] for answer in found], apart, "float32 arrays with next observations apart", **columns)


def _sample_rows(folder: Path, effort: Effort, shared: dict[str, Any]) -> Iterator[Row]:
    before = {key: os.environ.get(key) for key in data.environment(folder)}
    os.environ.update(data.environment(folder))
    try:
        with arena(shared["threads"]) as processes:
            contenders = {
                "in memory": processes.enter("in memory", OURS, "sample", source=data.DATASET_ID),
                "memory-mapped": processes.enter("mapped", OURS, "sample", source=data.DATASET_ID, memory_map=True),
                "SB3 ReplayBuffer": processes.enter("sb3", OURS, "sb3_sample", n_transitions=SB3_TRANSITIONS),
            }
            in_turn(list(contenders.values()), Effort(effort.seconds / 4, effort.repeats, effort.warm_up))
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
    base = contenders["SB3 ReplayBuffer"].cpu
    for variant, contender in contenders.items():
        is_ours = variant != "SB3 ReplayBuffer"
        columns = shared | {"case": "sampling", "variant": variant, "measure": "minibatches of 256 per CPU-second"}
        if is_ours:
            yield measured(contender.cpu, base, "SB3 ReplayBuffer", **columns)
        else:
            yield measured(contender.cpu, **columns | {"system": "SB3"})


def eval_rows(algos: list[str], threads: int, effort: Effort) -> Iterator[Row]:
    """
    Share of a run that evaluations take at the zoo's default frequency, when every episode has its full length.

    :param algos: names as in ``ALGOS``
    :param threads: number of threads
    :param effort: how long to measure
    """
    if EVAL_DATASET not in local_dataset_ids(Path(os.environ.get("MINARI_DATASETS_PATH", ""))):
        print(f"left out: {EVAL_DATASET} is not in MINARI_DATASETS_PATH")
        return
    for algo in algos:
        with arena(threads) as processes:
            train = processes.enter("train", OURS, "train_on", algo=algo, dataset=EVAL_DATASET)
            episodes = {"n_episodes": ZOO_EVAL_EPISODES, "max_episode_steps": MAX_EPISODE_STEPS}
            task = {"algo": algo, "dataset": EVAL_DATASET, "env_id": EVAL_ENV}
            evaluate = processes.enter("evaluate", OURS, "evaluate", **task, **episodes)
            alone = processes.enter("alone", OURS, "step_alone", env_id=EVAL_ENV, **episodes)
            train.calibrate(effort)
            for _ in range(effort.repeats):
                train.measure()
                evaluate.measure()
                alone.measure()
        columns = {
            "table": "eval",
            "case": algo,
            "system": "sb3_dmpo",
            "setting": f"{EVAL_ENV}, {setting(algo, {})[1]}",
            "device": "cpu",
            "threads": threads,
        }
        steps = f"{ZOO_EVAL_EPISODES} episodes of {MAX_EPISODE_STEPS} steps"
        run = f"of a run, evaluated every {ZOO_EVAL_FREQUENCY} updates"
        for contender, what in ((evaluate, f"an evaluation, {steps} at once"), (alone, f"the environment alone, {steps}")):
            seconds = [1.0 / rate for rate in contender.cpu]
            yield measured(seconds, measure=f"CPU-seconds of {what}", **columns)
            shares = [
                100.0 * second / (second + ZOO_EVAL_FREQUENCY / rate) for second, rate in zip(seconds, train.cpu, strict=True)
            ]
            yield measured(shares, measure=f"% {run}" + (", the environment alone" if contender is alone else ""), **columns)
