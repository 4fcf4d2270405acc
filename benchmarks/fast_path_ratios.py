"""
What every fast path is worth: ``python benchmarks/fast_path_ratios.py`` trains with and without each piece of code that is
there for speed alone, in turn with each other and with SB3's TD3, and writes ``benchmarks/results/fast_path_ratios.csv``.

Something plain takes the place of a piece while a contender runs; the package itself has no such switch. ``--quick`` is for a
look. In the CSV, rows of deleted pieces come from this script as it was when they still existed; there, "sweep" means the
gate's table.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch as th
from torch import nn

from benchmarks.timing import ours
from benchmarks.timing.rows import number, origin, spread
from benchmarks.timing.turns import OURS, QUICK, Contender, Effort, arena, in_turn
from sb3_dmpo.cli.results import read_rows, write_rows
from sb3_dmpo.common.networks import chosen_actions
from sb3_dmpo.cql import action_tables
from sb3_dmpo.dmpo import gate
from sb3_dmpo.dmpo.policies import MixturePolicy

RESULTS = Path(__file__).parent / "results" / "fast_path_ratios.csv"
KEY = ("piece", "algorithm", "mode", "cpu")
RATIOS = ("with_per_sb3_td3", "without_per_sb3_td3", "speedup", "speedup_low", "speedup_high")
#: A person writes the verdict and its reason; both stay when a row is measured again.
COLUMNS = (*KEY[:3], *RATIOS, "blocks", "verdict", "reason", "cpu", "command", "commit")

MODES: dict[str, dict[str, Any]] = {
    "eager": {"compile": False, "gating_dtype": "float32"},
    "compiled": {"compile": True, "gating_dtype": "float32"},
    "eager-bfloat16": {"compile": False, "gating_dtype": "bfloat16"},
    "compiled-bfloat16": {"compile": True, "gating_dtype": "bfloat16"},
}
#: Hidden layers where they are not 2x256
NET_ARCH = {"cql": [256, 256, 256]}


def _plain_table(
    policy: MixturePolicy, observations: th.Tensor, actor: nn.Module, critic: nn.Module, dtype: th.dtype
) -> tuple[th.Tensor, th.Tensor]:
    with th.no_grad():
        return policy.component_table(observations, actor, critic)


def _best_of_plain_table(
    policy: MixturePolicy, observations: th.Tensor, actor: nn.Module, critic: nn.Module
) -> tuple[th.Tensor, th.Tensor]:
    values, actions = _plain_table(policy, observations, actor, critic, observations.dtype)
    best, index = values.max(dim=1, keepdim=True)
    return best, chosen_actions(actions, index)


GATE = "gate operator"
TABLE = "gate_table operator"
BOTH = "both gate operators"
CQL = "CQL's action tables"
#: What switches a piece off, as a context
WITHOUT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "": nullcontext,
    GATE: lambda: mock.patch.object(gate, "_gate_pays", lambda *_: False),
    TABLE: lambda: mock.patch.object(MixturePolicy, "gate_table", _plain_table),
    BOTH: lambda: mock.patch.multiple(MixturePolicy, gate_table=_plain_table, _best_component=_best_of_plain_table),
    CQL: lambda: mock.patch.object(action_tables, "is_blockwise", lambda *_: False),
}
#: Pieces by algorithm, beside compilation and the bfloat16 gate
PIECES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("dmpo", "infodmpo"), (GATE, TABLE, BOTH)),
    "cql": (CQL,),
    **dict.fromkeys(("td3_bc", "bc"), ()),
}

#: A mode, and the piece that is switched off in it
Setting = tuple[str, str]


def comparisons(algo: str, modes: Sequence[str]) -> list[tuple[str, Setting, Setting]]:
    """
    Pieces, and the settings with and without them.

    :param algo: as in ``PIECES``
    :param modes: those that are measured
    """
    pairs = [("compile", "compiled", "eager")]
    if "gating_dtype" in ours.signature(algo):
        pairs.append(("compile", "compiled-bfloat16", "eager-bfloat16"))
        pairs += [("bfloat16 gate", f"{mode}-bfloat16", mode) for mode in ("eager", "compiled")]
    found = [(piece, (fast, ""), (slow, "")) for piece, fast, slow in pairs if {fast, slow} <= set(modes)]
    in_float32 = [mode for mode in ("eager", "compiled") if mode in modes]
    return found + [(piece, (mode, ""), (mode, piece)) for mode in in_float32 for piece in PIECES[algo]]


def train(algo: str, mode: str, without: str) -> Callable[[int], None]:
    """
    Updates without a piece: a factory of the server.

    :param algo: as in ``PIECES``
    :param mode: as in ``MODES``
    :param without: as in ``WITHOUT``
    """
    known = ours.signature(algo)
    arguments = {key: value for key, value in MODES[mode].items() if key in known}
    if algo in NET_ARCH:
        arguments["policy_kwargs"] = {"net_arch": NET_ARCH[algo]}
    one_run = ours.train(algo, **arguments)

    def run(n: int) -> None:
        # The thread of the run works only in here.
        with WITHOUT[without]():
            one_run(n)

    return run


def measure(algo: str, effort: Effort, modes: Sequence[str]) -> list[dict[str, Any]]:
    """
    Rows of one algorithm.

    :param algo: as in ``PIECES``
    :param effort: how long to measure
    :param modes: as in ``MODES``
    """
    compared = comparisons(algo, modes)
    settings = dict.fromkeys(setting for _, *pair in compared for setting in pair)
    with arena() as found:
        sb3 = found.enter("sb3", OURS, "sb3_train")
        contenders = {
            (mode, piece): found.enter(
                f"{mode} {piece}", "benchmarks.fast_path_ratios", "train", algo=algo, mode=mode, without=piece
            )
            for mode, piece in settings
        }
        in_turn([sb3, *contenders.values()], effort)

    def ratio(one: Contender, other: Contender) -> list[str]:
        return [number(value) for value in spread([a / b for a, b in zip(one.cpu, other.cpu, strict=True)])]

    rows = []
    for piece, *pair in compared:
        fast, slow = (contenders[setting] for setting in pair)
        ratios = dict(zip(RATIOS, (ratio(fast, sb3)[0], ratio(slow, sb3)[0], *ratio(fast, slow)), strict=True))
        row = {"piece": piece, "algorithm": algo, "mode": pair[0][0], "blocks": len(fast.cpu)} | ratios
        rows.append(row | {name: value for name, value in origin().items() if name in COLUMNS})
    return rows


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """
    Write the rows in place of those that they measure again; the others stay in the file, also those of another processor of
    the same name.

    :param path: CSV file
    :param rows: the rows
    """
    kept: list[dict[str, Any]] = [dict(row) for row in read_rows(path)]
    for row in rows:
        same = [old for old in kept if all(old[name] == row[name] for name in KEY)]
        if same:
            same[-1].update(row)
        else:
            kept.append(row)
    write_rows(path, COLUMNS, kept)


def main(argv: Sequence[str] | None = None) -> None:
    """
    Measure, print and save.

    :param argv: arguments; None: those of the process
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", nargs="+", default=list(PIECES), choices=list(PIECES))
    here = list(MODES) if gate.has_fast_bfloat16(th.device("cpu")) else list(MODES)[:2]
    parser.add_argument("--modes", nargs="+", default=here, choices=list(MODES), help="default: those for this processor")
    parser.add_argument("--seconds", type=float, default=1.0, help="processor seconds of a block")
    parser.add_argument("--repeats", type=int, default=9, help="blocks of every contender")
    parser.add_argument("--quick", action="store_true", help="short blocks and few of them; nothing is written")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    for algo in options.algos:
        rows = measure(algo, QUICK if options.quick else Effort(options.seconds, options.repeats), options.modes)
        for row in rows:
            quartiles = f"({row['speedup_low']} to {row['speedup_high']})"
            print(f"{algo:9} {row['mode']:18} {row['piece']:20} {row['speedup']:>6}x {quartiles}", flush=True)
        if not options.quick:
            write(options.output, rows)


if __name__ == "__main__":
    main()
