"""What is said about a policy without its environment, against answers that are known."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_dmpo import ALGOS, DMPO, OfflineAlgorithm
from sb3_dmpo.common.offline_evaluation import (
    action_distance,
    component_usage,
    fitted_q_evaluation,
    initial_rows,
    initial_state_value,
    policy_actions,
)
from sb3_dmpo.common.offline_selection import OfflineSelectionCallback, offline_score
from sb3_dmpo.data import DatasetError
from tests.contract import DATA, UPDATES, assert_same, make, random_states
from tests.toy_data import make_transitions

WITHOUT_MEMORY = [name for name in ALGOS if name not in ("decision_transformer", "maple")]
QUICK: dict[str, Any] = {"n_updates": 300, "net_arch": (32,), "batch_size": 128, "tau": 0.1, "learning_rate": 3e-3}


def constant_model(action: float, **kwargs: Any) -> OfflineAlgorithm:
    """A model that always takes the same action, in both entries."""
    model = make("td3_bc", dataset=DATA, gamma=0.9, **kwargs)
    layers = [module for module in model.policy.actor.modules() if isinstance(module, th.nn.Linear)]
    with th.no_grad():
        layers[-1].weight.zero_()
        layers[-1].bias.fill_(float(np.arctanh(action)))
    return model


# Fitted Q evaluation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [0.5, -0.5])
def test_value_of_another_policy_than_the_data(action: float) -> None:
    """The reward is the action's first entry, and nothing ends: the value is action / (1 - gamma), that of the data 0."""
    data = make_transitions(n_episodes=100)
    data = replace(data, rewards=data.actions[:, 0].copy(), terminations=np.zeros_like(data.terminations))
    found = fitted_q_evaluation(constant_model(action), data, **QUICK)
    assert found.values.shape == (3,) and abs(found.mean - action / 0.1) < 1.0
    assert found.std < 1.0 and found.loss < 0.2


def test_ends_end_the_value_and_cuts_do_not() -> None:
    data = make_transitions(n_episodes=40)
    ones, every = np.ones_like(data.rewards), np.ones_like(data.terminations)
    ended = fitted_q_evaluation(constant_model(0.0), replace(data, rewards=ones, terminations=every), **QUICK)
    cut = fitted_q_evaluation(constant_model(0.0), replace(data, rewards=ones, terminations=~every), **QUICK)
    assert abs(ended.mean - 1.0) < 0.2 and abs(cut.mean - 10.0) < 1.0


def test_discount() -> None:
    data = make_transitions(n_episodes=40)
    data = replace(data, rewards=np.ones_like(data.rewards), terminations=np.zeros_like(data.terminations))
    assert abs(fitted_q_evaluation(constant_model(0.0), data, gamma=0.5, **QUICK).mean - 2.0) < 0.3


@pytest.mark.parametrize("name", WITHOUT_MEMORY)
def test_every_algorithm(name: str) -> None:
    """Evaluation repeats, and leaves model and random states alone."""
    model = make(name, dataset=DATA).learn(UPDATES)
    before, weights = random_states(), {key: value.clone() for key, value in model.policy.state_dict().items()}
    values = fitted_q_evaluation(model, n_updates=5)
    assert np.isfinite(values.values).all()
    assert_same(random_states(), before)
    assert_same(dict(model.policy.state_dict()), weights)
    np.testing.assert_array_equal(fitted_q_evaluation(model, DATA, n_updates=5).values, values.values)
    assert np.isfinite(action_distance(model))


# The rest -----------------------------------------------------------------------------------------------------------


def test_initial_state_value() -> None:
    model = make("td3_bc", dataset=DATA).learn(UPDATES)
    starts = DATA.observations[::8]
    np.testing.assert_array_equal(DATA.observations[initial_rows(DATA)], starts)
    with th.no_grad():
        scaled = model.policy.scale_observations(th.from_numpy(starts))
        expected = model.policy.critic(scaled, model.policy.actor(scaled)).min(dim=0).values.mean().item()
    assert initial_state_value(model) == pytest.approx(expected, rel=1e-6)


