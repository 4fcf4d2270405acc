"""LAPO against recorded updates of the original implementation."""

import pytest
import torch as th

from sb3_dmpo import LAPO
from tests.latent_reference import check_intermediate_values, check_updates, latent_replay
from tests.reference_util import Replay


def replay(dtype: th.dtype) -> Replay:
    run = latent_replay("lapo", LAPO, dtype, {"min_q_weight": 0.7}, n_hidden=3)
    # The recording took the range from the rewards of its own batches.
    run.model.value_bounds = (run.config["v_min"], run.config["v_max"])
    return run


@pytest.mark.parametrize("dtype", [th.float64, th.float32])
def test_reference_updates(dtype: th.dtype) -> None:
    """Losses, gradients of the three optimizers, parameters after ten updates, and final actions."""
    check_updates(replay(dtype))


@pytest.mark.parametrize("dtype", [th.float64, th.float32])
def test_reference_intermediate_values(dtype: th.dtype) -> None:
    """Targets, predictions, advantages, weights and latents of the second update."""
    check_intermediate_values(replay(dtype))
