"""One table holds every observation once, and gives back every array to the bit."""

from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_dmpo.data import Transitions, load_transitions
from sb3_dmpo.data import table as table_module
from sb3_dmpo.data.table import TransitionTable

NAMES = ("observations", "next_observations", "actions", "rewards", "terminations")
#: Comparisons of values would take these for equal, or for different
SPECIAL = st.sampled_from([0.0, -0.0, 1.0, np.float32(1e-45), np.nan, np.inf])


@st.composite
def arrays(draw: st.DrawFn) -> dict[str, Any]:
    n, size = draw(st.integers(1, 30)), draw(st.integers(1, 3))
    states = np.array(draw(st.lists(SPECIAL, min_size=(n + 1) * size, max_size=(n + 1) * size)), np.float32)
    states = states.reshape(n + 1, size)
    following = states[1:].copy()
    for row in draw(st.lists(st.integers(0, n - 1))):
        following[row] = draw(SPECIAL)
    numbers = np.arange(n, dtype=np.float32)
    return {
        "observations": states[:-1],
        "next_observations": following,
        "actions": np.stack([numbers, -numbers], axis=1),
        "rewards": 2 * numbers,
        "terminations": numbers % 3 == 1,
    }


@settings(deadline=None)
@given(arrays(), st.integers(1, 8), st.data())
def test_nothing_is_lost(given_arrays: dict[str, Any], block: int, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "BLOCK_ROWS", block)
        table = TransitionTable.pack(**given_arrays)
    n = len(given_arrays["rewards"])
    assert len(table) == n and table.breaks[-1] == n - 1
    found = [table.observations, table.next_observations(), table.actions, table.rewards, table.dones != 0.0]
    for name, array in zip(NAMES, found, strict=True):
        assert np.ascontiguousarray(array).tobytes() == np.ascontiguousarray(given_arrays[name]).tobytes(), name
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n + 3))
    assert table.next_observations(start, stop).tobytes() == given_arrays["next_observations"][start:stop].tobytes()


def recorded(n: int, size: int, length: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(n, size)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "terminals": np.zeros(n, bool),
        "timeouts": np.arange(n) % length == length - 1,
    }


@pytest.mark.parametrize("kind", ["arrays", "hdf5"])
def test_recorded_successors_that_are_the_next_rows_are_not_stored(tmp_path: Any, kind: str) -> None:
    data = recorded(1000, 5, 100)
    data["next_observations"] = np.roll(data["observations"], -1, axis=0)
    data["next_observations"][data["timeouts"]] += 1.0
    # One in the middle is not what the next step says.
    data["next_observations"][42, 3] = np.nextafter(data["next_observations"][42, 3], np.float32(9.0))
    dataset: Any = data
    if kind == "hdf5":
        dataset = str(tmp_path / "data.hdf5")
        with h5py.File(dataset, "w") as file:
            for name, array in data.items():
                file[name] = array
    transitions = load_transitions(dataset, cache=False)
    assert transitions.table.rows.shape == (1000 + 11, 5 + 2 + 2)
    np.testing.assert_array_equal(transitions.next_observations, data["next_observations"])
    np.testing.assert_array_equal(transitions.observations, data["observations"])


def test_a_table_of_arrays_is_that_which_is_read() -> None:
    transitions, again = (load_transitions(recorded(300, 4, 30)) for _ in range(2))
    read = transitions.table
    assert read is transitions.table
    packed = TransitionTable.pack(*(getattr(again, name) for name in NAMES))
    assert not again.has_table and isinstance(again, Transitions)
    assert packed.rows.tobytes() == read.rows.tobytes() and packed.breaks.tolist() == read.breaks.tolist()
