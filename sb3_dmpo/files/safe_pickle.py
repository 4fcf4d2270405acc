"""
An unpickler for files from elsewhere. A pickle is a program; this one runs on a machine that can do little: classes are
looked up by exact names, only a few of them can be made, and those are made here from values that were checked, not by
what the file calls.
"""

import io
import pickle
import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, BinaryIO, ClassVar

from sb3_dmpo.files.safe_values import BUILDERS, MAKERS, UnsafeFileError, is_unfinished, make_device, shorten

#: Classes that files may name, by module. Naming one does not allow to call or to change it: see ``MAKERS``, ``BUILDERS``.
ALLOWED: dict[str, Collection[str]] = {
    "builtins": ("getattr",),
    "collections": ("deque", "OrderedDict"),
    "gymnasium.spaces.box": ("Box",),
    "gymnasium.spaces.dict": ("Dict",),
    "numpy": ("ndarray", "dtype", "float32", "float64", "int64"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.numeric": ("_frombuffer",),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy.core.numeric": ("_frombuffer",),
    "numpy.random._pcg64": ("PCG64",),
    "numpy.random._pickle": ("__bit_generator_ctor", "__generator_ctor"),
    "numpy.random.bit_generator": ("SeedSequence", "__pyx_unpickle_SeedSequence"),
    "stable_baselines3.common.buffers": ("DictReplayBuffer", "NStepReplayBuffer", "ReplayBuffer"),
    "stable_baselines3.common.type_aliases": ("TrainFreq", "TrainFrequencyUnit"),
    "stable_baselines3.common.utils": ("ConstantSchedule", "FloatSchedule", "LinearSchedule"),
    "torch": ("device",),
    "torch.nn.modules.activation": ("ELU", "GELU", "LeakyReLU", "Mish", "ReLU", "SELU", "SiLU", "Sigmoid", "Softplus", "Tanh"),
    "torch.optim.adam": ("Adam",),
    "torch.optim.adamw": ("AdamW",),
    "torch.optim.rmsprop": ("RMSprop",),
    "torch.optim.sgd": ("SGD",),
}
#: What the machine can do. Not among it: persistent ids, copyreg's extensions, calls with keywords, sets, old-style classes.
_OPCODES = (
    "PROTO FRAME STOP MARK POP POP_MARK DUP MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET NONE NEWTRUE NEWFALSE INT "
    "BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINBYTES BINBYTES8 SHORT_BINBYTES UNICODE "
    "BINUNICODE BINUNICODE8 SHORT_BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST EMPTY_DICT DICT GLOBAL "
    "STACK_GLOBAL"
)
_STANDARD: dict[int, Callable[[Any], None]] = pickle._Unpickler.dispatch
#: Depth and number of entries (references counted as often as they occur) of what comes out.
_MAX_DEPTH, _MAX_ENTRIES = 32, 10**6


class _BoundedFile:
    """A file whose reader does not set memory aside for more than there is in it."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.readline = file.readline

    def read(self, n: int) -> bytes:
        if n > self._size:
            raise EOFError("Ran out of input")
        return self._file.read(n)

    def readinto(self, buffer: bytearray) -> int:
        return self._file.readinto(buffer)  # type: ignore[attr-defined, no-any-return]


class AllowListUnpickler(pickle._Unpickler):
    """
    An unpickler that finds nothing but the classes that files of this package hold, and executes none of them.

    :param file: the pickle
    :param classes: further classes that may be named, e.g. the policies of the algorithm that loads
    """

    #: Functions that the machine knows besides those of ``MAKERS``.
    functions: ClassVar[Mapping[tuple[str, str], Callable[..., Any]]] = {}
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        getattr(pickle, name)[0]: _STANDARD[getattr(pickle, name)[0]] for name in _OPCODES.split()
    }

    def __init__(self, file: BinaryIO, classes: Collection[type] = ()) -> None:
        self._size = file.seek(0, io.SEEK_END)
        file.seek(0)
        super().__init__(_BoundedFile(file, self._size))
        self._classes = {(cls.__module__, cls.__qualname__): cls for cls in classes}

    def load(self) -> Any:
        """
        The object in the file.

        :raises UnsafeFileError: it asks for something that is not allowed
        :raises Exception: whatever a damaged pickle leads to
        """
        try:
            value = super().load()
        except KeyError as error:
            # What the loop of the base does with an operation that is not in the table.
            if error.args and type(error.args[0]) is int:
                raise UnsafeFileError(f"asks for the operation {error.args[0]:#x}") from None
            raise
        _count_entries(value, 0, {})
        return value

    def find_class(self, module: str, name: str) -> Any:
        """
        The object behind a global of the pickle.

        :raises UnsafeFileError: it is not on the list
        """
        if (module, name) in self._classes:
            return self._classes[module, name]
        if name in ALLOWED.get(module, ()):
            # The functions that pickles call are known by name only: their counterparts here take their place.
            return MAKERS[name] if name in MAKERS else super().find_class(module, name)
        raise UnsafeFileError(f"asks for {shorten(module)[1:-1]}.{shorten(name)[1:-1]}")

    def _make(self) -> None:
        arguments = self.stack.pop()  # type: ignore[attr-defined]
        cls = self.stack[-1]  # type: ignore[attr-defined]
        maker = MAKERS.get(cls) if isinstance(cls, type) else cls
        if isinstance(cls, type) and (cls.__module__, cls.__qualname__) == ("torch", "device"):
            self.stack[-1] = make_device(cls, *arguments)  # type: ignore[attr-defined]
            return
        makers = (*MAKERS.values(), *self.functions.values())
        if maker is None or not any(maker is known for known in makers):
            raise UnsafeFileError(f"asks for a call of {shorten(cls)}")
        if type(arguments) is not tuple:
            raise UnsafeFileError(f"asks for a call with {shorten(arguments)}")
        self.stack[-1] = maker(*arguments)  # type: ignore[attr-defined]

    def _build(self) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        instance = self.stack[-1]  # type: ignore[attr-defined]
        for cls, builder in BUILDERS.items():
            # Never on a class: what is set on it would stay after loading.
            if isinstance(instance, cls):
                return builder(instance, state)
        raise UnsafeFileError(f"asks for a change of {shorten(instance)}")

    def _append(self) -> None:
        if type(self.stack[-2]) not in (list, deque):  # type: ignore[attr-defined]
            raise UnsafeFileError("appends to something that is no list")
        _STANDARD[pickle.APPEND[0]](self)

    def _appends(self) -> None:
        if type(self.metastack[-1][-1]) not in (list, deque):  # type: ignore[attr-defined]
            raise UnsafeFileError("appends to something that is no list")
        _STANDARD[pickle.APPENDS[0]](self)

    def _setitem(self) -> None:
        if type(self.stack[-3]) not in (dict, OrderedDict):  # type: ignore[attr-defined]
            raise UnsafeFileError("sets items of something that is no dict")
        _STANDARD[pickle.SETITEM[0]](self)

    def _setitems(self) -> None:
        if type(self.metastack[-1][-1]) not in (dict, OrderedDict):  # type: ignore[attr-defined]
            raise UnsafeFileError("sets items of something that is no dict")
        _STANDARD[pickle.SETITEMS[0]](self)

    def _bytearray(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        if length > self._size:
            raise EOFError("Ran out of input")
        content = bytearray(length)
        self.readinto(content)  # type: ignore[attr-defined]
        self.append(content)  # type: ignore[attr-defined]

    dispatch |= {pickle.BYTEARRAY8[0]: _bytearray}
    dispatch |= {pickle.REDUCE[0]: _make, pickle.NEWOBJ[0]: _make, pickle.BUILD[0]: _build}
    dispatch |= {pickle.APPEND[0]: _append, pickle.APPENDS[0]: _appends}
    dispatch |= {pickle.SETITEM[0]: _setitem, pickle.SETITEMS[0]: _setitems}


def _count_entries(value: Any, depth: int, counted: dict[int, int]) -> int:
    """
    Number of entries of nested containers, every reference counted: a small pickle can refer to a list ten times, to the
    list of these ten times, and so on.

    :param value: anything
    :param depth: how deep it lies
    :param counted: counts by id; containers that are being counted have -1
    :raises UnsafeFileError: too many, too deep, or a container that contains itself
    """
    if is_unfinished(value):
        raise UnsafeFileError(f"leaves a {type(value).__name__} without content")
    if not isinstance(value, list | tuple | dict | deque):
        return 1
    if id(value) in counted:
        if counted[id(value)] < 0:
            raise UnsafeFileError("holds a container that contains itself")
        return counted[id(value)]
    if depth > _MAX_DEPTH:
        raise UnsafeFileError("holds containers that are nested too deep")
    counted[id(value)] = -1
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    total = 1
    for entry in inner:
        total += _count_entries(entry, depth + 1, counted)
        if total > _MAX_ENTRIES:
            raise UnsafeFileError("holds too many entries")
    counted[id(value)] = total
    return total
