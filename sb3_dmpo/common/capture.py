"""
One update as one launch: all that an update does on a GPU is captured once as a CUDA graph and replayed from then on, the
drawing of its minibatch and its noise and the noting of its metrics included. The algorithms know nothing of it.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch as th

from sb3_dmpo.common.compilation import batch_tensors, undone, with_tensors
from sb3_dmpo.common.metrics import MetricAverager

CaptureOption = bool | Literal["auto"]
Results = TypeVar("Results")

#: The first runs of new code load kernels and allocate memory, which must not happen while a graph is captured.
WARM_UPS = 3


class NotRecordedError(RuntimeError):
    """The update could not be compiled, of which there has been a warning, and cannot be captured therefore."""


def missing_for_capture(device: th.device) -> str | None:
    """
    Why nothing can be captured on a device, or None.

    :param device: where the model is trained
    """
    if device.type != "cuda":
        return f"CUDA graphs need a CUDA device, and the model is on the device {device.type!r}"
    if not hasattr(th.cuda.CUDAGraph, "register_generator_state"):
        return f"PyTorch {th.__version__} does not capture the drawing of random numbers: install a newer one"
    return None


def choose_capture(option: CaptureOption, is_compiled: bool, obstacle: str | None) -> bool:
    """
    Whether the updates of a run that begins are captured.

    :param option: the constructor's ``capture``
    :param is_compiled: whether they are compiled
    :param obstacle: why they cannot be captured, or None
    :raises RuntimeError: it was asked for and is not possible
    """
    if option is True and obstacle is not None:
        raise RuntimeError(f'capture=True is not possible: {obstacle}. capture="auto" captures where it is.')
    return obstacle is None and (option is True or (option == "auto" and is_compiled))


def cuda_graph(
    body: Callable[[], Results], device: th.device, generators: Sequence[th.Generator]
) -> tuple[Callable[[], Any], Results]:
    """
    Capture operations: what does them again, and what they returned, whose tensors are filled anew each time.

    The body is run for real a few times before.

    :param body: launches operations on the device, and waits for none
    :param device: the CUDA device
    :param generators: those that the body draws from, apart from the global one
    """
    with th.cuda.device(device):
        # What is captured is not on the stream that everything else runs on, and the first runs must not be either.
        stream, usual = th.cuda.Stream(), th.cuda.current_stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(usual)
        try:
            with th.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    body()
        finally:
            usual.wait_stream(stream)
        graph = th.cuda.CUDAGraph()
        for generator in generators:
            # Without this, every replay would draw the same numbers.
            graph.register_generator_state(generator)
        try:
            # Other threads, which evaluate or copy data, may go on meanwhile.
            with th.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                results = body()
        except BaseException:
            # PyTorch leaves its own context half-way then.
            th.cuda.set_stream(usual)
            for generator in (*generators, th.cuda.default_generators[th.cuda.current_device()]):
                _take_back(generator)
            raise
    return graph.replay, results


def _take_back(generator: th.Generator) -> None:
    """
    Give a generator a state of its own again. A capture that breaks off keeps the one it had, and nothing can be drawn then.

    :param generator: a CUDA generator
    """
    fresh = th.Generator(device=generator.device)
    fresh.set_state(generator.get_state())
    generator.graphsafe_set_state(fresh.graphsafe_get_state())


class _Graph(NamedTuple):
    """
    A captured update.

    :param replay: does it again
    :param results: what it returned
    :param data: what it reads, which has to stay: else others' numbers could lie there later on
    """

    replay: Callable[[], Any]
    results: Any
    data: Sequence[th.Tensor]


class CapturedUpdates:
    """
    Replays of captured updates: decides, captures, and says so if that fails. There is one graph for every variant of the
    update, and a new one if anything lies elsewhere than when it was captured.

    :param metrics: what the updates write their metrics to
    """

    def __init__(self, *metrics: MetricAverager) -> None:
        self._metrics = metrics
        self._option: CaptureOption = "auto"
        self._state: list[th.Tensor] = []
        self._addresses: list[int] = []
        self._graphs: dict[Hashable, _Graph] = {}
        self._inputs: dict[Hashable, Any] = {}
        #: Whether updates are captured.
        self.is_on = False

    def __getstate__(self) -> dict[str, Any]:
        """Without the graphs, of which there are no copies."""
        return vars(self) | {"_addresses": [], "_graphs": {}, "_inputs": {}}

    def decide(self, option: CaptureOption, is_compiled: bool, obstacle: str | None) -> bool:
        """
        Choose whether the updates to come are captured.

        :param option: the constructor's ``capture``
        :param is_compiled: whether they are compiled
        :param obstacle: why they cannot be captured, or None
        :raises RuntimeError: it was asked for and is not possible
        """
        self._option, self.is_on = option, choose_capture(option, is_compiled, obstacle)
        return self.is_on

    def use(self, state: list[th.Tensor]) -> None:
        """
        Say what updates change.

        :param state: every tensor that the update reads or writes apart from the data
        """
        self._state = state

    def forget(self) -> None:
        """Capture everything anew."""
        self._graphs, self._inputs = {}, {}

    def input(self, variant: Hashable, batch: Any) -> Any:
        """
        The minibatch where the graph reads it, for one that was not drawn within.

        :param variant: see :meth:`run`
        :param batch: the minibatch with its noise
        """
        tensors = batch_tensors(batch)
        key = variant, tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if key not in self._inputs:
            self._inputs[key] = with_tensors(batch, [tensor.clone() for tensor in tensors])
        held = self._inputs[key]
        th._foreach_copy_(batch_tensors(held), tensors)
        return held

    def run(
        self,
        variant: Hashable,
        body: Callable[[], Results],
        device: th.device,
        generators: Sequence[th.Generator],
        data: Sequence[th.Tensor],
    ) -> Results | None:
        """
        What the body returned when it was captured, filled anew; None if it cannot be captured: then nothing has happened.

        :param variant: what decides which operations the body consists of
        :param body: one update
        :param device: where it runs
        :param generators: those that it draws from
        :param data: where it reads its data
        """
        addresses = list(map(th.Tensor.data_ptr, self._state))
        if addresses != self._addresses:
            self._addresses, self._graphs = addresses, {}
        key = variant, tuple(generators), tuple(tensor.data_ptr() for tensor in data)
        if key not in self._graphs:
            try:
                self._graphs[key] = _Graph(*self._capture(body, device, generators), data)
            except Exception as error:
                if self._option is True:
                    raise
                self.is_on = False
                self.forget()
                if not isinstance(error, NotRecordedError):
                    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                    warnings.warn(f"Capturing has failed ({reason}); the updates go on without, slower.", stacklevel=4)
                return None
        graph = self._graphs[key]
        graph.replay()
        results: Results = graph.results
        return results

    def _capture(
        self, body: Callable[[], Results], device: th.device, generators: Sequence[th.Generator]
    ) -> tuple[Callable[[], Any], Results]:
        # The first runs do updates for real; afterwards they have not happened.
        drawn = [generator.get_state() for generator in generators]
        for metrics in self._metrics:
            metrics.make_room()
        try:
            with undone(self._state):
                return cuda_graph(body, device, generators)
        finally:
            for generator, state in zip(generators, drawn, strict=True):
                generator.set_state(state)
            for metrics in self._metrics:
                metrics.rewind()
