"""What somebody who knows Stable-Baselines3 tries, and what comes of it."""

import copy
import io
import multiprocessing
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.callbacks import (
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

import sb3_dmpo
from sb3_dmpo import ALGOS, BC, DMPO, LAPO, TD3BC
from sb3_dmpo.common.arguments import as_python
from sb3_dmpo.common.callbacks import NormalizedEvalCallback
from sb3_dmpo.common.evaluation import evaluate_policy
from sb3_dmpo.dmpo.policies import MixturePolicy
from sb3_dmpo.files.plain_text import DamagedFileError
from sb3_dmpo.iql import IQLPolicy
from tests.contract import DATA, DICT_DATA, assert_same, make, vec_env
from tests.dataset_helpers import make_dataset
from tests.toy_data import DriftEnv, box_space, make_replay_buffer, nested_space


def policy_weights(model: Any) -> Any:
    return model.get_parameters()


# Copies -------------------------------------------------------------------------------------------------------------


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "cloudpickle": lambda model: cloudpickle.loads(cloudpickle.dumps(model)),
}


#: One of each shape: without and with critics, with a memory, with a fitted model. The others are copied in one way only.
COPIED_IN_EVERY_WAY = ("bc", "dmpo", "decision_transformer", "maple")


@pytest.mark.parametrize("name", ALGOS)
def test_a_copy_goes_on_like_the_model(name: str) -> None:
    """New and trained, with an environment; the copy shares nothing with the model. Every model can be pickled."""
    new = make(name, dataset=DATA, env=vec_env())
    trained = make(name, dataset=DATA, env=vec_env()).learn(2)
    whole = policy_weights(make(name, dataset=DATA, env=vec_env()).learn(3))
    before = copy.deepcopy(policy_weights(trained))
    # Schedules fall over each call.
    twice = make(name, dataset=DATA, env=vec_env()).learn(2).learn(1, reset_num_timesteps=False)
    for way, copied in COPIES.items():
        if way == "deepcopy" or name in COPIED_IN_EVERY_WAY:
            assert_same(policy_weights(copied(new).learn(3)), whole)
            assert_same(policy_weights(copied(trained).learn(1, reset_num_timesteps=False)), policy_weights(twice))
        else:
            assert_same(policy_weights(copied(trained)), before)
        assert_same(policy_weights(trained), before)
    # A generator of PyTorch would be lost on the way into a spawned process.
    assert b"Generator" not in pickle.dumps(trained)


def _act(model: Any, observation: np.ndarray, answers: Any) -> None:
    answers.put(model.predict(observation, deterministic=True)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGOS)
def test_a_spawned_process_takes_a_model(name: str) -> None:
    model, observation = make(name, dataset=DATA).learn(2), DATA.observations[0]
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    process = spawn.Process(target=_act, args=(model, observation, answers))
    process.start()
    process.join()
    assert process.exitcode == 0
    np.testing.assert_allclose(answers.get(), model.predict(observation, deterministic=True)[0], rtol=1e-6)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_of_loaded_and_online_models(copied: Callable[[Any], Any]) -> None:
    make("iql", dataset=DATA).learn(2).save(stream := io.BytesIO())
    model = ALGOS["iql"].load(stream, dataset=DATA, env=vec_env())
    model.learn_online(12, learning_starts=4)
    copied(model).learn_online(4, reset_num_timesteps=False, learning_starts=0)
    assert model.num_timesteps == 12


@pytest.mark.parametrize("name", ALGOS)
def test_policy_on_its_own(name: str, tmp_path: Path) -> None:
    """``policy.save`` and ``load``, ``obs_to_tensor`` for the policy itself, flat and Dict observations."""
    for kind, data in (("MlpPolicy", DATA), ("MultiInputPolicy", DICT_DATA)):
        model = make(name, kind, dataset=data).learn(2)
        model.policy.save(tmp_path / "policy.pkl")
        loaded = type(model.policy).load(tmp_path / "policy.pkl")
        observation = model.observation_space.sample()
        expected, _ = model.predict(observation, deterministic=True)
        np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], expected)
        tensor, is_batch = model.policy.obs_to_tensor(observation)
        assert tensor.shape == (1, model.policy.observation_size) and not is_batch
        assert not model.policy.is_vectorized_observation(observation)
        with th.no_grad():
            scaled = model.policy(tensor, deterministic=True).numpy()
        np.testing.assert_allclose(model.policy.unscale_action(scaled)[0], expected, rtol=1e-5, atol=1e-5)
        model.policy.load_from_vector(model.policy.parameters_to_vector())


