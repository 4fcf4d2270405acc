"""Metrics of the updates, and the guard that stops a run whose losses or weights are no longer finite."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch as th
from torch import nn

from sb3_dmpo.common.type_aliases import Metrics

_ADVICE = "training has diverged. Check the scale of the rewards, or lower the learning rate."

#: Updates whose metrics are added up at a time: a single small operation takes as long as one on all of these.
_ROWS = 64


class _Sums:
    """
    Running sums of metrics that come together, on their device.

    :param first: the first of them, which only say how many and where
    """

    def __init__(self, first: Metrics) -> None:
        example = next(iter(first.values()))
        options: dict[str, Any] = {"device": example.device, "dtype": th.promote_types(th.float32, example.dtype)}
        self.rows = th.empty((_ROWS, len(first)), **options)
        self.updates: list[int] = []
        # Not every device has double precision.
        self.sums = th.zeros(len(first), **options | ({"dtype": th.float64} if example.device.type in ("cpu", "cuda") else {}))
        self.count = 0
        #: First update with a value that is not finite, 0: none, and that value.
        self.bad_updates = th.zeros(len(first), dtype=th.int64, device=example.device)
        self.bad_values = th.zeros(len(first), **options)

    def add(self, metrics: Metrics, update: int) -> None:
        """Add the metrics of one update."""
        th.stack(list(metrics.values()), out=self.rows[len(self.updates)])
        self.updates.append(update)
        if len(self.updates) == _ROWS:
            self.fold()

    @th.no_grad()
    def fold(self) -> None:
        """Bring the sums up to date."""
        if not self.updates:
            return
        rows = self.rows[: len(self.updates)]
        is_bad = ~rows.isfinite()
        first = is_bad.int().argmax(dim=0)
        is_new = is_bad.any(dim=0) & (self.bad_updates == 0)
        updates = th.tensor(self.updates, device=rows.device)
        self.bad_updates = th.where(is_new, updates[first], self.bad_updates)
        self.bad_values = th.where(is_new, rows.gather(0, first.unsqueeze(0)).squeeze(0), self.bad_values)
        self.sums += rows.sum(dim=0, dtype=self.sums.dtype)
        self.count += len(self.updates)
        self.updates = []


class MetricAverager:
    """
    Means of the metrics of the updates, added up on their device. They are looked at by :meth:`means`, and every ``capacity``
    updates.

    :param capacity: updates between two looks, if nobody asks for the means
    """

    def __init__(self, capacity: int = 1000) -> None:
        self._capacity = capacity
        self._unchecked = 0
        # By names: delayed updates have more metrics than the others.
        self._groups: dict[tuple[str, ...], _Sums] = {}

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
        if names not in self._groups:
            self._groups[names] = _Sums(metrics)
        self._groups[names].add(metrics, update)
        self._unchecked += 1
        if self._unchecked >= self._capacity:
            self.check()

    def check(self) -> None:
        """
        Look at what was collected.

        :raises FloatingPointError: a metric is not finite; the message names it and its first bad update
        """
        self._unchecked = 0
        for group in self._groups.values():
            group.fold()
        found = [
            (update, name, value)
            for names, group in self._groups.items()
            for update, name, value in zip(group.bad_updates.tolist(), names, group.bad_values.tolist(), strict=True)
            if update > 0
        ]
        if found:
            update, name, value = min(found, key=lambda bad: bad[0])
            raise FloatingPointError(f"{name} is {value} at update {update}: {_ADVICE}")

    def means(self) -> dict[str, float]:
        """
        Mean of every metric since the last :meth:`clear`.

        :raises FloatingPointError: as :meth:`check`
        """
        self.check()
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for names, group in self._groups.items():
            for name, total in zip(names, group.sums.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + total
                counts[name] = counts.get(name, 0) + group.count
        return {name: total / counts[name] for name, total in sums.items()}

    def clear(self) -> None:
        """Forget what was collected."""
        self._groups.clear()
        self._unchecked = 0


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
