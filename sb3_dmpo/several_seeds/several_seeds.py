"""
Several seeds at once: models that differ by their seeds alone learn together, every operation of their updates done for all of
them in one. Small networks leave most of a processor idle; this fills it.

Each model draws its minibatches and its noise from its own generators, as it would alone, and ends as it would have ended
alone, up to rounding.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_dmpo.common import ranks
from sb3_dmpo.common.arguments import constructor_arguments
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.capture import CapturedUpdates
from sb3_dmpo.common.compilation import (
    CompiledUpdate,
    batch_tensors,
    may_go_on_without,
    missing_for_recording,
    undone,
)
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.type_aliases import Metrics
from sb3_dmpo.common.updates import denormals_flushed
from sb3_dmpo.several_seeds.stacked_graph import stack_graph

#: Arguments that models may differ in. Learning rates may be functions, and are compared by what they return.
_OWN_ARGUMENTS = {
    *("dataset", "device", "download", "env", "policy", "seed", "stats_window_size", "tensorboard_log", "verbose"),
}
_PROGRESS = (1.0, 0.9, 0.5, 0.1, 0.0)


class DivergedSeedsError(FloatingPointError):
    """
    Some of several models are no longer finite; the others have been trained to their end.

    :param failures: what was wrong, by model
    """

    def __init__(self, failures: dict[OfflineAlgorithm, FloatingPointError]) -> None:
        names = ["A model without seed" if model.seed is None else f"Seed {model.seed}" for model in failures]
        super().__init__(" ".join(f"{name}: {error}" for name, error in zip(names, failures.values(), strict=True)))
        self.models = list(failures)


def _settings(model: OfflineAlgorithm) -> dict[str, Any]:
    """What an update depends on, by name."""
    names = constructor_arguments(type(model)).keys() - _OWN_ARGUMENTS
    settings = {name: getattr(model, name, None) for name in sorted(names) if not name.endswith("learning_rate")}
    settings["device"] = model.device
    settings["policy"] = model.policy_class
    settings["target_bounds"] = model.target_bounds
    settings["number of updates done"] = model._n_updates
    settings["number of timesteps done"] = model.num_timesteps
    for name, (optimizer, schedule, _) in model._optimizers.items():
        settings[f"learning rate of {name}"] = [schedule(progress) for progress in _PROGRESS]
        settings[f"optimizer of {name}"] = type(optimizer)
    return settings


def check_together(models: Sequence[OfflineAlgorithm]) -> None:
    """
    Refuse models that cannot learn together.

    :param models: the models
    :raises ValueError: they differ in more than their seeds, or their updates cannot be recorded
    """
    if ranks.is_joined():
        raise ValueError("learn_together is for one process: several of them train one model.")
    if not models or len({id(model) for model in models}) < len(models):
        raise ValueError(f"learn_together needs models, each of them once; it was given {len(models)}.")
    first = models[0]
    expected = _settings(first)
    for i, model in enumerate(models[1:], start=1):
        if type(model) is not type(first):
            raise ValueError(
                f"Models that learn together are of one class: number 0 is {type(first)}, number {i} {type(model)}."
            )
        for name, value in _settings(model).items():
            if value != expected[name]:
                raise ValueError(
                    f"Models that learn together differ by their seeds alone: {name} is {expected[name]} in number 0 and "
                    f"{value} in number {i}."
                )
    obstacle = missing_for_recording([optimizer for optimizer, _, _ in first._optimizers.values()])
    if not first.can_learn_together:
        obstacle = "it does more between its updates"
    if obstacle is not None:
        raise ValueError(
            f"Several seeds of {type(first).__name__} cannot learn at once: {obstacle}. Train one after the other."
        )


def _sorted_tensors(models: Sequence[OfflineAlgorithm]) -> tuple[list[list[th.Tensor]], list[list[th.Tensor]]]:
    """
    By model, the tensors of an update that are its own, and those that have the same values in all models: learning rates,
    the counters of Adam, statistics of the data. Adam's step is one for all models therefore.

    :param models: the models
    """
    own: list[list[th.Tensor]] = [list(model.policy.parameters()) for model in models]
    common: list[list[th.Tensor]] = [list(model._rates.values()) for model in models]
    for i, model in enumerate(models):
        for optimizer, _, _ in model._optimizers.values():
            for state in optimizer.state.values():
                for name, tensor in state.items():
                    (common if name == "step" else own)[i].append(tensor)
    for tensors in zip(*common, strict=True):
        if any(float(tensor) != float(tensors[0]) for tensor in tensors):
            raise ValueError("Models that learn together have made the same updates: the counters of their optimizers differ.")
    for named in zip(*(model.policy.named_buffers() for model in models), strict=True):
        # What the updates change is equal at the start only.
        is_common = named[0][0] not in models[0].policy.learned_buffers and all(
            th.equal(buffer, named[0][1]) for _, buffer in named
        )
        for tensors_of_model, (_, buffer) in zip(common if is_common else own, named, strict=True):
            tensors_of_model.append(buffer)
    return own, common


class _Stack:
    """
    The models' weights and optimizer states as rows of common tensors, and the update of all of them. Until :meth:`release`
    the models' own tensors are views of the rows, so that a model can be used, logged and saved at any time.

    :param models: checked by :func:`check_together`
    :param is_compiled: whether the update is compiled
    """

    def __init__(self, models: list[OfflineAlgorithm], is_compiled: bool) -> None:
        self.models = models
        self._first = models[0]
        self._is_compiled = is_compiled
        for model in models:
            model._update_state()
        self._own, self._common = _sorted_tensors(models)
        self._rows = [th.stack([tensor.detach() for tensor in tensors]) for tensors in zip(*self._own, strict=True)]
        for i, own in enumerate(self._own):
            for tensor, rows in zip(own, self._rows, strict=True):
                tensor.data = rows[i]
        for common in self._common[1:]:
            for tensor, of_first in zip(common, self._common[0], strict=True):
                tensor.data = of_first.data
        optimizers = [optimizer for model in models for optimizer, _, _ in model._optimizers.values()]
        self._first_states = [(optimizer, next(iter(optimizer.state.values()))["exp_avg"]) for optimizer in optimizers]
        self._previous = self._first._compiled
        self._recorder = CompiledUpdate(self._first._update_all)
        self._recorder.use([*self._own[0], *self._common[0]], {})
        # Recorded updates have their learning rates in tensors.
        self._recorder.is_on = True
        self._first._compiled = self._recorder
        self._graphs: dict[Any, tuple[Callable[..., list[th.Tensor]], list[str]]] = {}
        self._captured = CapturedUpdates(*(model._metrics for model in models))
        if self._first._captured.is_on:
            self._captured.decide(self._first.capture, is_compiled, None)
        self._captured.use([*self._rows, *self._common[0]])

    def release(self) -> None:
        """Give every model tensors of its own again."""
        self._first._compiled = self._previous
        for tensors in (*self._own, *self._common):
            for tensor in tensors:
                tensor.data = tensor.data.clone()

    def is_intact(self) -> bool:
        """Whether the optimizers have the states that are stacked here; ``set_parameters`` in a callback replaces them."""
        return all(next(iter(optimizer.state.values()))["exp_avg"] is first for optimizer, first in self._first_states)

    def update(self) -> list[Callable[[], None]]:
        """One update of every model; what notes its metrics, by model."""
        for model in self.models:
            model._set_rates()
        self._check_rates()
        for model in self.models:
            model._count_update()
        if self._captured.is_on:
            names = self._replay()
            if names is not None:
                return [partial(model._metrics.written, names, model._n_updates) for model in self.models]
        metrics = self._update(self._draw())
        return [partial(model._metrics.append, own, model._n_updates) for model, own in zip(self.models, metrics, strict=True)]

    def _check_rates(self) -> None:
        """Refuse learning rates that a callback has changed in some models only: one tensor holds that of all."""
        for name in self._first._optimizers:
            rates = [model._optimizers[name][0].param_groups[0]["lr"] for model in self.models]
            for i, rate in enumerate(rates):
                if rate != rates[0]:
                    raise ValueError(
                        f"Models that learn together have the same learning rates: that of {name} is {rates[0]:g} in number 0 "
                        f"and {rate:g} in number {i}. Let callbacks set it in all of them, or train one after the other."
                    )

    def _draw(self) -> list[Any]:
        for model in self.models:
            model._last_batch = model.sample_batch(model.batch_size)
        return [model._last_batch for model in self.models]

    def _update(self, batches: list[Any]) -> list[Metrics]:
        inputs = [th.stack(tensors) for tensors in zip(*map(batch_tensors, batches), strict=True)]
        try:
            results, names = self._results(batches[0], inputs)
        except Exception as error:
            if not (self._is_compiled and may_go_on_without(self._first.compile, error)):
                raise
            self._is_compiled, self._graphs = False, {}
            for model in self.models:
                model._is_compiled = False
            results, names = self._results(batches[0], inputs)
        by_model = zip(*(result.unbind() for result in results), strict=True)
        return [dict(zip(names, values, strict=True)) for values in by_model]

    def _replay(self) -> tuple[str, ...] | None:
        """The update as one replay, see :class:`CapturedUpdates`; names of its metrics, None: it has not happened."""
        buffers = [model.replay_buffer for model in self.models if isinstance(model.replay_buffer, OfflineReplayBuffer)]
        data = [buffer.fixed_data() for buffer in buffers]
        if not all(data):
            return None
        generators = [buffer.generator for buffer in buffers] + [model._noise_generator for model in self.models]

        def body() -> tuple[list[Any], tuple[str, ...]]:
            batches = self._draw()
            metrics = self._update(batches)
            for model, own in zip(self.models, metrics, strict=True):
                model._metrics.write(own)
            return batches, tuple(metrics[0])

        key = self._first.update_variant(self._first.batch_size), tuple(buffers)
        done = self._captured.run(key, body, self._first.device, generators, [tensor for own in data for tensor in own])
        if done is None:
            return None
        batches, names = done
        for model, batch in zip(self.models, batches, strict=True):
            model._last_batch = batch
        return names

    @denormals_flushed()
    def _results(self, batch: Any, inputs: list[th.Tensor]) -> tuple[list[th.Tensor], list[str]]:
        variant = self._first.update_variant(self._first.batch_size)
        if variant not in self._graphs:
            self._graphs[variant] = self._record(batch, inputs)
        graph, names = self._graphs[variant]
        with th.no_grad():
            return graph(*inputs, *self._rows, *self._common[0]), names

    def _record(self, batch: Any, inputs: list[th.Tensor]) -> tuple[Callable[..., list[th.Tensor]], list[str]]:
        self._first.policy.set_training_mode(True)
        graph, names = self._recorder.record(batch, batch_tensors(batch))
        state = [*self._rows, *self._common[0]]
        is_stacked = [True] * (len(inputs) + len(self._rows)) + [False] * len(self._common[0])
        with undone(state), th.no_grad():
            together = stack_graph(graph, [*inputs, *state], is_stacked, len(self.models))
        return th.compile(together, fullgraph=True, dynamic=False) if self._is_compiled else together, names


class _Run:
    """
    One model's part of the common run: what its own ``learn`` would do around its updates.

    :param model: the model
    :param callback: its callback
    :param arguments: those of :func:`learn_together` that its ``learn`` has too
    """

    def __init__(self, model: OfflineAlgorithm, callback: MaybeCallback, arguments: dict[str, Any]) -> None:
        self.model = model
        self.log_interval: int | None = arguments["log_interval"]
        name = arguments["tb_log_name"] or type(model).__name__
        self.total_timesteps, self.callback = model._setup_learn(
            arguments["total_timesteps"], callback, arguments["reset_num_timesteps"], name
        )
        own = {"self": model, "total_timesteps": self.total_timesteps, "callback": self.callback, "progress_bar": False}
        self.variables: dict[str, Any] = arguments | own
        self.failure: FloatingPointError | None = None
        self.callback.on_training_start(self.variables, globals())
        self.goes_on = model.num_timesteps < self.total_timesteps

    def begin_update(self) -> None:
        """What comes before an update."""
        self.model._update_current_progress_remaining(self.model.num_timesteps, self.total_timesteps)

    def end_update(self, note_metrics: Callable[[], None]) -> None:
        """
        What comes after an update.

        :param note_metrics: notes its metrics
        """
        try:
            note_metrics()
            goes_on = self.model._end_update(self.callback, self.log_interval, self.variables)
            self.goes_on = goes_on and self.model.num_timesteps < self.total_timesteps
        except FloatingPointError as error:
            self.failure, self.goes_on = error, False

    def end(self) -> None:
        """What comes after the last update."""
        if self.failure is not None:
            return
        try:
            self.model._flush_metrics()
        except FloatingPointError as error:
            self.failure = error
            return
        self.callback.on_training_end()


def _listed(name: str, given: Any) -> list[Any]:
    """What was given for each of the models."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"learn_together: {name} is a {type(given).__name__}, expected a list with one entry per model.")
    return list(given)


