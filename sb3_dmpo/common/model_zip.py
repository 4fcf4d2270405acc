"""
What goes into a model's zip and what comes out of it: SB3's format, so that its own tools open it, and beside the attributes
that SB3 pickles the same ones as plain data, which are all that :meth:`OfflineAlgorithm.load` reads.
"""

import contextlib
import io
import json
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from sb3_dmpo.common.arguments import check_arguments, check_stored_counts, constructor_arguments
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.metrics import MetricAverager, check_finite
from sb3_dmpo.files.safe_pickle import StoredTensor
from sb3_dmpo.files.safe_values import UnsafeFileError, classes_by_name, shorten
from sb3_dmpo.files.safe_zip import (
    FORMAT,
    MAX_DATA_BYTES,
    SETTINGS,
    DamagedFileError,
    StoredModel,
    read_model,
    without_pickles,
)
from sb3_dmpo.files.save_util import (
    atomic_write,
    decode_state,
    encode_generator,
    get_random_state,
    preserved_random_state,
    set_random_state,
    unpicklable_attribute,
)
from sb3_dmpo.files.settings import class_name, encode, encode_schedule

SelfZipMixin = TypeVar("SelfZipMixin", bound="ZipMixin")

#: Attributes that a model gets after its constructor.
_KEYS_OF_SETUP = ("action_space", "lr_schedule", "n_envs", "observation_space", "_random_state", "last_evaluation")
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
    check_stored_counts(attributes)
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


def _on_its_own(value: Any) -> Any:
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


