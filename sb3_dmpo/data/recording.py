"""Long recordings in flat arrays, cut into episodes by flags: what D4RL, OGBench, d3rlpy and arrays in memory share."""

import contextlib
import difflib
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_dmpo.data.memory import available_memory
from sb3_dmpo.data.preprocessing import flat_size, flat_slices, leaf_shapes, units_match
from sb3_dmpo.data.table import BLOCK_ROWS, differ, table_bytes
from sb3_dmpo.data.transitions import (
    Advice,
    BoolArray,
    DatasetError,
    DatasetSource,
    RawTransitions,
    check_memory,
)
from sb3_dmpo.data.validation import as_arrays, check_numbers, checked_flags, checked_spaces, environment_spaces

#: What others call them
_SYNONYMS = {
    **dict.fromkeys(("obs", "observation", "state", "states"), "observations"),
    **dict.fromkeys(("next_obs", "obs_next", "new_obs", "next_observation", "next_state", "next_states"), "next_observations"),
    **dict.fromkeys(("action", "acts"), "actions"),
    **dict.fromkeys(("reward", "rews"), "rewards"),
    **dict.fromkeys(("done", "dones", "terminal", "terminated", "termination", "terminations"), "terminals"),
    **dict.fromkeys(("timeout", "truncated", "truncation", "truncations"), "timeouts"),
    **{"mask": "masks", "valid": "valids"},
}

SelfRecording = TypeVar("SelfRecording", bound="RecordingSource")
#: Arrays by name; ``observations/<key>`` for the entries of Dict observations.
Part = Mapping[str, Any]
#: What tells where episodes end, and how.
FLAGS = ("terminals", "timeouts", "masks", "valids")
FIELDS = ("observations", "next_observations", "actions", "rewards", *FLAGS)
_HOW_TIMEOUTS = (
    "Add timeouts: 1 at the last step of each episode that was only cut, 0 everywhere else (all 0 if every episode has "
    "reached its end). Without them nobody can tell where the others end"
)