def test_action_distance() -> None:
    """To the nearest action of similar states: with one neighbour, to the action taken in the state itself."""
    model = constant_model(0.5)
    expected = np.sqrt(np.square(DATA.actions - 0.5).mean())
    assert action_distance(model, n_neighbours=1) == pytest.approx(expected, rel=1e-5)
    assert action_distance(model, n_neighbours=20) < 0.7 * expected
    known = replace(DATA, actions=np.full_like(DATA.actions, 0.5))
    assert action_distance(model, known) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ["dmpo", "infodmpo", "mix_awac"])
def test_component_usage(name: str) -> None:
    model = make(name, dataset=DATA, n_components=4).learn(UPDATES)
    usage = component_usage(model)
    assert usage.shape == (4,) and usage.sum() == pytest.approx(1.0)
    if isinstance(model, DMPO):
        chosen = model.policy.select_component(DATA.observations)
        np.testing.assert_allclose(usage, np.bincount(chosen, minlength=4) / len(DATA))


def test_actions_are_those_of_predict() -> None:
    model = make("iql", dataset=DATA).learn(2)
    actions = policy_actions(model, DATA.observations).numpy()
    expected, _ = model.predict(DATA.observations, deterministic=True)
    np.testing.assert_allclose(model.policy.unscale_action(actions), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("evaluate", "name", "message"),
    [
        (fitted_q_evaluation, "decision_transformer", "remembers the episode"),
        (action_distance, "decision_transformer", "remembers the episode"),
        (action_distance, "maple", "remembers the episode"),
        (initial_state_value, "bc", "no critic"),
        (component_usage, "td3_bc", "no sub-policies"),
    ],
)
def test_what_cannot_be_evaluated(evaluate: Callable[..., Any], name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(make(name, dataset=DATA))


def test_without_a_dataset(tmp_path: Path) -> None:
    make("td3_bc", dataset=DATA).save(tmp_path / "model")
    model = ALGOS["td3_bc"].load(tmp_path / "model")
    with pytest.raises(ValueError, match="no dataset to evaluate on"):
        fitted_q_evaluation(model)
    other = replace(DATA, observations=np.zeros((80, 4), np.float32))
    with pytest.raises(DatasetError, match="observations of the dataset have 4 numbers, but those of the model 3"):
        fitted_q_evaluation(model, other)


# The callback -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "criterion"), [("dmpo", "fqe"), ("dmpo", "initial_value"), ("bc", "action_distance")])
def test_callback_keeps_the_best(name: str, criterion: Any, tmp_path: Path) -> None:
    callback = OfflineSelectionCallback(2, str(tmp_path), criterion, n_updates=20)
    kept = {}

    class Keeper(BaseCallback):
        """Knows the weights behind every measurement."""

        def _on_step(self) -> bool:
            kept[self.model.num_timesteps] = self.model.policy.state_dict()["actor." + first].clone()
            return True

    model = make(name, dataset=DATA)
    first = next(key for key, _ in model.policy.actor.named_parameters())
    model.learn(UPDATES, callback=[Keeper(), callback])
    assert list(callback.measures) == [2, 4, 6, 8]
    names = {"fqe", "fqe_std", "action_distance"} | ({"initial_value", "components_used"} if name == "dmpo" else set())
    assert all(set(measures) == names for measures in callback.measures.values())
    scores = {update: offline_score(measures, criterion) for update, measures in callback.measures.items()}
    best = max(scores, key=lambda update: scores[update])
    loaded = ALGOS[name].load(tmp_path / "best_offline_model.zip")
    assert loaded.num_timesteps == best and callback.best_score == scores[best]
    assert th.equal(loaded.policy.state_dict()["actor." + first], kept[best])


def test_callback_changes_nothing() -> None:
    plain, watched = make("diffusion_ql", dataset=DATA), make("diffusion_ql", dataset=DATA)
    plain.learn(UPDATES)
    watched.learn(UPDATES, callback=OfflineSelectionCallback(3, n_updates=3))
    assert_same(watched.get_parameters(), plain.get_parameters())


def test_callback_faults() -> None:
    with pytest.raises(ValueError, match="Unknown criterion 'return'"):
        OfflineSelectionCallback(1, criterion="return")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        OfflineSelectionCallback(0)
    with pytest.raises(ValueError, match="no critic"):
        make("bc", dataset=DATA).learn(1, callback=OfflineSelectionCallback(1, criterion="initial_value"))
