"""
Captured updates, as far as they can be proven without a GPU. What stands in for a CUDA graph here is recorded and replayed in
the same way: the operations of one update with the tensors that they were done on, and all Python numbers as they were then.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from sb3_dmpo import ALGOS, OfflineAlgorithm
from sb3_dmpo.common import buffers, capture, compilation, metrics, offline_algorithm
from sb3_dmpo.several_seeds.several_seeds import learn_together
from tests.common.test_compilation import NoSynchronisation
from tests.contract import DATA, assert_same, make
from tests.toy_data import DriftEnv

#: Recording takes seconds: of most algorithms it is left to the slow tests.
EACH_SLOWLY = [
    name if name == "td3_bc" else pytest.param(name, marks=pytest.mark.slow)
    for name, algorithm in ALGOS.items()
    if algorithm.can_learn_together  # nothing but updates happens
]


def tensors_of(values: Any) -> list[th.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, th.Tensor)]


class Launches(TorchDispatchMode):
    """Counts the operations that are not part of a replay."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not StandIn.is_replaying:
            self.outside.append(str(func))
        return func(*args, **kwargs or {})


def everything(model: OfflineAlgorithm, groups: set[Any] | None = None) -> dict[str, Any]:
    """Copies of all that updates change."""
    return {
        "weights": copy.deepcopy(model.get_parameters()),
        "state": [tensor.detach().clone() for tensor in model._update_state()],
        "noise": model._noise_generator.get_state(),
        "minibatches": model.replay_buffer.generator.get_state(),
        "places": {
            name: group.place.item() for name, group in model._metrics._groups.items() if groups is None or name in groups
        },
    }


class StandIn:
    """Takes the place of :func:`capture.cuda_graph` on the CPU."""

    is_replaying = False

    def __init__(self) -> None:
        self.n_captured = 0
        self.n_replays = 0

    @staticmethod
    def watch(model: OfflineAlgorithm) -> None:
        """Let capturing fail if it leaves anything of a model other than it was."""
        replays = model._captured
        capture_it = replays._capture

        def watched(*arguments: Any) -> Any:
            for group in model._metrics._groups.values():
                group.fold()
            before = everything(model)
            result = capture_it(*arguments)
            new = set(model._metrics._groups) - set(before["places"])
            assert all(model._metrics._groups[name].place == 0 for name in new)
            assert_same(everything(model, set(before["places"])), before)
            return result

        replays._capture = watched  # type: ignore[method-assign]

    def __call__(self, body: Callable[[], Any], device: th.device, generators: Sequence[th.Generator]) -> Any:
        for _ in range(capture.WARM_UPS):
            body()
        results: Any = None

        def recorded() -> list[th.Tensor]:
            nonlocal results
            results = body()
            return tensors_of(results)

        graph = make_fx(recorded)()
        self.n_captured += 1

        def replay() -> None:
            StandIn.is_replaying = True
            self.n_replays += 1
            with th.no_grad():
                for held, new in zip(tensors_of(results), graph(), strict=True):
                    if held is not new:
                        held.copy_(new)
            StandIn.is_replaying = False

        return replay, results


