"""The next minibatch of a dataset on disk is read while the update runs."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch as th

Gather = Callable[[th.Tensor], tuple[th.Tensor, ...]]


class _Read(NamedTuple):
    """What a thread reads: the kind of minibatch it is for, the rows that were drawn, and what they hold."""

    key: tuple[object, ...]
    drawn: th.Tensor
    result: "Future[tuple[th.Tensor, ...]]"


class ReadAhead:
    """
    A thread that gathers what will probably be asked for next. A guess that was wrong costs its time only: what has been
    drawn decides, and is gathered then.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._process = 0
        self._next: _Read | None = None

    def take(self, key: tuple[object, ...], drawn: th.Tensor, gather: Gather) -> tuple[th.Tensor, ...]:
        """
        What belongs to a minibatch.

        :param key: what kind of minibatch it is
        :param drawn: the numbers that were drawn, on the CPU
        :param gather: gets it
        """
        guess, self._next = self._next, None
        if guess is not None and self._process == os.getpid() and guess.key == key and th.equal(guess.drawn, drawn):
            return guess.result.result()
        return gather(drawn)

    def start(self, key: tuple[object, ...], drawn: th.Tensor, gather: Gather) -> None:
        """
        Read the next minibatch.

        :param key: what kind of minibatch it is
        :param drawn: the numbers that will be drawn
        :param gather: gets it
        """
        # A process that was forked off has no thread.
        if self._executor is None or self._process != os.getpid():
            self._executor, self._process = ThreadPoolExecutor(1, "read-ahead"), os.getpid()
        self._next = _Read(key, drawn, self._executor.submit(gather, drawn))
