import json
import random
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_dmpo.common.callbacks import NormalizedEvalCallback
from sb3_dmpo.common.evaluation import env_id_of, evaluate_policy, normalized_score
from sb3_dmpo.data.tasks import reference_scores
from sb3_dmpo.envs import TWO_GOALS_DATASET_ID, TwoGoals, make_two_goals_dataset
from sb3_dmpo.envs.two_goals import GOALS


class Walker:
    """From the upper half it walks to the upper goal, from the lower half into the obstacle on the axis."""

    def predict(self, observation: np.ndarray, *args: Any, **kwargs: Any) -> tuple[np.ndarray, None]:
        targets = np.where(observation[:, 1:] > 0, GOALS[0], [0.45, 0.0])
        return np.clip((targets - observation) / 0.2, -1.0, 1.0).astype(np.float32), None


class Still:
    """Does not move."""

    def predict(self, observation: np.ndarray, *args: Any, **kwargs: Any) -> tuple[np.ndarray, None]:
        return np.zeros((len(observation), 2), np.float32), None


class SuccessLess(gym.Wrapper):
    """TwoGoals that keeps quiet about success."""

    def step(self, action: Any) -> Any:
        *result, _ = self.env.step(action)
        return *result, {}


class Simulator:
    """Too heavy to be copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise AssertionError("an evaluation has copied the simulator")


class HeavyInfo(gym.Wrapper):
    """TwoGoals that shows its simulator in every step."""

    def step(self, action: Any) -> Any:
        *result, info = self.env.step(action)
        return *result, {**info, "simulator": Simulator()}


def vec_env(n_envs: int = 4, seed: int = 0) -> DummyVecEnv:
    env = DummyVecEnv([lambda: Monitor(gym.make("TwoGoals-v0"))] * n_envs)
    env.seed(seed)
    return env


def write_metadata(root: Path, dataset_id: str, **metadata: Any) -> None:
    folder = root / dataset_id / "data"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps({"dataset_id": dataset_id, **metadata}))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


# Reference scores ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env_id, low, high",
    [
        ("HalfCheetah-v5", -280.178953, 12135.0),
        ("Hopper-v4", -20.272305, 3234.3),
        ("Walker2d-v5", 1.629008, 4592.3),
        ("AntMaze_UMaze-v5", 0.0, 1.0),
        ("AntMaze_Large_Diverse_GR-v4", 0.0, 1.0),
        ("AdroitHandPen-v1", 96.262799, 3076.8331017826877),
        ("AdroitHandHammer-v1", -274.856578, 12794.134825156867),
        ("gymnasium_robotics:AdroitHandDoor-v1", -56.512833, 2880.5693087298737),
        ("AdroitHandRelocate-v1", -6.425911, 4233.877797728884),
        ("TwoGoals-v0", 0.0, 1.0),
    ],
)
def test_reference_scores_by_environment(env_id: str, low: float, high: float) -> None:
    reference = reference_scores(env_id=env_id)
    assert reference is not None and (reference.min, reference.max) == (low, high)
    assert "D4RL's table" in reference.source or env_id == "TwoGoals-v0"
    assert reference_scores(env_id) == reference


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "AdroitHandPenSparse-v1", "AntMaze_UMazeDense-v5", "MyHopper-v5", None])
def test_no_reference_scores(env_id: str | None) -> None:
    assert reference_scores(env_id=env_id) is None
    assert normalized_score([1.0], env_id=env_id) is None


def test_the_datasets_own_scores_come_first_then_its_environment_then_the_given_one(root: Path) -> None:
    write_metadata(root, "a/own-v0", ref_min_score=10, ref_max_score=20.0, env_spec='{"id": "Hopper-v5"}')
    write_metadata(root, "a/family-v0", env_spec='{"id": "Other-v0"}', eval_env_spec='{"id": "Hopper-v5"}')
    write_metadata(root, "a/broken-v0", ref_min_score=1.0, ref_max_score=1.0)
    own = reference_scores("a/own-v0", "Walker2d-v5")
    assert own is not None and own[:2] == (10.0, 20.0) and own.source == "the metadata of a/own-v0"
    assert reference_scores("a/family-v0", "Walker2d-v5") == reference_scores(env_id="Hopper-v5")
    assert reference_scores("a/broken-v0", "Walker2d-v5") == reference_scores(env_id="Walker2d-v5")
    assert reference_scores("a/absent-v0", "Walker2d-v5") == reference_scores(env_id="Walker2d-v5")
    assert reference_scores("a/absent-v0") is None
    (root / "a/own-v0/data/metadata.json").write_text('{"ref_min')
    assert reference_scores("a/own-v0") is None


def test_reference_scores_of_a_dataset_object() -> None:
    reference = reference_scores(make_two_goals_dataset())
    assert reference == (0.0, 1.0, f"the metadata of {TWO_GOALS_DATASET_ID}")


def test_normalized_score_is_in_percent() -> None:
    assert normalized_score([-20.272305, 3234.3], "Hopper-v5") == pytest.approx(50.0)
    reference = reference_scores(env_id="Hopper-v5")
    assert reference is not None
    np.testing.assert_allclose(reference.normalize([[-20.272305], [3234.3]]), [[0.0], [100.0]], atol=1e-12)


# evaluate_policy ----------------------------------------------------------------------------------------------------


def test_evaluate_policy_over_many_environments() -> None:
    result = evaluate_policy(Walker(), vec_env(), n_eval_episodes=30)
    assert result.returns.shape == result.lengths.shape == (30,)
    assert result.successes is not None
    assert set(result.returns) == {-1.0, 1.0}
    np.testing.assert_array_equal(result.successes, result.returns > 0)
    assert result.mean_return == pytest.approx(2 * result.successes.mean() - 1)
    assert result.success_rate == result.successes.mean()
    assert result.normalized_score == pytest.approx(100 * result.mean_return)
    assert result.std_return == pytest.approx(result.returns.std())


def test_evaluate_policy_wraps_a_single_environment_and_counts_time_outs() -> None:
    result = evaluate_policy(Still(), Monitor(gym.make("TwoGoals-v0")), n_eval_episodes=2)
    assert result.returns.tolist() == [0.0, 0.0]
    assert result.lengths.tolist() == [40, 40]
    assert result.success_rate == 0.0


def test_without_success_or_reference_scores_there_are_none() -> None:
    env = DummyVecEnv([lambda: Monitor(SuccessLess(gym.make("Pendulum-v1")))])
    model = type("Zero", (), {"predict": lambda self, observation, **kwargs: (np.zeros((len(observation), 1)), None)})()
    result = evaluate_policy(model, env, n_eval_episodes=1)
    assert result.successes is None and result.success_rate is None
    assert result.reference is None and result.normalized_score is None


def test_returns_count_without_a_monitor() -> None:
    result = evaluate_policy(Walker(), gym.make("TwoGoals-v0"), n_eval_episodes=3, warn=False)
    assert result.successes is not None
    np.testing.assert_array_equal(result.successes, result.returns > 0)


class Closable(TwoGoals):
    """Counts how many are open, and can break down."""

    n_open = 0
    n_made = 0
    is_broken = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        Closable.n_open, Closable.n_made = Closable.n_open + 1, Closable.n_made + 1

    def step(self, action: np.ndarray) -> Any:
        if self.is_broken:
            raise RuntimeError("the motor is hot")
        return super().step(action)

    def close(self) -> None:
        Closable.n_open -= 1
        super().close()


@pytest.mark.parametrize("is_broken", [False, True])
def test_an_environment_made_for_an_evaluation_is_closed_after_it(is_broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = gym.envs.registration.EnvSpec("Closable-v0", entry_point=Closable, max_episode_steps=3)
    monkeypatch.setitem(gym.envs.registration.registry, "Closable-v0", spec)
    monkeypatch.setattr(Closable, "is_broken", is_broken)
    monkeypatch.setattr(Closable, "n_open", 0)
    monkeypatch.setattr(Closable, "n_made", 0)
    if is_broken:
        with pytest.raises(RuntimeError, match="the motor is hot"):
            evaluate_policy(Still(), "Closable-v0", n_eval_episodes=1)
    else:
        assert evaluate_policy(Still(), "Closable-v0", n_eval_episodes=1).lengths.tolist() == [3]
    assert (Closable.n_made, Closable.n_open) == (1, 0)
    # One that is passed is the caller's.
    monkeypatch.setattr(Closable, "is_broken", False)
    evaluate_policy(Still(), gym.make("Closable-v0"), n_eval_episodes=1)
    assert (Closable.n_made, Closable.n_open) == (2, 1)


def test_zero_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one episode"):
        evaluate_policy(Still(), vec_env(), n_eval_episodes=0)


def test_env_id_is_found_through_wrappers_but_not_in_other_processes() -> None:
    assert env_id_of(gym.make("TwoGoals-v0")) == "TwoGoals-v0"
    assert env_id_of(VecNormalize(vec_env())) == "TwoGoals-v0"
    assert env_id_of(SubprocVecEnv.__new__(SubprocVecEnv)) is None


# NormalizedEvalCallback ---------------------------------------------------------------------------------------------


class Recorder(KVWriter):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.rows.append(dict(key_values))

    def close(self) -> None: ...


class OtherVecEnv(DummyVecEnv):
    """Another kind of VecEnv than the training's."""


