"""
Several processes that train one model: each works on its share of every minibatch, and what is taken over the whole
minibatch (gradients, and the statistics inside of losses) is reduced over all of them.

The algorithms call :func:`mean`, :func:`total`, :func:`max`, :func:`min` and :func:`first` where a number belongs to the
minibatch and not to one of its rows. With one process these return what they were given: no operation is added, recorded or
compiled.
"""

import contextlib
import datetime
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch as th
import torch.distributed as dist

_T = TypeVar("_T")

#: Seconds between two signs of life of a process.
BEAT_SECONDS = 2.0
#: After so many seconds without one a process counts as lost.
SILENT_SECONDS = 30.0
#: The same once a reduction has failed, so that somebody has to be.
SILENT_AFTER_FAILURE = 10.0
#: Bound of a reduction. One process may evaluate or save while the others wait; that a process is lost is noticed otherwise.
_LONGEST_WAIT = datetime.timedelta(days=7)
#: What the number of a process and the number of all are called by ``torchrun``.
_RANK, _WORLD, _LOCAL_RANK, _LOCAL_WORLD = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"


class ProcessLostError(ConnectionError):
    """One of several processes that train together has ended, or its machine is gone. The message says which."""


def is_joined() -> bool:
    """Whether this process trains together with others."""
    return _Group.current is not None


def rank() -> int:
    """Number of this process, from 0 on."""
    return 0 if _Group.current is None else _Group.current.rank


def world() -> int:
    """Number of processes that train together."""
    return 1 if _Group.current is None else _Group.current.world


# What is taken over the whole minibatch ---------------------------------------------------------------------------


def mean(own: th.Tensor) -> th.Tensor:
    """
    Mean over the processes, without gradient; of means over equally many rows that is the mean over all rows.

    :param own: what this process has, of the same shape everywhere
    """
    return own if _Group.current is None else _Group.current.reduced(own, "sum") / _Group.current.world


def total(own: th.Tensor) -> th.Tensor:
    """
    Sum over the processes, without gradient.

    :param own: as of :func:`mean`
    """
    return own if _Group.current is None else _Group.current.reduced(own, "sum")


def max(own: th.Tensor) -> th.Tensor:
    """
    Largest over the processes, without gradient.

    :param own: as of :func:`mean`
    """
    return own if _Group.current is None else _Group.current.reduced(own, "max")


def min(own: th.Tensor) -> th.Tensor:
    """
    Smallest over the processes, without gradient.

    :param own: as of :func:`mean`
    """
    return own if _Group.current is None else _Group.current.reduced(own, "min")


def first(own: th.Tensor) -> th.Tensor:
    """
    What process 0 has: of a random number that belongs to the minibatch.

    :param own: as of :func:`mean`
    """
    return own if _Group.current is None else _Group.current.of_first(own)


def mean_gradients(gradients: list[th.Tensor]) -> list[th.Tensor]:
    """
    Means over the processes, all in one reduction.

    :param gradients: those of this process
    """
    if _Group.current is None:
        return gradients
    flat = mean(th.cat([gradient.reshape(-1) for gradient in gradients]))
    parts = th.split(flat, [gradient.numel() for gradient in gradients])
    return [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]


# What is agreed upon outside of updates ---------------------------------------------------------------------------


def share(n: int) -> int:
    """
    This process's share of n things; the shares add up to n.

    :param n: how many there are
    """
    return share_end(n, rank()) - share_end(n, rank() - 1)


def share_end(n: int, number: int) -> int:
    """
    How many of n things belong to the processes up to one.

    :param n: how many there are
    :param number: number of that process
    """
    return n * (number + 1) // world()


def check_divisible(name: str, n: int) -> None:
    """
    Refuse what cannot be divided equally.

    :param name: of the argument
    :param n: its value
    :raises ValueError: it cannot
    """
    if n % world() > 0:
        raise ValueError(f"{name} is {n}, and {world()} processes share it equally: choose a multiple of {world()}.")


def seed_of(*path: int) -> int:
    """
    A seed that this process does not share with the others.

    :param path: what else it depends on, none of it negative
    """
    return int(np.random.SeedSequence([*path, rank()]).generate_state(1, np.uint64)[0] >> 1)


def process_path() -> tuple[int, ...]:
    """What this process adds to the path of a stream of random numbers; with one process nothing."""
    return () if _Group.current is None else (rank() + 1,)


