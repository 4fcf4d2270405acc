"""Saving, loading and exporting: SB3's zip format, written atomically, with the random states of the run."""

import io
import pathlib
import pickle
from collections.abc import Iterable
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import nn
from torch.utils._pytree import tree_map

from sb3_dmpo.common.arguments import check_arguments, check_stored_counts
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.checked_networks import check_networks
from sb3_dmpo.common.metrics import MetricAverager, check_finite
from sb3_dmpo.files.safe_values import shorten
from sb3_dmpo.files.safe_zip import DamagedFileError, UnsafeFileError, check_archive, read_attributes
from sb3_dmpo.files.save_util import (
    atomic_write,
    decode_state,
    encode_generator,
    get_random_state,
    preserved_random_state,
    set_random_state,
    unpicklable_attribute,
)

SelfZipMixin = TypeVar("SelfZipMixin", bound="ZipMixin")


#: Attributes that a model gets after its constructor.
_KEYS_OF_SETUP = ("action_space", "lr_schedule", "n_envs", "observation_space", "_random_state", "last_evaluation")


def _read(path: str | pathlib.Path | io.BufferedIOBase) -> bytes:
    if not isinstance(path, str | pathlib.Path):
        return path.read()
    path = pathlib.Path(path)
    if not path.exists() and not path.suffix:
        path = path.with_suffix(".zip")
    return path.read_bytes()