def test_observation_of_gymnasium_and_of_a_vec_env() -> None:
    model = make("bc", dataset=DATA)
    with pytest.raises(ValueError, match=r"The observation is a tuple.*observation, info = env.reset\(\)"):
        model.predict(DriftEnv().reset())
    env = vec_env(3)
    tensor, is_batch = model.policy.obs_to_tensor(env.reset())
    assert tensor.shape == (3, 3) and is_batch and model.policy.is_vectorized_observation(env.reset())


# Files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [io.BytesIO, tempfile.TemporaryFile, tempfile.NamedTemporaryFile])
def test_load_from_the_stream_that_was_saved_to(stream: Callable[[], Any]) -> None:
    model = make("td3_bc", dataset=DATA, env=vec_env()).learn(2)
    with stream() as file:
        model.save(file)
        for load in (TD3BC.load, sb3_dmpo.load, TD3BC.load):
            assert_same(policy_weights(load(file)), policy_weights(model))
    with stream() as file:
        model.learn_online(20, learning_starts=5)
        model.save_replay_buffer(file)
        other = make("td3_bc", dataset=DATA)
        other.load_replay_buffer(file)
        assert other.replay_buffer.n_added == 20


def test_what_is_no_file(tmp_path: Path) -> None:
    make("bc", dataset=DATA).save(tmp_path / "model")
    for path in (None, 3, (tmp_path / "model.zip").read_bytes()):
        with pytest.raises(TypeError, match="is no file: pass a path, or a file opened for reading"):
            BC.load(path)
    with open(tmp_path / "model.zip", encoding="latin1") as file, pytest.raises(TypeError, match="opened in text mode"):
        BC.load(file)
    with pytest.raises(FileNotFoundError, match=r"nor one with \.zip appended"):
        BC.load(tmp_path / "another")


@pytest.mark.parametrize("load", [BC.load, sb3_dmpo.load])
def test_names_with_dots(load: Callable[[Any], Any], tmp_path: Path) -> None:
    """As in SB3: ``.zip`` is appended to a name without suffix on saving, and to a name that is not there on loading."""
    model = make("bc", dataset=DATA)
    for name, file in (("run.1.5", "run.1.5"), ("run", "run.zip"), ("lr.3e-4.zip", "lr.3e-4.zip")):
        model.save(tmp_path / name)
        assert (tmp_path / file).is_file()
        load(tmp_path / name)
        load(str(tmp_path / name))
    load(tmp_path / "lr.3e-4")
    assert {path.name for path in tmp_path.iterdir()} == {"run.1.5", "run.zip", "lr.3e-4.zip"}


def test_names_of_replay_buffers(tmp_path: Path) -> None:
    model = make("td3_bc", dataset=DATA, env=vec_env())
    model.learn_online(20, learning_starts=5, callback=CheckpointCallback(10, str(tmp_path), save_replay_buffer=True))
    for saved, loaded in (("x.pkl", "x.pkl"), ("y", "y"), ("z", "z.pkl"), ("v.1", "v.1"), ("w.1.npz", "w.1")):
        model.save_replay_buffer(tmp_path / saved)
        other = make("td3_bc", dataset=DATA)
        other.load_replay_buffer(str(tmp_path / loaded))
        assert other.replay_buffer.n_added == 20
    other.load_replay_buffer(tmp_path / "rl_model_replay_buffer_10_steps.pkl")
    assert other.replay_buffer.n_added == 9  # SB3 calls back before it stores the step
    with pytest.raises(FileNotFoundError, match="another"):
        other.load_replay_buffer(tmp_path / "another")


def test_replay_buffer_of_sb3_is_a_dataset(tmp_path: Path) -> None:
    SAC("MlpPolicy", DriftEnv(), buffer_size=50, device="cpu").learn(20).save_replay_buffer(tmp_path / "sac.pkl")
    with pytest.raises(DamagedFileError, match=r"it is a pickle.*`dataset=`"):
        make("td3_bc", dataset=DATA).load_replay_buffer(tmp_path / "sac.pkl")
    assert make("td3_bc", dataset=tmp_path / "sac.pkl").learn(2).replay_buffer.size() == 20


