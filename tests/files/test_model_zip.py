"""The settings of a zip: what goes in comes out again, what cannot is said when it is saved; and zips of early versions."""

import base64
import functools
import io
import json
import math
import zipfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule, get_linear_fn
from torch import nn

import sb3_dmpo
from sb3_dmpo import ALGOS, DMPO, TD3BC
from sb3_dmpo.cli.literals import CLASSES
from sb3_dmpo.common import model_zip
from sb3_dmpo.dmpo.policies import MixturePolicy
from sb3_dmpo.files.safe_zip import DamagedFileError, UnsafeFileError
from sb3_dmpo.files.save_util import check_random_state
from sb3_dmpo.files.settings import PlainSchedule, decode, encode, plain_schedule
from tests.contract import DATA, assert_same, make
from tests.files.test_safe_zip import OBSERVATION, small_model

OLD = Path(__file__).parent / "old_zips"
#: What an early version predicted for observations of 0.25.
OLD_ACTIONS = {
    "dmpo": [-0.18692487478256226, 1.872660517692566],
    "lp_awac": [-0.15810418128967285, 3.816121816635132],
    "mix_awac": [-1.2061142921447754, 3.8021798133850098],
}


class Bent(nn.Module):
    """An activation of somebody's own."""

    def forward(self, values: th.Tensor) -> th.Tensor:
        return values.abs()


class OwnPolicy(MixturePolicy):
    """A policy of somebody's own."""


def saved(model: Any) -> io.BytesIO:
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return file


def linear_schedule(initial_value: float) -> Any:
    """As in the documentation of Stable-Baselines3 and in rl_zoo3."""

    def schedule(progress_remaining: float) -> float:
        return progress_remaining * initial_value

    return schedule


@pytest.mark.parametrize(
    "value",
    [
        {"net_arch": [8, 8], "activation_fn": nn.Tanh, "optimizer_kwargs": {"betas": (0.9, 0.99)}, "x": None},
        [1, 2.5, True, None, "text", 10**30, math.inf, -math.inf, 1e-300],
        deque([{"r": 1.5, "l": 3}, np.float32(0.1), np.int64(-3), np.float64(1 / 3)], maxlen=5),
        TrainFreq(2, TrainFrequencyUnit.EPISODE),
        np.arange(6, dtype=np.int16).reshape(2, 3).T,
        np.array([[0.1, np.nan, np.inf]]),
        np.zeros((0, 3), np.float32),
        th.optim.AdamW,
    ],
    ids=str,
)
def test_values_come_back(value: Any) -> None:
    found = decode(json.loads(json.dumps(encode(value), allow_nan=False)), {})
    assert type(found) is type(value) and str(found) == str(value)
    if isinstance(value, np.ndarray):
        assert found.dtype == value.dtype and np.array_equal(found, value, equal_nan=value.dtype.kind == "f")


def test_spaces_come_back() -> None:
    """Every bit of the bounds, the order of the keys, and the state of the generators."""
    low = spaces.Box(np.array([-0.1, -np.inf], np.float32), np.array([1 / 3, np.inf], np.float32))
    space = spaces.Dict([("z", low), ("a", spaces.Dict(b=spaces.Box(0, 255, (2, 2), np.uint8)))])
    space.seed(4)
    found = decode(json.loads(json.dumps(encode(space), allow_nan=False)), {})
    assert found == space and list(found.spaces) == list(space.spaces) and found["z"].dtype == np.float32
    assert found["z"].low.tobytes() == low.low.tobytes() and found["z"].high.tobytes() == low.high.tobytes()
    np.testing.assert_array_equal(found["a"]["b"].sample(), space["a"]["b"].sample())


EXACT = {
    "rl_zoo3": linear_schedule(3e-4),
    "constant": lambda progress: 1e-3,
    "down to a value": lambda progress: 1e-5 + progress * (3e-4 - 1e-5),
    "get_linear_fn": get_linear_fn(3e-4, 1e-5, 1.0),
    "cosine": lambda progress: 0.5 * 3e-4 * (1.0 + math.cos(math.pi * (1.0 - progress))),
    "partial": functools.partial(lambda rate, progress: rate * progress, 3e-4),
    "LinearSchedule": LinearSchedule(1e-3, 0.0, 0.3),
    "FloatSchedule": FloatSchedule(linear_schedule(0.01)),
    "ConstantSchedule": ConstantSchedule(1),
}