def train(callback: BaseCallback | None, steps: int = 30) -> tuple[TD3, list[dict[str, Any]]]:
    model = TD3("MlpPolicy", "TwoGoals-v0", learning_starts=10, batch_size=8, seed=0, policy_kwargs={"net_arch": [8]})
    recorder = Recorder()
    model.set_logger(Logger(folder=None, output_formats=[recorder]))
    model.learn(steps, callback)
    return model, [row for row in recorder.rows if "eval/mean_reward" in row]


def test_callback_logs_scores_and_saves_evaluations(tmp_path: Path) -> None:
    callback = NormalizedEvalCallback(
        OtherVecEnv([lambda: Monitor(gym.make("TwoGoals-v0"))] * 2),
        dataset=TWO_GOALS_DATASET_ID,
        eval_freq=10,
        n_eval_episodes=4,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path / "best"),
        verbose=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, rows = train(callback)
    assert len(rows) == 3
    for row in rows:
        assert row["eval/normalized_score"] == pytest.approx(100 * row["eval/mean_reward"])
        assert 0.0 <= row["eval/success_rate"] <= 1.0 and row["eval/mean_ep_length"] <= 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "evaluations.npz"]
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["best_model.zip"]
    with np.load(tmp_path / "evaluations.npz") as file:
        assert file["timesteps"].tolist() == [10, 20, 30]
        assert {
            name: file[name].shape for name in ("results", "ep_lengths", "successes", "normalized_scores")
        } == dict.fromkeys(("results", "ep_lengths", "successes", "normalized_scores"), (3, 4))
        np.testing.assert_allclose(file["normalized_scores"], 100 * file["results"])
        assert file["results"][-1].mean() == callback.last_mean_reward == pytest.approx(rows[-1]["eval/mean_reward"])


