"""What the reference tests of LP-AWAC and LAPO have in common."""

from typing import Any

import torch as th

from sb3_dmpo.lapo.latent_algorithm import LatentPolicyAlgorithm
from tests.reference_util import Replay, Views, ensemble_views, linear_views, mlp_views

NOISE = {"target_latent_noise": "target_latent_noise", "vae_noise": "vae_noise"}


def vae_views(vae: Any) -> Views:
    encoder = mlp_views(vae.encoder, "enc.", last="")
    return (
        encoder
        | linear_views(vae.mean, "enc.mean")
        | linear_views(vae.log_var, "enc.log_var")
        | mlp_views(vae.decoder, "dec.")
    )


def actor_views(actor: Any) -> Views:
    return mlp_views(actor.mu)


# The recorded critic is one module of both critics and V.
VIEWS = {
    "latent_actor": ("actor", actor_views),
    "latent_actor_target": ("actor_target", actor_views),
    "vae": ("vae", vae_views),
    "vae_target": ("vae_target", vae_views),
    "critic": ("", lambda policy: ensemble_views(policy.critic) | mlp_views(policy.value.vf, "v.")),
    "critic_target": ("critic_target", ensemble_views),
}


def latent_replay(
    name: str, algorithm: type[LatentPolicyAlgorithm], dtype: th.dtype, arguments: dict[str, Any], n_hidden: int
) -> Replay:
    return Replay(name, algorithm, dtype, VIEWS, arguments, n_hidden, unused="critic_target/v.")


def check_updates(run: Replay) -> None:
    """Losses, gradients of the three optimizers, parameters after ten updates, and final actions."""
    losses = {"critic_loss": "critic_loss", "value_loss": "loss_value", "vae_loss": "vae_loss"}
    run.run(NOISE, losses | {"actor_loss": "latent_actor_loss"})
    states = th.as_tensor(run.ref["final/eval_state"]).to(run.dtype)
    run.close(run.policy._predict(states), "final/eval_action")


def check_intermediate_values(run: Replay) -> None:
    """The quantities inside the second update, one by one."""
    run.update(run.batch(1, NOISE))
    batch, policy, model = run.batch(2, NOISE), run.policy, run.model
    run.close(model.target_q_values(batch), "u2/target_q")
    run.close(model.value_targets(batch), "u2/target_v_used")
    run.close(LatentPolicyAlgorithm.value_targets(model, batch), "u2/target_v")
    run.close(policy.critic(batch.observations, batch.actions)[0], "u2/pred_q1")
    run.close(policy.critic(batch.observations, batch.actions)[1], "u2/pred_q2")
    run.close(policy.value(batch.observations), "u2/pred_value")
    loss = model.critic_loss(batch)[0] + model.value_loss(batch)[0]
    run.close(loss, "u2/total_critic_loss")
    model.optimize("critic", loss)
    advantages = model.advantages(batch)
    run.close(advantages, "u2/advantage")
    run.close(model.weights(advantages), "u2/weight")
    mean, log_var = policy.vae.encode(batch.observations, batch.actions)
    run.close(mean, "u2/z_mean")
    run.close(log_var, "u2/z_log_var")
    run.close(policy.vae.decode(batch.observations, th.as_tensor(run.ref["u2/z_sample"]).to(run.dtype)), "u2/recon_action")
    run.close(policy.actor(batch.observations), "u2/latent_action")
    run.close(policy.latent_actions(batch.observations, policy.actor), "u2/decoded_action")
