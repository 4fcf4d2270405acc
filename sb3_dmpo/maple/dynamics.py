"""The ensemble of learned dynamics: networks, training, and one step of the learned environment."""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_dmpo.common import ranks
from sb3_dmpo.common.networks import EnsembleLinear
from sb3_dmpo.common.optimizers import make_optimizer, optimizer_step, prepare_adam
from sb3_dmpo.common.updates import denormals_flushed
from sb3_dmpo.files.safe_zip import DamagedFileError

#: Decay of the hidden layers, the first one first (the last value for all further ones), and of the output layers.
HIDDEN_DECAY, OUTPUT_DECAY = (2.5e-5, 5e-5, 7.5e-5), 1e-4
#: Weight of the spread between the bounds of the log-variance in the loss.
BOUNDS_WEIGHT = 0.01
#: The bounds at the start.
LOG_VAR_BOUNDS = (-10.0, 0.5)
#: Inputs that hardly vary are shifted but not scaled.
SMALLEST_STD = 1e-12
#: The holdout: this share of the transitions, at most so many.
HOLDOUT_SHARE, MAX_HOLDOUT = 0.2, 1000
#: Errors of nets that were never evaluated.
NO_ERROR = 1e10
#: Rows of the dataset that are read at once where all of them are needed.
BLOCK_ROWS = 65_536

#: Inputs ``(..., S+A)`` and targets ``(..., 1+S)`` of the transitions with the given numbers.
Transitions = Callable[[th.Tensor], tuple[th.Tensor, th.Tensor]]


class ModelStep(NamedTuple):
    """
    What the learned environment answers, before anything is clipped.

    :param rewards: shape ``(n, 1)``
    :param next_observations: shape ``(n, S)``
    :param penalties: how uncertain the ensemble is, shape ``(n, 1)``
    """

    rewards: th.Tensor
    next_observations: th.Tensor
    penalties: th.Tensor


