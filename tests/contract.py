"""What every algorithm promises, as one class of tests that runs over all of ``ALGOS``."""

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dmpo import ALGOS, OfflineAlgorithm
from sb3_dmpo.common import arguments
from sb3_dmpo.common.export import ExportedPolicy
from sb3_dmpo.data.preprocessing import canonical_observation_space
from tests.toy_data import DriftEnv, box_space, make_replay_buffer, make_transitions, nested_space

#: What keeps an algorithm small that has more parts than ``net_arch`` describes.
SMALL: dict[str, dict[str, Any]] = {
    "cql": {"pretraining_updates": 2, "n_action_samples": 2},
    "decision_transformer": {"context_length": 4, "embed_dim": 16, "n_layers": 1},
    "maple": {
        **{"n_models": 3, "n_elites": 2, "model_arch": (8,), "model_max_epochs": 2, "gru_size": 8, "context_size": 4},
        **{"rollout_length": 3, "rollout_batch_size": 20, "rollout_interval": 3, "n_retained_rollouts": 2},
        **{"refresh_interval": 4, "real_ratio": 0.25, "termination_fn": "never"},
    },
}
UPDATES = 8
DATA = make_transitions()
DICT_DATA = make_transitions(observation_space=canonical_observation_space(nested_space()))


def exported_and_single_actions(model: OfflineAlgorithm, observations: np.ndarray) -> np.ndarray:
    """Actions of a batch, which the exported policy and single observations must agree with."""
    expected, _ = model.predict(observations, deterministic=True)
    found = ExportedPolicy(model.policy)(th.from_numpy(observations)).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    single = np.stack([model.predict(observation)[0] for observation in observations])
    np.testing.assert_allclose(single, expected, atol=1e-5)
    return expected


def assert_same(first: Any, second: Any, where: str = "") -> None:
    """Assert that two nested structures of tensors, arrays and numbers are equal bit for bit."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert list(first) == list(second), where
        for key in first:
            assert_same(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    elif isinstance(first, th.Tensor):
        assert th.equal(first, second), where
    elif isinstance(first, np.ndarray):
        assert np.array_equal(first, second), where
    else:
        assert first == second, where


#: Arguments that no update depends on, or that are checked elsewhere.
NOT_OF_UPDATES = (
    *("dataset", "device", "download", "dynamics", "env", "memory_map", "policy", "seed", "stats_window_size"),
    *("capture", "compile", "tensorboard_log", "termination_fn", "verbose"),
)


def another_value(name: str, value: Any, annotation: Any) -> Any:
    """Another value of an argument; None where there is no general one."""
    if name == "policy_kwargs":
        return {"net_arch": [8]}
    special = {"ema_decay": 0.5, "latent_size": 3}
    if name in special:
        return special[name]
    choices = [choice for choice in arguments.choices_of(annotation) if choice != value]
    if choices:
        return choices[0]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value + 1 if isinstance(value, int) else 0.5 * value + 1e-3


def make(name: str, policy: str = "MlpPolicy", **kwargs: Any) -> OfflineAlgorithm:
    common = {"batch_size": 16, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [16, 16]}}
    return ALGOS[name](policy, **common | SMALL.get(name, {}) | kwargs)


def copies(model: OfflineAlgorithm, prefix: str = "") -> dict[str, th.Tensor]:
    """Copies of the policy's tensors whose names begin with a prefix."""
    return {key: value.clone() for key, value in model.policy.state_dict().items() if key.startswith(prefix)}


def differs(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> bool:
    return any(not th.equal(first[name], second[name]) for name in first)


def random_states() -> list[Any]:
    return [random.getstate(), np.random.get_state(), th.get_rng_state()]


def vec_env(n_envs: int = 1) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(DriftEnv())] * n_envs)


class Disturber(BaseCallback):
    """Does between the updates what evaluation and other code may do: acts, and draws from the global generators."""

    def _on_step(self) -> bool:
        self.model.predict(DATA.observations[:3], deterministic=False)
        random.random(), np.random.rand(), th.rand(1)
        return True