def mean_numbers(numbers: dict[str, float]) -> dict[str, float]:
    """
    Means over the processes, by name.

    :param numbers: those of this process, of the same names everywhere
    """
    if _Group.current is None or not numbers:
        return numbers
    return dict(zip(numbers, mean(th.tensor(list(numbers.values()), dtype=th.float64)).tolist(), strict=True))


def object_of_first(own: _T) -> _T:
    """
    What process 0 has, e.g. the name of a folder.

    :param own: what this process has
    """
    if _Group.current is None:
        return own
    values = [own]
    dist.broadcast_object_list(values, src=0, device=th.device("cpu"))
    return values[0]


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Process 0 goes through the block first, the others after it: what it downloads or decodes is there for them."""
    group = _Group.current
    if group is None:
        yield
        return
    if group.rank > 0:
        group.meet()
    yield
    if group.rank == 0:
        group.meet()


def check_not_shared(device: th.device) -> None:
    """
    Refuse to share a GPU with another process. All of a machine refuse, or none.

    :param device: where this process trains
    :raises ValueError: there are fewer GPUs than processes, or they are to use the same one
    """
    if not is_joined() or device.type != "cuda":
        return
    n_processes, n_devices = int(os.environ.get(_LOCAL_WORLD, world())), th.cuda.device_count()
    if n_processes > n_devices:
        raise ValueError(
            f"{n_processes} processes cannot share the {n_devices} GPUs of this machine: start as many as there are GPUs "
            f"(--nproc-per-node {n_devices}), or train on the CPU (device='cpu')."
        )
    if device.index not in (None, th.cuda.current_device()):
        raise ValueError(f"device is '{device}', and every process has a GPU of its own: write 'cuda'.")


@th.no_grad()
def copy_from_first(tensors: list[th.Tensor]) -> None:
    """
    Overwrite tensors by those of process 0.

    :param tensors: of the same shapes everywhere
    """
    if _Group.current is not None:
        for tensor in tensors:
            tensor.copy_(_Group.current.of_first(tensor))


class Consent:
    """
    Whether all go on. Any process can end the training; to ask after every update would cost time, so that an answer takes
    up to about half a second.
    """

    _SECONDS = 0.5

    def __init__(self) -> None:
        self._is_over = False
        self._calls, self._next_call, self._last_call = 0, 1, 0
        self._since = time.monotonic()

    def goes_on(self, own: bool) -> bool:
        """
        The answer after an update; the same one everywhere.

        :param own: whether this process wants to go on
        """
        if _Group.current is None:
            return own
        self._is_over |= not own
        self._calls += 1
        if self._calls < self._next_call:
            return True
        now = time.monotonic()
        is_over, seconds = max(th.tensor([float(self._is_over), now - self._since], dtype=th.float64)).tolist()
        n_calls = self._calls - self._last_call
        # From numbers that are the same everywhere.
        n_next = int(np.clip(n_calls * self._SECONDS / seconds, 1, 2 * n_calls)) if seconds > 0 else 1
        self._since, self._last_call, self._next_call = now, self._calls, self._calls + n_next
        return not is_over


# Processes -----------------------------------------------------------------------------------------------------------


def are_started() -> bool:
    """Whether ``torchrun`` (or whoever sets the same variables) has started more than one process."""
    return os.environ.get(_WORLD, "1") not in ("", "1") and _RANK in os.environ


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """
    Train together with the other processes that ``torchrun`` has started, for the duration of a block; without others it does
    nothing. Gradients go over gloo on CPUs and over NCCL on GPUs.

    :raises ProcessLostError: another process has ended
    """
    if _Group.current is not None or not are_started():
        yield
        return
    group = _Group.current = _Group()
    try:
        yield
        group.leave()
    except RuntimeError as error:
        if not _is_of_connection(error):
            raise
        raise ProcessLostError(group.lost() or f"The connection to the other processes has failed: {error}") from error
    finally:
        group.close()
        _Group.current = None


def _is_of_connection(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "onnection"))


class _Group:
    """The processes, seen from one of them."""

    #: That of this process, while it trains together with others.
    current: "_Group | None" = None

    def __init__(self) -> None:
        if th.cuda.is_available():
            local = int(os.environ.get(_LOCAL_RANK, os.environ[_RANK]))
            if local < th.cuda.device_count():
                th.cuda.set_device(local)
        store, self.rank, self.world = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        backend = "cpu:gloo,cuda:nccl" if th.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world, timeout=_LONGEST_WAIT)
        assert dist.group.WORLD is not None
        self._name: str = dist.group.WORLD.group_name
        self._ops: Any = th.ops._c10d_functional
        self._heartbeat = _Heartbeat(self.rank, self.world)
        self.meet()
        self._heartbeat.start()

    # As operations that can be recorded; those of torch.distributed change tensors behind the recorder's back.

    @th.no_grad()
    def reduced(self, own: th.Tensor, how: str) -> th.Tensor:
        """A reduction over all processes."""
        result: th.Tensor = self._ops.wait_tensor(self._ops.all_reduce(own.contiguous(), how, self._name))
        return result

    @th.no_grad()
    def of_first(self, own: th.Tensor) -> th.Tensor:
        """The tensor of process 0."""
        result: th.Tensor = self._ops.wait_tensor(self._ops.broadcast(own.contiguous(), 0, self._name))
        return result

    def meet(self) -> None:
        """Wait until all are here."""
        self.reduced(th.zeros(1), "sum")

    def lost(self) -> str | None:
        """After a failed reduction: which process is lost, in words; None if all give signs of life."""
        return self._heartbeat.wait_for_silence()

    def leave(self) -> None:
        """Say that this process ends as it should, so that nobody misses it."""
        self._heartbeat.leave()

    def close(self) -> None:
        """End without waiting for anybody."""
        self._heartbeat.stop()
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


class _Heartbeat(threading.Thread):
    """
    Gives signs of life and looks for those of the others. A reduction with a process that is gone may wait for ever (NCCL, or
    a machine without power), and nothing can be raised in a thread that waits: the whole process ends then.

    :param rank: number of this process
    :param world: number of processes
    """

    _LEFT = "left"

    def __init__(self, rank: int, world: int) -> None:
        super().__init__(daemon=True, name="sb3_dmpo heartbeat")
        self._rank, self._others = rank, [other for other in range(world) if other != rank]
        self._world = world
        self._stopped, self._beats, self._patience = threading.Event(), 0, SILENT_SECONDS
        self._seen: dict[int, str] = {}
        self._seen_at = dict.fromkeys(self._others, time.monotonic())
        #: Whether the main thread is about to raise what this thread finds out.
        self._is_awaited = False
        self._found: str | None = None
        self._found_something = threading.Event()
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # A connection of its own: requests of two threads on one would wait for each other.
        patience = datetime.timedelta(seconds=SILENT_SECONDS)
        store = dist.TCPStore(address, port, None, False, timeout=patience)  # type: ignore[attr-defined]
        prefix = f"sb3_dmpo/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
        self._beat("0")

    def run(self) -> None:
        """Until :meth:`stop` is called."""
        while not self._stopped.wait(BEAT_SECONDS):
            try:
                self._beats += 1
                self._beat(str(self._beats))
                silent = self._silent()
            except RuntimeError:
                # It is kept by torchrun, or else by process 0.
                self._report("The process that keeps the others together (torchrun's, or process 0) has ended.")
                return
            if silent is not None:
                self._report(
                    f"Process {silent} of 0 to {self._world - 1} has given no sign of life for {self._patience:.0f} seconds: "
                    "it was killed, or its machine is gone. What was saved before is whole."
                )
                return

    def _beat(self, value: str) -> None:
        self._store.set(str(self._rank), value)

    def _silent(self) -> int | None:
        now = time.monotonic()
        for other in self._others:
            value = self._store.get(str(other)).decode()
            if value != self._seen.get(other) or value == self._LEFT:
                self._seen[other], self._seen_at[other] = value, now
            elif now - self._seen_at[other] > self._patience:
                return other
        return None

    def _report(self, what: str) -> None:
        if self._stopped.is_set():
            return
        self._found = what
        self._found_something.set()
        if not self._is_awaited:
            sys.stderr.write(f"sb3_dmpo: error: {what}\n")
            sys.stderr.flush()
            os._exit(1)

    def wait_for_silence(self) -> str | None:
        """What was found, or None if all have gone on giving signs of life."""
        self._is_awaited = True
        self._patience = SILENT_AFTER_FAILURE
        self._found_something.wait(2.0 * SILENT_AFTER_FAILURE)
        return self._found

    def leave(self) -> None:
        """Say that this process will give no more signs of life."""
        self.stop()
        with contextlib.suppress(RuntimeError):
            self._beat(self._LEFT)

    def stop(self) -> None:
        """No more signs of life from here on."""
        self._stopped.set()
