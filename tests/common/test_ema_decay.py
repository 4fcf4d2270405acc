"""Acting by exponential averages of the networks."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_dmpo import ALGOS
from sb3_dmpo.common.export import ExportedPolicy
from sb3_dmpo.common.offline_evaluation import component_usage
from sb3_dmpo.several_seeds.several_seeds import learn_together
from tests.contract import DATA, assert_same, make, vec_env

#: Reached by the fourth update; before that the average moves faster.
DECAY = 0.35


class Averager(BaseCallback):
    """The average as its definition says, from the weights after every update."""

    def _on_training_start(self) -> None:
        self.expected = {name: self._weights(name) for name in self.model.policy.acting_networks}
        self.n_updates = 0

    def _weights(self, name: str) -> list[th.Tensor]:
        return [parameter.detach().double() for parameter in getattr(self.model.policy, name).parameters()]

    def _on_step(self) -> bool:
        self.n_updates += 1
        decay = min(DECAY, (1 + self.n_updates) / (10 + self.n_updates))
        for name, averages in self.expected.items():
            pairs = zip(averages, self._weights(name), strict=True)
            self.expected[name] = [decay * average + (1 - decay) * newest for average, newest in pairs]
        return True


@pytest.mark.parametrize("name", ["dmpo", "infodmpo", "bc", "iql", "rebrac"])
def test_average(name: str) -> None:
    model = make(name, dataset=DATA, ema_decay=DECAY, learning_rate=1e-2)
    model.learn(7, callback=(averager := Averager()))
    assert set(averager.expected) == set(model.policy.average)
    assert ("critic" in averager.expected) == (name in ("dmpo", "infodmpo"))
    for network, expected in averager.expected.items():
        for found, value in zip(model.policy.average[network].parameters(), expected, strict=True):
            th.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-6)
            assert not found.requires_grad


def test_a_short_run_acts_by_what_it_learned() -> None:
    """With the memory of a long run, the average after 30 updates is not the first networks."""
    model = make("bc", dataset=DATA, ema_decay=0.9995, learning_rate=1e-2)
    before = copy.deepcopy(model.policy.actor).requires_grad_(False)
    model.learn(30)
    observations = th.as_tensor(DATA.observations)
    with th.no_grad():
        first, average, newest = (net(observations) for net in (before, model.policy.average["actor"], model.policy.actor))
    assert (average - newest).square().mean() < 0.1 * (first - newest).square().mean()


@pytest.mark.parametrize("name", ALGOS)
def test_training_is_left_alone_and_acting_is_not(name: str) -> None:
    """The newest networks are those of a run without; ``predict`` is that of a policy with the averages in their places."""
    plain = make(name, dataset=DATA, learning_rate=1e-2).learn(6)
    model = make(name, dataset=DATA, learning_rate=1e-2, ema_decay=DECAY).learn(6)
    found = model.policy.state_dict()
    assert {key for key in found if key not in plain.policy.state_dict()} == {key for key in found if "average." in key}
    assert_same({key: found[key] for key in plain.policy.state_dict()}, dict(plain.policy.state_dict()))
    observations = DATA.observations[:20]
    actions = model.predict(observations, deterministic=True)[0]
    for network, average in model.policy.average.items():
        getattr(plain.policy, network).load_state_dict(average.state_dict())
    np.testing.assert_allclose(actions, plain.predict(observations, deterministic=True)[0], rtol=1e-5, atol=1e-6)
    alone = [model.predict(observation, deterministic=True)[0] for observation in observations[:4]]
    np.testing.assert_allclose(alone, actions[:4], rtol=1e-5, atol=1e-5)
    with th.no_grad():
        for parameter in model.policy.average.parameters():
            parameter.zero_()
        # Diffusion QL acts at a corner of the box already; this is another one.
        list(model.policy.average["actor"].parameters())[-1].fill_(-10.0)
    assert not np.allclose(model.predict(observations, deterministic=True)[0], actions, atol=1e-3)


def test_saved_exported_and_resumed(tmp_path: Path) -> None:
    """All algorithms do it in the contract, together with other options."""
    whole = make("dmpo", dataset=DATA, ema_decay=DECAY).learn(2)
    whole.save(tmp_path / "half.zip")
    half = ALGOS["dmpo"].load(tmp_path / "half.zip", dataset=DATA)
    observations = DATA.observations[:20]
    expected = whole.predict(observations, deterministic=True)[0]
    np.testing.assert_array_equal(half.predict(observations, deterministic=True)[0], expected)
    with th.no_grad():
        exported = ExportedPolicy(copy.deepcopy(whole.policy))(th.as_tensor(observations))
    np.testing.assert_allclose(exported, expected, rtol=1e-4, atol=1e-4)
    whole.policy.save(str(tmp_path / "policy"))
    alone = type(whole.policy).load(str(tmp_path / "policy"), device="cpu")
    np.testing.assert_array_equal(alone.predict(observations, deterministic=True)[0], expected)
    for model in (whole, half):
        model.learn(2, reset_num_timesteps=False)
    assert_same(half.get_parameters(), whole.get_parameters())


def test_mixture_shows_what_it_acts_by() -> None:
    model = make("dmpo", dataset=DATA, ema_decay=DECAY, learning_rate=1e-2).learn(6)
    policy, observations = model.policy, DATA.observations[:30]
    scaled = policy.scale_observations(th.as_tensor(observations))
    with th.no_grad():
        table, actions = policy.component_table(scaled, policy.average["actor"], policy.average["critic"])
    np.testing.assert_allclose(policy.component_q_values(observations), table.numpy())
    chosen = policy.select_component(observations)
    np.testing.assert_array_equal(chosen, table.argmax(dim=1).numpy())
    expected = policy.unscale_action(actions[th.arange(30), th.as_tensor(chosen)].numpy())
    np.testing.assert_allclose(model.predict(observations, deterministic=True)[0], expected, rtol=1e-5)
    usage = component_usage(model, DATA, n_states=len(DATA))
    np.testing.assert_allclose(usage, np.bincount(policy.select_component(DATA.observations), minlength=8) / len(DATA))


@pytest.mark.parametrize("name", [pytest.param("dmpo", marks=pytest.mark.slow), "iql"])
def test_recorded_updates_and_several_seeds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th, "compile", lambda graph, **options: graph)
    arguments: dict[str, Any] = {"dataset": DATA, "ema_decay": DECAY, "learning_rate": 1e-3}
    eager = [make(name, **arguments | {"seed": seed}, compile=False).learn(6) for seed in (0, 1)]
    together = [make(name, **arguments | {"seed": seed}, compile=False) for seed in (0, 1)]
    learn_together(together, 6)
    recorded = make(name, **arguments, compile=True).learn(6)
    for found, expected in ((recorded, eager[0]), *zip(together, eager, strict=True)):
        for first, second in zip(found.policy.average.parameters(), expected.policy.average.parameters(), strict=True):
            th.testing.assert_close(first, second, atol=1e-4, rtol=1e-3)


def test_learn_online() -> None:
    model = make("dmpo", dataset=DATA, env=vec_env(1), ema_decay=DECAY).learn(2)
    before = copy.deepcopy(model.policy.average.state_dict())
    model.learn_online(12, learning_starts=4)
    assert any(not th.equal(before[key], value) for key, value in model.policy.average.state_dict().items())


def test_off_by_default() -> None:
    policy = make("dmpo", dataset=DATA).policy
    assert len(policy.average) == 0 and policy.acting("actor") is policy.actor


@pytest.mark.parametrize("value", [1.0, -0.1, "0.9", True])
def test_out_of_range(value: Any) -> None:
    with pytest.raises(ValueError, match=r"DMPO: ema_decay is .*expected a number from 0 to 1"):
        make("dmpo", dataset=DATA, ema_decay=value)
