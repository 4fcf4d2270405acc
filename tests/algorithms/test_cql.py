"""CQL beyond its recording: densities, CQL(rho), pre-training, the temperature, and what is saved."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import distributions

from sb3_dmpo import CQL
from sb3_dmpo.common.type_aliases import OfflineBatch
from sb3_dmpo.cql.policies import SquashedGaussian
from tests.toy_data import make_transitions


def cql(**kwargs: Any) -> CQL:
    arguments = {"batch_size": 16, "seed": 0, "policy_kwargs": {"net_arch": [16, 16]}, "pretraining_updates": 0}
    return CQL(dataset=make_transitions(), **arguments | kwargs)


def with_batch(**kwargs: Any) -> tuple[CQL, OfflineBatch]:
    """A model with steep networks in double precision, and a minibatch."""
    model = cql(**kwargs)
    model._setup_dataset()
    model._n_updates = 1
    with th.no_grad():
        model.policy.actor.mean_and_log_std[-1].weight.mul_(200.0)
        model.policy.critic.layers[-1].weight.mul_(300.0)
        model.policy.log_ent_coef.fill_(-0.5)
    model.policy.to(th.float64)
    parts = model.sample_batch(16)
    batch = OfflineBatch(*(part.double() for part in parts[:5]), {name: value.double() for name, value in parts[5].items()})
    return model, batch


def expected_distribution(distribution: SquashedGaussian) -> distributions.Distribution:
    normal = distributions.Normal(distribution.mean, distribution.log_std.exp())
    return distributions.Independent(distributions.TransformedDistribution(normal, [distributions.TanhTransform()]), 1)


def test_density_of_the_squashed_gaussian() -> None:
    """Against torch's own, for samples and for given actions; finite at the bounds and far beyond them."""
    generator = th.Generator().manual_seed(0)
    mean, log_std, noise = th.randn(3, 200, 4, generator=generator, dtype=th.float64)
    distribution = SquashedGaussian(mean, 0.5 * log_std)
    actions, log_prob = distribution.sample(noise)
    expected = expected_distribution(distribution).log_prob(actions.clamp(-1 + 1e-9, 1 - 1e-9)).unsqueeze(1)
    usual = (actions.abs() < 0.999).all(dim=1)
    th.testing.assert_close(log_prob[usual], expected[usual])
    th.testing.assert_close(distribution.log_prob(actions)[usual], expected[usual])
    bounds = th.tensor([[1.0, -1.0, 1.0, 0.0]])
    wide = SquashedGaussian(th.full((1, 4), 30.0), th.full((1, 4), 2.0))
    assert wide.log_prob(bounds).isfinite().all() and wide.sample(th.ones(1, 4))[1].isfinite().all()


