"""ReBRAC against its equations, written down once more in double precision, and what its data are."""

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_dmpo import ReBRAC
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.type_aliases import OfflineBatch
from sb3_dmpo.data import DatasetError
from tests.contract import DATA, make
from tests.toy_data import EPISODE_LENGTH, make_transitions

BATCH, OBSERVATION, ACTION = 12, 3, 2
Weights = dict[str, th.Tensor]


def mlp(
    x: th.Tensor, weights: list[th.Tensor], biases: list[th.Tensor], norms: list[tuple[th.Tensor, th.Tensor]]
) -> th.Tensor:
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = x @ weight.T + bias
        if i == len(weights) - 1:
            return x
        x = x * (x > 0)
        if norms:
            centered = x - x.mean(dim=1, keepdim=True)
            x = centered / ((centered**2).mean(dim=1, keepdim=True) + 1e-5) ** 0.5 * norms[i][0] + norms[i][1]
    raise AssertionError


def act(weights: Weights, observations: th.Tensor) -> th.Tensor:
    layers = [f"mu.{i}" for i in (0, 2, 4)]
    return th.tanh(mlp(observations, [weights[f"{n}.weight"] for n in layers], [weights[f"{n}.bias"] for n in layers], []))


def smaller_q(weights: Weights, observations: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, list[th.Tensor]]:
    x, values = th.cat([observations, actions], dim=1), []
    for j in range(2):
        norms = [(weights[f"norms.{i}.weight"][j, 0], weights[f"norms.{i}.bias"][j, 0]) for i in (0, 1)]
        layers = [f"layers.{i}" for i in (0, 1, 2)]
        values.append(mlp(x, [weights[f"{n}.weight"][j] for n in layers], [weights[f"{n}.bias"][j, 0] for n in layers], norms))
    return th.minimum(*values), values


class Oracle:
    """The paper's update with an Adam of its own."""

    def __init__(self, model: ReBRAC) -> None:
        self.settings = model
        names = ("actor", "critic", "actor_target", "critic_target")
        self.nets: dict[str, Weights] = {
            name: {key: value.detach().clone() for key, value in getattr(model.policy, name).named_parameters()}
            for name in names
        }
        self.moments: dict[str, Any] = {name: [0, {}, {}] for name in ("actor", "critic")}

    def step(self, name: str, loss: th.Tensor, rate: float) -> None:
        net, (n, first, second) = self.nets[name], self.moments[name]
        n += 1
        for key, gradient in zip(net, th.autograd.grad(loss, list(net.values())), strict=True):
            first[key] = 0.9 * first.get(key, 0.0) + 0.1 * gradient
            second[key] = 0.999 * second.get(key, 0.0) + 0.001 * gradient**2
            step = rate * first[key] / (1 - 0.9**n) / ((second[key] / (1 - 0.999**n)) ** 0.5 + 1e-8)
            net[key] = (net[key] - step).detach()
        self.moments[name][0] = n

    def update(self, batch: OfflineBatch, delayed: bool) -> dict[str, float]:
        settings, nets = self.settings, self.nets
        for name in ("actor", "critic"):
            nets[name] = {key: value.requires_grad_() for key, value in nets[name].items()}
        noise = (0.2 * batch.noise["target_noise"]).clamp(-0.5, 0.5)
        with th.no_grad():
            following = (act(nets["actor_target"], batch.next_observations) + noise).clamp(-1, 1)
            penalty = ((following - batch.next_actions) ** 2).sum(dim=1, keepdim=True)
            values = smaller_q(nets["critic_target"], batch.next_observations, following)[0]
            values = values - settings.critic_bc_coef * penalty
            targets = batch.rewards + settings.gamma * (1 - batch.dones) * values
        _, both = smaller_q(nets["critic"], batch.observations, batch.actions)
        loss = sum(((values - targets) ** 2).mean() for values in both)
        losses = {"critic_loss": loss.item()}
        self.step("critic", loss, 5e-4)
        if delayed:
            actions = act(nets["actor"], batch.observations)
            q_values, _ = smaller_q(nets["critic"], batch.observations, actions)
            scale = 1 / abs(q_values.detach()).mean() if settings.normalize_q else 1.0
            distance = ((actions - batch.actions) ** 2).sum(dim=1, keepdim=True)
            loss = (settings.actor_bc_coef * distance - scale * q_values).mean()
            losses["actor_loss"] = loss.item()
            self.step("actor", loss, 1e-3)
            for name in ("actor", "critic"):
                target = nets[f"{name}_target"]
                for key, value in nets[name].items():
                    target[key] = 0.995 * target[key] + 0.005 * value.detach()
        return losses


