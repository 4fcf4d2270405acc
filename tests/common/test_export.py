"""Exported graphs act as ``predict`` does, in other runtimes and for any number of observations."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dmpo import ALGOS, OfflineAlgorithm
from sb3_dmpo.common import export
from tests.contract import DATA, DICT_DATA, make
from tests.toy_data import EPISODE_LENGTH, DriftEnv, make_transitions

TOLERANCE = 1e-5
WITH_MEMORY = ("decision_transformer", "maple")
WITHOUT_MEMORY = [name for name in ALGOS if name not in WITH_MEMORY]
#: Where critics choose, layer norm in double precision, and averages; without them it is exported with Dict observations.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "dmpo": {"policy_kwargs": {"net_arch": [16, 16], "n_critics": 3, "critic_layer_norm": True}, "ema_decay": 0.5}
}
#: Exporting takes seconds: of most algorithms it is left to the slow tests.
EACH_SLOWLY = [name if name in ("dmpo", "bc") else pytest.param(name, marks=pytest.mark.slow) for name in WITHOUT_MEMORY]


def random_observations(model: OfflineAlgorithm, n: int) -> Any:
    """Raw observations, an array or a dict of arrays."""
    rng = np.random.default_rng(1)
    space = model.observation_space
    if isinstance(space, spaces.Dict):
        return {key: rng.normal(0.0, 2.0, (n, *leaf.shape)).astype(np.float32) for key, leaf in space.spaces.items()}
    return rng.normal(0.0, 2.0, (n, *space.shape)).astype(np.float32)


def onnx_session(path: Path) -> Any:
    return pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])


def run_onnx(session: Any, observations: Any) -> np.ndarray:
    feed = observations if isinstance(observations, dict) else {"observation": observations}
    return np.asarray(session.run(["action"], feed)[0])


def assert_same_actions(model: OfflineAlgorithm, observations: Any, actions: np.ndarray) -> None:
    expected, _ = model.predict(observations, deterministic=True)
    assert actions.shape == expected.shape and actions.dtype == expected.dtype
    np.testing.assert_allclose(actions, expected, atol=TOLERANCE, rtol=0.0)


@pytest.mark.parametrize("policy", ["MlpPolicy", pytest.param("MultiInputPolicy", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", EACH_SLOWLY)
def test_torch_export(name: str, policy: str, tmp_path: Path) -> None:
    model = make(name, policy, dataset=DATA if policy == "MlpPolicy" else DICT_DATA).learn(8)
    model.export(tmp_path / "policy.pt2")
    program = th.export.load(tmp_path / "policy.pt2").module()
    for n in (1, 3, 200):
        observations = random_observations(model, n)
        as_tensors = {key: th.from_numpy(value) for key, value in observations.items()} if policy != "MlpPolicy" else None
        actions = program(as_tensors or th.from_numpy(observations))
        assert_same_actions(model, observations, actions.detach().numpy())


class Exported(NamedTuple):
    """A model and its ONNX file; nothing may change them."""

    model: OfflineAlgorithm
    path: Path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """By name of the algorithm, each exported once: that takes seconds."""

    @functools.cache
    def export_once(name: str) -> Exported:
        model = make(name, dataset=DATA, **ARGUMENTS.get(name, {})).learn(8)
        model.export(path := tmp_path_factory.mktemp(name) / "policy.onnx")
        return Exported(model, path)

    return export_once


@pytest.mark.parametrize("name", EACH_SLOWLY)
def test_onnx(name: str, exported: Callable[[str], Exported]) -> None:
    """Random observations, and an episode in which every action depends on those before."""
    model, path = exported(name)
    session = onnx_session(path)
    assert [(entry.name, entry.shape, entry.type) for entry in session.get_inputs()] == [
        ("observation", ["batch", 3], "tensor(float)")
    ]
    for n in (1, 3, 2000):
        observations = random_observations(model, n)
        assert_same_actions(model, observations, run_onnx(session, observations))
    env = DriftEnv()
    observation, _ = env.reset(seed=0)
    for _ in range(EPISODE_LENGTH):
        action = run_onnx(session, observation[None])
        assert_same_actions(model, observation[None], action)
        observation, *_ = env.step(action[0])


def assert_same_episodes(model: OfflineAlgorithm, run: Callable[..., list[np.ndarray]]) -> None:
    """Two environments, longer than any context: with the state handed on, the graph acts as ``predict`` does."""
    policy = model.policy
    observations = np.cumsum(random_observations(model, 24).reshape(12, 2, 3), axis=0).astype(np.float32)
    state: Any = policy.initial_state(2)
    expected_state: Any = None
    for observation in observations:
        expected, expected_state = model.predict(observation, expected_state, deterministic=True)
        actions, *state = run(observation, *state)
        assert actions.dtype == expected.dtype and [array.dtype for array in state] == [a.dtype for a in expected_state]
        np.testing.assert_allclose(actions, expected, atol=TOLERANCE, rtol=0.0)
        for found, known in zip(state, expected_state, strict=True):
            np.testing.assert_allclose(found, known, atol=1e-4, rtol=1e-4)
    fresh, *_ = run(observations[0], *policy.initial_state(2))
    np.testing.assert_allclose(fresh, model.predict(observations[0], deterministic=True)[0], atol=TOLERANCE, rtol=0.0)


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_torch_export_with_a_state(name: str, tmp_path: Path) -> None:
    model = make(name, dataset=DATA).learn(8)
    model.export(tmp_path / "policy.pt2")
    program = th.export.load(tmp_path / "policy.pt2").module()
    assert_same_episodes(model, lambda *given: [out.detach().numpy() for out in program(*map(th.from_numpy, given))])


@pytest.mark.parametrize("name", [pytest.param("decision_transformer", marks=pytest.mark.slow), "maple"])
def test_onnx_with_a_state(name: str, tmp_path: Path) -> None:
    model = make(name, dataset=DATA).learn(8)
    model.export(tmp_path / "policy.onnx")
    session = onnx_session(tmp_path / "policy.onnx")
    names = list(model.policy.state_names)
    assert [entry.name for entry in session.get_inputs()] == ["observation", *names]
    assert [entry.name for entry in session.get_outputs()] == ["action", *(f"next_{name}" for name in names)]

    def run(*given: np.ndarray) -> list[np.ndarray]:
        return list(session.run(None, dict(zip(["observation", *names], given, strict=True))))

    assert_same_episodes(model, run)


def test_onnx_multiplies_nothing_that_is_transposed_on_the_way(exported: Callable[[str], Exported]) -> None:
    """ONNX Runtime up to 1.23 would fuse both into an operator that it does not have for doubles."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(exported("dmpo").path).graph
    constants = {initializer.name for initializer in graph.initializer}
    transposed = {
        node.output[0] for node in graph.node if node.op_type == "Transpose" and not constants.issuperset(node.input)
    }
    products = [node for node in graph.node if node.op_type == "MatMul"]
    assert products and not any(transposed.intersection(node.input) for node in products)