def run_as_recorded(graph: Any, **options: Any) -> Any:
    """In the place of ``th.compile``: recorded graphs are run as they are."""
    return graph


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Updates are captured on the CPU, from recorded graphs that are run as they are."""
    graphs = StandIn()
    monkeypatch.setattr(th, "compile", run_as_recorded)
    monkeypatch.setattr(capture, "cuda_graph", graphs)
    monkeypatch.setattr(offline_algorithm, "missing_for_capture", lambda device: None)
    return graphs


def pair(name: str, **arguments: Any) -> tuple[OfflineAlgorithm, OfflineAlgorithm]:
    """A model whose updates are captured, and one whose updates are not. Delayed updates would be a second graph to record."""
    options: dict[str, Any] = {"dataset": DATA, "compile": True, "policy_delay": 1} | arguments
    return make(name, **options, capture=True), make(name, **options, capture=False)


def assert_same_models(first: OfflineAlgorithm, second: OfflineAlgorithm) -> None:
    """Weights, optimizers, counters and both generators agree in every bit."""
    assert_same(first.get_parameters(), second.get_parameters())
    assert first._n_updates == second._n_updates
    for generator, other in (
        (first._noise_generator, second._noise_generator),
        (first.replay_buffer.generator, second.replay_buffer.generator),
    ):
        assert th.equal(generator.get_state(), other.get_state())
    assert_same(tensors_of(first._last_batch), tensors_of(second._last_batch))


class Kept(KVWriter):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.rows.append({name: value for name, value in key_values.items() if not name.startswith("time/")})

    def close(self) -> None:
        pass


class At(BaseCallback):
    """Does something once, after an update."""

    def __init__(self, update: int, action: Callable[[OfflineAlgorithm], Any]) -> None:
        super().__init__()
        self.update, self.action = update, action

    def _on_step(self) -> bool:
        if self.num_timesteps == self.update:
            self.action(self.model)
        return True


class EndsAt(BaseCallback):
    """Ends the run after an update."""

    def __init__(self, update: int) -> None:
        super().__init__()
        self.update = update

    def _on_step(self) -> bool:
        return self.num_timesteps < self.update


@pytest.mark.parametrize("name", EACH_SLOWLY)
def test_replays_equal_learn(name: str, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    With rates that change at every update: weights, generators, the last minibatch and the log. In 10 updates between two
    logs nothing waits for the device, and nothing is launched but replays and the rates that have changed.
    """
    monkeypatch.setattr(metrics, "_ROWS", 4)
    arguments: dict[str, Any] = {"learning_rate": lambda progress: 1e-3 * progress, "policy_delay": 2}
    captured, plain = pair(name, **arguments | {"policy_kwargs": {"net_arch": [8]}})
    stand_in.watch(captured)
    launches, guard = Launches(), NoSynchronisation()

    def begin(model: OfflineAlgorithm) -> None:
        guard.__enter__()
        launches.__enter__()

    def end(model: OfflineAlgorithm) -> None:
        launches.__exit__(None, None, None)
        guard.__exit__(None, None, None)

    logs = []
    for model, callbacks in ((captured, [At(4, begin), At(14, end)]), (plain, [])):
        log = Kept()
        model.set_logger(Logger(None, [log]))
        model.learn(16, callback=callbacks, log_interval=15)
        logs.append(log.rows)
    changed = [schedule(0.9) != schedule(0.8) for _, schedule, _ in captured._optimizers.values()]
    assert any(changed) and launches.outside == ["aten.fill_.Scalar"] * 10 * sum(changed), set(launches.outside)
    assert stand_in.n_replays == 16 and 1 <= stand_in.n_captured < 6
    assert_same_models(captured, plain)
    assert len(logs[0]) == len(logs[1]) == 1
    assert list(logs[0][0]) == list(logs[1][0])
    # Sums of 4 and of 1000 numbers at a time.
    np.testing.assert_allclose(list(logs[0][0].values()), list(logs[1][0].values()), rtol=1e-12)


@pytest.mark.slow
def test_minibatches_of_imagined_episodes_are_drawn_before_the_replay(stand_in: StandIn) -> None:
    captured, plain = pair("maple", learning_rate=lambda progress: 1e-3 * progress)
    stand_in.watch(captured)
    assert_same_models(captured.learn(10), plain.learn(10))
    assert stand_in.n_replays == 10 and captured._n_rollouts > 2 and captured._refresh > 0


@pytest.mark.parametrize("name", ["td3_bc", pytest.param("iql", marks=pytest.mark.slow)])
def test_captured_without_being_compiled(name: str, stand_in: StandIn) -> None:
    captured = make(name, dataset=DATA, policy_delay=1, compile=False, capture=True).learn(4)
    assert not captured._is_compiled and stand_in.n_replays == 4
    assert_same_models(captured, make(name, dataset=DATA, policy_delay=1, compile=True, capture=False).learn(4))


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("td3_bc", {"n_steps": 3}),
        ("rebrac", {"n_steps": 2}),
        ("iql", {"dropout": 0.1, "policy_delay": 2}),
        ("dmpo", {"ema_decay": 0.9}),
        ("decision_transformer", {"dropout": 0.1}),
        ("cql", {"pretraining_updates": 6}),
        ("diffusion_ql", {"ema_start": 5}),
        ("td3_bc", {"policy_kwargs": {"net_arch": [8], "optimizer_class": th.optim.AdamW}}),
        ("td3_bc", {"policy_kwargs": {"net_arch": [8], "optimizer_kwargs": {"foreach": True}}}),
    ],
)
@pytest.mark.slow
def test_options_are_captured(name: str, arguments: dict[str, Any], stand_in: StandIn) -> None:
    captured, plain = pair(name, **arguments)
    assert_same_models(captured.learn(10), plain.learn(10))
    assert stand_in.n_replays == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["td3_bc", "iql"])