class ZipMixin(BaseAlgorithm):
    """The part of :class:`OfflineAlgorithm` that knows what goes into the zip and what comes out of it."""

    replay_buffer: Any
    #: Random states found in a zip; applied when training continues, never on load.
    _random_state: dict[str, Any] | None = None
    #: What the last evaluation in training found, see :meth:`EvaluationResult.summary`.
    last_evaluation: dict[str, Any] | None = None
    _optimizers: dict[str, tuple[th.optim.Optimizer, Schedule, list[nn.Parameter]]]
    _metrics: MetricAverager
    _n_updates: int
    #: The file that was saved or loaded last.
    _last_good: pathlib.Path | None = None
    _noise_generator: th.Generator
    set_dataset: Any
    dataset_id: str | None
    dataset_fingerprint: str | None

    def _excluded_save_params(self) -> list[str]:
        runtime = [
            "lr_schedule",
            "dataset",
            "_optimizers",
            "_targets",
            "_noise_generator",
            "_metrics",
            "_compiled",
            "_rates",
            "_last_batch",
            "_placeholder_env",
            "_is_online",
            "action_noise",
            "_last_good",
        ]
        return [*super()._excluded_save_params(), *runtime]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *(f"{name}_optimizer" for name in self._optimizers)], []

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model, its optimizers and its random states in a zip file of SB3's format, atomically.

        :meth:`load` reads attributes as plain data, so what has no such form is refused here. A learning rate may be any
        function of the remaining progress: it comes back as a formula (constants, straight lines and half a cosine, to the
        last bit), else as a table of 1025 values with straight lines between them. Classes, e.g. an ``activation_fn`` of
        your own, have to be importable. Attributes that you have added to the model are for ``trust_pickle=True`` only.

        :param path: path of the file (``.zip`` is appended if there is no suffix) or a file object
        :param exclude: names of attributes to leave out
        :param include: names of attributes to keep that are left out by default, for SB3's ``load``
        :raises FloatingPointError: a loss or a weight is no longer finite
        :raises TypeError: an attribute cannot be saved
        :raises OSError: the disk is full, the folder is read-only, ...; in every case the previous file is left as it was
        """
        self.check_finite()
        pending, excluded = self._random_state, set(exclude or ())
        self._random_state = pending or random_state_of(self)
        # In memory first: a disk that is full then says so itself, and not PyTorch or zipfile in words of their own.
        content = io.BytesIO()
        try:
            settings = settings_of(self, excluded)
            super().save(content, excluded, include)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            name = unpicklable_attribute(vars(self), {*self._excluded_save_params(), *excluded} - {*(include or ())})
            raise (error if name is None else cannot_be_saved(name, error)) from error
        finally:
            self._random_state = pending
        with zipfile.ZipFile(content, "a") as archive:
            archive.writestr(SETTINGS, settings)
        if not isinstance(path, str | pathlib.Path):
            path.write(content.getbuffer())
            return
        path = pathlib.Path(path)
        path = path if path.suffix else path.with_suffix(".zip")
        with atomic_write(path) as file:
            file.write(content.getbuffer())
        self._last_good = path

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """
        As in SB3. Tensors that are parts of larger ones, as while several seeds learn at once, are copied: a file would hold
        the whole.
        """
        parameters: dict[str, dict[str, Any]] = super().get_parameters()
        for name, values in parameters.items():
            if name == "policy":
                values.update({key: _on_its_own(value) for key, value in values.items()})
            else:
                parameters[name] = tree_map(_on_its_own, values)
        return parameters

    def check_finite(self) -> None:
        """
        Stop here if training has diverged: look at the losses since the last log, the weights and the optimizers.

        :raises FloatingPointError: the message names the term, the update and the last good file
        """
        try:
            self._metrics.check()
            optimizers = {name: optimizer for name, (optimizer, _, _) in self._optimizers.items()}
            check_finite(self.policy, optimizers, self._n_updates)
        except FloatingPointError as error:
            if self._last_good is None:
                raise
            raise FloatingPointError(f"{error} The last good state is {self._last_good}.") from None

    def export(self, path: str | pathlib.Path) -> None:
        """
        Write the whole policy as one graph that runs without this package: what ``predict(observation,
        deterministic=True)`` returns, for any number of observations, see :func:`~sb3_dmpo.common.export.export_policy`.

        :param path: file ending in ``.onnx`` (needs the extra ``export``) or ``.pt2`` (a ``torch.export`` program)
        :raises ValueError: another ending
        :raises NotImplementedError: the policy remembers the episode (Decision Transformer)
        :raises ImportError: onnx or onnxscript is missing
        """
        # Not with the package: the exporter is rarely needed.
        from sb3_dmpo.common.export import export_policy

        metadata = {"algorithm": type(self).__name__, "dataset": str(self.dataset_id), "updates": str(self._n_updates)}
        export_policy(self.policy, path, metadata)  # type: ignore[arg-type]

    @classmethod
    def load(
        cls: type[SelfZipMixin],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        trust_pickle: bool = False,
        trusted_classes: Collection[type] = (),
        **kwargs: Any,
    ) -> SelfZipMixin:
        """
        Load a model. No dataset and no environment are needed, and global random generators are left alone.

        Nothing in the file is executed: attributes are read as plain data, and checksums, sizes and names are checked first.
        (Zips of release 0.1.0 and before hold pickles only, which are read through a list of exact class names.)

        :param path: path of the file (``.zip`` is tried if there is no suffix) or a file object
        :param env: environment to go on with; None for acting and for learning from a dataset
        :param device: device of the networks
        :param custom_objects: replacements for attributes in the file, which are then not decoded
        :param print_system_info: print on which system the file was made
        :param force_reset: reset the environment before it is stepped
        :param trust_pickle: unpickle what the file holds, e.g. the very function that was given as a learning rate; a file
            from somebody else can then execute anything
        :param trusted_classes: classes of your own that the file may name, e.g. an ``activation_fn``
        :param kwargs: attributes to change, e.g. ``dataset=...``
        :raises FileNotFoundError: there is no such file
        :raises DamagedFileError: the file is not complete, or its weights do not fit
        :raises UnsafeFileError: the file asks for something that a model does not need
        :return: the model
        """
        content = read_file(path)
        file, objects = prepare_load(cls, content, custom_objects, trust_pickle, trusted_classes)
        try:
            with preserved_random_state():
                model = super().load(file, env, device, objects, print_system_info, force_reset, **kwargs)
        except Exception as error:  # depends on what is in the file
            is_of_weights = isinstance(error, KeyError | RuntimeError | pickle.UnpicklingError)
            if not is_of_weights and (env is not None or kwargs):
                # Whose fault is it? On its own the file loads, or says what is wrong with it.
                cls.load(io.BytesIO(content), None, device, custom_objects, False, True, trust_pickle, trusted_classes)
                raise
            raise DamagedFileError(f"The weights in the file do not fit {cls.__name__}: {error}") from error
        check_optimizers(model)
        model._last_good = pathlib.Path(path) if isinstance(path, str | pathlib.Path) else None
        if "dataset" in kwargs:
            # The hash stays: what is passed has to be the data that the run began with.
            fingerprint = model.dataset_fingerprint
            model.set_dataset(kwargs["dataset"])
            model.dataset_fingerprint = fingerprint
        return model

    def _take_over_random_state(self, continuing: bool) -> None:
        """
        Use the random states of the zip up: a continued run draws what the interrupted one would have drawn.

        :param continuing: whether the run continues; otherwise the states are dropped
        """
        state, self._random_state = self._random_state, None
        if state is not None and continuing:
            set_random_state_of(self, state)
