"""
All sub-policies of a mixture on every observation, and the critics on what they do, without gradient: most of the
arithmetic of the updates.

On the CPU this sweep is one operator, so that compiled and eager updates compute the same numbers. Its rows are worked off
in blocks. Its hidden layers can run in bfloat16, which recent CPUs multiply several times faster; the last layers are
float32 in any case.
"""

from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

#: Rows of a block: two hidden layers of 256 units in float32 and their weights fill half of a 2 MB cache.
_BLOCK_ROWS = 512
#: In bfloat16 the products are so quick that few calls count more than the cache.
_BLOCK_ROWS_BFLOAT16 = 2048

_library: Any = th.library.Library("sb3_dmpo", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "sweep(Tensor observations, Tensor components, Tensor[] actor_weights, Tensor[] actor_biases, Tensor[] critic_weights, "
    "Tensor[] critic_biases, bool reduced) -> (Tensor, Tensor)"
)


def _sweep_cpu(
    observations: th.Tensor,
    components: th.Tensor,
    actor_weights: list[th.Tensor],
    actor_biases: list[th.Tensor],
    critic_weights: list[th.Tensor],
    critic_biases: list[th.Tensor],
    reduced: bool,
) -> tuple[th.Tensor, th.Tensor]:
    # Per network: matrices and biases, the actor first.
    networks = [(actor_weights, actor_biases)]
    networks += [([w[j] for w in critic_weights], [b[j, 0] for b in critic_biases]) for j in range(len(critic_weights[0]))]
    actions = observations.new_empty(len(observations), len(components), len(actor_weights[-1]))
    q_values = observations.new_empty(len(networks) - 1, *actions.shape[:2])
    (_fill_bfloat16 if reduced else _fill)(observations, components, networks, actions, q_values)
    return q_values, actions


_Networks = Sequence[tuple[Sequence[th.Tensor], Sequence[th.Tensor]]]


