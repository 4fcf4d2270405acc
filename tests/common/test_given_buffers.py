"""An ``OfflineReplayBuffer`` that several models are given, and images."""

import io
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage

from sb3_dmpo import BC, TD3BC
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.evaluation import evaluate_policy
from sb3_dmpo.data import DatasetError, load_transitions
from sb3_dmpo.data.transitions import Transitions
from sb3_dmpo.decision_transformer import DecisionTransformer
from sb3_dmpo.decision_transformer.buffers import SequenceReplayBuffer
from sb3_dmpo.envs.spaces_only import SpacesOnlyEnv
from tests.toy_data import DriftEnv, make_transitions

SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "batch_size": 8, "device": "cpu"}
DATA = make_transitions()


def weights(model: Any) -> th.Tensor:
    return th.cat([value.flatten() for value in model.policy.state_dict().values()])


def make_buffer(data: Transitions = DATA, **settings: Any) -> OfflineReplayBuffer:
    return OfflineReplayBuffer.from_transitions(data, device="cpu", seed=99, **settings)


def test_a_buffer_gives_every_model_what_the_dataset_gives() -> None:
    buffer = make_buffer(extra_capacity=100)
    state, rewards = buffer.generator.get_state().clone(), buffer.rewards.clone()
    expected = weights(TD3BC(dataset=DATA, seed=3, **SMALL).learn(5))
    for _ in range(2):
        model = TD3BC(dataset=buffer, seed=3, **SMALL).learn(5)
        assert th.equal(weights(model), expected)
        model.set_env(DriftEnv())
        model.learn_online(20, learning_starts=5)
        assert model.replay_buffer.n_added == 20
    assert buffer.size() == len(DATA) and th.equal(buffer.generator.get_state(), state) and th.equal(buffer.rewards, rewards)


def test_scaled_rewards_are_not_lost_when_a_run_goes_on() -> None:
    file = io.BytesIO()
    buffer = make_buffer(reward_scale=100.0)
    model = TD3BC(dataset=buffer, seed=0, **SMALL).learn(2)
    model.save(file)
    with pytest.raises(DatasetError, match="has changed since this run began"):
        TD3BC.load(file, dataset=DATA).learn(2, reset_num_timesteps=False)
    loaded = TD3BC.load(file, dataset=make_buffer(reward_scale=100.0)).learn(2, reset_num_timesteps=False)
    model.learn(2, reset_num_timesteps=False)
    assert th.equal(loaded.replay_buffer.rewards, buffer.rewards) and th.equal(weights(loaded), weights(model))


def test_reward_settings_are_applied_once_or_refused() -> None:
    expected = make_buffer(reward_scale=10.0, reward_shift=-1.0).rewards
    asked = {"reward_scale": 10.0, "reward_shift": -1.0}
    model = TD3BC(dataset=make_buffer(), seed=0, **asked, **SMALL).learn(1)
    th.testing.assert_close(model.replay_buffer.rewards, expected)
    assert model.replay_buffer.max_reward == float(expected.max())
    for settings in (asked, {}):
        model = TD3BC(dataset=make_buffer(**asked), seed=0, **settings, **SMALL).learn(1)
        assert th.equal(model.replay_buffer.rewards, expected)
    standardized = make_buffer(reward_scale="standardize")
    model = TD3BC(dataset=standardized, reward_scale="standardize", seed=0, **SMALL).learn(1)
    assert th.equal(model.replay_buffer.rewards, standardized.rewards)
    with pytest.raises(ValueError, match=r"reward_scale=3\.0 .* have been scaled by 10\.0 and shifted by -1\.0 before"):
        TD3BC(dataset=make_buffer(**asked), reward_scale=3.0, seed=0, **SMALL).learn(1)
    with pytest.raises(ValueError, match=r"from_transitions\(\.\.\., reward_scale='max'\)"):
        TD3BC(dataset=make_buffer(), reward_scale="max", seed=0, **SMALL).learn(1)
    with pytest.raises(ValueError, match=r"memory_map=True wants it on disk"):
        TD3BC(dataset=make_buffer(), memory_map=True, seed=0, **SMALL).learn(1)


def test_actions_are_clipped_as_the_algorithm_clips_those_of_a_dataset() -> None:
    class Careful(BC):
        action_clip = 0.5

    buffer = make_buffer()
    model = Careful(dataset=buffer, seed=0, **SMALL).learn(1)
    assert float(model.replay_buffer.actions.abs().max()) == 0.5 < float(buffer.actions.abs().max())


def test_added_transitions_of_a_buffer_belong_to_the_dataset() -> None:
    buffer = make_buffer(extra_capacity=2)
    one = np.ones((1, 3), np.float32)
    for number in range(3):
        buffer.add(one * number, one, np.zeros((1, 2)), np.array([number]), np.array([False]), [{}])
    model = TD3BC(dataset=buffer, seed=0, **SMALL).learn(1)
    assert model.replay_buffer.n_offline == len(DATA) + 2 and model.dataset_fingerprint != buffer.fingerprint
    before = model.replay_buffer.observations.clone()
    buffer.add(one * 9, one, np.zeros((1, 2)), np.zeros(1), np.array([False]), [{}])
    assert th.equal(model.replay_buffer.observations, before)


