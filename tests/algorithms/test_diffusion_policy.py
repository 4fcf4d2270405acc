"""Acting with the diffusion policy, and what the recorded updates leave open."""

from pathlib import Path

import numpy as np
import pytest
import torch as th

from sb3_dmpo import DiffusionQL
from tests.toy_data import make_transitions

OBSERVATIONS = np.linspace(-1.0, 1.0, 15, dtype=np.float32).reshape(5, 3)


@pytest.fixture(scope="module")
def model() -> DiffusionQL:
    kwargs = {"net_arch": [16, 16]}
    return DiffusionQL(dataset=make_transitions(), batch_size=16, policy_kwargs=kwargs, seed=0).learn(2)


def test_deterministic_actions_depend_on_the_observation_alone(model: DiffusionQL, tmp_path: Path) -> None:
    """Not on the call, the global random state, the rest of the batch, or the process that loaded the zip."""
    state = th.get_rng_state()
    actions, _ = model.predict(OBSERVATIONS, deterministic=True)
    assert th.equal(th.get_rng_state(), state)
    assert np.array_equal(model.predict(OBSERVATIONS, deterministic=True)[0], actions)
    singles = [model.predict(observation, deterministic=True)[0] for observation in OBSERVATIONS]
    np.testing.assert_allclose(singles, actions, rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "model")
    assert np.array_equal(DiffusionQL.load(tmp_path / "model").predict(OBSERVATIONS, deterministic=True)[0], actions)


def test_deterministic_actions_have_the_highest_q_value(model: DiffusionQL) -> None:
    policy = model.policy
    observations = th.as_tensor(OBSERVATIONS[:1])
    with th.no_grad():
        noise = [policy.acting_noise[k] for k in range(5)]
        candidates = policy.actor(observations.expand(50, -1), noise)
        q_values = policy.critic_target(observations.expand(50, -1), candidates).amin(dim=0).squeeze(1)
        action = policy._predict(observations, deterministic=True)
    th.testing.assert_close(action[0], candidates[q_values.argmax()])
    assert len(candidates.unique(dim=0)) > 40


def test_sampled_actions_follow_the_global_seed(model: DiffusionQL) -> None:
    with th.random.fork_rng():
        th.manual_seed(1)
        first, second = model.predict(OBSERVATIONS)[0], model.predict(OBSERVATIONS)[0]
        th.manual_seed(1)
        assert np.array_equal(model.predict(OBSERVATIONS)[0], first)
    assert not np.array_equal(first, second)


def test_the_average_starts_late_and_moves_in_steps() -> None:
    arguments = {"ema_start": 4, "ema_every": 2, "batch_size": 8, "policy_kwargs": {"net_arch": [8]}, "seed": 0}
    model = DiffusionQL(dataset=make_transitions(), **arguments)
    moved = []
    for update in range(1, 9):
        before = model.policy.actor_ema.noise_net[0].weight.clone()
        model.learn(1, reset_num_timesteps=False)
        if not th.equal(model.policy.actor_ema.noise_net[0].weight, before):
            moved.append(update)
    assert moved == [5, 7]


def test_denoising_finds_the_actions_of_the_data() -> None:
    data = make_transitions()
    data.actions[:] = (0.5, -0.5)
    kwargs = {"policy_kwargs": {"net_arch": [32, 32]}, "learning_rate": 1e-2, "batch_size": 32, "eta": 0.0, "seed": 0}
    model = DiffusionQL(dataset=data, max_grad_norm=None, **kwargs).learn(120)
    with th.random.fork_rng():
        th.manual_seed(0)
        actions = model.policy._predict(th.as_tensor(data.observations[:20]))
    assert (actions - th.tensor([0.5, -0.5])).abs().mean() < 0.1