@pytest.mark.parametrize("name", EXACT)
def test_usual_schedules_are_exact(name: str) -> None:
    """Without trust, at any progress, and after another round."""
    schedule = EXACT[name]
    loaded = DMPO.load(saved(DMPO.load(saved(small_model(learning_rate=schedule)))))
    for step in range(701):
        progress = 1.0 - step / 700
        assert loaded.lr_schedule(progress) == schedule(progress)


def test_other_schedules_are_tables() -> None:
    def steps(progress: float) -> float:
        return 1e-3 if progress > 0.5 else 1e-4 * progress

    schedule = DMPO.load(saved(small_model(learning_rate=steps))).learning_rate
    assert isinstance(schedule, PlainSchedule) and schedule.formula == "table"
    for step in range(1025):
        assert schedule(step / 1024) == steps(step / 1024)
    for progress in (0.123456, 0.4, 0.77777):
        assert schedule(progress) == pytest.approx(steps(progress), rel=1e-12)
    assert schedule(1.5) == 1e-3 and schedule(-0.5) == 0.0
    wave = plain_schedule(lambda progress: 1e-3 * (1 + math.sin(5 * progress)))
    assert wave(0.1234) == pytest.approx(1e-3 * (1 + math.sin(5 * 0.1234)), rel=1e-5)


class Counting:
    """A schedule that gives another value every time."""

    calls = 0

    def __call__(self, progress: float) -> float:
        self.calls += 1
        return 1e-3 / self.calls


@pytest.mark.parametrize("schedule", [Counting(), lambda progress: math.inf, lambda progress: "fast", lambda: 1.0])
def test_schedules_that_are_none(schedule: Any, tmp_path: Path) -> None:
    model = small_model()
    model.learning_rate = schedule
    with pytest.raises(TypeError, match=r"'learning_rate' cannot be saved .*exclude=\['learning_rate'\]"):
        model.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == [] and getattr(schedule, "calls", 0) == 0
    model.save(tmp_path / "model", exclude=["learning_rate"])
    assert DMPO.load(tmp_path / "model").learning_rate == 3e-4


def test_classes_of_ones_own() -> None:
    model = small_model()
    model = DMPO(
        "MlpPolicy", env=model.get_env(), n_components=3, policy_kwargs={"net_arch": [8], "activation_fn": Bent}, seed=0
    )
    expected, _ = model.predict(OBSERVATION)
    file = saved(model)
    with pytest.raises(UnsafeFileError, match=r"asks for the class tests\.files\.test_model_zip\.Bent.*trusted_classes"):
        DMPO.load(io.BytesIO(file.getvalue()))
    for arguments in ({"trusted_classes": [Bent]}, {"trust_pickle": True}):
        loaded = DMPO.load(io.BytesIO(file.getvalue()), device="cpu", **arguments)
        np.testing.assert_array_equal(loaded.predict(OBSERVATION)[0], expected)

    class Local(nn.ReLU):
        pass

    with pytest.raises(TypeError, match="'policy_kwargs' cannot be saved"):
        saved(DMPO("MlpPolicy", env=model.get_env(), n_components=3, policy_kwargs={"net_arch": [8], "activation_fn": Local}))


def test_policies_of_ones_own() -> None:
    env = small_model().get_env()
    file = saved(DMPO(OwnPolicy, env=env, n_components=3, policy_kwargs={"net_arch": [8]}))
    with pytest.raises(UnsafeFileError, match=r"policy_class is .*OwnPolicy"):
        DMPO.load(io.BytesIO(file.getvalue()))
    assert type(DMPO.load(io.BytesIO(file.getvalue()), trusted_classes=[OwnPolicy]).policy) is OwnPolicy


class OwnAlgorithm(TD3BC):
    """With the constructor of Stable-Baselines3's algorithms: a policy has to be passed."""

    def __init__(self, policy: Any, env: Any = None, my: int = 1, **kwargs: Any) -> None:
        self.my = my
        super().__init__(policy, env, **kwargs)


