"""The operators behind the gate of the mixture policy."""

import pytest
import torch as th
from torch import nn

from sb3_dmpo.common.networks import EnsembleCritic
from sb3_dmpo.dmpo import gate
from sb3_dmpo.dmpo.gate import best_component, gate_table
from sb3_dmpo.dmpo.networks import MixtureActor

Networks = tuple[MixtureActor, EnsembleCritic]


def networks(n_components: int, n_critics: int = 2, net_arch: tuple[int, ...] = (32, 24)) -> Networks:
    th.manual_seed(0)
    actor = MixtureActor(5, 3, n_components, list(net_arch), nn.ReLU, embedding_size=5)
    return actor, EnsembleCritic(5, 3, list(net_arch), n_critics=n_critics)


def arguments(actor: MixtureActor, critic: EnsembleCritic, batch: int = 150) -> tuple[th.Tensor, ...]:
    observations = th.randn(batch, 5, generator=th.Generator().manual_seed(1))
    components = actor.latent_embedding(actor.one_hots)
    return observations, components, actor.weights_and_biases(), critic.weights_and_biases()


@pytest.mark.parametrize("n_critics", [1, 2, 3])
@pytest.mark.parametrize("net_arch", [(32,), (32, 24)])
@th.no_grad()
def test_gate_with_layer_norm(n_critics: int, net_arch: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators, the plain operations and the modules agree, also in reduced precision."""
    th.manual_seed(0)
    actor, _ = networks(8, net_arch=net_arch)
    critic = EnsembleCritic(5, 3, list(net_arch), n_critics=n_critics, layer_norm=True)
    for norm in critic.norms:
        norm.weight.mul_(1.0 + 0.5 * th.randn(norm.weight.shape))
        norm.bias.add_(0.5 * th.randn(norm.bias.shape))
    observations, *rest = arguments(actor, critic)
    norms = critic.scales_and_shifts()
    actions = actor.all_components(observations)
    table = critic.all_actions(observations, actions)
    found = {
        "operator": gate_table(observations, *rest, th.float32, critic.activation, norms),
        # Another activation than nn.ReLU itself is computed layer by layer.
        "layers": gate_table(observations, *rest, th.float32, nn.Threshold(0.0, 0.0), norms),
    }
    for name, (values, chosen) in found.items():
        th.testing.assert_close(values, table, msg=lambda message, name=name: f"{name}: {message}")
        th.testing.assert_close(chosen, actions)
    for activation in (critic.activation, nn.Threshold(0.0, 0.0)):
        reduced, _ = gate_table(observations, *rest, th.bfloat16, activation, norms)
        assert 0 < float((reduced - table).abs().max()) < 0.05 * float(table.abs().max())
    for savings in (1, 10**12):
        monkeypatch.setattr(gate, "_GATE_SAVINGS", savings)
        values, chosen = best_component(observations, *rest, critic.activation, norms)
        th.testing.assert_close(values, table.amin(dim=0).amax(dim=1, keepdim=True))
        th.testing.assert_close(critic(observations, chosen).amin(dim=0), values)


@th.no_grad()
def assert_gate_is_right(actor: MixtureActor, critic: EnsembleCritic, batch: int = 150) -> None:
    """The best component as found by evaluating the modules."""
    observations, *rest = arguments(actor, critic, batch)
    actions = actor.all_components(observations)
    table = critic.all_actions(observations, actions).amin(dim=0)
    best = table.amax(dim=1, keepdim=True)
    values, chosen = best_component(observations, *rest, critic.activation, critic.scales_and_shifts())
    th.testing.assert_close(values, best)
    # Which one it is, rounding may decide where two are equally good.
    th.testing.assert_close(critic(observations, chosen).amin(dim=0), best)
    assert float((actions - chosen.unsqueeze(1)).abs().amax(dim=2).amin(dim=1).max()) < 1e-5


@pytest.fixture
def always_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_GATE_SAVINGS", 1)


@pytest.mark.usefixtures("always_gate")
@pytest.mark.parametrize("n_critics", [1, 2, 3])
@pytest.mark.parametrize("n_components", [1, 5, 6, 8, 33])
def test_gate_finds_the_best_component(n_components: int, n_critics: int) -> None:
    assert_gate_is_right(*networks(n_components, n_critics))


@pytest.mark.usefixtures("always_gate")
@pytest.mark.parametrize("batch", [1, 2, 513])
@pytest.mark.parametrize("net_arch", [(32,), (16, 16, 16)])
def test_gate_with_other_sizes(batch: int, net_arch: tuple[int, ...]) -> None:
    assert_gate_is_right(*networks(8, net_arch=net_arch), batch=batch)


@pytest.mark.usefixtures("always_gate")
@pytest.mark.parametrize("offset", [0.0, 100.0, -100.0])
def test_gate_when_critics_agree_about_states_or_never_do(offset: float) -> None:
    """At 0 the critics' order changes from component to component; far from it, one critic is the lowest everywhere."""
    actor, critic = networks(12)
    with th.no_grad():
        # Values that depend on the action far more than on the state
        for layer in critic.layers:
            layer.weight.mul_(3.0)
        critic.layers[0].weight[:, :, :5] *= 0.01
        critic.layers[-1].bias[1] += offset
        actor.mu[0].weight.mul_(3.0)
        q_values, _ = gate_table(*arguments(actor, critic), th.float32, critic.activation, critic.scales_and_shifts())
        lowest = q_values.argmin(dim=0)
        is_mixed = (lowest != lowest[:, :1]).any(dim=1)
    assert bool(is_mixed.any()) == (offset == 0.0)
    assert_gate_is_right(actor, critic)


@pytest.mark.usefixtures("always_gate")
def test_equal_components() -> None:
    actor, critic = networks(8)
    with th.no_grad():
        actor.latent_embedding.net[0].weight.zero_()
    assert_gate_is_right(actor, critic)


@pytest.mark.parametrize(
    ("n_components", "width", "batch", "pays"),
    [(8, 256, 256, True), (4, 256, 256, False), (8, 64, 256, False), (8, 256, 64, False)],
)
def test_gate_only_where_it_pays(n_components: int, width: int, batch: int, pays: bool) -> None:
    observations, components, _, (weights, _) = arguments(*networks(n_components, net_arch=(width, width)), batch=batch)
    assert gate._gate_pays(observations, components, weights) == pays
    _, _, _, (weights, _) = arguments(*networks(n_components, n_critics=1, net_arch=(width, width)))
    assert not gate._gate_pays(observations, components, weights)


def test_operators_are_well_formed() -> None:
    observations, components, actor_layers, critic_layers = arguments(*networks(8))
    layers = [[tensor.detach() for tensor in tensors] for tensors in (*actor_layers, *critic_layers)]
    checks = ("test_schema", "test_faketensor")
    for operator in (th.ops.sb3_dmpo.gate_table, th.ops.sb3_dmpo.gate):
        for widths in ((), (32, 24)):
            norms = [[th.ones(2, 1, width) for width in widths] for _ in range(2)]
            th.library.opcheck(operator, (observations, components.detach(), *layers, *norms), test_utils=checks)


def test_both_precisions_choose_alike() -> None:
    """Values of the reduced table are good for choosing: off by a small part of what they are."""
    actor, critic = networks(8, net_arch=(128, 128))
    exact, exact_actions = gate_table(*arguments(actor, critic), th.float32, critic.activation, critic.scales_and_shifts())
    reduced, actions = gate_table(*arguments(actor, critic), th.bfloat16, critic.activation, critic.scales_and_shifts())
    assert reduced.dtype == actions.dtype == th.float32
    assert 0 < float((reduced - exact).abs().max()) < 0.03 * float(exact.abs().max())
    assert 0 < float((actions - exact_actions).abs().max()) < 0.01