def test_resumed_run_is_the_undisturbed_one(name: str, stand_in: StandIn, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dataset": DATA, "compile": True, "capture": True}
    make(name, **options).learn(3).save(tmp_path / "part")
    resumed = ALGOS[name].load(tmp_path / "part", dataset=DATA, device="cpu").learn(3, reset_num_timesteps=False)
    assert stand_in.n_replays == 6 and resumed.capture is True
    whole = make(name, **options).learn(3).learn(3, reset_num_timesteps=False)
    assert_same_models(resumed, whole)


@pytest.mark.slow
def test_several_seeds_are_captured(stand_in: StandIn) -> None:
    """One replay updates all models, each of which draws from its own generators; one leaves before the others."""
    sets = []
    for captures in (True, False):
        models = [make("td3_bc", dataset=DATA, compile=True, capture=captures, seed=seed, policy_delay=1) for seed in range(3)]
        learn_together(models, 6, callbacks=[None, EndsAt(3), None], log_interval=3)
        sets.append(models)
    assert stand_in.n_replays == 6
    assert [model._n_updates for model in sets[0]] == [6, 3, 6]
    for captured, plain in zip(*sets, strict=True):
        assert_same_models(captured, plain)


CHANGES: list[Callable[[OfflineAlgorithm], Any]] = [
    # The same numbers elsewhere: a graph knows addresses only.
    lambda model: [setattr(p, "data", p.data.clone()) for p in model.policy.parameters()],
    lambda model: model._noise_generator.manual_seed(3),
    lambda model: model.set_random_seed(7),
    lambda model: model.set_parameters(copy.deepcopy(model.get_parameters())),
    lambda model: model.replay_buffer.reserve(100),
    lambda model: model.policy.load_state_dict({k: v * 0.5 for k, v in model.policy.state_dict().items()}),
    lambda model: model.train(2, 8),
    lambda model: model.policy.set_training_mode(False),
]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("change", [*CHANGES[:2], *(pytest.param(change, marks=pytest.mark.slow) for change in CHANGES[2:])])
def test_changes_while_learning_are_seen(change: Callable[[OfflineAlgorithm], Any]) -> None:
    captured, plain = pair("td3_bc")
    for model in (captured, plain):
        model.learn(10, callback=At(5, change))
    assert_same_models(captured, plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["td3_bc"])
def test_added_transitions_are_drawn_before_the_replay(name: str, stand_in: StandIn) -> None:
    """Online learning in between; afterwards the buffer lies elsewhere."""
    captured, plain = pair(name, env=DriftEnv())
    for model in (captured, plain):
        model.learn(4)
        model.learn_online(20, learning_starts=4)
        model.learn(4, reset_num_timesteps=False)
        model.replay_buffer.reset()
        model.learn(4, reset_num_timesteps=False)
    assert stand_in.n_replays == captured._n_updates == plain._n_updates
    assert_same_models(captured, plain)


def test_data_on_disk_are_read_before_the_replay(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers.OfflineReplayBuffer, "fixed_data", lambda buffer: [])
    captured, plain = pair("td3_bc", policy_delay=2)
    assert_same_models(captured.learn(6), plain.learn(6))
    assert stand_in.n_replays == 6 and stand_in.n_captured == 2


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("compiled", [pytest.param(True, marks=pytest.mark.slow), False])
def test_changed_settings_are_recorded_anew(compiled: bool) -> None:
    """A Python number is part of the graph."""
    kept = make("td3_bc", dataset=DATA, policy_delay=1, compile=True, capture=compiled).learn(2)
    kept.gamma = 0.5
    kept.learn(2, reset_num_timesteps=False)
    fresh = make("td3_bc", dataset=DATA, policy_delay=1, compile=True, capture=False).learn(2)
    fresh.gamma = 0.5
    fresh._compiled._graphs.clear()
    assert_same(kept.get_parameters(), fresh.learn(2, reset_num_timesteps=False).get_parameters())


@pytest.fixture(scope="module")
def never_captured() -> Iterator[OfflineAlgorithm]:
    """A model whose updates are recorded, but not captured; nothing may change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(th, "compile", run_as_recorded)
        model = make("td3_bc", dataset=DATA, policy_delay=1, compile=True, capture=False).learn(6)
    before = copy.deepcopy(model.get_parameters())
    yield model
    assert_same(model.get_parameters(), before)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("fails_at", ["warm-up", "capture"])
@pytest.mark.parametrize("is_drawn_before", [True, False])
def test_failing_capture(
    fails_at: str, is_drawn_before: bool, never_captured: OfflineAlgorithm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that has not insisted goes on without, after one warning; one that has ends with the reason."""

    def fail(body: Callable[[], Any], *args: Any) -> None:
        if fails_at == "capture":
            body()
        raise RuntimeError("operation not permitted when stream is capturing\nand much more")

    if is_drawn_before:
        monkeypatch.setattr(buffers.OfflineReplayBuffer, "fixed_data", lambda buffer: [])
    monkeypatch.setattr(capture, "cuda_graph", fail)
    with pytest.warns(
        UserWarning, match=r"Capturing has failed \(operation not permitted.*capturing\); the updates"
    ) as warned:
        model = make("td3_bc", dataset=DATA, policy_delay=1, compile=True, capture="auto").learn(6)
    assert len(warned) == 1 and model._compiled.is_on and not model._captured.is_on
    assert_same_models(model, never_captured)
    with pytest.raises(RuntimeError, match="not permitted"):
        make("td3_bc", dataset=DATA, compile=False, capture=True).learn(1)


@pytest.mark.usefixtures("stand_in")
def test_interrupted_capture_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(body: Callable[[], Any], *args: Any) -> None:
        body()
        raise KeyboardInterrupt

    model = make("td3_bc", dataset=DATA, policy_delay=1, compile=True, capture=True).learn(2)
    before = (
        copy.deepcopy(model.get_parameters()),
        model._noise_generator.get_state(),
        model.replay_buffer.generator.get_state(),
    )
    model._captured.forget()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(capture, "cuda_graph", interrupted)
        model.learn(2, reset_num_timesteps=False)
    assert_same(
        (model.get_parameters(), model._noise_generator.get_state(), model.replay_buffer.generator.get_state()), before
    )


@pytest.mark.usefixtures("stand_in")
def test_failing_compiler_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*inputs: th.Tensor) -> None:
        raise th._dynamo.exc.TorchDynamoException("the compiler broke")

    monkeypatch.setattr(th, "compile", lambda graph, **options: fail)
    monkeypatch.setattr(compilation, "AUTO_UPDATES", 4)
    with pytest.warns(UserWarning) as warned:
        model = make("td3_bc", dataset=DATA, compile="auto", capture="auto").learn(4)
    assert [str(warning.message)[:20] for warning in warned] == ["Compiling has failed"]
    assert_same(model.get_parameters(), make("td3_bc", dataset=DATA, compile=False).learn(4).get_parameters())