class DynamicsEnsemble(nn.Module):
    """
    Networks that predict reward and change of the observation as independent normal distributions.

    :param observation_size: S
    :param action_size: A
    :param n_models: number of networks, M
    :param n_elites: how many of them predict; all of them take part in the penalty
    :param model_arch: widths of the hidden layers
    """

    def __init__(
        self, observation_size: int, action_size: int, n_models: int, n_elites: int, model_arch: tuple[int, ...]
    ) -> None:
        super().__init__()
        sizes = [observation_size + action_size, *model_arch]
        self.n_models = n_models
        self.hidden = nn.ModuleList(EnsembleLinear(n_models, *pair) for pair in itertools.pairwise(sizes))
        self.mean = EnsembleLinear(n_models, sizes[-1], 1 + observation_size)
        self.log_var = EnsembleLinear(n_models, sizes[-1], 1 + observation_size)
        for layer in self.layers():
            std = 0.5 / math.sqrt(layer.weight.shape[2])
            nn.init.trunc_normal_(layer.weight, std=std, a=-2.0 * std, b=2.0 * std)
            nn.init.zeros_(layer.bias)
        low, high = LOG_VAR_BOUNDS
        self.min_log_var = nn.Parameter(th.full((1 + observation_size,), low))
        self.max_log_var = nn.Parameter(th.full((1 + observation_size,), high))
        self.register_buffer("input_mean", th.zeros(sizes[0]))
        self.register_buffer("input_std", th.ones(sizes[0]))
        self.register_buffer("elites", th.arange(n_elites))
        # Mean squared error of every net on the holdout; of the elites by output, and of the holdout's mean in their place.
        self.register_buffer("holdout_errors", th.full((n_models,), NO_ERROR))
        self.register_buffer("output_errors", th.full((1 + observation_size,), NO_ERROR))
        self.register_buffer("output_variances", th.zeros(1 + observation_size))
        self.input_mean: th.Tensor
        self.input_std: th.Tensor
        self.elites: th.Tensor
        self.holdout_errors: th.Tensor
        self.output_errors: th.Tensor
        self.output_variances: th.Tensor

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "DynamicsEnsemble":
        """
        The ensemble of :meth:`to_arrays`.

        :param arrays: what it returned
        :raises DamagedFileError: they make no ensemble
        """
        try:
            n_hidden = sum(name.startswith("hidden.") and name.endswith(".weight") for name in arrays)
            shapes = [arrays[f"hidden.{i}.weight"].shape for i in range(n_hidden)]
            n_models, n_outputs, _ = arrays["mean.weight"].shape
            widths = tuple(width for _, width, _ in shapes)
            sizes = (n_outputs - 1, shapes[0][2] - (n_outputs - 1))
            # Without memory first: what the names and shapes promise has to be there.
            with th.device("meta"):
                expected = cls(*sizes, n_models, len(arrays["elites"]), widths).state_dict()
            found = {name: (value.shape, value.dtype.kind) for name, value in arrays.items()}
            kinds = {name: (tuple(value.shape), "i" if name == "elites" else "f") for name, value in expected.items()}
            elites = arrays["elites"]
            if found != kinds or not (0 <= elites.min() and elites.max() < n_models):
                raise ValueError("their shapes do not fit")
            ensemble = cls(*sizes, n_models, len(elites), widths)
            ensemble.load_state_dict({name: th.tensor(value) for name, value in arrays.items()})
        except (KeyError, ValueError, IndexError, TypeError, RuntimeError) as error:
            raise DamagedFileError(f"The arrays in the file make no ensemble of dynamics ({error}).") from None
        return ensemble

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything that :meth:`from_arrays` needs."""
        return {name: value.detach().cpu().numpy() for name, value in self.state_dict().items()}

    def layers(self) -> list[EnsembleLinear]:
        """The hidden layers, then those of means and log-variances."""
        return [layer for layer in (*self.hidden, self.mean, self.log_var) if isinstance(layer, EnsembleLinear)]

    def net_parameters(self) -> list[nn.Parameter]:
        """Parameters that every net has of its own, its number first."""
        return [parameter for layer in self.layers() for parameter in (layer.weight, layer.bias)]

    def set_scaler(self, mean: th.Tensor, std: th.Tensor) -> None:
        """
        Fix the scaling of the inputs.

        :param mean: shape ``(S+A,)``
        :param std: population standard deviation, shape ``(S+A,)``
        """
        self.input_mean.copy_(mean)
        self.input_std.copy_(th.where(std < SMALLEST_STD, 1.0, std))

    def forward(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Means and log-variances of all nets, shape ``(M, n, 1+S)`` each: the reward, then the change of the observation.

        :param inputs: observations and actions, shape ``(n, S+A)``, or ``(M, n, S+A)`` with rows of its own for every net
        """
        hidden = ((inputs - self.input_mean) / self.input_std).mT
        hidden = hidden.expand(self.n_models, *hidden.shape[-2:])
        for layer in self.hidden:
            hidden = F.silu(layer(hidden))
        log_var = self.log_var(hidden).mT
        # The upper bound first; the order matters where the two are near.
        log_var = self.max_log_var - F.softplus(self.max_log_var - log_var)
        log_var = self.min_log_var + F.softplus(log_var - self.min_log_var)
        return self.mean(hidden).mT, log_var

    def decay(self) -> th.Tensor:
        """Weight decay of all nets, 0-d."""
        n_hidden = len(self.hidden)
        factors = [HIDDEN_DECAY[min(i, len(HIDDEN_DECAY) - 1)] for i in range(n_hidden)] + [OUTPUT_DECAY] * 2
        terms = [0.5 * factor * layer.weight.square().sum() for factor, layer in zip(factors, self.layers(), strict=True)]
        return th.stack(terms).sum()

    def loss(self, inputs: th.Tensor, targets: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Likelihoods, decay and bounds, 0-d; and the squared error of every net, shape ``(M,)``.

        :param inputs: shape ``(M, n, S+A)``
        :param targets: shape ``(M, n, 1+S)``
        """
        mean, log_var = self(inputs)
        errors = (mean - targets).square()
        likelihoods = (errors * th.exp(-log_var)).mean(dim=(1, 2)) + log_var.mean(dim=(1, 2))
        bounds = self.max_log_var.sum() - self.min_log_var.sum()
        loss: th.Tensor = likelihoods.sum() + self.decay() + BOUNDS_WEIGHT * bounds
        return loss, errors.detach().mean(dim=(1, 2))

    def squared_errors(self, inputs: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """
        Mean over the rows of the squared error of every net and output, shape ``(M, 1+S)``.

        :param inputs: shape ``(n, S+A)``
        :param targets: shape ``(n, 1+S)``
        """
        means: th.Tensor = self(inputs)[0]
        return (means - targets).square().mean(dim=1)

    def step(
        self, observations: th.Tensor, actions: th.Tensor, noise: th.Tensor, members: th.Tensor, penalty: str
    ) -> ModelStep:
        """
        One step of the learned environment.

        :param observations: shape ``(n, S)``
        :param actions: shape ``(n, A)``
        :param noise: standard normal, shape ``(n, 1+S)``
        :param members: which net answers, by row, shape ``(n,)``
        :param penalty: ``"aleatoric"``: the largest norm of a net's standard deviations; ``"disagreement"``: the largest
            distance of a net's mean next observation to that of all nets
        """
        means, log_vars = self(th.cat([observations, actions], dim=1))
        stds = th.exp(0.5 * log_vars)
        if penalty == "aleatoric":
            penalties = stds.norm(dim=2).amax(dim=0)
        else:
            changes = means[:, :, 1:]
            penalties = (changes - changes.mean(dim=0)).norm(dim=2).amax(dim=0)
        rows = th.arange(len(observations), device=observations.device)
        outputs = means[members, rows] + stds[members, rows] * noise
        return ModelStep(outputs[:, :1], observations + outputs[:, 1:], penalties.unsqueeze(1))

    def summary(self) -> dict[str, Any]:
        """Size, elites and errors as plain data."""
        elite_errors = self.holdout_errors[self.elites]
        return {
            "n_models": self.n_models,
            "elites": self.elites.tolist(),
            "holdout_mse": float(elite_errors.mean()),
            "holdout_mse_by_output": self.output_errors.tolist(),
            "holdout_variance_by_output": self.output_variances.tolist(),
        }


def input_statistics(transitions: Transitions, rows: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Mean and population standard deviation of the inputs, shape ``(S+A,)`` each, summed in double precision.

    :param transitions: gives inputs and targets
    :param rows: numbers of the transitions
    """
    blocks = th.split(rows, BLOCK_ROWS)
    n_rows = ranks.mean(th.tensor(len(rows), dtype=th.float64, device=rows.device))
    mean = _mean([transitions(block)[0].double().sum(dim=0) for block in blocks], n_rows)
    return mean, _mean([(transitions(block)[0].double() - mean).square().sum(dim=0) for block in blocks], n_rows).sqrt()


def _mean(sums: list[th.Tensor], n_rows: th.Tensor) -> th.Tensor:
    """Mean over the rows of all processes of what was summed block by block."""
    return ranks.mean(th.as_tensor(sum(sums))) / n_rows.to(sums[0].device)


def split(n_transitions: int, generator: th.Generator) -> tuple[th.Tensor, th.Tensor]:
    """
    Numbers of the transitions that are held out, and of those that are trained on.

    :param n_transitions: how many there are
    :param generator: draws first for this
    """
    order = th.randperm(n_transitions, generator=generator, device=generator.device)
    n_holdout = min(int(HOLDOUT_SHARE * n_transitions), MAX_HOLDOUT)
    # With fewer than five transitions they are their own holdout.
    return order[: n_holdout or n_transitions], order[n_holdout:]


def part_of(numbers: th.Tensor, first_row: int, n_rows: int) -> th.Tensor:
    """
    Those of some transitions that lie in a part of the dataset, counted from its beginning.

    :param numbers: numbers of the transitions
    :param first_row: number of the part's first one
    :param n_rows: how many it has
    """
    return numbers[(numbers >= first_row) & (numbers < first_row + n_rows)] - first_row


class EarlyStopping:
    """
    Which nets were better than ever before, and when to stop.

    :param n_models: number of nets
    :param patience: training ends when more epochs than this in a row have improved no net
    """

    def __init__(self, n_models: int, patience: int) -> None:
        self.patience = patience
        self.best_errors = th.full((n_models,), NO_ERROR, dtype=th.float64)
        self.stale_epochs = 0

    def improved(self, errors: th.Tensor) -> th.Tensor:
        """
        Take note of the errors of an epoch; which nets to save, shape ``(M,)``.

        :param errors: error of every net, shape ``(M,)``
        """
        errors = errors.double().cpu()
        better = errors < self.best_errors
        self.best_errors = th.where(better, errors, self.best_errors)
        self.stale_epochs = 0 if bool(better.any()) else self.stale_epochs + 1
        return better

    @property
    def is_over(self) -> bool:
        """Whether training has ended."""
        return self.stale_epochs > self.patience


class EnsembleTraining:
    """
    Fits an ensemble epoch by epoch. All it draws depends on its seed and the number of the epoch alone, so that a training
    that is continued from :meth:`to_arrays` ends with the same bits as one that was never interrupted.

    :param ensemble: what is trained
    :param transitions: the data
    :param n_transitions: how many there are
    :param make_generator: a generator of its own for every number: 0 for split and bootstrap, then one for every epoch
    :param learning_rate: of Adam
    :param batch_size: rows of a minibatch of every net
    :param patience: see :class:`EarlyStopping`
    :param max_epochs: end after so many epochs; None: no limit
    :param first_row: number of the first one that is here, where several processes share the data
    :param n_rows: how many are here; None: all
    """

    def __init__(
        self,
        ensemble: DynamicsEnsemble,
        transitions: Transitions,
        n_transitions: int,
        make_generator: Callable[..., th.Generator],
        learning_rate: float = 1e-3,
        batch_size: int = 256,
        patience: int = 5,
        max_epochs: int | None = None,
        first_row: int = 0,
        n_rows: int | None = None,
    ) -> None:
        self.ensemble = ensemble
        self.transitions = transitions
        self.make_generator = make_generator
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        generator = make_generator(0)
        # All processes split alike, and each has what lies in its part of the data.
        own = first_row, n_transitions if n_rows is None else n_rows
        self.holdout, self.rows = (part_of(numbers, *own) for numbers in split(n_transitions, generator))
        if ranks.is_joined():
            generator = make_generator(0, *ranks.process_path())
        # As many everywhere, so that all do the same number of steps.
        shape = (ensemble.n_models, int(ranks.max(th.tensor(len(self.rows)))))
        self.bootstrap = th.randint(len(self.rows), shape, generator=generator, device=generator.device)
        ensemble.set_scaler(*input_statistics(transitions, self.rows))
        self.parameters = list(ensemble.parameters())
        self.optimizer = make_optimizer(th.optim.Adam, self.parameters, learning_rate, {})
        prepare_adam(self.optimizer)
        self.best = [parameter.detach().clone() for parameter in ensemble.net_parameters()]
        self.stopping = EarlyStopping(ensemble.n_models, patience)
        self.epoch = 0

    @property
    def is_over(self) -> bool:
        """Whether there is no epoch left to do."""
        return self.stopping.is_over or (self.max_epochs is not None and self.epoch >= self.max_epochs)

    @denormals_flushed()
    def run_epoch(self) -> dict[str, float]:
        """
        One epoch; what is to be logged, by name.

        :raises FloatingPointError: the loss is no longer finite
        """
        since, number = time.monotonic(), self.epoch + 1
        losses = [self._train_step(columns) for columns in th.split(self._shuffled(number), self.batch_size, 1)]
        train_loss = float(ranks.mean(th.stack(losses).mean()))
        if not math.isfinite(train_loss):
            raise FloatingPointError(
                f"The loss of the dynamics ensemble is {train_loss} in epoch {number}: training has diverged. Lower "
                "model_learning_rate, and look at the dataset for values of a wrong scale."
            )
        improved = self.stopping.improved(self.holdout_errors().mean(dim=1))
        with th.no_grad():
            for best, parameter in zip(self.best, self.ensemble.net_parameters(), strict=True):
                best[improved] = parameter[improved]
        self.epoch = number
        n_elites = len(self.ensemble.elites)
        return {
            "model/epoch": number,
            "model/train_loss": train_loss,
            "model/holdout_mse": float(self.stopping.best_errors.sort().values[:n_elites].mean()),
            "model/n_improved": int(improved.sum()),
            "model/stale_epochs": self.stopping.stale_epochs,
            "time/model_seconds": time.monotonic() - since,
        }

    def _shuffled(self, epoch: int) -> th.Tensor:
        """Rows of the dataset for every net in the order of an epoch, shape ``(M, n)``."""
        generator = self.make_generator(epoch, *ranks.process_path())
        table = th.empty_like(self.bootstrap)
        for own, drawn in zip(table, self.bootstrap, strict=True):
            own.copy_(self.rows[drawn[th.randperm(len(drawn), generator=generator, device=generator.device)]])
        return table

    def _train_step(self, rows: th.Tensor) -> th.Tensor:
        loss, _ = self.ensemble.loss(*self.transitions(rows))
        gradients = ranks.mean_gradients(list(th.autograd.grad(loss, self.parameters)))
        optimizer_step(self.optimizer, self.parameters, gradients)
        return loss.detach()

    @th.no_grad()
    def holdout_errors(self) -> th.Tensor:
        """Squared error of every net and output on the holdout, shape ``(M, 1+S)``."""
        errors = self.ensemble.squared_errors(*self.transitions(self.holdout))
        if not ranks.is_joined():
            return errors
        n_rows = th.tensor(float(len(self.holdout)), device=errors.device)
        # A process may have none of them.
        sums = errors * n_rows if len(self.holdout) > 0 else th.zeros_like(errors)
        return ranks.mean(sums) / ranks.mean(n_rows)

    @th.no_grad()
    def finish(self) -> None:
        """Put every net back to its best weights, and choose the elites."""
        for best, parameter in zip(self.best, self.ensemble.net_parameters(), strict=True):
            parameter.copy_(best)
        ensemble, errors = self.ensemble, self.stopping.best_errors
        ensemble.holdout_errors.copy_(errors)
        ensemble.elites.copy_(elites(errors, len(ensemble.elites)))
        ensemble.output_errors.copy_(self.holdout_errors()[ensemble.elites].mean(dim=0))
        _, targets = self.transitions(self.holdout)
        n_rows = ranks.mean(th.tensor(len(targets), dtype=th.float64, device=targets.device))
        mean = _mean([targets.double().sum(dim=0)], n_rows)
        ensemble.output_variances.copy_(_mean([(targets - mean).square().sum(dim=0)], n_rows))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What the next epoch depends on, besides data and settings."""
        arrays = {f"ensemble/{name}": value for name, value in self.ensemble.to_arrays().items()}
        for i, tensor in enumerate(self.best):
            arrays[f"best/{i}"] = tensor.cpu().numpy()
        for i, parameter in enumerate(self.parameters):
            for name in ("step", "exp_avg", "exp_avg_sq"):
                arrays[f"adam/{i}/{name}"] = self.optimizer.state[parameter][name].cpu().numpy()
        arrays["best_errors"] = self.stopping.best_errors.numpy()
        arrays["counts"] = np.array([self.epoch, self.stopping.stale_epochs])
        # A tensor on the CPU shares its memory, and is moved by the next epoch.
        return {name: np.array(value) for name, value in arrays.items()}

    @th.no_grad()
    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """
        Go on where :meth:`to_arrays` was called.

        :param arrays: what it returned
        :raises DamagedFileError: they are of another training
        """
        expected = {name: (value.shape, value.dtype) for name, value in self.to_arrays().items()}
        if {name: (value.shape, value.dtype) for name, value in arrays.items()} != expected:
            raise DamagedFileError("The ensemble in the file that is half trained is of other settings or another dataset.")
        prefix = "ensemble/"
        weights = {name.removeprefix(prefix): th.tensor(v) for name, v in arrays.items() if name.startswith(prefix)}
        self.ensemble.load_state_dict(weights)
        for i, tensor in enumerate(self.best):
            tensor.copy_(th.tensor(arrays[f"best/{i}"]))
        for i, parameter in enumerate(self.parameters):
            for name in ("step", "exp_avg", "exp_avg_sq"):
                self.optimizer.state[parameter][name].copy_(th.tensor(arrays[f"adam/{i}/{name}"]))
        self.stopping.best_errors = th.tensor(arrays["best_errors"])
        self.epoch, self.stopping.stale_epochs = map(int, arrays["counts"])


def elites(errors: th.Tensor, n_elites: int) -> th.Tensor:
    """
    The nets with the smallest errors, lowest first, ties to the lower number, shape ``(n_elites,)``.

    :param errors: shape ``(M,)``
    :param n_elites: how many
    """
    return errors.argsort(stable=True)[:n_elites]
