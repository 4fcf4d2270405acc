"""The blockwise values of several actions equal those of the plain layers, and so do their gradients."""

import pytest
import torch as th
from torch import nn

from sb3_dmpo.common.networks import EnsembleCritic
from sb3_dmpo.cql import action_tables
from sb3_dmpo.cql.action_tables import action_values

BATCH, N = 70, 31


def make(net_arch: list[int], activation_fn: type[nn.Module] = nn.ReLU, dtype: th.dtype = th.float32) -> EnsembleCritic:
    th.manual_seed(0)
    return EnsembleCritic(4, 3, net_arch, activation_fn).to(dtype)


def inputs(dtype: th.dtype = th.float32, batch: int = BATCH) -> tuple[th.Tensor, th.Tensor]:
    generator = th.Generator().manual_seed(1)
    observations = th.randn(batch, 4, generator=generator, dtype=dtype)
    return observations, 2.0 * th.rand(batch, N, 3, generator=generator, dtype=dtype) - 1.0


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every table that is computed by blocks."""
    found: list[int] = []

    plain = action_tables.action_table

    def counted(*arguments: list[nn.Parameter]) -> th.Tensor:
        found.append(1)
        return plain(*arguments)

    monkeypatch.setattr(action_tables, "action_table", counted)
    return found


@pytest.mark.parametrize("net_arch", [[16], [24, 8], [8, 24, 16]])
def test_values_and_gradients(net_arch: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, the last of them not full; against double precision, where the plain layers do it."""
    blockwise = calls(monkeypatch)
    critic, exact = make(net_arch), make(net_arch).double()
    exact.load_state_dict(critic.state_dict())
    weights = th.randn(2, BATCH, N, generator=th.Generator().manual_seed(2))
    table = action_values(critic, *inputs())
    (weights * table).sum().backward()
    assert blockwise == [1]
    observations, actions = inputs()
    expected = action_values(exact, observations.double(), actions.double())
    (weights * expected).sum().backward()
    assert blockwise == [1]
    th.testing.assert_close(table.double(), expected, rtol=1e-5, atol=1e-6)
    for (name, parameter), other in zip(critic.named_parameters(), exact.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None
        size = float(other.grad.abs().max())
        th.testing.assert_close(
            parameter.grad.double(), other.grad, rtol=1e-4, atol=1e-5 * size, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_units_without_weight_learn() -> None:
    """What is left out and multiplied in at the end may be zero."""
    critic = make([8, 8])
    last = critic.layers[-1]
    nn.init.zeros_(last.weight)
    action_values(critic, *inputs()).sum().backward()
    blockwise = last.weight.grad.clone()
    critic.zero_grad()
    observations, actions = inputs()
    action_values(critic, observations, actions.requires_grad_()).sum().backward()
    assert bool(blockwise.any())
    th.testing.assert_close(blockwise, last.weight.grad, rtol=1e-4, atol=1e-3)


def test_plain_layers_do_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    blockwise, (observations, actions) = calls(monkeypatch), inputs(batch=3)
    critic = make([8])
    with th.no_grad():
        expected = action_values(critic, observations, actions)
    action_values(make([8], nn.Tanh), observations, actions)
    action_values(make([]), observations, actions)
    action_values(critic, observations.clone().requires_grad_(), actions)
    action_values(make([8], dtype=th.float64), *inputs(th.float64, batch=3))
    action_values(make([8]).requires_grad_(False), observations, actions)
    several = {name: th.stack([p.detach(), p.detach()]) for name, p in critic.named_parameters()}

    def table(parameters: dict[str, th.Tensor]) -> th.Tensor:
        wrapper = nn.Module()
        wrapper.critic = critic
        wrapper.forward = lambda: action_values(critic, observations, actions)
        return th.func.functional_call(wrapper, {f"critic.{name}": value for name, value in parameters.items()}, ())

    th.testing.assert_close(th.vmap(table)(several), th.stack([expected, expected]))
    assert blockwise == []


def test_operators() -> None:
    """What the recording of compiled updates asks of them: their schemas hold, and shapes are known without computing."""
    critic, (observations, actions) = make([8, 8]), inputs()
    weights = [layer.weight.detach() for layer in critic.layers]
    biases = [layer.bias.detach() for layer in critic.layers]
    tests = ("test_schema", "test_faketensor")
    th.library.opcheck(th.ops.sb3_dmpo.action_table, (observations, actions, weights, biases), test_utils=tests)
    table, hidden = th.ops.sb3_dmpo.action_table(observations, actions, weights, biases)
    arguments = (th.ones_like(table), observations, actions, weights, biases, hidden)
    th.library.opcheck(th.ops.sb3_dmpo.action_table_gradients, arguments, test_utils=tests)
