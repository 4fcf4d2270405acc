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
    :param capacity: largest number of updates between two looks
    """

    def __init__(self, first: Metrics, capacity: int) -> None:
        example = next(iter(first.values()))
        options: dict[str, Any] = {"device": example.device, "dtype": th.promote_types(th.float32, example.dtype)}
        self.rows = th.empty((max(capacity, _ROWS), len(first)), **options)
        #: Where captured updates write their next row.
        self.place = th.zeros(1, dtype=th.int64, device=example.device)
        self.is_captured = False
        # Not every device has double precision.
        self.sums = th.zeros(len(first), **options | ({"dtype": th.float64} if example.device.type in ("cpu", "cuda") else {}))
        self.bad_values = th.zeros(len(first), **options)
        #: The first value that is not finite: in which of the updates since the last look, counted from 1; 0: none.
        self.bad_places = th.zeros(len(first), dtype=th.int64, device=example.device)
        self.count = 0
        #: Counters of the updates since the last look.
        self.updates: list[int] = []
        self._n_folded = 0

    def add(self, metrics: Metrics, update: int) -> None:
        """Add the metrics of one update."""
        th.stack(list(metrics.values()), out=self.rows[self.n_rows])
        self.updates.append(update)
        if self.n_rows == _ROWS:
            self.fold()

    def write(self, metrics: Metrics) -> None:
        """Write the metrics of an update that is being captured, in operations that write one row further every time."""
        self.is_captured = True
        values = th.stack(list(metrics.values())).to(self.rows.dtype)
        self.rows.index_copy_(0, self.place, values.unsqueeze(0))
        self.place.add_(1)

    @property
    def n_rows(self) -> int:
        """Number of rows that are not in the sums yet."""
        return len(self.updates) - self._n_folded

    @th.no_grad()
    def fold(self) -> None:
        """Bring the sums up to date; nothing in it waits for the device."""
        if self.n_rows == 0:
            return
        rows = self.rows[: self.n_rows]
        is_bad = ~rows.isfinite()
        first = is_bad.int().argmax(dim=0)
        is_new = is_bad.any(dim=0) & (self.bad_places == 0)
        self.bad_places = th.where(is_new, first + self._n_folded + 1, self.bad_places)
        self.bad_values = th.where(is_new, rows.gather(0, first.unsqueeze(0)).squeeze(0), self.bad_values)
        self.sums += rows.sum(dim=0, dtype=self.sums.dtype)
        self.count += self.n_rows
        self._n_folded = len(self.updates)
        self.rewind()

    def rewind(self) -> None:
        """Let captured updates write behind the rows that are there."""
        if self.is_captured:
            self.place.fill_(self.n_rows)

    def bad(self) -> list[tuple[int, int, float]]:
        """For every value that was not finite: counter of the update, number of the metric, and the value."""
        found = enumerate(zip(self.bad_places.tolist(), self.bad_values.tolist(), strict=True))
        return [(self.updates[place - 1], i, value) for i, (place, value) in found if place > 0]

    def forget_updates(self) -> None:
        """Begin anew with counting the updates, none of which was bad."""
        self.updates, self._n_folded = [], 0

    def clear(self) -> None:
        """Begin anew, where everything lies now."""
        for tensor in (self.sums, self.bad_values, self.bad_places):
            tensor.zero_()
        self.count = 0
        self.forget_updates()
        self.rewind()


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

    def _group(self, metrics: Metrics) -> _Sums:
        names = tuple(metrics)
        if names not in self._groups:
            self._groups[names] = _Sums(metrics, self._capacity)
        return self._groups[names]

    @th.no_grad()
    def append(self, metrics: Metrics, update: int) -> None:
        """
        Add the metrics of one update.

        :param metrics: 0-d tensors by name
        :param update: counter of the update
        :raises FloatingPointError: a metric of the last ``capacity`` updates is not finite
        """
        if metrics:
            self._group(metrics).add(metrics, update)
            self._count()

    @th.no_grad()
    def write(self, metrics: Metrics) -> None:
        """
        As :meth:`append`, in operations that can be captured; :meth:`written` has to follow every time they are done.

        :param metrics: 0-d tensors by name
        """
        if metrics:
            self._group(metrics).write(metrics)

    def written(self, names: tuple[str, ...], update: int) -> None:
        """
        Take into account what a captured update has written.

        :param names: names of its metrics
        :param update: counter of the update
        :raises FloatingPointError: as :meth:`append`
        """
        if names:
            self._groups[names].updates.append(update)
            self._count()

    def make_room(self) -> None:
        """Bring the sums up to date, so that the rows are free."""
        for group in self._groups.values():
            group.fold()

    def rewind(self) -> None:
        """Forget what was written and not followed by :meth:`written`."""
        for group in self._groups.values():
            group.rewind()

    def _count(self) -> None:
        self._unchecked += 1
        if self._unchecked >= self._capacity:
            self.check()

    def check(self) -> None:
        """
        Look at what was collected.

        :raises FloatingPointError: a metric is not finite; the message names it and its first bad update
        """
        self._unchecked = 0
        self.make_room()
        groups = [(names, group) for names, group in self._groups.items() if group.count > 0]
        found = [(update, names[i], value) for names, group in groups for update, i, value in group.bad()]
        if found:
            update, name, value = min(found, key=lambda bad: bad[0])
            raise FloatingPointError(f"{name} is {value} at update {update}: {_ADVICE}")
        for group in self._groups.values():
            group.forget_updates()

    def means(self) -> dict[str, float]:
        """
        Mean of every metric since the last :meth:`clear`.

        :raises FloatingPointError: as :meth:`check`
        """
        self.check()
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for names, group in self._groups.items():
            if group.count == 0:
                continue
            for name, total in zip(names, group.sums.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + total
                counts[name] = counts.get(name, 0) + group.count
        return {name: total / counts[name] for name, total in sums.items()}

    def clear(self) -> None:
        """Forget what was collected. Captured updates go on writing where they did."""
        self._groups = {names: group for names, group in self._groups.items() if group.is_captured}
        for group in self._groups.values():
            group.clear()
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
