"""What is said about a policy without its environment, against answers that are known."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import TD3
from stable_baselines3.common.callbacks import BaseCallback

from sb3_dmpo import ALGOS, DMPO, OfflineAlgorithm
from sb3_dmpo.common import offline_selection
from sb3_dmpo.common.buffers import OfflineReplayBuffer
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
from sb3_dmpo.envs import make_two_goals_dataset
from tests.contract import DATA, UPDATES, assert_same, make, random_states
from tests.toy_data import ACTION_HIGH, ACTION_LOW, DriftEnv, make_transitions

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


@pytest.mark.parametrize("name", ["dmpo", "one_step_dmpo"])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_initial_state_value_is_that_of_the_sub_policy_that_acts(name: str, ema_decay: float | None) -> None:
    model = make(name, dataset=DATA, n_components=4, ema_decay=ema_decay).learn(UPDATES)
    starts = DATA.observations[initial_rows(DATA)]
    values, chosen = model.policy.component_q_values(starts), model.policy.select_component(starts)
    expected = values[np.arange(len(starts)), chosen].mean()
    if name == "one_step_dmpo":
        assert abs(values.mean() - expected) > 1e-3
    assert initial_state_value(model) == pytest.approx(expected, rel=1e-4)


def test_initial_state_value_in_the_units_of_the_critics() -> None:
    """They know standardized actions."""
    model = make("lapo", dataset=DATA).learn(UPDATES)
    starts = th.from_numpy(DATA.observations[initial_rows(DATA)])
    with th.no_grad():
        actions = (model.policy._predict(starts) - model.policy.action_mean) / model.policy.action_std
        values = model.policy.critic(model.policy.scale_observations(starts), actions)
    assert initial_state_value(model) == pytest.approx(values.amin(dim=0).mean().item(), rel=1e-5)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("name", ["dmpo", "mix_awac"])
def test_whether_the_policy_is_training_stays(name: str, is_training: bool) -> None:
    model = make(name, dataset=DATA).learn(2)
    model.policy.set_training_mode(is_training)
    for measure in (fitted_q_evaluation, action_distance, initial_state_value, component_usage):
        measure(model, **({"n_updates": 2} if measure is fitted_q_evaluation else {}))
        assert model.policy.training is is_training
    with pytest.raises(RuntimeError):
        policy_actions(model, np.zeros((2, 5), np.float32))
    assert model.policy.training is is_training


def test_measures_take_the_policy_that_predicts() -> None:
    """Dropout is for training."""
    model = make("iql", dataset=DATA, dropout=0.5).learn(2)
    assert model.policy.training
    value = initial_state_value(model)
    model.policy.set_training_mode(False)
    assert initial_state_value(model) == value


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


MEASURES = (fitted_q_evaluation, action_distance, initial_state_value, component_usage)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_dataset_with_other_spaces(measure: Callable[..., Any]) -> None:
    """An action of 1 here would be taken for another there."""
    model = make("dmpo", dataset=DATA)
    wide = make_transitions(action_space=spaces.Box(-2.0, 2.0, (2,)))
    with pytest.raises(DatasetError, match=r"action space of the dataset is Box\(-2.0, 2.0, .* but the model was made for"):
        measure(model, wide)
    with pytest.raises(DatasetError, match=r"observation space of the dataset is .* but the model was made for"):
        measure(model, make_transitions(observation_space=spaces.Box(-np.inf, np.inf, (4,))))


def test_the_environment_has_the_spaces_that_arrays_lack() -> None:
    """As in training."""
    low, high = np.array(ACTION_LOW), np.array(ACTION_HIGH)
    arrays = {
        "observations": DATA.observations,
        "next_observations": DATA.next_observations,
        "actions": low + 0.5 * (DATA.actions + 1.0) * (high - low),
        "rewards": DATA.rewards,
        "terminals": DATA.terminations,
        "timeouts": DATA.truncations,
    }
    model = make("td3_bc", env=DriftEnv(), dataset=arrays).learn(1)
    assert action_distance(model) == pytest.approx(action_distance(model, DATA), rel=1e-4)


def test_a_model_of_an_offline_replay_buffer() -> None:
    model = make("dmpo", dataset=OfflineReplayBuffer.from_transitions(DATA, reward_scale=10.0)).learn(1)
    for measure in MEASURES:
        for dataset in (None, model.dataset):
            with pytest.raises(DatasetError, match="Pass what the buffer was made from as `dataset=`"):
                measure(model, dataset)
        measure(model, DATA)


def test_a_name_from_a_zip_opens_no_file_and_no_other_data(tmp_path: Path) -> None:
    model = make("td3_bc", dataset=DATA).learn(1)
    model.dataset_id = str(tmp_path / "data.pkl")
    model.save(tmp_path / "model")
    loaded = ALGOS["td3_bc"].load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"trained on the file .*data.pkl'"):
        action_distance(loaded)
    toy = make_two_goals_dataset()
    make("td3_bc", dataset=toy).learn(1).save(tmp_path / "model")
    loaded = ALGOS["td3_bc"].load(tmp_path / "model")
    action_distance(loaded)
    loaded.dataset_fingerprint = "another"
    with pytest.raises(DatasetError, match="has changed since"):
        action_distance(loaded)


def test_a_dataset_without_rewards() -> None:
    data = replace(DATA, has_rewards=False)
    model = make("bc", dataset=data).learn(1)
    with pytest.raises(DatasetError, match=r"holds no rewards.* Use action_distance"):
        fitted_q_evaluation(model)
    with pytest.raises(ValueError, match="no rewards, which 'fqe' needs"):
        model.learn(2, callback=OfflineSelectionCallback(2))
    callback = OfflineSelectionCallback(2, criterion="action_distance")
    model.learn(2, callback=callback)
    assert callback.best_score == -action_distance(model)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(
            (name, value, "a whole number of at least 1")
            for name in ("n_updates", "n_critics", "batch_size")
            for value in (0, 1.5)
        ),
        ("net_arch", (16, 0), "a list of whole numbers of at least 1"),
        ("net_arch", 16, "a list of whole numbers of at least 1"),
        *(("learning_rate", value, "a number above 0") for value in (0.0, np.nan, "fast")),
        *(("tau", value, "a number from 0 \\(excluded\\) to 1") for value in (0.0, 1.5)),
        *(("gamma", value, "a number from 0 to 1, or None") for value in (2.0, -0.1)),
        *(("seed", value, "a whole number from 0 to 4294967295") for value in (None, -1)),
    ],
)
def test_settings_out_of_their_ranges(name: str, value: Any, expected: str) -> None:
    """Found at once, by the callback too."""
    for owner, take in (
        ("fitted_q_evaluation", lambda **given: fitted_q_evaluation(make("td3_bc", dataset=DATA), **given)),
        ("OfflineSelectionCallback", lambda **given: OfflineSelectionCallback(1, **given)),
    ):
        with pytest.raises(ValueError, match=f"^{owner}: {name} is .*, expected {expected}.$"):
            take(**{name: value})


def test_numbers_of_the_other_measures() -> None:
    model = make("dmpo", dataset=DATA)
    for measure, name in ((action_distance, "n_states"), (action_distance, "n_neighbours"), (component_usage, "n_states")):
        with pytest.raises(ValueError, match=f"^{measure.__name__}: {name} is 0, expected a whole number of at least 1.$"):
            measure(model, **{name: 0})


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
    with pytest.raises(TypeError, match=r"no argument 'n_update'. Did you mean n_updates\?"):
        OfflineSelectionCallback(1, n_update=10)
    with pytest.raises(TypeError, match="save_path is 5"):
        OfflineSelectionCallback(1, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="TD3 is none"):
        TD3("MlpPolicy", DriftEnv(), learning_starts=100).learn(1, callback=OfflineSelectionCallback(1))


@pytest.mark.parametrize("name", ["decision_transformer", "maple"])
def test_callback_finds_a_memory_before_the_first_update(name: str) -> None:
    model = make(name, dataset=DATA)
    with pytest.raises(ValueError, match="remembers the episode"):
        model.learn(UPDATES, callback=OfflineSelectionCallback(100_000))
    assert model._n_updates == 0


def test_callback_finds_a_folder_that_cannot_be_made_before_the_first_update(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = make("bc", dataset=DATA)
    with pytest.raises(OSError):
        model.learn(UPDATES, callback=OfflineSelectionCallback(100_000, tmp_path / "file" / "best"))
    assert model._n_updates == 0


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_said(score: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are never the best; infinity would be for ever."""
    monkeypatch.setattr(offline_selection, "offline_score", lambda measures, criterion: score)
    with pytest.warns(UserWarning) as warned:
        make("bc", dataset=DATA).learn(6, callback=OfflineSelectionCallback(2, tmp_path, "action_distance", n_updates=2))
    first, last = (str(warning.message) for warning in warned if warning.category is UserWarning)
    assert first.startswith(f"The score by action_distance after 2 updates is {score}")
    assert last.startswith("No score by action_distance was finite") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_better", [True, False])
