"""CQL(H) against recorded updates of the original implementation's networks and losses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch as th

from sb3_dmpo import CQL
from tests.reference_util import Replay, Views, ensemble_views, mlp_views


def one_critic(j: int) -> Callable[[Any], Views]:
    """One critic of the ensemble under names without its number: the recorded critics are networks of their own."""
    prefix = f"q{j}."
    return lambda critic: {k.removeprefix(prefix): v for k, v in ensemble_views(critic).items() if k.startswith(prefix)}


VIEWS = {
    # The two trained scalars of the standard deviation were not recorded.
    "actor": ("actor", lambda actor: mlp_views(actor.mean_and_log_std)),
    "q1": ("critic", one_critic(1)),
    "q2": ("critic", one_critic(2)),
    "q1_target": ("critic_target", one_critic(1)),
    "q2_target": ("critic_target", one_critic(2)),
}
LOSSES = {"ent_coef_loss": "alpha_loss", "ent_coef": "alpha", "actor_loss": "actor_loss"}
DTYPES = [th.float64, th.float32]


def replay(dtype: th.dtype) -> tuple[Replay, dict[str, str]]:
    run = Replay("cql", CQL, dtype, VIEWS, {"pretraining_updates": 0}, n_hidden=3)
    return run, {block: block for block in run.model.noise_specs(run.config["batch"])}


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_updates(dtype: th.dtype) -> None:
    """Losses, gradients of actor and critics, parameters and temperature after ten updates, and final actions."""
    run, noise = replay(dtype)
    for block, spec in run.model.noise_specs(run.config["batch"]).items():
        assert run.ref[f"noise/{block}"].shape[1:] == spec.shape, block
    run.run(noise, LOSSES)
    run.close(run.policy.log_ent_coef, "log_alpha_after10")
    states = th.as_tensor(run.ref["final/eval_state"]).to(dtype)
    run.close(run.policy._predict(states, deterministic=True), "final/eval_action")


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_intermediate_values(dtype: th.dtype) -> None:
    """Sampled actions, densities, targets, and every part of the critics' loss in the second update."""
    run, noise = replay(dtype)
    run.update(run.batch(1, noise))
    batch, policy, model = run.batch(2, noise), run.policy, run.model
    current, following = policy.actor(batch.observations), policy.actor(batch.next_observations)
    actions, log_prob = current.sample(batch.noise["pi_noise"])
    run.close(actions, "u2/pi_action")
    run.close(log_prob.squeeze(1), "u2/pi_log_prob")
    targets = model.target_q_values(batch)
    run.close(targets.squeeze(1), "u2/target_q")

    actions, log_prob = model.contrast_actions(batch, current, following)
    for kind, found in zip(("random", "next", "cur"), actions.chunk(3, dim=1), strict=True):
        run.close(found, f"u2/{kind}_actions")
    for kind, found in zip(("next", "cur"), log_prob.chunk(3, dim=1)[1:], strict=True):
        run.close(found, f"u2/{kind}_log_prob")
    scores = policy.critic.all_actions(batch.observations, actions) - log_prob
    q_values = policy.critic(batch.observations, batch.actions)
    conservative = 0.0
    for j in (1, 2):
        run.close(scores[j - 1].logsumexp(dim=1), f"u2/logsumexp_q{j}")
        run.close(q_values[j - 1].squeeze(1), f"u2/pred_q{j}")
        run.close((q_values[j - 1] - targets).square().mean(), f"u2/loss_q{j}")
        conservative += float(run.ref[f"u2/conservative_q{j}"])
    total, parts = model.critic_loss(batch, current, following)
    run.close(total, "u2/total_critic_loss")
    assert parts["conservative_loss"].item() == pytest.approx(conservative, rel=1e-5 if dtype == th.float32 else 1e-12)
