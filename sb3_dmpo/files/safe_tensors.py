"""What is in a ``.pth`` entry, found out without PyTorch: names, shapes, and whether the bytes for them are there."""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from sb3_dmpo.files.safe_pickle import AllowListUnpickler
from sb3_dmpo.files.safe_values import UnsafeFileError, shorten

#: Bytes of a number, by the class that names its type in the file.
_STORAGES = {
    "BFloat16": 2,
    "Bool": 1,
    "Byte": 1,
    "Char": 1,
    "Double": 8,
    "Float": 4,
    "Half": 2,
    "Int": 4,
    "Long": 8,
    "Short": 2,
}


class StoredTensor(NamedTuple):
    """
    A tensor in a file.

    :param shape: its shape
    :param n_bytes: its size
    """

    shape: tuple[int, ...]
    n_bytes: int


class _Storage(NamedTuple):
    n_numbers: int
    size: int


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> StoredTensor:
    numbers = [offset, *shape, *strides] if isinstance(shape, tuple) and isinstance(strides, tuple) else [None]
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers) or len(shape) != len(strides):
        raise UnsafeFileError(f"asks for a tensor of shape {shorten(shape)}")
    n_numbers = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # A tensor that repeats its numbers, or reads beyond them, takes more memory than the file.
    if n_numbers > 0 and (last >= storage.n_numbers or n_numbers > storage.n_numbers):
        raise UnsafeFileError(f"asks for a tensor of shape {shorten(shape)}, but holds {storage.n_numbers} numbers for it")
    return StoredTensor(shape, n_numbers * storage.size)


def _parameter(tensor: Any, *rest: Any) -> StoredTensor:
    if not isinstance(tensor, StoredTensor):
        raise UnsafeFileError("asks for a parameter that is no tensor")
    return tensor


class _TensorUnpickler(AllowListUnpickler):
    """
    Reads the structure of what ``torch.save`` has written.

    :param content: the pickle
    :param records: sizes of the numbers beside it, by name
    """

    functions: ClassVar[Mapping[tuple[str, str], Callable[..., Any]]] = {
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
    }

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = AllowListUnpickler.dispatch | {
        pickle.BINPERSID[0]: pickle._Unpickler.dispatch[pickle.BINPERSID[0]]
    }

    def __init__(self, content: bytes, records: Mapping[str, int]) -> None:
        super().__init__(io.BytesIO(content))
        self._records = records

    def find_class(self, module: str, name: str) -> Any:
        """
        The object behind a global of the pickle.

        :raises UnsafeFileError: it is not on the list
        """
        if (module, name) in self.functions:
            return self.functions[module, name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name.endswith("Storage") and name.removesuffix("Storage") in _STORAGES:
            return _STORAGES[name.removesuffix("Storage")]
        raise UnsafeFileError(f"asks for {shorten(module)[1:-1]}.{shorten(name)[1:-1]}")

    def persistent_load(self, pid: Any) -> _Storage:
        """
        The numbers that a tensor refers to.

        :param pid: how it refers to them
        :raises UnsafeFileError: they are not there
        """
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or type(pid[1]) is not int:
            raise UnsafeFileError(f"refers to {shorten(pid)}")
        _, size, key, _, n_numbers = pid
        if type(n_numbers) is not int or n_numbers < 0 or n_numbers * size != self._records.get(key):
            raise UnsafeFileError(f"refers to {shorten(n_numbers)} numbers that are not there")
        return _Storage(n_numbers, size)


def read_structure(archive: zipfile.ZipFile) -> Any:
    """
    What ``torch.save`` has written, with a :class:`StoredTensor` for every tensor.

    :param archive: a ``.pth`` entry, whose sizes and checksums were checked
    :raises UnsafeFileError: it asks for something else than tensors, or for more numbers than it holds
    """
    (pickle_name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    folder = pickle_name.removesuffix("data.pkl") + "data/"
    records = {entry.filename.removeprefix(folder): entry.file_size for entry in archive.infolist()}
    return _TensorUnpickler(archive.read(pickle_name), records).load()
