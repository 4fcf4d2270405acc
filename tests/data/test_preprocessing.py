import numpy as np
import pytest
from gymnasium import spaces

from sb3_dmpo.data.preprocessing import (
    ActionUnscaler,
    action_spaces_match,
    canonical_observation,
    canonical_observation_space,
    check_action_space,
    flat_size,
    flat_slices,
    flatten_observations,
    nested_space,
    observation_spaces_match,
    scale_actions,
    unflatten_observations,
)
from tests.dataset_helpers import ACTIONS, BOX, NESTED_DICT, random_observations


def test_flat_observations_become_what_they_were() -> None:
    rng = np.random.default_rng(0)
    for space in (BOX, NESTED_DICT, spaces.Box(0, 255, (2, 3), np.uint8), spaces.Box(-9, 9, (), np.int64)):
        canonical = canonical_observation_space(space)
        flat = flatten_observations(canonical_observation(random_observations(space, 4, rng)), canonical)
        found = unflatten_observations(flat, space)
        np.testing.assert_array_equal(flatten_observations(canonical_observation(found), canonical), flat)
        assert nested_space(canonical) == space
    assert unflatten_observations(flat, space).shape == (4,) and unflatten_observations(flat, space).dtype == np.int64
    kettle = unflatten_observations(np.zeros((2, 7), np.float32), NESTED_DICT)["achieved_goal"]["kettle"]
    assert kettle.shape == (2, 2, 2) and kettle.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_the_largest_integers_are_not_turned_over(dtype: type[np.integer]) -> None:
    """float32 rounds them up."""
    info = np.iinfo(dtype)
    space = spaces.Box(info.min, info.max, (3,), dtype)
    flat = np.array([[info.min, 1, info.max]], np.float32)
    assert unflatten_observations(flat, space).tolist() == [[info.min, 1, info.max]]


def test_half_precision_keeps_what_was_read() -> None:
    flat = np.array([[1e5, 1 / 3]], np.float32)
    np.testing.assert_array_equal(unflatten_observations(flat, spaces.Box(-np.inf, np.inf, (2,), np.float16)), flat)


def test_box_is_its_own_canonical_space() -> None:
    assert canonical_observation_space(BOX) == BOX
    assert flat_size(BOX) == 3


def test_nested_dict_becomes_one_sorted_level() -> None:
    space = canonical_observation_space(NESTED_DICT)
    assert isinstance(space, spaces.Dict)
    assert list(space.spaces) == ["achieved_goal/kettle", "achieved_goal/microwave", "observation"]
    assert space["achieved_goal/kettle"].shape == (2, 2)
    assert canonical_observation_space(space) == space
    assert flat_size(space) == 7
    assert flat_slices(space)["achieved_goal/microwave"] == slice(4, 5)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(3), r"only numeric Box spaces"),
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})}), r"'a/b'.*only numeric Box"),
        (spaces.Tuple((BOX,)), r"only numeric Box"),
        (spaces.Dict({}), r"no keys"),
        (spaces.Box(0, 1, (0,)), r"holds no numbers"),
        (spaces.Dict({"a/b": BOX, "a": spaces.Dict({"b": BOX})}), r"joined key 'a/b'"),
    ],
)
def test_unusable_observation_spaces_are_named(space: spaces.Space, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        canonical_observation_space(space)


def test_flatten_joins_in_the_order_of_the_canonical_keys() -> None:
    observation = random_observations(NESTED_DICT, 5, np.random.default_rng(0))
    goal = observation["achieved_goal"]
    expected = np.concatenate([goal["kettle"].reshape(5, 4), goal["microwave"], observation["observation"]], axis=1)
    joined = canonical_observation(observation)
    flat = flatten_observations(joined, canonical_observation_space(NESTED_DICT))
    assert flat.dtype == np.float32 and flat.shape == (5, 7)
    np.testing.assert_array_equal(flat, expected.astype(np.float32))


def test_flatten_shares_memory_of_float32_boxes() -> None:
    space = spaces.Box(-1, 1, (2, 2))
    values = np.ones((3, 2, 2), np.float32)
    assert np.shares_memory(flatten_observations(values, space), values)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"observation": np.zeros((1, 2))}, r"has the keys \['observation'\], expected"),
        (np.zeros((1, 7)), r"no dict"),
        (
            {"observation": np.zeros((1, 3)), "achieved_goal": {"microwave": np.zeros((1, 1)), "kettle": np.zeros((1, 2, 2))}},
            r"'observation' has the shape \(1, 3\), expected \(batch, 2\)",
        ),
        (
            {"observation": np.zeros((2, 2)), "achieved_goal": {"microwave": np.zeros((1, 1)), "kettle": np.zeros((1, 2, 2))}},
            r"differ in their batch size",
        ),
    ],
)
def test_wrong_observations_are_named(observation: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flatten_observations(canonical_observation(observation), canonical_observation_space(NESTED_DICT))


def test_dict_for_a_box_is_named() -> None:
    with pytest.raises(ValueError, match=r"is a dict with the keys \['a'\]"):
        flatten_observations({"a": np.zeros((1, 3))}, BOX)


def test_actions_scale_to_unit_bounds_and_back() -> None:
    actions = np.array([[-2.0, 0.0], [2.0, 10.0], [0.0, 2.5]])
    scaled = scale_actions(actions, ACTIONS)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [[-1, -1], [1, 1], [0, -0.5]])
    np.testing.assert_allclose(ActionUnscaler(ACTIONS)(scaled), actions)
    np.testing.assert_array_equal(scale_actions([[-9.0, 99.0]], ACTIONS), [[-1, 1]])
    np.testing.assert_array_equal(ActionUnscaler(ACTIONS)([[-9.0, 99.0]]), [[-2, 10]])