def _check_own(models: list[Any], callbacks: list[Any]) -> None:
    """Check that models are models, and that each has its own callbacks. (A function may be called by all of them.)"""
    for i, model in enumerate(models):
        if not isinstance(model, OfflineAlgorithm):
            raise TypeError(f"learn_together trains offline algorithms, and number {i} is a {type(model).__name__}.")
    if len(callbacks) != len(models):
        raise ValueError(f"There are {len(models)} models and {len(callbacks)} callbacks; None stands for no callback.")
    with_state = [callback for callback in callbacks if isinstance(callback, BaseCallback | list)]
    if len({id(callback) for callback in with_state}) < len(with_state):
        raise ValueError(
            "A callback belongs to one model, whose files and counts it has: give every model one of its own, e.g. "
            "callbacks=[CheckpointCallback(1_000, f'seed_{i}') for i in range(5)]."
        )


def learn_together(
    models: Iterable[OfflineAlgorithm],
    total_timesteps: int,
    callbacks: Iterable[MaybeCallback] | None = None,
    log_interval: int | None = 1000,
    tb_log_name: str | None = None,
    reset_num_timesteps: bool = True,
) -> None:
    """
    Train models that differ by their seeds alone, all at once; each ends as after its own ``learn``, up to rounding.

    The dataset is held in memory once. Transitions that ``learn_online`` has collected are drawn like the others. A model that
    a callback stops, or whose numbers are no longer finite, leaves; the others go on. Optimizers are Adam or AdamW, as for
    compiled updates.

    :param models: models of one algorithm with the same settings
    :param total_timesteps: number of updates of every model (added to those already done with ``reset_num_timesteps=False``)
    :param callbacks: callback(s) of every model, in the order of the models
    :param log_interval: write the logs every so many updates; None switches automatic logging off
    :param tb_log_name: name of the runs for TensorBoard, by default the algorithm's
    :param reset_num_timesteps: whether to count from zero or to continue
    :raises ValueError: the models differ in more than their seeds, an argument is out of its range, or two models have the
        same callback
    :raises TypeError: models or callbacks are no list of them
    :raises DatasetError: the dataset is not there or not usable (before anything is trained)
    :raises DivergedSeedsError: some models are no longer finite (after the others have been trained)
    """
    models = _listed("models", models)
    own_callbacks: list[MaybeCallback] = [None] * len(models) if callbacks is None else _listed("callbacks", callbacks)
    _check_own(models, own_callbacks)
    for model in models:
        total_timesteps = model._check_learn(total_timesteps, log_interval, {})
    check_together(models)
    _share_dataset(models, continuing=not reset_num_timesteps)
    # Some settings come from the data.
    check_together(models)
    models[0]._setup_compilation(total_timesteps, continuing=not reset_num_timesteps)
    for model in models[1:]:
        model._is_compiled = models[0]._is_compiled
    arguments = {
        "total_timesteps": total_timesteps,
        "log_interval": log_interval,
        "tb_log_name": tb_log_name,
        "reset_num_timesteps": reset_num_timesteps,
    }
    with contextlib.ExitStack() as stack:
        for model in models:
            model._take_over_random_state(continuing=not reset_num_timesteps)
            stack.enter_context(model._env_for_callbacks())
        runs = [_Run(model, callback, arguments) for model, callback in zip(models, own_callbacks, strict=True)]
        _train(runs)
    failures = {run.model: run.failure for run in runs if run.failure is not None}
    if failures:
        raise DivergedSeedsError(failures)


