"""MAPLE against recorded runs of the original implementation: ensemble, updates, sequences, rollouts."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dmpo import MAPLE
from sb3_dmpo.common.optimizers import make_optimizer, optimizer_step
from sb3_dmpo.data.transitions import Transitions
from sb3_dmpo.decision_transformer.buffers import SequenceReplayBuffer
from sb3_dmpo.envs.spaces_only import SpacesOnlyEnv
from sb3_dmpo.maple import termination
from sb3_dmpo.maple.dynamics import DynamicsEnsemble, EarlyStopping, elites
from sb3_dmpo.maple.rollouts import EpisodePieces, LearnedEnvironment, ModelBuffer, RolloutNoise, Sequences
from sb3_dmpo.maple.termination import RULES
from tests.reference_util import FOLDER, Views, linear_views, mlp_views

PRECISIONS = (th.float64, th.float32)
MODEL = np.load(FOLDER / "maple_model.npz")


def tolerance(dtype: th.dtype, later: bool = False) -> dict[str, float]:
    if dtype == th.float64:
        return {"rtol": 1e-8, "atol": 1e-9}
    return {"rtol": 1e-4, "atol": 5e-5 if later else 1e-5}


def close(actual: Any, expected: np.ndarray, dtype: th.dtype, later: bool = False) -> None:
    actual = actual.detach().numpy() if isinstance(actual, th.Tensor) else np.asarray(actual)
    limits = tolerance(dtype, later)
    if dtype == th.float32:
        limits["atol"] = max(limits["atol"], 1e-6 * float(np.abs(expected).max()))
    np.testing.assert_allclose(actual.reshape(expected.shape), expected, **limits)


# The ensemble -------------------------------------------------------------------------------------------------------


def ensemble_parameters(ensemble: DynamicsEnsemble) -> Views:
    """Recorded names -> views in the recorded layout, matrices as ``(net, in, out)``."""
    names = [*(f"h{i}" for i in range(len(ensemble.hidden))), "mean", "logvar"]
    views: Views = {}
    for name, layer in zip(names, ensemble.layers(), strict=True):
        views |= {f"{name}.weight": layer.weight.mT, f"{name}.bias": layer.bias}
    return views | {"max_logvar": ensemble.max_log_var[None], "min_logvar": ensemble.min_log_var[None]}


def gradients_of(ensemble: DynamicsEnsemble) -> dict[str, th.Tensor]:
    names = [*(f"h{i}" for i in range(len(ensemble.hidden))), "mean", "logvar"]
    found: dict[str, th.Tensor] = {}
    for name, layer in zip(names, ensemble.layers(), strict=True):
        found |= {f"{name}.weight": layer.weight.grad.mT, f"{name}.bias": layer.bias.grad}
    return found | {"max_logvar": ensemble.max_log_var.grad[None], "min_logvar": ensemble.min_log_var.grad[None]}


def recorded_ensemble(stage: str, dtype: th.dtype) -> DynamicsEnsemble:
    ensemble = DynamicsEnsemble(5, 2, 3, 2, (16,) * 4).to(dtype)
    views = ensemble_parameters(ensemble)
    assert set(views) == {key.split("/")[1] for key in MODEL.files if key.startswith(f"{stage}/")}
    with th.no_grad():
        for name, view in views.items():
            view.copy_(th.as_tensor(MODEL[f"{stage}/{name}"]))
    ensemble.set_scaler(th.as_tensor(MODEL["scaler/mean"]), th.as_tensor(MODEL["scaler/std"]))
    return ensemble


def model_tensor(key: str, dtype: th.dtype) -> th.Tensor:
    values = th.as_tensor(MODEL[key])
    return values.to(dtype) if values.is_floating_point() else values


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_ensemble_forward(dtype: th.dtype) -> None:
    means, log_vars = recorded_ensemble("init", dtype)(model_tensor("data/inputs", dtype)[:6])
    close(means, MODEL["forward/mean"], dtype)
    close(log_vars, MODEL["forward/logvar"], dtype)
    close(log_vars.exp(), MODEL["forward/var"], dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_ensemble_training(dtype: th.dtype) -> None:
    """Loss, decay, errors and gradients of three steps, the parameters after each, and the holdout error."""
    ensemble = recorded_ensemble("init", dtype)
    parameters = list(ensemble.parameters())
    optimizer = make_optimizer(th.optim.Adam, parameters, 1e-3, {})
    inputs, targets = model_tensor("data/inputs", dtype), model_tensor("data/targets", dtype)
    for step in range(3):
        rows = model_tensor("train/index", dtype)[step]
        loss, errors = ensemble.loss(inputs[rows], targets[rows])
        close(loss, MODEL["train/loss"][step], dtype, later=step > 0)
        close(errors, MODEL["train/mse"][step], dtype, later=step > 0)
        if step < 2:
            close(ensemble.decay(), MODEL[f"u{step + 1}/decay"], dtype, later=step > 0)
            loss.backward(retain_graph=True)
            for name, gradient in gradients_of(ensemble).items():
                close(gradient, MODEL[f"u{step + 1}/grad/{name}"], dtype, later=step > 0)
            ensemble.zero_grad()
        optimizer_step(optimizer, parameters, list(th.autograd.grad(loss, parameters)))
        for name, view in ensemble_parameters(ensemble).items():
            close(view, MODEL[f"after{step + 1}/{name}"], dtype, later=True)
    with th.no_grad():
        errors = ensemble.squared_errors(inputs[30:], targets[30:]).mean(dim=1)
    close(errors, MODEL["holdout/mse"], dtype, later=True)


def test_early_stopping() -> None:
    losses = th.as_tensor(MODEL["early_stopping/holdout_losses"])
    stopping, best_epoch = EarlyStopping(3, patience=5), th.zeros(3, dtype=th.long)
    epochs = 0
    for epoch, errors in enumerate(losses):
        best_epoch[stopping.improved(errors)] = epoch
        epochs = epoch
        if stopping.is_over:
            break
    assert epochs == MODEL["early_stopping/last_epoch"]
    assert best_epoch.tolist() == MODEL["early_stopping/best_epoch"].tolist()
    np.testing.assert_allclose(stopping.best_errors, MODEL["early_stopping/best_loss"])


def test_elites() -> None:
    assert elites(th.as_tensor(MODEL["elites/holdout_losses"]), 2).tolist() == MODEL["elites/index"].tolist()


@pytest.mark.parametrize("penalty", ["aleatoric", "disagreement"])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_model_step(dtype: th.dtype, penalty: str) -> None:
    """One step of the learned environment, with either penalty."""
    ensemble = recorded_ensemble("after3", dtype)
    observations, actions = model_tensor("step/observations", dtype), model_tensor("step/actions", dtype)
    members = model_tensor("step/index", dtype)
    noise = model_tensor("step/noise", dtype)[members, th.arange(8)]
    with th.no_grad():
        means, log_vars = ensemble(th.cat([observations, actions], dim=1))
        step = ensemble.step(observations, actions, noise, members, penalty)
    close(means, MODEL["step/mean"], dtype)
    close((0.5 * log_vars).exp(), MODEL["step/std"], dtype)
    close(step.next_observations, MODEL["step/next_observations"], dtype)
    close(step.rewards, MODEL["step/rewards"], dtype)
    clip, everywhere = float(MODEL[f"step/penalty_clip_{penalty}"]), th.full((5,), 1e9, dtype=dtype)
    rule = alive_above(1.0, 1.5)
    environment = LearnedEnvironment(ensemble, rule, penalty, 0.25, clip, (-1e9, 1e9), -everywhere, everywhere)
    with th.no_grad():
        rewards, _, ends, penalties = environment.step(observations, actions, noise, members)
    close(rewards, MODEL[f"step/penalised_rewards_{penalty}"], dtype)
    close(penalties, MODEL[f"step/penalty_{penalty}"], dtype)
    close(step.penalties.clamp(max=clip), MODEL[f"step/penalty_{penalty}"], dtype)
    assert bool((step.penalties > clip).any()), "the clip should act"
    assert ends.bool().tolist() == MODEL["step/terminals"].astype(bool).tolist()


def alive_above(above: float, within: float) -> termination.TerminationRule:
    def rule(observations: th.Tensor, actions: th.Tensor, x: th.Tensor) -> th.Tensor:
        return ~((x[:, 0] > above) & (x[:, 1].abs() < within) & (x.abs() < 100).all(dim=1))

    return rule


@pytest.mark.parametrize("task", ["hopper", "walker2d", "halfcheetah"])
def test_termination_rules(task: str) -> None:
    x = th.as_tensor(MODEL[f"termination/{task}/next_observations"])
    ends = RULES[task](x, x[:, :2], x)
    assert ends.tolist() == MODEL[f"termination/{task}/terminals"].astype(bool)[:, 0].tolist()


# Updates ------------------------------------------------------------------------------------------------------------


def encoder_views(encoder: Any) -> Views:
    gru = {f"gru.{name}": getattr(encoder.gru, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    return gru | linear_views(encoder.embed, "embed")


def actor_views(actor: Any) -> Views:
    return mlp_views(actor.latent_pi, last="") | linear_views(actor.mu, "mu") | linear_views(actor.log_std, "log_std")


def scalar_view(policy: Any) -> Views:
    return {"": policy.log_alpha}


VIEWS: dict[str, tuple[str, Callable[[Any], Views]]] = {
    "policy_encoder": ("policy_encoder", encoder_views),
    "value_encoder": ("value_encoder", encoder_views),
    "actor": ("actor", actor_views),
    "q1": ("critics.q1", mlp_views),
    "q2": ("critics.q2", mlp_views),
    "q1_target": ("critics_target.q1", mlp_views),
    "q2_target": ("critics_target.q2", mlp_views),
}


class Recorded:
    """
    A recorded run of updates on a model.

    :param name: file of the recording
    :param dtype: precision
    """

    def __init__(self, name: str, dtype: th.dtype) -> None:
        self.ref, self.dtype = np.load(FOLDER / f"{name}.npz"), dtype
        self.config = json.loads(str(self.ref["config"]))
        env = SpacesOnlyEnv(spaces.Box(-np.inf, np.inf, (5,)), spaces.Box(-1.0, 1.0, (2,)))
        self.model = MAPLE(
            env=env,
            seed=0,
            device="cpu",
            batch_size=4,
            rollout_length=6,
            gru_size=16,
            context_size=4,
            target_entropy=-2.0,
            published_code=name == "maple_published",
            policy_kwargs={"net_arch": [16, 16]},
        )
        self.policy = self.model.policy.to(dtype)
        limits = th.full((5,), 1e9)
        reward_range = tuple(bound * (1.0 - self.config["gamma"]) for bound in self.config["value_range"])
        self.model._environment = LearnedEnvironment(
            recorded_ensemble("init", dtype), RULES["never"], "aleatoric", 0.25, 20.0, reward_range,
            -limits, limits,
        )  # fmt: skip
        with th.no_grad():
            for net, key, view in self.views():
                view.copy_(th.as_tensor(self.ref[f"init/{net}{key}"]))
        self.gradients: dict[str, th.Tensor] = {}

    def views(self) -> list[tuple[str, str, th.Tensor]]:
        found = [("log_alpha", "", self.policy.log_alpha)]
        for net, (path, views_of) in VIEWS.items():
            found += [(net, f"/{key}", view) for key, view in views_of(self.policy.get_submodule(path)).items()]
        return found

    def tensor(self, key: str, row: int | None = None) -> th.Tensor:
        values = self.ref[key] if row is None else self.ref[key][row]
        return th.as_tensor(values).to(self.dtype)

    def batch(self, update: int) -> Sequences:
        read = partial(self.tensor, row=update - 1)
        return Sequences(
            observations=read("data/observations"),
            actions=read("data/actions"),
            next_observations=read("data/next_observations"),
            rewards=read("data/rewards"),
            dones=read("data/terminals"),
            valid=read("data/valid"),
            last_actions=read("data/last_actions")[:, 0],
            policy_hidden=read("data/policy_hidden"),
            value_hidden=read("data/value_hidden"),
            noise={name: read(f"noise/{name}") for name in ("noise", "next_noise")},
        )

    def update(self, batch: Sequences) -> dict[str, th.Tensor]:
        """One update, with the gradients that every optimizer applied."""
        self.gradients = {}
        handles = []
        for name, (optimizer, _, _) in self.model._optimizers.items():
            handles.append(optimizer.register_step_pre_hook(partial(self._record, name)))
        self.model._n_updates += 1
        metrics = self.model._update_all(batch)
        for handle in handles:
            handle.remove()
        return metrics

    def _record(self, name: str, optimizer: th.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for net, key, view in self.views():
            for parameter in optimizer.param_groups[0]["params"]:
                if parameter is view:
                    self.gradients[f"{name}/{net}{key}"] = parameter.grad.clone()


@pytest.mark.parametrize("name", ["maple", "maple_published"])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_updates(dtype: th.dtype, name: str) -> None:
    """Losses, the gradients of all four optimizers, and all parameters after each of three updates."""
    run = Recorded(name, dtype)
    for update in (1, 2, 3):
        metrics = run.update(run.batch(update))
        for loss in ("critic_1_loss", "critic_2_loss", "actor_loss", "alpha_loss"):
            close(metrics[loss], run.ref[f"losses/{loss}"][update - 1], dtype, later=update > 1)
        if update <= 2:
            close(metrics["alpha"], run.ref[f"u{update}/alpha"], dtype, later=update > 1)
            prefix = f"u{update}/grad_"
            recorded = {key.removeprefix(prefix) for key in run.ref.files if key.startswith(prefix)}
            assert recorded == set(run.gradients)
            for key, gradient in run.gradients.items():
                close(gradient, run.ref[prefix + key], dtype, later=update > 1)
        for net, key, view in run.views():
            close(view, run.ref[f"after{update}/{net}{key}"], dtype, later=True)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_values_of_an_update(dtype: th.dtype) -> None:
    """Contexts, actions, densities, values and targets on the way."""
    run = Recorded("maple", dtype)
    batch, policy, ref = run.batch(1), run.policy, run.ref
    valid = batch.valid[..., 0].numpy() > 0
    alive = valid & (batch.dones[..., 0].numpy() == 0)
    close(run.model.losses(batch)[1]["target_q"], np.asarray(ref["u1/target_q"][valid].mean()), dtype)
    for kind in ("policy", "value"):
        encoder, hidden = policy.get_submodule(f"{kind}_encoder"), getattr(batch, f"{kind}_hidden")
        last_actions = th.cat([batch.last_actions[:, None], batch.actions], dim=1)
        observations = th.cat([batch.observations[:, :1], batch.next_observations], dim=1)
        states = encoder.hidden_states(observations, last_actions, hidden)
        close(states[:, :-1].detach().numpy()[valid], ref[f"u1/gru_{kind}"][valid], dtype)
        contexts = encoder.contexts(states)
        pairs = [("", contexts[:, :-1], batch.observations, valid), ("next_", contexts[:, 1:], batch.next_observations, alive)]
        for prefix, context, observation, mask in pairs:
            state = th.cat([context, observation], dim=2).detach().numpy()
            close(state[mask], ref[f"u1/{prefix}{kind}_state"][mask], dtype)
        if kind == "policy":
            distribution = policy.actor(contexts[:, :-1], batch.observations)
            close(distribution.mode().detach().numpy()[valid], ref["u1/mean_action"][valid], dtype)
            close(distribution.log_std.exp().detach().numpy()[valid], ref["u1/std"][valid], dtype)
            actions, log_probs = distribution.sample(batch.noise["noise"])
            close(actions.detach().numpy()[valid], ref["u1/action"][valid], dtype)
            close(log_probs[..., 0].detach().numpy()[valid], ref["u1/log_prob"][valid], dtype)
        else:
            for j, values in enumerate(policy.critics(contexts[:, :-1], batch.observations, batch.actions), start=1):
                close(values[..., 0].detach().numpy()[valid], ref[f"u1/q{j}"][valid], dtype)


@pytest.mark.parametrize("name", ["maple", "maple_published"])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_acting(dtype: th.dtype, name: str) -> None:
    """Five steps of two environments with the memory handed on, one of them beginning a new episode in between."""
    run = Recorded(name, dtype)
    for update in (1, 2, 3):
        run.update(run.batch(update))
    hidden, last_actions = th.zeros(2, 16, dtype=dtype), th.zeros(2, 2, dtype=dtype)
    state: Any = None
    for step in range(5):
        starts = run.ref["acting/episode_start"][step].astype(bool)
        hidden[starts], last_actions[starts] = 0.0, 0.0
        with th.no_grad():
            last_actions, hidden = run.policy.act(run.tensor("acting/observations", step), hidden, last_actions)
        close(last_actions, run.ref["acting/actions"][step], dtype, later=True)
        close(hidden, run.ref["acting/hidden"][step], dtype, later=True)
        actions, state = run.policy.predict(run.ref["acting/observations"][step], state, starts, deterministic=True)
        close(actions, run.ref["acting/actions"][step], th.float32, later=True)
        close(state.hidden, run.ref["acting/hidden"][step], th.float32, later=True)


# Sequences and rollouts ---------------------------------------------------------------------------------------------


def after_updates(dtype: th.dtype) -> Recorded:
    run = Recorded("maple", dtype)
    with th.no_grad():
        for net, key, view in run.views():
            view.copy_(th.as_tensor(run.ref[f"after3/{net}{key}"]))
    return run


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_pieces_of_episodes(dtype: th.dtype) -> None:
    """Observations, actions, masks, and the states of both encoders before every step."""
    run, ref = after_updates(dtype), np.load(FOLDER / "maple.npz")
    numbers = ref["episodes/episode"].reshape(-1)
    lengths = np.unique(numbers, return_counts=True)[1]
    episodes = {key.split("/")[1]: ref[key] for key in ref.files if key.startswith("episodes/")}
    rows = {name: episodes[name].astype(np.float32) for name in ("observations", "next_observations", "actions", "rewards")}
    ends = {"terminations": episodes["terminals"] > 0, "truncations": np.zeros(len(numbers), bool)}
    box = spaces.Box(-np.inf, np.inf, (5,)), spaces.Box(-1.0, 1.0, (2,))
    transitions = Transitions(**rows, **ends, episode_lengths=lengths, observation_space=box[0], action_space=box[1],
                              dataset_id=None, fingerprint="recorded")  # fmt: skip
    buffer = SequenceReplayBuffer.from_transitions(transitions)
    assert isinstance(buffer, SequenceReplayBuffer)
    pieces = EpisodePieces(buffer, 6)
    hidden = pieces.hidden_states(run.policy, (run.policy.policy_encoder, run.policy.value_encoder))
    n = int(ref["sequences/size"])
    assert (len(pieces.firsts), n) == (6, 5)  # the last one is not full, and left out there
    found = pieces.sequences(th.arange(n), hidden)
    names = {
        "observations": "observations",
        "actions": "actions",
        "rewards": "rewards",
        "dones": "terminals",
        "valid": "valid",
    }
    for ours, theirs in names.items():
        close(getattr(found, ours), ref[f"sequences/{theirs}"], th.float32)
    close(found.last_actions, ref["sequences/last_actions"][:, 0], th.float32)
    valid = ref["sequences/valid"][..., 0] > 0
    for kind in ("policy", "value"):
        states = getattr(hidden, kind)
        steps = (pieces.firsts[:n, None] + th.arange(6)).clamp(max=24)
        # The buffer holds single precision, whatever the networks have.
        close(states[steps].numpy()[valid], ref[f"sequences/{kind}_hidden"][valid], th.float32, later=True)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_rollout(dtype: th.dtype) -> None:
    """Five imagined episodes of six steps with a net per row and step, as they stand in the model buffer."""
    run = after_updates(dtype)
    ref, tensor = run.ref, run.tensor
    reward_range = tuple(map(float, ref["rollout/reward_range"]))
    environment = LearnedEnvironment(
        recorded_ensemble("init", dtype),
        alive_above(float(ref["rollout/alive_above"]), float(ref["rollout/alive_within"])),
        "aleatoric",
        0.25,
        float(ref["rollout/penalty_clip"]),
        reward_range,  # type: ignore[arg-type]
        tensor("rollout/observation_min"),
        tensor("rollout/observation_max"),
    )
    start = Sequences(
        *(tensor("rollout/start/observations")[:, None],) * 6,
        tensor("rollout/start/last_actions"),
        tensor("rollout/start/policy_hidden"),
        tensor("rollout/start/value_hidden"),
        {},
    )
    members = th.as_tensor(ref["rollout/index"]).long()
    model_noise = tensor("rollout/model_noise")
    rows = th.arange(5)
    own_noise = th.stack([model_noise[step, members[step], rows] for step in range(6)])
    noise = RolloutNoise(tensor("rollout/noise"), own_noise, members)
    buffer = ModelBuffer(2, 5, 6, run.policy)
    buffer.roll_out(slice(5, 10), environment, run.policy, start, noise)
    found = buffer.sequences(th.arange(5, 10))
    pool = {key.split("/")[2]: ref[key] for key in ref.files if key.startswith("rollout/pool/")}
    for ours, theirs in {
        "observations": "observations",
        "actions": "actions",
        "next_observations": "next_observations",
        "rewards": "rewards",
        "dones": "terminals",
        "valid": "valid",
    }.items():
        close(getattr(found, ours), pool[theirs], dtype, later=True)
    close(found.last_actions, pool["last_actions"][:, 0], dtype)
    close(found.policy_hidden, pool["policy_hidden"][:, 0], dtype)
    close(found.value_hidden, pool["value_hidden"][:, 0], dtype)
    assert 0 < found.valid.mean() < 1
