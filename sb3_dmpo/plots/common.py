"""What pictures share: names of the methods, colours of the sub-policies, and the observations that are drawn."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_dmpo.data.preprocessing import flat_slices

#: Observations in a picture.
_MAX_POINTS = 4000

#: The papers' names by ours.
METHOD_NAMES = {
    "bc": "BC",
    "td3_bc": "TD3+BC",
    "iql": "IQL",
    "cql": "CQL",
    "awac": "AWAC",
    "mix_awac": "mixAWAC",
    "lp_awac": "LP-AWAC",
    "lapo": "LAPO",
    "diffusion_ql": "Diffusion QL",
    "decision_transformer": "Decision Transformer",
    "maple": "MAPLE",
    "dmpo": "DMPO",
    "infodmpo": "infoDMPO",
    "one_step_dmpo": "OneStepDMPO",
    "rebrac": "ReBRAC",
}
#: Colours that people with any kind of colour vision can tell apart (after Okabe and Ito).
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
#: What pictures say where the sub-policies are as good as the same.
ONE_POLICY = "the sub-policies act as one"


def colour_of(component: int) -> str:
    """
    Colour of a sub-policy. Beyond eight they repeat; the number stands beside them.

    :param component: its index
    """
    return PALETTE[component % len(PALETTE)]


def some_of(observations: NDArray[np.float32]) -> NDArray[np.float32]:
    """
    Rows of a dataset's observations that stand for all of them, always the same.

    :param observations: flat observations, shape ``(n, observation_size)``
    """
    return observations[np.random.default_rng(0).permutation(len(observations))[:_MAX_POINTS]]


def raw_observations(space: Any, observations: NDArray[np.float32]) -> Any:
    """
    Flat observations as a policy takes them, an array or one array for every key.

    :param space: observation space
    :param observations: shape ``(n, observation_size)``
    """
    parts = {key: observations[:, part].reshape(-1, *space[key].shape) for key, part in flat_slices(space).items() if key}
    return parts or observations.reshape(-1, *space.shape)
