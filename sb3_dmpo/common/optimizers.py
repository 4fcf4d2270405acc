"""Making optimizers, and their steps: as one call, and in operations that can be recorded."""

import math
from typing import Any

import torch as th
from torch import nn


def make_optimizer(
    optimizer_class: type[th.optim.Optimizer], parameters: list[nn.Parameter], learning_rate: float, arguments: dict[str, Any]
) -> th.optim.Optimizer:
    """
    An optimizer; Adam does its step in one call over all parameters where PyTorch has that.

    :param optimizer_class: class of the optimizer
    :param parameters: what it moves
    :param learning_rate: learning rate of the first update
    :param arguments: its other arguments
    """
    if issubclass(optimizer_class, th.optim.Adam | th.optim.AdamW) and not {"fused", "foreach"} & arguments.keys():
        try:
            return optimizer_class(parameters, lr=learning_rate, fused=True, **arguments)
        except RuntimeError:  # older versions of PyTorch have it on some devices only
            pass
    return optimizer_class(parameters, lr=learning_rate, **arguments)  # type: ignore[call-arg]


def prepare_adam(optimizer: th.optim.Optimizer) -> None:
    """
    Give Adam the state that it would otherwise make at its first step, all of it where the parameters are.

    :param optimizer: the optimizer
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if not state:
                optimizer.state[parameter] = {
                    "step": th.zeros((), dtype=th.float32, device=parameter.device),
                    "exp_avg": th.zeros_like(parameter, memory_format=th.preserve_format),
                    "exp_avg_sq": th.zeros_like(parameter, memory_format=th.preserve_format),
                }
            elif state["step"].device != parameter.device:
                # Adam that is not fused counts on the CPU.
                state["step"] = state["step"].to(parameter.device)


def optimizer_step(optimizer: th.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[th.Tensor]) -> None:
    """
    One step of an optimizer with the gradients beside the parameters.

    :param optimizer: the optimizer
    :param parameters: all of its parameters
    :param gradients: of the same shapes
    """
    for parameter, gradient in zip(parameters, gradients, strict=True):
        # The fused kernels read gradients as they lie in memory.
        parameter.grad = gradient.contiguous()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@th.no_grad()
def adam_step(optimizer: th.optim.Optimizer, parameters: list[Any], gradients: list[th.Tensor], rate: th.Tensor) -> None:
    """
    One step of Adam (or AdamW) in operations that can be recorded, with the learning rate as a tensor.

    :param optimizer: holds the state
    :param parameters: what is moved
    :param gradients: of the same shapes
    :param rate: the learning rate, 0-d
    """
    group = optimizer.param_groups[0]
    beta1, beta2 = group["betas"]
    states = [optimizer.state[parameter] for parameter in parameters]
    steps, means, squares = ([state[name] for state in states] for name in ("step", "exp_avg", "exp_avg_sq"))
    th._foreach_add_(steps, 1.0)
    th._foreach_lerp_(means, gradients, 1.0 - beta1)
    th._foreach_mul_(squares, beta2)
    th._foreach_addcmul_(squares, gradients, gradients, 1.0 - beta2)
    # All parameters of an optimizer have made the same number of steps. What is used again after an `exp` the compiler keeps;
    # a `pow` it would do once more for every few numbers. In double precision, since 1 - beta2 is small at first.
    corrections = [1.0 - th.exp(steps[0].double() * math.log(beta)) for beta in (beta1, beta2)]
    step_size = (rate / corrections[0]).float()
    scale = corrections[1].rsqrt().float()
    for parameter, mean, square in zip(parameters, means, squares, strict=True):
        if group["weight_decay"]:  # AdamW's, which is not part of the gradient
            parameter.mul_(1.0 - rate * group["weight_decay"])
        parameter.sub_(step_size * mean / (square.sqrt() * scale + group["eps"]))


def clipped(gradients: list[th.Tensor], max_norm: float) -> list[th.Tensor]:
    """
    Gradients scaled down to a bound of their joint norm, as ``clip_grad_norm_`` does.

    :param gradients: the gradients
    :param max_norm: the bound
    """
    norm = th.stack([gradient.norm() for gradient in gradients]).norm()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return [gradient * factor for gradient in gradients]
