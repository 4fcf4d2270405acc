import gc
import pickle
import random
import time
import tracemalloc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_dmpo.common import buffers
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.data import DatasetError, Transitions, dataset_identifier, dataset_spaces, load_transitions
from sb3_dmpo.data.preprocessing import canonical_observation_space, flat_size
from sb3_dmpo.data.statistics import observation_statistics
from tests.dataset_helpers import NESTED_DICT, random_observations

ACTION_SPACE = spaces.Box(-3, 3, (2,))
TENSORS = ("observations", "next_observations", "actions", "rewards", "dones")


def make_transitions(n: int = 12, size: int = 3, **changes: Any) -> Transitions:
    rng = np.random.default_rng(0)
    lengths = np.array([n // 3, n // 3, n - 2 * (n // 3)], dtype=np.int64)
    terminations, truncations = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    terminations[lengths[0] - 1] = truncations[-1] = True
    fields: dict[str, Any] = {
        "observations": rng.normal(3, 2, (n, size)).astype(np.float32),
        "next_observations": rng.normal(3, 2, (n, size)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "terminations": terminations,
        "truncations": truncations,
        "episode_lengths": lengths,
        "observation_space": spaces.Box(-np.inf, np.inf, (size,)),
        "action_space": ACTION_SPACE,
        "dataset_id": "tests/buffer-v0",
        "fingerprint": "abc",
    }
    return Transitions(**{**fields, **changes})


def test_tensors_hold_the_transitions() -> None:
    transitions = make_transitions()
    buffer = OfflineReplayBuffer.from_transitions(transitions, seed=0)
    assert isinstance(buffer, ReplayBuffer)
    for name in TENSORS:
        tensor = getattr(buffer, name)
        assert tensor.dtype == th.float32 and tensor.device.type == "cpu", name
    assert buffer.table.is_contiguous()
    np.testing.assert_array_equal(buffer.observations, transitions.observations)
    np.testing.assert_array_equal(buffer.next_observations, transitions.next_observations)
    np.testing.assert_array_equal(buffer.actions, transitions.actions)
    np.testing.assert_array_equal(buffer.rewards[:, 0], transitions.rewards)
    assert th.nonzero(buffer.dones[:, 0]).flatten().tolist() == [3]  # a truncation is no done
    assert buffer.size() == 12 and buffer.rewards.shape == buffer.dones.shape == (12, 1)
    assert buffer.observation_space == transitions.observation_space and buffer.action_space == ACTION_SPACE
    assert (buffer.dataset_id, buffer.fingerprint) == ("tests/buffer-v0", "abc")
    assert buffer.min_reward == transitions.rewards.min() and buffer.max_reward == transitions.rewards.max()
    assert dataset_identifier(buffer) == "tests/buffer-v0"
    assert dataset_spaces(buffer) == (transitions.observation_space, ACTION_SPACE)


def test_loaded_buffer_is_no_source_of_transitions() -> None:
    with pytest.raises(DatasetError, match=r"it holds tensors.*Pass the OfflineReplayBuffer itself"):
        load_transitions(OfflineReplayBuffer.from_transitions(make_transitions()))


def loaded(n: int = 12, size: int = 3) -> Transitions:
    """Transitions in one episode, as `load_transitions` gives them."""
    rng = np.random.default_rng(0)
    ends = np.arange(n) == n - 1
    numbers = {
        "observations": rng.normal(3, 2, (n, size)),
        "actions": rng.uniform(-1, 1, (n, 2)),
        "rewards": rng.normal(size=n),
    }
    return load_transitions({**numbers, "terminals": ends, "timeouts": np.zeros(n, bool)})


def test_cpu_buffer_shares_memory_and_no_second_copy_stays() -> None:
    transitions = loaded()
    buffer = OfflineReplayBuffer.from_transitions(transitions)
    assert buffer.table.data_ptr() == transitions.table.rows.ctypes.data
    twin, clipped = buffer.twin(), OfflineReplayBuffer.from_transitions(transitions, action_clip=0.1)
    assert twin.table.data_ptr() == buffer.table.data_ptr() != clipped.table.data_ptr()
    reference = weakref.ref(transitions)
    del transitions
    gc.collect()
    assert reference() is None


def test_arrays_that_are_changed_count() -> None:
    """Loaded transitions are a table until somebody asks for an array, which may be written to."""
    transitions, before = loaded(), loaded()
    buffer = OfflineReplayBuffer.from_transitions(transitions)
    transitions.rewards[:] = 7.0
    transitions.terminations[3] = True
    assert not transitions.has_table
    changed = OfflineReplayBuffer.from_transitions(transitions)
    assert changed.rewards.tolist() == [[7.0]] * 12 and changed.dones.flatten().nonzero().flatten().tolist() == [3, 11]
    for name in ("observations", "next_observations", "actions"):
        np.testing.assert_array_equal(getattr(changed, name), getattr(before, name))
    np.testing.assert_array_equal(buffer.rewards[:, 0], before.rewards)
    again = replace(before, rewards=np.zeros(12, np.float32))
    np.testing.assert_array_equal(again.observations, before.observations)
    assert OfflineReplayBuffer.from_transitions(again).max_reward == 0.0
    with pytest.raises(AttributeError, match="'Transitions' object has no attribute 'reward'"):
        _ = transitions.reward


def test_memory_beside_the_table_is_small() -> None:
    transitions, rewards = loaded(n=50_000, size=20), 50_000 * 8
    OfflineReplayBuffer.from_transitions(make_transitions())
    for is_own in (True, False):
        tracemalloc.start()
        try:
            OfflineReplayBuffer.from_transitions(transitions, reward_scale=2.0, is_own=is_own)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # Blocks of the statistics in float64; a float64 copy of the observations would be 8 MB
        assert peak < 16_384 * 20 * 8 * 2 + rewards * 3


def test_memory_for_arrays_is_small() -> None:
    transitions = make_transitions(n=50_000, size=20)
    tracemalloc.start()
    try:
        buffer = OfflineReplayBuffer.from_transitions(transitions, reward_scale=2.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < buffer.table.nbytes + 16_384 * 20 * 8 * 2 + 50_000 * 8 * 3


def test_read_only_arrays_are_copied_without_a_warning() -> None:
    transitions = make_transitions()
    transitions.observations.flags.writeable = False
    buffer = OfflineReplayBuffer.from_transitions(transitions)
    buffer.observations[0] = 0
    assert transitions.observations[0].any()


def test_input_is_not_changed() -> None:
    transitions, same = make_transitions(), make_transitions()
    OfflineReplayBuffer.from_transitions(transitions, reward_scale=5.0, reward_shift=1.0, action_clip=0.5)
    for name in ("observations", "next_observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(transitions, name), getattr(same, name))


# Statistics and rewards ---------------------------------------------------------------------------------------------


def test_observation_statistics_are_accurate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_dmpo.data.statistics.BLOCK_ROWS", 7)
    observations = (1e4 + np.random.default_rng(0).normal(size=(100, 3))).astype(np.float32)
    mean, std = observation_statistics(observations)
    np.testing.assert_allclose(mean, observations.astype(np.float64).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(std, observations.astype(np.float64).std(axis=0), rtol=1e-12)
    buffer = OfflineReplayBuffer.from_transitions(make_transitions(observations=observations, n=100))
    assert buffer.observation_mean.dtype == buffer.observation_std.dtype == th.float32
    np.testing.assert_allclose(buffer.observation_std, std, rtol=1e-6)


def test_constant_observations_have_zero_std() -> None:
    buffer = OfflineReplayBuffer.from_transitions(make_transitions(observations=np.full((12, 3), 0.1, np.float32)))
    assert buffer.observation_std.tolist() == [0, 0, 0]


def test_reward_transforms() -> None:
    transitions = make_transitions()
    rewards = transitions.rewards.astype(np.float64)

    def transformed(**options: Any) -> OfflineReplayBuffer:
        return OfflineReplayBuffer.from_transitions(transitions, **options)

    np.testing.assert_allclose(transformed(reward_scale=100, reward_shift=-1).rewards[:, 0], 100 * (rewards - 1), rtol=1e-6)
    returns = transitions.episode_returns()
    expected = 1000 / np.ptp(returns) * (rewards + 0.5)
    np.testing.assert_allclose(transformed(reward_scale="return_range", reward_shift=0.5).rewards[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(transformed(reward_scale="max").rewards[:, 0], rewards / rewards.max(), rtol=1e-6)
    buffer = transformed(reward_scale="standardize")
    np.testing.assert_allclose(buffer.rewards[:, 0], (rewards - rewards.mean()) / rewards.std(), rtol=1e-5)
    assert buffer.max_reward == float(buffer.rewards.max()) and buffer.min_reward == float(buffer.rewards.min())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_scale": "unit"}, r"reward_scale='unit' is unknown: use a number, 'return_range'"),
        ({"reward_scale": np.nan}, r"reward_scale has to be finite"),
        ({"reward_shift": np.inf}, r"reward_shift has to be finite"),
        ({"reward_scale": "max"}, r"Dataset 'tests/buffer-v0', field 'rewards': .*'max'.*largest reward is not positive"),
        ({"reward_scale": "standardize"}, r"all rewards are the same"),
        ({"reward_scale": "return_range"}, r"all episodes have the same return"),
        ({"action_clip": 0.0}, r"action_clip has to be in \(0, 1\]"),
        ({"extra_capacity": -1}, r"extra_capacity must not be negative"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    transitions = make_transitions(rewards=np.zeros(12, np.float32))
    with pytest.raises(ValueError, match=message):
        OfflineReplayBuffer.from_transitions(transitions, **options)


def test_action_clip() -> None:
    buffer = OfflineReplayBuffer.from_transitions(make_transitions(), action_clip=0.25)
    assert buffer.actions.abs().max() == 0.25


def test_device_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "get_device", lambda _: th.device("cuda:0"))
    monkeypatch.setattr(th.cuda, "mem_get_info", lambda _: (100, 1000))
    with pytest.raises(DatasetError, match=r"'tests/buffer-v0': it needs 672 bytes on cuda:0, only 100 bytes are left\. Free"):
        OfflineReplayBuffer.from_transitions(make_transitions(), device="cuda")


# Sampling -----------------------------------------------------------------------------------------------------------


def test_minibatches_are_rows_of_the_dataset() -> None:
    transitions = make_transitions()
    batch = OfflineReplayBuffer.from_transitions(transitions, seed=3).sample(200)
    assert isinstance(batch, ReplayBufferSamples)
    rows = [int(np.flatnonzero(transitions.rewards == reward)[0]) for reward in batch.rewards[:, 0].numpy()]
    assert set(rows) == set(range(12))
    np.testing.assert_array_equal(batch.observations, transitions.observations[rows])
    np.testing.assert_array_equal(batch.next_observations, transitions.next_observations[rows])
    np.testing.assert_array_equal(batch.actions, transitions.actions[rows])
    np.testing.assert_array_equal(batch.dones[:, 0], transitions.terminations[rows])
    assert batch.rewards.shape == batch.dones.shape == (200, 1)


def test_sampling_is_uniform() -> None:
    transitions = make_transitions(rewards=np.arange(12, dtype=np.float32))
    rewards = OfflineReplayBuffer.from_transitions(transitions, seed=0).sample(60_000).rewards.long().flatten()
    counts = th.bincount(rewards, minlength=12)
    assert counts.min() > 4700 and counts.max() < 5300


def test_own_generator() -> None:
    transitions = make_transitions(n=1000)
    random.seed(0)
    np.random.seed(0)
    th.manual_seed(0)
    before = random.getstate(), pickle.dumps(np.random.get_state()), th.get_rng_state()
    first = OfflineReplayBuffer.from_transitions(transitions, seed=1)
    batches = [first.sample(20) for _ in range(3)]
    assert random.getstate() == before[0] and pickle.dumps(np.random.get_state()) == before[1]
    assert th.equal(th.get_rng_state(), before[2])
    th.manual_seed(99)
    same, other = (OfflineReplayBuffer.from_transitions(transitions, seed=seed) for seed in (1, 2))
    assert all(th.equal(batch.observations, same.sample(20).observations) for batch in batches)
    assert not th.equal(batches[0].observations, other.sample(20).observations)
    unseeded = [OfflineReplayBuffer.from_transitions(transitions).sample(20).observations for _ in range(2)]
    assert not th.equal(unseeded[0], unseeded[1])


def test_generator_state_resumes_the_minibatches() -> None:
    buffer = OfflineReplayBuffer.from_transitions(make_transitions(n=1000), seed=1)
    state = buffer.generator.get_state()
    expected = buffer.sample(20).observations
    buffer.sample(20)
    buffer.generator.set_state(state)
    assert th.equal(buffer.sample(20).observations, expected)


def test_vec_normalize_is_refused() -> None:
    with pytest.raises(ValueError, match=r"leave VecNormalize out"):
        OfflineReplayBuffer.from_transitions(make_transitions()).sample(2, env=object())  # type: ignore[arg-type]


def test_sampling_does_not_touch_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = OfflineReplayBuffer.from_transitions(make_transitions())
    monkeypatch.setattr(buffers, "np", None)
    buffer.sample(5)


def test_sampling_is_quick() -> None:
    buffer = OfflineReplayBuffer.from_transitions(make_transitions(n=10_000, size=17))
    start = time.process_time()
    for _ in range(200):
        buffer.sample(256)
    assert (time.process_time() - start) / 200 < 1e-3


# Added transitions --------------------------------------------------------------------------------------------------


def add(buffer: OfflineReplayBuffer, number: float, n_envs: int = 1, done: bool = False, cut: bool = False) -> None:
    observation = np.full((n_envs, 3), number)
    buffer.add(
        observation,
        observation + 0.5,
        np.full((n_envs, 2), number / 100),
        np.full(n_envs, number),
        np.full(n_envs, done),
        [{"TimeLimit.truncated": cut}] * n_envs,
    )


def test_without_room_adding_says_how_to_get_some() -> None:
    buffer = OfflineReplayBuffer.from_transitions(make_transitions())
    with pytest.raises(ValueError, match=r"no room for further transitions: build it with extra_capacity="):
        add(buffer, 1)


def test_added_transitions_follow_the_dataset_and_never_overwrite_it() -> None:
    transitions = make_transitions()
    buffer = OfflineReplayBuffer.from_transitions(transitions, extra_capacity=5, reward_scale=10.0, reward_shift=1.0, seed=0)
    assert len(buffer.observations) == 12  # nothing is allocated before it is needed
    for number in range(1, 4):
        add(buffer, number, done=number > 1, cut=number == 3)
    assert buffer.size() == 15
    assert buffer.observations[12:15, 0].tolist() == [1, 2, 3]
    assert buffer.next_observations[12:15, 0].tolist() == [1.5, 2.5, 3.5]
    np.testing.assert_allclose(buffer.actions[12:15, 0], [0.01, 0.02, 0.03], rtol=1e-6)
    assert buffer.rewards[12:15, 0].tolist() == [20, 30, 40]
    assert buffer.dones[12:15, 0].tolist() == [0, 1, 0]  # the last one was a time limit
    for number in range(4, 10):
        add(buffer, number)
    assert buffer.size() == 17
    assert sorted(buffer.observations[12:, 0].tolist()) == [5, 6, 7, 8, 9]
    np.testing.assert_array_equal(buffer.observations[:12], transitions.observations)
    assert set(buffer.sample(1000).observations[:, 0].tolist()) >= {5, 6, 7, 8, 9, float(transitions.observations[0, 0])}
    buffer.reset()
    assert buffer.size() == 12


def test_several_environments() -> None:
    buffer = OfflineReplayBuffer.from_transitions(make_transitions(), extra_capacity=5)
    add(buffer, 1, n_envs=3)
    add(buffer, 2, n_envs=3)
    assert buffer.size() == 17
    assert buffer.observations[12:, 0].tolist() == [2, 1, 1, 2, 2]
    with pytest.raises(ValueError, match=r"6 environments add more than extra_capacity=5"):
        add(buffer, 3, n_envs=6)


def test_added_dict_observations_are_flattened() -> None:
    space = canonical_observation_space(NESTED_DICT)
    transitions = make_transitions(size=flat_size(space), observation_space=space)
    buffer = OfflineReplayBuffer.from_transitions(transitions, extra_capacity=2)
    observation = random_observations(NESTED_DICT, 1, np.random.default_rng(0))
    buffer.add(observation, observation, np.zeros((1, 2)), np.zeros(1), np.zeros(1), [{}])
    goal = observation["achieved_goal"]
    expected = np.concatenate([goal["kettle"].ravel(), goal["microwave"].ravel(), observation["observation"].ravel()])
    np.testing.assert_allclose(buffer.observations[12], expected, rtol=1e-6)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_added_transitions_are_checked(number: float) -> None:
    buffer = OfflineReplayBuffer.from_transitions(make_transitions(), extra_capacity=5)
    with pytest.raises(ValueError, match=r"whose observations are not finite"):
        add(buffer, number)
    with pytest.raises(ValueError, match=r"shape \(1, 4\), expected \(batch, 3\)"):
        buffer.add(np.zeros((1, 4)), np.zeros((1, 4)), np.zeros((1, 2)), np.zeros(1), np.zeros(1), [{}])
    assert buffer.size() == 12


# Pickling -----------------------------------------------------------------------------------------------------------


def test_pickled_buffer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    buffer = OfflineReplayBuffer.from_transitions(make_transitions(), seed=5, extra_capacity=3, reward_scale=2.0)
    add(buffer, 7)
    buffer.sample(10)
    save_to_pkl(tmp_path / "buffer.pkl", buffer)
    loaded = load_from_pkl(tmp_path / "buffer.pkl")
    assert isinstance(loaded, OfflineReplayBuffer)
    for name in (*TENSORS, "observation_mean", "observation_std"):
        assert th.equal(getattr(loaded, name), getattr(buffer, name)), name
    assert loaded.size() == 13 and loaded.fingerprint == "abc"
    assert th.equal(loaded.sample(10).observations, buffer.sample(10).observations)
    add(loaded, 8)
    assert loaded.rewards[13].item() == 16


def test_pickle_holds_arrays_and_bytes_only() -> None:
    state = OfflineReplayBuffer.from_transitions(make_transitions()).__getstate__()
    assert isinstance(state["generator"], bytes) and isinstance(state["device"], str)
    assert not any(isinstance(value, th.Tensor | th.Generator) for value in state.values())


def test_pickle_of_a_device_that_is_not_there() -> None:
    buffer = OfflineReplayBuffer.from_transitions(make_transitions(), seed=0)
    state = {**buffer.__getstate__(), "device": "cuda:63"}
    loaded = OfflineReplayBuffer.__new__(OfflineReplayBuffer)
    loaded.__setstate__(state)
    assert loaded.device == th.device("cpu") and loaded.sample(4).rewards.shape == (4, 1)


@pytest.mark.parametrize("n_added", [0, 3, 7])
def test_pickles_with_one_array_for_everything_can_be_read(n_added: int) -> None:
    """Early versions held observations, next observations and so on apart."""
    buffer = OfflineReplayBuffer.from_transitions(make_transitions(), seed=3, extra_capacity=5)
    for i in range(n_added):
        observation = np.full((1, 3), i, np.float32)
        buffer.add(observation, observation + 0.5, np.full((1, 2), 0.1 * i), np.array([i]), np.array([i % 2 == 1]), [{}])
    state = buffer.__getstate__()
    for name in ("table", "breaks", "n_breaks", "_last_rows", "memory_map"):
        del state[name]
    state |= {name: np.ascontiguousarray(getattr(buffer, name).numpy()) for name in TENSORS}
    old = OfflineReplayBuffer.__new__(OfflineReplayBuffer)
    old.__setstate__(state)
    for name in TENSORS:
        assert th.equal(getattr(old, name), getattr(buffer, name)), name
    for _ in range(3):
        for one, other in zip(old.sample(50)[:5], buffer.sample(50)[:5], strict=True):
            assert th.equal(one, other)
    for each in (old, buffer):
        each.reserve(8)
        for value in (8.0, 9.0):
            following = np.full((1, 3), value, np.float32)
            each.add(following, following + 0.5, np.zeros((1, 2)), np.array([value]), np.array([False]), [{}])
    assert old.added_arrays().keys() == buffer.added_arrays().keys()
    for name, array in buffer.added_arrays().items():
        np.testing.assert_array_equal(old.added_arrays()[name], array)
    assert th.equal(old.twin(1).sample(40).next_observations, buffer.twin(1).sample(40).next_observations)
