"""What somebody changes in a model between two calls: parameters, learning rates, the dataset."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_dmpo import DMPO, LAPO, ReBRAC
from sb3_dmpo.data.transitions import Transitions
from tests.contract import DATA, assert_same, make
from tests.toy_data import make_transitions


def rewarded(factor: float) -> Transitions:
    """The data with larger rewards."""
    return Transitions(**vars(DATA) | {"rewards": factor * DATA.rewards, "fingerprint": f"toy-{factor}"})


@pytest.mark.parametrize("door", ["dictionary", "file"])
def test_a_model_that_has_diverged_learns_on_with_good_parameters(door: str, tmp_path: Path) -> None:
    model = make("td3_bc", dataset=DATA).learn(3)
    model.save(tmp_path / "good")
    twin = make("td3_bc", dataset=DATA).learn(3)
    good = twin.get_parameters() if door == "dictionary" else tmp_path / "good"
    with th.no_grad():
        model.policy.critic.layers[0].weight.fill_(1e30)
    with pytest.raises(FloatingPointError, match="critic_loss is inf at update 4"):
        model.learn(3)
    with pytest.raises(FloatingPointError):
        model.save(tmp_path / "bad")
    model.set_parameters(good)
    model.learn(3).save(tmp_path / "again")


def test_learning_rates_count_at_once() -> None:
    model = make("rebrac", dataset=DATA, critic_learning_rate=1e-3).learn(1)
    assert isinstance(model, ReBRAC)

    def rates() -> tuple[float, float]:
        model.learn(1)
        return model.actor_optimizer.param_groups[0]["lr"], model.critic_optimizer.param_groups[0]["lr"]

    model.learning_rate = lambda progress: 2e-4 * progress
    assert rates() == (2e-4, 1e-3)
    model.critic_learning_rate = 5e-4
    assert rates() == (2e-4, 5e-4)
    # As users of Stable-Baselines3 do it.
    model.lr_schedule = lambda progress: 1e-5
    assert rates() == (1e-5, 5e-4)
    model.learning_rate, model.critic_learning_rate = 1e-6, None
    model._setup_lr_schedule()
    assert rates() == (1e-6, 1e-6)


@pytest.mark.parametrize("name", ["dmpo", "lapo"])
def test_value_bounds_follow_data_discount_and_scale(name: str, tmp_path: Path) -> None:
    """Those that were given stay, those that follow from the rewards follow."""
    options: dict[str, Any] = {"value_targets": True} if name == "dmpo" else {"reward_scale": 1.0}
    model = make(name, dataset=DATA, **options).learn(1)
    low, high = model.target_bounds
    assert low == pytest.approx(DATA.rewards.min() / 0.01, rel=1e-5) and model.value_bounds is None
    model.set_dataset(rewarded(10.0))
    assert model.learn(1).target_bounds == pytest.approx((10 * low, 10 * high), rel=1e-5)
    model.gamma = 0.9
    assert model.learn(1).target_bounds == pytest.approx((low, high), rel=1e-5)
    model.save(tmp_path / "model")
    loaded = (DMPO if name == "dmpo" else LAPO).load(tmp_path / "model", dataset=DATA, gamma=0.5, reward_scale=2.0)
    loaded.dataset_fingerprint = None
    assert loaded.learn(1).target_bounds == pytest.approx((2 * 0.02 * low, 2 * 0.02 * high), rel=1e-5)
    given = make(name, dataset=DATA, value_bounds=(-1.0, 2.0), **options).learn(1)
    given.set_dataset(rewarded(10.0))
    assert given.learn(1).target_bounds == (-1.0, 2.0)


def test_bounds_of_constant_rewards(tmp_path: Path) -> None:
    """All values are one number then; the model learns on, and comes back from its zip."""
    model = make("lapo", dataset=Transitions(**vars(DATA) | {"rewards": np.ones_like(DATA.rewards)})).learn(1)
    model.learn(1)
    model.save(tmp_path / "model")
    assert LAPO.load(tmp_path / "model", dataset=DATA).value_bounds is None


def test_the_return_to_aim_for_follows_the_data() -> None:
    model = make("decision_transformer", dataset=DATA).learn(1)
    best = float(model.policy.target_return)
    model.set_dataset(rewarded(10.0))
    model.learn(1)
    assert float(model.policy.target_return) == pytest.approx(10 * best, rel=1e-5)
    model.set_target_return(3.0)
    model.set_dataset(DATA)
    model.learn(1)
    assert float(model.policy.target_return) == 3.0


def test_evidence_of_episodes_stays_with_its_data() -> None:
    model = make("one_step_dmpo", dataset=DATA).learn(5)
    evidence = model.policy.episode_evidence.clone()
    assert bool((evidence != 0).any())
    model.set_dataset(DATA)
    model._setup_dataset()
    assert_same(model.policy.episode_evidence, evidence)
    model.set_dataset(make_transitions(n_episodes=7))
    model._setup_dataset()
    assert not bool((model.policy.episode_evidence != 0).any()) and len(model.policy.episode_evidence) == 8


@pytest.mark.parametrize("argument", ["target_gate", "advantage_weight", "value_targets", "published_code"])
def test_none_is_no_choice(argument: str) -> None:
    with pytest.raises(ValueError, match=f"InfoDMPO: {argument} is None, expected"):
        make("infodmpo", dataset=DATA, **{argument: None})


def test_sub_policies_are_described_as_they_act() -> None:
    """By the averages, where ``predict`` acts by averages."""
    model = make("dmpo", dataset=DATA, assignment="exact", ema_decay=0.5).learn(1)
    with th.no_grad():
        for parameter in model.policy.actor.parameters():
            parameter.zero_()
        for parameter in model.policy.average["actor"].parameters():
            parameter.mul_(20.0)
    assert not model.policy.acts_as_one(DATA.observations)
