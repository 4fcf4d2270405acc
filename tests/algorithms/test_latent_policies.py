"""What the recorded updates of LP-AWAC and LAPO leave open: data, predict, and the range of the values."""

from pathlib import Path

import numpy as np
import pytest
import torch as th

from sb3_dmpo import LAPO, LPAWAC
from sb3_dmpo.data import Transitions
from sb3_dmpo.lapo.latent_algorithm import LatentPolicyAlgorithm
from tests.toy_data import ACTION_HIGH, ACTION_LOW, BatchRecorder, make_transitions


def skewed_transitions(shift: float = 0.2) -> Transitions:
    data = make_transitions()
    data.actions[:] = 0.3 * data.actions + shift
    return data


def lapo(data: Transitions) -> LAPO:
    return LAPO(dataset=data, batch_size=16, policy_kwargs={"net_arch": [8, 8]}, seed=0)


def test_lapo_learns_on_standardized_data() -> None:
    data = skewed_transitions()
    recorder = BatchRecorder()
    lapo(data).learn(1, callback=recorder)
    batch = recorder.batches[0]
    scaled_observations = (data.observations - data.observations.mean(axis=0)) / (data.observations.std(axis=0) + 1e-6)
    scaled_actions = (data.actions - data.actions.mean(axis=0)) / (data.actions.std(axis=0) + 1e-6)
    rows = [np.abs(scaled_actions - action).sum(axis=1).argmin() for action in batch.actions.numpy()]
    np.testing.assert_allclose(batch.actions.numpy(), scaled_actions[rows], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.observations.numpy(), scaled_observations[rows], rtol=1e-4, atol=1e-5)


def test_lapo_scales_rewards_and_bounds_values() -> None:
    data = make_transitions()
    model = lapo(data).learn(1)
    rewards = data.rewards / data.rewards.max()
    assert model.target_bounds == pytest.approx((rewards.min() / 0.01, 100.0), rel=1e-5)


def test_lapo_maps_its_output_back() -> None:
    """A decoder that says 0 means the mean action of the data, in the units of the environment."""
    data = skewed_transitions()
    model = lapo(data).learn(1)
    with th.no_grad():
        for parameter in model.policy.vae_target.decoder[-1].parameters():
            parameter.zero_()
    low, high = np.array(ACTION_LOW), np.array(ACTION_HIGH)
    expected = low + 0.5 * (data.actions.mean(axis=0) + 1.0) * (high - low)
    actions, _ = model.predict(data.observations[:4], deterministic=True)
    np.testing.assert_allclose(actions, np.tile(expected, (4, 1)), rtol=1e-5)


def test_lapo_keeps_its_statistics_for_other_data(tmp_path: Path) -> None:
    """A loaded model standardizes as its networks were trained, whatever the dataset."""
    model = lapo(skewed_transitions()).learn(1)
    model.save(tmp_path / "model")
    loaded = LAPO.load(tmp_path / "model", dataset=skewed_transitions(shift=-0.2)).learn(1)
    for name in ("action_mean", "action_std", "observation_mean", "observation_std"):
        assert th.equal(getattr(loaded.policy, name), getattr(model.policy, name)), name
    assert model.target_bounds == loaded.target_bounds


def test_lapo_can_leave_actions_alone() -> None:
    model = LAPO(dataset=make_transitions(), batch_size=16, normalize_actions=False, policy_kwargs={"net_arch": [8]})
    model.learn(1)
    assert th.equal(model.policy.action_mean, th.zeros(2)) and th.equal(model.policy.action_std, th.ones(2))


@pytest.mark.parametrize("algorithm", [LPAWAC, LAPO])
def test_delayed_updates_leave_vae_and_actor_alone(algorithm: type[LatentPolicyAlgorithm]) -> None:
    model = algorithm(dataset=make_transitions(), batch_size=16, policy_delay=2, policy_kwargs={"net_arch": [8]}, seed=0)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(1)
    still = {name for name, value in model.policy.state_dict().items() if th.equal(value, before[name])}
    assert any(name.startswith("vae.") for name in still) and any(name.startswith("actor.") for name in still)
    model.learn(1, reset_num_timesteps=False)
    after = model.policy.state_dict()
    for name in ("vae.decoder.0.weight", "actor.mu.0.weight", "vae_target.decoder.0.weight"):
        assert name in still and not th.equal(after[name], before[name]), name


@pytest.mark.parametrize("algorithm", [LPAWAC, LAPO])
def test_actions_stay_in_the_box(algorithm: type[LatentPolicyAlgorithm]) -> None:
    """The decoder's output is not bounded; predict clips it."""
    model = algorithm(dataset=make_transitions(), batch_size=16, policy_kwargs={"net_arch": [8]}, seed=0)
    model.learn(1)
    with th.no_grad():
        model.policy.vae_target.decoder[-1].bias.copy_(th.tensor([50.0, -50.0]))
    actions, _ = model.predict(np.zeros((2, 3), np.float32))
    np.testing.assert_allclose(actions, [[ACTION_HIGH[0], ACTION_LOW[1]]] * 2)