class ReachEnv(gym.Env[Any, Any]):
    """Reach a point: observations with goals, as hindsight replay wants them."""

    observation_space = spaces.Dict(
        {key: spaces.Box(-10, 10, (2,), np.float32) for key in ("achieved_goal", "desired_goal", "observation")}
    )
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def _observation(self) -> dict[str, np.ndarray]:
        here = self.position.astype(np.float32)
        return {"observation": here, "achieved_goal": here, "desired_goal": np.ones(2, np.float32)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.position, self.steps = np.zeros(2), 0
        return self._observation(), {}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:
        return -(np.linalg.norm(achieved - desired, axis=-1) > 0.3).astype(np.float32)

    def step(self, action: np.ndarray) -> Any:
        self.position += 0.1 * action
        self.steps += 1
        reward = float(self.compute_reward(self.position, np.ones(2), None))
        return self._observation(), reward, False, self.steps == 10, {"distance": np.float32(reward)}


@pytest.mark.parametrize("copy_info_dict", [False, True])
def test_hindsight_replay_of_sb3_is_a_dataset(copy_info_dict: bool, tmp_path: Path) -> None:
    """In memory and pickled, with the rewards of the goals that the agent had."""
    kwargs = {"copy_info_dict": copy_info_dict, "goal_selection_strategy": "final"}
    agent = SAC(
        "MultiInputPolicy",
        ReachEnv(),
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs=kwargs,
        buffer_size=60,
        learning_starts=100,
        device="cpu",
    ).learn(40)
    agent.save_replay_buffer(tmp_path / "her.pkl")
    pickled = make("td3_bc", "MultiInputPolicy", dataset=tmp_path / "her.pkl").learn(2)
    in_memory = make("td3_bc", "MultiInputPolicy", dataset=agent.replay_buffer).learn(2)
    assert pickled.replay_buffer.size() == 40
    assert_same(policy_weights(pickled), policy_weights(in_memory))
    np.testing.assert_array_equal(pickled.replay_buffer.rewards[:, 0].numpy(), agent.replay_buffer.rewards[:40, 0])


@pytest.mark.parametrize("version", [9, 10, 123])
def test_version_of_a_dataset_has_any_number_of_digits(version: int, tmp_path: Path) -> None:
    """A run goes on with the dataset that the zip names."""
    name = f"my/toy-v{version}"
    make_dataset(name)
    make("bc", dataset=name).learn(2).save(tmp_path / "model")
    assert BC.load(tmp_path / "model").learn(1, reset_num_timesteps=False).num_timesteps == 3


# Numbers ------------------------------------------------------------------------------------------------------------

NUMPY_ARGUMENTS: dict[str, dict[str, Any]] = {
    "dmpo": {
        "learning_rate": np.float32(1e-3),
        "batch_size": np.int64(8),
        "gamma": np.float32(0.9),
        "tau": np.float16(0.5),
        "policy_delay": np.uint8(2),
        "n_components": np.int32(3),
        "latent_embedding": np.int64(4),
        "gumbel_temperature": np.float32(0.5),
        "value_targets": np.True_,
        "value_bounds": (np.float32(-1.0), np.int64(1)),
        "reward_scale": np.float32(0.1),
        "reward_shift": np.int64(1),
        "normalize_observations": np.False_,
        "policy_kwargs": {"net_arch": [np.int64(8)], "optimizer_kwargs": {"weight_decay": np.float32(0.1)}},
        "seed": np.int64(3),
        "stats_window_size": np.int64(10),
        "verbose": np.int64(0),
    },
    "iql": {"expectile": np.float32(0.7), "advantage_scale": np.int64(3), "dropout": np.float32(0.1)},
    "lapo": {"latent_size": np.int64(3), "value_bounds": [np.float64(0.0), np.float32(1.0)], "min_q_weight": np.float32(1)},
    "cql": {"pretraining_updates": np.int64(2), "n_action_samples": np.int64(2)},
    "diffusion_ql": {"max_grad_norm": np.float32(3.0)},
    "decision_transformer": {"context_length": np.int64(4), "embed_dim": np.int64(8), "n_layers": np.int64(1)},
}


@pytest.mark.parametrize("name", NUMPY_ARGUMENTS)
def test_numbers_of_numpy_are_numbers(name: str, tmp_path: Path) -> None:
    """Everywhere: in the constructor, in ``learn``, ``learn_online`` and ``load``. They are Python's from then on."""
    given = NUMPY_ARGUMENTS[name]
    model = make(name, dataset=DATA, env=vec_env(), **given).learn(np.int64(2), log_interval=np.int64(1))
    twin = make(name, dataset=DATA, env=vec_env(), **{key: as_python(value) for key, value in given.items()}).learn(2)
    assert_same(policy_weights(model), policy_weights(twin))
    if model.learns_online:
        model.learn_online(
            np.int64(10),
            log_interval=np.int64(1),
            online_ratio=np.float32(0.5),
            learning_starts=np.int64(4),
            train_freq=(np.int64(2), "step"),
            gradient_steps=np.int64(1),
            buffer_size=np.int64(100),
        )
    assert not [key for key, value in vars(model).items() if isinstance(value, np.generic)]
    model.save(tmp_path / "model")
    loaded = ALGOS[name].load(tmp_path / "model", dataset=DATA, gamma=np.float32(0.5), batch_size=np.int64(4))
    assert (loaded.gamma, type(loaded.gamma), loaded.batch_size, type(loaded.batch_size)) == (0.5, float, 4, int)
    loaded.learn(1, reset_num_timesteps=False)
    model.gamma = np.float32(0.5)
    model.save(tmp_path / "model")
    assert ALGOS[name].load(tmp_path / "model").gamma == 0.5


@pytest.mark.parametrize("value", [np.array(0.9), np.float32("nan"), np.bool_(True), np.complex64(0.5), "0.9"])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(ValueError, match=r"DMPO: gamma is .*expected a number from 0 to 1"):
        make("dmpo", dataset=DATA, gamma=value)


def test_timesteps_and_log_interval() -> None:
    model = make("td3_bc", dataset=DATA, env=vec_env())
    assert model.learn(4.0).num_timesteps == 4 and model.learn(0).num_timesteps == 0
    model.learn_online(1e1, learning_starts=5)
    assert model.num_timesteps == 10
    for learn in (model.learn, model.learn_online):
        for timesteps in (-1, "5", None, np.nan):
            with pytest.raises(ValueError, match=r"TD3BC: total_timesteps is .*expected a number of at least 0"):
                learn(timesteps)
        for interval in (0, -1, 1.5):
            with pytest.raises(ValueError, match=r"TD3BC: log_interval is .*expected a whole number of at least 1, or None"):
                learn(5, log_interval=interval)
    assert model.num_timesteps == 10


def test_a_refused_call_changes_nothing(tmp_path: Path) -> None:
    """Otherwise a model with an impossible setting could be saved and not be loaded."""
    model = make("td3_bc", dataset=DATA, env=vec_env()).learn(1)
    before = dict(vars(model))
    with pytest.raises(ValueError, match="buffer_size is -5"):
        model.learn_online(10, buffer_size=-5, learning_starts=7)
    assert vars(model).keys() == before.keys() and all(vars(model)[key] is before[key] for key in before)
    with pytest.raises(ValueError, match="Action spaces do not match"):
        model.set_env(gym.make("Pendulum-v1"))
    assert vars(model).keys() == before.keys() and all(vars(model)[key] is before[key] for key in before)
    model.save(tmp_path / "model")
    TD3BC.load(tmp_path / "model")


# Learning rates and discount ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rate"), [*((name, float("nan")) for name in ALGOS), ("dmpo", -1e-3), ("dmpo", float("inf"))]
)
def test_schedule_that_gives_no_learning_rate(name: str, rate: float) -> None:
    """Seen before the run, wherever in the run it happens."""
    for schedule in (lambda progress: rate, lambda progress: rate if progress < 0.1 else 1e-3):
        with pytest.raises(ValueError, match=r"the schedule \w*learning_rate gives .*remaining progress"):
            make(name, dataset=DATA, learning_rate=schedule)


