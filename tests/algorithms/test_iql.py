"""The original IQL against an independent computation, and its options."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_dmpo import IQL
from tests.toy_data import BatchRecorder, make_transitions

UPDATES, WIDTH, LEARNING_RATE = 6, 8, 1e-2
Layers = list[th.Tensor]


def iql(**kwargs: Any) -> IQL:
    arguments = {"batch_size": 16, "seed": 0, "policy_kwargs": {"net_arch": [WIDTH, WIDTH]}}
    return IQL(dataset=make_transitions(), **arguments | kwargs)


class Adam:
    """Adam written out, over a list of leaf tensors."""

    def __init__(self, parameters: Layers) -> None:
        self.parameters = parameters
        self.moments = [(th.zeros_like(p), th.zeros_like(p)) for p in parameters]
        self.t = 0

    def step(self, loss: th.Tensor, learning_rate: float) -> None:
        self.t += 1
        gradients = th.autograd.grad(loss, self.parameters)
        for p, g, (m, v) in zip(self.parameters, gradients, self.moments, strict=True):
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g**2)
            with th.no_grad():
                p -= learning_rate * (m / (1 - 0.9**self.t)) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8)


def mlp(inputs: th.Tensor, layers: Layers, masks: tuple[th.Tensor, ...] = ()) -> th.Tensor:
    """Weights and biases in turn, ReLU between them."""
    *hidden_layers, weight, bias = layers
    for i in range(0, len(hidden_layers), 2):
        inputs = th.relu(inputs @ hidden_layers[i].T + hidden_layers[i + 1])
        if masks:
            inputs = inputs * masks[i // 2]
    return inputs @ weight.T + bias


def copies(tensors: Any) -> Layers:
    return [t.detach().clone().requires_grad_() for t in tensors]


class ByHand:
    """The update of the original implementation on plain tensors."""

    def __init__(self, model: IQL) -> None:
        policy = model.policy
        self.value = copies(policy.value.parameters())
        self.critics = [copies(p[j] for p in self.stacked(policy.critic)) for j in (0, 1)]
        self.targets = [[p.detach().clone() for p in critic] for critic in self.critics]
        self.log_std, *self.actor = copies(policy.actor.parameters())
        self.optimizers = [Adam(self.value), Adam([self.log_std, *self.actor]), Adam([*self.critics[0], *self.critics[1]])]
        self.expectile, self.scale, self.dropout = model.expectile, model.advantage_scale, model.dropout
        self.most_capped = 0.0

    @staticmethod
    def stacked(critic: Any) -> Layers:
        """Weights (2, out, in) and biases (2, out) in turn."""
        return [p.squeeze(1) if i % 2 else p for i, p in enumerate(critic.parameters())]

    def update(self, batch: Any, progress: float) -> dict[str, float]:
        s, a, following, r, d, noise, *_ = batch
        value_optimizer, actor_optimizer, critic_optimizer = self.optimizers
        with th.no_grad():
            q = th.minimum(*(mlp(th.cat([s, a], 1), target) for target in self.targets))
        u = q - mlp(s, self.value)
        value_loss = th.where(u > 0, self.expectile * u**2, (1 - self.expectile) * u**2).mean()
        value_optimizer.step(value_loss, LEARNING_RATE)

        with th.no_grad():
            uncapped = th.exp(self.scale * (q - mlp(s, self.value)))
            weights = th.where(uncapped > 100.0, th.full_like(uncapped, 100.0), uncapped)
            self.most_capped = max(self.most_capped, float((uncapped > 100.0).double().mean()))
        masks = ()
        if self.dropout:
            masks = tuple(
                (u >= self.dropout).double() / (1 - self.dropout) for u in noise["actor_dropout"].split(WIDTH, dim=1)
            )
        mean = th.tanh(mlp(s, self.actor, masks))
        density = th.distributions.Normal(mean, th.exp(th.clip(self.log_std, -5.0, 2.0)).expand_as(mean))
        actor_loss = -(weights * density.log_prob(a.double()).sum(dim=1, keepdim=True)).mean()
        actor_optimizer.step(actor_loss, LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * progress)))

        with th.no_grad():
            y = r + 0.99 * (1 - d) * mlp(following, self.value)
        critic_loss = sum(((mlp(th.cat([s, a], 1), critic) - y) ** 2).mean() for critic in self.critics)
        critic_optimizer.step(critic_loss, LEARNING_RATE)
        for target, critic in zip(self.targets, self.critics, strict=True):
            for old, new in zip(target, critic, strict=True):
                old.copy_(0.995 * old + 0.005 * new.detach())
        return {"value_loss": value_loss.item(), "actor_loss": actor_loss.item(), "critic_loss": critic_loss.item()}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_updates_equal_a_computation_by_hand(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and all parameters over a whole run, in float64: order, weights and their cap, clipping, schedule, targets."""
    model = iql(learning_rate=LEARNING_RATE, advantage_scale=10.0, expectile=0.8, dropout=dropout)
    model.policy.to(th.float64)
    with th.no_grad():
        # One entry outside of the range, which gets no gradient, and one inside.
        model.policy.actor.log_std.copy_(th.tensor([2.5, -0.3]))
        # Steep critics, so that the cap of the weights acts on some rows.
        for network in (model.policy.critic, model.policy.critic_target):
            network.layers[-1].weight.mul_(4.0)
    by_hand = ByHand(model)
    metrics = []
    update = model.update
    monkeypatch.setattr(model, "update", lambda batch: metrics.append(update(batch)) or metrics[-1])
    recorder = BatchRecorder()
    model.learn(UPDATES, callback=recorder)
    for i, batch in enumerate(recorder.batches):
        expected = by_hand.update(batch, progress=i / UPDATES)
        for name, loss in expected.items():
            assert metrics[i][name].item() == pytest.approx(loss, rel=1e-9), (i, name)
    assert 0.0 < by_hand.most_capped < 1.0
    policy = model.policy
    expected_networks = {
        "value": (by_hand.value, list(policy.value.parameters())),
        "actor": ([by_hand.log_std, *by_hand.actor], list(policy.actor.parameters())),
    }
    for j in (0, 1):
        for name, ours, network in (
            ("critic", by_hand.critics, policy.critic),
            ("critic_target", by_hand.targets, policy.critic_target),
        ):
            expected_networks[f"{name} {j}"] = (ours[j], [p[j] for p in ByHand.stacked(network)])
    for name, (expected, actual) in expected_networks.items():
        for p, q in zip(expected, actual, strict=True):
            np.testing.assert_allclose(q.detach().numpy(), p.detach().numpy(), rtol=0, atol=1e-9, err_msg=name)
    assert policy.actor.log_std[0].item() == 2.5


