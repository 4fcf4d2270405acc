"""
All sub-policies of a mixture on every observation, and the critics on what they do, without gradient: most of the
arithmetic of the updates.

In full precision on the CPU it is an operator of its own, and where only the best component counts, another one does with
less of it. The layers can also run in bfloat16, which recent CPUs multiply several times faster.
"""

from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_dmpo.common.networks import chosen_actions
from sb3_dmpo.dmpo.gate_kernels import normalized  # the module defines the operators

#: Matrices and biases of the layers of a network, or scales and shifts of its layer norms.
Layers = tuple[Sequence[th.Tensor], Sequence[th.Tensor]]
#: Multiplications that the gate must save to be cheaper than the whole table, for all its bookkeeping.
_GATE_SAVINGS = 60_000_000


def _gate_table_by_layers(
    observations: th.Tensor,
    components: th.Tensor,
    layers: Sequence[Sequence[th.Tensor]],
    dtype: th.dtype,
    activation: nn.Module,
) -> tuple[th.Tensor, th.Tensor]:
    """The table in plain operations, all critics in one batched product."""
    actor_weights, actor_biases, critic_weights, critic_biases, scales, shifts = layers
    norms = list(zip(scales, shifts, strict=True))

    def outputs(
        hidden: th.Tensor,
        weights: Sequence[th.Tensor],
        biases: Sequence[th.Tensor],
        norms: Sequence[tuple[th.Tensor, th.Tensor]] = (),
    ) -> th.Tensor:
        hidden = activation(hidden).flatten(-3, -2)
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if norms:
                scale, shift = (tensor.to(dtype) for tensor in norms[i])
                hidden = th.addcmul(shift, F.layer_norm(hidden, scale.shape[2:]), scale)
            if i < len(weights) - 1:
                hidden = activation(th.matmul(hidden, weight.to(dtype).mT) + bias.to(dtype))
        return th.matmul(hidden.to(observations.dtype), weights[-1].mT) + biases[-1]

    (batch, size), n = observations.shape, len(components)
    reduced = observations.to(dtype)
    weight, bias = actor_weights[0].to(dtype), actor_biases[0].to(dtype)
    own = F.linear(components.to(dtype), weight[:, size:])
    hidden = F.linear(reduced, weight[:, :size], bias).unsqueeze(1) + own
    actions = th.tanh(outputs(hidden, actor_weights[1:], actor_biases[1:]))
    weight, bias = critic_weights[0].to(dtype), critic_biases[0].to(dtype)
    shared = th.matmul(reduced, weight[:, :, :size].mT) + bias
    own = th.matmul(actions.to(dtype), weight[:, :, size:].mT).view(-1, batch, n, weight.shape[1])
    q_values = outputs(shared.unsqueeze(2) + own, critic_weights[1:], critic_biases[1:], norms)
    return q_values.view(-1, batch, n), actions.view(batch, n, -1)


def _gate_table_bfloat16(
    observations: th.Tensor, components: th.Tensor, *layers: list[th.Tensor]
) -> tuple[th.Tensor, th.Tensor]:
    """The table with nothing but the products in bfloat16; compiled, everything between two of them is one pass."""
    actor_weights, actor_biases, critic_weights, critic_biases, scales, shifts = layers

    def product(inputs: th.Tensor, weight: th.Tensor) -> th.Tensor:
        return th.mm(inputs.bfloat16(), weight.bfloat16().mT).to(observations.dtype)

    (batch, size), n = observations.shape, len(components)
    shared = F.linear(observations, actor_weights[0][:, :size], actor_biases[0])
    hidden = (shared.unsqueeze(1) + F.linear(components, actor_weights[0][:, size:])).flatten(0, 1)
    for weight, bias in zip(actor_weights[1:], actor_biases[1:], strict=True):
        hidden = product(th.relu(hidden), weight) + bias
    actions = th.tanh(hidden)
    q_values = []
    for j in range(len(critic_weights[0])):
        weights, biases = [weight[j] for weight in critic_weights], [bias[j, 0] for bias in critic_biases]
        shared = F.linear(observations, weights[0][:, :size], biases[0]).unsqueeze(1)
        norms = [(scale[j, 0], shift[j, 0]) for scale, shift in zip(scales, shifts, strict=True)]
        hidden = (product(actions, weights[0][:, size:]).view(batch, n, -1) + shared).flatten(0, 1)
        for i, (weight, bias) in enumerate(zip(weights[1:-1], biases[1:-1], strict=True)):
            hidden = product(normalized(th.relu(hidden), norms[i : i + 1]), weight) + bias
        hidden = normalized(th.relu(hidden), norms[-1:])
        q_values.append((th.mv(hidden, weights[-1][0]) + biases[-1]).view(batch, n))
    return th.stack(q_values), actions.view(batch, n, -1)