def test_schedule_of_a_part() -> None:
    with pytest.raises(ValueError, match=r"InfoDMPO: the schedule info_learning_rate gives -0.09"):
        make(
            "infodmpo",
            dataset=DATA,
            info_learning_rate=lambda progress: progress - 0.1 if progress < 1e-2 or progress == 1 else 1,
        )


def test_schedule_is_checked_in_the_run_too(tmp_path: Path) -> None:
    """What looking beforehand did not see: between two points, and in a model that was loaded."""
    model = make("bc", dataset=DATA, learning_rate=lambda progress: -1e-3 if 0.33333 < progress < 0.33334 else 1e-3)
    with pytest.raises(ValueError, match=r"gives -0.001 at a remaining progress of 0.333"):
        model.learn(3)
    make("bc", dataset=DATA).save(tmp_path / "model")
    loaded = BC.load(tmp_path / "model", dataset=DATA, learning_rate=lambda progress: progress - 0.5)
    with pytest.raises(ValueError, match=r"gives -0.25 at a remaining progress of 0.25"):
        loaded.learn(4)
    assert loaded.num_timesteps == 3


def test_schedule_that_ends_at_zero_is_right() -> None:
    """Also where several environments step beyond the end, and where the schedule looks at nothing but its calls."""
    model = make("td3_bc", dataset=DATA, env=vec_env(4), learning_rate=lambda progress: 1e-3 * progress).learn(3)
    model.learn_online(10, learning_starts=0)
    assert model.num_timesteps == 12 and model.actor_optimizer.param_groups[0]["lr"] == 0.0

    class Counting:
        calls = 0

        def __call__(self, progress: float) -> float:
            self.calls += 1
            return 1e-3 / self.calls

    make("bc", dataset=DATA, learning_rate=(schedule := Counting()))
    assert schedule.calls < 10


