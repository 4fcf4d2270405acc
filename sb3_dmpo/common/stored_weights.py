"""
Weights and states of optimizers in a file of unknown origin: compared with the networks that they are for, and with the
optimizers themselves, before one of them is made.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch as th
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sb3_dmpo.common.arguments import is_number
from sb3_dmpo.common.optimizers import make_optimizer
from sb3_dmpo.files.safe_pickle import StoredTensor
from sb3_dmpo.files.safe_values import UnsafeFileError, shorten
from sb3_dmpo.files.safe_zip import DamagedFileError, StoredModel

#: Bytes that networks may need besides the stored ones (tables that are computed), and what an empty tensor counts.
_MAX_COMPUTED, _MIN_TENSOR = 64 * 2**20, 2**14


class _OnMeta(TorchFunctionMode):
    """New tensors have no memory. As ``th.device("meta")``, which other threads would notice."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _device_constructors() and kwargs.get("device") is None:
            kwargs["device"] = th.device("meta")
        return func(*args, **kwargs)


class _Budget(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """
    Counts the tensors that are made in this thread, while networks are built without memory.

    :param stored: the tensors in the file
    """

    def __init__(self, stored: Collection[StoredTensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used, self.stored = 0, sum(tensor.n_bytes for tensor in stored)
        # Initialising a weight may take another tensor of its size or two.
        self.allowed = 4 * sum(max(tensor.n_bytes, _MIN_TENSOR) for tensor in stored) + _MAX_COMPUTED

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if all(returned.alias_info is None for returned in func._schema.returns):
            tensors = [tensor for tensor in tree_leaves(result) if isinstance(tensor, th.Tensor)]
            self.used += sum(max(tensor.nbytes, _MIN_TENSOR) for tensor in tensors)
        if self.used > self.allowed:
            raise UnsafeFileError(
                f"The file's settings need networks of more than {self.allowed} bytes, but it holds {self.stored} of weights."
            )
        return result


class NothingDrawn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """
    While networks are built whose weights come from a file, PyTorch's generator is left alone: other threads draw from it.
    Weights begin at zero instead.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if th.Tag.nondeterministic_seeded in func.tags and func._schema.is_mutable:
            return args[0].zero_()
        return func(*args, **(kwargs or {}))


def check_networks(build: Callable[[], nn.Module], stored: Any) -> None:
    """
    Build networks without memory, and compare them with the stored weights.

    :param build: makes the networks
    :param stored: the weights in the file
    :raises UnsafeFileError: there are none, or of other networks
    """
    _check_names(stored)
    try:
        with _Budget(stored.values()), _OnMeta():
            made = build().state_dict()
    except UnsafeFileError:
        raise
    except Exception as error:  # depends on the settings in the file
        raise UnsafeFileError(
            f"The file's settings make no networks ({type(error).__name__}: {shorten(str(error))})."
        ) from None
    _check_weights(made, stored)


def _check_names(stored: Any) -> None:
    is_right = isinstance(stored, Mapping) and all(
        type(name) is str and isinstance(tensor, StoredTensor) for name, tensor in stored.items()
    )
    if not is_right:
        raise UnsafeFileError("The entry 'policy.pth' of the file holds no weights by name.")


def _check_weights(made: Mapping[str, th.Tensor], stored: Any, exact_match: bool = True) -> None:
    """Compare names, shapes and types of weights with those in a file."""
    _check_names(stored)
    for name in [*(made if exact_match else ()), *stored]:
        needed = (tuple(made[name].shape), made[name].dtype) if name in made else ("missing", None)
        found = (stored[name].shape, getattr(th, stored[name].dtype)) if name in stored else ("missing", None)
        if needed[0] != found[0]:
            what = f"have the shape {found[0]}, but the file's settings need {needed[0]}"
            raise UnsafeFileError(f"The weights {shorten(name)} {what}.")
        if needed != found:
            advice = f": load them under torch.set_default_dtype({found[1]})" if found[1] in (th.float32, th.float64) else ""
            raise UnsafeFileError(f"The weights {shorten(name)} are {found[1]}, but {needed[1]} are made here{advice}.")


def _is_same(made: Any, stored: Any) -> bool:
    """Whether an option in a file is the one that an optimizer has; tensors, whose comparison is a tensor, never are."""
    if isinstance(made, tuple | list):
        return isinstance(stored, tuple | list) and len(stored) == len(made) and all(map(_is_same, made, stored))
    return type(stored) is type(made) and not isinstance(made, th.Tensor) and bool(made == stored)


def _is_option(made: Any, stored: Any) -> bool:
    """Whether something may stand in a file for an option that an optimizer has, e.g. ``betas``."""
    if _is_same(made, stored):
        return True
    if made is None or isinstance(made, bool):
        return stored is None or isinstance(stored, bool)
    if isinstance(made, int | float):
        return is_number(stored, 0.0)
    if isinstance(made, tuple | list):
        is_row = isinstance(stored, tuple | list) and len(stored) == len(made)
        return is_row and all(is_number(value, 0.0) and value < 1.0 for value in stored)
    return False


def _check_optimizer(name: str, optimizer: th.optim.Optimizer, arguments: dict[str, Any], stored: Any) -> None:
    """
    Refuse states that do not fit an optimizer, which PyTorch notices at the next update only: the optimizer itself is tried
    with the stored options, on weights of the same shapes.
    """
    damage = f"The weights in the file do not fit: {name}"
    groups = stored.get("param_groups") if isinstance(stored, dict) and stored.keys() == {"state", "param_groups"} else None
    if not isinstance(groups, list) or len(groups) != len(optimizer.param_groups) or not isinstance(stored["state"], dict):
        raise DamagedFileError(f"{damage} has other groups of weights.")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = iter(range(len(parameters)))
    expected: dict[int, dict[str, Any]] = {}
    for made, group in zip(optimizer.param_groups, groups, strict=True):
        ids = [next(numbers) for _ in made["params"]]
        if not isinstance(group, dict) or group.get("params") != ids:
            raise DamagedFileError(f"{damage} has other groups of weights.")
        for key, value in group.items():
            if key != "params" and not (key in made and _is_option(made[key], value)):
                raise DamagedFileError(f"{damage} has the option {shorten(key)}, which is {shorten(value)}.")
        options = {key: value for key, value in group.items() if key != "params"}
        for number, parameter in zip(ids, made["params"], strict=True):
            expected[number] = _state_of_one(name, optimizer, parameter, options, arguments)
    if not stored["state"].keys() <= expected.keys():
        raise DamagedFileError(f"{damage} has states of weights that are not there.")
    for number, state in stored["state"].items():
        if not isinstance(state, dict) or (state and state.keys() != expected[number].keys()):
            raise DamagedFileError(f"{damage} has other states than its kind has.")
        for key, value in state.items():
            _check_state(f"{shorten(key)[1:-1]} of {name}", parameters[number], expected[number][key], value)


def _state_of_one(
    name: str, optimizer: th.optim.Optimizer, like: nn.Parameter, options: dict[str, Any], arguments: dict[str, Any]
) -> dict[str, Any]:
    """What such an optimizer remembers of weights, after one step; of a single number what it would of a row of one."""
    weights = nn.Parameter(th.zeros(like.shape or (1,), dtype=like.dtype, device=like.device))
    weights.grad = th.zeros_like(weights)
    try:
        trial = make_optimizer(type(optimizer), [weights], 1e-3, arguments)
        trial.param_groups[0].update(options)
        trial.step()
    except Exception as error:  # depends on the options in the file
        text = f"{type(error).__name__}: {error}"
        raise DamagedFileError(f"The weights in the file do not fit: the options of {name} make no step ({text}).") from None
    return dict(trial.state[weights])


def _check_state(what: str, parameter: nn.Parameter, expected: Any, value: Any) -> None:
    is_count = isinstance(expected, int | float) or (isinstance(expected, th.Tensor) and expected.dim() == 0)
    if is_count:
        number = make_tensors(value).item() if isinstance(value, StoredTensor) and value.shape == () else value
        if not is_number(number, 0.0):
            raise DamagedFileError(f"{what} is {shorten(number)}, expected a number.")
    elif isinstance(value, StoredTensor):
        # Not always the weights' own: Adafactor has sums of rows and columns.
        needed = tuple(expected.shape) if isinstance(expected, th.Tensor) and parameter.dim() else tuple(parameter.shape)
        if value.shape != needed:
            raise DamagedFileError(f"{what} has the shape {value.shape}, but its weights need {needed}.")
        if getattr(th, value.dtype) != parameter.dtype:
            raise DamagedFileError(f"{what} is of {value.dtype}, but its weights of {parameter.dtype}.")
    elif not (value is None and expected is None):
        raise DamagedFileError(f"{what} is {shorten(value)}, expected numbers.")


def make_tensors(structure: Any) -> Any:
    """
    The tensors that a file holds, in place of what is known about them.

    :param structure: as in :attr:`StoredModel.tensors`
    """
    storages: dict[int, th.Tensor] = {}

    def made(item: Any) -> Any:
        if isinstance(item, StoredTensor):
            dtype = getattr(th, item.dtype)
            if item.n_bytes == 0:
                return th.empty(item.shape, dtype=dtype)
            key = id(item.numbers)
            if key not in storages:
                storages[key] = th.frombuffer(bytearray(item.numbers), dtype=dtype)
            return storages[key].as_strided(item.shape, item.strides, item.offset).clone()
        if isinstance(item, dict):
            return {key: made(value) for key, value in item.items()}
        return type(item)(map(made, item)) if isinstance(item, list | tuple) else item

    return made(structure)


def check_declared(cls: type[Any], stored: StoredModel) -> None:
    """
    Refuse tensors that no zip of an algorithm holds. (SB3 would set some of them by names that the file chooses.)

    :param cls: the algorithm
    :param stored: what is in the zip
    :raises DamagedFileError: it is of another algorithm
    :raises UnsafeFileError: it holds something else
    """
    if stored.algorithm not in (None, cls.__name__):
        name = shorten(stored.algorithm)[1:-1]
        article = "an" if name.startswith(tuple("AEIO")) else "a"
        raise DamagedFileError(f"This is {article} {name} zip: use {name}.load (sb3_dmpo.load takes zips of every algorithm).")
    if stored.arrays is not None and not cls.stores_arrays:
        raise UnsafeFileError(f"The file holds arrays, which no zip of {cls.__name__} has.")
    for name, structure in stored.tensors.items():
        is_empty = name == "pytorch_variables" and structure in ({}, None)
        if not is_empty and name != "policy" and not (name.endswith("_optimizer") and name.isidentifier()):
            what = f" of {', '.join(map(shorten, list(structure)[:5]))}" if isinstance(structure, dict) else ""
            raise UnsafeFileError(f"The file holds the tensors '{name}'{what}, which no model of this package has.")


def make_parameters(model: Any, stored: StoredModel, exact_match: bool = True) -> dict[str, Any]:
    """
    The weights and states of optimizers in a zip, for ``set_parameters``; every one is checked before the first is made.

    :param model: the model that they are for
    :param stored: what is in the zip
    :param exact_match: whether all have to be there
    :raises DamagedFileError: they do not fit the model
    :raises UnsafeFileError: there are others
    """
    check_declared(type(model), stored)
    found, expected = stored.tensors.keys() - {"pytorch_variables"}, {"policy", *model._get_torch_save_params()[0]}
    if not found <= expected or (exact_match and found != expected):
        names = f"{', '.join(sorted(found))}; expected {', '.join(sorted(expected))}"
        raise DamagedFileError(f"The weights in the file do not fit {type(model).__name__}: they are {names}.")
    _check_weights(model.policy.state_dict(), stored.tensors["policy"], exact_match)
    for name in sorted(found - {"policy"}):
        _check_optimizer(name, getattr(model, name), model.policy.optimizer_kwargs, stored.tensors[name])
    made: dict[str, Any] = {name: make_tensors(stored.tensors[name]) for name in found}
    for name, values in made.items():
        tensors = [value for value in tree_leaves(values) if isinstance(value, th.Tensor) and value.is_floating_point()]
        if not all(bool(th.isfinite(tensor).all()) for tensor in tensors):
            raise DamagedFileError(f"The numbers of '{name}' in the file are not finite, as after a training that diverged.")
    return made
