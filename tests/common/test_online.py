"""From offline to online, for every algorithm that can: SB3's own loop, the right transitions, and going on after a break."""

import io
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sb3_dmpo import ALGOS, TD3BC, OfflineAlgorithm
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.callbacks import OnlineCheckpointCallback
from sb3_dmpo.data import DatasetError, open_dataset
from sb3_dmpo.files.plain_text import DamagedFileError
from tests.contract import DATA, DICT_DATA, Counter, LogKeeper, assert_same, copies, differs, make, random_states, vec_env
from tests.toy_data import ACTION_HIGH, ACTION_LOW, EPISODE_LENGTH, DriftEnv, box_space, make_transitions, nested_space

ONLINE = [name for name, algorithm in ALGOS.items() if algorithm.learns_online]
N_DATA = len(DATA)


class SteadyEnv(DriftEnv):
    """Every episode begins at the same place; after ``end`` steps it terminates."""

    end = EPISODE_LENGTH + 1

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(**kwargs)
        self.position = 0.5
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, self.steps == self.end, truncated, info


def noise() -> NormalActionNoise:
    return NormalActionNoise(np.zeros(2), np.full(2, 0.3))


def steady(n_envs: int = 1, end: int = EPISODE_LENGTH + 1) -> DummyVecEnv:
    def make_env() -> Any:
        env = SteadyEnv()
        env.end = end
        return Monitor(env)

    return DummyVecEnv([make_env] * n_envs)


def added(model: OfflineAlgorithm) -> dict[str, np.ndarray]:
    """What was collected, as arrays."""
    assert isinstance(model.replay_buffer, OfflineReplayBuffer)
    return model.replay_buffer.added_arrays()


