"""Arrays and spaces that are unusual: masks, single numbers, odd keys, other units, states that are not finite."""

import importlib.util
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dmpo import BC, MAPLE, TD3BC, DecisionTransformer
from sb3_dmpo.common.buffers import OfflineReplayBuffer, check_buffer
from sb3_dmpo.data import DatasetError, Transitions, from_arrays, load_transitions
from sb3_dmpo.data.preprocessing import observation_spaces_match
from tests.toy_data import DriftEnv, make_transitions

SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [16, 16]}, "batch_size": 16, "seed": 0, "device": "cpu"}
N_ROWS = 24
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)
PIXELS = spaces.Box(0, 255, (3,), np.uint8)
SHARES = spaces.Box(0.0, 1.0, (3,), np.float32)


def make_arrays(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    is_last = np.arange(N_ROWS) % 8 == 7
    return {
        "observations": rng.normal(size=(N_ROWS, 3)),
        "actions": rng.uniform(-1.0, 1.0, (N_ROWS, 2)),
        "rewards": rng.normal(size=N_ROWS),
        "terminals": np.zeros(N_ROWS, bool),
        "timeouts": is_last,
    } | changes


# Masks ----------------------------------------------------------------------------------------------------------------


def masked(shape: tuple[int, ...], *index: int) -> Any:
    values = np.ma.array(np.zeros(shape), mask=np.zeros(shape, bool))
    values[index] = np.ma.masked
    return values


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"rewards": masked((N_ROWS,), 3)}, r"step 3, field 'rewards': it is masked"),
        ({"rewards": np.ma.masked_equal(np.where(np.arange(N_ROWS) == 5, -999.0, 1.0), -999.0)}, r"step 5, field 'rewards'"),
        ({"timeouts": masked((N_ROWS,), 4) > 1}, r"step 4, field 'timeouts'"),
        ({"actions": masked((N_ROWS, 2), 6, 1)}, r"step 6, field 'actions': it is masked there \(index \(6, 1\)\)"),
        ({"observations": {"a": {"z": masked((N_ROWS, 2), 7, 0)}}}, r"step 7, field 'observations/a/z'"),
        (
            {"observations": [masked((3,), 1) if i == 2 else np.zeros(3) for i in range(N_ROWS)]},
            r"step 2, field 'observations'",
        ),
        ({"rewards": [1.0] * (N_ROWS - 1) + [np.ma.masked]}, r"step 23, field 'rewards'"),
    ],
)
def test_masked_entries_of_arrays_are_refused(changes: dict[str, Any], place: str) -> None:
    with pytest.raises(DatasetError, match=rf"{place}.*Leave such steps out.*filled"):
        from_arrays(**make_arrays(**changes))


def test_arrays_without_masked_entries_are_plain_data() -> None:
    arrays = make_arrays()
    expected = from_arrays(**arrays)
    for mask in (np.ma.nomask, False):
        data = from_arrays(**{name: np.ma.array(values, mask=mask) for name, values in arrays.items()})
        assert type(data.rewards) is np.ndarray and data.fingerprint == expected.fingerprint


def test_predict_refuses_masked_entries() -> None:
    model = BC(dataset=make_arrays(), **SMALL)
    for observation, place in (
        (masked((3,), 1), r"at index \(1,\)"),
        (masked((4, 3), 2, 0), r"at index \(2, 0\)"),
        ([np.zeros(3), masked((3,), 2)], r"at index \(1, 2\)"),
    ):
        with pytest.raises(ValueError, match=rf"observation is masked {place}.*filled"):
            model.predict(observation)
    plain = np.linspace(-1, 1, 3)
    np.testing.assert_array_equal(model.predict(np.ma.array(plain, mask=False))[0], model.predict(plain)[0])
    entries = {"a": {"z": np.zeros((N_ROWS, 2))}, "b": np.zeros((N_ROWS, 1))}
    model = BC("MultiInputPolicy", dataset=make_arrays(observations=entries), **SMALL)
    with pytest.raises(ValueError, match=r"observation\['a/z'\] is masked at index \(0,\)"):
        model.predict({"a": {"z": masked((2,), 0)}, "b": np.zeros(1)})


