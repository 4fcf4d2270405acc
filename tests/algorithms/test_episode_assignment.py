"""Sub-policies that last an episode, and the critics that go with them, each against its equation."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_dmpo import DMPO, OneStepDMPO
from sb3_dmpo.data import Transitions
from sb3_dmpo.dmpo.dmpo import EVIDENCE_RATE
from sb3_dmpo.dmpo.networks import ComponentCritic
from sb3_dmpo.files.npz import pack_npz
from sb3_dmpo.files.safe_zip import DamagedFileError
from sb3_dmpo.several_seeds.several_seeds import learn_together
from tests.contract import DATA, assert_same, exported_and_single_actions, make

K = 4
OPTIONS: dict[str, Any] = {
    "advantage_scale": 0.0,
    "assignment": "episode",
    "bootstrap": "component",
    "decoder": "calibrated",
    "gate": "supported",
    "n_steps": 3,
    "prior": "learned",
}


def mixture(name: str = "dmpo", **kwargs: Any) -> DMPO:
    model = make(name, dataset=DATA, n_components=K, **OPTIONS | kwargs)
    assert isinstance(model, DMPO)
    return model


def evidence_of(model: DMPO) -> th.Tensor:
    assert model.policy.episode_evidence is not None
    return model.policy.episode_evidence


def test_evidence_is_a_running_mean_over_the_steps_of_an_episode() -> None:
    model = mixture().learn(6)
    policy, batch, before = model.policy, model.sample_batch(64), evidence_of(model).clone()
    assert batch.episodes is not None and policy.decoder_variance is not None
    with th.no_grad():
        actions = policy.actor.all_components(batch.observations)
        log_likelihood = -((actions - batch.actions[:, None]).square() / (2.0 * policy.decoder_variance)).sum(dim=2)
        shares = log_likelihood - log_likelihood.logsumexp(dim=1, keepdim=True)
    expected = before.clone()
    for episode in range(len(before) - 1):
        own = shares[batch.episodes == episode]
        for _ in range(len(own)):  # one after the other, each with the mean of all
            expected[episode] += EVIDENCE_RATE * (own.mean(dim=0) - expected[episode])
    found = model.actor_loss(batch)[1]["episode_evidence"]
    assert th.allclose(found, expected, atol=1e-5)
    assert th.equal(evidence_of(model), before), "a loss changes nothing"
    model.update(batch)
    assert not th.equal(evidence_of(model), before)


def test_the_assignment_is_the_prior_times_the_evidence_of_the_episode() -> None:
    model = mixture(evidence_steps=7.0).learn(20)
    policy, batch = model.policy, model.sample_batch(64)
    assert policy.prior is not None and batch.episodes is not None
    logits = policy.prior(batch.observations) + 7.0 * evidence_of(model)[batch.episodes]
    probabilities = th.exp(logits - logits.logsumexp(dim=1, keepdim=True))
    expected = -(probabilities * probabilities.log()).sum(dim=1).mean()
    assert model.diagnostics(batch)["posterior_entropy"].item() == pytest.approx(expected.item(), rel=1e-3)


def test_critics_learn_where_the_data_are_their_own() -> None:
    """Sum over z of q(z|episode, s) (Q_j(s, z) - R - gamma^n min_i Q'_i(s', z))^2: a sub-policy's later values are its own."""
    model = mixture().learn(20)
    policy, batch = model.policy, model.sample_batch(64)
    assert isinstance(policy.critic, ComponentCritic) and policy.prior is not None and batch.episodes is not None
    assert batch.discounts is not None
    with th.no_grad():
        owners = (policy.prior(batch.observations) + model.evidence_steps * evidence_of(model)[batch.episodes]).softmax(dim=1)
        later = policy.critic_target(batch.next_observations).amin(dim=0)
        targets = batch.rewards + (1.0 - batch.dones) * batch.discounts * later
        values = policy.critic(batch.observations)
        expected = sum(float((owners * (value - targets) ** 2).sum(dim=1).mean()) for value in values)
    assert values.shape == (2, 64, K)
    assert float(model.critic_loss(batch)[0]) == pytest.approx(expected, rel=1e-5)
    errors = model.bellman_errors(batch)
    assert errors is not None and errors.shape == (2, 64, 1)
    assert th.allclose(errors.squeeze(2), (owners * (values - targets)).sum(dim=2), atol=1e-5)


