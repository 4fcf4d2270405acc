"""
The update as compiled code: ``update`` is recorded once as one graph of tensor operations, gradients, optimizer steps and
soft updates included, and ``torch.compile`` turns the graph into code. The algorithms know nothing of it.
"""

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch as th
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from sb3_dmpo.common.type_aliases import Metrics

CompileOption = bool | Literal["auto"]

#: With ``compile="auto"`` shorter runs on a CPU are not compiled: compiling takes a minute or two.
AUTO_UPDATES = 100_000


def missing_for_recording(optimizers: list[th.optim.Optimizer]) -> str | None:
    """
    Why an update cannot be recorded, or None.

    :param optimizers: the optimizers of the algorithm
    """
    for optimizer in optimizers:
        group, kind = optimizer.param_groups[0], type(optimizer)
        is_plain = kind in (th.optim.Adam, th.optim.AdamW) and not (group["amsgrad"] or group["maximize"])
        if not is_plain or (kind is th.optim.Adam and group["weight_decay"]):
            return f"only plain Adam and AdamW are compiled, the optimizer here is {type(optimizer).__name__}"
    return None


def missing_for_compilation(optimizers: list[th.optim.Optimizer], device: th.device) -> str | None:
    """
    Why an update cannot be compiled here, or None.

    :param optimizers: the optimizers of the algorithm
    :param device: where it is trained
    """
    has_compiler = device.type != "cpu" or shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    return missing_for_recording(optimizers) or (None if has_compiler else "there is no C++ compiler: install g++, or set CXX")


def choose_compilation(option: CompileOption, n_updates: int, obstacle: str | None, device: th.device) -> bool:
    """
    Whether a run that begins is compiled.

    :param option: the constructor's ``compile``
    :param n_updates: updates that the run will do
    :param obstacle: see :func:`missing_for_compilation`
    :param device: where it is trained
    :raises RuntimeError: it was asked for and is not possible
    """
    wanted = option is True or (option == "auto" and (device.type == "cuda" or n_updates >= AUTO_UPDATES))
    if wanted and obstacle is not None:
        if option is True:
            raise RuntimeError(f"compile=True is not possible: {obstacle}.")
        warnings.warn(f"The updates are not compiled ({obstacle}); they are slower for it.", stacklevel=2)
        return False
    return wanted


def batch_tensors(batch: Any) -> list[th.Tensor]:
    """All tensors of a batch in a fixed order, those of its noise last."""
    return [*(value for value in batch if isinstance(value, th.Tensor)), *batch.noise.values()]


def with_tensors(batch: Any, tensors: list[th.Tensor]) -> Any:
    """
    A batch with other tensors.

    :param batch: the batch
    :param tensors: in the order of :func:`batch_tensors`
    """
    rest = iter(tensors)
    fields = {name: next(rest) for name, value in batch._asdict().items() if isinstance(value, th.Tensor)}
    return batch._replace(**fields, noise={name: next(rest) for name in batch.noise})


@contextlib.contextmanager
def undone(state: Sequence[th.Tensor]) -> Iterator[None]:
    """
    Put tensors back to what they were before the block.

    :param state: what the block changes
    """
    before = [tensor.detach().clone() for tensor in state]
    try:
        yield
    finally:
        with th.no_grad():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)


def may_go_on_without(option: CompileOption, error: Exception) -> bool:
    """
    Whether an update has not happened because the compiler failed, and compiled code had not been insisted on; warns then.

    :param option: the constructor's ``compile``
    :param error: what the compiled update raised; compiling comes before anything is updated
    """
    # Importing it takes a second, which not every program should pay; here it is there already.
    from torch._dynamo.exc import TorchDynamoException

    if option is True or not isinstance(error, TorchDynamoException):
        return False
    reason = str(error).strip().splitlines()[0]
    warnings.warn(f"Compiling has failed ({reason}); the updates go on without, slower.", stacklevel=3)
    return True


class CompiledUpdate:
    """
    Runs updates, as they are written or as compiled code: decides, records, compiles, and goes on without if that fails.

    There is one graph for every variant of the update (delayed part or not, ...).

    :param update: from a batch to metrics, changing tensors in place
    """

    def __init__(self, update: Callable[[Any], Metrics]) -> None:
        self._update = update
        self._option: CompileOption = "auto"
        self._state: list[th.Tensor] = []
        self._settings: dict[str, Any] = {}
        self._graphs: dict[Any, tuple[Callable[..., list[th.Tensor]], list[str]]] = {}
        #: Whether updates run as recorded graphs.
        self.is_on = False
        #: Whether those are compiled.
        self.is_compiled = False
        #: Whether they were to be, and the compiler has failed.
        self.has_failed = False
        self.is_recording = False

    def decide(
        self,
        option: CompileOption,
        before: bool | None,
        n_updates: int,
        optimizers: list[th.optim.Optimizer],
        device: th.device,
    ) -> bool:
        """
        Choose whether the updates to come are compiled.

        :param option: the constructor's ``compile``
        :param before: what was chosen when the run began, if it goes on
        :param n_updates: updates to come
        :param optimizers: the optimizers of the algorithm
        :param device: where it is trained
        :raises RuntimeError: it was asked for and is not possible
        """
        self._option, self.has_failed = option, False
        wanted = option if before is None else before
        self.is_compiled = choose_compilation(wanted, n_updates, missing_for_compilation(optimizers, device), device)
        self.is_on = self.is_compiled
        return self.is_compiled

    def use(self, state: list[th.Tensor], settings: dict[str, Any]) -> bool:
        """
        Say what updates change; graphs that were made for these very tensors and settings are kept. Whether they are.

        :param state: every tensor that the update reads or writes apart from the batch, each of them once
        :param settings: plain values that the update depends on, by name
        """
        if list(map(id, state)) == list(map(id, self._state)) and settings == self._settings:
            return True
        self._state, self._settings, self._graphs = state, settings, {}
        return False

    def __call__(self, batch: Any, variant: Any) -> Metrics:
        """
        Metrics of one update.

        :param batch: the minibatch with its noise
        :param variant: what decides which operations the update consists of
        """
        if not self.is_on:
            return self._update(batch)
        try:
            return self._run(batch, variant)
        except Exception as error:
            if not may_go_on_without(self._option, error):
                raise
            self.is_on, self.is_compiled, self.has_failed = False, False, True
            return self._update(batch)

    def _run(self, batch: Any, variant: Any) -> Metrics:
        inputs = batch_tensors(batch)
        key = variant, self.is_compiled
        if key not in self._graphs:
            graph, names = self.record(batch, inputs)
            self._graphs[key] = th.compile(graph, fullgraph=True, dynamic=False) if self.is_compiled else graph, names
        run, names = self._graphs[key]
        with th.no_grad():
            return dict(zip(names, run(*inputs, *self._state), strict=True))

    def record(self, batch: Any, inputs: list[th.Tensor]) -> tuple[GraphModule, list[str]]:
        """
        The update as a graph of tensor operations, which takes ``inputs`` and the state, and the names of what it returns.

        :param batch: the minibatch with its noise
        :param inputs: its tensors
        """
        names: list[str] = []

        def recorded(*tensors: th.Tensor) -> list[th.Tensor]:
            metrics = self._update(with_tensors(batch, list(tensors[: len(inputs)])))
            names[:] = metrics
            return [value.detach().clone() for value in metrics.values()]

        # Recording does the update for real; afterwards it has not happened.
        self.is_recording = True
        try:
            with undone(self._state):
                return make_fx(recorded)(*inputs, *self._state), names
        finally:
            self.is_recording = False
