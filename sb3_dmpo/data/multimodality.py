"""Whether a dataset holds several ways of acting in the same state, which is what mixture policies are for."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sb3_dmpo.data.transitions import Transitions

FloatArray = npt.NDArray[np.float64]

#: States that are looked at, neighbours of each at most and at least, rows that neighbours are looked for in.
N_STATES, MAX_NEIGHBOURS, MIN_NEIGHBOURS, MAX_ROWS = 300, 100, 40, 200_000
#: Share of states with one way of acting that are taken for states with two.
FALSE_ALARMS = 0.05
#: Each of two ways is followed by at least this share of the neighbours.
MIN_SHARE = 0.1
#: Neighbours that vote on which way is followed.
_N_VOTES = 5


@dataclass(frozen=True)
class Multimodality:
    """
    What :func:`estimate_multimodality` found.

    :param share: share of the states in which two ways of acting were found; :data:`FALSE_ALARMS` of them or fewer where
        there is one way everywhere
    :param gap: median distance of the two ways' mean actions in these states, in [-1, 1] units of actions; 0 without any
    :param told_apart: how often, in these states, the way of the nearest neighbours is that of the neighbour itself: 0.5
        if the observation says nothing about it, 1 if it says everything; 0.5 without any
    :param n_states: number of states that were looked at
    :param n_neighbours: number of neighbours of each
    """

    share: float
    gap: float
    told_apart: float
    n_states: int
    n_neighbours: int


def valley(values: FloatArray) -> tuple[float, float, float]:
    """
    How empty the middle between two groups of numbers is, the distance of their means, and the number that divides them.

    The groups are those with the least variance within. The emptiness is the number of values in the middle third
    between their means, by the smaller number of values in as wide an interval around either mean: around 1 for uniform
    numbers, above it for a normal distribution, near 0 for two clusters.

    :param values: shape ``(n,)``
    """
    values = np.sort(values)
    n, sums = len(values), np.cumsum(values)
    counts = np.arange(1, n)
    low, high = sums[:-1] / counts, (sums[-1] - sums[:-1]) / (n - counts)
    between = (high - low) ** 2 * counts * (n - counts)
    smallest = max(int(np.ceil(MIN_SHARE * n)), 1)
    between[: smallest - 1] = between[n - smallest :] = -1.0
    best = int(between.argmax())
    means = low[best], high[best]
    gap = float(means[1] - means[0])

    def count(centre: float) -> float:
        return float((np.abs(values - centre) <= gap / 6.0).sum()) + 0.5

    emptiness = count(sum(means) / 2.0) / min(count(mean) for mean in means)
    return emptiness, gap, float(values[best] + values[best + 1]) / 2.0


def _threshold(n: int, rng: np.random.Generator) -> float:
    """What the emptiness of uniform numbers falls below by chance only; they are the flattest distribution with one mode."""
    return float(np.quantile([valley(rng.uniform(size=n))[0] for _ in range(1000)], FALSE_ALARMS))


def estimate_multimodality(transitions: Transitions, seed: int = 0) -> Multimodality | None:
    """
    Look at the actions of similar states in different episodes: are there two groups of them with little in between?

    For each of some states, one transition with a near observation is taken from every one of the nearest episodes. Their
    actions are projected on the direction of most variance, and the emptiness of the middle (:func:`valley`) is compared with
    that of as many uniform numbers.

    Hartigan's dip test (5% level) in its place tells less about such data. Bounded policies put many actions exactly on a
    bound, and it takes such ties for modes: of normal numbers clipped at one standard deviation it calls 97% bimodal (this
    one 2%). Of two normals four standard deviations apart, one with 30% of the numbers, it finds 13% (this one 52%), and on
    the toy two ways in 8% of the states (this one 17%).

    :param transitions: the dataset
    :param seed: seed of the choice of states
    :return: none where there are too few episodes to say anything
    """
    n_neighbours = min(MAX_NEIGHBOURS, len(transitions.episode_lengths) // 2)
    if n_neighbours < MIN_NEIGHBOURS:
        return None
    rng = np.random.default_rng(seed)
    episodes = np.repeat(np.arange(len(transitions.episode_lengths)), transitions.episode_lengths)
    rows = np.arange(len(transitions))
    if len(rows) > MAX_ROWS:
        rows = np.sort(rng.choice(len(rows), MAX_ROWS, replace=False))
    starts = np.unique(episodes[rows], return_index=True)[1]
    observations = transitions.observations[rows]
    observations = (observations - observations.mean(axis=0)) / (observations.std(axis=0) + 1e-6)
    squares = np.square(observations).sum(axis=1)
    threshold = _threshold(n_neighbours, rng)
    states = rng.choice(len(rows), min(N_STATES, len(rows)), replace=False)
    found = []
    for state in states:
        distances = squares - 2.0 * (observations @ observations[state])
        near = _nearest_rows(distances, starts, n_neighbours)
        actions = transitions.actions[rows[near]].astype(np.float64)
        actions -= actions.mean(axis=0)
        values = actions @ np.linalg.svd(actions, full_matrices=False)[2][0]
        emptiness, gap, border = valley(values)
        if emptiness < threshold:
            found.append((gap, _predictability(observations[near], values > border)))
    gaps, told_apart = np.array(found).reshape(-1, 2).T
    return Multimodality(
        share=len(found) / len(states),
        gap=float(np.median(gaps)) if found else 0.0,
        told_apart=float(np.mean(told_apart)) if found else 0.5,
        n_states=len(states),
        n_neighbours=n_neighbours,
    )


def _nearest_rows(distances: npt.NDArray[np.float32], starts: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """Rows of the nearest step of each of the ``n`` nearest episodes, which begin at ``starts``."""
    stops = np.append(starts[1:], len(distances))
    nearest = np.argsort(np.minimum.reduceat(distances, starts), kind="stable")[:n]
    return np.array([starts[e] + distances[starts[e] : stops[e]].argmin() for e in nearest], np.int64)


def _predictability(observations: npt.NDArray[np.float32], labels: npt.NDArray[np.bool_]) -> float:
    """Mean share of the nearest neighbours with the same label, both labels counting alike."""
    distances = np.square(observations[:, None] - observations[None]).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    votes = labels[np.argsort(distances, axis=1)[:, :_N_VOTES]].mean(axis=1)
    return float(0.5 * (votes[labels].mean() + (1.0 - votes[~labels]).mean()))
