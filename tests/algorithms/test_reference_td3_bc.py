"""TD3+BC against recorded updates of the original implementation."""

from typing import Any

import pytest
import torch as th

from sb3_dmpo import TD3BC
from tests.reference_util import Replay, ensemble_views, mlp_views


def actor_views(actor: Any) -> dict[str, th.Tensor]:
    return mlp_views(actor.mu)


VIEWS = {
    "actor": ("actor", actor_views),
    "actor_target": ("actor_target", actor_views),
    "critic": ("critic", ensemble_views),
    "critic_target": ("critic_target", ensemble_views),
}
NOISE = {"target_noise": "target_noise"}


@pytest.mark.parametrize("dtype", [th.float64, th.float32])
def test_reference_updates(dtype: th.dtype) -> None:
    """Losses, gradients of both optimizers, parameters after ten updates, and final actions."""
    run = Replay("td3_bc", TD3BC, dtype, VIEWS, {})
    losses = {name: name for name in ("critic_loss", "actor_loss")}
    run.run(NOISE, losses | {"bc_loss": "bc_term", "q_weight": "lambda"})
    run.close(run.policy._predict(th.as_tensor(run.ref["final/eval_state"]).to(dtype)), "final/eval_action")


@pytest.mark.parametrize("dtype", [th.float64, th.float32])
def test_reference_intermediate_values(dtype: th.dtype) -> None:
    """Targets, predictions and actions of the first full update."""
    run = Replay("td3_bc", TD3BC, dtype, VIEWS, {})
    run.update(run.batch(1, NOISE))
    batch, policy = run.batch(2, NOISE), run.policy
    run.close(run.model.target_q_values(batch), "u2/target_q")
    for j, q_values in enumerate(policy.critic(batch.observations, batch.actions), start=1):
        run.close(q_values, f"u2/pred_q{j}")
    run.model.optimize("critic", run.model.critic_loss(batch)[0])
    actions = policy.actor(batch.observations)
    run.close(actions, "u2/action_pred")
    run.close(policy.critic(batch.observations, actions)[0], "u2/q1_of_pi")
