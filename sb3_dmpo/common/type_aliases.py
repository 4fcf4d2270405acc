"""Batch, noise and metric types shared by every algorithm."""

from typing import Literal, NamedTuple, TypeAlias

import torch as th

#: What ``update`` returns: 0-d tensors by name, fetched from the device only when they are logged.
Metrics: TypeAlias = dict[str, th.Tensor]


class NoiseSpec(NamedTuple):
    """
    One block of random numbers that an update consumes.

    Noise is drawn before ``update`` is called, so that ``update`` is a pure function of its batch: it can be
    compiled, captured in a CUDA graph, or fed recorded noise in a test.

    :param distribution: ``"normal"`` (standard normal), ``"uniform"`` ([0, 1)) or ``"integers"`` (0..high-1)
    :param shape: shape of the block
    :param high: number of different integers (``"integers"`` only)
    :param delayed: whether only the delayed (policy) updates consume it
    """

    distribution: Literal["normal", "uniform", "integers"]
    shape: tuple[int, ...]
    high: int = 0
    delayed: bool = False


class OfflineBatch(NamedTuple):
    """
    A minibatch as ``update`` sees it.

    :param observations: scaled observations, shape ``(batch, observation_size)``
    :param actions: actions in [-1, 1], shape ``(batch, action_size)``
    :param next_observations: scaled next observations, shape ``(batch, observation_size)``
    :param rewards: shape ``(batch, 1)``
    :param dones: 1 for true terminations, 0 otherwise (time limits included), shape ``(batch, 1)``
    :param noise: the random numbers of this update, by name
    :param discounts: with ``n_steps``, factors on the values of the next observations, shape ``(batch, 1)``; None: gamma
    :param next_actions: of algorithms that need them, the dataset's actions at the next observations, shape of ``actions``
    :param has_next_action: 1 where there is one, else 0, shape ``(batch, 1)``
    :param episodes: of algorithms that need them, numbers of the episodes of the dataset, int64, shape ``(batch,)``
    """

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    rewards: th.Tensor
    dones: th.Tensor
    noise: dict[str, th.Tensor]
    discounts: th.Tensor | None = None
    next_actions: th.Tensor | None = None
    has_next_action: th.Tensor | None = None
    episodes: th.Tensor | None = None
