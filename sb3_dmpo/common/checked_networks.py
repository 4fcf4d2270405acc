"""Whether the networks that a file's settings describe are those whose weights it holds, before they take memory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch as th
from torch import nn
from torch.nn.modules.module import register_module_buffer_registration_hook, register_module_parameter_registration_hook

from sb3_dmpo.files.safe_pickle import StoredTensor
from sb3_dmpo.files.safe_values import UnsafeFileError, shorten

#: Bytes of buffers that are computed and not stored: tables of the algorithms.
_MAX_COMPUTED = 64 * 2**20


class _Budget:
    """
    Counts what is registered in modules while they are built without memory.

    :param stored: bytes of weights in the file
    """

    def __init__(self, stored: int) -> None:
        self.stored, self.parameters, self.buffers = stored, 0, 0

    def add_parameter(self, module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        """A hook of PyTorch."""
        if parameter is not None and parameter.is_meta:
            # Every parameter costs something, that without numbers too.
            self.parameters += max(parameter.numel() * parameter.element_size(), 1)
            self.check(self.parameters, self.stored)

    def add_buffer(self, module: nn.Module, name: str, buffer: th.Tensor | None) -> None:
        """A hook of PyTorch."""
        if buffer is not None and buffer.is_meta:
            self.buffers += buffer.numel() * buffer.element_size()
            self.check(self.buffers, self.stored + _MAX_COMPUTED)

    def check(self, used: int, allowed: int) -> None:
        """Refuse what is more than the file holds."""
        if used > allowed:
            raise UnsafeFileError(
                f"The file's settings need networks of more than {used} bytes, but it holds {self.stored} bytes of weights."
            )


def check_networks(build: Callable[[], nn.Module], stored: Any) -> None:
    """
    Build networks without memory, and compare their shapes with those of the stored weights.

    :param build: makes the networks
    :param stored: weights in the file by name
    :raises UnsafeFileError: the settings make larger networks, or none
    """
    if not isinstance(stored, Mapping) or not all(isinstance(tensor, StoredTensor) for tensor in stored.values()):
        raise UnsafeFileError("The entry 'policy.pth' of the file holds no weights by name.")
    budget = _Budget(sum(tensor.n_bytes for tensor in stored.values()))
    hooks = (
        register_module_parameter_registration_hook(budget.add_parameter),
        register_module_buffer_registration_hook(budget.add_buffer),
    )
    try:
        with th.device("meta"):
            shapes = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    except UnsafeFileError:
        raise
    except Exception as error:  # depends on the settings in the file
        raise UnsafeFileError(
            f"The file's settings make no networks ({type(error).__name__}: {shorten(str(error))})."
        ) from None
    finally:
        for hook in hooks:
            hook.remove()
    for name in [*shapes, *stored]:
        made, found = shapes.get(name, "missing"), stored[name].shape if name in stored else "missing"
        if made != found:
            raise UnsafeFileError(f"The weights {shorten(name)} have the shape {found}, but the file's settings need {made}.")