@pytest.mark.slow
def test_episodes_are_told_apart_where_steps_cannot_be() -> None:
    """Two policies whose actions differ by less than their noise: hardly to be told from a step, plain from an episode."""
    generator = np.random.default_rng(0)
    n_episodes, length = 20, 100
    who = np.arange(n_episodes) % 2
    observations = generator.normal(size=(n_episodes, length, 2)).astype(np.float32)
    means = np.where(who[:, None, None] == 0, 0.15, -0.15)
    actions = (means + 0.2 * generator.normal(size=(n_episodes, length, 1))).clip(-1.0, 1.0).astype(np.float32)
    ends = np.zeros((n_episodes, length, 1), dtype=np.float32)
    truncations = ends.copy()
    truncations[:, -1] = 1.0
    data = {
        "observations": observations.reshape(-1, 2),
        "actions": actions.reshape(-1, 1),
        "rewards": np.repeat(who, length).astype(np.float32),
        "next_observations": np.roll(observations, -1, axis=1).reshape(-1, 2),
        "terminals": ends.reshape(-1),
        "timeouts": truncations.reshape(-1),
    }
    model = OneStepDMPO(
        dataset=data,
        n_components=2,
        batch_size=128,
        learning_rate=3e-3,
        device="cpu",
        policy_kwargs={"net_arch": [32, 32]},
        seed=0,
    ).learn(900)
    owners = evidence_of(model)[:-1].argmax(dim=1).numpy()
    assert set(owners[who == 0]) != set(owners[who == 1]) and len(set(owners[who == 0])) == len(set(owners[who == 1])) == 1
    # Those with rewards are worth more, and everybody is supported everywhere: their policy acts.
    assert np.all(model.predict(observations[0])[0] < 0.0)


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> Iterator[None]:
    """PyTorch's default while a test runs."""
    before = th.get_default_dtype()
    th.set_default_dtype(request.param)
    yield
    th.set_default_dtype(before)


@pytest.mark.parametrize(
    ("name", "dtype"), [("dmpo", th.float32), ("infodmpo", th.float32), ("dmpo", th.float64)], indirect=["dtype"], ids=str
)
@pytest.mark.usefixtures("dtype")
def test_resume_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole = mixture(name).learn(12)
    half = mixture(name).learn(6)
    half.save(tmp_path / "half.zip")
    loaded = type(half).load(tmp_path / "half.zip")
    loaded.save(tmp_path / "again.zip")  # what was not needed yet is not lost
    rest = type(half).load(tmp_path / "again.zip", dataset=DATA).learn(6, reset_num_timesteps=False)
    assert_same(dict(whole.policy.state_dict()), dict(rest.policy.state_dict()))
    assert th.equal(evidence_of(whole), evidence_of(rest))