def test_initialisation_is_orthogonal() -> None:
    policy = iql().policy
    for network in (policy.actor, policy.value):
        for layer in (m for m in network.modules() if isinstance(m, th.nn.Linear)):
            small = layer.weight if layer.out_features <= layer.in_features else layer.weight.T
            th.testing.assert_close(small @ small.T, 2.0 * th.eye(len(small)))
            assert not layer.bias.any()
    for layer in policy.critic.layers:
        for weight in layer.weight:
            small = weight if weight.shape[0] <= weight.shape[1] else weight.T
            th.testing.assert_close(small @ small.T, 2.0 * th.eye(len(small)))
        assert not th.equal(layer.weight[0], layer.weight[1]) and not layer.bias.any()
    assert not policy.actor.log_std.any()
    for online, target in zip(policy.critic.parameters(), policy.critic_target.parameters(), strict=True):
        assert th.equal(online, target)


def test_defaults_of_the_variants() -> None:
    """Raw observations and clipped weights in the original; scaled observations and eq. 19 in the re-implementation."""
    original, dmpo = iql(), iql(variant="dmpo")
    for model in (original, dmpo):
        model.learn(1)
    assert original.advantage_weight == "clipped" and dmpo.advantage_weight == "normalized"
    assert not original.policy.observation_mean.any() and dmpo.policy.observation_mean.any()


