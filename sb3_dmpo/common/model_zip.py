"""
What goes into a model's zip and what comes out of it: SB3's format, so that its own tools open it, and beside the attributes
that SB3 pickles the same ones as plain data, which are all that :meth:`OfflineAlgorithm.load` reads.
"""

import contextlib
import io
import json
import pathlib
import zipfile
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sb3_dmpo.common.arguments import check_arguments, check_stored_counts, constructor_arguments
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.files.safe_pickle import StoredTensor
from sb3_dmpo.files.safe_values import UnsafeFileError, classes_by_name, shorten
from sb3_dmpo.files.safe_zip import (
    FORMAT,
    MAX_DATA_BYTES,
    DamagedFileError,
    StoredModel,
    read_model,
    without_pickles,
)
from sb3_dmpo.files.save_util import (
    decode_state,
    encode_generator,
    get_random_state,
    preserved_random_state,
    set_random_state,
)
from sb3_dmpo.files.settings import class_name, encode, encode_schedule

#: Attributes that a model gets after its constructor.
_KEYS_OF_SETUP = ("action_space", "lr_schedule", "n_envs", "observation_space", "_random_state", "last_evaluation")
#: Entry of a zip for what is neither a network's nor an optimizer's, see :mod:`sb3_dmpo.files.arrays`.
ARRAYS = "arrays.npz"
#: Where classes that zips of release 0.1.0 and before name are today, by module.
_MOVED = {
    "sb3_dmpo.mix_awac.policies": "sb3_dmpo.awac.policies",
    "sb3_dmpo.common.latent_policies": "sb3_dmpo.lapo.policies",
}
#: Arguments that all algorithms share or that say nothing about which one it is.
NOT_HYPERPARAMETERS = frozenset(
    {"policy", "env", "dataset", "device", "seed", "verbose", "tensorboard_log", "download", "stats_window_size"}
)
#: Bytes that networks may need besides the stored ones (tables that are computed), and what an empty tensor counts.
_MAX_COMPUTED, _MIN_TENSOR = 64 * 2**20, 2**14


def read_file(path: str | pathlib.Path | io.BufferedIOBase) -> bytes:
    """
    The content of a zip.

    :param path: path of the file (``.zip`` is tried if there is no suffix) or a file object
    """
    if not isinstance(path, str | pathlib.Path):
        return path.read()
    path = pathlib.Path(path)
    if not path.exists() and not path.suffix:
        path = path.with_suffix(".zip")
    return path.read_bytes()


