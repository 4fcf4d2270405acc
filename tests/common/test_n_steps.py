"""Returns over several steps: the buffer's part, the targets, and every algorithm with critics."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer

from sb3_dmpo import ALGOS, OfflineAlgorithm
from sb3_dmpo.common.buffers import OfflineReplayBuffer, StepSamples
from sb3_dmpo.common.losses import bellman_targets
from sb3_dmpo.data import DatasetError
from tests.common.test_critic_options import WITH_CRITICS
from tests.contract import DATA, assert_same, make, vec_env
from tests.toy_data import EPISODE_LENGTH, make_transitions

GAMMA = 0.9


def of_all_rows(buffer: OfflineReplayBuffer, n_steps: int, early: bool = False) -> StepSamples:
    episodes = buffer._index_episodes()
    ends = episodes.early_ends if early else episodes.ends
    return buffer._steps(*buffer._gather_steps(th.arange(buffer.size()), n_steps, GAMMA, ends))


@pytest.mark.parametrize("n_steps", [1, 2, 3, 20])
def test_as_in_sb3(n_steps: int) -> None:
    """Sums of rewards, last observations, terminations and discounts are those of SB3's buffer, at terminations and cuts."""
    peer = NStepReplayBuffer(len(DATA), DATA.observation_space, spaces.Box(-1, 1, (2,)), n_steps=n_steps, gamma=GAMMA)
    for i in range(len(DATA)):
        done = DATA.terminations[i] | DATA.truncations[i]
        infos = [{"TimeLimit.truncated": bool(DATA.truncations[i])}]
        row = (DATA.observations[i], DATA.next_observations[i], DATA.actions[i], DATA.rewards[i], np.array([done]), infos)
        peer.add(*row)
    expected = peer._get_samples(np.arange(len(DATA)))
    found = of_all_rows(OfflineReplayBuffer.from_transitions(DATA), n_steps)
    for name in ("observations", "actions", "next_observations", "dones", "rewards"):
        th.testing.assert_close(getattr(found, name), getattr(expected, name), msg=lambda text, name=name: f"{name}: {text}")
    th.testing.assert_close(found.discounts, expected.discounts)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("early", [False, True])
def test_written_out(n_steps: int, early: bool) -> None:
    """Step by step; where next actions are needed, sums end a step before the end of an episode that was cut."""
    found = of_all_rows(OfflineReplayBuffer.from_transitions(DATA), n_steps, early)
    for row in range(len(DATA)):
        end = row - row % EPISODE_LENGTH + EPISODE_LENGTH - 1
        is_cut = bool(DATA.truncations[end])
        last = min(row + n_steps - 1, end - int(early and is_cut and row < end))
        rewards = sum(GAMMA**k * DATA.rewards[row + k] for k in range(last - row + 1))
        np.testing.assert_allclose(found.rewards[row].item(), rewards, rtol=1e-5)
        np.testing.assert_allclose(found.discounts[row].item(), GAMMA ** (last - row + 1), rtol=1e-6)
        np.testing.assert_array_equal(found.next_observations[row], DATA.next_observations[last])
        assert bool(found.dones[row]) == bool(DATA.terminations[last])
        assert bool(found.has_next_action[row]) == (last < end)
        if last < end:
            np.testing.assert_array_equal(found.next_actions[row], DATA.actions[last + 1])


def test_targets() -> None:
    model = make("td3_bc", dataset=DATA, n_steps=3, gamma=GAMMA)
    model._setup_dataset()
    batch = model.sample_batch(64)
    values = th.arange(64.0).unsqueeze(1)
    expected = batch.rewards + (1 - batch.dones) * batch.discounts * values
    assert len(batch.discounts.unique()) == 3
    th.testing.assert_close(bellman_targets(batch, GAMMA, values), expected)


def test_one_step_is_what_it_was() -> None:
    """The same minibatches, bit for bit, and no discounts in them."""
    plain, several = (OfflineReplayBuffer.from_transitions(DATA, seed=0) for _ in range(2))
    for _ in range(3):
        first, second = plain.sample(16), several.sample_steps(16, 1, GAMMA, False)
        for name in ("observations", "actions", "next_observations", "dones", "rewards"):
            assert th.equal(getattr(first, name), getattr(second, name)), name
    model = make("dmpo", dataset=DATA)
    model._setup_dataset()
    assert model.sample_batch(4).discounts is None


