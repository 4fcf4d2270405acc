"""The comparison of two checkouts, of this one with itself."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import same_weights


@pytest.mark.slow
def test_a_checkout_is_the_same_as_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert same_weights.main([str(same_weights.HERE), "--updates", "3", "--cases", "bc"]) == 0
    assert capsys.readouterr().out == "bc: same\n"


def test_what_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[dict[str, Any]] = [{"bc": {"digest": "a", "actions": [1]}}, {"bc": {"digest": "b", "actions": [1]}}]
    results.append({"bc": {"error": "DamagedFileError: no zip"}})
    monkeypatch.setattr(same_weights, "_start", lambda *arguments: None)
    monkeypatch.setattr(same_weights, "_result", lambda process: results.pop(0))
    outcomes = same_weights.compare(Path("other"), ["bc"], 3)
    assert outcomes == [("bc", "differs: digest after training, DamagedFileError: no zip")]


def test_algorithm_that_the_other_checkout_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[dict[str, Any]] = [{}, {"rebrac": {"digest": "b", "actions": [1]}}]
    monkeypatch.setattr(same_weights, "_start", lambda *arguments: None)
    monkeypatch.setattr(same_weights, "_result", lambda process: results.pop(0))
    assert same_weights.compare(Path("other"), ["rebrac"], 3) == [("rebrac", "new")]


def test_every_algorithm_has_a_case() -> None:
    from sb3_dmpo import ALGOS

    assert {name for name, _ in same_weights.CASES.values()} == set(ALGOS)
