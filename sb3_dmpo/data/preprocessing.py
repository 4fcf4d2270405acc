"""Observations and actions between the shapes of an environment and the flat float32 vectors of the networks."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

KEY_SEPARATOR = "/"


def _joined_leaves(space: spaces.Dict, prefix: str = "") -> Iterator[tuple[str, spaces.Space[Any]]]:
    """Yield the leaves of a nested Dict space with their joined keys, e.g. ``"achieved_goal/kettle"``."""
    for key, subspace in space.spaces.items():
        if not isinstance(key, str):
            raise ValueError(f"The keys of a Dict observation space have to be strings, got {key!r}")
        joined = f"{prefix}{key}"
        if isinstance(subspace, spaces.Dict):
            yield from _joined_leaves(subspace, joined + KEY_SEPARATOR)
        else:
            yield joined, subspace


class SpaceError(ValueError):
    """
    A space that the package cannot learn in. The message is for somebody who has an environment.

    :param what: what is wrong with it
    :param environment: what to do about an environment
    :param recorded: what to do about data that are recorded already, None: nothing else
    """

    def __init__(self, what: str, environment: str, recorded: str | None = None) -> None:
        super().__init__(f"{what}: {environment}")
        self.what, self.environment, self.recorded = what, environment, recorded


class UnboundedError(SpaceError):
    """An action space without finite bounds."""


def _check_leaf(space: spaces.Space[Any], name: str) -> spaces.Box:
    if not isinstance(space, spaces.Box) or space.dtype is None or not np.issubdtype(space.dtype, np.number):
        raise SpaceError(
            f"{name} is {space}, but only numeric Box spaces (and Dicts of them) are supported",
            "gymnasium.wrappers.FlattenObservation makes numbers of Discrete, MultiBinary, Tuple and Text spaces, "
            "TransformObservation of all others",
            "turn the recorded observations into numbers",
        )
    if np.issubdtype(space.dtype, np.complexfloating):
        how = "observe real and imaginary parts"
        raise SpaceError(f"{name} holds {space.dtype}, no real numbers", how, "split the recorded observations")
    if int(np.prod(space.shape)) == 0:
        raise SpaceError(
            f"{name} is {space}, which holds no numbers",
            "leave it out, e.g. with gymnasium.wrappers.FilterObservation",
            "leave it out of the recorded observations",
        )
    return space


def canonical_observation_space(space: spaces.Space[Any]) -> spaces.Box | spaces.Dict:
    """
    The space as the package keeps it: a Box as it is, a Dict (nested or not) with a single level.

    The keys of nested Dicts are joined with ``/`` (``"achieved_goal/kettle"``) and sorted.

    :param space: observation space of an environment or of a dataset
    :return: a Box, or a Dict of Boxes with sorted keys
    :raises ValueError: for a leaf that is not a numeric Box (naming its key), for an empty Dict, and for keys
        that coincide when joined
    """
    if not isinstance(space, spaces.Dict):
        return _check_leaf(space, "The observation space")
    leaves: dict[str, spaces.Space[Any]] = {}
    for key, leaf in _joined_leaves(space):
        if key in leaves:
            raise ValueError(f"Two entries of the Dict observation space have the joined key {key!r}: rename one of them")
        leaves[key] = _check_leaf(leaf, f"Key {key!r} of the observation space")
    if not leaves:
        raise ValueError("The Dict observation space has no keys: there is nothing to learn from")
    return spaces.Dict({key: leaves[key] for key in sorted(leaves)})


def masked_index(values: Any) -> tuple[int, ...] | None:
    """
    Where the first masked entry of an ``np.ma.MaskedArray``, or of a list of them, is; None if there is none.

    :param values: anything that may become an array, which would lose its mask
    """
    if isinstance(values, np.ma.MaskedArray):
        # A record has a mask per field; it holds no numbers anyway.
        if values.dtype.names is not None:
            return None
        places = np.argwhere(np.ma.getmask(values))
        return tuple(places[0].tolist()) if len(places) else None
    if isinstance(values, list | tuple):
        for number, entry in enumerate(values):
            place = masked_index(entry) if isinstance(entry, np.ma.MaskedArray) else None
            if place is not None:
                return (number, *place)
    return None


def unmasked(values: Any, name: str) -> Any:
    """
    The values themselves, if none is masked: what stands behind a mask is no measurement.

    :param values: what an environment gives
    :param name: what it is, for the message
    :raises ValueError: an entry is masked
    """
    index = masked_index(values)
    if index is not None:
        where = f" at index {index}" if index else ""
        raise ValueError(
            f"{name} is masked{where}: the policy needs every number. Check the sensor or env, or fill it in, e.g. with "
            "`array.filled(value)`."
        )
    return values


def _joined_entries(observation: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[Any, Any]]:
    """Yield the entries of a nested observation with their joined keys, as :func:`_joined_leaves` those of a space."""
    for key, value in observation.items():
        joined = f"{prefix}{key}" if prefix else key
        if isinstance(value, Mapping):
            yield from _joined_entries(value, f"{joined}{KEY_SEPARATOR}")
        else:
            yield joined, value


def canonical_observation(observation: Any) -> Any:
    """
    The observation as the canonical space describes it: an array as it is, a nested dict with a single level.

    :param observation: what an environment gives, single or batched
    :return: an array, or a dict of arrays with ``/`` in the keys of nested entries
    :raises ValueError: an entry is masked
    """
    if not isinstance(observation, Mapping):
        return np.asarray(unmasked(observation, "observation"))
    return {key: np.asarray(unmasked(value, f"observation['{key}']")) for key, value in _joined_entries(observation)}


def leaf_shapes(space: spaces.Space[Any]) -> dict[str, tuple[int, ...]]:
    """
    Shape of every entry of the observation by its key; a Box has the single key ``""``.

    :param space: canonical observation space
    """
    leaves = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    return {key: leaf.shape or () for key, leaf in leaves.items()}


def flat_slices(space: spaces.Space[Any]) -> dict[str, slice]:
    """
    Where each entry of the observation lies in the flat vector.

    :param space: canonical observation space
    :return: columns by key; a Box has the single key ``""``
    """
    shapes = leaf_shapes(space)
    stops = np.cumsum([int(np.prod(shape)) for shape in shapes.values()]).tolist()
    return {key: slice(start, stop) for key, start, stop in zip(shapes, [0, *stops], stops, strict=False)}


def flat_size(space: spaces.Space[Any]) -> int:
    """
    Width of the flat observation vector.

    :param space: canonical observation space
    :return: number of columns that ``flatten_observations`` gives
    """
    return sum(int(np.prod(shape)) for shape in leaf_shapes(space).values())


def _flatten_leaf(array: npt.ArrayLike, space: spaces.Space[Any], name: str) -> npt.NDArray[np.float32]:
    values = np.asarray(array)
    assert space.shape is not None
    if values.ndim == 0 or values.shape[1:] != space.shape:
        raise ValueError(f"{name} has the shape {values.shape}, expected (batch, {', '.join(map(str, space.shape))})")
    # A float64 beyond the range of float32 turns into inf, which every caller checks for
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False).reshape(len(values), -1)


def flatten_observations(observation: Any, space: spaces.Space[Any]) -> npt.NDArray[np.float32]:
    """
    Observations as float32 vectors, shape ``(batch, S)``.

    The entries of a Dict are put side by side in the order of the canonical space's keys.

    :param observation: array ``(batch, *shape)`` or dict of such arrays, with one level
    :param space: canonical observation space
    :return: flat observations; shares memory with the input where nothing had to be converted
    :raises ValueError: for missing or unknown keys, wrong shapes or batch sizes that differ, naming the key
    """
    if not isinstance(space, spaces.Dict):
        if isinstance(observation, Mapping):
            raise ValueError(f"The observation is a dict with the keys {sorted(observation)}, expected an array")
        return _flatten_leaf(observation, space, "The observation")
    if not isinstance(observation, Mapping):
        raise ValueError(f"The observation is no dict, expected one with the keys {list(space.spaces)}")
    if set(observation) != set(space.spaces):
        raise ValueError(f"The observation has the keys {sorted(observation)}, expected {list(space.spaces)}")
    leaves = [_flatten_leaf(observation[key], leaf, f"Observation {key!r}") for key, leaf in space.spaces.items()]
    if len({len(leaf) for leaf in leaves}) > 1:
        sizes = {key: len(leaf) for key, leaf in zip(space.spaces, leaves, strict=True)}
        raise ValueError(f"The entries of the observation differ in their batch size: {sizes}")
    return leaves[0] if len(leaves) == 1 else np.concatenate(leaves, axis=1)


def _of_dtype(values: npt.NDArray[np.float32], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if not np.issubdtype(dtype, np.integer):
        # float16 could not hold all that was read.
        return values.astype(np.result_type(dtype, np.float32), copy=False)
    largest = np.iinfo(dtype).max
    with np.errstate(invalid="ignore"):
        whole = values.astype(dtype)
    # float32 has rounded the largest integers up, beyond what the dtype holds.
    whole[values >= np.float32(largest)] = largest
    return whole


def unflatten_observations(flat: npt.NDArray[np.float32], space: spaces.Space[Any]) -> Any:
    """
    Observations as an environment gives them, from what :func:`flatten_observations` made of them: an array
    ``(batch, *shape)`` or a dict (of dicts) of such arrays, integers where the space has integers.

    :param flat: flat observations, shape ``(batch, S)``
    :param space: observation space, nested or not, whose canonical form the columns are of
    """
    columns = flat_slices(canonical_observation_space(space))

    def part_of(part: spaces.Space[Any], prefix: str) -> Any:
        if isinstance(part, spaces.Dict):
            return {key: part_of(entry, f"{prefix}{KEY_SEPARATOR}{key}" if prefix else key) for key, entry in part.items()}
        assert part.shape is not None and part.dtype is not None
        return _of_dtype(flat[:, columns[prefix]].reshape(len(flat), *part.shape), part.dtype)

    return part_of(space, "")


def nested_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """
    A space whose Dicts are nested again where keys were joined with ``/``: files have groups there.

    :param space: canonical observation space
    :raises ValueError: a key names both an entry and a group of entries
    """
    if not isinstance(space, spaces.Dict):
        return space
    tree: dict[str, Any] = {}
    for key, leaf in space.items():
        *groups, name = key.split(KEY_SEPARATOR)
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
            if not isinstance(branch, dict):
                raise ValueError(f"{group!r} is an entry of the observations, and {key!r} is one below it: rename one of them")
        branch[name] = leaf

    def as_space(part: Any) -> spaces.Space[Any]:
        return spaces.Dict({key: as_space(entry) for key, entry in part.items()}) if isinstance(part, dict) else part

    return as_space(tree)


def _holds_integers(leaf: spaces.Space[Any]) -> bool:
    return leaf.dtype is not None and bool(np.issubdtype(leaf.dtype, np.integer))


def units_match(recorded: spaces.Space[Any], found: spaces.Space[Any]) -> bool:
    """
    Whether no entry is of integers in one space and of floats in the other, as pixels of 0 to 255 and of 0 to 1 are.

    A recorded Box of floats without any bounds says nothing: arrays without spaces are taken to be of it, also integers.

    :param recorded: canonical observation space of data, or of a model
    :param found: canonical observation space; entries that only one of them has are not compared
    """
    theirs = found.spaces if isinstance(found, spaces.Dict) else {"": found}
    for key, leaf in (recorded.spaces if isinstance(recorded, spaces.Dict) else {"": recorded}).items():
        if key in theirs and _holds_integers(leaf) != _holds_integers(theirs[key]):
            is_any = isinstance(leaf, spaces.Box) and not (leaf.bounded_below.any() or leaf.bounded_above.any())
            if not is_any:
                return False
    return True


def observation_spaces_match(recorded: spaces.Space[Any], found: spaces.Space[Any]) -> bool:
    """
    Whether observations of one space can stand in for those of the other: same canonical keys, same shapes, and no integers
    beside floats (see :func:`units_match`).

    Bounds and the widths of numbers are not compared, versions of an environment differ in them.

    :param recorded: canonical observation space of data, or of a model
    :param found: canonical observation space
    """
    return leaf_shapes(recorded) == leaf_shapes(found) and units_match(recorded, found)


def action_spaces_match(expected: spaces.Box, found: spaces.Box) -> bool:
    """
    Whether scaled actions mean the same in both spaces: same shape, same bounds up to rounding.

    :param expected: action space
    :param found: action space
    """
    return expected.shape == found.shape and np.allclose([expected.low, expected.high], [found.low, found.high], rtol=1e-5)


def _parts(space: Any) -> list[Any]:
    """The innermost spaces."""
    inner = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
    return [leaf for part in inner for leaf in (_parts(part) if isinstance(part, spaces.Dict | spaces.Tuple) else [part])]


def check_action_space(space: spaces.Space[Any], where: str) -> spaces.Box:
    """
    The space itself if the package can act in it: a bounded, one-dimensional, real-valued Box.

    :param space: action space of an environment or of a dataset
    :param where: what the space belongs to, for the message, e.g. ``"dataset 'D4RL/pen/human-v2'"``
    :return: the same space
    :raises ValueError: for any other space, saying how to mend it
    """
    name = f"The action space of {where}"
    if isinstance(space, spaces.Dict | spaces.Tuple) and all(isinstance(part, spaces.Box) for part in _parts(space)):
        raise SpaceError(
            f"{name} is {space}, expected a single Box",
            "gymnasium.wrappers.TransformAction(env, lambda action: unflatten(space, action), flatten_space(space)), with the "
            "functions of gymnasium.spaces.utils and space = env.action_space, lets it take flat actions",
            "join the parts of the recorded actions, numpy.concatenate([...], axis=1),",
        )
    if not isinstance(space, spaces.Box):
        raise SpaceError(
            f"{name} is {space}, but only continuous actions (a bounded Box) are supported",
            "use an algorithm for discrete actions",
        )
    if len(space.shape) != 1 or space.shape[0] == 0:
        size = int(np.prod(space.shape))
        raise SpaceError(
            f"{name} has the shape {space.shape}, expected one dimension",
            f"gymnasium.wrappers.TransformAction(env, lambda action: action.reshape({space.shape}), Box(low, high, "
            f"({size},))) lets it take flat ones",
            "flatten the recorded actions, actions.reshape(len(actions), -1),",
        )
    if not np.issubdtype(space.dtype, np.floating):
        raise SpaceError(
            f"{name} holds {space.dtype} numbers, but only continuous actions are supported",
            "use a Box of float32",
            "if they are continuous, turn the recorded actions into float32",
        )
    if not (np.all(np.isfinite(space.low)) and np.all(np.isfinite(space.high))):
        raise UnboundedError(
            f"{name} is unbounded (low {space.low}, high {space.high})",
            "give it finite bounds with gymnasium.wrappers.TransformAction(env, lambda action: action, Box(low, high, "
            f"{space.shape})); gymnasium's ClipAction takes them away, so leave that out",
            "choose the bounds that held",
        )
    if not np.all(space.low < space.high):
        index = int(np.argmin(space.low < space.high))
        raise SpaceError(
            f"{name} has no room at index {index} (low {space.low[index]}, high {space.high[index]})",
            "leave that entry out of the actions",
            "leave that entry out of the recorded actions",
        )
    return space


def _has_unit_bounds(space: spaces.Box) -> bool:
    return bool(np.all(space.low == -1.0) and np.all(space.high == 1.0))


def scale_actions(actions: npt.ArrayLike, action_space: spaces.Box) -> npt.NDArray[np.float32]:
    """
    Actions mapped from the bounds of the space to [-1, 1] and clipped there, same shape, float32.

    Actions of a space that already is [-1, 1] keep their exact values.

    :param actions: actions in the units of the environment, shape ``(..., A)``
    :param action_space: bounded Box of shape ``(A,)``
    """
    values = np.asarray(actions)
    if not _has_unit_bounds(action_space):
        low, high = action_space.low.astype(np.float64), action_space.high.astype(np.float64)
        values = 2.0 * (values - low) / (high - low) - 1.0
    scaled: npt.NDArray[np.float32] = np.clip(values, -1.0, 1.0).astype(np.float32, copy=False)
    return scaled


class ActionUnscaler:
    """
    Maps actions from [-1, 1] to the bounds of a space; what depends on the space alone is worked out once.

    :param action_space: bounded Box of shape ``(A,)``
    """

    def __init__(self, action_space: spaces.Box) -> None:
        self.dtype = action_space.dtype
        self.is_identity = _has_unit_bounds(action_space)
        self.low, self.high = action_space.low.astype(np.float64), action_space.high.astype(np.float64)

    def __call__(self, actions: npt.ArrayLike) -> npt.NDArray[Any]:
        """
        Actions in the units of the environment, same shape, in the dtype of the space.

        :param actions: actions in [-1, 1], shape ``(..., A)``; what lies outside is clipped
        """
        values = np.asarray(actions).clip(-1.0, 1.0)
        if not self.is_identity:
            # Rounding may leave the space by one unit in the last place
            values = (self.low + 0.5 * (values + 1.0) * (self.high - self.low)).clip(self.low, self.high)
        unscaled: npt.NDArray[Any] = values.astype(self.dtype, copy=False)
        return unscaled
