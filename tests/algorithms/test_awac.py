"""AWAC and MixAWAC beyond their recordings: densities, sampling and options."""

from typing import Any

import numpy as np
import pytest
import torch as th
from torch import distributions

from sb3_dmpo import AWAC, MixAWAC, OfflineAlgorithm
from tests.toy_data import make_transitions

N_COMPONENTS = 3


def make(algorithm: type[OfflineAlgorithm], **kwargs: Any) -> Any:
    arguments = {"batch_size": 16, "seed": 0, "policy_kwargs": {"net_arch": [16, 16]}}
    return algorithm(dataset=make_transitions(), **arguments | kwargs)


@pytest.fixture
def mixture() -> Any:
    """A mixture whose components and gate differ clearly."""
    actor = make(MixAWAC, n_components=N_COMPONENTS).policy.actor
    with th.no_grad():
        actor.latent_embedding.net[0].weight.mul_(10.0)
        actor.heads.mu.weight.mul_(4.0)
        actor.gate[-1].weight.mul_(10.0)
    return actor


@pytest.fixture
def observations() -> th.Tensor:
    return th.randn(64, 3, generator=th.Generator().manual_seed(0))


def test_density_of_the_mixture(mixture: Any, observations: th.Tensor) -> None:
    mean, log_std = mixture.all_components(observations)
    expected = distributions.MixtureSameFamily(
        distributions.Categorical(logits=mixture.gate(observations)),
        distributions.Independent(distributions.Normal(mean, log_std.exp()), 1),
    )
    actions = 2.0 * th.rand(64, 2, generator=th.Generator().manual_seed(1)) - 1.0
    log_prob = mixture.log_prob(observations, actions)
    assert log_prob.shape == (64, 1)
    th.testing.assert_close(log_prob.squeeze(1), expected.log_prob(actions), rtol=1e-4, atol=1e-3)


def test_the_most_probable_component_acts(mixture: Any, observations: th.Tensor) -> None:
    """The pass through one component equals its entry in the pass through all of them."""
    index = mixture.choose(observations)
    assert th.equal(index, mixture.gate(observations).argmax(dim=1)) and len(index.unique()) > 1
    for one, every in zip(mixture(observations), mixture.all_components(observations), strict=True):
        th.testing.assert_close(one, every[th.arange(64), index])


def test_drawn_components_follow_the_gate(mixture: Any, observations: th.Tensor) -> None:
    repeated = observations[:1].expand(20_000, 3)
    uniform = th.rand(20_000, N_COMPONENTS, generator=th.Generator().manual_seed(2))
    shares = th.bincount(mixture.choose(repeated, uniform), minlength=N_COMPONENTS) / 20_000
    th.testing.assert_close(shares, mixture.gate(observations[:1]).softmax(dim=1)[0], atol=0.015, rtol=0.0)


@pytest.mark.parametrize("sample_component", [False, True])
def test_components_of_sampled_actions(sample_component: bool) -> None:
    """Stochastic actions come from one component or, on demand, from all that the gate admits; the mode never does."""
    model = make(MixAWAC, n_components=N_COMPONENTS, sample_component=sample_component)
    actor = model.policy.actor
    with th.no_grad():
        actor.heads.mu.weight.mul_(10.0)
        actor.latent_embedding.net[0].weight.mul_(10.0)
        actor.gate[-1].weight.zero_()
        actor.gate[-1].bias.copy_(th.tensor([0.1, 0.0, 0.2]))
        actor.heads.log_std.bias.fill_(-100.0)
    observations = np.zeros((300, 3), np.float32)
    th.manual_seed(0)
    actions, _ = model.predict(observations)
    mode, _ = model.predict(observations, deterministic=True)
    assert (mode == mode[0]).all()
    half_widths = 0.5 * (model.action_space.high - model.action_space.low)
    is_other = (np.abs(actions - mode) / half_widths > 0.1).any(axis=1)
    assert is_other.mean() > 0.4 if sample_component else not is_other.any()
    assert model.action_space.contains(actions[0])


def test_mixture_with_drawn_components_learns() -> None:
    model = make(MixAWAC, n_components=N_COMPONENTS, sample_component=True, published_code=True)
    specs = model.noise_specs(16)
    assert specs["next_gumbel_uniform"].shape == specs["baseline_gumbel_uniform"].shape == (16, N_COMPONENTS)
    model.learn(4)
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())


@pytest.mark.parametrize("algorithm", [AWAC, MixAWAC])
def test_samples_have_the_standard_deviation_of_the_actor(algorithm: type[OfflineAlgorithm]) -> None:
    model = make(algorithm)
    observations = np.zeros((4_000, 3), np.float32)
    th.manual_seed(0)
    samples, mean = model.predict(observations)[0], model.predict(observations, deterministic=True)[0]
    half_widths = 0.5 * (model.action_space.high - model.action_space.low)
    expected = model.policy.actor(th.zeros(1, 3))[1].exp().detach().numpy()[0]
    np.testing.assert_allclose((samples - mean).std(axis=0) / half_widths, expected, rtol=0.1)


def test_samples_are_clipped() -> None:
    model = make(AWAC)
    with th.no_grad():
        model.policy.actor.heads.mu.bias.fill_(10.0)
    samples, _ = model.predict(np.zeros((50, 3), np.float32))
    assert (samples <= model.action_space.high).all() and (samples == model.action_space.high).any()


@pytest.mark.parametrize("n_value_samples", [1, 7])
def test_baseline_is_the_mean_value_of_samples(n_value_samples: int) -> None:
    """Sample by sample through the plain networks."""
    model = make(AWAC, n_value_samples=n_value_samples)
    model._setup_dataset()
    model._n_updates = 2
    batch = model.sample_batch(16)
    mean, log_std = model.policy.actor_target(batch.observations)
    values = [
        model.policy.critic(batch.observations, mean + log_std.exp() * noise).min(dim=0).values
        for noise in batch.noise["baseline_noise"].split(16)
    ]
    assert len(values) == n_value_samples
    th.testing.assert_close(model.baseline(batch), th.stack(values).mean(dim=0))


@pytest.mark.parametrize("algorithm", [AWAC, MixAWAC])
def test_equal_advantages_weigh_alike(algorithm: type[OfflineAlgorithm]) -> None:
    """Critics that do not see the action leave maximum likelihood, and no NaN."""
    model = make(algorithm)
    model._setup_dataset()
    model._n_updates = 2
    for critic in (model.policy.critic, model.policy.critic_target):
        with th.no_grad():
            critic.layers[-1].weight.zero_()
    batch = model.sample_batch(16)
    metrics = {}
    model.optimize = lambda name, loss: metrics.update({name: loss})
    assert model.update(batch)["weight_ess"].item() == pytest.approx(1.0)
    th.testing.assert_close(metrics["actor"], -model.policy.actor.log_prob(batch.observations, batch.actions).mean())
