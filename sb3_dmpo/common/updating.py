"""How updates are run: optimizers, soft updates, and the update as it is written or as compiled code."""

from collections.abc import Iterable
from typing import Any

import torch as th
from stable_baselines3.common import utils
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_dmpo.common.compilation import (
    CompiledUpdate,
    CompileOption,
    choose_compilation,
    may_go_on_without,
    missing_for_compilation,
)
from sb3_dmpo.common.metrics import MetricAverager
from sb3_dmpo.common.optimizers import adam_step, clipped, make_optimizer, optimizer_step, prepare_adam
from sb3_dmpo.common.policies import OfflinePolicy
from sb3_dmpo.common.type_aliases import Metrics, NoiseSpec, OfflineBatch
from sb3_dmpo.common.updates import Target, denormals_flushed


class UpdateMixin(OffPolicyAlgorithm):
    """The part of :class:`OfflineAlgorithm` that turns losses into updates."""

    policy: OfflinePolicy
    policy_delay: int
    compile: CompileOption
    _optimizers: dict[str, tuple[th.optim.Optimizer, Schedule, list[nn.Parameter]]]
    _targets: list[Target]
    _is_compiled: bool | None
    _compiled: CompiledUpdate | None
    _rates: dict[str, th.Tensor]
    _metrics: MetricAverager
    _last_batch: OfflineBatch | None
    sample_batch: Any

    def add_optimizer(
        self, name: str, modules: Iterable[nn.Module | nn.Parameter], learning_rate: float | Schedule | None = None
    ) -> None:
        """
        Create the optimizer ``<name>_optimizer`` over the parameters of some networks. It is saved in the zip.

        :param name: name of the loss that it minimises
        :param modules: networks or single parameters
        :param learning_rate: own learning rate; None follows the algorithm's ``learning_rate``
        """
        schedule = self.lr_schedule if learning_rate is None else utils.FloatSchedule(learning_rate)
        parameters = [p for m in modules for p in ([m] if isinstance(m, nn.Parameter) else m.parameters())]
        optimizer = make_optimizer(self.policy.optimizer_class, parameters, schedule(1.0), self.policy.optimizer_kwargs)
        self._optimizers[name] = (optimizer, schedule, parameters)
        setattr(self, f"{name}_optimizer", optimizer)

    def add_target(self, online: nn.Module, target: nn.Module, every: int | None = None, start: int | None = None) -> None:
        """
        Declare a soft update ``target <- tau * online + (1 - tau) * target``.

        :param online: the network that is followed
        :param target: the network that follows
        :param every: run once in so many updates; None: with every policy update
        :param start: first update at which it runs; None: when ``every`` updates are done
        """
        every = every or self.policy_delay
        self._targets.append(Target(online, target, every, start or every))

    def noise_specs(self, batch_size: int) -> dict[str, NoiseSpec]:
        """
        The random numbers that one update consumes, by name.

        :param batch_size: minibatch size
        """
        return {}

    def update(self, batch: OfflineBatch) -> Metrics:
        """
        One gradient update; nothing in it waits for the device.

        :param batch: the minibatch
        :return: 0-d tensors to be logged
        """
        raise NotImplementedError()

    def optimize(self, name: str, loss: th.Tensor, max_grad_norm: float | None = None) -> None:
        """
        One step of an optimizer; gradients reach only its own parameters.

        :param name: as given to :meth:`add_optimizer`
        :param loss: 0-d
        :param max_grad_norm: bound of the gradient's norm
        """
        optimizer, _, parameters = self._optimizers[name]
        gradients = list(th.autograd.grad(loss, parameters))
        if max_grad_norm is not None:
            gradients = clipped(gradients, max_grad_norm)
        if self._compiled is not None and self._compiled.is_recording:
            adam_step(optimizer, parameters, gradients, self._rates[name])
        else:
            optimizer_step(optimizer, parameters, gradients)

    @property
    def is_policy_update(self) -> bool:
        """Whether the current update includes the delayed part (actor and targets)."""
        return self._n_updates % self.policy_delay == 0

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """
        Sample minibatches and do the updates.

        :param gradient_steps: number of updates
        :param batch_size: minibatch size
        """
        if not self.policy.training:  # to visit every module takes longer than it looks
            self.policy.set_training_mode(True)
        for _ in range(gradient_steps):
            self._begin_update()
            self._last_batch = self.sample_batch(batch_size)
            self._metrics.append(self._run_update(self._last_batch, batch_size), self._n_updates)

    def _begin_update(self) -> None:
        """Set the learning rates of the next update, and count it."""
        for name, (optimizer, schedule, _) in self._optimizers.items():
            rate = schedule(self._current_progress_remaining)
            utils.update_learning_rate(optimizer, rate)
            if self._compiled is not None:
                self._rates[name].fill_(rate)
        self._n_updates += 1

    @denormals_flushed()
    def _run_update(self, batch: OfflineBatch, batch_size: int) -> Metrics:
        if self._compiled is None:
            return self._update_all(batch)
        try:
            return self._compiled(batch, self.update_variant(batch_size))
        except Exception as error:
            if not may_go_on_without(self.compile, error):
                raise
            self._is_compiled, self._compiled = False, None
            return self._update_all(batch)

    def _update_all(self, batch: OfflineBatch) -> Metrics:
        metrics = self.update(batch)
        for target in self._targets:
            if target.is_due(self._n_updates):
                target.move(self.tau)
        return metrics

    def update_variant(self, batch_size: int) -> tuple[Any, ...]:
        """
        What decides which operations the current update consists of; it is compiled once for every value.

        :param batch_size: minibatch size
        """
        return batch_size, self.is_policy_update, *(target.is_due(self._n_updates) for target in self._targets)

    def _chooses_compilation(self, n_updates: int, continuing: bool) -> bool:
        """
        Whether the updates are compiled; a run that goes on stays with what it began with.

        :param n_updates: updates to come
        :param continuing: whether a run goes on
        """
        optimizers = [optimizer for optimizer, _, _ in self._optimizers.values()]
        option: CompileOption = self._is_compiled if continuing and self._is_compiled is not None else self.compile
        return choose_compilation(option, n_updates, missing_for_compilation(optimizers, self.device), self.device)

    def _setup_compilation(self, n_updates: int, continuing: bool) -> None:
        """
        Make the compiled update, if there is to be one.

        :param n_updates: updates to come
        :param continuing: whether a run goes on
        """
        self._is_compiled = self._chooses_compilation(n_updates, continuing)
        if not self._is_compiled:
            self._compiled = None
            return
        state = self._update_state()
        if self._compiled is None or not self._compiled.has_state(state):
            self._compiled = CompiledUpdate(self._update_all, state)

    def _update_state(self) -> list[th.Tensor]:
        """Every tensor that an update reads or writes apart from the minibatch."""
        self._rates = self._rates or {name: th.zeros((), device=self.device) for name in self._optimizers}
        state = [*self.policy.parameters(), *self.policy.buffers(), *self._rates.values()]
        for optimizer, _, _ in self._optimizers.values():
            prepare_adam(optimizer)
            state += [tensor for values in optimizer.state.values() for tensor in values.values()]
        return state

    def set_parameters(self, *args: Any, **kwargs: Any) -> None:
        """As in SB3; compiled updates go on with the new tensors of the optimizers."""
        super().set_parameters(*args, **kwargs)
        if self._compiled is not None:
            self._setup_compilation(0, continuing=True)