# Added transitions ----------------------------------------------------------------------------------------------


class Stepper:
    """Adds episodes of several environments to a buffer, whose rewards count the steps and whose observations name them."""

    def __init__(self, buffer: OfflineReplayBuffer, n_envs: int) -> None:
        self.buffer, self.n_envs, self.time = buffer, n_envs, 0

    def step(self, ends: dict[int, bool] | None = None) -> None:
        """
        :param ends: environments whose episode ends, and whether it is cut
        """
        ends, self.time = ends or {}, self.time + 1
        base = 1000.0 * (1 + np.arange(self.n_envs))[:, None] * np.ones(3)
        done = np.array([env in ends for env in range(self.n_envs)])
        infos = [{"TimeLimit.truncated": ends.get(env, False)} for env in range(self.n_envs)]
        observations, actions = base + self.time, np.full((self.n_envs, 2), self.time / 100)
        self.buffer.add(observations, observations + 1, actions, observations[:, 0], done, infos)


def successors(buffer: OfflineReplayBuffer) -> dict[float, float]:
    """Of every added step the one that follows, both by their rewards."""
    rewards = buffer.rewards[buffer.n_offline : buffer.size(), 0].tolist()
    rows = th.arange(buffer.n_offline, buffer.size())
    following, has_next = buffer._next_rows(rows, buffer._index_episodes().ends)
    return {
        reward: buffer.rewards[row, 0].item()
        for reward, row, there in zip(rewards, following, has_next, strict=True)
        if bool(there)
    }


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("capacity", [4, 7, 100])
def test_collected_steps_follow_on_each_other(n_envs: int, capacity: int) -> None:
    """Also behind the seam of the ring, and not over the end of an episode whose next one begins where it was cut."""
    buffer = OfflineReplayBuffer.from_transitions(DATA, extra_capacity=capacity)
    stepper, ends = Stepper(buffer, n_envs), {4: {0: False}, 6: {n_envs - 1: True}}
    for time in range(1, 12):
        stepper.step(ends.get(time))
        rewards = set(buffer.rewards[buffer.n_offline : buffer.size(), 0].tolist())
        assert rewards == {1000.0 * env + t for env in range(1, n_envs + 1) for t in range(1, time + 1)} & rewards
        ended = {1000.0 * (env + 1) + t for t, envs in ends.items() for env in envs}
        expected = {reward: reward + 1 for reward in rewards - ended if reward + 1 in rewards}
        assert successors(buffer) == expected


def test_episode_that_a_reset_has_left() -> None:
    """The environment was reset meanwhile: what comes is not where the last step led."""
    buffer = OfflineReplayBuffer.from_transitions(DATA, extra_capacity=10)
    stepper = Stepper(buffer, 1)
    stepper.step()
    stepper.time = 5
    stepper.step()
    stepper.step()
    assert successors(buffer) == {1006.0: 1007.0}
    samples = of_all_rows(buffer, 3)
    np.testing.assert_allclose(samples.rewards[buffer.n_offline :, 0], [1001.0, 1006.0 + GAMMA * 1007.0, 1007.0], rtol=1e-6)


def test_links_survive_growth_files_and_pickles() -> None:
    buffer = OfflineReplayBuffer.from_transitions(DATA, extra_capacity=5)
    stepper = Stepper(buffer, 2)
    for _ in range(5):
        stepper.step()
    expected = successors(buffer)
    assert len(expected) == 3
    copies = [copy.deepcopy(buffer), pickle.loads(pickle.dumps(buffer)), OfflineReplayBuffer.from_transitions(DATA)]
    copies[2].restore_added(buffer.added_arrays())
    for other in copies:
        other.reserve(20)
        assert successors(other) == expected
        continued = Stepper(other, 2)
        continued.time = stepper.time
        continued.step()
        assert successors(other) == expected | {1005.0: 1006.0, 2005.0: 2006.0}
    buffer.reset()
    assert successors(buffer) == {}


