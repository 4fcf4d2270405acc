"""The table of what every fast path is worth: that it is made, and that a row measured again keeps its verdict."""

import csv
from pathlib import Path
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import fast_path_ratios
from benchmarks.timing import ours, turns
from benchmarks.timing.server import Contenders


class Operators(TorchDispatchMode):
    """Remembers which operators of the package are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "sb3_dmpo":
            self.names.add(func._opname)
        return func(*args, **(kwargs or {}))


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def contenders(module: str, **options: Any) -> Contenders:
        return Contenders(module)

    monkeypatch.setattr(turns, "Server", contenders)
    monkeypatch.setattr(fast_path_ratios, "Effort", lambda *_: turns.Effort(0.001, 2, 1))
    monkeypatch.setattr(ours, "N_TRANSITIONS", 1000)
    path = tmp_path / "ratios.csv"
    fast_path_ratios.main(["--algos", "dmpo", "--modes", "eager", "--output", str(path)])
    rows = read(path)
    assert tuple(rows[0]) == fast_path_ratios.COLUMNS
    assert [row["piece"] for row in rows] == ["gate operator", "gate_table operator", "both gate operators"]
    assert all(float(row[name]) > 0 for row in rows for name in fast_path_ratios.RATIOS)
    fast_path_ratios.write(path, [row | {"verdict": "kept"} for row in rows])
    fast_path_ratios.write(path, [{name: rows[1][name] for name in fast_path_ratios.KEY} | {"speedup": "9"}])
    assert [(row["verdict"], row["speedup"] == "9") for row in read(path)] == [("kept", i == 1) for i in range(3)]
    # Of another machine whose processor has the same name
    fast_path_ratios.write(other := tmp_path / "twice.csv", [rows[0] | {"speedup": "7"}])
    other.write_text(other.read_text() + "".join(path.read_text().splitlines(keepends=True)[1:2]))
    fast_path_ratios.write(other, [{name: rows[0][name] for name in fast_path_ratios.KEY} | {"speedup": "9"}])
    assert [row["speedup"] for row in read(other)] == ["7", "9"]


@pytest.mark.parametrize(
    "algo, without, expected",
    [
        ("dmpo", "", {"gate", "gate_table"}),
        ("dmpo", "gate operator", {"gate_table"}),
        ("dmpo", "gate_table operator", {"gate"}),
        ("dmpo", "both gate operators", set()),
        ("cql", "CQL's action tables", set()),
    ],
)
def test_a_piece_is_switched_off(monkeypatch: pytest.MonkeyPatch, algo: str, without: str, expected: set[str]) -> None:
    monkeypatch.setattr(ours, "N_TRANSITIONS", 1000)
    model = ours.make_model(algo, compile=False)
    with fast_path_ratios.WITHOUT[without](), Operators() as called:
        model.learn(2)
    assert called.names == expected


def test_the_published_table_says_why() -> None:
    rows = read(fast_path_ratios.RESULTS)
    assert tuple(rows[0]) == fast_path_ratios.COLUMNS
    assert all(row["verdict"] in ("kept", "deleted") and row["reason"] for row in rows)
    kept = {row["piece"] for row in rows if row["verdict"] == "kept"}
    assert {piece for pieces in fast_path_ratios.PIECES.values() for piece in pieces} <= kept
