"""LP-AWAC against recorded updates of the published code (with alpha 10)."""

import pytest
import torch as th

from sb3_dmpo import LPAWAC
from tests.latent_reference import check_intermediate_values, check_updates, latent_replay


@pytest.mark.parametrize("dtype", [th.float64, th.float32])
def test_reference_updates(dtype: th.dtype) -> None:
    """Losses, gradients of the three optimizers, parameters after ten updates, and final actions."""
    check_updates(latent_replay("lp_awac", LPAWAC, dtype, {}, n_hidden=2))


@pytest.mark.parametrize("dtype", [th.float64, th.float32])
def test_reference_intermediate_values(dtype: th.dtype) -> None:
    """Targets, predictions, advantages, weights and latents of the second update."""
    check_intermediate_values(latent_replay("lp_awac", LPAWAC, dtype, {}, n_hidden=2))
