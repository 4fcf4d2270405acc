"""Datasets of one's own: agents, noise, replay buffers, and that nothing in a file is executed."""

import base64
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch as th
from gymnasium.envs.registration import EnvSpec
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.save_util import save_to_pkl
from torch import nn

from sb3_dmpo import DMPO, DecisionTransformer
from sb3_dmpo.data import load_transitions, recover_environment
from sb3_dmpo.data.preprocessing import canonical_observation_space
from sb3_dmpo.data.tasks import reference_scores
from sb3_dmpo.envs import TwoGoals
from tests.cli.test_train import Outcome, assert_one_line

pytest.importorskip("rl_zoo3")

from sb3_dmpo.cli.data.agents import load_agent
from tests.doors import collect


def small() -> dict[str, Any]:
    # A new dict every time: SAC writes into its policy_kwargs.
    return {"policy_kwargs": {"net_arch": [8], "activation_fn": nn.Tanh}, "device": "cpu", "seed": 0}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Minari root for this test alone."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "minari").mkdir()
    return tmp_path / "minari"


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    SAC("MlpPolicy", "TwoGoals-v0", buffer_size=10, **small()).save(tmp_path / "sac.zip")
    return tmp_path / "sac.zip"


@pytest.mark.parametrize("name", ["sac", "ppo", "dmpo"])
def test_checked_agents_act_as_those_of_their_own_load(tmp_path: Path, name: str) -> None:
    env = gym.make("TwoGoals-v0")
    kind: Any = {"sac": SAC, "ppo": PPO, "dmpo": DMPO}[name]
    model = kind("MlpPolicy", env=env, **small())
    model.save(tmp_path / "model.zip")
    observations = np.random.default_rng(0).uniform(-1, 1, (5, 2)).astype(np.float32)
    found = load_agent(name, str(tmp_path / "model.zip"), env).predict(observations, deterministic=True)[0]
    np.testing.assert_array_equal(found, model.predict(observations, deterministic=True)[0])


@pytest.mark.parametrize("how", [{"entry_point": TwoGoals}, {"kwargs": {"scale": np.zeros(2)}}])
def test_an_environment_that_cannot_be_written_down(
    call: Callable[..., Outcome], root: Path, agent: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    spec = EnvSpec("Unwritable-v0", **{"entry_point": f"{__name__}:make_goals", **how})
    monkeypatch.setitem(gym.registry, "Unwritable-v0", spec)
    outcome = call(
        collect, "--algo", "sac", "--model", str(agent), "--env", "Unwritable-v0", "-n", "9", "--dataset", "my/x-v0"
    )
    assert_one_line(outcome, "Unwritable-v0 cannot be remembered in a dataset", "entry_point='my_package.my_module:MyEnv'")
    assert not list(root.iterdir())


def make_goals(**kwargs: Any) -> TwoGoals:
    return TwoGoals()


def test_an_agent_becomes_a_dataset(call: Callable[..., Outcome], root: Path, agent: Path) -> None:
    command = ["--algo", "sac", "--model", str(agent), "--env", "TwoGoals-v0", "-n", "100", "--noise", "0.3"]
    code, out, err = call(collect, *command, "--dataset", "my/goals/sac-v0", "--random", "0.1")
    assert code == 0, err
    assert "reference scores 0.00 to 1.00, from the definition of TwoGoals" in out and "--dataset my/goals/sac-v0" in out
    data = load_transitions("my/goals/sac-v0")
    assert 100 <= len(data) < 140 and (np.abs(data.actions) <= 1).all()
    dataset = minari.load_dataset("my/goals/sac-v0")
    episode = dataset[0]
    assert episode.truncations[-1] or episode.terminations[-1]
    moved = np.clip(episode.observations[:-1] + 0.2 * episode.actions, -1.5, 1.5)
    np.testing.assert_allclose(episode.observations[1:], moved, atol=1e-6)
    assert recover_environment("my/goals/sac-v0").spec.id == "TwoGoals-v0"
    assert reference_scores("my/goals/sac-v0")[:2] == (0.0, 1.0)
    DMPO("MlpPolicy", dataset="my/goals/sac-v0", policy_kwargs={"net_arch": [8]}, device="cpu").learn(2)
    assert call(collect, *command, "--dataset", "my/goals/again-v0", "--random", "0.1")[0] == 0
    np.testing.assert_array_equal(load_transitions("my/goals/again-v0").actions, data.actions)

    code, out, _ = call(collect, *command, "--dataset", "my/pendulum-v0", "--env", "Pendulum-v1")
    assert code == 2 and not (root / "my" / "pendulum-v0").exists()


@pytest.mark.usefixtures("root")
def test_reference_scores_are_measured_where_none_are_known(call: Callable[..., Outcome], tmp_path: Path) -> None:
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, **small()).save(tmp_path / "sac.zip")
    command = ["--algo", "sac", "--model", str(tmp_path / "sac.zip"), "--env", "Pendulum-v1", "-n", "10"]
    code, out, err = call(collect, *command, "--dataset", "my/a-v0", "--reference-episodes", "1")
    assert code == 0 and "1 episodes each of random actions and of the agent without noise" in out, err
    code, out, err = call(collect, *command, "--dataset", "my/b-v0", "--reference", "-5", "7")
    assert code == 0 and reference_scores("my/b-v0")[:2] == (-5.0, 7.0), err