# Every algorithm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ONLINE)
@pytest.mark.parametrize("n_envs", [1, 3])
def test_fine_tuning(name: str, n_envs: int) -> None:
    """Weights move, the scaler stays, steps and updates are counted, everything is finite and logged."""
    model = make(name, dataset=DATA).learn(4)
    before, scaler = copies(model, "critic."), model.policy.observation_mean.clone()
    model.set_env(vec_env(n_envs))
    model.set_logger(Logger(None, [keeper := LogKeeper()]))
    steps = 24
    assert model.learn_online(steps, learning_starts=6, action_noise=noise(), log_interval=n_envs) is model
    assert model.num_timesteps == steps and model.replay_buffer.n_added == steps
    assert model._n_updates == 4 + (steps - 6) // n_envs
    assert differs(before, copies(model, "critic."))
    assert th.equal(model.policy.observation_mean, scaler)
    assert all(bool(th.isfinite(value).all()) for value in copies(model).values())
    assert [log["time/episodes"] for log in keeper.written] == list(range(n_envs, steps // EPISODE_LENGTH + 1, n_envs))
    assert {"rollout/ep_rew_mean", "train/n_updates", "train/critic_loss"} <= set(keeper.written[-1])


@pytest.mark.parametrize("name", ONLINE)
def test_through_a_zip_as_without(name: str, tmp_path: Path) -> None:
    """Saved, loaded and fine-tuned, a model ends where one ends that never left the memory; also in two calls."""
    model = make(name, dataset=DATA).learn(4)
    model.save(tmp_path / "offline.zip")
    states = random_states()
    loaded = ALGOS[name].load(tmp_path / "offline.zip", dataset=DATA)
    assert_same(random_states(), states)
    results = []
    for one in (model, loaded):
        one.set_env(steady())
        one.learn_online(EPISODE_LENGTH, learning_starts=2, action_noise=noise())
        one.save(tmp_path / "half.zip")
        one.save_replay_buffer(tmp_path / "half")
        half = ALGOS[name].load(tmp_path / "half.zip", dataset=DATA, env=steady())
        half.load_replay_buffer(tmp_path / "half.npz")
        # The one that was never saved goes on first: the other one takes the random states out of its zip.
        for other in (one, half):
            other.learn_online(6, learning_starts=2, action_noise=noise(), reset_num_timesteps=False)
            assert other.num_timesteps == EPISODE_LENGTH + 6
            results.append((other.get_parameters(), added(other)))
    for result in results[1:]:
        assert_same(result, results[0])


@pytest.mark.parametrize("name", ONLINE)
def test_dict_observations(name: str) -> None:
    model = make(name, "MultiInputPolicy", dataset=DICT_DATA).learn(2)
    env = DriftEnv(nested_space())
    model.set_env(env)
    model.learn_online(10, learning_starts=6, action_noise=noise())
    arrays = added(model)
    assert arrays["observations"].shape == (10, 5)
    # The last observation of the episode, not the first one of the next.
    np.testing.assert_array_equal(arrays["observations"][1:8], arrays["next_observations"][:7])
    assert arrays["next_observations"][7, 0] != arrays["observations"][8, 0]
    model.save(file := io.BytesIO())
    assert_same(copies(model), copies(type(model).load(file)))


@pytest.mark.parametrize("name", [name for name in ALGOS if name not in ONLINE])
def test_without_a_critic(name: str) -> None:
    model = make(name, dataset=DATA, env=vec_env())
    why = (
        "learns from episodes that its model" if name == "maple" else "has no critic and cannot improve by its own experience"
    )
    with pytest.raises(ValueError, match=rf"{why}.*e\.g\. DMPO"):
        model.learn_online(10)
    assert model.replay_buffer is None and set(ALGOS) - set(ONLINE) == {"bc", "decision_transformer", "maple"}


# The transitions ----------------------------------------------------------------------------------------------------


def make_online(env: Any = None, **kwargs: Any) -> OfflineAlgorithm:
    model = make("td3_bc", dataset=DATA, **kwargs)
    model.set_env(steady() if env is None else env)
    return model


@pytest.mark.parametrize("n_envs", [1, 2])
def test_what_is_stored(n_envs: int) -> None:
    """Actions in [-1, 1] that are what the environment got, rewards transformed, ends as what they are."""
    env = steady(n_envs, end=5)
    model = make_online(env, reward_scale=2.0, reward_shift=1.0)
    taken: list[np.ndarray] = []
    rewards: list[np.ndarray] = []

    def watch(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        taken.append(locals_["actions"].copy())
        rewards.append(locals_["rewards"].copy())
        return True

    model.learn_online(10 * n_envs, callback=watch, action_noise=noise())
    arrays = added(model)
    low, high = np.array(ACTION_LOW), np.array(ACTION_HIGH)
    np.testing.assert_allclose(low + 0.5 * (arrays["actions"] + 1.0) * (high - low), np.concatenate(taken), atol=1e-5)
    assert np.abs(arrays["actions"]).max() <= 1.0 and arrays["actions"].std() > 0.1
    np.testing.assert_allclose(arrays["rewards"][:, 0], 2.0 * (np.concatenate(rewards) + 1.0), rtol=1e-6)
    ends = np.repeat(np.arange(10) % 5 == 4, n_envs)
    np.testing.assert_array_equal(arrays["dones"][:, 0], ends)


def test_time_limits_are_no_terminations() -> None:
    model = make_online()
    model.learn_online(2 * EPISODE_LENGTH)
    assert added(model)["dones"].sum() == 0.0


@pytest.mark.parametrize(("ratio", "share"), [(0.5, 0.5), (0.0, 0.0), (1.0, 1.0), (None, 40 / (40 + N_DATA))])
def test_online_ratio(ratio: float | None, share: float) -> None:
    model = make_online()
    model.learn_online(40, online_ratio=ratio, learning_starts=40)
    known = {tuple(row) for row in DATA.observations.tolist()}
    rows = model.replay_buffer.sample(2000).observations.tolist()
    found = float(np.mean([tuple(row) not in known for row in rows]))
    assert found == share if ratio is not None else abs(found - share) < 0.05


def test_old_transitions_make_room_and_the_dataset_stays() -> None:
    model = make_online()
    model.learn_online(20, buffer_size=6)
    assert model.replay_buffer.n_added == 6
    assert th.equal(model.replay_buffer.observations[:N_DATA], th.from_numpy(DATA.observations))
    newest = added(model)["next_observations"]
    model.learn_online(4, buffer_size=50, reset_num_timesteps=False)
    assert model.replay_buffer.n_added == 10
    # Those that were there stand first, the oldest of them at the front.
    kept = added(model)["next_observations"][:6]
    assert sorted(map(tuple, kept)) == sorted(map(tuple, newest))


def test_policy_collects_the_first_steps() -> None:
    """SB3 would act at random there."""
    model = make_online()
    model.learn_online(5, learning_starts=100)
    assert model._n_updates == 0
    arrays = added(model)
    low, high = np.array(ACTION_LOW), np.array(ACTION_HIGH)
    expected, _ = model.predict(arrays["observations"], deterministic=True)
    np.testing.assert_allclose(low + 0.5 * (arrays["actions"] + 1.0) * (high - low), expected, atol=1e-5)


def test_train_freq_and_gradient_steps() -> None:
    model = make_online()
    model.learn_online(16, learning_starts=0, train_freq=(1, "episode"), gradient_steps=-1)
    assert model._n_updates == 16
    model.learn_online(12, learning_starts=0, train_freq=4, gradient_steps=3)
    assert model._n_updates == 16 + 9


def test_noise_of_another_number_of_environments() -> None:
    kind = OrnsteinUhlenbeckActionNoise(np.zeros(2), np.full(2, 0.1))
    model = make_online(steady(3))
    model.learn_online(6, action_noise=VectorizedActionNoise(kind, 2))
    assert model.action_noise.n_envs == 3


def test_noise_of_another_size_and_no_update_are_found_first() -> None:
    model = make_online()
    model.learn_online(4)
    kind = NormalActionNoise(np.zeros(3), np.ones(3))
    for noise_of_three in (kind, VectorizedActionNoise(kind, 1)):
        with pytest.raises(
            ValueError, match=r"action_noise has the shape \(3,\), but actions have \(2,\): make it of np.zeros\(2\)"
        ):
            model.learn_online(20, action_noise=noise_of_three)
    assert model.num_timesteps == 4
    model.learn_online(2, action_noise=NormalActionNoise(np.zeros(1), np.ones(1)))
    with pytest.warns(UserWarning, match="does no update with gradient_steps=0"):
        model.learn_online(2, gradient_steps=0)


# Callbacks, saving and resuming -------------------------------------------------------------------------------------


def test_callback_ends_the_training() -> None:
    counter = Counter(stop_after=3)
    model = make_online(steady(2))
    model.learn_online(20, callback=counter)
    assert counter.n_calls == 3 and model.num_timesteps == 6


@pytest.mark.parametrize("n_envs", [1, 2])
def test_resumed_from_a_checkpoint(n_envs: int, tmp_path: Path) -> None:
    """Bit for bit, where the environment allows it: at the end of an episode, with starts that do not depend on chance."""
    settings: dict[str, Any] = {"learning_starts": 4, "action_noise": noise()}
    whole = make_online(steady(n_envs))
    callback = OnlineCheckpointCallback(EPISODE_LENGTH, str(tmp_path))
    whole.learn_online(2 * EPISODE_LENGTH * n_envs, callback=callback, **settings)
    steps = EPISODE_LENGTH * n_envs
    names = {f"rl_model_{k}_steps.zip" for k in (steps, 2 * steps)}
    assert {path.name for path in tmp_path.iterdir()} == names | {
        f"rl_model_replay_buffer_{k}_steps.npz" for k in (steps, 2 * steps)
    }
    resumed = TD3BC.load(tmp_path / f"rl_model_{steps}_steps.zip", env=steady(n_envs), dataset=DATA)
    resumed.load_replay_buffer(tmp_path / f"rl_model_replay_buffer_{steps}_steps.npz")
    assert resumed.num_timesteps == steps and resumed.replay_buffer.n_added == steps
    resumed.learn_online(steps, reset_num_timesteps=False, **settings)
    assert (resumed.num_timesteps, resumed._n_updates) == (whole.num_timesteps, whole._n_updates)
    assert_same(resumed.get_parameters(), whole.get_parameters())
    assert_same(added(resumed), added(whole))


def test_checkpoints_of_sb3(tmp_path: Path) -> None:
    model = make_online()
    callback = CheckpointCallback(10, str(tmp_path), save_replay_buffer=True)
    model.learn_online(10, callback=callback, action_noise=noise())
    other = TD3BC.load(tmp_path / "rl_model_10_steps.zip", dataset=DATA)
    other.load_replay_buffer(tmp_path / "rl_model_replay_buffer_10_steps.pkl")
    # SB3's callback comes before the step is stored.
    assert other.replay_buffer.n_added == 9
    with pytest.raises(DatasetError, match=r"steps\.pkl'.*collected beside a dataset.*load_replay_buffer"):
        open_dataset(tmp_path / "rl_model_replay_buffer_10_steps.pkl")


class TalkativeEnv(SteadyEnv):
    """Says about an episode what environments say, each in a form of its own."""

    says: ClassVar[dict[str, Any]] = {
        **{"whole": np.int64(3), "flag": np.bool_(True), "one": np.array([0.5], np.float32), "text": "far", "none": None},
        **{"row": np.zeros(3), "list": [1, 2], "dict": {"a": 1}, "complex": np.complex64(1j), "tensor": th.tensor(2.0)},
    }
    success: Any = True

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        *result, _ = super().step(action)
        return *result, self.says | {"is_success": self.success}  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("of_vec_env", "success", "stored"),
    [
        *((True, np.bool_(True), [True]), (False, np.array(True), [True]), (True, np.array([0.5]), [0.5])),
        *((False, np.float32("nan"), [float("nan")]), (True, np.zeros(2), []), (False, "yes", [])),
    ],
    ids=str,
)
def test_what_environments_say_about_episodes(of_vec_env: bool, success: Any, stored: list[Any]) -> None:
    """Numbers of any kind come back as Python's, also those of VecMonitor; what else there is does not stop a zip."""

    def make_env() -> Any:
        env = TalkativeEnv()
        env.success = success
        return env if of_vec_env else Monitor(env, info_keywords=tuple(env.says))

    env = DummyVecEnv([make_env])
    model = make_online(VecMonitor(env, info_keywords=tuple(TalkativeEnv.says)) if of_vec_env else env)
    model.learn_online(EPISODE_LENGTH, learning_starts=1)
    assert model.ep_info_buffer is not None and model.ep_success_buffer is not None
    model.save(file := io.BytesIO())
    file.seek(0)
    loaded = TD3BC.load(file, env=env, dataset=DATA)
    assert loaded.ep_info_buffer is not None and loaded.ep_success_buffer is not None
    (before,), (episode,) = model.ep_info_buffer, loaded.ep_info_buffer
    measured = {"r": float(before["r"]), "l": EPISODE_LENGTH, "t": before["t"]}
    said = {"whole": 3, "flag": True, "one": 0.5, "text": "far", "none": None, "tensor": 2.0}
    assert_same(dict(sorted(episode.items())), dict(sorted((measured | said).items())))
    assert str(list(loaded.ep_success_buffer)) == str(stored)
    assert loaded.ep_info_buffer.maxlen == model.ep_info_buffer.maxlen
    if stored:
        loaded.learn_online(1, learning_starts=1, reset_num_timesteps=False)


def test_full_buffer_comes_back_as_it_was(tmp_path: Path) -> None:
    model = make_online()
    model.learn_online(10, buffer_size=4)
    model.save_replay_buffer(tmp_path / "buffer")
    other = make("td3_bc", dataset=DATA)
    other.load_replay_buffer(tmp_path / "buffer")
    assert_same(added(other), added(model))
    for one in (model, other):
        one.set_env(steady())
        one.learn_online(1, buffer_size=4, learning_starts=100)
    assert_same(added(other)["observations"], added(model)["observations"])


def test_faults_of_saved_transitions(tmp_path: Path) -> None:
    model = make_online()
    with pytest.raises(ValueError, match="no replay buffer yet"):
        model.save_replay_buffer(tmp_path / "buffer")
    model.learn_online(10)
    model.save_replay_buffer(tmp_path / "buffer")
    with pytest.raises(DatasetError, match=r"added to a dataset with the hash toy-10.*here it is toy-7"):
        make("td3_bc", dataset=make_transitions(n_episodes=7)).load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(DatasetError, match="reward scale"):
        make("td3_bc", dataset=DATA, reward_scale=3.0).load_replay_buffer(tmp_path / "buffer")
    content = (tmp_path / "buffer.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    (tmp_path / "pickle.npz").write_bytes(b"\x80\x04]\x94.")
    for name in ("cut", "pickle"):
        with pytest.raises(DamagedFileError, match=rf"{name}\.npz: This holds no transitions"):
            model.load_replay_buffer(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        model.load_replay_buffer(tmp_path / "nothing")
    arrays = added(model)
    for change, message in (
        ({"rewards": arrays["rewards"] * np.nan}, "rewards are not 10 x 1 finite"),
        ({"actions": arrays["actions"][:, :1]}, "actions are not 10 x 2"),
        ({"actions": arrays["actions"] * 0 + np.float32(1.5)}, r"actions are not 10 x 2 .* in \[-1, 1\]"),
        ({"dones": arrays["dones"] * 0 + np.float32(0.5)}, "dones are not 10 x 1 .* each 0 or 1"),
        ({"oldest": np.array(11)}, "oldest of 10"),
    ):
        with pytest.raises(DatasetError, match=message):
            model.replay_buffer.restore_added(arrays | change)
    del arrays["dones"]
    with pytest.raises(DatasetError, match=r"incomplete.*dones"):
        model.replay_buffer.restore_added(arrays)


# Faults -------------------------------------------------------------------------------------------------------------


def test_what_is_needed() -> None:
    with pytest.raises(ValueError, match="no environment to learn in: call `set_env`"):
        make("td3_bc", dataset=DATA).learn_online(1)
    with pytest.raises(ValueError, match="no dataset to learn from"):
        make("td3_bc", env=vec_env()).learn_online(1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("online_ratio", 1.5), ("learning_starts", -1), ("buffer_size", 0), ("gradient_steps", -2), ("train_freq", (1, "day"))],
)
def test_ranges(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        make_online().learn_online(1, **{name: value})


def test_environment_with_other_bounds_of_observations() -> None:
    other = box_space()
    other.low[:], other.high[:] = -100.0, 100.0
    model = make("td3_bc", dataset=DATA)
    model.set_env(DriftEnv(other))
    assert model.learn_online(3).num_timesteps == 3


def test_environment_with_other_actions() -> None:
    space = DriftEnv().action_space
    space.high[0] = 7.0
    with pytest.raises(ValueError, match="Action spaces do not match"):
        make("td3_bc", dataset=DATA).set_env(DriftEnv(action_space=space))


def test_changed_dataset() -> None:
    model = make("td3_bc", dataset=DATA).learn(2)
    model.set_env(steady())
    model.dataset, model.replay_buffer = make_transitions(n_episodes=7), None
    with pytest.raises(DatasetError, match="has changed since this run began"):
        model.learn_online(3)


def test_learning_from_the_data_again(tmp_path: Path) -> None:
    """``learn`` goes on with everything that there is, also after a zip, and steps no environment."""
    model = make_online()
    model.learn_online(10, online_ratio=1.0)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = TD3BC.load(tmp_path / "model", dataset=DATA)
    loaded.load_replay_buffer(tmp_path / "buffer")
    for learner in (model, loaded):
        learner.learn(3, reset_num_timesteps=False)
        assert learner.num_timesteps == 13 and learner.replay_buffer.n_added == 10
    assert_same(model.get_parameters(), loaded.get_parameters())
    rows = model.replay_buffer._draw_rows(20_000)
    assert abs(float((rows >= N_DATA).float().mean()) - 10 / (10 + N_DATA)) < 0.02


def test_a_call_without_any_update_is_said() -> None:
    model = make("td3_bc", dataset=DATA)
    model.set_env(vec_env())
    with pytest.warns(UserWarning, match=r"learn_online\(20\) does no update: .* learning_starts=20 steps"):
        model.learn_online(20, learning_starts=20)
    assert model._n_updates == 0
