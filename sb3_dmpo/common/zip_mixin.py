"""Saving and loading: SB3's zip format, written atomically, with the random states of the run."""

import io
import pathlib
from collections.abc import Iterable
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.save_util import (
    atomic_write,
    decode_state,
    encode_generator,
    get_random_state,
    preserved_random_state,
    set_random_state,
)
from sb3_dmpo.common.updates import MetricAverager

SelfZipMixin = TypeVar("SelfZipMixin", bound="ZipMixin")


class ZipMixin(BaseAlgorithm):
    """The part of :class:`OfflineAlgorithm` that knows what goes into the zip and what comes out of it."""

    replay_buffer: Any
    #: Random states found in a zip; applied when training continues, never on load.
    _random_state: dict[str, Any] | None = None
    _optimizers: dict[str, tuple[th.optim.Optimizer, Schedule, list[nn.Parameter]]]
    _metrics: MetricAverager
    _noise_generator: th.Generator
    set_dataset: Any

    def _excluded_save_params(self) -> list[str]:
        runtime = ["dataset", "_optimizers", "_targets", "_noise_generator", "_metrics", "_last_batch", "_placeholder_env"]
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
        :raises FloatingPointError: training has diverged since the last log; the previous file is left as it was
        """
        self._metrics.means(self._n_updates)
        pending = self._random_state
        self._random_state = pending or self._get_random_state()
        try:
            if isinstance(path, str | pathlib.Path):
                path = pathlib.Path(path)
                with atomic_write(path if path.suffix else path.with_suffix(".zip")) as file:
                    super().save(file, exclude, include)
            else:
                super().save(path, exclude, include)
        finally:
            self._random_state = pending

    @classmethod
    def load(cls: type[SelfZipMixin], *args: Any, **kwargs: Any) -> SelfZipMixin:
        """
        Load a model. No dataset and no environment are needed, and global random generators are left alone.

        :param args: arguments of SB3's ``load``: the path, optionally an environment, a device, ...
        :param kwargs: the same by name, and attributes to change, e.g. ``dataset=...``
        :return: the model
        """
        with preserved_random_state():
            model = super().load(*args, **kwargs)
        if "dataset" in kwargs:
            model.set_dataset(kwargs["dataset"])
        return model

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
        set_random_state(state)
        # Generators of different devices have different states; the run then continues with fresh ones.
        if state["device"] == self.device.type:
            self._noise_generator.set_state(decode_state(state["noise"]))
            if "buffer" in state and isinstance(self.replay_buffer, OfflineReplayBuffer):
                self.replay_buffer.generator.set_state(decode_state(state["buffer"]))