def _suits_operators(observations: th.Tensor, layers: list[list[th.Tensor]], activation: nn.Module) -> bool:
    """They know neither other activations, nor transforms of torch.func around us, nor a single layer."""
    is_plain = not th._C._functorch.is_functorch_wrapped_tensor(layers[0][0]) and min(map(len, layers[:4])) > 1
    return observations.device.type == "cpu" and isinstance(activation, nn.ReLU) and is_plain


@th.no_grad()
def gate_table(
    observations: th.Tensor,
    components: th.Tensor,
    actor_layers: Layers,
    critic_layers: Layers,
    dtype: th.dtype,
    activation: nn.Module,
    norms: Layers,
) -> tuple[th.Tensor, th.Tensor]:
    """
    Q-values of all components' actions, shape ``(n_critics, batch, n)``, and these actions, shape
    ``(batch, n, action_size)``, without gradient.

    :param observations: scaled observations, shape ``(batch, observation_size)``
    :param components: what the actor sees of each component, shape ``(n, embedding_size)``
    :param actor_layers: matrices ``(out, in)`` and biases ``(out,)`` of the actor on ``[observation, component]``
    :param critic_layers: matrices ``(n_critics, out, in)`` and biases ``(n_critics, 1, out)`` of the critics on
        ``[observation, action]``
    :param dtype: precision of the layers, but for those that reading or adding up large numbers would spoil
    :param activation: activation of the hidden layers
    :param norms: scales and shifts ``(n_critics, 1, width)`` of the layer norms of the critics' hidden layers; none without
    """
    layers = [list(tensors) for tensors in (*actor_layers, *critic_layers, *norms)]
    if _suits_operators(observations, layers, activation):
        if dtype == observations.dtype:
            result: tuple[th.Tensor, th.Tensor] = th.ops.sb3_dmpo.gate_table(observations, components, *layers)
            return result
        if dtype == th.bfloat16:
            return _gate_table_bfloat16(observations, components, *layers)
    return _gate_table_by_layers(observations, components, layers, dtype, activation)


def _gate_pays(observations: th.Tensor, components: th.Tensor, critic_weights: list[th.Tensor]) -> bool:
    """Whether the gate saves enough: one critic sees all actions, and each of the others two instead of all of them."""
    products = sum(weight[0].numel() for weight in critic_weights[1:-1])
    evaluations = (len(critic_weights[0]) - 1) * (len(components) - 2) * len(observations)
    return evaluations * products >= _GATE_SAVINGS


@th.no_grad()
def best_component(
    observations: th.Tensor,
    components: th.Tensor,
    actor_layers: Layers,
    critic_layers: Layers,
    activation: nn.Module,
    norms: Layers,
) -> tuple[th.Tensor, th.Tensor]:
    """
    Value ``max_z min_j Q_j(s, mu(s, z))``, shape ``(batch, 1)``, and action, shape ``(batch, action_size)``, of the best
    component, in full precision and without gradient.

    :param observations: scaled observations, shape ``(batch, observation_size)``
    :param components: see :func:`gate_table`
    :param actor_layers: see :func:`gate_table`
    :param critic_layers: see :func:`gate_table`
    :param activation: see :func:`gate_table`
    :param norms: see :func:`gate_table`
    """
    layers = [list(tensors) for tensors in (*actor_layers, *critic_layers, *norms)]
    if _gate_pays(observations, components, layers[2]) and _suits_operators(observations, layers, activation):
        result: tuple[th.Tensor, th.Tensor] = th.ops.sb3_dmpo.gate(observations, components, *layers)
        return result
    q_values, actions = gate_table(
        observations, components, actor_layers, critic_layers, observations.dtype, activation, norms
    )
    values, index = q_values.amin(dim=0).max(dim=1, keepdim=True)
    return values, chosen_actions(actions, index)


def has_fast_bfloat16(device: th.device) -> bool:
    """
    Whether the device has instructions for products in bfloat16.

    :param device: where the networks are
    """
    if device.type == "cuda":
        return th.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not th.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    checks: list[Any] = [getattr(th.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16")]
    return any(bool(check()) for check in checks if check is not None)