def _share_dataset(models: Sequence[OfflineAlgorithm], continuing: bool) -> None:
    """Read the dataset for the first model, and let the others have it too."""
    first = models[0]
    first._setup_dataset(continuing)
    for model in models[1:]:
        is_same = model.dataset is first.dataset or (isinstance(model.dataset, str) and model.dataset == first.dataset)
        twin = None
        if is_same and model.dataset_id == first.dataset_id and isinstance(first.replay_buffer, OfflineReplayBuffer):
            twin = first.replay_buffer.twin(model.seed)
        model._setup_dataset(continuing, twin)
    for model in models:
        assert isinstance(model.replay_buffer, OfflineReplayBuffer)
        model.replay_buffer.online_ratio = None


def _train(runs: list[_Run]) -> None:
    going = [run for run in runs if run.goes_on]
    for run in runs:
        if not run.goes_on:
            run.end()
    while going:
        stack = _Stack([run.model for run in going], bool(going[0].model._is_compiled))
        try:
            while stack.is_intact() and all(run.goes_on for run in going):
                for run in going:
                    run.begin_update()
                notes = stack.update()
                for run in going:
                    # All are counted before any callback is asked, so that one that is interrupted finds none behind.
                    run.model.num_timesteps += 1
                for run, note_metrics in zip(going, notes, strict=True):
                    run.end_update(note_metrics)
        finally:
            stack.release()
        for run in going:
            if not run.goes_on:
                run.end()
        going = [run for run in going if run.goes_on]