@pytest.mark.parametrize("name", ALGOS)
def test_no_discount(name: str) -> None:
    """``gamma=1``: where value bounds would follow from the rewards, they have to be given."""
    variants: list[dict[str, Any]] = [{}, {"value_targets": True}] if name in ("dmpo", "infodmpo") else [{}]
    for variant in variants:
        if name != "lapo" and not variant:
            make(name, dataset=DATA, gamma=1).learn(2)
            continue
        for gamma in (1, 1.0, np.float32(1)):
            with pytest.raises(ValueError, match=r"gamma is 1, .*pass value_bounds=\(smallest, largest return\)"):
                make(name, dataset=DATA, gamma=gamma, **variant)
        model = make(name, dataset=DATA, gamma=1, value_bounds=(-3, 3), **variant).learn(2)
        assert model.value_bounds == (-3, 3)
        model = make(name, dataset=DATA, **variant)
        model.gamma = 1.0
        with pytest.raises(ValueError, match="pass value_bounds"):
            model.learn(2)
        model.gamma = 0.5
        model.learn(2)
        assert model.value_bounds is None
        low, high = model.target_bounds
        assert low == pytest.approx(2 * DATA.rewards.min(), rel=0.5) and low < high


# Environments -------------------------------------------------------------------------------------------------------


def test_episodes_are_counted_online_only() -> None:
    model = make("td3_bc", dataset=DATA, env=vec_env())
    for callback in (StopTrainingOnMaxEpisodes(1), [EveryNTimesteps(1, StopTrainingOnMaxEpisodes(1))]):
        with pytest.raises(ValueError, match=r"`learn` runs none.* or pass it to `learn_online`"):
            model.learn(3, callback=callback)
    assert model.num_timesteps == 0
    model.learn(3)
    model.learn_online(1_000, callback=StopTrainingOnMaxEpisodes(1), learning_starts=1_000)
    assert 0 < model.num_timesteps < 1_000


