"""DMPO, infoDMPO and the AntMaze variant of both against recorded updates of the published code."""

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_dmpo import DMPO, InfoDMPO
from sb3_dmpo.common import losses
from tests.reference_util import FOLDER, Replay, Views, ensemble_views, linear_views, mlp_views

DTYPES = [th.float64, th.float32]


def mixture_actor_views(actor: Any) -> Views:
    return linear_views(actor.latent_embedding.net[0], "embed") | mlp_views(actor.mu)


VIEWS = {
    "actor": ("actor", mixture_actor_views),
    "actor_target": ("actor_target", mixture_actor_views),
    "critic": ("critic", ensemble_views),
    "critic_target": ("critic_target", ensemble_views),
    "posterior": ("posterior", lambda net: mlp_views(net.logits)),
}
VALUE = {"value": ("value", lambda net: mlp_views(net.vf))}
INFO = {"info_posterior": ("info_posterior", lambda net: mlp_views(net.logits))}
LOSSES = {"critic_loss": "critic_loss", "kl": "kl_term", "actor_loss": "actor_loss"}
ANT = {"value_targets": True, "learning_rate": 2e-4}


def replay(name: str, dtype: th.dtype, **arguments: Any) -> Replay:
    algorithm = InfoDMPO if "info" in name else DMPO
    views = VIEWS | (VALUE if "ant" in name else {}) | (INFO if "info" in name else {})
    arguments = {"n_components": 4, "kl_coef": 1.0} | arguments
    if "info" in name:
        arguments |= {"info_learning_rate": 1e-3, "published_code": True}
    return Replay(name, algorithm, dtype, views, arguments, n_hidden=3 if "ant" in name else 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("dmpo", {}),
        ("dmpo_freq1", {"policy_delay": 1}),
        ("dmpo_clamp", {"advantage_scale": 3.0, "advantage_weight": "clipped"}),
        ("infodmpo", {}),
        ("dmpo_ant", ANT | {"advantage_scale": 5.0, "value_bounds": (0.0, 100.0)}),
        ("dmpo_ant_generic", ANT),
        ("infodmpo_ant", ANT | {"advantage_scale": 5.0, "value_bounds": (0.0, 100.0)}),
    ],
)
def test_reference_updates(name: str, arguments: dict[str, Any], dtype: th.dtype) -> None:
    """Losses, gradients of every optimizer, and parameters after ten updates."""
    run = replay(name, dtype, **arguments)
    noise = {"gumbel_uniform": "gumbel_uniform"}
    compared = dict(LOSSES)
    if "ant" in name:
        compared["value_loss"] = "loss_value"
        if name == "dmpo_ant_generic":
            run.model.value_bounds = (run.config["v_min"], run.config["v_max"])
    else:
        noise["target_noise"] = "target_noise"
    if "info" in name:
        noise["info_label"] = "info_label"
        compared["info_loss"] = "info_loss"
    run.run(noise, compared, reward_factor=run.config.get("reward_multiplier", 1.0))
    states = th.as_tensor(run.ref["final/eval_state"]).to(dtype)
    with th.no_grad():
        table, _ = run.policy.component_table(states, run.policy.actor, run.policy.critic)
        run.close(run.policy._predict(states), "final/eval_action")
        run.close(table, "final/eval_q_table")


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_intermediate_values(dtype: th.dtype) -> None:
    """The quantities inside the first full update, one by one."""
    run = replay("dmpo", dtype)
    noise = {"gumbel_uniform": "gumbel_uniform", "target_noise": "target_noise"}
    run.update(run.batch(1, noise))
    batch, policy, model = run.batch(2, noise), run.policy, run.model
    table, _ = policy.component_table(batch.next_observations, policy.actor_target, policy.critic)
    value, index = table.max(dim=1, keepdim=True)
    run.close(table, "u2/target_gate/q_table")
    run.close(index.squeeze(1), "u2/target_gate/z_index")
    run.close(value, "u2/target_gate/value")
    run.close(model.target_q_values(batch), "u2/target_q")
    q_values = policy.critic(batch.observations, batch.actions)
    run.close(q_values[0], "u2/pred_q1")
    run.close(q_values[1], "u2/pred_q2")
    model.optimize("critic", model.critic_loss(batch)[0])
    advantages = model.advantages(batch)
    run.close(advantages, "u2/advantage")
    run.close(losses.advantage_weights(advantages, 10.0), "u2/weight")
    probabilities = th.softmax(policy.posterior(batch.observations, batch.actions), dim=1)
    run.close(probabilities, "u2/posterior_alpha")
    sample = losses.gumbel_softmax(probabilities, batch.noise["gumbel_uniform"], 0.67)
    run.close(sample, "u2/posterior_sample")
    run.close(policy.actor(batch.observations, sample), "u2/action_pred")
    run.close(policy.component_table(batch.observations, policy.actor, policy.critic)[0], "u2/prior_logits")


def test_reference_functions() -> None:
    """Weights, KL, Gumbel-softmax, expectile, mixed minimum and the observation scaler on their own."""
    ref = np.load(FOLDER / "functions.npz")

    def t(key: str) -> th.Tensor:
        return th.as_tensor(ref[key])

    def close(actual: th.Tensor, key: str) -> None:
        np.testing.assert_allclose(actual.numpy(), ref[key], rtol=0, atol=1e-12, err_msg=key)

    advantage = t("weights/advantage")
    for alpha in (5, 10):
        close(losses.advantage_weights(advantage, alpha, unit_mean=False), f"weights/alpha{alpha}_unit_max")
        close(losses.advantage_weights(advantage, alpha), f"weights/alpha{alpha}_unit_mean")
    close(losses.advantage_weights(advantage, 10, "clipped"), "weights/alpha10_clamp100")
    rows = losses.categorical_kl(t("kl/p"), t("kl/q"))
    close(rows.squeeze(1), "kl/rows")
    close((t("kl/weight") * rows).mean(), "kl/weighted_mean")
    close(losses.gumbel_softmax(t("gumbel/alpha"), t("gumbel/uniform"), 0.67), "gumbel/sample_t067")
    for expectile, key in ((0.7, "expectile/loss_7"), (0.9, "expectile/loss_9")):
        close(losses.expectile_loss(t("expectile/pred"), t("expectile/target"), expectile), key)
    close(losses.min_max_q(th.stack([t("minmax/q1"), t("minmax/q2")]), 0.7), "minmax/c07")
    state = t("normalise/state")
    policy = replay("dmpo", th.float64).policy
    policy.set_observation_statistics(state.mean(dim=0), state.std(dim=0, correction=0))
    close(policy.observation_mean, "normalise/mean")
    close(policy.observation_std, "normalise/std_plus_eps")
    close(policy.scale_observations(state), "normalise/out")
