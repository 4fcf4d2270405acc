"""
One network on many inputs per observation, without gradient: most of the arithmetic of a mixture of policies.

On the CPU a sweep is one operator, so that compiled and eager updates compute the same numbers. Its rows are worked off in
blocks that stay in the core's cache, and its hidden layers can run in bfloat16, which recent CPUs multiply several times
faster; the last layer is float32 in any case.
"""

from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

#: Rows of a block: hidden layers of 256 units fill half of a 2 MB cache.
_BLOCK_ROWS = {th.bfloat16: 2048, th.float32: 1024, th.float64: 512}
#: Up to this width it is cheaper to repeat an observation than to write the sum of two parts of the first layer.
_REPEATED_WIDTH = 64

_library: Any = th.library.Library("sb3_dmpo", "DEF")  # type: ignore[no-untyped-call]
_library.define("sweep(Tensor shared, Tensor own, Tensor[] weights, Tensor[] biases, ScalarType dtype) -> Tensor")


def _relu_layer(inputs: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    if inputs.dtype != th.float64 and hasattr(th.ops.mkldnn, "_linear_pointwise"):
        # The product, the bias and the ReLU in one pass.
        output: th.Tensor = th.ops.mkldnn._linear_pointwise(inputs, weight, bias, "relu", [], "")
        return output
    return F.linear(inputs, weight, bias).relu_()


def _first_layer(shared: th.Tensor, own: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    batch, n = len(shared), own.shape[1]
    if shared.shape[1] <= _REPEATED_WIDTH:
        pairs = th.cat([shared.unsqueeze(1).expand(-1, n, -1), own.expand(batch, -1, -1)], dim=2)
        return _relu_layer(pairs.flatten(0, 1), weight, bias)
    own_part = F.linear(own, weight[:, shared.shape[1] :])
    shared_part = F.linear(shared, weight[:, : shared.shape[1]], bias)
    return (shared_part.unsqueeze(1) + own_part).relu_().flatten(0, 1)


def _sweep_cpu(
    shared: th.Tensor, own: th.Tensor, weights: list[th.Tensor], biases: list[th.Tensor], dtype: th.dtype
) -> th.Tensor:
    batch, n = len(shared), own.shape[1]
    output = shared.new_empty(batch * n, len(weights[-1]))
    last_weight, last_bias = weights[-1].t(), biases[-1]
    layers = [(weight.to(dtype), bias.to(dtype)) for weight, bias in zip(weights[:-1], biases[:-1], strict=True)]
    shared, own = shared.to(dtype), own.to(dtype)
    step = max(_BLOCK_ROWS[dtype] // n, 1)
    # The last layer's input in full precision, one block of it.
    full = output.new_empty(min(step, batch) * n, last_weight.shape[0])
    for start in range(0, batch, step):
        stop = min(start + step, batch)
        hidden = _first_layer(shared[start:stop], own if len(own) == 1 else own[start:stop], *layers[0])
        for layer in layers[1:]:
            hidden = _relu_layer(hidden, *layer)
        if dtype != output.dtype:
            hidden = full[: len(hidden)].copy_(hidden)
        th.addmm(last_bias, hidden, last_weight, out=output[start * n : stop * n])
    return output.view(batch, n, -1)


def _sweep_meta(
    shared: th.Tensor, own: th.Tensor, weights: list[th.Tensor], biases: list[th.Tensor], dtype: th.dtype
) -> th.Tensor:
    return shared.new_empty(len(shared), own.shape[1], len(weights[-1]))


_library.impl("sweep", _sweep_cpu, "CPU")
_library.impl("sweep", _sweep_meta, "Meta")


def _sweep_by_layers(
    shared: th.Tensor,
    own: th.Tensor,
    weights: list[th.Tensor],
    biases: list[th.Tensor],
    dtype: th.dtype,
    activation: nn.Module,
) -> th.Tensor:
    layers = [(weight.to(dtype), bias.to(dtype)) for weight, bias in zip(weights[:-1], biases[:-1], strict=True)]
    size = shared.shape[1]
    weight, bias = layers[0]
    shared_part = F.linear(shared.to(dtype), weight[:, :size], bias)
    hidden = activation(shared_part.unsqueeze(1) + F.linear(own.to(dtype), weight[:, size:]))
    for weight, bias in layers[1:]:
        hidden = activation(F.linear(hidden, weight, bias))
    return F.linear(hidden.to(shared.dtype), weights[-1], biases[-1])


@th.no_grad()
def sweep(
    shared: th.Tensor,
    own: th.Tensor,
    weights: Sequence[th.Tensor],
    biases: Sequence[th.Tensor],
    dtype: th.dtype,
    activation: nn.Module,
) -> th.Tensor:
    """
    Outputs of a network on every pair of a shared and an own input, shape ``(batch, n, out)``, without gradient.

    :param shared: what the inputs of a row have in common, shape ``(batch, shared_size)``
    :param own: shape ``(batch or 1, n, own_size)``
    :param weights: matrices of the layers, shape ``(out, in)`` each, the first one for ``[shared, own]``
    :param biases: shape ``(out,)`` each
    :param dtype: precision of the hidden layers
    :param activation: activation of the hidden layers
    """
    is_plain = not th._C._functorch.is_functorch_wrapped_tensor(weights[0])  # no torch.func transform around us
    if shared.device.type == "cpu" and isinstance(activation, nn.ReLU) and is_plain:
        outputs: th.Tensor = th.ops.sb3_dmpo.sweep(shared, own, list(weights), list(biases), dtype)
        return outputs
    return _sweep_by_layers(shared, own, list(weights), list(biases), dtype, activation)


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