def test_algorithms_of_ones_own() -> None:
    model = OwnAlgorithm("MlpPolicy", my=3, dataset=DATA, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu").learn(2)
    loaded = OwnAlgorithm.load(saved(model), device="cpu")
    assert loaded.my == 3
    observations = np.zeros((5, 3), np.float32)
    np.testing.assert_array_equal(loaded.predict(observations)[0], model.predict(observations)[0])


@pytest.mark.parametrize("optimizer", [th.optim.Rprop, th.optim.Adafactor, th.optim.RMSprop])
def test_optimizers_of_every_kind(optimizer: type[th.optim.Optimizer]) -> None:
    """Options below 0 or above 1, and states of other shapes than the weights."""
    model = make("td3_bc", dataset=DATA, policy_kwargs={"net_arch": [8], "optimizer_class": optimizer}).learn(4)
    loaded = TD3BC.load(saved(model), device="cpu", dataset=DATA, trusted_classes=[optimizer])
    assert_same(loaded.get_parameters(), model.get_parameters())
    for each in (model, loaded):
        each.learn(4, reset_num_timesteps=False)
    assert_same(loaded.get_parameters(), model.get_parameters())


@pytest.mark.parametrize("name", [name for name in CLASSES if name.startswith(("nn.", "optim."))])
def test_classes_that_a_command_may_name_need_no_trust(name: str) -> None:
    argument = "optimizer_class" if name.startswith("optim.") else "activation_fn"
    model = make("td3_bc", dataset=DATA, policy_kwargs={"net_arch": [8], argument: CLASSES[name]}).learn(2)
    loaded = TD3BC.load(saved(model), device="cpu", dataset=DATA)
    for each in (model, loaded):
        each.learn(2, reset_num_timesteps=False)
    assert_same(loaded.get_parameters(), model.get_parameters())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("td3_bc", {"reward_scale": 2_000_000}),
        ("lapo", {"value_bounds": (0, 2_000_000)}),
        ("cql", {"pretraining_updates": 2_000_000}),
        ("diffusion_ql", {"ema_start": 2_000_000}),
    ],
)
def test_large_numbers_come_back(name: str, arguments: dict[str, Any]) -> None:
    loaded = ALGOS[name].load(saved(make(name, dataset=DATA, **arguments)), device="cpu")
    assert {key: getattr(loaded, key) for key in arguments} == arguments


def test_a_schedule_may_pass_zero_at_the_end() -> None:
    """No update gets there."""
    model = small_model(learning_rate=lambda progress: 1e-3 * (progress - 1e-4))
    assert DMPO.load(saved(model), device="cpu").lr_schedule(0.5) == model.lr_schedule(0.5)


def test_generators_of_two_devices() -> None:
    """The noise is drawn on a GPU, the minibatches of a memory-mapped dataset on the CPU."""
    model = make("dmpo", dataset=DATA).learn(2)
    generator = model.replay_buffer.generator
    state = model_zip.random_state_of(model) | {"device": "cuda", "noise": base64.b64encode(bytes(16)).decode()}
    before = generator.get_state()
    model.learn(2, reset_num_timesteps=False)
    assert not th.equal(generator.get_state(), before)
    check_random_state(state)
    model_zip.set_random_state_of(model, state)
    assert th.equal(generator.get_state(), before)


def test_options_of_other_optimizers_are_refused() -> None:
    model = make("td3_bc", dataset=DATA, policy_kwargs={"net_arch": [8], "optimizer_class": th.optim.Rprop})
    for options in ({"etas": (0.5, 1.3)}, {"etas": (0.5,)}, {"etas": th.tensor([0.5, 1.2])}, {"step_sizes": None}):
        before = dict(model.actor_optimizer.param_groups[0])
        model.actor_optimizer.param_groups[0].update(options)
        with pytest.raises(DamagedFileError, match=f"has the option '{next(iter(options))}'"):
            TD3BC.load(saved(model), device="cpu", trusted_classes=[th.optim.Rprop])
        model.actor_optimizer.param_groups[0].update(before)


def test_what_somebody_adds_is_for_trusted_loading() -> None:
    model: Any = small_model()
    model.note = "mine"
    file = saved(model)
    assert not hasattr(DMPO.load(io.BytesIO(file.getvalue())), "note")
    assert DMPO.load(io.BytesIO(file.getvalue()), trust_pickle=True).note == "mine"  # type: ignore[attr-defined]