@pytest.mark.parametrize("following", [np.zeros(2, np.int64), np.full(3, 7), np.zeros(3, np.float32)])
def test_damaged_links(following: np.ndarray) -> None:
    buffer = OfflineReplayBuffer.from_transitions(DATA, extra_capacity=5)
    stepper = Stepper(buffer, 1)
    for _ in range(3):
        stepper.step()
    with pytest.raises(DatasetError, match="save them again"):
        OfflineReplayBuffer.from_transitions(DATA).restore_added(buffer.added_arrays() | {"following": following})


def test_files_without_links() -> None:
    buffer = OfflineReplayBuffer.from_transitions(DATA, extra_capacity=5)
    Stepper(buffer, 1).step()
    arrays = {name: array for name, array in buffer.added_arrays().items() if name not in ("following", "newest")}
    other = OfflineReplayBuffer.from_transitions(DATA)
    other.restore_added(arrays)
    assert other.n_added == 1 and successors(other) == {}


def test_memory_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB3_DMPO_CACHE", str(tmp_path))
    data = make_transitions(n_episodes=6)
    settings = {"action_clip": 0.5, "reward_scale": 0.3, "reward_shift": 1.0}
    buffer = OfflineReplayBuffer.from_transitions(data, **settings)
    mapped = copy.copy(buffer)
    mapped.memory_map, mapped.table = True, OfflineReplayBuffer.from_transitions(data).table
    assert_same(of_all_rows(mapped, 3)._asdict(), of_all_rows(buffer, 3)._asdict())


# Algorithms -----------------------------------------------------------------------------------------------------


def test_learn_save_and_resume(tmp_path: Path) -> None:
    """All algorithms do it in the contract, together with other options."""
    whole = make("dmpo", dataset=DATA, n_steps=3).learn(2)
    whole.save(tmp_path / "half.zip")
    whole.learn(2, reset_num_timesteps=False)
    half = ALGOS["dmpo"].load(tmp_path / "half.zip", dataset=DATA)
    assert half.n_steps == 3
    half.learn(2, reset_num_timesteps=False)
    assert_same(half.get_parameters(), whole.get_parameters())
    single = make("dmpo", dataset=DATA).learn(4)
    assert not th.equal(single.policy.critic.layers[0].weight, whole.policy.critic.layers[0].weight)


@pytest.mark.parametrize("name", ["rebrac", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dmpo", "lapo", "cql"))])
def test_recorded_updates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th, "compile", lambda graph, **options: graph)
    eager, recorded = (make(name, dataset=DATA, compile=compiled, n_steps=3).learn(8) for compiled in (False, True))
    for first, second in zip(recorded.policy.parameters(), eager.policy.parameters(), strict=True):
        th.testing.assert_close(first, second, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["dmpo", "rebrac"])
@pytest.mark.parametrize("online_ratio", [None, 0.5])
def test_learn_online(name: str, online_ratio: float | None) -> None:
    model = make(name, dataset=DATA, env=vec_env(2), n_steps=3).learn(2)
    model.learn_online(40, online_ratio=online_ratio, learning_starts=4)
    assert isinstance(model, OfflineAlgorithm) and model.replay_buffer.n_added == 40
    model.save_replay_buffer(file := io.BytesIO())
    file.seek(0)
    other = make(name, dataset=DATA, n_steps=3)
    other.load_replay_buffer(file)
    assert successors(other.replay_buffer) == successors(model.replay_buffer)


@pytest.mark.parametrize("name", [name for name in ALGOS if name not in WITH_CRITICS])
def test_refused_without_critics(name: str) -> None:
    with pytest.raises(ValueError, match="has no critics of single transitions, which n_steps is for"):
        make(name, dataset=DATA, n_steps=2)


@pytest.mark.parametrize("value", [0, 1.5, "3"])
def test_out_of_range(value: Any) -> None:
    with pytest.raises(ValueError, match="DMPO: n_steps is"):
        make("dmpo", dataset=DATA, n_steps=value)