@pytest.mark.parametrize("importance_sampling", [True, False])
def test_critic_loss_equals_a_computation_by_hand(importance_sampling: bool) -> None:
    """Row by row and action by action: CQL(H) divides by densities, CQL(rho) counts the dataset's action in."""
    model, batch = with_batch(importance_sampling=importance_sampling, n_action_samples=3, conservative_weight=2.0)
    policy, noise = model.policy, batch.noise
    current, following = policy.actor(batch.observations), policy.actor(batch.next_observations)
    total, parts = model.critic_loss(batch, current, following)

    def q(observation: th.Tensor, action: th.Tensor, network: Any = policy.critic) -> th.Tensor:
        return network(observation.unsqueeze(0), action.unsqueeze(0))[:, 0, 0]

    def act(distribution: SquashedGaussian, row: int, xi: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        action = th.tanh(distribution.mean[row] + distribution.log_std[row].exp() * xi)
        alone = SquashedGaussian(distribution.mean[row], distribution.log_std[row])
        return action, expected_distribution(alone).log_prob(action)

    bellman, conservative = th.zeros(2, dtype=th.float64), th.zeros(2, dtype=th.float64)
    for row in range(16):
        observation, next_observation = batch.observations[row], batch.next_observations[row]
        next_action, _ = act(following, row, noise["next_pi_noise"][row])
        next_value = q(next_observation, next_action, policy.critic_target).min()
        q_data = q(observation, batch.actions[row])
        bellman += (q_data - batch.rewards[row] - 0.99 * (1.0 - batch.dones[row]) * next_value) ** 2 / 16
        terms = [] if importance_sampling else [q_data]
        for i in range(3):
            candidates = [
                (2.0 * noise["random_actions_uniform"][row, i] - 1.0, th.tensor(math.log(0.25))),
                act(following, row, noise["next_noise"][row, i]),
                act(current, row, noise["cur_noise"][row, i]),
            ]
            terms += [q(observation, action) - (log_prob if importance_sampling else 0.0) for action, log_prob in candidates]
        conservative += 2.0 * (th.stack(terms).exp().sum(dim=0).log() - q_data) / 16
    assert parts["critic_loss"].item() == pytest.approx(bellman.sum().item(), rel=1e-9)
    assert parts["conservative_loss"].item() == pytest.approx(conservative.sum().item(), rel=1e-7)
    assert total.item() == pytest.approx((bellman.sum() + conservative.sum()).item(), rel=1e-7)


@pytest.mark.parametrize("pretraining_updates", [0, 1])
def test_actor_and_temperature_losses(pretraining_updates: int) -> None:
    """While pre-training the likelihood of the dataset's actions takes the place of the Q-values."""
    model, batch = with_batch(pretraining_updates=pretraining_updates)
    policy = model.policy
    current = policy.actor(batch.observations)
    expected = expected_distribution(current)
    actions = th.tanh(current.mean + current.log_std.exp() * batch.noise["pi_noise"])
    log_prob = expected.log_prob(actions)
    if pretraining_updates:
        objective = expected.log_prob(batch.actions)
    else:
        objective = policy.critic(batch.observations, actions).min(dim=0).values.squeeze(1)
    actor_loss = (math.exp(-0.5) * log_prob - objective).mean().item()
    ent_coef_loss = (0.5 * (log_prob - 2.0)).mean().item()
    metrics = model.update(batch)
    assert metrics["actor_loss"].item() == pytest.approx(actor_loss, rel=1e-8)
    assert metrics["ent_coef_loss"].item() == pytest.approx(ent_coef_loss, rel=1e-8)
    assert metrics["ent_coef"].item() == pytest.approx(math.exp(-0.5))
    assert (policy.log_ent_coef.item() != -0.5) and not policy.actor.log_std_offset.item() == -1.0


def test_pretraining_ends_and_goes_on_through_a_zip(tmp_path: Path) -> None:
    """The first updates clone, the later ones do not; a run cut inside of the pre-training continues bit for bit."""
    whole = cql(pretraining_updates=5)
    stages = []
    whole.learn(8, callback=lambda locals_, globals_: stages.append(whole.is_pretraining) or True)
    assert stages == [True] * 5 + [False] * 3
    half = cql(pretraining_updates=5).learn(3)
    half.save(tmp_path / "model")
    half = CQL.load(tmp_path / "model", dataset=make_transitions())
    half.learn(5, reset_num_timesteps=False)
    for name, value in whole.policy.state_dict().items():
        assert th.equal(value, half.policy.state_dict()[name]), name


def test_temperature_travels_in_the_zip(tmp_path: Path) -> None:
    model = cql(actor_learning_rate=1e-2).learn(6)
    trained = model.policy.log_ent_coef.item()
    assert trained != 0.0
    model.save(tmp_path / "model")
    loaded = CQL.load(tmp_path / "model")
    assert loaded.policy.log_ent_coef.item() == trained
    first, second = (m.ent_coef_optimizer.state_dict()["state"][0] for m in (model, loaded))
    assert first["exp_avg"].item() == second["exp_avg"].item() != 0.0 and first["step"] == second["step"] == 6
    assert loaded.target_entropy == -2.0


def test_defaults_are_those_of_the_paper() -> None:
    """Table 13, raw observations, last layers near zero, actions kept off the bounds."""
    data = make_transitions()
    data.actions[:2] = [[1.0, -1.0], [-1.0, 1.0]]
    model = CQL(dataset=data, seed=0).learn(1)
    assert (model.conservative_weight, model.n_action_samples, model.pretraining_updates) == (10.0, 10, 40_000)
    assert model.policy.net_arch == [256, 256, 256] and not model.policy.observation_mean.any()
    rates = {name: optimizer.param_groups[0]["lr"] for name, (optimizer, _, _) in model._optimizers.items()}
    assert rates == {"ent_coef": 3e-5, "actor": 3e-5, "critic": 3e-4}
    assert model.replay_buffer.actions.abs().max().item() == pytest.approx(0.999)
    policy = CQL(dataset=data, seed=0).policy
    for weight, bias in (
        (policy.actor.mean_and_log_std[-1].weight, policy.actor.mean_and_log_std[-1].bias),
        *zip(policy.critic.layers[-1].weight, policy.critic.layers[-1].bias, strict=True),
    ):
        bound = 0.01 * math.sqrt(6.0 / sum(weight.shape))
        assert 0.9 * bound < weight.abs().max() <= bound and not bias.any()
    assert th.equal(policy.critic_target.layers[-1].weight, policy.critic.layers[-1].weight)
    assert policy.actor.log_std_multiplier.item() == 1.0 and policy.actor.log_std_offset.item() == -1.0


def test_prediction() -> None:
    """The image of the mean, or samples of the squashed Gaussian from torch's global generator."""
    model = cql()
    observations = np.zeros((4_000, 3), np.float32)
    th.manual_seed(0)
    samples, mode = model.predict(observations)[0], model.predict(observations, deterministic=True)[0]
    low, high = model.action_space.low, model.action_space.high
    u = np.arctanh(np.clip(2.0 * (samples - low) / (high - low) - 1.0, -0.999999, 0.999999))
    distribution = model.policy.actor(th.zeros(1, 3))
    np.testing.assert_allclose(u.std(axis=0), distribution.log_std.exp().detach().numpy()[0], rtol=0.1)
    np.testing.assert_allclose(mode[0], low + 0.5 * (distribution.mode().detach().numpy()[0] + 1.0) * (high - low), rtol=1e-5)
    th.manual_seed(0)
    np.testing.assert_array_equal(model.predict(observations)[0], samples)


def test_delayed_actor() -> None:
    """Actor, temperature and targets wait for their update; the critics do not."""
    model = cql(policy_delay=2)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(1)
    changed = {name.split(".")[0] for name, value in model.policy.state_dict().items() if not th.equal(value, before[name])}
    assert changed == {"critic"}
    model.learn(1)
    changed = {name.split(".")[0] for name, value in model.policy.state_dict().items() if not th.equal(value, before[name])}
    assert changed == {"critic", "critic_target", "actor", "log_ent_coef"}
