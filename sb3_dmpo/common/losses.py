"""Small differentiable functions shared by the algorithms."""

from typing import Literal

import torch as th

from sb3_dmpo.common import ranks
from sb3_dmpo.common.type_aliases import OfflineBatch

#: Constant added inside logarithms.
LOG_EPS = 1e-12
#: Floor of the advantage range in a minibatch: equal advantages give uniform weights instead of 0/0.
ADVANTAGE_RANGE_MIN = 1e-8
#: Bound of the ``"clipped"`` weights.
CLIPPED_WEIGHT_MAX = 100.0

AdvantageWeight = Literal["normalized", "max_shifted", "clipped"]


def advantage_weights(
    advantages: th.Tensor,
    scale: float,
    mode: AdvantageWeight = "normalized",
    unit_mean: bool = True,
) -> th.Tensor:
    """
    Weights of the weighted maximum likelihood, shape ``(batch, 1)``, without gradient (eq. 19).

    ``"normalized"``: ``exp(scale * (A - max A) / (max A - min A))``, max and min over the minibatch;
    ``"max_shifted"``: the same without the division by the range; ``"clipped"``: ``min(exp(scale * A), 100)``.

    :param advantages: shape ``(batch, 1)``
    :param scale: the paper's alpha; 0 gives uniform weights
    :param mode: see above
    :param unit_mean: divide by the mean over the minibatch (not applied to ``"clipped"``)
    """
    advantages = advantages.detach()
    if mode == "clipped":
        return (scale * advantages).exp().clamp(max=CLIPPED_WEIGHT_MAX)
    largest = ranks.max(advantages.max())
    exponent = advantages - largest
    if mode == "normalized":
        exponent = exponent / (largest - ranks.min(advantages.min())).clamp(min=ADVANTAGE_RANGE_MIN)
    weights = (scale * exponent).exp()
    return weights / ranks.mean(weights.mean()) if unit_mean else weights


def effective_sample_size(weights: th.Tensor) -> th.Tensor:
    """Share of the minibatch that carries weight, ``(sum w)^2 / (batch * sum w^2)``, 0-d; 0 where nothing carries any."""
    least = th.finfo(weights.dtype).tiny
    # Squares of small weights would vanish, and 0 / 0 end the run as diverged.
    weights = weights / weights.max().clamp(min=least)
    return weights.sum().square() / (weights.numel() * weights.square().sum().clamp(min=least))


def bellman_targets(batch: OfflineBatch, gamma: float, next_values: th.Tensor) -> th.Tensor:
    """
    ``r + gamma * V(s')``, without V(s') where the task terminated, shape ``(batch, 1)``.

    :param batch: the minibatch; with ``n_steps`` it has discounted sums of rewards, and discounts of its own
    :param gamma: discount factor
    :param next_values: values of the next observations, shape ``(batch, 1)``
    """
    return batch.rewards + (1.0 - batch.dones) * (gamma if batch.discounts is None else batch.discounts) * next_values


def smoothing_noise(noise: th.Tensor, std: float, clip: float) -> th.Tensor:
    """
    Noise that smooths the target policy, same shape.

    :param noise: standard normal
    :param std: standard deviation
    :param clip: bound of the absolute value
    """
    return (noise * std).clamp(-clip, clip)