def test_episodes_in_zips_written_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have NumPy's numbers as VecMonitor gives them."""
    model = small_model()
    model.ep_info_buffer = deque([{"r": np.float32(1.5), "l": np.int32(3), "ok": np.bool_(True)}], maxlen=5)
    model.ep_success_buffer = deque([np.float32(np.nan)], maxlen=5)
    with monkeypatch.context() as before:
        before.setattr(model_zip, "_plain_row", lambda row: row)
        file = saved(model)
    loaded = DMPO.load(file, device="cpu")
    assert loaded.ep_info_buffer == model.ep_info_buffer and str(loaded.ep_success_buffer) == str(model.ep_success_buffer)


@pytest.mark.parametrize("arguments", [{"verbose": True}, {"normalize_observations": 1}], ids=str)
def test_one_and_true_are_the_same(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    assert getattr(DMPO.load(saved(small_model(**arguments)), device="cpu"), name) == arguments[name]


@pytest.mark.parametrize(
    ("name", "value"), [("ep_info_buffer", [1]), ("_n_updates", -1), ("_last_obs", "here"), ("last_evaluation", {"a": [1]})]
)
def test_what_load_would_refuse_is_not_saved(name: str, value: Any, tmp_path: Path) -> None:
    model = small_model()
    setattr(model, name, value)
    with pytest.raises(TypeError, match=rf"'{name}' cannot be saved \(it is .*Nothing was written"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def double_precision() -> Iterator[None]:
    th.set_default_dtype(th.float64)
    yield
    th.set_default_dtype(th.float32)


@pytest.mark.parametrize("name", ALGOS)
def test_double_precision(name: str, double_precision: None) -> None:
    """Everything works as in single precision, and the other one is told how to read the zip."""
    model = make(name, dataset=DATA).learn(2)
    file = saved(model)
    loaded = ALGOS[name].load(file, device="cpu", dataset=DATA)
    for each in (model, loaded):
        each.learn(2, reset_num_timesteps=False)
    assert_same(loaded.get_parameters(), model.get_parameters())
    state: Any = None
    for observation in DATA.observations[:3]:
        _, state = model.predict(observation, state, deterministic=True)
    th.set_default_dtype(th.float32)
    with pytest.raises(UnsafeFileError, match=r"load them under torch.set_default_dtype\(torch.float64\)"):
        ALGOS[name].load(file, device="cpu")


@pytest.mark.parametrize("name", ALGOS)
def test_the_package_finds_the_class(name: str, tmp_path: Path) -> None:
    make(name, dataset=DATA).save(tmp_path / "model")
    model = sb3_dmpo.load(tmp_path / "model", device="cpu")
    assert type(model) is ALGOS[name] and model._last_good is not None
    other = ALGOS["bc" if name != "bc" else "iql"]
    with pytest.raises(DamagedFileError, match=rf"This is an? {ALGOS[name].__name__} zip: use {ALGOS[name].__name__}\.load"):
        other.load(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("name", OLD_ACTIONS)
def test_zips_of_release_0_1_0(name: str, tmp_path: Path) -> None:
    """They name modules that have moved; what they predict is the same, and from now on they have settings."""
    with zipfile.ZipFile(OLD / f"{name}.zip") as archive:
        assert "settings.json" not in archive.namelist()
    for arguments in ({}, {"trust_pickle": True}):
        model = sb3_dmpo.load(OLD / f"{name}.zip", device="cpu", **arguments)
        assert type(model) is ALGOS[name] and model._n_updates == 3 and model.lr_schedule(0.5) == 0.0005
        model.save(tmp_path / "new.zip")
        for loaded in (model, sb3_dmpo.load(tmp_path / "new.zip", device="cpu")):
            space = loaded.observation_space
            observation: Any = {
                key: np.full(part.shape, 0.25, np.float32) for key, part in getattr(space, "spaces", {}).items()
            }
            action, _ = loaded.predict(observation or np.full(space.shape, 0.25, np.float32), deterministic=True)
            np.testing.assert_allclose(action, OLD_ACTIONS[name], rtol=1e-6)
