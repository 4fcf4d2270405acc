"""
The table of the gate and its best entry on the CPU, as operators.

Compiled and eager updates compute the same numbers by them: rows are worked off in blocks that stay in the core's cache, and
what an observation contributes to a first layer is computed once and not once per component.
"""

from collections.abc import Sequence
from typing import Any

import torch as th
from torch.nn import functional as F

#: Rows of a block: two hidden layers of 256 units in float32 and a matrix between them fill half of a 2 MB cache.
BLOCK_ROWS = 512

_NETWORKS = "Tensor[] actor_weights, Tensor[] actor_biases, Tensor[] critic_weights, Tensor[] critic_biases"
_NETWORKS += ", Tensor[] critic_scales, Tensor[] critic_shifts"
_library: Any = th.library.Library("sb3_dmpo", "DEF")  # type: ignore[no-untyped-call]
_library.define(f"gate_table(Tensor observations, Tensor components, {_NETWORKS}) -> (Tensor, Tensor)")
_library.define(f"gate(Tensor observations, Tensor components, {_NETWORKS}) -> (Tensor, Tensor)")


Norm = tuple[th.Tensor, th.Tensor]


def normalized(hidden: th.Tensor, norm: Sequence[Norm]) -> th.Tensor:
    """
    A hidden layer behind its layer norm, or as it is, same shape.

    :param hidden: shape ``(rows, width)``
    :param norm: scale and shift ``(width,)`` of the one layer norm, or nothing
    """
    return F.layer_norm(hidden, hidden.shape[1:], *norm[0]) if norm else hidden