def test_a_run_that_goes_on_keeps_a_better_model(is_better: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The score of the earlier best model is not in its file: it is measured again, and comes out the same."""
    plain = make("td3_bc", dataset=DATA).learn(8)
    model = make("td3_bc", dataset=DATA)
    first = OfflineSelectionCallback(2, tmp_path, n_updates=20)
    model.learn(4, callback=first)
    best = max(first.measures, key=lambda update: offline_score(first.measures[update], "fqe"))
    model.save(tmp_path / "checkpoint")
    resumed = ALGOS["td3_bc"].load(tmp_path / "checkpoint", dataset=DATA)
    sign = 1.0 if is_better else -1.0
    measured = offline_selection.offline_measures

    def measures_of_later(of: OfflineAlgorithm, *args: Any, **kwargs: Any) -> dict[str, float]:
        found = measured(of, *args, **kwargs)
        return found | {"fqe": found["fqe"] + sign} if of.num_timesteps > 4 else found

    monkeypatch.setattr(offline_selection, "offline_measures", measures_of_later)
    second = OfflineSelectionCallback(4, tmp_path, n_updates=20)
    resumed.learn(4, callback=second, reset_num_timesteps=False)
    assert list(second.measures) == [8]
    assert ALGOS["td3_bc"].load(tmp_path / "best_offline_model").num_timesteps == (8 if is_better else best)
    if not is_better:
        assert second.best_score == first.best_score
    assert_same(resumed.get_parameters(), plain.get_parameters())


def test_a_new_run_begins_anew_and_a_best_model_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "best_offline_model.zip").write_bytes(b"no zip")
    model = make("bc", dataset=DATA).learn(2)
    callback = OfflineSelectionCallback(2, tmp_path, "action_distance", n_updates=2)
    with pytest.raises(OSError, match=r"The best model so far cannot be measured .* move .*best_offline_model.zip away"):
        model.learn(2, callback=callback, reset_num_timesteps=False)
    assert model.num_timesteps == 2
    model.learn(2, callback=callback)
    assert ALGOS["bc"].load(tmp_path / "best_offline_model").num_timesteps == 2
