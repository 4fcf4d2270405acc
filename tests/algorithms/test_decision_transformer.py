"""Decision Transformer: what it may look at, how it acts step by step, and that it does what a return-to-go asks for."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dmpo import DecisionTransformer
from sb3_dmpo.common import offline_algorithm
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.data import DatasetError, Transitions
from sb3_dmpo.decision_transformer import DecisionTransformerPolicy, DecisionTransformerState, observe_rewards
from sb3_dmpo.decision_transformer.buffers import SequenceReplayBuffer
from tests.contract import assert_same
from tests.toy_data import DriftEnv, box_space, make_transitions

DATA = make_transitions()
CONTEXT = 5
LENGTHS = np.array([1, 3, 11, 5])


def make(**kwargs: Any) -> DecisionTransformer:
    arguments: dict[str, Any] = {"dataset": DATA, "context_length": CONTEXT, "embed_dim": 16, "n_layers": 2, "n_heads": 2}
    arguments |= {"batch_size": 16, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [16, 16]}}
    return DecisionTransformer(**arguments | kwargs)


def uneven_transitions() -> Transitions:
    """Episodes of ``LENGTHS`` steps whose observations are the steps' places in the dataset."""
    n_steps = int(LENGTHS.sum())
    places = np.arange(n_steps, dtype=np.float32).repeat(3).reshape(-1, 3)
    rng = np.random.default_rng(1)
    return Transitions(
        observations=places,
        next_observations=places + 1,
        actions=rng.uniform(-1.0, 1.0, (n_steps, 2)).astype(np.float32),
        rewards=rng.normal(size=n_steps).astype(np.float32),
        terminations=np.isin(np.arange(n_steps), LENGTHS.cumsum() - 1),
        truncations=np.zeros(n_steps, bool),
        episode_lengths=LENGTHS,
        observation_space=box_space(),
        action_space=spaces.Box(-1.0, 1.0, (2,)),
        dataset_id=None,
        fingerprint="uneven",
    )


