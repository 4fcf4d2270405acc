"""What can be said about a policy without its environment: from a dataset alone."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray

from sb3_dmpo.common.arguments import (
    ABOVE_ZERO,
    COUNT,
    POSITIVE,
    SEED,
    UNIT,
    Range,
    check_argument,
    is_whole,
    near_names,
    optional,
)
from sb3_dmpo.common.buffers import OfflineReplayBuffer, check_buffer
from sb3_dmpo.common.networks import EnsembleCritic
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.policies import OfflinePolicy
from sb3_dmpo.common.updates import Target
from sb3_dmpo.data import DatasetError, Transitions, load_transitions
from sb3_dmpo.data.minari import is_minari_id
from sb3_dmpo.data.transitions import dataset_label
from sb3_dmpo.files.save_util import preserved_random_state

#: Rows of the dataset that networks see at once.
_BLOCK = 8192
#: Seed of the choice of states.
_SEED = 0


def _are_widths(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(is_whole(width, 1) for width in value)


#: Ranges of the settings of :func:`fitted_q_evaluation`.
FQE_RANGES: dict[str, Range] = {
    "n_updates": COUNT,
    "n_critics": COUNT,
    "net_arch": Range(_are_widths, "a list of whole numbers of at least 1"),
    "batch_size": COUNT,
    "learning_rate": POSITIVE,
    "tau": ABOVE_ZERO,
    "gamma": optional(UNIT),
    "seed": Range(lambda value: value is not None and SEED.accepts(value), "a whole number from 0 to 4294967295"),
}


def check_fqe_arguments(owner: str, given: Mapping[str, Any]) -> None:
    """
    Check settings of :func:`fitted_q_evaluation`, before anything is done.

    :param owner: name of what takes them, for the message
    :param given: the settings by name
    :raises TypeError: there is no setting of that name
    :raises ValueError: a value is out of its range
    """
    for name, value in given.items():
        if name not in FQE_RANGES:
            raise TypeError(f"{owner}() has no argument '{name}'.{near_names(name, FQE_RANGES)}")
        check_argument(owner, name, value, FQE_RANGES[name])


@dataclass(frozen=True)
class FittedValue:
    """
    What :func:`fitted_q_evaluation` estimates.

    :param values: discounted return from the initial states as each critic sees it, shape ``(n_critics,)``
    :param loss: squared error of the critics in the last tenth of the updates, in units of the returns' variance
    """

    values: NDArray[np.float64]
    loss: float

    @property
    def mean(self) -> float:
        """Mean over the critics."""
        return float(self.values.mean())

    @property
    def std(self) -> float:
        """Standard deviation over the critics, which differ in their initial weights only."""
        return float(self.values.std())


def dataset_of(model: OfflineAlgorithm, dataset: Any = None) -> Transitions:
    """
    The dataset to evaluate on, read and compared with the model.

    :param model: the model
    :param dataset: as of ``load_transitions``; None: what the model was trained on
    :raises ValueError: there is none, or the policy has a memory
    :raises DatasetError: the dataset is not usable, or its spaces are not the model's
    """
    if model.policy.has_memory:
        raise ValueError(f"{type(model).__name__} remembers the episode: it cannot be evaluated on single transitions.")
    dataset = model.dataset if dataset is None else dataset
    is_from_zip = dataset is None
    dataset = model.dataset_id if dataset is None else dataset
    if dataset is None:
        raise ValueError("There is no dataset to evaluate on: pass `dataset=`.")
    if is_from_zip and not is_minari_id(str(dataset)):
        # As for `learn`: files are only opened if the user names them.
        raise ValueError(f"The model was trained on the file {dataset!r}: pass its path as `dataset=`.")
    if isinstance(dataset, OfflineReplayBuffer):
        raise DatasetError.at(
            dataset_label(dataset.dataset_id),
            "an OfflineReplayBuffer holds it for updates, with transformed rewards, and not as it was recorded",
            "Pass what the buffer was made from as `dataset=`, e.g. the Transitions that `load_transitions` returns",
        )
    # Where the data have no spaces of their own, those of the environment hold, as in training.
    data = load_transitions(dataset, env=model.env, progress_bar=False, clip_actions=model.clip_actions)
    fingerprint = model.dataset_fingerprint if is_from_zip else None
    check_buffer(data, model.observation_space, model.action_space, fingerprint, needs_rewards=False)
    return data


@contextlib.contextmanager
def _evaluated(policy: OfflinePolicy) -> Iterator[None]:
    """Let the networks act, and go on with the training afterwards if they were at it."""
    was_training = policy.training
    policy.set_training_mode(False)
    try:
        yield
    finally:
        policy.set_training_mode(was_training)


@th.no_grad()
def policy_actions(model: OfflineAlgorithm, observations: NDArray[np.float32]) -> th.Tensor:
    """
    The deterministic actions of a model, in [-1, 1], shape ``(n, action_size)``.

    :param model: the model
    :param observations: flat raw observations, shape ``(n, observation_size)``
    """
    blocks = th.split(th.as_tensor(observations, device=model.device), _BLOCK)
    with _evaluated(model.policy):
        return th.cat([model.policy._predict(block, deterministic=True) for block in blocks]).clamp(-1.0, 1.0)


def initial_rows(data: Transitions) -> NDArray[np.int64]:
    """
    Rows of the first transitions of the episodes, shape ``(n_episodes,)``.

    :param data: the dataset
    """
    starts: NDArray[np.int64] = np.cumsum(data.episode_lengths) - data.episode_lengths
    return starts


def _returns_to_go(data: Transitions, gamma: float) -> NDArray[np.float64]:
    """Discounted rewards from every step to the end of its episode, shape ``(n,)``."""
    returns = np.empty(len(data))
    ends = set((np.cumsum(data.episode_lengths) - 1).tolist())
    value = 0.0
    for row in range(len(data) - 1, -1, -1):
        value = float(data.rewards[row]) + (0.0 if row in ends else gamma * value)
        returns[row] = value
    return returns


def fitted_q_evaluation(
    model: OfflineAlgorithm,
    dataset: Any = None,
    *,
    n_updates: int = 5000,
    n_critics: int = 3,
    net_arch: tuple[int, ...] = (128, 128),
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    tau: float = 0.02,
    gamma: float | None = None,
    seed: int = 0,
) -> FittedValue:
    """
    Fitted Q evaluation: critics of their own, fitted to the Bellman equation of the evaluated policy on the dataset's
    transitions, and their value of its actions in the initial states.

    Paper: Le, Voloshin, Yue: *Batch Policy Learning under Constraints*, ICML 2019. Here every critic follows its own slowly
    moving copy instead of being fitted anew, and learns the difference from the dataset's mean discounted return in units of
    its standard deviation, which is where most of the value is. Rewards are those of the dataset, not transformed. Global
    random states and the model are left as they were.

    The estimate is trustworthy where the policy acts like the data. Where it does not, critics guess: see
    :func:`action_distance`.

    :param model: the model, whose deterministic policy is evaluated
    :param dataset: as of ``load_transitions``; None: what the model was trained on
    :param n_updates: number of updates
    :param n_critics: number of critics
    :param net_arch: widths of their hidden layers
    :param batch_size: minibatch size, the same minibatches for all critics
    :param learning_rate: their learning rate
    :param tau: soft update coefficient of their targets
    :param gamma: discount factor; None: the model's
    :param seed: seed of initial weights and minibatches
    :raises ValueError: there is no dataset, the policy has a memory, or an argument is out of its range
    :raises DatasetError: the dataset is not usable, has no rewards, or its spaces are not the model's
    :return: the estimates
    """
    check_fqe_arguments("fitted_q_evaluation", {name: value for name, value in locals().items() if name in FQE_RANGES})
    data = dataset_of(model, dataset)
    if not data.has_rewards:
        what = "it holds no rewards, which the value of a policy is the sum of"
        raise DatasetError.at(dataset_label(data.dataset_id), what, "Use action_distance, which needs none")
    gamma = model.gamma if gamma is None else gamma
    device, policy = model.device, model.policy
    returns = _returns_to_go(data, gamma)
    centre, unit = float(returns.mean()), float(returns.std()) or 1.0
    generator = th.Generator(device=device).manual_seed(seed)

    def tensor(array: NDArray[Any]) -> th.Tensor:
        return th.as_tensor(array, dtype=th.float32, device=device)

    observations, following = (policy.scale_observations(tensor(a)) for a in (data.observations, data.next_observations))
    actions, next_actions = tensor(data.actions), policy_actions(model, data.next_observations)
    rewards, going_on = tensor(data.rewards)[:, None], 1.0 - tensor(data.terminations)[:, None]
    # The Bellman equation of (Q - centre) / unit.
    constants = (rewards + going_on * gamma * centre - centre) / unit
    with preserved_random_state():
        th.manual_seed(seed)
        sizes = (policy.observation_size, policy.action_size, list(net_arch))
        critic, target = (EnsembleCritic(*sizes, n_critics=n_critics).to(device) for _ in range(2))
    target.load_state_dict(critic.state_dict())
    follower = Target(critic, target, every=1, start=1)
    optimizer = th.optim.Adam(critic.parameters(), lr=learning_rate)
    losses = []
    for _ in range(n_updates):
        rows = th.randint(len(data), (batch_size,), generator=generator, device=device)
        with th.no_grad():
            targets = constants[rows] + going_on[rows] * gamma * target(following[rows], next_actions[rows])
        # Summed over critics, each of which then has the gradient it would have alone.
        loss = (critic(observations[rows], actions[rows]) - targets).square().mean(dim=1).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        follower.move(tau)
        losses.append(loss.detach())
    starts = initial_rows(data)
    with th.no_grad():
        first = policy_actions(model, data.observations[starts])
        values = critic(observations[th.as_tensor(starts, device=device)], first).squeeze(2).mean(dim=1)
    late = th.stack(losses[-max(n_updates // 10, 1) :]).mean() / n_critics
    return FittedValue(centre + unit * values.double().cpu().numpy(), float(late))


@th.no_grad()
def initial_state_value(model: OfflineAlgorithm, dataset: Any = None) -> float:
    """
    Mean value of the model's own actions in the initial states, by the model's own critics (the smallest of them), in units
    of the transformed rewards. It costs nothing, and is as optimistic as the training was.

    :param model: the model
    :param dataset: as of ``load_transitions``; None: what the model was trained on
    :raises ValueError: the model has no critic, the policy has a memory, or there is no dataset
    :raises DatasetError: the dataset is not usable, or its spaces are not the model's
    """
    data = dataset_of(model, dataset)
    if not hasattr(model.policy, "critic"):
        raise ValueError(f"{type(model).__name__} has no critic that could tell a value.")
    blocks = th.split(th.as_tensor(data.observations[initial_rows(data)], device=model.device), _BLOCK)
    with _evaluated(model.policy):
        return float(th.cat([model.policy.acting_values(block) for block in blocks]).mean())


def action_distance(model: OfflineAlgorithm, dataset: Any = None, *, n_states: int = 1000, n_neighbours: int = 10) -> float:
    """
    Root mean square, over states of the dataset and entries of the action, of the distance between the model's action and
    the nearest one that the dataset holds for similar states: 0 where the policy does what somebody has done there. Actions
    are in [-1, 1].

    :param model: the model
    :param dataset: as of ``load_transitions``; None: what the model was trained on
    :param n_states: number of states, drawn without replacement
    :param n_neighbours: number of nearest states, each one's own included, whose actions are compared
    :raises ValueError: the policy has a memory, there is no dataset, or a number is below 1
    :raises DatasetError: the dataset is not usable, or its spaces are not the model's
    """
    check_argument("action_distance", "n_states", n_states, COUNT)
    check_argument("action_distance", "n_neighbours", n_neighbours, COUNT)
    data = dataset_of(model, dataset)
    rows = np.random.default_rng(_SEED).choice(len(data), min(n_states, len(data)), replace=False)
    scale = data.observations.std(axis=0) + 1e-6
    table = (data.observations - data.observations.mean(axis=0)) / scale
    squares = np.square(table).sum(axis=1)
    taken = policy_actions(model, data.observations[rows]).cpu().numpy()
    n_neighbours = min(n_neighbours, len(data))
    nearest = np.empty(len(rows))
    for i, row in enumerate(rows):
        near = np.argpartition(squares - 2.0 * (table @ table[row]), n_neighbours - 1)[:n_neighbours]
        nearest[i] = np.square(data.actions[near] - taken[i]).mean(axis=1).min()
    return float(np.sqrt(nearest.mean()))


@th.no_grad()
def component_usage(model: OfflineAlgorithm, dataset: Any = None, *, n_states: int = 10_000) -> NDArray[np.float64]:
    """
    In which share of the dataset's states each sub-policy acts, shape ``(n_components,)``.

    :param model: a model with a mixture policy
    :param dataset: as of ``load_transitions``; None: what the model was trained on
    :param n_states: number of states, drawn without replacement
    :raises ValueError: the policy is no mixture with a gate, there is no dataset, or ``n_states`` is below 1
    :raises DatasetError: the dataset is not usable, or its spaces are not the model's
    """
    check_argument("component_usage", "n_states", n_states, COUNT)
    policy: Any = model.policy
    if not hasattr(policy, "n_components"):
        raise ValueError(f"The policy of {type(model).__name__} has no sub-policies.")
    data = dataset_of(model, dataset)
    rows = np.random.default_rng(_SEED).choice(len(data), min(n_states, len(data)), replace=False)
    scaled = policy.scale_observations(th.as_tensor(data.observations[rows], device=model.device))
    with _evaluated(policy):
        if hasattr(policy, "scored_actions"):
            index = policy.scored_actions(scaled, *policy.choosing_networks)[0].argmax(dim=1)
        else:
            index = policy.acting("actor").choose(scaled)
    usage: NDArray[np.float64] = np.bincount(index.flatten().cpu().numpy(), minlength=policy.n_components) / len(rows)
    return usage
