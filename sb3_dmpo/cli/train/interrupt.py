"""Ctrl-C while training: stop between two updates, so that what is saved is a whole state."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from stable_baselines3.common.callbacks import BaseCallback


class StopOnInterrupt(BaseCallback):
    """Ends training after the current update (or evaluation) on the first Ctrl-C, and at once on the second."""

    def __init__(self) -> None:
        super().__init__()
        self.requested = False
        self._training = False
        self._is_over = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take over Ctrl-C for the duration of a block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
            self._training = self._is_over = False

    def note_only(self) -> None:
        """From here on, while listening, nothing is stopped: training is over, and what came out of it has to be saved."""
        self._is_over = True

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._is_over:
            self.requested = True
            return
        if self.requested or not self._training:
            self.requested = True
            raise KeyboardInterrupt
        self.requested = True
        sys.stderr.write("\nStopping after this update (or evaluation), then saving. Ctrl-C again stops at once.\n")

    def _on_training_start(self) -> None:
        self._training = True

    def _on_step(self) -> bool:
        return not self.requested


@contextlib.contextmanager
def ignored_interrupts() -> Iterator[None]:
    """No Ctrl-C for the duration of a block, nor for the processes that are started in it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