# Single numbers -------------------------------------------------------------------------------------------------------

NUMBER = spaces.Box(-1.0, 1.0, (), np.float32)


def test_arrays_are_taken_as_the_given_spaces_say() -> None:
    single = np.linspace(-1.0, 1.0, N_ROWS)
    data = from_arrays(**make_arrays(observations=single, observation_space=NUMBER))
    assert data.observation_space == NUMBER
    column = from_arrays(**make_arrays(observations=single[:, None]))
    np.testing.assert_array_equal(data.observations, column.observations)
    np.testing.assert_array_equal(data.next_observations, column.next_observations)
    space = spaces.Dict({"a": spaces.Dict({"z": NUMBER}), "b": spaces.Box(-1.0, 1.0, (2,))})
    entries = {"a": {"z": single}, "b": np.zeros((N_ROWS, 2))}
    arrays = make_arrays(observations=entries, observation_space=space, next_observations=entries)
    model = BC("MultiInputPolicy", dataset=arrays, **SMALL).learn(2)
    assert model.predict({"a": {"z": 0.5}, "b": np.zeros(2)})[0].shape == (2,)
    assert model.predict({"a": {"z": single[:4]}, "b": np.zeros((4, 2))})[0].shape == (4, 2)
    actions = spaces.Box(-1.0, 1.0, (1,))
    data = from_arrays(**make_arrays(actions=single, action_space=actions))
    np.testing.assert_array_equal(data.actions[:, 0], single.astype(np.float32)[~make_arrays()["timeouts"]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.zeros(N_ROWS)}, r"field 'observations'.*observations\[:, None\]"),
        ({"observations": np.zeros(N_ROWS), "observation_space": SHARES}, r"field 'observations'.*expected \(24, 3\)"),
        ({"observations": {"z": np.zeros(N_ROWS)}, "action_space": ACTIONS}, r"field 'observations/z'.*\[:, None\]"),
        ({"observations": np.full(N_ROWS, "a"), "observation_space": NUMBER}, r"field 'observations': it holds <U1"),
        ({"actions": np.zeros(N_ROWS, int), "observation_space": SHARES}, r"field 'actions'.*its actions are discrete"),
        ({"actions": np.zeros(N_ROWS), "action_space": ACTIONS}, r"field 'actions'.*expected \(24, 2\)"),
        ({"observation_space": spaces.Dict({})}, r"has no keys"),
        ({"observation_space": 3}, r"field 'observation_space': it is a int, no space"),
    ],
)
def test_arrays_that_do_not_fit_are_still_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        from_arrays(**make_arrays(**changes))


def dict_model() -> BC:
    space = spaces.Dict({"a": NUMBER, "b": spaces.Box(-1.0, 1.0, (2, 2)), "c": NUMBER})
    data = make_transitions(observation_space=space)
    return BC("MultiInputPolicy", dataset=data, **SMALL).learn(2)


