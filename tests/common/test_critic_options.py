"""Options of all critics: their number and layer norm."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch as th
from torch import nn

from sb3_dmpo import ALGOS, DMPO, OfflineAlgorithm
from sb3_dmpo.common.export import ExportedPolicy
from sb3_dmpo.common.networks import EnsembleCritic, ValueNetwork
from sb3_dmpo.cql.action_tables import action_values
from sb3_dmpo.several_seeds.several_seeds import learn_together
from tests.contract import DATA, assert_same, make

WITH_CRITICS = [name for name, algorithm in ALGOS.items() if algorithm.learns_online]
#: What takes seconds per algorithm is done for these, and for the others in the slow tests.
QUICK = ("td3_bc",)
EACH_SLOWLY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WITH_CRITICS]
OPTIONS: dict[str, Any] = {"net_arch": [16, 16], "n_critics": 3, "critic_layer_norm": True}

Array = npt.NDArray[np.float64]


def normalized(hidden: Array, scale: Array, shift: Array) -> Array:
    centered = hidden - hidden.mean(axis=1, keepdims=True)
    return scale * centered / np.sqrt((centered**2).mean(axis=1, keepdims=True) + 1e-5) + shift


def perturbed(network: nn.Module) -> Any:
    """A network in double precision whose norms are not those that it begins with."""
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for parameter in network.double().parameters():
            parameter.add_(0.3 * th.randn(parameter.shape, generator=generator, dtype=th.float64))
    return network


def q_values(critic: EnsembleCritic, j: int, observations: Array, actions: Array) -> Array:
    """One critic layer by layer: linear, ReLU, layer norm."""
    values = {name: tensor.detach().numpy()[j] for name, tensor in critic.named_parameters()}
    hidden = np.concatenate([observations, actions], axis=1)
    for i in range(2):
        hidden = np.maximum(hidden @ values[f"layers.{i}.weight"].T + values[f"layers.{i}.bias"], 0.0)
        hidden = normalized(hidden, values[f"norms.{i}.weight"], values[f"norms.{i}.bias"])
    return hidden @ values["layers.2.weight"].T + values["layers.2.bias"]


def test_layer_norm_of_the_critics() -> None:
    """``LN(relu(W x + b))`` in every hidden layer, for one action per observation and for several."""
    critic = perturbed(EnsembleCritic(5, 3, [8, 6], n_critics=3, layer_norm=True))
    observations, actions = th.randn(7, 5, dtype=th.float64), th.randn(7, 4, 3, dtype=th.float64)
    expected = np.stack(
        [[q_values(critic, j, observations.numpy(), actions[:, k].numpy()) for k in range(4)] for j in range(3)]
    )
    found = critic(observations, actions[:, 1]).detach().numpy()
    np.testing.assert_allclose(found, expected[:, 1], rtol=1e-10, atol=1e-10)
    for table in (critic.all_actions(observations, actions), action_values(critic, observations, actions)):
        np.testing.assert_allclose(table.detach().numpy(), expected[..., 0].transpose(0, 2, 1), rtol=1e-10, atol=1e-10)


def test_layer_norm_of_the_state_value() -> None:
    network = perturbed(ValueNetwork(5, [8, 6], layer_norm=True))
    observations = np.random.default_rng(0).normal(size=(7, 5))
    weights = [parameter.detach().numpy() for parameter in network.parameters()]
    hidden = observations
    for i in range(2):
        weight, bias, scale, shift = weights[4 * i : 4 * i + 4]
        hidden = normalized(np.maximum(hidden @ weight.T + bias, 0.0), scale, shift)
    expected = hidden @ weights[-2].T + weights[-1]
    np.testing.assert_allclose(network(th.as_tensor(observations)).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


def test_without_the_options_nothing_is_added() -> None:
    critic = EnsembleCritic(5, 3, [8, 6])
    assert critic.n_critics == 2 and not any("norm" in name for name in critic.state_dict())
    assert make("iql", dataset=DATA).policy._get_constructor_parameters()["critic_layer_norm"] is False


def test_table_in_single_precision_with_layer_norm() -> None:
    """The operators of CQL, which know no layer norm, are left aside."""
    critic = EnsembleCritic(5, 3, [8, 6], layer_norm=True)
    with th.no_grad():
        critic.norms[0].weight.mul_(2.0)
    observations, actions = th.randn(7, 5), th.randn(7, 4, 3)
    expected = th.stack([critic(observations, actions[:, k]) for k in range(4)], dim=2).squeeze(3)
    th.testing.assert_close(action_values(critic, observations, actions), expected)


@pytest.mark.parametrize("name", WITH_CRITICS)
def test_networks(name: str) -> None:
    model = make(name, dataset=DATA, policy_kwargs=OPTIONS)
    assert model.policy.critic.n_critics == 3 and len(model.policy.critic.norms) == 2
    value = getattr(model.policy, "value", None)
    assert value is None or sum(isinstance(layer, nn.LayerNorm) for layer in value.vf) == 2
    batch = _batch(model)
    assert model.policy.critic(batch.observations, batch.actions).shape[:2] == (3, 16)
    errors = model.bellman_errors(batch)
    assert errors is not None and errors.shape == (3, 16, 1)


def _batch(model: OfflineAlgorithm) -> Any:
    model._setup_dataset()
    model._n_updates = model.policy_delay
    return model.sample_batch(16)


def test_learn_save_and_resume(tmp_path: Path) -> None:
    """All algorithms do it in the contract, together with other options."""
    whole = make("dmpo", dataset=DATA, policy_kwargs=OPTIONS).learn(2)
    whole.save(tmp_path / "half.zip")
    whole.learn(2, reset_num_timesteps=False)
    half = DMPO.load(tmp_path / "half.zip", dataset=DATA).learn(2, reset_num_timesteps=False)
    assert_same(half.get_parameters(), whole.get_parameters())
    initial = make("dmpo", dataset=DATA, policy_kwargs=OPTIONS)
    before, after = initial.policy.critic.norms[0].weight, whole.policy.critic.norms[0].weight
    assert not th.equal(before, after) and not th.equal(after[0], after[1])


@pytest.mark.parametrize("name", EACH_SLOWLY)
def test_recorded_updates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th, "compile", lambda graph, **options: graph)
    eager = make(name, dataset=DATA, compile=False, policy_kwargs=OPTIONS).learn(8)
    recorded = make(name, dataset=DATA, compile=True, policy_kwargs=OPTIONS).learn(8)
    for first, second in zip(recorded.policy.parameters(), eager.policy.parameters(), strict=True):
        th.testing.assert_close(first, second, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", EACH_SLOWLY)
def test_several_seeds(name: str) -> None:
    arguments: dict[str, Any] = {"dataset": DATA, "policy_kwargs": OPTIONS, "compile": False}
    together = [make(name, **arguments | {"seed": seed}) for seed in (0, 1)]
    learn_together(together, 6)
    for model in together:
        alone = make(name, **arguments | {"seed": model.seed}).learn(6)
        for first, second in zip(model.policy.parameters(), alone.policy.parameters(), strict=True):
            th.testing.assert_close(first, second, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", EACH_SLOWLY)
def test_exported_graph(name: str) -> None:
    model = make(name, dataset=DATA, policy_kwargs=OPTIONS).learn(2)
    model.policy.set_training_mode(False)
    exported = ExportedPolicy(copy.deepcopy(model.policy))
    with th.no_grad():
        actions = exported(th.as_tensor(DATA.observations[:20]))
    np.testing.assert_allclose(actions, model.predict(DATA.observations[:20], deterministic=True)[0], rtol=1e-4, atol=1e-4)


def test_single_critic() -> None:
    for name in WITH_CRITICS:
        model = make(name, dataset=DATA, policy_kwargs={"net_arch": [16, 16], "n_critics": 1}).learn(2)
        assert model.policy.critic.n_critics == 1


def test_diffusion_actor_climbs_any_critic() -> None:
    model = make("diffusion_ql", dataset=DATA, policy_kwargs=OPTIONS)
    batch = _batch(model)
    coins = [batch._replace(noise=batch.noise | {"coin": th.tensor(coin)}) for coin in range(3)]
    losses = {model.q_loss(each)[0].item() for each in coins}
    assert len(losses) == 3 and model.noise_specs(16)["coin"].high == 3


@pytest.mark.parametrize("name", [name for name in ALGOS if name not in WITH_CRITICS])
@pytest.mark.parametrize("option", ["n_critics", "critic_layer_norm"])
def test_refused_without_critics(name: str, option: str) -> None:
    with pytest.raises(
        ValueError, match=f"has no critics of single transitions, which {option} is for: leave it out of policy_kwargs"
    ):
        make(name, dataset=DATA, policy_kwargs={option: OPTIONS[option]})


@pytest.mark.parametrize(("option", "value"), [("n_critics", 0), ("n_critics", 2.0), ("critic_layer_norm", "yes")])
def test_out_of_range(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"DMPO, policy_kwargs: {option} is {value!r}, expected"):
        DMPO("MlpPolicy", dataset=DATA, policy_kwargs={option: value})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffusion_ql"])
def test_onnx(name: str, tmp_path: Path) -> None:
    """Layer norm and averages; where the critics choose, ``test_export.py`` has them."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = make(name, dataset=DATA, policy_kwargs=OPTIONS, ema_decay=0.5).learn(2)
    model.export(tmp_path / "policy.onnx")
    session = runtime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    for observations in (DATA.observations[:20], DATA.observations[:1]):
        (actions,) = session.run(None, {"observation": observations})
        np.testing.assert_allclose(actions, model.predict(observations, deterministic=True)[0], rtol=1e-4, atol=1e-4)
