"""Choosing the best of several actions by the critics, with the same outcome on every device and in every runtime."""

import copy
from collections.abc import Callable, Sequence

import torch as th
from torch import nn

from sb3_dmpo.common.networks import chosen_actions

#: Values nearer than this, relative to their size, are compared in double precision: about ten times the largest rounding
#: error of a critic's value that was seen.
NEAR_TIE = 1e-5

#: Values ``(batch, n)`` and actions ``(batch, n, action_size)``, from scaled observations and the networks.
Table = Callable[..., tuple[th.Tensor, th.Tensor]]


def best_actions(
    observations: th.Tensor, networks: Sequence[nn.Module], table: Table, block_size: int | None = None
) -> tuple[th.Tensor, th.Tensor]:
    """
    Index of the best action ``(batch, 1)`` and the action ``(batch, action_size)``.

    Rounding depends on the device, the runtime and the size of the batch; where two values differ by no more, it would
    decide which action is taken. Such values are computed once more in double precision. Networks that are in double
    precision already (exported ones) are used as they are.

    :param observations: scaled observations, float32, shape ``(batch, observation_size)``
    :param networks: what the table needs
    :param table: the values and the actions, called as ``table(observations, *networks)``
    :param block_size: number of observations that a CPU compares actions for at a time; None: all at once
    """
    if next(networks[0].parameters()).dtype == th.float64:
        values, actions = table(observations.double(), *networks)
        index = values.argmax(dim=1, keepdim=True)
        return index, chosen_actions(actions, index)
    blocks = th.split(observations, block_size) if block_size and observations.device.type == "cpu" else (observations,)
    values, actions = map(th.cat, zip(*(table(block, *networks) for block in blocks), strict=True))
    index = values.argmax(dim=1, keepdim=True)
    best = values.topk(min(2, values.shape[1]), dim=1).values
    # With a single action there is nothing to choose.
    is_near = (best[:, :1] - best[:, 1:] <= NEAR_TIE * (1.0 + best[:, :1].abs())).any(dim=1)
    if is_near.any():
        # On the CPU, since not every device has double precision.
        exact = [_in_double_precision(network) for network in networks]
        exact_values, _ = table(observations[is_near].cpu().double(), *exact)
        index[is_near] = exact_values.argmax(dim=1, keepdim=True).to(index.device)
    return index, chosen_actions(actions, index)


def _in_double_precision(module: nn.Module) -> nn.Module:
    """
    A twin of a network on the CPU with its own tensors and everything else in common, a tenth of the time of a deep copy.

    :param module: the network, which stays as it is
    """
    twin = copy.copy(module)
    twin._parameters = {name: None if p is None else nn.Parameter(_double(p), False) for name, p in module._parameters.items()}
    twin._buffers = {name: None if buffer is None else _double(buffer) for name, buffer in module._buffers.items()}
    twin._modules = {name: None if child is None else _in_double_precision(child) for name, child in module._modules.items()}
    return twin


def _double(tensor: th.Tensor) -> th.Tensor:
    return tensor.detach().cpu().double()


def is_near_tie(values: Sequence[float]) -> bool:
    """
    Whether rounding could decide which of some values is the largest: what :func:`best_actions` asks, for one row.

    :param values: values of the actions for one observation
    """
    best, *others = sorted(values, reverse=True)
    return bool(others) and not best - others[0] > NEAR_TIE * (1.0 + abs(best))