def remembering(name: str, tmp_path: Path) -> Any:
    """An agent whose actions depend on the episode so far, and where its zip is: ``agent.zip``."""
    if name == "decision_transformer":
        arrays = {
            "observations": np.random.default_rng(0).normal(size=(60, 2)),
            "actions": np.random.default_rng(1).uniform(-1, 1, (60, 2)),
            "rewards": np.ones(60),
            "terminals": np.arange(60) % 20 == 19,
            "timeouts": np.zeros(60),
        }
        model: Any = DecisionTransformer(dataset=arrays, context_length=5, embed_dim=8, batch_size=8, device="cpu", seed=0)
        model.learn(5)
    else:
        kind = pytest.importorskip("sb3_contrib").RecurrentPPO
        model = kind("MlpLstmPolicy", "TwoGoals-v0", device="cpu", seed=0)
        with th.no_grad():  # as if it had learned: the first actions hardly depend on anything
            model.policy.action_net.weight.mul_(100)
    model.save(tmp_path / "agent.zip")
    return model


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("name", ["decision_transformer", "ppo_lstm"])
def test_an_agent_with_a_memory_keeps_it_for_an_episode(call: Callable[..., Outcome], tmp_path: Path, name: str) -> None:
    model = remembering(name, tmp_path)
    command = ["--algo", name, "--model", str(tmp_path / "agent.zip"), "--env", "TwoGoals-v0", "-n", "60"]
    code, _, err = call(collect, *command, "--dataset", "my/memory-v0", "--seed", "3")
    assert code == 0, err
    episodes = list(minari.load_dataset("my/memory-v0").iterate_episodes())
    assert len(episodes) > 1 or len(episodes[0].actions) == 60
    forgetful = 0.0
    for episode in episodes:
        state: Any = None
        for i, (observation, action) in enumerate(zip(episode.observations, episode.actions, strict=False)):
            expected, state = model.predict(observation, state, np.array([i == 0]), deterministic=True)
            np.testing.assert_allclose(action, np.clip(expected, -1, 1), atol=1e-5)
            alone, _ = model.predict(observation, episode_start=np.array([True]), deterministic=True)
            forgetful = max(forgetful, float(np.abs(action - np.clip(alone, -1, 1)).max()))
    assert forgetful > 1e-3  # else the test says nothing