def dict_observations(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    return {key: rng.uniform(-1, 1, (n, *shape)).astype(np.float32) for key, shape in {"a": (), "b": (2, 2), "c": ()}.items()}


def test_export_of_entries_that_are_single_numbers(tmp_path: Path) -> None:
    model = dict_model()
    model.export(tmp_path / "policy.pt2")
    program = th.export.load(tmp_path / "policy.pt2").module()
    for n in (1, 5):
        observations = dict_observations(n)
        actions = program({key: th.from_numpy(values) for key, values in observations.items()}).detach().numpy()
        np.testing.assert_allclose(actions, model.predict(observations, deterministic=True)[0], atol=1e-5, rtol=0.0)


@pytest.mark.slow
def test_onnx_of_entries_that_are_single_numbers(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    if importlib.util.find_spec("onnxscript") is None:
        pytest.skip("onnxscript is not installed")
    model, observations = dict_model(), dict_observations(5)
    model.export(tmp_path / "policy.onnx")
    session = runtime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    assert [(entry.name, entry.shape) for entry in session.get_inputs()] == [
        ("a", ["batch"]),
        ("b", ["batch", 2, 2]),
        ("c", ["batch"]),
    ]
    actions = session.run(None, observations)[0]
    np.testing.assert_allclose(actions, model.predict(observations, deterministic=True)[0], atol=1e-5, rtol=0.0)


def test_export_of_an_observation_that_is_a_single_number(tmp_path: Path) -> None:
    model = BC(dataset=make_transitions(observation_space=NUMBER), **SMALL).learn(2)
    model.export(tmp_path / "policy.pt2")
    observations = np.linspace(-1.0, 1.0, 4, dtype=np.float32)
    actions = th.export.load(tmp_path / "policy.pt2").module()(th.from_numpy(observations)).detach().numpy()
    np.testing.assert_allclose(actions, model.predict(observations, deterministic=True)[0], atol=1e-5, rtol=0.0)


# Keys -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({0: np.zeros((N_ROWS, 2))}, r"field 'observations': it has the key 0, which is of the type int, no string"),
        (
            {("a", "b"): np.zeros((N_ROWS, 2))},
            r"field 'observations': it has the key \('a', 'b'\), which is of the type tuple",
        ),
        ({"": np.zeros((N_ROWS, 2))}, r"field 'observations': it has the key '', which is empty"),
        ({"a": {1: np.zeros((N_ROWS, 2))}}, r"field 'observations/a': it has the key 1"),
        ({"a": {"": np.zeros((N_ROWS, 2))}}, r"field 'observations/a': it has the key ''"),
    ],
)
def test_odd_keys_of_arrays_are_refused(entries: dict[Any, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=rf"{message}.*Rename it"):
        from_arrays(**make_arrays(observations=entries))
    good = {"a": np.zeros((N_ROWS, 2))}
    with pytest.raises(DatasetError, match=message.replace("observations", "next_observations")):
        from_arrays(**make_arrays(observations=good, next_observations=entries))


# Units ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recorded", "found", "match"),
    [
        (PIXELS, SHARES, False),
        (SHARES, PIXELS, False),
        (PIXELS, spaces.Box(-np.inf, np.inf, (3,)), False),
        (spaces.Dict(a=SHARES, b=PIXELS), spaces.Dict(a=SHARES, b=SHARES), False),
        (spaces.Dict(a=SHARES, b=PIXELS), spaces.Dict(a=SHARES, b=PIXELS), True),
        (SHARES, spaces.Box(-2.0, 7.0, (3,), np.float64), True),
        (PIXELS, spaces.Box(-9, 9, (3,), np.int64), True),
        (spaces.Box(0, 9, (3,), np.int32), spaces.Box(0, 9, (3,), np.int64), True),
        # Integers as arrays without a space are taken to be of this one
        (spaces.Box(-np.inf, np.inf, (3,), np.float32), PIXELS, True),
        (PIXELS, spaces.MultiBinary(3), True),
        (PIXELS, spaces.MultiDiscrete([4, 4, 4]), True),
        (spaces.Box(0, 9, (), np.int64), spaces.Discrete(10), True),
    ],
)
def test_integers_are_no_floats(recorded: spaces.Space[Any], found: spaces.Space[Any], match: bool) -> None:
    assert observation_spaces_match(recorded, found) is match


def make_data(space: spaces.Space[Any] | None, dtype: Any = np.uint8) -> Transitions:
    values = np.random.default_rng(0).integers(0, 2, (N_ROWS, 3)).astype(dtype)
    return from_arrays(
        **make_arrays(
            observations=values, observation_space=space, action_space=DriftEnv().action_space, actions=np.ones((N_ROWS, 2))
        )
    )


class PixelEnv(DriftEnv):
    def _observation(self, space: spaces.Space[Any] | None = None) -> Any:
        return np.full(self.observation_space.shape, 3, self.observation_space.dtype)


