"""The tables of ``benchmarks/speed.py``: what is compared with what."""

from collections.abc import Collection, Iterator
from typing import Any

import torch as th
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing.ours import VARIANTS, make_model, sb3_model, setting, variants
from benchmarks.timing.rows import Row, measured
from benchmarks.timing.turns import OURS, PEERS, Arena, Contender, Effort, arena, has_peers, in_turn
from sb3_dmpo import ALGOS

#: Algorithms that d3rlpy has too
WITH_PEER = ("td3_bc", "iql", "awac", "bc", "cql")
SB3 = "SB3 TD3"
#: What grows in the scaling table; each setting is compared with the first
SCALING: dict[str, list[dict[str, Any]]] = {
    "|Z|": [{"n_components": n} for n in (8, 4, 16, 32)],
    "batch size": [{"batch_size": n} for n in (256, 64, 1024)],
    "width": [{"policy_kwargs": {"net_arch": [n, n]}} for n in (256, 64, 512, 1024)],
}


def devices() -> tuple[str, ...]:
    """The devices of this machine."""
    return ("cpu", "cuda") if th.cuda.is_available() else ("cpu",)


def rates(contender: Contender, device: str) -> tuple[list[float], str]:
    """
    Updates per processor second, or per second of the clock where another device does the work.

    :param contender: after its turns
    :param device: its device
    """
    return (contender.cpu, "updates per CPU-second") if device == "cpu" else (contender.wall, "updates per second")


def train_rows(algos: list[str], threads: list[int], effort: Effort, only: Collection[str]) -> Iterator[Row]:
    """
    Updates of every algorithm and variant beside SB3's TD3 and d3rlpy's counterpart.

    :param algos: names as in ``ALGOS``
    :param threads: numbers of threads
    :param effort: how long to measure
    :param only: variants to be measured
    """
    for device in devices():
        for count in threads if device == "cpu" else threads[:1]:
            for algo in algos:
                with arena(count) as processes:
                    yield from _train_rows(processes, algo, device, effort, only)


def _train_rows(processes: Arena, algo: str, device: str, effort: Effort, only: Collection[str]) -> Iterator[Row]:
    contenders: dict[tuple[str, str], Contender] = {
        (SB3, "train"): processes.enter("sb3", OURS, "sb3_train", device=device),
    }
    if algo in WITH_PEER and has_peers():
        contenders["d3rlpy", "fit"] = processes.enter("d3rlpy", PEERS, "train", algo=algo, device=device)
    for variant, arguments in variants(algo, only).items():
        options: dict[str, Any] = {"algo": algo, "device": device, **arguments}
        contenders["sb3_dmpo", variant] = processes.enter(variant, OURS, "train", **options)
    in_turn(list(contenders.values()), effort, wall=device != "cpu")
    own = setting(algo, {})[1]
    for (system, variant), contender in contenders.items():
        values, measure = rates(contender, device)
        columns = {
            "table": "train",
            "case": algo,
            "system": system,
            "variant": variant,
            "setting": own if system == "sb3_dmpo" else "batch 256, 2x256",
            "device": device,
            "threads": processes.threads,
            "measure": measure,
        }
        for name, other in ((SB3, (SB3, "train")), ("d3rlpy", ("d3rlpy", "fit"))):
            if other in contenders and system == "sb3_dmpo":
                yield measured(values, rates(contenders[other], device)[0], name, **columns)
        if system != "sb3_dmpo":
            yield measured(values, **columns)


def scaling_rows(threads: int, effort: Effort, only: Collection[str]) -> Iterator[Row]:
    """
    DMPO and infoDMPO by number of components, batch size and width, each against its smallest in the same turns.

    :param threads: number of threads
    :param effort: how long to measure
    :param only: variants to be measured
    """
    for algo in ("dmpo", "infodmpo"):
        for what, settings in SCALING.items():
            if algo == "infodmpo" and what != "|Z|":
                continue
            for variant, arguments in variants(algo, only).items():
                with arena(threads) as processes:
                    contenders = [
                        processes.enter(str(i), OURS, "train", algo=algo, **arguments, **changes)
                        for i, changes in enumerate(settings)
                    ]
                    in_turn(contenders, effort)
                base_words = setting(algo, settings[0])[1]
                for changes, contender in zip(settings, contenders, strict=True):
                    columns = {
                        "table": "scaling",
                        "case": f"{algo} by {what}",
                        "system": "sb3_dmpo",
                        "variant": variant,
                        "setting": setting(algo, changes)[1],
                        "device": "cpu",
                        "threads": threads,
                        "measure": "updates per CPU-second",
                    }
                    yield measured(contender.cpu, contenders[0].cpu, base_words, **columns)


def arithmetic_rows(algos: list[str]) -> Iterator[Row]:
    """
    Floating-point operations of the matrix products of an update, beside those of SB3's TD3; but for the comparison of
    sub-policies, whose operators the counter does not look into. They are the same on every machine.

    :param algos: names as in ``ALGOS``
    """
    reference = _operations(sb3_model())
    for algo in algos:
        model = make_model(algo, compile=False)
        model.learn(0)
        columns = {
            "table": "arithmetic",
            "case": algo,
            "system": "sb3_dmpo",
            "variant": "all but the comparison of sub-policies",
            "setting": setting(algo, {})[1],
            "device": "cpu",
            "threads": 1,
            "measure": "million operations per update",
        }
        yield measured([_operations(model)], [reference], SB3, **columns)


def _operations(model: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        model.train(4, model.batch_size)  # twice with the delayed part, twice without
    return float(counter.get_total_flops()) / 4e6


def check_names(algos: list[str], only: Collection[str]) -> None:
    """
    Refuse what is no algorithm or no variant.

    :param algos: names of algorithms
    :param only: names of variants
    :raises ValueError: an unknown name
    """
    for kind, names, known in (("algorithm", algos, tuple(ALGOS)), ("variant", only, tuple(VARIANTS))):
        for name in names:
            if name not in known:
                raise ValueError(f"{name!r} is no {kind}; there are {', '.join(known)}.")