@pytest.mark.usefixtures("root")
def test_sampled_actions_repeat_with_the_seed(call: Callable[..., Outcome], agent: Path) -> None:
    command = ["--algo", "sac", "--model", str(agent), "--env", "TwoGoals-v0", "-n", "30", "--stochastic", "--seed"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert call(collect, *command, seed, "--dataset", f"my/{name}-v0")[0] == 0
    a, b, c = (load_transitions(f"my/{name}-v0").actions for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert a.shape != c.shape or (a != c).any()


@pytest.mark.usefixtures("root")
def test_a_replay_buffer_becomes_a_dataset(call: Callable[..., Outcome], tmp_path: Path) -> None:
    model = SAC("MlpPolicy", "TwoGoals-v0", buffer_size=200, learning_starts=1000, **small()).learn(120)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    command = ["--replay-buffer", str(tmp_path / "buffer.pkl"), "--env", "TwoGoals-v0"]
    code, _, err = call(collect, *command, "--dataset", "my/buffer-v0")
    assert code == 0, err
    ours, theirs = load_transitions("my/buffer-v0"), load_transitions(tmp_path / "buffer.pkl")
    for field in ("observations", "actions", "rewards", "terminations", "truncations", "episode_lengths"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), field)


class _Camera(gym.Env[Any, Any]):
    """Observes pictures, or pictures among other things."""

    action_space = gym.spaces.Box(-2.0, 2.0, (1,))

    def __init__(self, as_dict: bool = False) -> None:
        image = gym.spaces.Box(0, 255, (3, 36, 40), np.uint8)
        speed = gym.spaces.Box(-1.0, 1.0, (1, 2), np.float64)
        self.observation_space = (
            gym.spaces.Dict({"own": gym.spaces.Dict({"camera": image, "speed": speed})}) if as_dict else image
        )


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("as_dict", [False, True])
def test_replay_buffers_of_images_and_dicts_become_datasets(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_dict: bool
) -> None:
    monkeypatch.setitem(gym.registry, "Camera-v0", gym.envs.registration.EnvSpec("Camera-v0", f"{__name__}:_Camera"))
    env = _Camera(as_dict)
    space = canonical_observation_space(env.observation_space)
    space.seed(0)
    buffer = (DictReplayBuffer if as_dict else ReplayBuffer)(8, space, env.action_space, device="cpu")
    observations = [space.sample() for _ in range(9)]
    for step in range(8):
        done = np.array([step in (3, 7)])
        buffer.add(observations[step], observations[step + 1], np.zeros((1, 1)), np.ones(1), done, [{}])
    save_to_pkl(tmp_path / "buffer.pkl", buffer)
    keywords = ["--env-kwargs", "as_dict:True"] if as_dict else []
    command = ["--replay-buffer", str(tmp_path / "buffer.pkl"), "--env", "Camera-v0", *keywords, "--dataset", "my/camera-v0"]
    code, _, err = call(collect, *command)
    assert code == 0, err
    ours, theirs = load_transitions("my/camera-v0"), load_transitions(tmp_path / "buffer.pkl")
    for field in ("observations", "next_observations", "actions", "terminations", "episode_lengths"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), field)
    assert ours.observation_space == space


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.usefixtures("root")
def test_nothing_in_a_file_is_executed(call: Callable[..., Outcome], agent: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.zip"
    with zipfile.ZipFile(agent) as source, zipfile.ZipFile(hostile, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "data":
                data = json.loads(content)
                trap = {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(_Trap())).decode()}
                content = json.dumps(data | {"policy_kwargs": trap, "lr_schedule": trap}).encode()
            target.writestr(name, content)
    command = ["--algo", "sac", "--env", "TwoGoals-v0", "--dataset", "my/x-v0", "--model"]
    assert_one_line(call(collect, *command, str(hostile)), "policy_kwargs", "--trust-pickle")
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(_Trap()))
    assert_one_line(call(collect, *command, str(agent), "--vecnormalize", str(tmp_path / "v.pkl")), "--trust-pickle")
    assert not (tmp_path / "executed").exists() and list(minari.list_local_datasets()) == []


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"net_arch": [10**6, 10**6]}, "needs more than"),
        ({"net_arch": ["8"]}, "net_arch"),
        ({"n_critics": 10**9}, "n_critics"),
        ({"features_extractor_kwargs": {}}, "features_extractor_kwargs"),
    ],
)
def test_networks_larger_than_their_weights_are_refused(
    call: Callable[..., Outcome], agent: Path, tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(agent) as source, zipfile.ZipFile(bomb, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, json.dumps(json.loads(content) | {"policy_kwargs": changes}) if name == "data" else content)
    command = ["--algo", "sac", "--env", "TwoGoals-v0", "--dataset", "my/x-v0", "--model", str(bomb)]
    assert_one_line(call(collect, *command), word)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--model", "x.zip"], "--algo"),
        (["--model", "x.zip", "--algo", "sack"], "Did you mean sac"),
        (["--model", "x.zip", "--algo", "sac"], "x.zip"),
        (["--model", "x.zip", "--algo", "sac", "--env", "TwoGoal-v0"], "TwoGoals-v0"),
        (["--model", "x.zip", "--algo", "sac", "--env", "CartPole-v1"], "Box"),
        (["--model", "x.zip", "--algo", "sac", "--random", "2"], "--random is 2.0"),
        (["--model", "x.zip", "--algo", "sac", "--noise", "nan"], "--noise is nan"),
        (["--model", "x.zip", "--algo", "sac", "-n", "0"], "--n-timesteps is 0"),
        (["--model", "x.zip", "--algo", "sac", "--seed", "-1"], "--seed is -1"),
        (["--model", "x.zip", "--algo", "sac", "--reference", "1", "0"], "--reference is [1.0, 0.0]"),
        (["--model", "x.zip", "--algo", "sac", "--reference", "0", "1", "--reference-episodes", "3"], "not allowed with"),
        (["--model", "x.zip", "--algo", "sac", "--dataset", "no id"], "no id"),
        (["--model", "x.zip", "--algo", "sac", "--dataset", "my/x"], "write e.g. 'my/x-v0'"),
        (["--replay-buffer", "x.pkl"], "x.pkl"),
        (["--replay-buffer", "x.pkl", "-n", "10", "--stochastic"], "leave --n-timesteps, --stochastic out"),
        (["--replay-buffer", "x.pkl", "--noise", "0", "--random", "0.1"], "leave --noise, --random out"),
        (["--replay-buffer", "x.pkl", "--seed", "0", "--reference-episodes", "5"], "leave --seed, --reference-episodes out"),
        (
            ["--replay-buffer", "x.pkl", "--vecnormalize", "v.pkl", "--trust-pickle"],
            "leave --vecnormalize, --trust-pickle out",
        ),
    ],
)
def test_what_cannot_be_collected(call: Callable[..., Outcome], arguments: list[str], word: str) -> None:
    assert_one_line(call(collect, "--env", "TwoGoals-v0", "--dataset", "my/x-v0", *arguments), word)