def test_onnx_has_an_input_per_key(tmp_path: Path) -> None:
    model = make("dmpo", "MultiInputPolicy", dataset=DICT_DATA).learn(8)
    model.export(tmp_path / "policy.onnx")
    session = onnx_session(tmp_path / "policy.onnx")
    assert [(entry.name, entry.shape) for entry in session.get_inputs()] == [
        ("goal/arm", ["batch", 2]),
        ("observation", ["batch", 3]),
    ]
    observations = random_observations(model, 20)
    assert_same_actions(model, observations, run_onnx(session, observations))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(("bc", "action"), ("decision_transformer", "rewards"), ("maple", "hidden"), ("maple", "next_hidden")),
        # Named by the exporter.
        *(("bc", "policy.observation_mean"), pytest.param("bc", "cat", marks=pytest.mark.slow)),
    ],
)
def test_keys_that_a_graph_needs_for_something_else(name: str, key: str, tmp_path: Path) -> None:
    space = spaces.Dict({key: spaces.Box(-np.inf, np.inf, (2,)), "other": spaces.Box(-np.inf, np.inf, (3,))})
    model = make(name, "MultiInputPolicy", dataset=make_transitions(observation_space=space))
    with pytest.raises(ValueError, match=rf"key '{key}'.*name of something else.*Rename the key"):
        model.export(tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


def test_onnx_says_what_it_is(exported: Callable[[str], Exported]) -> None:
    model, path = exported("bc")
    metadata = onnx_session(path).get_modelmeta().custom_metadata_map
    assert metadata == {"algorithm": "BC", "dataset": str(model.dataset_id), "updates": "8"}


def test_observations_and_actions_of_other_shapes(tmp_path: Path) -> None:
    """Unit bounds are left alone, float64 actions stay float64, an image-like observation is flattened."""
    pictures = spaces.Box(-np.inf, np.inf, (2, 3), np.float32)
    data = make_transitions(observation_space=pictures, action_space=spaces.Box(-1.0, 1.0, (2,), np.float64))
    model = make("dmpo", dataset=data).learn(4)
    model.export(tmp_path / "policy.pt2")
    observations = random_observations(model, 5)
    actions = th.export.load(tmp_path / "policy.pt2").module()(th.from_numpy(observations))
    assert_same_actions(model, observations, actions.detach().numpy())


def test_exporting_leaves_the_model_alone(tmp_path: Path) -> None:
    """It can be done between the updates of a run."""
    model, other = make("bc", dataset=DATA).learn(4), make("bc", dataset=DATA).learn(4)
    model.policy.set_training_mode(True)
    model.export(tmp_path / "policy.pt2")
    assert model.policy.training
    for each in (model, other):
        each.learn(4, reset_num_timesteps=False)
    assert all(th.equal(a, b) for a, b in zip(model.policy.parameters(), other.policy.parameters(), strict=True))


def test_what_cannot_be_exported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("bc", dataset=DATA)
    with pytest.raises(ValueError, match=r"\.onnx .*\.pt2"):
        model.export(tmp_path / "policy.pt")
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnx and onnxscript.*sb3_dmpo\[export\]"):
        model.export(tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())