def test_unit_actions_keep_their_exact_values() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (100, 2)).astype(np.float32)
    space = spaces.Box(-1, 1, (2,))
    np.testing.assert_array_equal(scale_actions(actions, space), actions)
    np.testing.assert_array_equal(ActionUnscaler(space)(actions), actions)


def test_unscaled_actions_are_inside_awkward_bounds() -> None:
    space = spaces.Box(np.float32(0.1), np.float32(0.7), (1,))
    for action in (-1.0, 1.0):
        assert space.contains(ActionUnscaler(space)(np.full((1,), action, np.float32)))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(4), r"Dataset 'x' is Discrete\(4\).*only continuous"),
        (
            spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Tuple([ACTIONS])),
            r"expected a single Box: .*flatten_space\(space\)",
        ),
        (spaces.Tuple([ACTIONS, spaces.Discrete(2)]), r"only continuous"),
        (spaces.Box(-np.inf, np.inf, (2,)), r"unbounded.*TransformAction"),
        (spaces.Box(-1, 1, (2, 3)), r"shape \(2, 3\), expected one dimension"),
        (spaces.Box(-1, 1, ()), r"expected one dimension"),
        (spaces.Box(0, 5, (2,), np.int64), r"int64"),
        (spaces.Box(np.array([-1, 0], np.float32), np.array([1, 0], np.float32)), r"no room at index 1"),
    ],
)
def test_unusable_action_spaces_say_how_to_mend(space: spaces.Space, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_action_space(space, "Dataset 'x'")


def test_spaces_match() -> None:
    assert check_action_space(ACTIONS, "x") is ACTIONS
    nested = canonical_observation_space(NESTED_DICT)
    assert observation_spaces_match(nested, canonical_observation_space(NESTED_DICT))
    assert observation_spaces_match(BOX, spaces.Box(-1, 1, (3,), np.float32))
    assert not observation_spaces_match(BOX, spaces.Box(-1, 1, (4,)))
    assert not observation_spaces_match(BOX, spaces.Dict({"a": BOX}))
    low, high = ACTIONS.low.astype(np.float64), ACTIONS.high.astype(np.float64)
    assert action_spaces_match(ACTIONS, spaces.Box(low, high + 1e-9, dtype=np.float64))
    assert not action_spaces_match(ACTIONS, spaces.Box(-1, 1, (2,)))
    assert not action_spaces_match(ACTIONS, spaces.Box(-1, 1, (3,)))