class Counter(BaseCallback):
    """Counts its calls and ends the training after some of them."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.stop_after = stop_after

    def _on_step(self) -> bool:
        return self.n_calls != self.stop_after


class RateRecorder(BaseCallback):
    """Keeps the learning rate of every optimizer at every update."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: dict[str, list[float]] = {}

    def _on_step(self) -> bool:
        for name, state in self.model.get_parameters().items():
            if name.endswith("optimizer"):
                self.rates.setdefault(name, []).append(state["param_groups"][0]["lr"])
        return True


class LogKeeper(KVWriter):
    """Keeps what the logger writes."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.written.append(dict(key_values))


class Trained(NamedTuple):
    """A trained model and its zip; nothing may change them."""

    model: OfflineAlgorithm
    path: Path


@pytest.fixture(scope="module", params=list(ALGOS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def trained(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    path = tmp_path_factory.mktemp(name) / "model.zip"
    model = make(name, dataset=DATA).learn(UPDATES)
    model.save(path)
    before = copies(model)
    yield Trained(model, path)
    assert not differs(before, copies(model)), "a test has changed the shared model"


class TestContract:
    """Run over every algorithm in ``ALGOS``, on tiny networks and tiny data."""

    # Construction -----------------------------------------------------------------------------------------------

    def test_construct_without_env(self, name: str) -> None:
        model = make(name, dataset=DATA)
        assert model.env is None and model.get_env() is None and model.num_timesteps == 0
        assert (model.observation_space, model.action_space) == (DATA.observation_space, DATA.action_space)
        assert make(name, "MultiInputPolicy", dataset=DICT_DATA).observation_space == DICT_DATA.observation_space

    @pytest.mark.parametrize("env", [DriftEnv(), vec_env(2), DriftEnv(nested_space()), "Pendulum-v1"])
    def test_construct_with_env(self, name: str, env: Any) -> None:
        """An environment, several at once, nested Dict observations, an id; nothing to learn from yet."""
        is_nested = isinstance(env, DriftEnv) and env.observation_space == nested_space()
        model = make(name, "MultiInputPolicy" if is_nested else "MlpPolicy", env=env)
        assert model.get_env() is model.env is not None
        observation = model.env.reset()
        actions, _ = model.predict(observation)
        assert actions.shape == (model.n_envs, model.action_space.shape[0])
        with pytest.raises(ValueError, match="no dataset"):
            model.learn(1)

    def test_construct_from_nothing(self, name: str) -> None:
        with pytest.raises(ValueError, match="needs a dataset or an env"):
            make(name)

    def test_dict_observations_need_their_policy(self, name: str) -> None:
        with pytest.raises(ValueError, match="MultiInputPolicy"):
            make(name, dataset=DICT_DATA)

    # Learning ---------------------------------------------------------------------------------------------------

    def test_learn(self, name: str) -> None:
        """Weights move, all numbers are finite, counters count, losses are logged."""
        model = make(name, dataset=DATA)
        before = copies(model, "actor.")
        keeper = LogKeeper()
        model.set_logger(Logger(None, [keeper]))
        assert model.learn(UPDATES, log_interval=4) is model
        assert model.num_timesteps == model._n_updates == UPDATES
        assert differs(before, copies(model, "actor."))
        assert all(bool(th.isfinite(value).all()) for value in copies(model).values())
        # What comes before the updates, if anything does, has a step of its own.
        logs = [log for log in keeper.written if "time/total_timesteps" in log]
        assert [log["time/total_timesteps"] for log in logs] == [4, 8]
        for log in logs:
            losses = {key: value for key, value in log.items() if key.startswith("train/") and key.endswith("loss")}
            assert losses and all(np.isfinite(value) for value in losses.values()), log
            quantiles = [value for key, value in log.items() if key.startswith("train/bellman_error_p")]
            assert len(quantiles) == (5 if hasattr(model.policy, "critic") else 0) and quantiles == sorted(quantiles), log

    @pytest.mark.parametrize("observation_space", [box_space(), canonical_observation_space(nested_space())])
    def test_learn_from_a_replay_buffer_of_sb3(self, name: str, observation_space: Any) -> None:
        policy = "MlpPolicy" if observation_space == box_space() else "MultiInputPolicy"
        model = make(name, policy, dataset=make_replay_buffer(observation_space)).learn(2)
        assert model.replay_buffer is not None and model.replay_buffer.size() == 48

    def test_env_with_other_bounds_of_observations(self, name: str) -> None:
        """Versions of an environment differ in the bounds and types of their observations; that does not matter."""
        other = box_space()
        other.low[:], other.high[:] = -100.0, 100.0
        model = make(name, env=DriftEnv(other), dataset=DATA).learn(2)
        assert model.num_timesteps == 2

    def test_env_with_other_actions(self, name: str) -> None:
        space = DriftEnv().action_space
        space.high[0] = 7.0
        with pytest.raises(ValueError, match="action space"):
            make(name, env=DriftEnv(action_space=space), dataset=DATA).learn(2)

    @pytest.mark.parametrize("n_envs", [0, 2])
    def test_callbacks(self, name: str, n_envs: int, tmp_path: Path) -> None:
        """SB3's own callbacks, without and with environments; one timestep stays one update."""
        counter = Counter()
        no_improvement = StopTrainingOnNoModelImprovement(max_no_improvement_evals=100)
        callbacks = [
            counter,
            EveryNTimesteps(n_steps=4, callback=(every := Counter())),
            CheckpointCallback(save_freq=4, save_path=str(tmp_path)),
            EvalCallback(
                vec_env(),
                callback_on_new_best=(threshold := StopTrainingOnRewardThreshold(np.inf)),
                callback_after_eval=no_improvement,
                n_eval_episodes=1,
                eval_freq=4,
                best_model_save_path=str(tmp_path),
                log_path=str(tmp_path),
            ),
        ]
        model = make(name, dataset=DATA, env=vec_env(n_envs) if n_envs else None)
        model.learn(UPDATES, callback=callbacks)
        assert counter.n_calls == UPDATES and every.n_calls == no_improvement.n_calls == 2 and threshold.n_calls >= 1
        found = {file.name for file in tmp_path.iterdir()}
        assert found == {"rl_model_4_steps.zip", "rl_model_8_steps.zip", "best_model.zip", "evaluations.npz"}
        assert ALGOS[name].load(tmp_path / "rl_model_4_steps.zip").num_timesteps == 4

    def test_callback_ends_the_training(self, name: str) -> None:
        model = make(name, dataset=DATA).learn(UPDATES, callback=Counter(stop_after=3))
        assert model.num_timesteps == model._n_updates == 3
        calls = []
        model.learn(2, callback=lambda locals_, globals_: calls.append(locals_["self"].num_timesteps) or True)
        assert calls == [1, 2]

    def test_learning_rate_schedule(self, name: str) -> None:
        recorder = RateRecorder()
        make(name, dataset=DATA, learning_rate=lambda progress: 1e-3 * progress).learn(4, callback=recorder)
        assert any(np.allclose(rates, [1e-3, 0.75e-3, 0.5e-3, 0.25e-3]) for rates in recorder.rates.values()), recorder.rates

    def test_continue(self, name: str) -> None:
        model = make(name, dataset=DATA).learn(4)
        model.learn(3, reset_num_timesteps=False)
        assert (model.num_timesteps, model._n_updates) == (7, 7)
        model.learn(2)
        assert (model.num_timesteps, model._n_updates) == (2, 9)

    # Repeatability ----------------------------------------------------------------------------------------------

    def test_same_seed_same_weights(self, name: str, trained: Trained) -> None:
        """Also when other code acts and draws random numbers between the updates."""
        again = make(name, dataset=DATA)
        initial = copies(again)
        again.learn(UPDATES, callback=Disturber())
        assert_same(again.get_parameters(), trained.model.get_parameters())
        assert differs(initial, make(name, dataset=DATA, seed=1).policy.state_dict())

    def test_two_halves_through_a_zip_equal_one_run(self, name: str, tmp_path: Path) -> None:
        whole = make(name, dataset=DATA)
        whole.learn(UPDATES, callback=CheckpointCallback(save_freq=UPDATES // 2, save_path=str(tmp_path)))
        half = ALGOS[name].load(tmp_path / f"rl_model_{UPDATES // 2}_steps.zip", dataset=DATA)
        half.learn(UPDATES // 2, reset_num_timesteps=False)
        assert half.num_timesteps == UPDATES
        assert_same(half.get_parameters(), whole.get_parameters())
        observations = DATA.observations[:5]
        assert_same(half.predict(observations, deterministic=True), whole.predict(observations, deterministic=True))

    def test_options_survive_a_zip(self, name: str, tmp_path: Path) -> None:
        """
        Averages to act by and, where there are critics, their options and several steps, all at once: predictions of the
        loaded model and policy and of the exported one, the rest of the run bit for bit, and each option does something.
        """
        options: dict[str, Any] = {"dataset": DATA, "ema_decay": 0.35}
        if ALGOS[name].learns_online:
            options["policy_kwargs"] = {"net_arch": [16, 16], "n_critics": 3, "critic_layer_norm": True}
            options["n_steps"] = 3
        whole = make(name, **options).learn(3)
        whole.save(tmp_path / "half.zip")
        half = ALGOS[name].load(tmp_path / "half.zip", dataset=DATA)
        observations = DATA.observations[:20]
        expected, _ = whole.predict(observations, deterministic=True)
        np.testing.assert_array_equal(half.predict(observations, deterministic=True)[0], expected)
        if not whole.policy.has_memory:
            with th.no_grad():
                exported = ExportedPolicy(copy.deepcopy(whole.policy))(th.from_numpy(observations))
            np.testing.assert_allclose(exported, expected, rtol=1e-4, atol=1e-4)
        whole.policy.save(str(tmp_path / "policy"))
        alone = type(whole.policy).load(str(tmp_path / "policy"), device="cpu")
        np.testing.assert_array_equal(alone.predict(observations, deterministic=True)[0], expected)
        if ALGOS[name].learns_online:
            assert half.n_steps == 3
            critic, initial = whole.policy.critic, make(name, **options).policy.critic
            other = make(name, **{key: value for key, value in options.items() if key != "n_steps"}).learn(3)
            assert not th.equal(critic.layers[0].weight, other.policy.critic.layers[0].weight)
            norms = critic.norms[0].weight
            assert not th.equal(norms, initial.norms[0].weight) and not th.equal(norms[0], norms[1])
        for model in (whole, half):
            model.learn(3, reset_num_timesteps=False)
        assert_same(half.get_parameters(), whole.get_parameters())

    # Arguments that are assigned --------------------------------------------------------------------------------

    def test_assigned_arguments(self, name: str, tmp_path: Path) -> None:
        """
        What networks or data were made with is refused, before anything is learned or written; the others count from the next
        ``learn`` on, also after save and load.
        """
        model = make(name, dataset=DATA).learn(2)
        fixed = {*arguments.fixed_arguments(type(model)), "clip_actions", "reward_scale", "reward_shift"}
        assigned = {}
        for argument, annotation in arguments.constructor_arguments(type(model)).items():
            if argument in NOT_OF_UPDATES:
                continue
            value = getattr(model, argument)
            other = another_value(argument, value, annotation)
            if argument in fixed:
                setattr(model, argument, other)
                for step in (lambda: model.learn(1), lambda: model.save(tmp_path / "refused")):
                    with pytest.raises(ValueError, match=argument):
                        step()
                setattr(model, argument, value)
            elif other is not None:
                setattr(model, argument, other)
                try:
                    arguments.check_arguments(model)
                except ValueError:  # not with the others
                    setattr(model, argument, value)
                else:
                    assigned[argument] = other
        assert not list(tmp_path.iterdir()) and (model.num_timesteps, model._n_updates) == (2, 2)
        assert len(assigned) >= 4
        model.save(tmp_path / "model")
        loaded = ALGOS[name].load(tmp_path / "model", dataset=DATA)
        twin = make(name, dataset=DATA).learn(2)
        for learner in (model, loaded, twin):
            learner.learn(2, reset_num_timesteps=False)
        assert_same(model.get_parameters(), loaded.get_parameters())
        rates = [
            [optimizer.param_groups[0]["lr"] for optimizer, _, _ in learner._optimizers.values()] for learner in (model, twin)
        ]
        assert all(first != second for first, second in zip(*rates, strict=True))

    # Saving and loading -----------------------------------------------------------------------------------------

    def test_save_and_load(self, trained: Trained, name: str) -> None:
        """Predictions, parameters, optimizers and settings come back; data, environment and generators are left alone."""
        # Otherwise the states could be those that building a model with the same seed leaves behind.
        set_random_seed(12345)
        before = random_states()
        model = ALGOS[name].load(trained.path)
        assert_same(random_states(), before)
        assert model.replay_buffer is None and model.env is None and model.dataset is None
        assert_same(model.get_parameters(), trained.model.get_parameters())
        observations = DATA.observations[:5]
        expected = trained.model.predict(observations, deterministic=True)
        assert_same(model.predict(observations, deterministic=True), expected)
        for attribute in (
            "num_timesteps",
            "_n_updates",
            "batch_size",
            "gamma",
            "tau",
            "policy_delay",
            "learning_rate",
            "seed",
        ):
            assert getattr(model, attribute) == getattr(trained.model, attribute), attribute
        assert (model.observation_space, model.action_space) == (DATA.observation_space, DATA.action_space)

    def test_load_with_env(self, trained: Trained, name: str) -> None:
        model = ALGOS[name].load(trained.path, env=vec_env(2))
        assert model.replay_buffer is None and model.n_envs == 2
        model.set_env(vec_env(2))
        assert model.predict(model.get_env().reset())[0].shape == (2, 2)

    def test_loaded_model_wants_a_dataset(self, trained: Trained, name: str) -> None:
        model = ALGOS[name].load(trained.path)
        with pytest.raises(ValueError, match="no dataset"):
            model.learn(1)
        model.set_dataset(DATA)
        assert model.learn(1).num_timesteps == 1

    def test_zip_holds_no_data(self, trained: Trained, name: str, tmp_path: Path) -> None:
        large = make_transitions(n_episodes=500)
        model = make(name, dataset=large).learn(UPDATES)
        model.save(tmp_path / "large.zip")
        growth = (tmp_path / "large.zip").stat().st_size - trained.path.stat().st_size
        # A number per episode and sub-policy is no data.
        table = getattr(model.policy, "episode_evidence", None)
        assert growth < 0.02 * large.observations.nbytes + (0 if table is None else table.nbytes)
        data, _, _ = load_from_zip_file(trained.path)
        assert not {"dataset", "replay_buffer", "env"} & set(data)

    def test_loaders_of_sb3(self, trained: Trained, name: str) -> None:
        data, parameters, variables = load_from_zip_file(trained.path)
        assert data["num_timesteps"] == UPDATES and data["policy_class"] is type(trained.model.policy)
        assert_same(parameters, trained.model.get_parameters())
        assert not variables
        other = make(name, dataset=DATA, seed=1)
        other.set_parameters(trained.path, device="cpu")
        assert_same(other.get_parameters(), trained.model.get_parameters())

    def test_parameters(self, trained: Trained, name: str) -> None:
        parameters = trained.model.get_parameters()
        other = make(name, dataset=DATA, seed=1).learn(1)
        assert differs(other.get_parameters()["policy"], parameters["policy"])
        other.set_parameters(parameters)
        # The observation scaler is part of the policy's parameters, so that predictions agree too.
        observations = DATA.observations[:5]
        expected, _ = trained.model.predict(observations, deterministic=True)
        np.testing.assert_array_equal(other.predict(observations, deterministic=True)[0], expected)
        with pytest.raises(ValueError, match="do not match"):
            other.set_parameters({"policy": parameters["policy"]})
        other.set_parameters({"policy": parameters["policy"]}, exact_match=False)

    # Acting -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("deterministic", [True, False])
    def test_predict(self, trained: Trained, deterministic: bool) -> None:
        """Shapes, types and bounds, which are not [-1, 1]; memory, if any, is passed on as SB3 does it."""
        model, space = trained.model, DATA.action_space
        state: Any = None
        for observations, shape in (
            (DATA.observations[0], (2,)),
            (DATA.observations[:0], (0, 2)),
            (DATA.observations[:1], (1, 2)),
            (DATA.observations, (80, 2)),
        ):
            actions, _ = model.predict(observations, deterministic=deterministic)
            assert actions.shape == shape and actions.dtype == space.dtype
            assert (actions >= space.low).all() and (actions <= space.high).all()
        for start in (True, False, False):
            starts = np.full(80, start)
            actions, state = model.predict(DATA.observations, state, starts, deterministic=deterministic)
            assert actions.shape == (80, 2)
        repeated, _ = model.predict(DATA.observations.astype(np.float64), deterministic=True)
        np.testing.assert_array_equal(repeated, model.predict(DATA.observations, deterministic=True)[0])

    def test_one_observation_as_in_a_batch(self, trained: Trained) -> None:
        """Whatever is done to answer quickly for one observation, the answer is that of the batch."""
        observations = DATA.observations[::8]
        together, _ = trained.model.predict(observations, deterministic=True)
        alone = [trained.model.predict(observation, deterministic=True)[0] for observation in observations]
        np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5)

    def test_actions_fill_their_bounds(self, name: str) -> None:
        """The policy acts in [-1, 1], the environment gets its own units: 20 times wider bounds, 20 times larger actions."""
        data = make_transitions(action_space=DriftEnv().action_space)
        wide = DriftEnv().action_space
        wide.low[:], wide.high[:] = 20.0 * wide.low, 20.0 * wide.high
        narrow_model = make(name, dataset=data)
        wide_model = make(name, dataset=make_transitions(action_space=wide))
        observations = data.observations[:5]
        narrow_actions, _ = narrow_model.predict(observations, deterministic=True)
        wide_actions, _ = wide_model.predict(observations, deterministic=True)
        np.testing.assert_allclose(wide_actions, 20.0 * narrow_actions, rtol=1e-4, atol=1e-4)

    def test_predict_dict(self, name: str) -> None:
        """Nested Dict observations as the environment gives them, and as SB3's vector environments do."""
        model = make(name, "MultiInputPolicy", dataset=DICT_DATA).learn(2)
        env = DriftEnv(nested_space())
        observation, _ = env.reset(seed=0)
        action, _ = model.predict(observation, deterministic=True)
        assert action.shape == (2,) and env.action_space.contains(action)
        model.set_env(env)
        batch = {key: np.repeat(value, 5, axis=0) for key, value in model.env.reset().items()}
        assert model.predict(batch)[0].shape == (5, 2)
        assert np.isfinite(evaluate_policy(model, model.env, n_eval_episodes=1)[0])

    def test_evaluate_policy(self, trained: Trained) -> None:
        """SB3's own loop over several environments, which hands memory and episode starts on."""
        returns, lengths = evaluate_policy(trained.model, vec_env(2), n_eval_episodes=3, return_episode_rewards=True)
        assert lengths == [8, 8, 8] and np.isfinite(returns).all()

    def test_predict_faults(self, trained: Trained) -> None:
        faults: list[tuple[Any, str]] = [
            (np.array([0.0, np.nan, 0.0]), "not finite"),
            (np.array([[0.0, 0.0, 0.0], [0.0, 0.0, np.inf]]), "not finite"),
            (np.zeros(4), "shape"),
            (np.zeros((2, 2, 3)), "shape"),
            (np.float64(1.0), "shape"),
            ({"observation": np.zeros(3)}, "dict"),
        ]
        for observation, message in faults:
            with pytest.raises(ValueError, match=message):
                trained.model.predict(observation)

    def test_predict_faults_dict(self, name: str) -> None:
        model = make(name, "MultiInputPolicy", dataset=DICT_DATA)
        faults: list[tuple[Any, str]] = [
            ({"observation": np.zeros(3)}, "lacks the keys .*goal/arm"),
            ({"observation": np.zeros(3), "goal": {"arm": np.array([0.0, np.nan])}}, "goal/arm.* not finite"),
            ({"observation": np.zeros(3), "goal": {"arm": np.zeros(3)}}, "goal/arm.* shape"),
            ({"observation": np.zeros((2, 3)), "goal": {"arm": np.zeros((3, 2))}}, "batch sizes"),
            (np.zeros(5), "keys"),
        ]
        for observation, message in faults:
            with pytest.raises(ValueError, match=message):
                model.predict(observation)
