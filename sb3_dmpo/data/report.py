"""What a dataset is like, in numbers, before anything is trained on it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sb3_dmpo.data.multimodality import FALSE_ALARMS, Multimodality, estimate_multimodality
from sb3_dmpo.data.transitions import Transitions

#: An action entry this near to its bound counts as saturated.
SATURATION_MARGIN = 1e-3
#: From this share of states with two ways of acting on, a mixture has something to do.
_MANY = 2.0 * FALSE_ALARMS
#: From here on the observation mostly tells the ways apart.
_TOLD_APART = 0.75


#: Minibatch of MAPLE's ensemble, and seconds of a step of it on one CPU core.
ENSEMBLE_BATCH, ENSEMBLE_STEP_SECONDS = 256, 0.065


@dataclass(frozen=True, eq=False)
class DatasetReport:
    """
    What :func:`describe_dataset` found. ``E`` episodes, ``A`` action entries.

    :param dataset_id: name of the dataset, None if it has none
    :param n_transitions: number of transitions
    :param returns: undiscounted return of every episode, shape ``(E,)``
    :param lengths: steps of every episode, shape ``(E,)``
    :param n_terminated: number of episodes that ended by a termination
    :param observation_size: width of the flat observations
    :param observation_keys: number of entries of Dict observations, 0 for a Box
    :param action_low: lower bounds of the actions in the environment's units, shape ``(A,)``
    :param action_high: upper bounds, shape ``(A,)``
    :param saturation: share of the transitions whose action entry lies on a bound, shape ``(A,)``
    :param multimodality: whether similar states see several ways of acting; None where there are too few episodes
    """

    dataset_id: str | None
    n_transitions: int
    returns: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]
    n_terminated: int
    observation_size: int
    observation_keys: int
    action_low: npt.NDArray[np.float64]
    action_high: npt.NDArray[np.float64]
    saturation: npt.NDArray[np.float64]
    multimodality: Multimodality | None

    @property
    def advice(self) -> str:
        """Whether a mixture is likely to help, in a sentence. It speaks of the data, not of what a run will score."""
        found = self.multimodality
        if found is None:
            return "too few episodes to tell whether there are several ways of acting; compare OneStepDMPO with TD3BC"
        if found.share <= _MANY:
            return "a mixture is not likely to help: one way of acting nearly everywhere, TD3BC or IQL are quicker to train"
        if found.told_apart >= _TOLD_APART:
            ways = "there are two ways of acting, but the observation mostly tells which one is followed: a mixture may help"
        else:
            ways = "there are two ways of acting in states that look alike, which is what mixtures are made for"
        return (
            f"{ways}. OneStepDMPO where some episodes are good from beginning to end, DMPO or ReBRAC where good ones must be "
            "put together; run BC beside it"
        )

    @property
    def cost_of_a_model(self) -> str:
        """What MAPLE, which fits the dynamics first, costs on these data, and when that pays, in a sentence."""
        minutes = self.n_transitions / ENSEMBLE_BATCH * ENSEMBLE_STEP_SECONDS / 60
        amount = f"about {minutes:.0f} minutes" if minutes >= 1 else "less than a minute"
        return (
            f"MAPLE fits the dynamics first: {amount} of one CPU core per epoch with its 20 networks, tens of epochs, and "
            "days for a million updates; for a GPU, and where the data cover the task broadly"
        )


def describe_dataset(transitions: Transitions) -> DatasetReport:
    """
    The numbers of a dataset that tell what can be learned from it.

    :param transitions: the dataset
    """
    space = transitions.observation_space
    ends = np.cumsum(transitions.episode_lengths) - 1
    return DatasetReport(
        dataset_id=transitions.dataset_id,
        n_transitions=len(transitions),
        returns=transitions.episode_returns(),
        lengths=transitions.episode_lengths,
        # OGBench's go on being recorded after the task has ended.
        n_terminated=int(transitions.terminations[ends].sum()),
        observation_size=transitions.observations.shape[1],
        observation_keys=len(getattr(space, "spaces", ())),
        action_low=transitions.action_space.low.astype(np.float64),
        action_high=transitions.action_space.high.astype(np.float64),
        saturation=(np.abs(transitions.actions) >= 1.0 - SATURATION_MARGIN).mean(axis=0, dtype=np.float64),
        multimodality=estimate_multimodality(transitions),
    )
