"""
Values of several actions per observation, with gradient: most of the arithmetic of CQL.

Layer by layer, such a table runs through memory some ten times per hidden layer. Here its rows are worked off in blocks that
stay in the core's cache, forwards and backwards, and the gradients of the weights add up over the blocks. Both directions are
operators of their own, so that compiled and eager updates compute the same numbers.
"""

from typing import Any

import torch as th
from torch import nn
from torch.autograd.function import once_differentiable

from sb3_dmpo.common.networks import EnsembleCritic

#: Rows of a block: three hidden layers of 256 units fill a 2 MB cache.
_BLOCK_ROWS = 640

_library: Any = th.library.Library("sb3_dmpo", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("action_table(Tensor observations, Tensor actions, Tensor[] weights, Tensor[] biases) -> (Tensor, Tensor)")
_library.define(
    "action_table_gradients(Tensor gradient, Tensor observations, Tensor actions, Tensor[] weights, Tensor[] biases, "
    "Tensor hidden) -> Tensor[]"
)


def _masked(gradient: th.Tensor, activated: th.Tensor, out: th.Tensor) -> th.Tensor:
    """The gradient before a ReLU from the one behind it and the ReLU's output, written to ``out``."""
    masked: th.Tensor = th.ops.aten.threshold_backward.grad_input(gradient, activated, 0, grad_input=out)
    return masked


class _Blocks:
    """
    Everything that both directions need, cut into blocks of rows.

    :param observations: shape ``(batch, observation_size)``
    :param actions: shape ``(batch, n, action_size)``
    :param weights: matrices of the layers, shape ``(n_critics, out, in)``
    :param biases: shape ``(n_critics, 1, out)``
    :param hidden: outputs of all hidden layers but the first one, which is cheap to compute again, for all rows
    """

    def __init__(
        self,
        observations: th.Tensor,
        actions: th.Tensor,
        weights: list[th.Tensor],
        biases: list[th.Tensor],
        hidden: th.Tensor | None = None,
    ) -> None:
        self.batch, self.n, action_size = actions.shape
        self.n_critics, self.n_rows, size = len(weights[0]), self.batch * self.n, observations.shape[1]
        self.step = max(_BLOCK_ROWS // self.n, 1)
        self.own = self.split(actions.reshape(self.n_rows, action_size))
        self.own_weight = weights[0][:, :, size:].transpose(1, 2).contiguous()
        # The observation's part of the first layer is the same for all of its actions.
        shared_weight = weights[0][:, :, :size].transpose(1, 2)
        shared = th.baddbmm(biases[0], observations.expand(self.n_critics, *observations.shape), shared_weight)
        self.shared = [th.split(part, self.step) for part in shared.unsqueeze(2)]
        self.widths = [weight.shape[1] for weight in weights[:-1]]
        sizes = [self.n_critics * self.n_rows * width for width in self.widths[1:]]
        self.hidden = observations.new_empty(sum(sizes)) if hidden is None else hidden
        layers = zip(th.split(self.hidden, sizes), self.widths[1:], strict=True)
        views = [layer.view(self.n_critics, self.n_rows, width) for layer, width in layers]
        #: By critic and block: outputs of the hidden layers but the first one
        self.stored = [list(zip(*(self.split(view[j]) for view in views), strict=True)) for j in range(self.n_critics)]
        if not views:
            self.stored = [[()] * len(self.own)] * self.n_critics
        self._scratch = observations.new_empty(3, self.step * self.n * max(self.widths))
        self._rooms: dict[tuple[int, int, int], th.Tensor] = {}

    def split(self, rows: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        The blocks of something that has a row for every action.

        :param rows: shape ``(batch * n, ...)``
        """
        return tuple(th.split(rows, self.step * self.n))

    def room(self, i: int, n_rows: int, layer: int) -> th.Tensor:
        """
        Room for one hidden layer of a block, shape ``(n_rows, width)``.

        :param i: which of three rooms
        :param n_rows: rows of the block
        :param layer: number of the hidden layer
        """
        key = (i, n_rows, self.widths[layer])
        if key not in self._rooms:
            self._rooms[key] = self._scratch[i, : n_rows * key[2]].view(n_rows, key[2])
        return self._rooms[key]

    def first(self, own: th.Tensor, shared: th.Tensor, weight: th.Tensor) -> th.Tensor:
        """
        Output of the first hidden layer for a block, shape ``(rows, width)``.

        :param own: actions, shape ``(rows, action_size)``
        :param shared: the observations' part, shape ``(observations, 1, width)``
        :param weight: the layer's matrix for actions, shape ``(action_size, width)``
        """
        out = self.room(0, len(own), 0)
        th.mm(own, weight, out=out)
        out.view(len(shared), self.n, -1).add_(shared)
        return out.relu_()


def _table_cpu(
    observations: th.Tensor, actions: th.Tensor, weights: list[th.Tensor], biases: list[th.Tensor]
) -> tuple[th.Tensor, th.Tensor]:
    blocks = _Blocks(observations, actions, weights, biases)
    table = observations.new_empty(blocks.n_critics, blocks.n_rows, 1)
    for j in range(blocks.n_critics):
        layers = [(weight[j].t(), bias[j, 0]) for weight, bias in zip(weights[1:], biases[1:], strict=True)]
        parts = zip(blocks.own, blocks.shared[j], blocks.stored[j], blocks.split(table[j]), strict=True)
        for own, shared, stored, values in parts:
            hidden = blocks.first(own, shared, blocks.own_weight[j])
            for (weight, bias), out in zip(layers[:-1], stored, strict=True):
                # addmm would write the bias to memory that is not in the cache yet.
                hidden = th.mm(hidden, weight, out=out).add_(bias).relu_()
            th.addmm(layers[-1][1], hidden, layers[-1][0], out=values)
    return table.view(blocks.n_critics, blocks.batch, blocks.n), blocks.hidden


def _gradients_cpu(
    gradient: th.Tensor,
    observations: th.Tensor,
    actions: th.Tensor,
    weights: list[th.Tensor],
    biases: list[th.Tensor],
    hidden: th.Tensor,
) -> list[th.Tensor]:
    blocks = _Blocks(observations, actions, weights, biases, hidden)
    gradient = gradient.reshape(blocks.n_critics, -1, 1).contiguous()
    of_weights, of_biases = ([th.zeros_like(tensor) for tensor in tensors] for tensors in (weights, biases))
    of_own = th.zeros_like(blocks.own_weight)
    of_shared = observations.new_empty(blocks.n_critics, blocks.batch, blocks.widths[0])
    ones = gradient.new_ones(blocks.step * blocks.n)
    # An output's weights scale all that goes back through its unit: they are left out of the blocks and come in at the end,
    # where their own gradient falls out of what is there, without another pass over the last hidden layer.
    matrices = list(weights)
    if len(blocks.widths) > 1:
        matrices[-2] = weights[-2] * weights[-1].transpose(1, 2)
    last = len(blocks.widths) - 1
    for j in range(blocks.n_critics):
        layers = [(matrix[j], w[j], b[j, 0]) for matrix, w, b in zip(matrices, of_weights, of_biases, strict=True)]
        through = blocks.split(gradient[j].expand(-1, blocks.widths[last]))
        parts = zip(blocks.own, blocks.shared[j], blocks.stored[j], through, th.split(of_shared[j], blocks.step), strict=True)
        for own, shared, stored, deltas, sums in parts:
            outputs = [blocks.first(own, shared, blocks.own_weight[j]), *stored]
            deltas = _masked(deltas, outputs[last], blocks.room(1 + last % 2, len(own), last))
            for i in range(last, 0, -1):
                matrix, of_weight, of_bias = layers[i]
                of_weight.addmm_(deltas.t(), outputs[i - 1])
                of_bias.addmv_(deltas.t(), ones[: len(own)])
                deltas = th.mm(deltas, matrix, out=blocks.room(2 - i % 2, len(own), i - 1))
                deltas = _masked(deltas, outputs[i - 1], deltas)
            th.sum(deltas.view(len(sums), blocks.n, -1), dim=1, out=sums)
            of_own[j].addmm_(own.t(), deltas)
    of_biases[0].copy_(of_shared.sum(dim=1, keepdim=True))
    of_weights[0].copy_(th.cat([th.matmul(of_shared.transpose(1, 2), observations), of_own.transpose(1, 2)], dim=2))
    of_biases[-1].copy_(gradient.sum(dim=1, keepdim=True))
    of_weights[-1].copy_((of_weights[-2] * weights[-2]).sum(dim=2).unsqueeze(1) + of_biases[-2] * biases[-2])
    of_weights[-2].mul_(weights[-1].transpose(1, 2))
    of_biases[-2].mul_(weights[-1])
    return [*of_weights, *of_biases]


def _table_meta(
    observations: th.Tensor, actions: th.Tensor, weights: list[th.Tensor], biases: list[th.Tensor]
) -> tuple[th.Tensor, th.Tensor]:
    batch, n, _ = actions.shape
    widths = sum(weight.shape[1] for weight in weights[1:-1])
    return observations.new_empty(len(weights[0]), batch, n), observations.new_empty(len(weights[0]) * batch * n * widths)


def _gradients_meta(
    gradient: th.Tensor,
    observations: th.Tensor,
    actions: th.Tensor,
    weights: list[th.Tensor],
    biases: list[th.Tensor],
    hidden: th.Tensor,
) -> list[th.Tensor]:
    return [th.empty_like(tensor) for tensor in (*weights, *biases)]


for _name, _kernels in {
    "action_table": (_table_cpu, _table_meta),
    "action_table_gradients": (_gradients_cpu, _gradients_meta),
}.items():
    for _key, _kernel in zip(("CPU", "Meta"), _kernels, strict=True):
        _library.impl(_name, _kernel, _key)


class _ActionTable(th.autograd.Function):
    """The table as a function of the critics' weights and biases."""

    @staticmethod
    def forward(ctx: Any, observations: th.Tensor, actions: th.Tensor, *parameters: th.Tensor) -> th.Tensor:
        n_layers = len(parameters) // 2
        weights, biases = list(parameters[:n_layers]), list(parameters[n_layers:])
        table, hidden = th.ops.sb3_dmpo.action_table(observations, actions, weights, biases)
        ctx.save_for_backward(observations, actions, hidden, *parameters)
        result: th.Tensor = table
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor | None, ...]:
        observations, actions, hidden, *parameters = ctx.saved_tensors
        n_layers = len(parameters) // 2
        weights, biases = parameters[:n_layers], parameters[n_layers:]
        gradients = th.ops.sb3_dmpo.action_table_gradients(gradient, observations, actions, weights, biases, hidden)
        return None, None, *gradients


def is_blockwise(observations: th.Tensor, actions: th.Tensor, parameters: list[nn.Parameter], activation: nn.Module) -> bool:
    """
    Whether :func:`action_table` can compute a table: single precision, ReLU, on the CPU, and gradients of the parameters are
    wanted and no others.

    :param observations: shape ``(batch, observation_size)``
    :param actions: shape ``(batch, n, action_size)``
    :param parameters: weights and biases of the critics
    :param activation: activation of their hidden layers
    """
    tensors = [observations, actions, *parameters]
    return (
        th.is_grad_enabled()
        and isinstance(activation, nn.ReLU)
        and len(parameters) > 2
        and all(tensor.dtype == th.float32 and tensor.device.type == "cpu" for tensor in tensors)
        and all(parameter.requires_grad for parameter in parameters)
        and not (observations.requires_grad or actions.requires_grad)
        # no torch.func transform around us
        and not any(th._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)
    )


def action_table(
    observations: th.Tensor, actions: th.Tensor, weights: list[nn.Parameter], biases: list[nn.Parameter]
) -> th.Tensor:
    """
    Values of several actions per observation, shape ``(n_critics, batch, n)``, differentiable once, by weights and biases.

    :param observations: shape ``(batch, observation_size)``
    :param actions: shape ``(batch, n, action_size)``
    :param weights: matrices of the layers, shape ``(n_critics, out, in)``, the last one with one output
    :param biases: shape ``(n_critics, 1, out)``
    """
    table: th.Tensor = _ActionTable.apply(observations, actions, *weights, *biases)  # type: ignore[no-untyped-call]
    return table


def action_values(critic: EnsembleCritic, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """
    Values of several actions per observation, shape ``(n_critics, batch, n)``: in blocks where that is possible (layer norms
    are not among the operators), else by :meth:`EnsembleCritic.all_actions`.

    :param critic: the critics
    :param observations: shape ``(batch, observation_size)``
    :param actions: shape ``(batch, n, action_size)``
    """
    weights, biases = critic.weights_and_biases()
    if not critic.norms and is_blockwise(observations, actions, [*weights, *biases], critic.activation):
        return action_table(observations, actions, weights, biases)
    return critic.all_actions(observations, actions)