def twin_critic_loss(q_values: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """
    Sum over the critics of their mean squared errors, 0-d.

    :param q_values: shape ``(n_critics, batch, 1)``
    :param targets: shape ``(batch, 1)``
    """
    return (q_values - targets).square().flatten(start_dim=1).mean(dim=1).sum()


def min_max_q(q_values: th.Tensor, min_q_weight: float = 1.0) -> th.Tensor:
    """
    ``c * min + (1 - c) * max`` over the critics (first axis), shape of one critic's output.

    :param q_values: shape ``(n_critics, ...)``
    :param min_q_weight: the paper's c; 1 is the plain minimum
    """
    minimum = q_values.amin(dim=0)
    if min_q_weight == 1.0:
        return minimum
    return min_q_weight * minimum + (1.0 - min_q_weight) * q_values.amax(dim=0)


def expectile_loss(predictions: th.Tensor, targets: th.Tensor, expectile: float) -> th.Tensor:
    """
    Asymmetric squared error ``mean(|expectile - 1{target < prediction}| (target - prediction)^2)``, 0-d.

    :param predictions: shape ``(batch, 1)``
    :param targets: shape ``(batch, 1)``
    :param expectile: in (0, 1); 0.5 is half the mean squared error
    """
    difference = targets - predictions
    asymmetry = (expectile - (difference < 0).to(difference.dtype)).abs()
    return (asymmetry * difference.square()).mean()


def gumbel_softmax(probabilities: th.Tensor, uniform: th.Tensor, temperature: float) -> th.Tensor:
    """
    Relaxed one-hot samples of a categorical distribution, shape ``(batch, n_components)``, rows sum to 1.

    :param probabilities: shape ``(batch, n_components)``; the gradient flows through them
    :param uniform: U(0, 1) draws, same shape
    :param temperature: 0 approaches exact one-hots
    """
    return th.softmax((th.log(probabilities + LOG_EPS) + _gumbel(uniform)) / temperature, dim=-1)


def _gumbel(uniform: th.Tensor) -> th.Tensor:
    return -th.log(-th.log(uniform + LOG_EPS) + LOG_EPS)


@th.no_grad()
def sampled_component(probabilities: th.Tensor, uniform: th.Tensor) -> th.Tensor:
    """
    Samples of a categorical distribution, what :func:`gumbel_softmax` relaxes, shape ``(batch,)``.

    :param probabilities: shape ``(batch, n_components)``
    :param uniform: U(0, 1) draws, same shape
    """
    return (th.log(probabilities + LOG_EPS) + _gumbel(uniform)).argmax(dim=-1)


def categorical_kl(probabilities: th.Tensor, prior: th.Tensor) -> th.Tensor:
    """
    KL(probabilities || prior) of every row, shape ``(batch, 1)``.

    :param probabilities: shape ``(batch, n_components)``
    :param prior: shape ``(batch, n_components)``
    """
    return (probabilities * (th.log(probabilities + LOG_EPS) - th.log(prior + LOG_EPS))).sum(dim=-1, keepdim=True)


def entropy(probabilities: th.Tensor) -> th.Tensor:
    """
    Entropy of categorical distributions in nats, shape ``(...)``.

    :param probabilities: shape ``(..., n)``
    """
    return -(probabilities * probabilities.clamp(min=LOG_EPS).log()).sum(dim=-1)


@th.no_grad()
def mixture_diagnostics(
    posterior: th.Tensor, chosen: th.Tensor, component_actions: th.Tensor, actions: th.Tensor
) -> dict[str, th.Tensor]:
    """
    Whether a mixture is one, each 0-d: ``mutual_information`` of component and transition and ``posterior_entropy`` in nats;
    ``gate_support``, the probability that the dataset's action is of the component that the gate chooses in its state; and
    the distance of the dataset's actions to those of the assigned component and of the chosen one, ``assigned_distance`` and
    ``gate_distance``, both from 0 to ``2 sqrt(A)``.

    :param posterior: probability of every component given state and action, shape ``(batch, n_components)``
    :param chosen: components that the gate chooses, shape ``(batch, 1)``
    :param component_actions: what every component would do, shape ``(batch, n_components, action_size)``
    :param actions: actions of the dataset, shape ``(batch, action_size)``
    """
    conditional = entropy(posterior).mean()
    distances = (component_actions - actions.unsqueeze(1)).norm(dim=2)
    assigned = posterior.argmax(dim=1, keepdim=True)
    return {
        "mutual_information": entropy(posterior.mean(dim=0)) - conditional,
        "posterior_entropy": conditional,
        "gate_support": posterior.gather(1, chosen).mean(),
        "assigned_distance": distances.gather(1, assigned).mean(),
        "gate_distance": distances.gather(1, chosen).mean(),
    }