@pytest.mark.parametrize("was_asked", [False, True])
def test_nothing_says_where_episodes_of_added_transitions_end(was_asked: bool) -> None:
    """Sums over several steps would otherwise run from one episode into the next."""
    buffer = make_buffer(extra_capacity=2)
    if was_asked:
        buffer.sample_steps(4, 3, 0.9, next_actions=True)
    one = np.ones((1, 3), np.float32)
    buffer.add(one, one, np.zeros((1, 2)), np.ones(1), np.array([False]), [{}])
    with pytest.raises(DatasetError, match="cannot tell where its episodes end"):
        TD3BC(dataset=buffer, n_steps=3, seed=0, **SMALL).learn(1)


def test_decision_transformer_takes_the_buffer_that_knows_its_episodes() -> None:
    buffer = SequenceReplayBuffer.from_transitions(DATA, device="cpu", seed=1)
    settings: dict[str, Any] = {
        "embed_dim": 8,
        "n_layers": 1,
        "context_length": 4,
        "batch_size": 4,
        "device": "cpu",
        "seed": 2,
    }
    expected = weights(DecisionTransformer(dataset=DATA, **settings).learn(2))
    assert all(th.equal(weights(DecisionTransformer(dataset=buffer, **settings).learn(2)), expected) for _ in range(2))


def test_data_in_memory_are_never_changed() -> None:
    copies = {name: getattr(DATA, name).copy() for name in ("observations", "next_observations", "actions", "rewards")}
    model = TD3BC(dataset=DATA, env=DriftEnv(), seed=0, reward_scale=5.0, **SMALL).learn(2)
    model.learn_online(20, learning_starts=5)
    for name, values in copies.items():
        np.testing.assert_array_equal(getattr(DATA, name), values)


# Images -----------------------------------------------------------------------------------------------------------------


class ImageEnv(gym.Env[Any, Any]):
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, as_dict: bool = False) -> None:
        image = spaces.Box(0, 255, (36, 40, 3), np.uint8)
        self.as_dict = as_dict
        self.observation_space = spaces.Dict({"image": image, "x": spaces.Box(-1, 1, (2,))}) if as_dict else image

    def observe(self) -> Any:
        image = self.np_random.integers(0, 255, (36, 40, 3)).astype(np.uint8)
        return {"image": image, "x": np.zeros(2, np.float32)} if self.as_dict else image

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observe(), 1.0, False, self.steps >= 5, {}


def image_arrays(as_dict: bool) -> dict[str, Any]:
    env = ImageEnv(as_dict)
    observations = [env.reset(seed=0)[0] for _ in range(12)]
    ends = np.arange(12) % 6 == 5
    stacked: Any = {key: np.stack([row[key] for row in observations]) for key in observations[0]} if as_dict else None
    stacked = np.stack(observations) if stacked is None else stacked
    return {
        "observations": stacked,
        "actions": np.zeros((12, 2), np.float32),
        "rewards": np.ones(12),
        "terminals": ends,
        "timeouts": ~ends & False,
    }


@pytest.mark.filterwarnings("ignore:.*flattens images")
@pytest.mark.parametrize("as_dict", [False, True])
def test_channel_last_images_stay_as_they_are(as_dict: bool) -> None:
    policy = "MultiInputPolicy" if as_dict else "MlpPolicy"
    model = TD3BC(policy, dataset=image_arrays(as_dict), seed=0, **SMALL).learn(1)
    observation = ImageEnv(as_dict).reset(seed=1)[0]
    action = model.predict(observation, deterministic=True)[0]
    assert evaluate_policy(model, ImageEnv(as_dict), 1).mean_return == 5
    model.set_env(ImageEnv(as_dict))
    assert model.observation_space == ImageEnv(as_dict).observation_space
    model.learn_online(7, learning_starts=3)
    assert action.shape == (2,)
    other = TD3BC(policy, ImageEnv(as_dict), dataset=image_arrays(as_dict), seed=0, **SMALL).learn(1)
    np.testing.assert_array_equal(other.predict(observation, deterministic=True)[0], action)


@pytest.mark.filterwarnings("ignore:.*flattens images")
def test_images_with_channels_first_and_last_in_one_observation() -> None:
    images = {"first": spaces.Box(0, 255, (3, 36, 40), np.uint8), "last": spaces.Box(0, 255, (36, 40, 3), np.uint8)}
    env = SpacesOnlyEnv(spaces.Dict(images), ImageEnv.action_space)
    for given in (env, DummyVecEnv([lambda: env])):
        model = TD3BC("MultiInputPolicy", given, dataset=None, seed=0, **SMALL)
        assert model.get_env() is not None and model.observation_space == env.observation_space


@pytest.mark.filterwarnings("ignore:.*flattens images")
def test_images_that_the_user_has_turned_stay_turned() -> None:
    turned = VecTransposeImage(DummyVecEnv([ImageEnv]))
    model = TD3BC("MlpPolicy", turned, dataset=None, seed=0, **SMALL)
    assert model.get_env() is turned and model.observation_space.shape == (3, 36, 40)


def test_flat_networks_say_once_what_they_do_with_images() -> None:
    with pytest.warns(UserWarning, match=r"TD3BC flattens images of the shape \(36, 40, 3\) into 4,320 numbers"):
        model = TD3BC("MlpPolicy", dataset=image_arrays(False), seed=0, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(1)
        TD3BC("MlpPolicy", dataset=DATA, seed=0, **SMALL)


def test_buffers_of_images_fit_their_environment() -> None:
    env = ImageEnv()
    buffer = ReplayBuffer(8, env.observation_space, env.action_space, device="cpu")
    for step in range(8):
        buffer.add(env.reset(seed=step)[0], env.observe(), np.zeros(2), np.ones(1), np.array([step == 7]), [{}])
    assert load_transitions(buffer, env=env).observation_space == env.observation_space