@pytest.mark.parametrize("wrap", [VecNormalize, lambda env: VecFrameStack(VecNormalize(env), 1)])
def test_vec_normalize_is_refused_at_every_door(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    model = make("td3_bc", dataset=DATA)
    model.save(tmp_path / "model")
    env = wrap(vec_env())
    doors: list[Callable[[], Any]] = [
        lambda: make("td3_bc", dataset=DATA, env=env),
        lambda: model.set_env(env),
        lambda: TD3BC.load(tmp_path / "model", env=env),
        lambda: evaluate_policy(model, env, n_eval_episodes=1),
        lambda: evaluate_policy(model.policy, env, n_eval_episodes=1),
        lambda: model.learn(3, callback=EvalCallback(env, eval_freq=1, n_eval_episodes=1)),
        lambda: model.learn(3, callback=NormalizedEvalCallback(env, eval_freq=1, n_eval_episodes=1)),
        lambda: model.learn(3, callback=CallbackList([EveryNTimesteps(1, EvalCallback(env, n_eval_episodes=1))])),
    ]
    for door in doors:
        with pytest.raises(ValueError, match=r"wrapped in VecNormalize, but the policy scales observations itself"):
            door()
    assert model.num_timesteps == 0 and model.env is None


def test_vec_normalize_of_rewards_alone_and_of_others() -> None:
    """Evaluation scales no rewards back; collected ones would stand beside those of the dataset."""
    model = make("td3_bc", dataset=DATA, env=VecNormalize(vec_env(), norm_obs=False))
    with pytest.raises(ValueError, match=r"norm_reward=True, .* use norm_reward=False"):
        model.learn_online(20, learning_starts=10)
    assert len(evaluate_policy(model, model.env, n_eval_episodes=1).returns) == 1
    agent = SAC("MlpPolicy", VecNormalize(vec_env()), buffer_size=50, device="cpu")
    assert len(evaluate_policy(agent, VecNormalize(vec_env(), training=False), n_eval_episodes=1).returns) == 1


def test_environments_by_id(tmp_path: Path) -> None:
    make("bc", env="Pendulum-v1").save(tmp_path / "model")
    model = BC.load(tmp_path / "model", env="Pendulum-v1")
    model.set_env("Pendulum-v1")
    assert model.predict(model.env.reset())[0].shape == (1, 1)


def test_dataset_in_the_place_of_an_environment(tmp_path: Path) -> None:
    model = make("dmpo", dataset=DATA)
    model.save(tmp_path / "model")
    names = ("my/data-v0", "D4RL/pen/human-v10", "hopper.hdf5", "data/buffer.pkl")
    for name in names:
        for door in (
            lambda env: DMPO("MlpPolicy", env),
            lambda env: model.set_env(env),
            lambda env: DMPO.load(tmp_path / "model", env=env),
        ):
            with pytest.raises(ValueError, match=f"There is no environment '{name}' .*pass it as `dataset='{name}'`"):
                door(name)
        with pytest.raises(ValueError, match=rf"DMPO: '{name}' is no policy.*DMPO\(dataset='{name}'\)"):
            DMPO(name)
    for data in (DATA, make_replay_buffer(), Path("hopper.hdf5"), {"observations": np.zeros(3)}):
        with pytest.raises(TypeError, match=r"is no environment.*`dataset=...`"):
            DMPO("MlpPolicy", data)
    with pytest.raises(gym.error.Error, match="Pendulum"):
        DMPO("MlpPolicy", "Pendulums")


def test_vector_environment_of_gymnasium() -> None:
    with pytest.raises(TypeError, match=r"use stable_baselines3.common.env_util.make_vec_env"):
        make("bc", env=gym.make_vec("Pendulum-v1", 2))


def test_load_takes_what_set_env_takes(tmp_path: Path) -> None:
    """Bounds and types of observations differ between versions of an environment; the seed is that of the model."""
    other = box_space()
    other.low[:], other.high[:] = -100.0, 100.0
    make("td3_bc", dataset=DATA).save(tmp_path / "model")
    first, second = (TD3BC.load(tmp_path / "model", env=DriftEnv(other)) for _ in range(2))
    np.testing.assert_array_equal(first.env.reset(), second.env.reset())
    np.testing.assert_array_equal(first.action_space.sample(), second.action_space.sample())
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        TD3BC.load(tmp_path / "model", env=DriftEnv(nested_space()))
    with pytest.raises(ValueError, match="Action spaces do not match"):
        TD3BC.load(tmp_path / "model", env="Pendulum-v1")


# Policies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALGOS)
def test_policies_that_there_are_not(name: str) -> None:
    owner = ALGOS[name].__name__
    with pytest.raises(ValueError, match=rf"{owner} has no 'CnnPolicy'.*MLPs on flat vectors.*use 'MlpPolicy'"):
        make(name, "CnnPolicy", dataset=DATA)
    with pytest.raises(ValueError, match=rf"{owner}: policy 'MLPpolicy' is unknown; there are.*Did you mean 'MlpPolicy'"):
        make(name, "MLPpolicy", dataset=DATA)
    for policy in (SAC.policy_aliases["MlpPolicy"], IQLPolicy if name != "iql" else MixturePolicy, th.nn.ReLU, 3):
        with pytest.raises(TypeError, match=rf"{owner} cannot train the policy .*a subclass of \w+Policy"):
            make(name, policy, dataset=DATA)


@pytest.mark.parametrize("name", ALGOS)
def test_policy_kwargs_that_there_are_not(name: str) -> None:
    """Each wrong key is answered by the near ones, or by what there is instead."""
    owner = ALGOS[name].__name__
    answers = {
        "netarch": "Did you mean net_arch",
        "activation_function": "Did you mean activation_fn",
        "optimizer": "Did you mean optimizer_class",
        "features_extractor_class": "MLPs on flat vectors",
        "features_extractor_kwargs": "MLPs on flat vectors",
        "share_features_extractor": "MLPs on flat vectors",
        "normalize_images": "MLPs on flat vectors",
        "gamma": rf"argument of the algorithm: {owner}\(\.\.\., gamma=",
        "log_std_init": r"\w+Policy takes activation_fn, .*net_arch, .*optimizer_kwargs",
        "observation_space": r"\w+Policy takes activation_fn",
    }
    for key, answer in answers.items():
        with pytest.raises(TypeError, match=f"{owner}: policy_kwargs has no '{key}'.*{answer}"):
            make(name, dataset=DATA, policy_kwargs={key: 3})


def test_policy_kwargs_of_the_algorithm_itself() -> None:
    with pytest.raises(TypeError, match=r"It is an argument of the algorithm: DMPO\(\.\.\., n_components=\.\.\.\)"):
        make("dmpo", dataset=DATA, policy_kwargs={"n_components": 3})
    with pytest.raises(TypeError, match=r"policy_kwargs has no 'use_info_posterior'. MixturePolicy takes"):
        make("dmpo", dataset=DATA, policy_kwargs={"use_info_posterior": True})


@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        ({"net_arch": 64}, r"policy_kwargs\['net_arch'\] is 64, expected a list of widths"),
        ({"net_arch": [8, -1]}, "net_arch.*expected a list of widths"),
        ({"net_arch": [8.5]}, "net_arch.*expected a list of widths"),
        ({"net_arch": {"pi": [8], "vf": [8]}}, r"net_arch.*dict\(pi=\[256, 256\], qf="),
        ({"net_arch": [{"pi": [8], "vf": [8]}]}, "net_arch.*expected a list of widths"),
        ({"activation_fn": "relu"}, r"policy_kwargs\['activation_fn'\] is 'relu', expected a class, e.g. nn.Tanh"),
        ({"activation_fn": th.nn.ReLU()}, "activation_fn.*expected a class"),
        ({"optimizer_class": "adam"}, "optimizer_class.*expected a class"),
        ({"optimizer_kwargs": 3}, r"\['optimizer_kwargs'\] is 3, expected a dict"),
        ({"optimizer_kwargs": {"lr": 1e-3}}, "pass `learning_rate` to TD3BC itself"),
    ],
)
def test_values_of_policy_kwargs(policy_kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("td3_bc", dataset=DATA, policy_kwargs=policy_kwargs)


def test_arguments_of_the_optimizer() -> None:
    with pytest.raises(TypeError, match=r"Adam has no argument 'weight_decy'. Did you mean weight_decay"):
        make("td3_bc", dataset=DATA, policy_kwargs={"optimizer_kwargs": {"weight_decy": 0.1}})
    kwargs = {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}, "net_arch": []}
    make("td3_bc", dataset=DATA, policy_kwargs=kwargs).learn(1)


