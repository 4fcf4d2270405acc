"""The DMPO authors' re-implementation of IQL against recorded updates of it."""

from typing import Any

import pytest
import torch as th

from sb3_dmpo import IQL
from sb3_dmpo.common.losses import advantage_weights, min_max_q
from tests.reference_util import Replay, Views, ensemble_views, linear_views, mlp_views


def actor_views(actor: Any) -> Views:
    hidden = mlp_views(actor.latent_pi, last="")
    return hidden | linear_views(actor.heads.mu, "mu") | linear_views(actor.heads.log_std, "log_std")


VIEWS = {
    "actor": ("actor", actor_views),
    "critic": ("critic", ensemble_views),
    "critic_target": ("critic_target", ensemble_views),
    "value": ("value", lambda net: mlp_views(net.vf)),
}
RECORDINGS = [("iql_dmpo_repo", "normalized"), ("iql_dmpo_repo_clamp", "clipped")]


def replay(name: str, weight: str, dtype: th.dtype) -> Replay:
    return Replay(name, IQL, dtype, VIEWS, {"variant": "dmpo", "advantage_weight": weight})


@pytest.mark.parametrize("dtype", [th.float64, th.float32])
@pytest.mark.parametrize(("name", "weight"), RECORDINGS)
def test_reference_updates(name: str, weight: str, dtype: th.dtype) -> None:
    """Losses, gradients of all optimizers, parameters after ten updates of the cosine schedule, and final actions."""
    run = replay(name, weight, dtype)
    run.run({}, {loss: loss for loss in ("value_loss", "critic_loss", "actor_loss")})
    states = th.as_tensor(run.ref["final/eval_state"]).to(dtype)
    run.close(run.policy._predict(states, deterministic=True), "final/eval_action")


@pytest.mark.parametrize("dtype", [th.float64, th.float32])
@pytest.mark.parametrize(("name", "weight"), RECORDINGS)
def test_reference_intermediate_values(name: str, weight: Any, dtype: th.dtype) -> None:
    """Values, advantages, weights, densities and targets inside the second update."""
    run = replay(name, weight, dtype)
    run.update(run.batch(1, {}))
    batch, policy, model = run.batch(2, {}), run.policy, run.model
    run.close(policy.value(batch.observations), "u2/pred_value")
    q_values = min_max_q(policy.critic_target(batch.observations, batch.actions))
    run.close(q_values, "u2/target_v")
    model.optimize("value", model.value_loss(batch, q_values)[0])
    baseline = policy.value(batch.observations)
    run.close(baseline, "u2/baseline_value")
    run.close(q_values - baseline, "u2/advantage")
    run.close(advantage_weights(q_values - baseline, 3.0, weight, unit_mean=False), "u2/weight")
    run.close(policy.actor.log_prob(batch.observations, batch.actions), "u2/log_prob")
    run.close(model.target_q_values(batch), "u2/target_q")
    for j, predictions in enumerate(policy.critic(batch.observations, batch.actions), start=1):
        run.close(predictions, f"u2/pred_q{j}")
