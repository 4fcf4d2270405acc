"""Near ties between actions are decided in the same way whatever the rounding."""

import copy

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_dmpo.common.gating import NEAR_TIE, best_actions, is_near_tie
from sb3_dmpo.dmpo.gate_kernels import BLOCK_ROWS
from tests.contract import DATA, make

ACTIONS = th.arange(6.0).reshape(1, 3, 2)


def table(gap: float, noise: float) -> tuple[th.Tensor, th.Tensor]:
    """Best action by the table below, for components with values 1, 1 + gap and 0; float32 adds noise to the first."""

    def values(observations: th.Tensor, network: nn.Linear) -> tuple[th.Tensor, th.Tensor]:
        exact = th.tensor([[1.0, 1.0 + gap, 0.0]], dtype=th.float64)
        if network.weight.dtype == th.float32:
            exact[0, 0] += noise
        return exact.to(network.weight.dtype).expand(len(observations), 3), ACTIONS.expand(len(observations), 3, 2)

    return best_actions(th.zeros(4, 1), [nn.Linear(1, 1)], values)


def test_rounding_does_not_choose() -> None:
    index, actions = table(gap=1e-6, noise=5e-6)
    assert index.squeeze(1).tolist() == [1] * 4
    assert th.equal(actions, ACTIONS[0, 1].expand(4, 2))


def test_clear_cases_are_not_computed_twice() -> None:
    assert table(gap=10 * NEAR_TIE, noise=100 * NEAR_TIE)[0].unique().tolist() == [0]


def test_equal_values_go_to_the_lowest_index() -> None:
    assert table(gap=0.0, noise=0.0)[0].unique().tolist() == [0]


def test_a_single_action() -> None:
    def values(observations: th.Tensor, network: nn.Module) -> tuple[th.Tensor, th.Tensor]:
        return th.zeros(len(observations), 1), ACTIONS[:, :1].expand(len(observations), 1, 2)

    index, actions = best_actions(th.zeros(2, 1), [nn.Linear(1, 1)], values)
    assert index.tolist() == [[0], [0]] and actions.tolist() == [[0.0, 1.0]] * 2


def test_the_batch_does_not_matter() -> None:
    """Untrained sub-policies are nearly equal, so that their values often tie."""
    model = make("dmpo", dataset=DATA)
    observations = np.random.default_rng(0).normal(0.0, 2.0, (2000, 3)).astype(np.float32)
    whole = model.policy.select_component(observations)
    parts = np.concatenate([model.policy.select_component(part) for part in np.array_split(observations, 37)])
    assert np.array_equal(whole, parts)
    exact = model.policy.component_q_values(observations)
    assert (exact.max(axis=1) - np.take_along_axis(exact, whole[:, None], 1)[:, 0] <= 1e-5).all()


@pytest.mark.parametrize("block_size", [1, 3, 4, 5])
def test_blocks_of_observations(block_size: int) -> None:
    """A CPU never holds the hidden layers of more than a block of them; the ties of all are decided together."""
    sizes: list[tuple[int, th.dtype]] = []

    def values(observations: th.Tensor, network: nn.Linear) -> tuple[th.Tensor, th.Tensor]:
        sizes.append((len(observations), observations.dtype))
        return observations[:, :3].clone(), observations.view(-1, 3, 2)

    observations = th.arange(24.0).sin().view(4, 6)
    observations[[0, 3], 1] = observations[[0, 3], 0] = 2.0
    index, actions = best_actions(observations, [nn.Linear(1, 1)], values, block_size)
    whole_index, whole_actions = best_actions(observations, [nn.Linear(1, 1)], values)
    assert th.equal(index, whole_index) and th.equal(actions, whole_actions)
    blocks = [min(block_size, 4 - start) for start in range(0, 4, block_size)]
    assert sizes == [*((size, th.float32) for size in blocks), (2, th.float64), (4, th.float32), (2, th.float64)]


@pytest.mark.parametrize("gate", ["values", "supported", "learned"])
def test_a_policy_compares_in_blocks(gate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make("dmpo", dataset=DATA, gate=gate).policy
    observations = np.random.default_rng(0).normal(0.0, 2.0, (300, 3)).astype(np.float32)
    scored, sizes = policy.scored_actions, []

    def recorded(observations: th.Tensor, *networks: nn.Module) -> tuple[th.Tensor, th.Tensor]:
        sizes.append(len(observations))
        return scored(observations, *networks)

    monkeypatch.setattr(policy, "scored_actions", recorded)
    actions, _ = policy.predict(observations)
    assert sum(size == BLOCK_ROWS // policy.n_components for size in sizes) >= 2
    monkeypatch.setattr("sb3_dmpo.dmpo.policies.BLOCK_ROWS", 10**6)
    np.testing.assert_allclose(actions, policy.predict(observations)[0], rtol=0, atol=1e-6)


def test_near_ties_are_decided_in_double_precision_and_the_networks_stay_as_they_are() -> None:
    policy = make("dmpo", dataset=DATA).policy
    before = {name: (id(tensor), tensor.clone()) for name, tensor in policy.state_dict(keep_vars=True).items()}
    observations = np.random.default_rng(0).normal(0.0, 2.0, (2000, 3)).astype(np.float32)
    components = th.as_tensor(policy.select_component(observations))
    exact = copy.deepcopy(policy).double()
    with th.no_grad():
        scaled = policy.scale_observations(th.as_tensor(observations)).double()
        values, _ = exact.component_table(scaled, exact.actor, exact.critic)
    best, second = values.topk(2, dim=1).values.unbind(dim=1)
    is_near = best - second < 0.5 * NEAR_TIE
    assert int(is_near.sum()) > 10
    assert th.equal(components[is_near], values.argmax(dim=1)[is_near])
    for name, tensor in policy.state_dict(keep_vars=True).items():
        assert id(tensor) == before[name][0] and tensor.dtype == th.float32 and th.equal(tensor, before[name][1])


def test_one_observation_is_decided_as_in_a_batch() -> None:
    model = make("dmpo", dataset=DATA)
    observations = np.random.default_rng(1).normal(0.0, 2.0, (300, 3)).astype(np.float32)
    together, _ = model.predict(observations)
    alone = [model.predict(observation)[0] for observation in observations]
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-5)


def test_near_ties_of_one_row() -> None:
    assert is_near_tie([1.0, 0.0, 1.0 + 1e-6]) and is_near_tie([-1e6, -1e6 - 5.0])
    assert not is_near_tie([1.0, 1.0 - 10 * NEAR_TIE]) and not is_near_tie([1.0])