def _fill(
    observations: th.Tensor, components: th.Tensor, networks: _Networks, actions: th.Tensor, q_values: th.Tensor
) -> None:
    (batch, size), n = observations.shape, len(components)
    # First layers: what an observation contributes is computed once, not once per component.
    shared = [F.linear(observations, weights[0][:, :size], biases[0]).unsqueeze(1) for weights, biases in networks]
    own = F.linear(components, networks[0][0][0][:, size:])
    own_weights = [weights[0][:, size:].t() for weights, _ in networks]
    layers = [list(zip(biases[1:], [w.t() for w in weights[1:]], strict=True)) for weights, biases in networks]
    step = max(_BLOCK_ROWS // n, 1)
    buffers = [observations.new_empty(min(step, batch), n, part.shape[2]) for part in shared]
    parts = [th.split(part, step) for part in shared]
    values = [[part.view(-1, 1) for part in th.split(table, step)] for table in q_values]
    for i, rows in enumerate(part.flatten(0, 1) for part in th.split(actions, step)):
        for j, outputs in enumerate([rows, *(table[i] for table in values)]):
            first = buffers[j][: len(parts[j][i])]
            hidden = first.flatten(0, 1)
            if j == 0:
                th.add(parts[j][i], own, out=first).relu_()
            else:
                th.mm(rows, own_weights[j], out=hidden)
                first.add_(parts[j][i]).relu_()
            for bias, weight in layers[j][:-1]:
                hidden = th.addmm(bias, hidden, weight).relu_()
            bias, weight = layers[j][-1]
            th.addmm(bias, hidden, weight, out=outputs)
            if j == 0:
                rows.tanh_()


def _fill_bfloat16(
    observations: th.Tensor, components: th.Tensor, networks: _Networks, actions: th.Tensor, q_values: th.Tensor
) -> None:
    (batch, size), n = observations.shape, len(components)
    low = observations.bfloat16().unsqueeze(1)
    hidden_layers = [
        [(weight.bfloat16(), bias.bfloat16()) for weight, bias in zip(weights[:-1], biases[:-1], strict=True)]
        for weights, biases in networks
    ]
    last_layers = [(biases[-1], weights[-1].t()) for weights, biases in networks]
    length = max(_BLOCK_ROWS_BFLOAT16 // n, 1) * n
    buffers = [observations.new_empty(min(length, batch * n), len(weight)) for _, weight in last_layers]
    pairs = [low.new_empty(batch, n, size + width) for width in (components.shape[1], actions.shape[2])]
    for pair in pairs:
        pair[:, :, :size] = low
    pairs[0][:, :, size:] = components
    actor_inputs, critic_inputs = (th.split(pair.flatten(0, 1), length) for pair in pairs)
    values = [th.split(table.view(-1, 1), length) for table in q_values]
    for i, rows in enumerate(th.split(actions.flatten(0, 1), length)):
        for j, outputs in enumerate([rows, *(table[i] for table in values)]):
            hidden = critic_inputs[i] if j else actor_inputs[i]
            for weight, bias in hidden_layers[j]:
                # The product, the bias and the ReLU in one pass.
                hidden = th.ops.mkldnn._linear_pointwise(hidden, weight, bias, "relu", [], "")
            bias, weight = last_layers[j]
            th.addmm(bias, buffers[j][: len(rows)].copy_(hidden), weight, out=outputs)
            if j == 0:
                critic_inputs[i][:, size:] = rows.tanh_()


def _sweep_meta(
    observations: th.Tensor,
    components: th.Tensor,
    actor_weights: list[th.Tensor],
    actor_biases: list[th.Tensor],
    critic_weights: list[th.Tensor],
    critic_biases: list[th.Tensor],
    reduced: bool,
) -> tuple[th.Tensor, th.Tensor]:
    batch, n, n_critics = len(observations), len(components), len(critic_weights[0])
    return observations.new_empty(n_critics, batch, n), observations.new_empty(batch, n, len(actor_weights[-1]))


_library.impl("sweep", _sweep_cpu, "CPU")
_library.impl("sweep", _sweep_meta, "Meta")


def _sweep_by_layers(
    observations: th.Tensor,
    components: th.Tensor,
    layers: Sequence[Sequence[th.Tensor]],
    dtype: th.dtype,
    activation: nn.Module,
) -> tuple[th.Tensor, th.Tensor]:
    """The sweep in plain operations, all critics in one batched product."""
    actor_weights, actor_biases, critic_weights, critic_biases = layers

    def outputs(hidden: th.Tensor, weights: Sequence[th.Tensor], biases: Sequence[th.Tensor]) -> th.Tensor:
        hidden = activation(hidden).flatten(-3, -2)
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
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
    q_values = outputs(shared.unsqueeze(2) + own, critic_weights[1:], critic_biases[1:])
    return q_values.view(-1, batch, n), actions.view(batch, n, -1)


@th.no_grad()
def sweep(
    observations: th.Tensor,
    components: th.Tensor,
    actor_layers: tuple[Sequence[th.Tensor], Sequence[th.Tensor]],
    critic_layers: tuple[Sequence[th.Tensor], Sequence[th.Tensor]],
    dtype: th.dtype,
    activation: nn.Module,
) -> tuple[th.Tensor, th.Tensor]:
    """
    Q-values of all components' actions, shape ``(n_critics, batch, n)``, and these actions, shape
    ``(batch, n, action_size)``, without gradient.

    :param observations: scaled observations, shape ``(batch, observation_size)``
    :param components: what the actor sees of each component, shape ``(n, embedding_size)``
    :param actor_layers: matrices ``(out, in)`` and biases ``(out,)`` of the actor on ``[observation, component]``
    :param critic_layers: matrices ``(n_critics, out, in)`` and biases ``(n_critics, 1, out)`` of the critics on
        ``[observation, action]``
    :param dtype: precision of the hidden layers
    :param activation: activation of the hidden layers
    """
    layers = [list(tensors) for tensors in (*actor_layers, *critic_layers)]
    reduced = dtype != observations.dtype
    # The operator knows neither other activations, nor transforms of torch.func around us, nor a single layer.
    is_plain = not th._C._functorch.is_functorch_wrapped_tensor(layers[0][0]) and min(map(len, layers)) > 1
    can_reduce = dtype == th.bfloat16 and hasattr(th.ops.mkldnn, "_linear_pointwise")
    if observations.device.type == "cpu" and isinstance(activation, nn.ReLU) and is_plain and (can_reduce or not reduced):
        result: tuple[th.Tensor, th.Tensor] = th.ops.sb3_dmpo.sweep(observations, components, *layers, reduced)
        return result
    return _sweep_by_layers(observations, components, layers, dtype, activation)


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