def test_an_environment_with_other_units_is_refused() -> None:
    both = r"Box\(0, 255, \(3,\), uint8\).*Box\(0\.0, 1\.0, \(3,\), float32\)"
    pixels, shares = make_data(PIXELS), make_data(SHARES, np.float32)
    model = TD3BC(dataset=pixels, **SMALL).learn(2)
    with pytest.raises(ValueError, match=both):
        model.set_env(DriftEnv(SHARES))
    model.set_env(PixelEnv(spaces.Box(0, 99, (3,), np.int64)))
    model.learn_online(2, learning_starts=1)
    with pytest.raises(ValueError, match=rf"{both}.*same units"):
        load_transitions(pixels, env=DriftEnv(SHARES))
    with pytest.raises(ValueError, match=r"float32.*uint8.*same units"):
        load_transitions(shares, env=PixelEnv(PIXELS))
    with pytest.raises(ValueError, match=r"uint8.*float32.*same units"):
        TD3BC(env=DriftEnv(SHARES), dataset=pixels, **SMALL).learn(1)
    buffer = OfflineReplayBuffer.from_transitions(pixels)
    with pytest.raises(DatasetError, match=rf"{both}.*same units"):
        check_buffer(buffer, SHARES, buffer.action_space, None)
    # Arrays with a space of their own
    for given, other in ((PIXELS, SHARES), (SHARES, PIXELS)):
        arrays = make_arrays(observations=np.ones((N_ROWS, 3)), observation_space=given, action_space=DriftEnv().action_space)
        arrays["actions"] = np.ones((N_ROWS, 2))
        with pytest.raises(DatasetError, match=r"observation space.*same units"):
            load_transitions(arrays, env=PixelEnv(other))
    # Images without one
    images = np.zeros((N_ROWS, 4, 4, 3), np.uint8)
    env = DriftEnv(spaces.Box(0.0, 1.0, (4, 4, 3)))
    with pytest.raises(DatasetError, match=r"observation space.*same units"):
        load_transitions(make_arrays(observations=images), env=env)


def test_arrays_without_a_space_go_with_an_environment_of_integers() -> None:
    data = make_data(None)
    model = TD3BC(dataset=data, **SMALL).learn(2)
    model.set_env(PixelEnv(PIXELS))
    model.learn(1)
    assert len(load_transitions(data, env=PixelEnv(PIXELS))) == len(data)
    arrays = make_arrays(observations=np.ones((N_ROWS, 3), np.uint8), actions=np.ones((N_ROWS, 2)))
    assert load_transitions(arrays, env=PixelEnv(PIXELS)).observation_space == PIXELS


# States ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("algorithm", "field"),
    [
        (MAPLE, "hidden"),
        (MAPLE, "last_actions"),
        *((DecisionTransformer, n) for n in ("observations", "actions", "returns_to_go")),
    ],
)
def test_a_state_that_is_not_finite_is_refused(algorithm: Any, field: str, value: float) -> None:
    model = algorithm(dataset=make_transitions(), **SMALL)
    observations = np.zeros((2, 3), np.float32)
    _, state = model.predict(observations, deterministic=True)
    array = getattr(state, field).copy()
    array[1, ..., -1] = value
    with pytest.raises(ValueError, match=rf"state's {field} is not finite: index \(1, .* is {value}.*Pass the state"):
        model.predict(observations, state._replace(**{field: array}), deterministic=True)
    actions, _ = model.predict(observations, state, deterministic=True)
    assert np.isfinite(actions).all()


def test_rewards_that_are_not_known_stay_allowed() -> None:
    model = DecisionTransformer(dataset=make_transitions(), **SMALL)
    observations = np.zeros((2, 3), np.float32)
    _, state = model.predict(observations, deterministic=True)
    assert np.isinf(state.rewards).all()
    state.rewards[0] = 1.0
    actions, state = model.predict(observations, state, deterministic=True)
    assert np.isfinite(actions).all()


# Added transitions ----------------------------------------------------------------------------------------------------


def test_loading_added_transitions_warns_of_nothing(tmp_path: Path) -> None:
    model = TD3BC(dataset=make_transitions(), **SMALL).learn(1)
    model.set_env(DriftEnv())
    model.learn_online(10, learning_starts=5)
    model.save_replay_buffer(tmp_path / "buffer")
    expected = model.replay_buffer.added_arrays()
    other = TD3BC(dataset=make_transitions(), env=DriftEnv(), **SMALL).learn(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # PyTorch warns once in a process, unless it is told to go on.
        th.set_warn_always(True)
        try:
            other.load_replay_buffer(io.BytesIO((tmp_path / "buffer.npz").read_bytes()))
        finally:
            th.set_warn_always(False)
    found = other.replay_buffer.added_arrays()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, name)
    other.learn_online(10, learning_starts=0)
