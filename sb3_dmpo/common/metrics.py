"""Metrics of the updates, and the guard that stops a run whose losses or weights are no longer finite."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch as th
from torch import nn

from sb3_dmpo.common.type_aliases import Metrics

_ADVICE = "training has diverged. Check the scale of the rewards, or lower the learning rate."


class _Block:
    """Rows of the metrics that come together, in one piece of memory on their device."""

    def __init__(self, first: Metrics, capacity: int) -> None:
        dtype = th.promote_types(th.float32, next(iter(first.values())).dtype)
        self.rows = th.empty((capacity, len(first)), dtype=dtype, device=next(iter(first.values())).device)
        self.updates: list[int] = []
        self.sums = [0.0] * len(first)
        self.count = 0

    @property
    def is_full(self) -> bool:
        return len(self.updates) == len(self.rows)

    def fold(self, names: Iterable[str]) -> tuple[int, str, float] | None:
        """Fetch the rows and add them to the sums; returns the first update with a value that is not finite."""
        values = self.rows[: len(self.updates)].double().cpu()
        bad = (~th.isfinite(values)).nonzero()
        found = None
        if len(bad):
            row, column = bad[0].tolist()
            found = self.updates[row], list(names)[column], values[row, column].item()
        self.sums = [total + column for total, column in zip(self.sums, values.sum(dim=0).tolist(), strict=True)]
        self.count += len(self.updates)
        self.updates = []
        return found


class MetricAverager:
    """
    Collects the metrics of the updates on their device. They are fetched by :meth:`means`, and every ``capacity`` updates.

    They are copied into a block of memory: thousands of small tensors that live until the next log, between the large ones
    that come and go with every update, would scatter the heap.

    :param capacity: updates between two fetches, if nobody asks for the means
    """

    def __init__(self, capacity: int = 1000) -> None:
        self._capacity = capacity
        self._blocks: dict[tuple[str, ...], _Block] = {}
        self._first_bad: tuple[int, str, float] | None = None

    @th.no_grad()
    def append(self, metrics: Metrics, update: int) -> None:
        """
        Add the metrics of one update.

        :param metrics: 0-d tensors by name
        :param update: counter of the update
        :raises FloatingPointError: a metric of the last ``capacity`` updates is not finite
        """
        if not metrics:
            return
        names = tuple(metrics)
        block = self._blocks.get(names)
        if block is None:
            block = self._blocks[names] = _Block(metrics, self._capacity)
        th.stack(list(metrics.values()), out=block.rows[len(block.updates)])
        block.updates.append(update)
        if block.is_full:
            self.check()

    def check(self) -> None:
        """
        Look at what was collected.

        :raises FloatingPointError: a metric is not finite; the message names it and its first bad update
        """
        found = [block.fold(names) for names, block in self._blocks.items() if block.updates]
        self._first_bad = min([bad for bad in (self._first_bad, *found) if bad is not None], default=None)
        if self._first_bad is not None:
            update, name, value = self._first_bad
            raise FloatingPointError(f"{name} is {value} at update {update}: {_ADVICE}")

    def means(self) -> dict[str, float]:
        """
        Mean of every metric since the last :meth:`clear`.

        :raises FloatingPointError: as :meth:`check`
        """
        self.check()
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for names, block in self._blocks.items():
            for name, total in zip(names, block.sums, strict=True):
                sums[name] = sums.get(name, 0.0) + total
                counts[name] = counts.get(name, 0) + block.count
        return {name: total / counts[name] for name, total in sums.items() if counts[name]}

    def clear(self) -> None:
        """Forget what was collected; the memory is kept."""
        for block in self._blocks.values():
            block.updates, block.sums, block.count = [], [0.0] * len(block.sums), 0
        self._first_bad = None


def _tensors(module: nn.Module, optimizers: Mapping[str, th.optim.Optimizer]) -> Iterator[tuple[str, th.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
    for name, optimizer in optimizers.items():
        for index, state in enumerate(optimizer.state.values()):
            yield from ((f"{name}_optimizer's {key} {index}", value) for key, value in state.items() if _is_numbers(value))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, th.Tensor) and value.is_floating_point()


@th.no_grad()
def check_finite(module: nn.Module, optimizers: Mapping[str, th.optim.Optimizer], update: int) -> None:
    """
    Check weights and optimizer states, with one wait for the device.

    :param module: all networks
    :param optimizers: by name
    :param update: counter of the last update
    :raises FloatingPointError: a value is not finite; the message names where
    """
    named = [(name, tensor) for name, tensor in _tensors(module, optimizers) if _is_numbers(tensor) and tensor.numel()]
    by_kind: dict[tuple[th.device, th.dtype], list[tuple[str, th.Tensor]]] = {}
    for name, tensor in named:
        by_kind.setdefault((tensor.device, tensor.dtype), []).append((name, tensor))
    for group in by_kind.values():
        largest = th.stack(th._foreach_norm([tensor for _, tensor in group], math.inf)).tolist()
        for (name, _), value in zip(group, largest, strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(f"{name} holds {value} after update {update}: {_ADVICE}")
