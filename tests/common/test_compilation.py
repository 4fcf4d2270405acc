"""Compiled updates, and what every update must leave undone so that it can be compiled."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch as th
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_dmpo import ALGOS, DMPO, OfflineAlgorithm
from sb3_dmpo.common import compilation
from tests.contract import DATA, assert_same, make

#: What waits for the device: reading a value, and shapes that depend on values.
SYNCHRONISING = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.unique", "aten.equal")


class NoSynchronisation(TorchDispatchMode):
    """Fails where an operation needs a value on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not str(func).startswith(SYNCHRONISING), f"{func} waits for the device"
        return func(*args, **kwargs or {})


@pytest.fixture
def quick_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded graph is run as it is, without the minutes of the C++ compiler."""
    monkeypatch.setattr(th, "compile", lambda graph, **options: graph)


def close(first: OfflineAlgorithm, second: OfflineAlgorithm) -> None:
    for (name, a), b in zip(first.policy.state_dict().items(), second.policy.state_dict().values(), strict=True):
        th.testing.assert_close(a, b, atol=2e-5, rtol=1e-4, msg=lambda message, name=name: f"{name}: {message}")


def test_guard_notices_synchronisation() -> None:
    with pytest.raises(AssertionError, match="waits for the device"), NoSynchronisation():
        th.ones(1).item()
    with pytest.raises(AssertionError, match="waits for the device"), NoSynchronisation():
        bool(th.ones(1) > 0)


#: Recording takes seconds: of most algorithms it is left to the slow tests.
RECORDED = [
    name if name in ("dmpo", "td3_bc", "decision_transformer") else pytest.param(name, marks=pytest.mark.slow)
    for name in ALGOS
]


@pytest.mark.parametrize("name", ALGOS)
def test_update_does_not_wait_for_the_device(name: str) -> None:
    model = make(name, dataset=DATA).learn(4)
    for _ in range(2):
        model._n_updates += 1
        batch = model.sample_batch(16)
        with NoSynchronisation():
            model._update_all(batch)


@pytest.mark.usefixtures("quick_backend")
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_update_equals_the_eager_one(name: str) -> None:
    eager = make(name, dataset=DATA, compile=False).learn(8)
    compiled = make(name, dataset=DATA, compile=True).learn(8)
    assert compiled._compiled.is_on and not eager._compiled.is_on
    close(compiled, eager)
    for key, state in compiled.get_parameters().items():
        if key.endswith("optimizer"):
            assert all(float(values["step"]) > 0 for values in state["state"].values())


@pytest.mark.usefixtures("quick_backend")
@pytest.mark.parametrize(
    "arguments",
    [{}, pytest.param({"gating_dtype": "bfloat16", "policy_kwargs": {"net_arch": [32, 32]}}, marks=pytest.mark.slow)],
)
def test_compiled_run_is_resumed_compiled(arguments: dict[str, Any], tmp_path: Path) -> None:
    whole = make("infodmpo", dataset=DATA, compile=True, **arguments).learn(4)
    half = make("infodmpo", dataset=DATA, compile=True, **arguments).learn(2)
    half.save(tmp_path / "half")
    resumed = ALGOS["infodmpo"].load(tmp_path / "half", dataset=DATA)
    resumed.learn(2, reset_num_timesteps=False)
    assert resumed._compiled.is_on
    assert_same(resumed.get_parameters(), whole.get_parameters())


@pytest.mark.usefixtures("quick_backend")
def test_learning_rate_schedule_is_followed() -> None:
    rates = {"learning_rate": lambda progress: 1e-2 * progress}
    close(make("td3_bc", dataset=DATA, compile=True, **rates).learn(6), make("td3_bc", dataset=DATA, **rates).learn(6))


@pytest.mark.usefixtures("quick_backend")
def test_graphs_are_kept_until_the_state_is_replaced() -> None:
    model = make("td3_bc", dataset=DATA, compile=True).learn(4)
    graphs = dict(model._compiled._graphs)
    assert graphs and model.learn(2, reset_num_timesteps=False)._compiled._graphs == graphs
    twin = make("td3_bc", dataset=DATA, compile=True).learn(2)
    # The optimizers would share the tensors of their states otherwise.
    twin.set_parameters(copy.deepcopy(model.get_parameters()))
    batch, step = model.sample_batch(16), model._n_updates
    for algorithm in (model, twin):
        algorithm._n_updates = step + 1
        algorithm._compiled(batch, algorithm.update_variant(16))
    assert_same(twin.get_parameters(), model.get_parameters())


def test_short_runs_are_not_compiled() -> None:
    assert not make("dmpo", dataset=DATA).learn(2)._compiled.is_on


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = th.device("cpu")
    choose = compilation.choose_compilation
    assert choose("auto", compilation.AUTO_UPDATES, None, cpu) and not choose("auto", 10, None, cpu)
    assert choose(True, 10, None, cpu) and not choose(False, 10**7, None, cpu)
    assert choose("auto", 10, None, th.device("cuda"))
    monkeypatch.setattr(compilation.shutil, "which", lambda program: None)
    obstacle = compilation.missing_for_compilation([], cpu)
    with pytest.warns(UserWarning, match=r"not compiled \(there is no C\+\+ compiler"):
        assert not choose("auto", compilation.AUTO_UPDATES, obstacle, cpu)
    with pytest.raises(RuntimeError, match="compile=True is not possible: there is no C"):
        make("dmpo", dataset=DATA, compile=True).learn(1)


def test_failing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has not asked for compiled updates goes on without; one that has ends with the compiler's message."""

    def fail(*inputs: th.Tensor) -> None:
        raise th._dynamo.exc.TorchDynamoException("the compiler broke\nand much more")

    monkeypatch.setattr(th, "compile", lambda graph, **options: fail)
    monkeypatch.setattr(compilation, "AUTO_UPDATES", 4)
    with pytest.warns(UserWarning, match=r"Compiling has failed \(the compiler broke\); the updates go on without"):
        model = make("dmpo", dataset=DATA, compile="auto").learn(4)
    assert not model._compiled.is_on
    assert_same(model.get_parameters(), make("dmpo", dataset=DATA, compile=False).learn(4).get_parameters())
    with pytest.raises(th._dynamo.exc.TorchDynamoException, match="the compiler broke"):
        make("dmpo", dataset=DATA, compile=True).learn(4)