@pytest.mark.usefixtures("stand_in")
def test_losses_that_are_not_finite_are_noticed() -> None:
    messages = []
    for model in pair("td3_bc"):
        poison = At(5, lambda model: next(model.policy.critic.parameters()).data.fill_(float("nan")))
        with pytest.raises(FloatingPointError) as caught:
            model.learn(20, callback=poison, log_interval=None)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "at update 6" in messages[0]


@pytest.mark.usefixtures("stand_in")
def test_metrics_of_many_updates_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than are added up at a time, in two groups, and more updates than there is room for."""
    monkeypatch.setattr(metrics, "_ROWS", 4)
    rows = []
    for model in pair("td3_bc", policy_delay=2, policy_kwargs={"net_arch": [4]}):
        log = Kept()
        model.set_logger(Logger(None, [log]))
        model._metrics._capacity = 10
        model.learn(48, log_interval=24)
        rows.append(log.rows)
    assert len(rows[0]) == len(rows[1]) == 2
    for captured, plain in zip(*rows, strict=True):
        assert list(captured) == list(plain)
        np.testing.assert_allclose(list(captured.values()), list(plain.values()), rtol=1e-12)


def test_choice() -> None:
    choose = capture.choose_capture
    assert choose("auto", True, None) and not choose("auto", False, None) and not choose("auto", True, "why")
    assert choose(True, False, None) and not choose(False, True, None)
    with pytest.raises(RuntimeError, match=r"capture=True is not possible: CUDA graphs need a CUDA device.*'cpu'.*\"auto\""):
        make("td3_bc", dataset=DATA, capture=True).learn(1)
    with pytest.raises(ValueError, match="capture is 'yes'"):
        make("td3_bc", dataset=DATA, capture="yes")
    assert not make("td3_bc", dataset=DATA, compile=True).learn(0)._captured.is_on


@pytest.mark.usefixtures("stand_in")
def test_models_with_graphs_can_be_copied() -> None:
    model = make("td3_bc", dataset=DATA, policy_delay=1, compile=True, capture=True).learn(1)
    assert copy.deepcopy(model._captured)._graphs == {} and model._captured._graphs


class OnMeta(TorchFunctionMode):
    """Random numbers of a generator of the CPU become tensors without numbers: the device ``meta`` has no generators."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(kwargs.get("generator"), th.Generator):
            kwargs = kwargs | {"generator": None, "device": "meta"}
        return func(*args, **kwargs)