def random_batch(model: ReBRAC, seed: int) -> OfflineBatch:
    rng = np.random.default_rng(seed)

    def tensor(*shape: int) -> th.Tensor:
        return th.as_tensor(rng.normal(size=shape))

    dones = th.as_tensor((rng.uniform(size=(BATCH, 1)) < 0.3).astype(np.float64))
    return OfflineBatch(
        tensor(BATCH, OBSERVATION),
        tensor(BATCH, ACTION).clamp(-1, 1),
        tensor(BATCH, OBSERVATION),
        tensor(BATCH, 1),
        dones,
        {"target_noise": tensor(BATCH, ACTION)},
        next_actions=tensor(BATCH, ACTION).clamp(-1, 1),
        has_next_action=1 - dones,
    )


@pytest.mark.parametrize("normalize_q", [True, False])
def test_updates_are_those_of_the_paper(normalize_q: bool) -> None:
    """Losses and all weights of six updates, three of them with the actor."""
    coefficients = {"actor_bc_coef": 0.3, "critic_bc_coef": 0.7, "critic_learning_rate": 5e-4, "normalize_q": normalize_q}
    model = make("rebrac", dataset=DATA, learning_rate=1e-3, **coefficients)
    assert isinstance(model, ReBRAC)
    model.policy.double()
    model._current_progress_remaining = 1.0
    oracle = Oracle(model)
    for i in range(6):
        batch = random_batch(model, i)
        model._begin_update()
        found = model._update_all(batch)
        for key, value in oracle.update(batch, delayed=i % 2 == 1).items():
            np.testing.assert_allclose(float(found[key].detach()), value, rtol=1e-9, err_msg=f"update {i}, {key}")
    for name, weights in oracle.nets.items():
        for key, value in weights.items():
            th.testing.assert_close(getattr(model.policy, name).get_parameter(key), value, rtol=1e-8, atol=1e-10)


def test_networks_begin_as_the_authors_do() -> None:
    model = ReBRAC(dataset=DATA, seed=0, device="cpu")
    policy = model.policy
    assert (model.learning_rate, model.batch_size, policy.net_arch) == (1e-3, 1024, [256, 256, 256])
    assert len(policy.critic.norms) == 3 and not model.normalize_observations
    for network, bound in ((policy.actor.mu, 1e-3), (policy.critic.layers, 3e-3)):
        layers = [layer for layer in network if hasattr(layer, "weight")]
        assert all(bool((layer.bias == 0.1).all()) for layer in layers[:-1])
        assert 0 < float(layers[-1].weight.detach().abs().max()) <= bound
        assert 0 < float(layers[-1].bias.detach().abs().max()) <= bound
    for target, online in ((policy.actor_target, policy.actor), (policy.critic_target, policy.critic)):
        for first, second in zip(target.parameters(), online.parameters(), strict=True):
            assert th.equal(first, second) and not first.requires_grad


def test_next_actions_of_the_dataset() -> None:
    """Those of the next row of the episode; last steps of episodes that were cut are never drawn."""
    model = make("rebrac", dataset=DATA)
    model._setup_dataset()
    rows = {action.tobytes(): row for row, action in enumerate(DATA.actions)}
    drawn = set()
    for _ in range(100):
        batch = model.sample_batch(16)
        for action, following, has_next, done in zip(
            batch.actions, batch.next_actions, batch.has_next_action, batch.dones, strict=True
        ):
            row = rows[action.numpy().tobytes()]
            drawn.add(row)
            assert bool(has_next) == (not bool(done)) == (row % EPISODE_LENGTH < EPISODE_LENGTH - 1)
            if has_next:
                np.testing.assert_array_equal(following, DATA.actions[row + 1])
    assert drawn == set(np.flatnonzero(~DATA.truncations))


def test_nothing_to_learn_from() -> None:
    data = make_transitions(n_episodes=4)
    data.terminations[:], data.truncations[:] = False, True
    data.episode_lengths.resize(len(data), refcheck=False)
    data.episode_lengths[:] = 1
    with pytest.raises(DatasetError, match="every episode is a single step that is cut"):
        make("rebrac", dataset=OfflineReplayBuffer.from_transitions(data)).learn(1)


def test_buffer_without_episodes() -> None:
    buffer = OfflineReplayBuffer.from_transitions(DATA)
    buffer.episode_lengths = None
    with pytest.raises(DatasetError, match="cannot tell where its episodes end"):
        make("rebrac", dataset=buffer).learn(1)


def test_zoo_has_the_coefficients_of_the_paper() -> None:
    from sb3_dmpo.cli.configs import config_path, find_entry, parse_values

    expected = {
        "hopper-medium-v2.hdf5": (0.01, 0.01, 1024),
        "my/hopper/medium-replay-v0": (0.05, 0.5, 1024),
        "walker2d-random-v2.hdf5": (0.01, 0.0, 1024),
        "D4RL/pen/human-v2": (0.1, 0.5, 256),
        "D4RL/door/cloned-v2": (0.01, 0.1, 256),
        "D4RL/antmaze/medium-diverse-v1": (0.001, 0.0, 256),
    }
    for dataset, values in expected.items():
        found = parse_values(find_entry(str(config_path("rebrac")), dataset)[1])
        assert (found["actor_bc_coef"], found["critic_bc_coef"], found["batch_size"]) == values, dataset