@pytest.mark.parametrize("name", ALGOS)
def test_linear_networks(name: str, tmp_path: Path) -> None:
    if name in ("dmpo", "infodmpo", "one_step_dmpo", "mix_awac"):
        with pytest.raises(ValueError, match=r"net_arch'\] is \[\], but the policy needs 1 hidden layer or more"):
            make(name, dataset=DATA, policy_kwargs={"net_arch": []})
        return
    make(name, dataset=DATA, policy_kwargs={"net_arch": []}).learn(2).save(tmp_path / "model")
    ALGOS[name].load(tmp_path / "model").predict(DATA.observations)


def test_policy_of_ones_own_takes_what_it_wants() -> None:
    class Own(MixturePolicy):
        def __init__(self, *args: Any, temperature: float = 1.0, **more: Any) -> None:
            super().__init__(*args, **more)
            self.temperature = temperature

    model = make("dmpo", Own, dataset=DATA, policy_kwargs={"temperature": 3.0, "net_arch": [8]}).learn(1)
    assert model.policy.temperature == 3.0


# Other arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "answer"),
    [
        ("buffer_size", "argument of `learn_online`"),
        ("learning_starts", "argument of `learn_online`"),
        ("action_noise", "argument of `learn_online`"),
        ("replay_buffer_class", "no hindsight replay: relabel the goals"),
        ("replay_buffer_kwargs", "no hindsight replay"),
        ("optimize_memory_usage", "`memory_map=True`"),
        ("use_sde", "no state-dependent exploration"),
        ("ent_coef", "no entropy bonus"),
        ("target_update_interval", "`tau` and `policy_delay`"),
        ("net_arch", r"policy_kwargs=dict\(net_arch="),
        ("features_extractor_class", "MLPs on flat vectors"),
    ],
)
def test_arguments_of_sb3_are_answered_by_what_there_is(argument: str, answer: str) -> None:
    with pytest.raises(TypeError, match=rf"TD3BC\(\) has no argument '{argument}'.*{answer}"):
        make("td3_bc", dataset=DATA, **{argument: 1})