def test_other_optimizers_are_not_compiled() -> None:
    arguments = {"policy_kwargs": {"net_arch": [8], "optimizer_class": th.optim.SGD}}
    with pytest.raises(RuntimeError, match="only plain Adam and AdamW are compiled, the optimizer here is SGD"):
        make("td3_bc", dataset=DATA, compile=True, **arguments).learn(1)


@pytest.mark.slow
@pytest.mark.parametrize("gating_dtype", ["float32", "bfloat16"])
def test_compiled_code(gating_dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled for real: as the recorded graph (and the eager code) up to rounding, bit for bit the same after a zip."""
    arguments: dict[str, Any] = {"gating_dtype": gating_dtype, "policy_kwargs": {"net_arch": [32, 32]}}
    whole = make("dmpo", dataset=DATA, compile=True, **arguments).learn(4)
    make("dmpo", dataset=DATA, compile=True, **arguments).learn(2).save(tmp_path / "half")
    resumed = DMPO.load(tmp_path / "half", dataset=DATA).learn(2, reset_num_timesteps=False)
    assert resumed._compiled.is_on
    assert_same(resumed.get_parameters(), whole.get_parameters())
    if gating_dtype == "float32":  # in bfloat16, eager code rounds at other places
        close(whole, make("dmpo", dataset=DATA, compile=False, **arguments).learn(4))
    monkeypatch.setattr(th, "compile", lambda graph, **options: graph)
    close(whole, make("dmpo", dataset=DATA, compile=True, **arguments).learn(4))


def test_reduced_precision_chooses_nearly_as_well() -> None:
    """The gate loses little by bfloat16, and what it picks is evaluated in full precision."""
    model = make("dmpo", dataset=DATA, policy_kwargs={"net_arch": [256, 256]}).learn(20)
    policy, observations = model.policy, model.sample_batch(256).observations
    networks = policy.actor, policy.critic
    table, actions = policy.component_table(observations, *networks)
    exact, exact_actions = policy.gate_table(observations, *networks, th.float32)
    th.testing.assert_close(exact, table)
    th.testing.assert_close(exact_actions, actions)
    reduced, _ = policy.gate_table(observations, *networks, th.bfloat16)
    assert 0 < float((reduced - exact).abs().max()) < 0.02 * float(exact.abs().max())
    best, chosen = exact.amax(dim=1), policy.gated_values(observations, *networks, th.bfloat16).squeeze(1)
    assert float((best - chosen).max()) < 0.02 * float(best.abs().max())
    picked = policy.gated_actions(observations, *networks, th.bfloat16)
    distances = (actions.detach() - picked.unsqueeze(1)).abs().amax(dim=2).amin(dim=1)
    assert float(distances.max()) < 1e-5


def test_precision_of_the_gate() -> None:
    narrow, wide = ({"net_arch": [width]} for width in (16, 256))
    for option, arch in (("auto", narrow), ("float32", wide)):
        assert DMPO("MlpPolicy", dataset=DATA, gating_dtype=option, policy_kwargs=arch, device="cpu").gate_dtype == th.float32
    assert DMPO("MlpPolicy", dataset=DATA, policy_kwargs=wide, device="cpu").gate_dtype == th.float32
    assert make("dmpo", dataset=DATA, gating_dtype="bfloat16").gate_dtype == th.bfloat16
    with pytest.raises(ValueError, match="gating_dtype is 'float16'"):
        make("dmpo", dataset=DATA, gating_dtype="float16")
    with pytest.raises(ValueError, match="compile is 'yes'"):
        make("dmpo", dataset=DATA, compile="yes")