class UnevenEnv(DriftEnv):
    """Every environment has episodes of a length of its own."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, self.steps >= self.length, info


class FirstActionEnv(DriftEnv):
    """The reward is the first entry of the action."""

    def __init__(self) -> None:
        super().__init__(action_space=spaces.Box(-1.0, 1.0, (2,)))

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float(action[0]), terminated, truncated, info


# The buffer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 4, 20])
def test_sequences_are_pieces_of_episodes(length: int) -> None:
    data = uneven_transitions()
    batch = SequenceReplayBuffer.from_transitions(data, seed=0).sample_sequences(200, length)
    starts = (LENGTHS.cumsum() - LENGTHS).repeat(LENGTHS)
    stops = LENGTHS.cumsum().repeat(LENGTHS)
    assert batch.observations.shape == (200, length, 3) and batch.actions.shape == (200, length, 2)
    for i in range(200):
        steps = batch.observations[i, batch.mask[i], 0].long().numpy()
        # Padding stands at the front, and a piece is only short where its episode ends.
        assert batch.mask[i].tolist() == [False] * (length - len(steps)) + [True] * len(steps)
        assert len(steps) == min(length, stops[steps[0]] - steps[0])
        assert steps.tolist() == list(range(steps[0], steps[0] + len(steps)))
        assert batch.timesteps[i, batch.mask[i]].tolist() == (steps - starts[steps]).tolist()
        np.testing.assert_array_equal(batch.actions[i, batch.mask[i]], data.actions[steps])
        np.testing.assert_array_equal(batch.rewards[i, batch.mask[i], 0], data.rewards[steps])
        np.testing.assert_array_equal(batch.next_observations[i, batch.mask[i], 0], steps + 1)
        expected = [data.rewards[step : stops[step]].sum(dtype=np.float64) for step in steps]
        np.testing.assert_allclose(batch.returns_to_go[i, batch.mask[i], 0], expected, rtol=1e-5, atol=1e-6)


def test_episodes_are_drawn_by_their_lengths() -> None:
    data = uneven_transitions()
    buffer = SequenceReplayBuffer.from_transitions(data, seed=0)
    np.testing.assert_allclose(buffer.episode_returns(), data.episode_returns(), rtol=1e-5, atol=1e-6)
    firsts = buffer.sample_sequences(20_000, 1).observations[:, 0, 0].long()
    shares = th.bincount(firsts, minlength=len(data)) / len(firsts)
    # Four standard deviations of a share
    assert (shares - 1.0 / len(data)).abs().max() < 4.0 * (0.05 * 0.95 / len(firsts)) ** 0.5


def test_sequences_come_from_the_buffers_own_generator() -> None:
    before = th.get_rng_state()
    first, second = (SequenceReplayBuffer.from_transitions(DATA, seed=3) for _ in range(2))
    assert th.equal(first.sample_sequences(8, 4).actions, second.sample_sequences(8, 4).actions)
    copy = pickle.loads(pickle.dumps(first))
    assert isinstance(copy, SequenceReplayBuffer)
    for ours, theirs in zip(first.sample_sequences(8, 4)[:-1], copy.sample_sequences(8, 4)[:-1], strict=True):
        assert th.equal(ours, theirs)
    assert th.equal(before, th.get_rng_state())
    with pytest.raises(ValueError, match="cannot be added"):
        first.add(None)


# The transformer ------------------------------------------------------------------------------------------------


def actor_inputs(policy: DecisionTransformerPolicy, batch: int = 3, length: int = CONTEXT) -> dict[str, th.Tensor]:
    generator = th.Generator().manual_seed(0)
    return {
        "observations": th.randn(batch, length, policy.observation_size, generator=generator),
        "actions": th.rand(batch, length, policy.action_size, generator=generator) * 2 - 1,
        "returns_to_go": th.randn(batch, length, 1, generator=generator) * 1000,
        "timesteps": th.arange(length).repeat(batch, 1) + 2,
        "mask": th.ones(batch, length, dtype=th.bool),
    }


def test_the_future_has_no_influence() -> None:
    """The action of step t depends on all that comes before it, its own return-to-go and observation, and nothing else."""
    policy = make().policy
    inputs = actor_inputs(policy, batch=1)
    for name in ("observations", "actions", "returns_to_go"):
        inputs[name].requires_grad_()
    actions = policy.actor(**inputs)
    for step in range(CONTEXT):
        gradients = th.autograd.grad(
            actions[0, step].sum(), [inputs[name] for name in ("observations", "actions", "returns_to_go")], retain_graph=True
        )
        for gradient, last in zip(gradients, (step, step - 1, step), strict=True):
            sizes = gradient[0].abs().sum(dim=1)
            assert (sizes[last + 1 :] == 0.0).all()
            assert (sizes[: last + 1] > 0.0).all()


def test_padding_has_no_influence() -> None:
    policy = make().policy
    inputs = actor_inputs(policy)
    n_padded = 2
    inputs["mask"][:, :n_padded] = False
    actions = policy.actor(**inputs)
    assert th.isfinite(actions).all()
    without = policy.actor(**{name: value[:, n_padded:] for name, value in inputs.items()})
    th.testing.assert_close(actions[:, n_padded:], without)
    for name, other in (("observations", 1e4), ("actions", -10.0), ("returns_to_go", 1e6), ("timesteps", 7)):
        changed = inputs[name].clone()
        changed[:, :n_padded] = other
        assert th.equal(policy.actor(**inputs | {name: changed})[:, n_padded:], actions[:, n_padded:]), name


def test_timesteps_beyond_the_last_embedding() -> None:
    policy = make(max_episode_length=4).policy
    inputs = actor_inputs(policy)
    late = policy.actor(**inputs | {"timesteps": inputs["timesteps"] + 100})
    assert th.equal(late, policy.actor(**inputs | {"timesteps": th.full_like(inputs["timesteps"], 3)}))


def test_spelled_out_attention_is_torchs() -> None:
    """Both paths agree where dropout drops nothing, and only the other one drops."""
    policy = make(dropout=0.0).policy
    inputs = actor_inputs(policy)
    draws = dict(zip(("attention_uniform", "residual_uniform"), map(th.rand, policy.actor.dropout_shapes(3)), strict=True))
    th.testing.assert_close(policy.actor(**inputs, **draws), policy.actor(**inputs))
    model = make(dropout=0.5).learn(1)
    assert model.replay_buffer is not None
    batch = model.sample_batch(16)
    assert model.actor_loss(batch)[0] == model.actor_loss(batch)[0]
    assert model.actor_loss(batch)[0] != model.actor_loss(batch._replace(noise=model.sample_noise(16)))[0]
    assert model.actor_loss(batch)[0] != model.actor_loss(batch._replace(noise={}))[0]


# Acting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rewards_are_observed", [True, False])
def test_acting_step_by_step_is_a_forward_pass_over_the_context(rewards_are_observed: bool) -> None:
    """An episode longer than the context, acted with the state, against windows cut out of the whole episode."""
    model = make(dataset=make_transitions(action_space=spaces.Box(-1.0, 1.0, (2,))), target_return=3.0).learn(5)
    policy = model.policy
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(12, 3)).astype(np.float32)
    rewards = rng.normal(size=12)
    actions, state = [], None
    for t in range(12):
        action, state = model.predict(observations[t], state, np.array([t == 0]))
        actions.append(action)
        if rewards_are_observed:
            state.rewards[:] = rewards[t]
    scaled = policy.scale_observations(th.as_tensor(observations))
    taken = th.as_tensor(np.array(actions))
    if not rewards_are_observed:
        assert policy.reward_model is not None
        rewards = policy.reward_model(scaled[:-1], taken[:-1], scaled[1:]).detach().squeeze(1).double().numpy()
    returns_to_go = 3.0 - np.concatenate([[0.0], np.cumsum(rewards)])[:12]
    np.testing.assert_allclose(state.returns_to_go[0], returns_to_go[-CONTEXT:], rtol=1e-5)
    for t in range(12):
        window = slice(max(t + 1 - CONTEXT, 0), t + 1)
        expected = policy.actor(
            scaled[None, window],
            taken[None, window],
            th.as_tensor(returns_to_go[window], dtype=th.float32)[None, :, None],
            th.arange(window.start, window.stop)[None],
            th.ones(1, window.stop - window.start, dtype=th.bool),
        )[0, -1]
        np.testing.assert_allclose(actions[t], expected.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_environments_do_not_influence_each_other() -> None:
    """Three episodes at once that begin anew at different times, each as if it were alone."""
    model = make().learn(3)
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(10, 3, 3))
    starts = rng.random((10, 3)) < 0.3
    starts[0] = True
    together, state = [], None
    for t in range(10):
        actions, state = model.predict(observations[t], state, starts[t])
        together.append(actions)
    for env in range(3):
        state = None
        for t in range(10):
            # An episode may also begin by leaving the state out.
            state = None if starts[t, env] else state
            action, state = model.predict(observations[t, env], state)
            np.testing.assert_allclose(action, together[t][env], rtol=1e-4, atol=1e-5)


def test_evaluate_policy_on_environments_of_different_lengths() -> None:
    """SB3's loop over three environments against a loop over each; a policy without memory of its past would differ."""
    model = make().learn(3)
    lengths = [3, 7, 12]

    def environments(kept: list[int]) -> DummyVecEnv:
        env = DummyVecEnv([lambda length=length: Monitor(UnevenEnv(length)) for length in kept])
        env.seed(0)
        return env

    returns, counted = evaluate_policy(model, environments(lengths), n_eval_episodes=6, return_episode_rewards=True)
    assert sorted(counted) == [3, 3, 7, 7, 12, 12]
    by_length: dict[int, list[float]] = {}
    for length, value in zip(counted, returns, strict=True):
        by_length.setdefault(length, []).append(value)
    for i, length in enumerate(lengths):
        alone = environments([length])
        alone.seed(i)
        expected, _ = evaluate_policy(model, alone, n_eval_episodes=2, return_episode_rewards=True)
        np.testing.assert_allclose(by_length[length], expected, rtol=1e-4)