def test_what_load_is_given_is_checked(tmp_path: Path) -> None:
    model = make("lapo", dataset=DATA).learn(1)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="LAPO: gamma is 7, expected"):
        LAPO.load(tmp_path / "model", gamma=7)
    with pytest.raises(ValueError, match="LAPO: normalize_actions is 'no', expected True or False"):
        LAPO.load(tmp_path / "model", normalize_actions="no")
    with pytest.raises(TypeError, match=r"has no argument 'gama'. Did you mean gamma"):
        LAPO.load(tmp_path / "model", gama=0.9)
    with pytest.raises(ValueError, match="device is 'cuda:99', but PyTorch finds"):
        LAPO.load(tmp_path / "model", device="cuda:99")
    assert (
        LAPO.load(tmp_path / "model", gamma=1.0, learning_rate=1e-5, n_envs=1, custom_objects={"clip_range": 3}).gamma == 1.0
    )


def test_random_seed_of_a_model() -> None:
    """``set_random_seed`` decides what follows, as in SB3: also noise and minibatches, before and after data are read."""
    results = []
    for seed in (1, 1, 2):
        model = make("dmpo", dataset=DATA)
        model.set_random_seed(seed)
        model.learn(2)
        model.set_random_seed(seed + 10)
        results.append(policy_weights(model.learn(2)))
    assert_same(results[0], results[1])
    with pytest.raises(AssertionError):
        assert_same(results[0], results[2])


def test_runs_in_a_folder_with_brackets_have_folders_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = tmp_path / "tb [v1]"
    model = make("td3_bc", dataset=DATA, env=DriftEnv(), tensorboard_log=folder)
    assert model.learn(1).logger.dir == str(folder / "TD3BC_1")
    assert model.learn(1).logger.dir == str(folder / "TD3BC_2")
    assert model.learn(1, reset_num_timesteps=False).logger.dir == str(folder / "TD3BC_2")
    assert model.learn_online(101).logger.dir == str(folder / "TD3BC_3")
    assert model.learn_online(1, reset_num_timesteps=False).logger.dir == str(folder / "TD3BC_3")
    assert sorted(path.name for path in folder.iterdir()) == ["TD3BC_1", "TD3BC_2", "TD3BC_3"]


def test_paths_are_texts(tmp_path: Path) -> None:
    """A model with a path as an argument can be saved."""
    make("bc", dataset=DATA, tensorboard_log=tmp_path / "log").save(tmp_path / "model")
    assert BC.load(tmp_path / "model").tensorboard_log == str(tmp_path / "log")
    assert BC.load(tmp_path / "model", tensorboard_log=tmp_path).tensorboard_log == str(tmp_path)


def test_evaluation_as_in_sb3() -> None:
    """An environment by its id, and two numbers as the result."""
    mean, std = evaluate_policy(make("bc", env="Pendulum-v1"), "Pendulum-v1", n_eval_episodes=2)
    assert mean < 0.0 <= std


def test_action_noise_that_is_none() -> None:
    with pytest.raises(TypeError, match=r"action_noise is 0.1, expected one of stable_baselines3.common.noise"):
        make("td3_bc", dataset=DATA, env=vec_env()).learn_online(10, action_noise=0.1)