def test_other_data_begin_without_evidence(tmp_path: Path) -> None:
    model = mixture().learn(6)
    model.save(tmp_path / "model.zip")
    other = copy.deepcopy(DATA)
    assert isinstance(other, Transitions)
    other.rewards[:] += 1.0
    loaded = DMPO.load(tmp_path / "model.zip", dataset=Transitions(**vars(other) | {"fingerprint": "other"}))
    loaded.learn(1)
    assert evidence_of(loaded).abs().max() < evidence_of(model).abs().max()


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"fingerprint": np.array("x")}, "lacks the array 'episode_evidence'"),
        ({"episode_evidence": np.zeros((2, K), np.float32), "fingerprint": None}, "finite float32"),
        ({"episode_evidence": None, "fingerprint": None}, "finite float32"),
    ],
)
def test_damaged_evidence_is_told(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = mixture().learn(2)
    filled = {"fingerprint": np.array(model.dataset_fingerprint), "episode_evidence": evidence_of(model).numpy() * np.nan}
    model.save(tmp_path / "model.zip")
    loaded = DMPO.load(tmp_path / "model.zip", dataset=DATA)
    loaded._stored_arrays = pack_npz({name: filled[name] if value is None else value for name, value in arrays.items()})
    with pytest.raises(DamagedFileError, match=message):
        loaded.learn(1)


def test_exported_policies_choose_alike() -> None:
    model = mixture().learn(20)
    observations = DATA.observations[:64]
    expected = exported_and_single_actions(model, observations)
    chosen = model.policy.select_component(observations)
    with th.no_grad():
        actions = model.policy.actor.all_components(model.policy._scaled(observations)).numpy()
    low, high = model.action_space.low, model.action_space.high
    np.testing.assert_allclose(low + (actions[np.arange(64), chosen] + 1.0) * (high - low) / 2.0, expected, atol=1e-5)


@pytest.mark.parametrize("gate", ["values", "supported", "learned"])
def test_every_gate_has_critics_of_sub_policies(gate: str) -> None:
    model = mixture(gate=gate).learn(20)
    policy, observations = model.policy, model.sample_batch(64).observations
    values, actions = policy.component_table(observations, policy.actor, policy.critic)
    assert policy.gate == gate and policy.prior is not None
    log_prior = policy.prior(observations)
    least = log_prior.amax(dim=1, keepdim=True) + np.log(policy.gate_support)
    scores = {"values": values, "supported": values.masked_fill(log_prior < least, -th.inf), "learned": log_prior}[gate]
    chosen = scores.argmax(dim=1)
    rows = th.arange(64)
    found = policy.gated_actions(observations, policy.actor, policy.critic, th.float32)
    assert th.allclose(found, actions[rows, chosen], atol=1e-6)
    found = policy.gated_values(observations, policy.actor, policy.critic, th.float32)
    assert th.allclose(found.squeeze(1), values[rows, chosen], atol=1e-6)


@pytest.mark.slow
def test_several_seeds_keep_their_own_evidence() -> None:
    together = [mixture(seed=seed) for seed in range(2)]
    learn_together(list(together), 4)
    for seed, model in enumerate(together):
        alone = mixture(seed=seed).learn(4)
        assert th.allclose(evidence_of(model), evidence_of(alone), atol=2e-5)
        for key, value in model.policy.state_dict().items():
            assert th.allclose(value, alone.policy.state_dict()[key], atol=2e-5), key
    assert not th.allclose(evidence_of(together[0]), evidence_of(together[1]), atol=1e-3)


def test_transitions_added_online_are_assigned_by_the_prior() -> None:
    model = OneStepDMPO(
        env=gym.make("TwoGoals-v0"),
        dataset="sb3_dmpo/two-goals/demonstrations-v0",
        n_components=K,
        batch_size=16,
        policy_kwargs={"net_arch": [16, 16]},
        seed=0,
        device="cpu",
    ).learn(20)
    model.learn_online(30, learning_starts=5, online_ratio=0.5)
    batch = model.sample_batch(32)
    assert batch.episodes is not None
    is_added = batch.episodes == len(evidence_of(model)) - 1
    assert is_added.sum() == 16 and th.all(evidence_of(model)[-1] == 0.0)
    assert model.policy.prior is not None
    prior = model.policy.prior(batch.observations).exp()
    assert th.allclose(model._owners(batch)[is_added], prior[is_added], atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"assignment": "posterior"}, "who goes on must be known"),
        ({"advantage_scale": 1.0}, "no values of actions"),
        ({"value_targets": True}, "does not go with"),
        ({"evidence_steps": 0.0}, "evidence_steps"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixture(**options)
