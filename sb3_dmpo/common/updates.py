"""What surrounds an update: its noise and its soft updates."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch import nn

from sb3_dmpo.common.type_aliases import Metrics, NoiseSpec


class Target(NamedTuple):
    """
    A soft update that runs at the end of an update.

    :param online: the network that is followed
    :param target: the network that follows
    :param every: run once in so many updates
    :param start: first update at which it runs
    :param is_average: whether ``predict`` acts by what follows, which moves by :func:`average_step`
    """

    online: nn.Module
    target: nn.Module
    every: int
    start: int
    is_average: bool = False

    def is_due(self, update: int) -> bool:
        """
        Whether the soft update runs at the end of this update.

        :param update: update counter, the first update is 1
        """
        return update >= self.start and (update - self.start) % self.every == 0

    @th.no_grad()
    def move(self, tau: float | th.Tensor) -> None:
        """
        ``target <- tau * online + (1 - tau) * target`` for every parameter.

        :param tau: the soft update coefficient, a number or 0-d
        """
        targets: list[th.Tensor] = list(self.target.parameters())
        # Types of torch do not know the overload for tensors.
        weight: Any = [tau] * len(targets) if isinstance(tau, th.Tensor) else tau
        th._foreach_lerp_(targets, list(self.online.parameters()), weight)


def average_step(decay: float, update: int) -> float:
    """
    Coefficient of the newest networks in their average: ``1 - decay``, and before that the 9 / (10 + update) of
    TensorFlow's ``ExponentialMovingAverage(num_updates=...)``. While little has been learned an average remembers the
    last ninth of the updates; else it would begin with its full memory, and lag behind in a short run.

    :param decay: ``ema_decay``
    :param update: update counter, the first update is 1
    """
    return max(1.0 - decay, 9.0 / (10.0 + update))


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """
    Numbers below the smallest normal one (1e-38 in float32) are zero in here, on the calling thread and those it starts.

    Gradients through a softmax get that small (CQL's, once the values of its actions are far apart), processors handle them
    in microcode, and an update then takes several times as long; no weight can tell the difference.
    """
    # torch has no function that tells.
    was_on = sys.float_info.min / 2 == 0.0
    th.set_flush_denormal(True)
    try:
        yield
    finally:
        th.set_flush_denormal(was_on)


def make_noise_generator(device: th.device, seed: int | None) -> th.Generator:
    """
    The generator of the noise of the updates.

    :param device: where the numbers are drawn
    :param seed: seed of the algorithm, None: from the operating system
    """
    generator = th.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        # Not the seed itself: the buffer has that one, and noise would repeat the numbers that choose the minibatches.
        generator.manual_seed(int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))
    return generator


def draw_noise(specs: Mapping[str, NoiseSpec], generator: th.Generator, delayed: bool) -> dict[str, th.Tensor]:
    """
    The random numbers of one update, by name, on the generator's device.

    :param specs: what the update consumes
    :param generator: where the numbers come from
    :param delayed: whether the delayed part of the update runs too
    """
    options: dict[str, Any] = {"generator": generator, "device": generator.device}
    noise = {}
    for name, spec in specs.items():
        if spec.delayed and not delayed:
            continue
        if spec.distribution == "normal":
            noise[name] = th.randn(spec.shape, **options)
        elif spec.distribution == "uniform":
            noise[name] = th.rand(spec.shape, **options)
        else:
            noise[name] = th.randint(spec.high, spec.shape, **options)
    return noise


#: Percentiles of the Bellman errors that the log shows.
ERROR_PERCENTILES = (5, 25, 50, 75, 95)


def error_quantiles(errors: th.Tensor | None) -> Metrics:
    """
    Percentiles of Bellman errors as ``bellman_error_p05`` and so on, 0-d; nothing where there are no errors.

    :param errors: any shape
    """
    if errors is None:
        return {}
    levels = th.tensor(ERROR_PERCENTILES, dtype=errors.dtype, device=errors.device) / 100.0
    quantiles = th.quantile(errors.flatten(), levels)
    return {f"bellman_error_p{level:02d}": value for level, value in zip(ERROR_PERCENTILES, quantiles, strict=True)}