def _on_its_own(value: Any) -> Any:
    if not isinstance(value, th.Tensor) or value.untyped_storage().nbytes() <= value.nbytes:
        return value
    return value.detach().clone()


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

        :param path: path of the file (``.zip`` is appended if there is no suffix) or a file object
        :param exclude: names of attributes to leave out
        :param include: names of attributes to keep that are left out by default
        :raises FloatingPointError: a loss or a weight is no longer finite
        :raises TypeError: an attribute cannot be pickled
        :raises OSError: the disk is full, the folder is read-only, ...; in every case the previous file is left as it was
        """
        self.check_finite()
        pending = self._random_state
        self._random_state = pending or self._get_random_state()
        try:
            if isinstance(path, str | pathlib.Path):
                path = pathlib.Path(path)
                path = path if path.suffix else path.with_suffix(".zip")
                # In memory first: a disk that is full then says so itself, and not PyTorch or zipfile in words of their own.
                content = io.BytesIO()
                super().save(content, exclude, include)
                with atomic_write(path) as file:
                    file.write(content.getbuffer())
                self._last_good = path
            else:
                super().save(path, exclude, include)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            name = unpicklable_attribute(vars(self), {*self._excluded_save_params(), *(exclude or ())} - {*(include or ())})
            if name is None:
                raise
            raise TypeError(
                f"The attribute '{name}' cannot be saved ({error}). Nothing was written; `exclude=['{name}']` leaves it out."
            ) from error
        finally:
            self._random_state = pending

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
        **kwargs: Any,
    ) -> SelfZipMixin:
        """
        Load a model. No dataset and no environment are needed, and global random generators are left alone.

        Nothing in the file is executed: attributes are decoded through a list of exact class names, and checksums, sizes
        and attribute names are checked first.

        :param path: path of the file (``.zip`` is tried if there is no suffix) or a file object
        :param env: environment to go on with; None for acting and for learning from a dataset
        :param device: device of the networks
        :param custom_objects: replacements for attributes in the file, which are then not decoded
        :param print_system_info: print on which system the file was made
        :param force_reset: reset the environment before it is stepped
        :param trust_pickle: unpickle whatever the file holds, e.g. a learning rate given as a lambda; a file from somebody
            else can then execute anything
        :param kwargs: attributes to change, e.g. ``dataset=...``
        :raises FileNotFoundError: there is no such file
        :raises DamagedFileError: the file is not complete, or its weights do not fit
        :raises UnsafeFileError: the file asks for something that a model does not need
        :return: the model
        """
        content = _read(path)
        tensors = check_archive(content)
        objects = dict(custom_objects or {})
        if not trust_pickle:
            # Handed over as replacements, so that SB3's loader has nothing left to unpickle.
            objects = cls._checked_attributes(content, tensors, objects) | objects
        try:
            with preserved_random_state():
                model = super().load(io.BytesIO(content), env, device, objects, print_system_info, force_reset, **kwargs)
        except Exception as error:  # depends on what is in the file
            is_of_weights = isinstance(error, KeyError | RuntimeError | pickle.UnpicklingError)
            if not is_of_weights and (env is not None or kwargs):
                # Whose fault is it? On its own the file loads, or says what is wrong with it.
                cls.load(io.BytesIO(content), None, device, custom_objects, trust_pickle=trust_pickle)
                raise
            raise DamagedFileError(f"The weights in the file do not fit {cls.__name__}: {error}") from error
        model._check_optimizers()
        model._last_good = pathlib.Path(path) if isinstance(path, str | pathlib.Path) else None
        if "dataset" in kwargs:
            # The hash stays: what is passed has to be the data that the run began with.
            fingerprint = model.dataset_fingerprint
            model.set_dataset(kwargs["dataset"])
            model.dataset_fingerprint = fingerprint
        return model

    def _check_optimizers(self) -> None:
        """Refuse states of other shapes than the weights, which PyTorch notices at the next update only."""
        for name, (optimizer, _, parameters) in self._optimizers.items():
            for parameter in parameters:
                for key, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, th.Tensor) and value.dim() > 0 and value.shape != parameter.shape:
                        shapes = f"{tuple(value.shape)}, but its weights {tuple(parameter.shape)}"
                        raise DamagedFileError(f"{key} of {name}_optimizer has the shape {shapes}.")

    @classmethod
    def _checked_attributes(cls, content: bytes, tensors: dict[str, Any], replaced: dict[str, Any]) -> dict[str, Any]:
        """
        The attributes in a file, of which it is known that they make the networks whose weights it holds.

        :param content: the file
        :param tensors: what :func:`check_archive` has found
        :param replaced: attributes that the caller replaces
        """
        trial: Any = cls(device="cpu", _init_setup_model=False)  # type: ignore[call-arg]
        policies = set(cls.policy_aliases.values())
        # What no file of ours holds is not taken from a file, e.g. a device or the dataset to be read.
        known = {*vars(trial), *_KEYS_OF_SETUP} - {*trial._excluded_save_params()}
        attributes = read_attributes(content, known, policies, replaced)
        vars(trial).update(attributes | replaced)
        for name, value in attributes.items():
            if isinstance(value, type) and (name not in ("policy_class", "replay_buffer_class")):
                raise UnsafeFileError(f"The file's {name} is the class {value.__name__}.")
        if "policy_class" not in replaced and trial.policy_class not in policies:
            raise UnsafeFileError(
                f"The file's policy_class is {shorten(trial.policy_class)}, which is none of {cls.__name__}."
            )
        try:
            check_arguments(trial)
        except ValueError as error:
            raise UnsafeFileError(f"The file's settings are impossible: {error}") from None
        check_stored_counts(cls, attributes)
        with preserved_random_state():
            check_networks(trial.make_policy, tensors["policy.pth"])
        return attributes

    def _get_random_state(self) -> dict[str, Any]:
        state = get_random_state()
        state["device"] = self.device.type
        state["noise"] = encode_generator(self._noise_generator)
        if isinstance(self.replay_buffer, OfflineReplayBuffer):
            state["buffer"] = encode_generator(self.replay_buffer.generator)
        return state

    def _take_over_random_state(self, continuing: bool) -> None:
        """
        Use the random states of the zip up: a continued run draws what the interrupted one would have drawn.

        :param continuing: whether the run continues; otherwise the states are dropped
        """
        state, self._random_state = self._random_state, None
        if state is None or not continuing:
            return
        before = get_random_state()
        try:
            set_random_state(state)
            # Generators of different devices have different states; the run then continues with fresh ones.
            if state["device"] == self.device.type:
                self._noise_generator.set_state(decode_state(state["noise"]))
                if "buffer" in state and isinstance(self.replay_buffer, OfflineReplayBuffer):
                    self.replay_buffer.generator.set_state(decode_state(state["buffer"]))
        except Exception as error:  # depends on what is in the file
            set_random_state(before)
            raise DamagedFileError(
                f"The random states in the model's file are none ({type(error).__name__}: {error}): the run cannot continue. "
                "Begin a new one with `reset_num_timesteps=True`."
            ) from error
