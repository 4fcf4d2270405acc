"""Diffusion Q-learning against recorded updates of the original implementation."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_dmpo import DiffusionQL
from sb3_dmpo.diffusion_ql.policies import vp_schedule
from tests.reference_util import FOLDER, Replay, Views, ensemble_views, mlp_views


def actor_views(actor: Any) -> Views:
    return mlp_views(actor.time_net, "time.") | mlp_views(actor.noise_net)


VIEWS = {
    "actor": ("actor", actor_views),
    "actor_ema": ("actor_ema", actor_views),
    "critic": ("critic", ensemble_views),
    "critic_target": ("critic_target", ensemble_views),
}
LOSSES = {name: name for name in ("critic_loss", "bc_loss", "q_loss", "actor_loss")}
# The recording's schedule was computed in single precision.
TOLERANCES = {th.float64: {"rtol": 0.0, "atol": 1e-6}, th.float32: {"rtol": 1e-4, "atol": 1e-5}}


def replay(name: str, dtype: th.dtype) -> tuple[Replay, dict[str, str]]:
    # The recording moved the average of the actor early and often, so that it takes part in the ten updates.
    arguments = {"ema_start": 2, "ema_every": 2, "max_grad_norm": 1.0, "max_q_backup": name.endswith("maxq")}
    run = Replay(name, DiffusionQL, dtype, VIEWS, arguments, n_hidden=3, tolerance=TOLERANCES[dtype])
    return run, {block: block for block in run.model.noise_specs(run.config["batch"])}


@pytest.mark.parametrize("dtype", [th.float64, th.float32])
@pytest.mark.parametrize("name", ["diffusion_ql", "diffusion_ql_maxq"])
def test_reference_updates(name: str, dtype: th.dtype) -> None:
    """Losses, clipped gradients of both optimizers, and parameters after ten updates."""
    run, noise = replay(name, dtype)
    for block, spec in run.model.noise_specs(run.config["batch"]).items():
        assert run.ref[f"noise/{block}"].shape[1:] == spec.shape, block
    run.run(noise, LOSSES)


@pytest.mark.parametrize("dtype", [th.float64, th.float32])
@pytest.mark.parametrize("name", ["diffusion_ql", "diffusion_ql_maxq"])
def test_reference_intermediate_values(name: str, dtype: th.dtype) -> None:
    """Targets, predictions and sampled actions of the second update."""
    run, noise = replay(name, dtype)
    run.update(run.batch(1, noise))
    batch, policy, model = run.batch(2, noise), run.policy, run.model
    run.close(model.target_q_values(batch), "u2/target_q")
    q_values = policy.critic(batch.observations, batch.actions)
    run.close(q_values[0], "u2/pred_q1")
    run.close(q_values[1], "u2/pred_q2")
    run.close(policy.actor(batch.observations, model._chain_noise(batch, "new")), "u2/new_action")


def test_reference_schedule() -> None:
    """The constants of the noise schedule, to single precision."""
    ref = np.load(FOLDER / "diffusion_ql.npz")
    steps = vp_schedule(5)

    def close(values: list[float], key: str) -> None:
        np.testing.assert_allclose(values, ref[f"schedule/{key}"], rtol=0, atol=1e-6, err_msg=key)

    close([step.signal**2 for step in steps], "alphas_cumprod")
    close([step.mean_action for step in steps], "posterior_mean_coef1")
    close([step.mean_noisy for step in steps], "posterior_mean_coef2")
    close([1.0 - step.noise**2 for step in steps], "alphas_cumprod")
    # The first step's variance is zero; the recording floors it before the logarithm.
    log_variances = [2.0 * math.log(step.std) for step in steps[1:]]
    np.testing.assert_allclose(log_variances, ref["schedule/posterior_log_variance_clipped"][1:], rtol=0, atol=1e-6)