class StateKeeper:
    """Wraps a model to see what its state becomes."""

    def __init__(self, model: DecisionTransformer) -> None:
        self.model = model
        self.returns_to_go: list[np.ndarray] = []

    def predict(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        actions, state = self.model.predict(*args, **kwargs)
        assert state is not None
        self.returns_to_go.append(DecisionTransformerState(*state).returns_to_go[:, -1])
        return actions, state


def test_observed_rewards() -> None:
    """With the callback the return-to-go falls by exactly what the environment gives."""
    keeper = StateKeeper(make(target_return=5.0).learn(1))
    rewards: list[float] = []

    def callback(locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        observe_rewards(locals_, globals_)
        rewards.append(locals_["reward"])

    evaluate_policy(keeper, Monitor(DriftEnv()), n_eval_episodes=1, callback=callback)
    np.testing.assert_allclose(np.concatenate(keeper.returns_to_go), 5.0 - np.cumsum([0.0, *rewards[:-1]]))


def test_return_to_go_stays_without_rewards() -> None:
    keeper = StateKeeper(make(target_return=5.0, predict_rewards=False).learn(1))
    assert keeper.model.policy.reward_model is None
    evaluate_policy(keeper, Monitor(DriftEnv()), n_eval_episodes=1)
    assert (np.concatenate(keeper.returns_to_go) == 5.0).all()


def test_states_are_not_changed() -> None:
    """A caller may go back to an earlier state."""
    model = make().learn(1)
    _, state = model.predict(DATA.observations[:2])
    before = [array.copy() for array in state]
    first, _ = model.predict(DATA.observations[2:4], state)
    second, _ = model.predict(DATA.observations[2:4], tuple(state))
    np.testing.assert_array_equal(first, second)
    for array, copy in zip(state, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_without_state_every_observation_is_a_first_one() -> None:
    model = make().learn(1)
    scaled = model.policy(th.as_tensor(DATA.observations)).detach().numpy()
    _, state = model.predict(DATA.observations)
    np.testing.assert_allclose(state.actions[:, -1], scaled, rtol=1e-4, atol=1e-6)


def test_faulty_states() -> None:
    model = make()
    _, state = model.predict(DATA.observations[:2])
    with pytest.raises(ValueError, match="same 3 environment"):
        model.predict(DATA.observations[:3], state)
    with pytest.raises(ValueError, match="expected"):
        model.predict(DATA.observations[:2], (np.zeros(2),))
    with pytest.raises(ValueError, match="episode_start has 3 entries for 2"):
        model.predict(DATA.observations[:2], state, np.ones(3, bool))


# Learning -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_returns_follow_their_targets() -> None:
    """
    Episodes of a constant random action whose first entry is the reward: only the return-to-go tells which action
    follows, and what is asked for comes out, with predicted and with observed rewards.
    """
    n_episodes, length = 200, 8
    rng = np.random.default_rng(0)
    template = make_transitions(n_episodes)
    actions = rng.uniform(-1.0, 1.0, (n_episodes, 2)).astype(np.float32).repeat(length, axis=0)
    env = FirstActionEnv()
    data = Transitions(
        **{
            **vars(template),
            "observations": rng.normal(size=(len(actions), 3)).astype(np.float32),
            "actions": actions,
            "rewards": actions[:, 0],
            "action_space": env.action_space,
        }
    )
    model = make(dataset=data, learning_rate=5e-3, warmup_steps=20, return_scale=float(length), dropout=0.0).learn(150)
    assert float(model.policy.target_return) == pytest.approx(data.episode_returns().max(), rel=1e-6)
    for target in (-6.0, 0.0, 6.0):
        model.set_target_return(target)
        for callback in (None, observe_rewards):
            env.reset(seed=0)
            achieved, _ = evaluate_policy(model, Monitor(env), n_eval_episodes=3, callback=callback)
            assert abs(achieved - target) < 1.5, (target, callback, achieved)


class RateRecorder(BaseCallback):
    """Keeps the learning rates of both optimizers at every update."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[tuple[float, float]] = []

    def _on_step(self) -> bool:
        optimizers = (self.model.actor_optimizer, self.model.reward_optimizer)
        self.rates.append(tuple(optimizer.param_groups[0]["lr"] for optimizer in optimizers))
        return True


def test_warmup_goes_on_where_it_was() -> None:
    recorder = RateRecorder()
    model = make(learning_rate=1e-3, warmup_steps=4).learn(3, callback=recorder)
    model.learn(3, callback=recorder)
    np.testing.assert_allclose(recorder.rates, [(1e-3 * min(i, 4) / 4, 1e-3) for i in range(1, 7)])


def test_gradient_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[float] = []

    def unclipped(gradients: list[th.Tensor], bound: float) -> list[th.Tensor]:
        bounds.append(bound)
        return gradients

    monkeypatch.setattr(offline_algorithm, "clipped", unclipped)
    make().learn(2)
    assert bounds == [0.25, 0.25]


def test_defaults_of_the_original() -> None:
    model = DecisionTransformer(dataset=DATA, device="cpu")
    actor = model.policy.actor
    assert (model.batch_size, model.learning_rate, model.warmup_steps, model.max_grad_norm) == (64, 1e-4, 10_000, 0.25)
    assert (model.context_length, len(actor.blocks), actor.mu.in_features, model.n_heads) == (20, 3, 128, 1)
    assert isinstance(model.actor_optimizer, th.optim.AdamW)
    assert model.actor_optimizer.param_groups[0]["weight_decay"] == 1e-4
    assert model.policy.scale_eps == 1e-6 and isinstance(actor.blocks[0].mlp[1], th.nn.ReLU)


# Saving and loading ---------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path: Path) -> None:
    """The loaded model acts alike over a whole episode, and can be told to aim elsewhere."""
    model = make(dropout=0.3, n_layers=1, context_length=3).learn(2)
    model.save(tmp_path / "model")
    model.policy.save(str(tmp_path / "policy"))
    loaded = DecisionTransformer.load(tmp_path / "model.zip", device="cpu")
    policy = DecisionTransformerPolicy.load(str(tmp_path / "policy"), device="cpu")
    assert (loaded.target_return, loaded.context_length, loaded.dropout) == (model.target_return, 3, 0.3)
    states: list[Any] = [None, None, None]
    for observation in DATA.observations[:6]:
        results = [actor.predict(observation, state) for actor, state in zip((model, loaded, policy), states, strict=True)]
        states = [state for _, state in results]
        for action, _ in results[1:]:
            np.testing.assert_array_equal(action, results[0][0])
    other = DecisionTransformer.load(tmp_path / "model.zip", device="cpu", target_return=-123.0)
    assert other.target_return == -123.0
    assert other.predict(DATA.observations[0])[1].returns_to_go[0, -1] == -123.0
    assert not np.array_equal(other.predict(DATA.observations[0])[0], model.predict(DATA.observations[0])[0])


# Faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context_length": 0}, "context_length is 0"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"max_episode_length": 0}, "max_episode_length is 0"),
        ({"embed_dim": 15}, "multiple of n_heads"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"return_scale": 0.0}, "return_scale is 0.0"),
        ({"target_return": float("nan")}, "target_return is nan"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"warmup_steps": "long"}, "warmup_steps is 'long', expected a whole number of at least 0"),
    ],
)
def test_faulty_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_faulty_datasets() -> None:
    buffer = OfflineReplayBuffer.from_transitions(DATA)
    assert_same(make(dataset=buffer).learn(1).get_parameters(), make(dataset=DATA).learn(1).get_parameters())
    buffer.episode_lengths = None
    with pytest.raises(DatasetError, match="cannot tell where its episodes end"):
        make(dataset=buffer).learn(1)
    for transform in ({"reward_scale": "max"}, {"reward_shift": -1.0}):
        model = make(**transform)
        for _ in range(2):
            with pytest.raises(ValueError, match="return_scale"):
                model.learn(1)
    assert make(dataset=SequenceReplayBuffer.from_transitions(DATA, seed=0)).learn(1).num_timesteps == 1
