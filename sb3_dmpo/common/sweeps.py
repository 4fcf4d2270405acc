"""
All sub-policies of a mixture on every observation, and the critics on what they do, without gradient: most of the
arithmetic of the updates.

In full precision this sweep is one operator on the CPU, so that compiled and eager updates compute the same numbers; its
rows are worked off in blocks that stay in the core's cache. Its hidden layers can also run in bfloat16, which recent CPUs
multiply several times faster; the last layers are float32 in any case.
"""

from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

#: Rows of a block: two hidden layers of 256 units in float32 and their weights fill half of a 2 MB cache.
_BLOCK_ROWS = 512

_library: Any = th.library.Library("sb3_dmpo", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "sweep(Tensor observations, Tensor components, Tensor[] actor_weights, Tensor[] actor_biases, Tensor[] critic_weights, "
    "Tensor[] critic_biases) -> (Tensor, Tensor)"
)
_library.define("relu_layers(Tensor inputs, Tensor[] weights, Tensor[] biases) -> Tensor")


def _sweep_cpu(
    observations: th.Tensor,
    components: th.Tensor,
    actor_weights: list[th.Tensor],
    actor_biases: list[th.Tensor],
    critic_weights: list[th.Tensor],
    critic_biases: list[th.Tensor],
) -> tuple[th.Tensor, th.Tensor]:
    # Per network: matrices and biases, the actor first.
    networks = [(actor_weights, actor_biases)]
    networks += [([w[j] for w in critic_weights], [b[j, 0] for b in critic_biases]) for j in range(len(critic_weights[0]))]
    (batch, size), n = observations.shape, len(components)
    actions = observations.new_empty(batch, n, len(actor_weights[-1]))
    q_values = observations.new_empty(len(networks) - 1, batch, n)
    # First layers: what an observation contributes is computed once, not once per component.
    shared = [F.linear(observations, weights[0][:, :size], biases[0]).unsqueeze(1) for weights, biases in networks]
    own = F.linear(components, actor_weights[0][:, size:])
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
    return q_values, actions


def _sweep_meta(
    observations: th.Tensor,
    components: th.Tensor,
    actor_weights: list[th.Tensor],
    actor_biases: list[th.Tensor],
    critic_weights: list[th.Tensor],
    critic_biases: list[th.Tensor],
) -> tuple[th.Tensor, th.Tensor]:
    batch, n, n_critics = len(observations), len(components), len(critic_weights[0])
    return observations.new_empty(n_critics, batch, n), observations.new_empty(batch, n, len(actor_weights[-1]))


def _relu_layers_cpu(inputs: th.Tensor, weights: list[th.Tensor], biases: list[th.Tensor]) -> th.Tensor:
    for weight, bias in zip(weights, biases, strict=True):
        # The product, the bias and the ReLU in one pass.
        inputs = th.ops.mkldnn._linear_pointwise(inputs, weight, bias, "relu", [], "")
    return inputs


def _relu_layers_meta(inputs: th.Tensor, weights: list[th.Tensor], biases: list[th.Tensor]) -> th.Tensor:
    return inputs.new_empty(len(inputs), len(weights[-1]))


_library.impl("sweep", _sweep_cpu, "CPU")
_library.impl("sweep", _sweep_meta, "Meta")
_library.impl("relu_layers", _relu_layers_cpu, "CPU")
_library.impl("relu_layers", _relu_layers_meta, "Meta")


def _sweep_bfloat16(
    observations: th.Tensor, components: th.Tensor, layers: Sequence[Sequence[th.Tensor]]
) -> tuple[th.Tensor, th.Tensor]:
    """The sweep with hidden layers in bfloat16; what stands between the products is left to the compiler, if there is one."""
    actor_weights, actor_biases, critic_weights, critic_biases = layers
    batch, n = len(observations), len(components)
    repeated = observations.unsqueeze(1).expand(-1, n, -1)

    def last_hidden(own: th.Tensor, weights: Sequence[th.Tensor], biases: Sequence[th.Tensor]) -> th.Tensor:
        inputs = th.cat([repeated, own], dim=2).bfloat16().flatten(0, 1)
        low = [[tensor.bfloat16() for tensor in tensors[:-1]] for tensors in (weights, biases)]
        hidden: th.Tensor = th.ops.sb3_dmpo.relu_layers(inputs, *low)
        return hidden.float()

    hidden = last_hidden(components.expand(batch, -1, -1), actor_weights, actor_biases)
    actions = th.tanh(F.linear(hidden, actor_weights[-1], actor_biases[-1])).view(batch, n, -1)
    q_values = []
    for j in range(len(critic_weights[0])):
        weights, biases = [weight[j] for weight in critic_weights], [bias[j, 0] for bias in critic_biases]
        hidden = last_hidden(actions, weights, biases)
        q_values.append((th.mv(hidden, weights[-1][0]) + biases[-1]).view(batch, n))
    return th.stack(q_values), actions


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
    # The operators know neither other activations, nor transforms of torch.func around us, nor a single layer.
    is_plain = not th._C._functorch.is_functorch_wrapped_tensor(layers[0][0]) and min(map(len, layers)) > 1
    if observations.device.type == "cpu" and isinstance(activation, nn.ReLU) and is_plain:
        if dtype == observations.dtype:
            result: tuple[th.Tensor, th.Tensor] = th.ops.sb3_dmpo.sweep(observations, components, *layers)
            return result
        if dtype == th.bfloat16 and hasattr(th.ops.mkldnn, "_linear_pointwise"):
            return _sweep_bfloat16(observations, components, layers)
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