def test_callback_leaves_out_what_is_unknown() -> None:
    env = DummyVecEnv([lambda: Monitor(SuccessLess(gym.make("TwoGoals-v0")))])
    callback = NormalizedEvalCallback(env, eval_freq=20, n_eval_episodes=1, verbose=0)
    _, rows = train(callback)
    assert len(rows) == 1 and "eval/success_rate" not in rows[0] and "eval/normalized_score" in rows[0]
    assert callback.dataset is None


@pytest.mark.parametrize(
    "eval_env, said",
    [
        (gym.make("TwoGoals-v0"), "from the definition of TwoGoals"),
        (TimeLimit(TwoGoals(), 40), "No reference scores are known"),
    ],
)
def test_callback_says_where_reference_scores_come_from(
    eval_env: gym.Env, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = TD3("MlpPolicy", "TwoGoals-v0", verbose=1, policy_kwargs={"net_arch": [8]})
    model.learn(1, NormalizedEvalCallback(Monitor(eval_env), eval_freq=100))
    assert said in capsys.readouterr().out


def test_callback_does_not_disturb_training() -> None:
    class SpendingEnv(gym.Wrapper):
        """Spends random numbers of every global generator."""

        def step(self, action: Any) -> Any:
            random.random(), np.random.rand(), th.rand(1)
            return self.env.step(action)

    callback = NormalizedEvalCallback(
        Monitor(SpendingEnv(gym.make("TwoGoals-v0"))), eval_freq=10, n_eval_episodes=1, deterministic=False, verbose=0
    )
    with_evaluation, rows = train(callback)
    without, _ = train(None)
    assert len(rows) == 3
    for ours, theirs in zip(with_evaluation.policy.parameters(), without.policy.parameters(), strict=True):
        assert th.equal(ours, theirs)


def test_child_callbacks_can_end_the_training() -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return False

    for where in ("callback_on_new_best", "callback_after_eval"):
        callback = NormalizedEvalCallback(vec_env(1), eval_freq=10, n_eval_episodes=1, verbose=0, **{where: Stop()})
        model, rows = train(callback)
        assert (model.num_timesteps, len(rows)) == (10, 1)


def test_infos_are_not_copied_deeply() -> None:
    """An evaluation reads them and forgets them; afterwards the environments copy as ever."""
    env = VecNormalize(DummyVecEnv([lambda: Monitor(HeavyInfo(gym.make("TwoGoals-v0")))] * 2), training=False)
    with pytest.raises(AssertionError, match="has copied the simulator"):
        env.reset()
        env.step(np.zeros((2, 2), np.float32))
    result = evaluate_policy(Still(), env, n_eval_episodes=2)
    assert result.successes is not None and len(result.returns) == 2
    assert type(env.unwrapped.buf_infos) is list
