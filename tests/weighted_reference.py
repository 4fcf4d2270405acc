"""What the reference tests of AWAC and MixAWAC have in common."""

from typing import Any

import torch as th

from sb3_dmpo.common.losses import advantage_weights
from tests.reference_util import Replay, Views, ensemble_views, linear_views, mlp_views


def gaussian_views(actor: Any, prefix: str = "") -> Views:
    """The hidden layers and the two heads of a Gaussian actor."""
    heads = linear_views(actor.heads.mu, f"{prefix}mu") | linear_views(actor.heads.log_std, f"{prefix}log_std")
    return mlp_views(actor.latent_pi, prefix, last="") | heads


CRITICS = {"critic": ("critic", ensemble_views), "critic_target": ("critic_target", ensemble_views)}


def recorded_noise(run: Replay) -> dict[str, str]:
    """The noise blocks of the model, which have the names and shapes of the recorded ones."""
    specs = run.model.noise_specs(run.config["batch"])
    for block, spec in specs.items():
        assert run.ref[f"noise/{block}"].shape[1:] == spec.shape, block
    return {block: block for block in specs}


def check_updates(run: Replay) -> None:
    """Losses, gradients of both optimizers, parameters after ten updates, final actions and their spread."""
    run.run(recorded_noise(run), {loss: loss for loss in ("critic_loss", "actor_loss")})
    states = th.as_tensor(run.ref["final/eval_state"]).to(run.dtype)
    run.close(run.policy._predict(states, deterministic=True), "final/eval_action")
    log_std = run.policy.actor(states)[1]
    if "final/eval_std" in run.ref.files:
        run.close(log_std.exp(), "final/eval_std")
    else:
        run.close(log_std, "final/eval_log_std")


def check_intermediate_values(run: Replay) -> None:
    """Targets, predictions, baseline, advantages, weights and densities inside the first full update."""
    noise = recorded_noise(run)
    run.update(run.batch(1, noise))
    batch, policy, model = run.batch(2, noise), run.policy, run.model
    run.close(model.target_q_values(batch), "u2/target_q")
    for j, q_values in enumerate(policy.critic(batch.observations, batch.actions), start=1):
        run.close(q_values, f"u2/pred_q{j}")
    model.optimize("critic", model.critic_loss(batch)[0])
    run.close(model.baseline(batch), "u2/baseline_value")
    advantages = model.advantages(batch)
    run.close(advantages, "u2/advantage")
    weights = advantage_weights(advantages, model.advantage_scale, model.advantage_weight, model.unit_mean_weights)
    run.close(weights, "u2/weight")
    run.close(model.log_likelihood(batch), "u2/log_prob")