class _Network:
    """
    One network on pairs of an observation and something of its own, a component or an action.

    :param observations: shape ``(batch, observation_size)``
    :param weights: matrices of the layers, shape ``(out, in)``
    :param biases: shape ``(out,)``
    :param norms: scale and shift of the layer norm of every hidden layer; none without
    """

    def __init__(
        self, observations: th.Tensor, weights: list[th.Tensor], biases: list[th.Tensor], norms: Sequence[Norm] = ()
    ) -> None:
        size = observations.shape[1]
        self.own_weight = weights[0][:, size:].t()
        self.shared = th.addmm(biases[0], observations, weights[0][:, :size].t())
        self.layers = [(bias, weight.t()) for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True)]
        self.last_weight, self.last_bias = weights[-1], biases[-1].unsqueeze(1)
        self.norms = norms

    def reorder(self, order: th.Tensor) -> None:
        """
        Put the observations into another order.

        :param order: their indices
        """
        self.shared = self.shared.index_select(0, order)

    def _finish(self, hidden: th.Tensor, out: th.Tensor) -> None:
        for i, (bias, weight) in enumerate(self.layers):
            hidden = th.addmm(bias, normalized(hidden, self.norms[i : i + 1]), weight).relu_()
        hidden = normalized(hidden, self.norms[-1:])
        # With few outputs the transposed product is the faster one.
        th.addmm(self.last_bias, self.last_weight, hidden.t(), out=out)

    def of_components(self, components: th.Tensor) -> th.Tensor:
        """
        Outputs for the same own inputs with every observation, shape ``(outputs, batch, n)``.

        :param components: shape ``(n, own_size)``
        """
        own, n = th.mm(components, self.own_weight), len(components)
        step = max(BLOCK_ROWS // n, 1)
        room = own.new_empty(min(step, len(self.shared)), *own.shape)
        outputs = own.new_empty(len(self.last_weight), len(self.shared) * n)
        blocks = th.split(self.shared.unsqueeze(1), step), th.split(outputs, step * n, dim=1)
        for shared, out in zip(*blocks, strict=True):
            hidden = room[: len(shared)]
            th.add(shared, own, out=hidden).relu_()
            self._finish(hidden.flatten(0, 1), out)
        return outputs.view(len(outputs), -1, n)

    def of_actions(self, actions: th.Tensor, rows: slice = slice(None)) -> th.Tensor:
        """
        Outputs for actions of some observations, shape ``(rows, n)``; for networks with one output.

        :param actions: shape ``(action_size, rows, n)``
        :param rows: which observations
        """
        n, shared_rows = actions.shape[2], self.shared[rows].unsqueeze(1)
        step = max(BLOCK_ROWS // n, 1)
        room = self.shared.new_empty(min(step, len(shared_rows)) * n, self.shared.shape[1])
        outputs = self.shared.new_empty(1, len(shared_rows) * n)
        blocks = th.split(shared_rows, step), th.split(actions.flatten(1), step * n, dim=1), th.split(outputs, step * n, dim=1)
        for shared, own, out in zip(*blocks, strict=True):
            hidden = room[: own.shape[1]]
            th.mm(own.t(), self.own_weight, out=hidden)
            hidden.view(len(shared), n, -1).add_(shared).relu_()
            self._finish(hidden, out)
        return outputs.view(-1, n)


def _networks(observations: th.Tensor, layers: tuple[list[th.Tensor], ...]) -> tuple[_Network, list[_Network]]:
    """The actor and the critics."""
    actor_weights, actor_biases, critic_weights, critic_biases, scales, shifts = layers
    critics = [
        _Network(
            observations,
            [weight[j] for weight in critic_weights],
            [bias[j, 0] for bias in critic_biases],
            [(scale[j, 0], shift[j, 0]) for scale, shift in zip(scales, shifts, strict=True)],
        )
        for j in range(len(critic_weights[0]))
    ]
    return _Network(observations, actor_weights, actor_biases), critics


def _gate_table_cpu(observations: th.Tensor, components: th.Tensor, *layers: list[th.Tensor]) -> tuple[th.Tensor, th.Tensor]:
    actor, critics = _networks(observations, layers)
    actions = actor.of_components(components).tanh_()
    return th.stack([critic.of_actions(actions) for critic in critics]), actions.permute(1, 2, 0).contiguous()


def _gate_table_meta(observations: th.Tensor, components: th.Tensor, *layers: list[th.Tensor]) -> tuple[th.Tensor, th.Tensor]:
    (batch, n), n_critics = (len(observations), len(components)), len(layers[2][0])
    return observations.new_empty(n_critics, batch, n), observations.new_empty(batch, n, len(layers[0][-1]))


def _gate_cpu(observations: th.Tensor, components: th.Tensor, *layers: list[th.Tensor]) -> tuple[th.Tensor, th.Tensor]:
    """
    Of the values of all components only ``max_z min_j Q_j`` is wanted, and no Q is below the minimum. So one critic is
    evaluated on every component, the one that is lowest on the first of them, and the others on its favourite: if they say
    more, that is the maximum. Critics differ in what they think of a state by more than by what they think of the components
    there, so it nearly always is; the few observations left are computed in full.
    """
    actor, critics = _networks(observations, layers)
    actions = actor.of_components(components).tanh_()
    first = th.cat([critic.of_actions(actions[:, :, :1]) for critic in critics], dim=1)
    lowest, order = first.argmin(dim=1).sort()
    ends = th.searchsorted(lowest, th.arange(len(critics)), right=True).tolist()
    for critic in critics:
        critic.reorder(order)
    actions = actions.index_select(1, order)
    values = first.amin(dim=1, keepdim=True).index_select(0, order).repeat(1, len(components))
    groups = [
        (slice(start, end), critic) for critic, start, end in zip(critics, [0, *ends], ends, strict=False) if start < end
    ]
    for rows, critic in groups:
        values[rows, 1:] = critic.of_actions(actions[:, rows, 1:], rows)
    best, index = values.max(dim=1, keepdim=True)
    chosen = actions.gather(2, index.expand(len(actions), -1, -1))
    for rows, lowest_critic in groups:
        for critic in critics:
            if critic is not lowest_critic:
                best[rows] = th.minimum(best[rows], critic.of_actions(chosen[:, rows], rows))
    is_open = (values >= best).sum(dim=1) > 1
    if is_open.any():
        few = is_open.nonzero().squeeze(1)
        their_actions = actions.index_select(1, few)
        for critic in critics:
            critic.reorder(few)
        table = th.stack([critic.of_actions(their_actions) for critic in critics]).amin(dim=0)
        best[few], index = table.max(dim=1, keepdim=True)
        chosen[:, few] = their_actions.gather(2, index.expand(len(actions), -1, -1))
    back = order.argsort()
    return best.index_select(0, back), chosen.squeeze(2).t().index_select(0, back)


def _gate_meta(observations: th.Tensor, components: th.Tensor, *layers: list[th.Tensor]) -> tuple[th.Tensor, th.Tensor]:
    batch = len(observations)
    return observations.new_empty(batch, 1), observations.new_empty(batch, len(layers[0][-1]))


for _name, _kernels in {
    "gate_table": (_gate_table_cpu, _gate_table_meta),
    "gate": (_gate_cpu, _gate_meta),
}.items():
    for _key, _kernel in zip(("CPU", "Meta"), _kernels, strict=True):
        _library.impl(_name, _kernel, _key)