class ArrayInfo(NamedTuple):
    """What is known about an array without its values."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class _Cut(NamedTuple):
    """Where the episodes of one part end, by its rows, and what comes after a step that is kept."""

    terminations: BoolArray
    ends: BoolArray
    kept: BoolArray
    #: Whether the own row stands in for a successor that is not there
    own: BoolArray
    #: Whether another observation comes than that of the next step that is kept
    breaks: BoolArray


def check_fields(label: str, names: Mapping[str, Any], how_timeouts: str | Advice = _HOW_TIMEOUTS) -> bool:
    """
    Check which arrays there are.

    :param label: the dataset, for the message
    :param names: by the names of the arrays
    :param how_timeouts: how to mend it if only ``timeouts`` are missing
    :return: whether rewards were recorded
    :raises DatasetError: one that is needed is missing
    """
    has_observations = any(name.partition("/")[0] == "observations" for name in names)
    missing = [name for name in ("actions", "terminals") if name not in names]
    missing = [*([] if has_observations else ["observations"]), *missing]
    # Files of OGBench as they are downloaded: reaching a goal is rewarded later, and their terminals are ends of any kind.
    has_rewards = "rewards" in names
    is_unlabelled = not has_rewards and "timeouts" not in names and "masks" not in names
    if not has_rewards and (missing or not is_unlabelled):
        missing.append("rewards")
    if missing:
        found = ", ".join(repr(name) for name in sorted(names)) or "nothing"
        what = f"it lacks {', '.join(map(repr, missing))}; it holds {found}"
        how = "The arrays are called observations, actions, rewards, terminals, timeouts and, where there are any, "
        how += "next_observations"
        raise DatasetError.at(label, what, how)
    if has_rewards and "timeouts" not in names and "masks" not in names:
        what = f"it lacks 'timeouts'; it holds {', '.join(repr(name) for name in sorted(names))}"
        raise DatasetError.at(label, what, how_timeouts)
    return has_rewards


def refuse_misnamed(label: str, names: Iterable[str], known: Collection[str] = ()) -> None:
    """
    Refuse arrays with other people's names for ours. What nobody could mean by them is passed over: files of D4RL and OGBench
    hold much that no algorithm needs.

    :param label: the dataset, for the message
    :param names: names of all arrays
    :param known: names that have a meaning here; what is nearly one of them is misspelt
    :raises DatasetError: naming them
    """
    given, meant = set(names), {}
    for name in sorted(given - {*FIELDS, *known}):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        ours = _SYNONYMS.get(name.lower(), near[0] if near else None)
        if ours is not None and ours not in given:
            meant[name] = ours
    if meant:
        theirs, ours_joined = (", ".join(map(repr, words)) for words in (meant, meant.values()))
        means, it, it_is = ("means", "it", "it is") if len(meant) == 1 else ("mean", "them", "they are")
        what = f"{theirs} {means} nothing here"
        raise DatasetError.at(label, what, f"Call {it} {ours_joined} if that is what {it_is}; else leave {it} out")


def spaces_of(
    label: str,
    infos: Mapping[str, ArrayInfo],
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """
    The spaces that arrays are taken to be of where they were not given: any numbers as observations, actions in [-1, 1].

    :param label: the dataset, for messages
    :param infos: the arrays by name
    :param observation_space: the space of the observations, if it is known
    :param action_space: the space of the actions, if it is known
    :raises DatasetError: for arrays of other shapes than those of any such spaces
    """
    return (
        _observation_space_of(label, infos) if observation_space is None else observation_space,
        _action_space_of(label, infos) if action_space is None else action_space,
    )


def _observation_space_of(label: str, infos: Mapping[str, ArrayInfo]) -> spaces.Space[Any]:
    leaves: dict[str, spaces.Space[Any]] = {}
    for name, info in infos.items():
        field, _, key = name.partition("/")
        if field != "observations":
            continue
        check_numbers(label, info.dtype, name)
        if len(info.shape) < 2:
            what = f"it has the shape {info.shape}, expected (steps, width)"
            raise DatasetError.at(label, what, as_arrays("give every step a row, observations[:, None],"), field=name)
        is_image = info.dtype == np.uint8 and len(info.shape) > 2
        shape = info.shape[1:]
        leaves[key] = spaces.Box(0, 255, shape, np.uint8) if is_image else spaces.Box(-np.inf, np.inf, shape, np.float32)
    return leaves[""] if set(leaves) == {""} else spaces.Dict(leaves)


def _action_space_of(label: str, infos: Mapping[str, ArrayInfo]) -> spaces.Box:
    shape, dtype = infos["actions"]
    check_numbers(label, dtype, "actions")
    if len(shape) != 2:
        what = f"it has the shape {shape}, expected (steps, width)"
        if len(shape) < 2 and dtype.kind in "biu":
            raise DatasetError.at(
                label, f"{what}: its actions are discrete", "Use an algorithm for discrete actions", field="actions"
            )
        change = (
            "give every step a row, actions[:, None]," if len(shape) < 2 else "flatten, actions.reshape(len(actions), -1),"
        )
        raise DatasetError.at(label, what, as_arrays(change), field="actions")
    return spaces.Box(-1.0, 1.0, shape[1:], np.float32)


@dataclass
class RecordingSource(DatasetSource):
    """
    Rows ``observations``, ``actions``, ``rewards`` and flags, in one part or several; episodes end with their part.

    ``terminals`` end the task and ``timeouts`` only the episode (D4RL). Where there are ``masks`` (OGBench), 0 marks what
    ends the task, also in the middle of an episode, and ``terminals`` end the episode alone. ``valids`` of 0 (OGBench's
    compact form) mark rows that only hold the successor of the row before.

    Without ``next_observations`` a step's successor is the next row. That of a step cut by a time limit is not there, so the
    step is left out, and so is a last step that carries no flag. A terminal step is always kept; its own observation stands
    in for the successor, which no target uses.
    """

    @abstractmethod
    def parts(self) -> contextlib.AbstractContextManager[Iterator[Part]]:
        """The parts one after the other, each only until the next one is asked for; may be asked for more than once."""

    def for_environment(self: SelfRecording, env: Any) -> SelfRecording:
        def fitting(found: spaces.Space[Any], own: spaces.Space[Any]) -> spaces.Space[Any]:
            # Spaces of another size or unit stay out: the comparison with the environment says which they are.
            is_alike = isinstance(found, spaces.Box | spaces.Dict) and flat_size(found) == flat_size(own)
            return found if is_alike and isinstance(found, type(own)) else own

        observed, acted = environment_spaces(env, self.label)
        if not units_match(self.observation_space, observed):
            observed = self.observation_space
        observation_space, action_space = checked_spaces(
            fitting(observed, self.observation_space), fitting(acted, self.action_space), self.label
        )
        return replace(self, observation_space=observation_space, action_space=action_space)

    def read(self, progress_bar: bool | None) -> RawTransitions:
        lengths: list[npt.NDArray[np.int64]] = []
        cuts: list[_Cut] = []
        with self.parts() as parts:
            for number, part in enumerate(parts):
                cuts.append(self._cut(part, self._place(number)))
                lengths.append(_lengths(cuts[-1]))
        all_lengths = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
        ids = np.flatnonzero(all_lengths).astype(np.int64)
        if not len(ids):
            self._refuse_unfollowed(sum(int(cut.own.sum()) for cut in cuts))
        has_next = self._has_next
        breaks = np.flatnonzero(np.concatenate([cut.breaks[cut.kept] for cut in cuts])).astype(np.int64) if cuts else ids
        next_field = ("next_observations", 0) if has_next else ("observations", 1)
        raw = self.allocate(all_lengths[ids], ids, breaks, next_field=next_field)
        raw.truncations[:] = False
        raw.truncations[np.cumsum(raw.episode_lengths) - 1] = True
        start, n_breaks = 0, 0
        n_rows = sum(len(cut.kept) for cut in cuts)
        with self.progress(n_rows, progress_bar) as bar, np.errstate(over="ignore"), self.parts() as parts:
            for part, cut in zip(parts, cuts, strict=True):
                stop = start + int(cut.kept.sum())
                raw.terminations[start:stop] = cut.terminations[cut.kept]
                self._fill(raw, part, cut, (start, n_breaks), bar)
                start, n_breaks = stop, n_breaks + int(cut.breaks.sum())
        raw.truncations &= ~raw.terminations
        return raw

    def _refuse_unfollowed(self, n_ends: int) -> None:
        """
        Say why there are no transitions where there are steps.

        :param n_ends: how many were left out since nothing follows on them
        :raises DatasetError: there are some
        """
        if n_ends:
            what = (
                f"none of its {n_ends} steps is followed by another one of its episode, so that what came after is not known"
            )
            how = "Add next_observations; or, if it was the task that ended there, make terminals 1 and timeouts 0"
            raise DatasetError.at(self.label, what, how)

    def _place(self, number: int) -> dict[str, int | str]:
        """Where a part is, for messages."""
        return {}

    @property
    @abstractmethod
    def _has_next(self) -> bool:
        """Whether ``next_observations`` were recorded."""

    def _columns(self, field: str) -> dict[str, tuple[slice, tuple[int, ...]]]:
        """Columns and shape of every entry of the observations, by the name of its array."""
        shapes = leaf_shapes(self.observation_space)
        return {
            f"{field}/{key}" if key else field: (columns, shapes[key])
            for key, columns in flat_slices(self.observation_space).items()
        }

    def _check_shapes(self, part: Part, place: dict[str, int | str]) -> int:
        """Number of rows, if all arrays have as many."""
        rows_of = "rewards" if "rewards" in part else "actions"
        shape = tuple(part[rows_of].shape)
        if not shape:
            raise DatasetError.at(self.label, "it is a single number", "Write one for every step", **place, field=rows_of)
        n_rows = int(shape[0])
        expected: dict[str, int] = {"actions": self.action_space.shape[0]}
        for field in ("observations", *(["next_observations"] if self._has_next else [])):
            expected |= {name: int(np.prod(size)) for name, (_, size) in self._columns(field).items()}
        for name in ("rewards", *expected, *FLAGS):
            if name not in part:
                if name in expected:
                    raise DatasetError.at(self.label, "it is missing", "Write it again", **place, field=name)
                continue
            found = tuple(part[name].shape)
            check_numbers(self.label, part[name].dtype, name, **place)
            width = int(np.prod(found[1:]))
            # Some files keep single numbers as columns
            if not found or found[0] != n_rows or width != expected.get(name, 1) or (name not in expected and len(found) > 2):
                wanted = (n_rows, expected[name]) if name in expected else (n_rows,)
                what = f"it has the shape {found}, expected {wanted} as there are {n_rows} {rows_of}"
                raise DatasetError.at(self.label, what, "Every array needs one row for every step", **place, field=name)
        return n_rows

    def _cut(self, part: Part, place: dict[str, int | str]) -> _Cut:
        n_rows = self._check_shapes(part, place)
        if self.map_folder is None:
            needed = table_bytes(n_rows, flat_size(self.observation_space), self.action_space.shape[0])
            check_memory(self.label, needed, available_memory())
        flags = {
            name: checked_flags(self.label, np.asarray(part[name][:]).reshape(-1), name, **place)
            for name in FLAGS
            if name in part
        }
        ends = flags["terminals"].copy()
        if "masks" in flags:
            terminations = ~flags["masks"]
        elif "timeouts" in flags:
            terminations = flags["terminals"]
        else:
            terminations = np.zeros(n_rows, np.bool_)
        if "timeouts" in flags:
            ends |= flags["timeouts"]
        ends[-1:] = True
        if "valids" in flags:
            kept = flags["valids"].copy()
            if not self._has_next:  # nothing follows the last row
                kept[-1:] &= terminations[-1:]
        elif self._has_next:
            kept = np.ones(n_rows, np.bool_)
        else:
            kept = terminations | ~ends
        own = np.zeros(n_rows, np.bool_) if "valids" in flags or self._has_next else ends
        breaks = own | np.append(~kept[1:], n_rows > 0)[:n_rows]
        if self._has_next:
            self._find_breaks(part, breaks)
        return _Cut(terminations, ends, kept, own, breaks & kept)

    def _find_breaks(self, part: Part, breaks: BoolArray) -> None:
        """
        Mark the rows whose recorded successor is not the next row.

        :param part: a part with successors
        :param breaks: the rows that are marked already, shape ``(N,)``
        """
        for start in range(0, len(breaks) - 1, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, len(breaks) - 1)
            for name in self._columns("observations"):
                following = _table(part[f"next_{name}"][start:stop])
                breaks[start:stop] |= differ(following, _table(part[name][start + 1 : stop + 1]))

    def _fill(self, raw: RawTransitions, part: Part, cut: _Cut, first: tuple[int, int], bar: Any) -> None:
        """
        Copy the rows of a part that are kept, block by block.

        :param raw: where they go
        :param part: the part
        :param cut: where its episodes end
        :param first: numbers of the first transition and of the first break that go there
        :param bar: progress bar
        """
        n_rows, table = len(cut.kept), raw.table
        first_row, first_break = first
        for start in range(0, n_rows, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, n_rows)
            keep, breaks = cut.kept[start:stop], cut.breaks[start:stop]
            rows = slice(first_row, first_row + int(keep.sum()))
            places = slice(first_break, first_break + int(breaks.sum()))
            for name, (columns, _) in self._columns("observations").items():
                values = _table(part[name][start : stop + (not self._has_next)])
                table.observations[rows, columns] = values[: stop - start][keep]
                if self._has_next:
                    following = _table(part[f"next_{name}"][start:stop])
                else:
                    following = _successors(values, cut.own[start:stop])
                table.last_observations[places, columns] = following[breaks]
                del values, following  # before the next ones are made
            table.actions[rows] = _table(part["actions"][start:stop])[keep]
            table.rewards[rows] = np.asarray(part["rewards"][start:stop]).reshape(-1)[keep] if "rewards" in part else 0.0
            first_row, first_break = rows.stop, places.stop
            bar.update(stop - start)


def _table(values: Any) -> npt.NDArray[Any]:
    """Values as rows of numbers."""
    array = np.asarray(values)
    return array.reshape(len(array), -1)


def _lengths(cut: _Cut) -> npt.NDArray[np.int64]:
    """Number of kept rows of every episode of a part; 0 where none is."""
    n_rows = len(cut.kept)
    if n_rows == 0:
        return np.zeros(0, np.int64)
    starts = np.flatnonzero(np.concatenate([[True], cut.ends[:-1]]))
    lengths: npt.NDArray[np.int64] = np.add.reduceat(cut.kept, starts, dtype=np.int64)
    return lengths


def _successors(values: npt.NDArray[Any], own: BoolArray) -> npt.NDArray[Any]:
    """The next row of every step, its own row where that is asked for and for the last row of a part."""
    here = values[: len(own)]
    following = np.concatenate([values[1:], values[-1:]])[: len(own)]
    return np.where(own[:, None], here, following)