def on_meta(name: str, monkeypatch: pytest.MonkeyPatch) -> OfflineAlgorithm:
    """A model on the device ``meta``, with its data there, whose updates are recorded."""
    for module, factory in ((offline_algorithm, "make_noise_generator"), (buffers, "_make_generator")):
        made = getattr(module, factory)
        monkeypatch.setattr(module, factory, lambda device, seed, made=made: made(th.device("cpu"), seed))
    on_cpu = make(name, dataset=DATA)
    on_cpu._setup_dataset()
    with OnMeta():
        model = make(name, device="meta", dataset=DATA, policy_delay=2)
        buffer = on_cpu.replay_buffer
        model._on_dataset(buffer)
        moved = tree_map(lambda value: value.to("meta") if isinstance(value, th.Tensor) else value, dict(vars(buffer)))
        vars(buffer).update(moved | {"device": th.device("meta")})
        model.replay_buffer = buffer
        model._compiled.is_on = True
        model._use_state()
        model.policy.set_training_mode(True)
    return model


@pytest.mark.parametrize("name", EACH_SLOWLY)
def test_body_has_no_tensor_of_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    On a device that is not the CPU all tensors of the body are there, and all operations PyTorch's; the only ones from outside
    are the data, what updates change, the rates, and where the metrics go.
    """
    model = on_meta(name, monkeypatch)
    known = [*model._update_state(), *tensors_of(list(vars(model.replay_buffer).values()))]
    variants = set()
    for update in range(1, 4):
        model._n_updates = update
        variant = model.update_variant(16)
        if variant in variants:
            continue
        variants.add(variant)

        def body() -> list[th.Tensor]:
            batch = model.sample_batch(16)
            model._metrics.write(model._run_update(batch, 16))
            return tensors_of(batch)

        with OnMeta():
            body()
            graph = make_fx(body)()
        inputs = known + [tensor for group in model._metrics._groups.values() for tensor in (group.rows, group.place)]
        for node in graph.graph.nodes:
            values = tensors_of([node.meta.get("val")])
            if node.op == "get_attr":
                values = tensors_of([getattr(graph, node.target)])
                assert all(any(value is tensor for tensor in inputs) for value in values), f"{node}: {values}"
            elif node.op == "call_function":
                assert "cpu" not in str(node.kwargs.get("device")), node.format_node()
                assert getattr(node.target, "namespace", "aten") in ("aten", "prims"), node.format_node()
            assert all(value.device.type == "meta" for value in values), node.format_node()
    assert variants
