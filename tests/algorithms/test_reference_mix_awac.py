"""MixAWAC against recorded updates of the published code."""

from typing import Any

import pytest
import torch as th

from sb3_dmpo import MixAWAC
from tests import weighted_reference
from tests.reference_util import Replay, Views, linear_views, mlp_views


def mixture_views(actor: Any) -> Views:
    components = linear_views(actor.latent_embedding.net[0], "comp.embed") | weighted_reference.gaussian_views(actor, "comp.")
    return mlp_views(actor.gate, "gate.") | components


ACTORS = {name: (name, mixture_views) for name in ("actor", "actor_target")}


def replay(dtype: th.dtype, published_code: bool) -> Replay:
    arguments = {"n_components": 4, "published_code": published_code}
    return Replay("mixawac", MixAWAC, dtype, ACTORS | weighted_reference.CRITICS, arguments)


@pytest.mark.parametrize("dtype", [th.float64, th.float32])
def test_reference_updates(dtype: th.dtype) -> None:
    weighted_reference.check_updates(replay(dtype, published_code=True))


@pytest.mark.parametrize("dtype", [th.float64, th.float32])
def test_reference_intermediate_values(dtype: th.dtype) -> None:
    weighted_reference.check_intermediate_values(replay(dtype, published_code=True))


@pytest.mark.parametrize("dtype", [th.float64, th.float32])
def test_reference_density_of_the_mixture(dtype: th.dtype) -> None:
    """The default leaves out a constant: equal where the density is well above it, lower and with a gradient elsewhere."""
    run = replay(dtype, published_code=False)
    noise = weighted_reference.recorded_noise(run)
    run.update(run.batch(1, noise))
    log_prob = run.model.log_likelihood(run.batch(2, noise))
    recorded = th.as_tensor(run.ref["u2/log_prob"]).to(dtype)
    is_far = recorded < -27.0
    assert 0.0 < is_far.double().mean() < 1.0
    th.testing.assert_close(log_prob[recorded > -10.0], recorded[recorded > -10.0], rtol=1e-4, atol=1e-4)
    assert (log_prob[is_far] < recorded[is_far]).all()
    gradients = th.autograd.grad(log_prob[is_far].sum(), list(run.policy.actor.heads.parameters()))
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