def test_actions_are_kept_off_the_bounds() -> None:
    data = make_transitions()
    data.actions[:2] = [[1.0, -1.0], [-1.0, 1.0]]
    model = iql()
    model.set_dataset(data)
    model.learn(1)
    assert model.replay_buffer.actions.abs().max().item() == pytest.approx(1.0 - 1e-5, abs=1e-7)


def test_actor_learning_rate_falls_along_a_cosine_of_the_schedule() -> None:
    """The other optimizers follow the schedule itself."""
    model = iql(learning_rate=lambda progress: 1e-3 * progress)
    model.learn(4)
    # The last of four updates starts with a quarter of the run left.
    assert model.critic_optimizer.param_groups[0]["lr"] == pytest.approx(0.25e-3)
    cosine = 0.5 * (1.0 + math.cos(0.75 * math.pi))
    assert model.actor_optimizer.param_groups[0]["lr"] == pytest.approx(0.25e-3 * cosine)


def test_dropout_repeats_whatever_others_draw() -> None:
    """The masks are the algorithm's own: torch's global generator neither matters nor moves."""
    first = iql(dropout=0.5).learn(3)
    second = iql(dropout=0.5)
    th.manual_seed(123)
    state = th.get_rng_state()
    second.learn(3)
    assert th.equal(state, th.get_rng_state())
    for p, q in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        assert th.equal(p, q)
    without = iql().learn(3)
    assert not th.equal(without.policy.actor.mu.weight, first.policy.actor.mu.weight)


def test_dropout_keeps_the_expected_activation() -> None:
    """Dropped units are made up for by the others, and acting drops none."""
    actor = iql(dropout=0.4).policy.actor
    observations = th.randn(1, 3, generator=th.Generator().manual_seed(0)).expand(20_000, 3)
    uniform = th.rand(20_000, 2 * WIDTH, generator=th.Generator().manual_seed(1))
    with th.no_grad():
        layer = actor.latent_pi[0]
        actor.latent_pi = th.nn.ModuleList([layer])
        actor.net_arch = [WIDTH]
        dropped = th.atanh(actor(observations, uniform[:, :WIDTH])[0]).mean(dim=0)
        kept = th.atanh(actor(observations[:1])[0][0])
    th.testing.assert_close(dropped, kept, atol=0.05, rtol=0.05)


def test_samples_have_the_standard_deviation_of_the_actor() -> None:
    model = iql()
    with th.no_grad():
        model.policy.actor.log_std.fill_(-3.0)
    observations = np.zeros((4_000, 3), np.float32)
    th.manual_seed(0)
    samples, mean = model.predict(observations)[0], model.predict(observations, deterministic=True)[0]
    half_widths = 0.5 * (model.action_space.high - model.action_space.low)
    np.testing.assert_allclose((samples - mean).std(axis=0) / half_widths, math.exp(-3.0), rtol=0.1)
    assert (mean == mean[0]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "orignal"}, "variant is 'orignal', expected 'original' or 'dmpo'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": 0.1, "variant": "dmpo"}, "dropout is 0.1"),
    ],
)
def test_faults_of_the_configuration(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        iql(**arguments)


@pytest.mark.parametrize("arguments", [{"variant": "dmpo"}, {"dropout": 0.5}])
def test_options_come_back_from_the_zip(arguments: dict[str, Any], tmp_path: Path) -> None:
    """Also in the middle of a run: schedule and masks go on where they were."""
    whole = iql(**arguments)
    whole.learn(6, callback=CheckpointCallback(save_freq=3, save_path=str(tmp_path)))
    half = IQL.load(tmp_path / "rl_model_3_steps.zip", dataset=make_transitions())
    assert {name: getattr(half, name) for name in arguments} == arguments
    half.learn(3, reset_num_timesteps=False)
    for p, q in zip(whole.policy.parameters(), half.policy.parameters(), strict=True):
        assert th.equal(p, q)
    whole.policy.save(str(tmp_path / "policy.pth"))
    policy = type(whole.policy).load(str(tmp_path / "policy.pth"))
    observations = make_transitions().observations
    expected, _ = whole.predict(observations, deterministic=True)
    np.testing.assert_array_equal(policy.predict(observations, deterministic=True)[0], expected)