def arrays_entry(content: bytes) -> bytes | None:
    """
    The entry of a zip that holds arrays; None: it has none.

    :param content: the zip, checked
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(ARRAYS) if ARRAYS in archive.namelist() else None


def read_arrays_of(path: str | pathlib.Path, algorithm: str) -> bytes | None:
    """
    The entry of a model's zip that holds arrays, without loading the model.

    :param path: path of the zip
    :param algorithm: name of the class that it has to be of
    :raises FileNotFoundError: there is no such file
    :raises DamagedFileError: it is no zip, not complete, or of another algorithm
    """
    content = read_file(path)
    found = read_model(content).algorithm
    if found != algorithm:
        raise DamagedFileError(f"{path} is no zip of {algorithm}" + (f", but of {shorten(found)}." if found else "."))
    return arrays_entry(content)


# Settings -------------------------------------------------------------------------------------------------------


def _blank(cls: type[Any]) -> tuple[Any, set[str]]:
    """A model without networks, and the names of the attributes that belong into a zip."""
    model = cls(device="cpu", _init_setup_model=False)
    # What no file of ours holds is not taken from a file, e.g. a device or the dataset to be read.
    return model, {*vars(model), *_KEYS_OF_SETUP} - {*model._excluded_save_params()}


def cannot_be_saved(name: str, error: Exception) -> TypeError:
    """
    What to say if an attribute has no form in a zip.

    :param name: its name
    :param error: why not
    """
    advice = f"Nothing was written; `exclude=['{name}']` leaves it out."
    return TypeError(f"The attribute '{name}' cannot be saved ({error}). {advice}")


def settings_of(model: Any, excluded: Collection[str] = ()) -> bytes:
    """
    The content of ``settings.json``: what ``load`` needs besides tensors, as plain data. Attributes that somebody has added
    to the model are not among it.

    :param model: the model
    :param excluded: names of attributes to leave out
    :raises TypeError: an attribute has no such form
    """
    names = _blank(type(model))[1] - {"policy_class", *excluded}
    attributes = {}
    for name, value in vars(model).items():
        if name in names:
            try:
                attributes[name] = encode_schedule(value) if callable(value) else encode(value)
            except (TypeError, UnsafeFileError) as error:
                raise cannot_be_saved(name, error) from error
    alias = "MultiInputPolicy" if isinstance(model.observation_space, spaces.Dict) else "MlpPolicy"
    is_alias = model.policy_aliases.get(alias) is model.policy_class
    settings = {
        "format": FORMAT,
        "algorithm": type(model).__name__,
        "policy": alias if is_alias else class_name(model.policy_class),
        "attributes": attributes,
    }
    content = json.dumps(settings, allow_nan=False).encode()
    if len(content) > MAX_DATA_BYTES:
        raise TypeError(f"The settings take {len(content)} bytes, more than the {MAX_DATA_BYTES} that can be loaded again.")
    return content


def _classes_of(cls: type[Any], trusted: Collection[type]) -> dict[str, type]:
    """The classes that a zip may name besides those of PyTorch, by ``module:name``; also by the names that they had."""
    classes = classes_by_name([*cls.policy_aliases.values(), *trusted])
    for before, now in _MOVED.items():
        classes |= {name.replace(now, before): known for name, known in classes.items() if name.startswith(f"{now}:")}
    return classes


def find_algorithm(stored: StoredModel, algorithms: Mapping[str, type[Any]]) -> str | None:
    """
    Name of the algorithm whose zip it is; None: none of these. Zips of release 0.1.0 and before do not say it: it is the
    one whose policy it is and that explains most of the attributes.

    :param stored: what is in the zip
    :param algorithms: algorithms by name
    """
    if stored.algorithm is not None:
        return next((name for name, cls in algorithms.items() if cls.__name__ == stored.algorithm), None)
    policy = stored.attributes.get("policy_class")
    module = str(policy.get("__module__")) if isinstance(policy, dict) else ""
    arguments = {name: set(constructor_arguments(cls)) - NOT_HYPERPARAMETERS for name, cls in algorithms.items()}
    common = set.intersection(*arguments.values())
    scores = {}
    for name, cls in algorithms.items():
        if _MOVED.get(module, module) in {known.__module__ for known in cls.policy_aliases.values()}:
            own = arguments[name] - common
            # What is missing may be younger than the file, but weighs more than what is there.
            scores[name] = len(own & set(stored.attributes)) - 2 * len(own - set(stored.attributes))
    return max(scores, key=lambda name: scores[name], default=None)


def _policy_class(cls: type[Any], stored: StoredModel, classes: Mapping[str, type]) -> Any:
    """The policy that the file names; whether it is one is checked later."""
    if stored.policy is not None:
        return cls.policy_aliases.get(stored.policy) or classes.get(stored.policy, stored.policy)
    names = set(stored.attributes)
    return stored.decode(names, classes, names - {"policy_class"}).get("policy_class")


def checked_attributes(
    cls: type[Any], stored: StoredModel, replaced: Mapping[str, Any], trusted: Collection[type] = ()
) -> dict[str, Any]:
    """
    The attributes in a file, of which it is known that they make the networks whose weights it holds.

    :param cls: the algorithm that loads
    :param stored: what is in the zip
    :param replaced: attributes that the caller replaces
    :param trusted: classes that the caller knows
    :raises UnsafeFileError: they do not, or ask for something that a model does not need
    """
    trial, known = _blank(cls)
    classes = _classes_of(cls, trusted)
    if stored.policy is not None:
        known.discard("policy_class")
    attributes = stored.decode(known, classes, {"policy_class", *replaced})
    if "policy_class" not in replaced:
        attributes["policy_class"] = _policy_class(cls, stored, classes)
    vars(trial).update({**attributes, **replaced})
    for name, value in attributes.items():
        if isinstance(value, type) and (name not in ("policy_class", "replay_buffer_class")):
            raise UnsafeFileError(f"The file's {name} is the class {value.__name__}.")
    if "policy_class" not in replaced and not any(trial.policy_class is policy for policy in classes.values()):
        raise UnsafeFileError(f"The file's policy_class is {shorten(trial.policy_class)}, which is none of {cls.__name__}.")
    try:
        check_arguments(trial)
    except ValueError as error:
        raise UnsafeFileError(f"The file's settings are impossible: {error}") from None
    check_stored_counts(cls, attributes)
    with preserved_random_state():
        _check_networks(trial.make_policy, stored.tensors["policy.pth"])
    return attributes


# Networks -------------------------------------------------------------------------------------------------------


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


def _check_networks(build: Callable[[], nn.Module], stored: Any) -> None:
    """Build networks without memory, and compare their shapes with those of the stored weights."""
    if not isinstance(stored, Mapping) or not all(isinstance(tensor, StoredTensor) for tensor in stored.values()):
        raise UnsafeFileError("The entry 'policy.pth' of the file holds no weights by name.")
    try:
        with _Budget(stored.values()), th.device("meta"):
            shapes = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    except UnsafeFileError:
        raise
    except Exception as error:  # depends on the settings in the file
        raise UnsafeFileError(
            f"The file's settings make no networks ({type(error).__name__}: {shorten(str(error))})."
        ) from None
    for name in [*shapes, *stored]:
        made, found = shapes.get(name, "missing"), stored[name].shape if name in stored else "missing"
        if made != found:
            raise UnsafeFileError(f"The weights {shorten(name)} have the shape {found}, but the file's settings need {made}.")


def check_optimizers(model: Any) -> None:
    """
    Refuse states of other shapes than the weights, which PyTorch notices at the next update only.

    :param model: a model that was loaded
    :raises DamagedFileError: there is one
    """
    for name, (optimizer, _, parameters) in model._optimizers.items():
        for parameter in parameters:
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, th.Tensor) and value.dim() > 0 and value.shape != parameter.shape:
                    shapes = f"{tuple(value.shape)}, but its weights {tuple(parameter.shape)}"
                    raise DamagedFileError(f"{key} of {name}_optimizer has the shape {shapes}.")


def on_its_own(value: Any) -> Any:
    """
    A tensor that is part of a larger one, copied: a file would hold the whole. Anything else as it is.

    :param value: anything
    """
    if not isinstance(value, th.Tensor) or value.untyped_storage().nbytes() <= value.nbytes:
        return value
    return value.detach().clone()


# Random states --------------------------------------------------------------------------------------------------


def random_state_of(model: Any) -> dict[str, Any]:
    """
    States of all random generators that a run draws from, as plain data.

    :param model: the model
    """
    state = get_random_state()
    state["device"] = model.device.type
    state["noise"] = encode_generator(model._noise_generator)
    if isinstance(model.replay_buffer, OfflineReplayBuffer):
        state["buffer"] = encode_generator(model.replay_buffer.generator)
    return state


def set_random_state_of(model: Any, state: dict[str, Any]) -> None:
    """
    Use the random states of a zip: a continued run draws what the interrupted one would have drawn.

    :param model: the model
    :param state: what :func:`random_state_of` has returned
    :raises DamagedFileError: they are none; the generators are as they were before
    """
    before = get_random_state()
    try:
        set_random_state(state)
        # Generators of different devices have different states; the run then continues with fresh ones.
        if state["device"] == model.device.type:
            model._noise_generator.set_state(decode_state(state["noise"]))
            if "buffer" in state and isinstance(model.replay_buffer, OfflineReplayBuffer):
                model.replay_buffer.generator.set_state(decode_state(state["buffer"]))
    except Exception as error:  # depends on what is in the file
        set_random_state(before)
        raise DamagedFileError(
            f"The random states in the model's file are none ({type(error).__name__}: {error}): the run cannot continue. "
            "Begin a new one with `reset_num_timesteps=True`."
        ) from error


# Zips -----------------------------------------------------------------------------------------------------------


def prepare_load(
    cls: type[Any],
    content: bytes,
    custom_objects: Mapping[str, Any] | None,
    trust_pickle: bool,
    trusted_classes: Collection[type],
) -> tuple[io.BytesIO, dict[str, Any]]:
    """
    A zip for SB3's own ``load``, and the attributes that it is to take instead of those in the zip: all of them, so that
    nothing is left to unpickle, unless the caller trusts the file.

    :param cls: the algorithm that loads
    :param content: the zip
    :param custom_objects: replacements for attributes in the file
    :param trust_pickle: whether it may be unpickled
    :param trusted_classes: classes that the file may name
    :raises DamagedFileError: the file is not complete, or of another algorithm
    :raises UnsafeFileError: the file asks for something that a model does not need
    """
    stored, objects = read_model(content), dict(custom_objects or {})
    if stored.algorithm not in (None, cls.__name__):
        name = shorten(stored.algorithm)[1:-1]
        article = "an" if name.startswith(tuple("AEIO")) else "a"
        raise DamagedFileError(f"This is {article} {name} zip: use {name}.load (sb3_dmpo.load takes zips of every algorithm).")
    if not trust_pickle:
        objects = checked_attributes(cls, stored, objects, trusted_classes) | objects
        return without_pickles(content, {*stored.attributes, "policy_class"}), objects
    with contextlib.suppress(UnsafeFileError, DamagedFileError):
        # By name even so: modules may have moved since.
        objects = {"policy_class": _policy_class(cls, stored, _classes_of(cls, trusted_classes))} | objects
    return io.BytesIO(content), objects
