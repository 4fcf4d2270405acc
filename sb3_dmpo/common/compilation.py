"""
The update as compiled code: ``update`` is recorded once as one graph of tensor operations, gradients, optimizer steps and
soft updates included, and ``torch.compile`` turns the graph into code. The algorithms know nothing of it.
"""

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch as th
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from sb3_dmpo.common.optimizers import is_plain_adam
from sb3_dmpo.common.type_aliases import Metrics

CompileOption = bool | Literal["auto"]

#: Older versions of PyTorch were not tried with it.
CPP_WRAPPER_SINCE = "2.13"
#: With ``compile="auto"`` shorter runs on a CPU are not compiled: compiling takes a minute or two.
AUTO_UPDATES = 100_000


def missing_for_recording(optimizers: list[th.optim.Optimizer]) -> str | None:
    """
    Why an update cannot be recorded, or None.

    :param optimizers: the optimizers of the algorithm
    """
    for optimizer in optimizers:
        decays = type(optimizer) is th.optim.Adam and optimizer.param_groups[0]["weight_decay"]
        if decays or not is_plain_adam(optimizer):
            return f"only plain Adam and AdamW are compiled, the optimizer here is {type(optimizer).__name__}"
    return None


def missing_for_compilation(optimizers: list[th.optim.Optimizer], device: th.device) -> str | None:
    """
    Why an update cannot be compiled here, or None.

    :param optimizers: the optimizers of the algorithm
    :param device: where it is trained
    """
    obstacle = missing_for_recording(optimizers)
    if obstacle is not None:
        return obstacle
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        return "there is no C++ compiler: install g++, or set CXX"
    return None


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


def _with_tensors(batch: Any, tensors: list[th.Tensor]) -> Any:
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


def _product_and_bias(bias: th.Tensor, left: th.Tensor, right: th.Tensor, **factors: float) -> Any:
    """``addmm`` in two steps, so that the bias goes with the activation and is not copied first."""
    if factors:
        return NotImplemented
    # The compiler would join a product and a sum again.
    return th.mm(left, right) - (-bias)


#: What is recorded instead of an operator of this package: plain operations. Filled by the modules that define operators.
PLAIN_OPERATIONS: dict[Any, Callable[..., Any]] = {}


def _suits_cpp_wrapper(graph: GraphModule, device: th.device) -> bool:
    """
    Whether what calls the kernels can be C++ too, which takes less time for it than Python.

    :param graph: must be without operators of this package, whose lists of tensors it does not know
    :param device: where the graph runs
    """
    has_own_operators = any(getattr(node.target, "namespace", None) == "sb3_dmpo" for node in graph.graph.nodes)
    return device.type == "cpu" and not has_own_operators and th.__version__ >= CPP_WRAPPER_SINCE


def compiled_graph(graph: GraphModule, device: th.device) -> Callable[..., list[th.Tensor]]:
    """
    A recorded graph as compiled code.

    :param graph: the graph
    :param device: where it runs
    """
    options: dict[str, Any] = {}
    if _suits_cpp_wrapper(graph, device):
        options["cpp_wrapper"] = True
    if hasattr(th.compiler, "skip_all_guards_unsafe"):
        # What is recorded never changes, nor do the shapes and devices of what it is called with.
        options["guard_filter_fn"] = th.compiler.skip_all_guards_unsafe
    run: Callable[..., list[th.Tensor]] = th.compile(graph, fullgraph=True, dynamic=False, options=options or None)
    return run


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
        self._graphs: dict[Any, tuple[Callable[..., list[th.Tensor]], list[str]]] = {}
        #: Whether updates are compiled.
        self.is_on = False
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
        self.is_on = choose_compilation(wanted, n_updates, missing_for_compilation(optimizers, device), device)
        return self.is_on

    def use(self, state: list[th.Tensor]) -> None:
        """
        Say what updates change; graphs that were made for these very tensors are kept.

        :param state: every tensor that the update reads or writes apart from the batch
        """
        state = list({id(tensor): tensor for tensor in state}.values())
        if list(map(id, state)) != list(map(id, self._state)):
            self._state, self._graphs = state, {}

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
            self.is_on, self.has_failed = False, True
            return self._update(batch)

    def _run(self, batch: Any, variant: Any) -> Metrics:
        inputs = batch_tensors(batch)
        if variant not in self._graphs:
            graph, names = self.record(batch, inputs, {**PLAIN_OPERATIONS, th.ops.aten.addmm.default: _product_and_bias})
            self._graphs[variant] = compiled_graph(graph, self._state[0].device), names
        run, names = self._graphs[variant]
        with th.no_grad():
            return dict(zip(names, run(*inputs, *self._state), strict=True))

    def record(
        self, batch: Any, inputs: list[th.Tensor], instead: Mapping[Any, Callable[..., Any]] | None = None
    ) -> tuple[GraphModule, list[str]]:
        """
        The update as a graph of tensor operations, which takes ``inputs`` and the state, and the names of what it returns.

        :param batch: the minibatch with its noise
        :param inputs: its tensors
        :param instead: what to record instead of some operators
        """
        names: list[str] = []

        def recorded(*tensors: th.Tensor) -> list[th.Tensor]:
            metrics = self._update(_with_tensors(batch, list(tensors[: len(inputs)])))
            names[:] = metrics
            return [value.detach().clone() for value in metrics.values()]

        # Recording does the update for real; afterwards it has not happened.
        self.is_recording = True
        try:
            with undone(self._state):
                return make_fx(recorded, instead)(*inputs, *self._state), names
        finally:
            self.is_recording = False
