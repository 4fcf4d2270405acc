"""Options of DMPO that the paper lacks, each against its equation."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch as th

from sb3_dmpo import DMPO, OneStepDMPO
from sb3_dmpo.common.type_aliases import OfflineBatch
from sb3_dmpo.dmpo.dmpo import LEAST_VARIANCE, VARIANCE_RATE
from sb3_dmpo.envs import make_two_goals_dataset
from sb3_dmpo.several_seeds.several_seeds import learn_together
from tests.contract import DATA, assert_same, exported_and_single_actions, make

K = 4
EVERYTHING: dict[str, Any] = {
    "decoder": "calibrated",
    "assignment": "exact",
    "prior": "learned",
    "gate": "supported",
    "bootstrap": "data",
    "n_steps": 3,
}
ONE_BY_ONE = [{name: value} for name, value in EVERYTHING.items()] + [{"gate": "learned"}]


def mixture(name: str = "dmpo", **kwargs: Any) -> DMPO:
    model = make(name, dataset=DATA, n_components=K, **kwargs)
    assert isinstance(model, DMPO)
    return model


def ready(**kwargs: Any) -> DMPO:
    """With its data, and as it begins otherwise."""
    model = mixture(**kwargs)
    policy = copy.deepcopy(model.policy.state_dict())
    model.learn(2)
    model.policy.load_state_dict(policy)
    return model


def batch_of(model: DMPO, n: int = 32) -> OfflineBatch:
    return model.sample_batch(n)


def actor_loss(model: DMPO, batch: OfflineBatch) -> tuple[float, dict[str, th.Tensor]]:
    loss, metrics = model.actor_loss(batch)
    return float(loss), metrics


def log_normal(errors: th.Tensor, variance: th.Tensor) -> th.Tensor:
    """Log-density of actions but for what is the same in all components."""
    return -(errors / (2.0 * variance)).sum(dim=-1)


def test_without_options_there_is_nothing_of_them() -> None:
    model = mixture()
    assert model.policy.prior is None and model.policy.decoder_variance is None
    assert not any("prior" in key or "decoder" in key for key in model.policy.state_dict())


def test_the_assignment_is_bayes_rule() -> None:
    """``q(z|s, a)`` is proportional to ``p(z|s) N(a; mu(s, z), sigma^2)``, and the bound then is the log-likelihood."""
    model = ready(assignment="exact", prior="learned", decoder="calibrated", advantage_scale=0.0)
    policy, batch = model.policy, batch_of(model)
    assert policy.prior is not None and policy.decoder_variance is not None
    policy.decoder_variance.copy_(th.tensor([0.3, 0.05])[: model.policy.action_size])
    errors = (policy.actor.all_components(batch.observations) - batch.actions.unsqueeze(1)).square()
    joint = policy.prior(batch.observations) + log_normal(errors, policy.decoder_variance)
    posterior = model.diagnostics(batch)
    expected = joint.softmax(dim=1)
    found = -(expected * expected.log()).sum(dim=1).mean()
    assert posterior["posterior_entropy"].item() == pytest.approx(found.item(), rel=1e-4)
    assert actor_loss(model, batch)[0] == pytest.approx(-joint.logsumexp(dim=1).mean().item(), rel=1e-4)


def test_the_gradient_of_the_exact_bound_is_that_of_the_likelihood() -> None:
    model = ready(assignment="exact", prior="learned", decoder="calibrated", advantage_scale=0.0)
    policy, batch = model.policy, batch_of(model)
    assert policy.prior is not None and policy.decoder_variance is not None
    parameters = [*policy.actor.parameters(), *policy.prior.parameters()]
    found = th.autograd.grad(model.actor_loss(batch)[0], parameters)
    errors = (policy.actor.all_components(batch.observations) - batch.actions.unsqueeze(1)).square()
    joint = policy.prior(batch.observations) + log_normal(errors, policy.decoder_variance)
    expected = th.autograd.grad(-joint.logsumexp(dim=1).mean(), parameters)
    for first, second in zip(found, expected, strict=True):
        assert th.allclose(first, second, rtol=1e-3, atol=1e-6)


def test_kl_coef_tempers_the_assignment() -> None:
    sharp, flat = (ready(assignment="exact", kl_coef=kl_coef) for kl_coef in (1e-6, 100.0))
    assert sharp.diagnostics(batch_of(sharp))["posterior_entropy"] < 1.0
    values = flat.policy.component_table(batch_of(flat).observations, flat.policy.actor, flat.policy.critic)[0]
    prior_entropy = -(values.softmax(1) * values.log_softmax(1)).sum(dim=1).mean().item()
    assert flat.diagnostics(batch_of(flat))["posterior_entropy"].item() == pytest.approx(prior_entropy, rel=0.02)


def test_the_variance_is_the_running_mean_of_the_weighted_error() -> None:
    model = ready(decoder="calibrated")
    policy = model.policy
    assert policy.decoder_variance is not None and th.all(policy.decoder_variance == 0.5)
    batch = batch_of(model)
    errors = actor_loss(model, batch)[1]["decoder_variance"].clone()
    model.update(batch)
    expected = 0.5 + VARIANCE_RATE * (errors.clamp(min=LEAST_VARIANCE) - 0.5)
    # The critics' step came first, and moved the weights of the data a little.
    assert th.allclose(policy.decoder_variance, expected, rtol=1e-3)


def test_at_its_start_the_calibrated_decoder_is_the_published_one() -> None:
    fixed, calibrated = ready(), ready(decoder="calibrated")
    batch = batch_of(fixed)
    assert actor_loss(calibrated, batch)[0] == pytest.approx(actor_loss(fixed, batch)[0], rel=1e-5)


@pytest.mark.parametrize("support", [0.0, 0.3, 0.9])
def test_the_supported_gate(support: float) -> None:
    """The best of the values among sub-policies that are not much rarer than the commonest, in every place where it counts."""
    model = mixture(gate="supported", gate_support=support).learn(20)
    policy, observations = model.policy, batch_of(model, 64).observations
    assert policy.prior is not None
    with th.no_grad():
        for weight in policy.prior.parameters():
            weight.mul_(4.0)
        values, actions = policy.component_table(observations, policy.actor, policy.critic)
        prior = policy.prior(observations).exp()
    chosen = []
    for row in range(len(observations)):
        allowed = [z for z in range(K) if prior[row, z] >= support * prior[row].max()]
        chosen.append(max(allowed, key=lambda z: values[row, z].item()))
    assert (chosen == values.argmax(dim=1).tolist()) == (support == 0.0)
    rows = th.arange(len(observations))
    expected = actions[rows, chosen]
    found = policy.gated_actions(observations, policy.actor, policy.critic, th.float32)
    assert th.allclose(found, expected, atol=1e-6)
    found = policy.gated_values(observations, policy.actor, policy.critic, th.float32)
    assert th.allclose(found.squeeze(1), values[rows, chosen], atol=1e-5)
    assert policy._best_actions(observations)[0].squeeze(1).tolist() == chosen


def test_the_learned_gate() -> None:
    model = mixture(gate="learned").learn(20)
    policy, observations = model.policy, batch_of(model, 64).observations
    assert policy.prior is not None
    expected = policy.prior(observations).argmax(dim=1)
    assert th.equal(policy._best_actions(observations)[0].squeeze(1), expected)
    found = policy.gated_actions(observations, policy.actor, policy.critic, th.float32)
    assert th.allclose(found, policy.actor(observations, policy.actor.one_hots[expected]), atol=1e-6)


def test_the_learned_gate_is_fitted_with_the_advantage_weights() -> None:
    """Of two ways of acting that are equally common, the gate learns the one with the larger advantage."""
    model = ready(gate="learned", advantage_scale=10.0)
    batch = batch_of(model)
    loss, metrics = model.actor_loss(batch)
    policy = model.policy
    assert policy.prior is not None
    weights = model.advantages(batch)
    weights = (10.0 * (weights - weights.max()) / (weights.max() - weights.min())).exp()
    posterior = policy.posterior(batch.observations, batch.actions).softmax(dim=1)
    expected = -((weights / weights.mean()) * (posterior * policy.prior(batch.observations)).sum(1, keepdim=True)).mean()
    assert metrics["prior_loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    gradients = th.autograd.grad(loss, list(policy.prior.parameters()), retain_graph=True)
    expected_gradients = th.autograd.grad(expected, list(policy.prior.parameters()))
    assert all(th.allclose(a, b, atol=1e-6) for a, b in zip(gradients, expected_gradients, strict=True))


def test_the_targets_of_the_data() -> None:
    """``r_1 + ... + gamma^n min_j Q_j'(s', a')`` with the action that the data have at s'."""
    model = ready(bootstrap="data", n_steps=3)
    batch = batch_of(model)
    assert batch.next_actions is not None and batch.discounts is not None and "target_noise" not in batch.noise
    q_values = model.policy.critic_target(batch.next_observations, batch.next_actions).amin(dim=0)
    expected = batch.rewards + (1.0 - batch.dones) * batch.discounts * q_values
    assert th.allclose(model.target_q_values(batch), expected)
    assert model.gamma**3 - 1e-6 <= float(batch.discounts.min()) < float(batch.discounts.max()) + 1e-9


@pytest.mark.parametrize(
    ("name", "options"), [*(("dmpo", options) for options in (*ONE_BY_ONE, EVERYTHING)), ("infodmpo", EVERYTHING)], ids=str
)
def test_resume_bit_for_bit(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    whole = mixture(name, **options).learn(4)
    half = mixture(name, **options).learn(2)
    half.save(tmp_path / "half.zip")
    rest = type(half).load(tmp_path / "half.zip", dataset=DATA).learn(2, reset_num_timesteps=False)
    assert_same(dict(whole.policy.state_dict()), dict(rest.policy.state_dict()))


@pytest.mark.parametrize("options", [{"gate": "supported"}, {"gate": "learned"}, EVERYTHING], ids=str)
def test_exported_policies_choose_alike(options: dict[str, Any]) -> None:
    exported_and_single_actions(mixture(**options).learn(20), DATA.observations[:64])


@pytest.mark.slow
def test_several_seeds_keep_their_own_variances() -> None:
    together = [mixture(**EVERYTHING | {"seed": seed}) for seed in range(2)]
    learn_together(list(together), 4)
    for seed, model in enumerate(together):
        alone = mixture(**EVERYTHING | {"seed": seed}).learn(4)
        for key, value in model.policy.state_dict().items():
            assert th.allclose(value, alone.policy.state_dict()[key], atol=2e-5), key
    first, second = (model.policy.decoder_variance for model in together)
    assert first is not None and second is not None and not th.equal(first, second)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"assignment": "exact", "kl_coef": 0.0}, "divides by kl_coef"),
        ({"value_targets": True, "bootstrap": "data"}, "does not go with"),
        ({"gate": "prior"}, "gate"),
        ({"gate_support": 1.5}, "gate_support"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixture(**options)


def test_value_targets_with_the_other_options() -> None:
    options = {name: value for name, value in EVERYTHING.items() if name != "bootstrap"}
    model = mixture(value_targets=True, value_bounds=(-10.0, 10.0), **options).learn(6)
    assert all(bool(th.isfinite(tensor).all()) for tensor in model.policy.state_dict().values())


@pytest.mark.slow
def test_sub_policies_part() -> None:
    """On the toy, whose data have two ways of acting, those of the paper stay one policy, and these do not."""
    found = {}
    for algorithm in (DMPO, OneStepDMPO):
        model = algorithm(
            dataset=make_two_goals_dataset(),
            learning_rate=1e-3,
            batch_size=128,
            policy_kwargs={"net_arch": [64, 64]},
            seed=0,
            device="cpu",
        ).learn(300)
        found[algorithm] = model.diagnostics(model.sample_batch(1024))["mutual_information"].item()
        states = make_two_goals_dataset()[0].observations
        # Without a network that says whose an action is, the decoder says it: the sharper it is, the better.
        assert (model.policy.posterior is None) == (algorithm is OneStepDMPO)
        for variance, is_one in ((10.0, True), (1e-3, algorithm is DMPO)):
            if model.policy.decoder_variance is not None:
                model.policy.decoder_variance.fill_(variance)
            assert model.policy.acts_as_one(states) == is_one
    assert found[DMPO] < 0.05 < 0.3 < found[OneStepDMPO] < math.log(8)


def test_a_setting_of_its_own_name() -> None:
    model = make("one_step_dmpo", dataset=DATA)
    assert isinstance(model, OneStepDMPO) and model.bootstrap == "component" and model.n_steps == 20
    assert model.policy.critic.norms and model.assignment == "episode" and model.policy_kwargs["critic_layer_norm"] is True
    plain = make("one_step_dmpo", dataset=DATA, policy_kwargs={"net_arch": [16], "critic_layer_norm": False})
    assert isinstance(plain, OneStepDMPO) and not plain.policy.critic.norms
