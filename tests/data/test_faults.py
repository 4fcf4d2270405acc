"""Files that cannot be read though nothing is wrong with them, and flags and numbers that are none."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_dmpo import TD3BC
from sb3_dmpo.data import DatasetError, load_transitions
from sb3_dmpo.data import d4rl as dataset_d4rl
from sb3_dmpo.data import minari as dataset_minari
from sb3_dmpo.data.faults import reading_fault
from tests.data.test_dataset_sources import write_d4rl
from tests.dataset_helpers import edit_hdf5, edit_metadata, make_dataset
from tests.doors import describe

SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "batch_size": 4, "seed": 0, "device": "cpu"}


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Minari root and a cache for each test alone."""
    for variable, name in (("MINARI_DATASETS_PATH", "minari"), ("SB3_DMPO_CACHE", "cache")):
        monkeypatch.setenv(variable, str(tmp_path / name))
        (tmp_path / name).mkdir()


def data_file() -> Path:
    return Path(make_dataset("tests/mixed-v0").storage.data_path) / "main_data.hdf5"


def refusal(dataset: Any) -> str:
    with pytest.raises(DatasetError) as error:
        load_transitions(dataset)
    return str(error.value)


# Deletion is for damage -------------------------------------------------------------------------------------------------


@pytest.fixture
def lock() -> Iterator[Callable[[Path], None]]:
    """Lets another process hold files open for writing, as one that records does."""
    processes = []

    def hold(path: Path) -> None:
        code = f"import h5py, sys; file = h5py.File({str(path)!r}, 'a'); print('open', flush=True); sys.stdin.read()"
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline()
        processes.append(process)

    yield hold
    for process in processes:
        process.communicate()


def test_a_file_that_somebody_writes_is_not_called_damaged(tmp_path: Path, lock: Callable[[Path], None]) -> None:
    path, d4rl = data_file(), write_d4rl(tmp_path)
    lock(path)
    lock(d4rl)
    for dataset in ("tests/mixed-v0", d4rl):
        message = refusal(dataset)
        assert "another process has it open for writing" in message and "Wait" in message
        assert "elete" not in message and "ownload" not in message


@pytest.mark.parametrize("what", ["data", "metadata.json", "folder", "d4rl", "npz", "pickle", "shards", "data folder"])
def test_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    path = {"data": data_file, "d4rl": lambda: write_d4rl(tmp_path)}.get(what, data_file)()
    closed = {"metadata.json": path.with_name("metadata.json"), "folder": path.parent}.get(what, path)
    if what in ("npz", "pickle"):
        closed = path = tmp_path / f"data.{'npz' if what == 'npz' else 'pkl'}"
        path.write_bytes(b"PK\x03\x04")
    if what in ("shards", "data folder"):
        # It can be listed, but nothing in it can be opened.
        closed = path = tmp_path / "shards"
        path.mkdir()
        if what == "shards":
            np.savez(path / "a-0.npz", observations=np.zeros(2))
        else:
            closed = path / "data"
            closed.mkdir()
    dataset = "tests/mixed-v0" if path.name == "main_data.hdf5" else path
    # Who runs the tests may be allowed everything
    own_open, own_stat, own_file = open, os.stat, h5py.File

    def is_closed(name: Any) -> bool:
        return isinstance(name, str | os.PathLike) and Path(name).is_relative_to(closed)

    def refuse(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(name: Any, *args: Any, **kwargs: Any) -> Any:
            if is_closed(name) and not (real is own_stat and Path(name) == closed):
                raise PermissionError(errno.EACCES, "Permission denied", str(name))
            return real(name, *args, **kwargs)

        return call

    monkeypatch.setattr("builtins.open", refuse(own_open))
    monkeypatch.setattr("io.open", refuse(own_open))
    monkeypatch.setattr("os.stat", refuse(own_stat))
    monkeypatch.setattr(h5py, "File", refuse(own_file))
    message = refusal(dataset)
    assert "you may not read" in message and "permission" in message and str(closed) in message
    assert "elete" not in message and "ownload" not in message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("pyarrow is not installed. Please install it using `pip install minari[arrow]`"), r"package.*pyarrow"),
        (OSError(errno.EIO, "Input/output error"), r"the system says 'Input/output error'.*try again"),
        (OSError(errno.EMFILE, "Too many open files"), r"Too many open files"),
        (OSError(errno.ENOLCK, "unable to lock file, errno = 37"), r"knows no locks.*HDF5_USE_FILE_LOCKING=FALSE"),
        (OSError("file is already open for write (may use <h5clear file> to clear flags)"), r"not closed.*h5clear"),
        (OSError("Can't read data (required filter 'zstd' is not registered)"), r"filter.*hdf5plugin"),
        (AttributeError("no such thing"), r"AttributeError: no such thing.*may be whole"),
    ],
)
def test_causes_outside_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, message: str) -> None:
    data_file()

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(dataset_minari, "_open_reader", fail)
    for fault in (
        refusal("tests/mixed-v0"),
        str(reading_fault("Dataset", "it cannot be opened", error, tmp_path, "Delete it")),
    ):
        assert "elete" not in fault
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(fault)


def test_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    path = data_file()
    path.unlink()
    path.symlink_to(tmp_path / "disk" / "data.hdf5")
    message = refusal("tests/mixed-v0")
    assert "is a link to" in message and "elete" not in message


def test_lack_of_memory_is_no_fault_of_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_file()

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(dataset_minari.Hdf5EpisodeReader, "read", fail)
    with pytest.raises(MemoryError, match="no room"):
        load_transitions("tests/mixed-v0", cache=False)
    monkeypatch.setattr(dataset_d4rl, "_arrays", fail)
    with pytest.raises(MemoryError, match="no room"):
        load_transitions(write_d4rl(tmp_path), cache=False)


def test_sets_of_an_old_minari_say_so() -> None:
    path = data_file()
    with h5py.File(path, "r+") as file:
        file.attrs["minari_version"] = "0.4.1"
    path.with_name("metadata.json").unlink()
    message = refusal("tests/mixed-v0")
    assert "no metadata.json (Minari 0.4.1 wrote it)" in message and "newer version" in message and "elete" not in message


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("0.3.0", r"written by Minari 0\.3\.0, the installed one reads"),
        ({}, "written by Minari {}"),
        (None, "does not say which"),
    ],
)
def test_versions_of_minari(version: Any, message: str) -> None:
    edit_metadata(make_dataset("tests/mixed-v0"), minari_version=version)
    with pytest.raises(DatasetError, match=message):
        load_transitions("tests/mixed-v0")


# Flags and numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [10**12, 10**20, 2 * 10**7])
def test_episodes_that_are_only_announced_cost_nothing(number: int) -> None:
    edit_metadata(make_dataset("tests/mixed-v0"), total_episodes=number)
    with pytest.raises(DatasetError, match=r"episode 5, field 'rewards': it cannot be read"):
        load_transitions("tests/mixed-v0")


@pytest.mark.parametrize("number", [True, -1, 1.5, "3"])
def test_numbers_of_episodes_that_are_none(number: Any) -> None:
    edit_metadata(make_dataset("tests/mixed-v0"), total_episodes=number)
    with pytest.raises(DatasetError, match=r"announces .* episodes"):
        load_transitions("tests/mixed-v0")


def test_metadata_nested_without_end() -> None:
    Path(data_file()).with_name("metadata.json").write_text("[" * 10**5)
    with pytest.raises(DatasetError, match=r"metadata\.json cannot be read \(RecursionError"):
        load_transitions("tests/mixed-v0")


def test_fractional_flags_and_complex_rewards_of_minari() -> None:
    dataset = make_dataset("tests/mixed-v0")

    def replace(name: str, values: Any) -> None:
        edit_hdf5(dataset, lambda file: (file.pop(name), file.__setitem__(name, values)))

    replace("episode_1/terminations", np.array([0.0, 0.5, 1.0]))
    with pytest.raises(DatasetError, match=r"episode 1, step 1, field 'terminations': it is 0\.5, neither 0 nor 1"):
        load_transitions("tests/mixed-v0")
    replace("episode_1/terminations", np.array([0.0, 0.0, 1.0]))
    replace("episode_1/rewards", np.ones(3, complex))
    with pytest.raises(DatasetError, match=r"episode 1, field 'rewards': it holds complex128, no real numbers"):
        load_transitions("tests/mixed-v0")


def make_buffer(**changes: Any) -> ReplayBuffer:
    buffer = ReplayBuffer(20, spaces.Box(-1, 1, (3,)), spaces.Box(-2, 2, (2,)), device="cpu")
    for step in range(20):
        row = np.zeros((1, 3))
        buffer.add(row, row, np.zeros((1, 2)), np.ones(1), np.array([step % 5 == 4]), [{}])
    for name, value in changes.items():
        setattr(buffer, name, value)
    return buffer


def column(row: int, value: float) -> np.ndarray[Any, Any]:
    values = np.zeros((20, 1), np.float32)
    values[row] = value
    return values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dones": column(4, np.nan)}, r"step 4, field 'dones': it is nan"),
        ({"dones": column(4, 0.5)}, r"step 4, field 'dones': it is 0\.5"),
        ({"timeouts": column(9, np.nan)}, r"step 9, field 'timeouts': it is nan"),
        ({"timeouts": column(3, 1)}, r"step 3, field 'timeouts': it is 1, but the episode goes on"),
        ({"rewards": np.ones((20, 1), complex)}, r"field 'rewards': it holds complex"),
        ({"rewards": np.full((20, 1), "a")}, r"field 'rewards': it holds <U1"),
        ({"rewards": np.zeros((10, 1))}, r"field 'rewards': it has the shape \(10, 1\)"),
        ({"rewards": np.zeros((20, 1, 2))}, r"field 'rewards': it has the shape \(20, 1, 2\)"),
        ({"actions": None}, r"field 'actions': it is a NoneType"),
        ({"observations": [1, 2]}, r"field 'observations': it is a list"),
        ({"pos": 500, "full": False}, r"field 'pos': it is at row 500 of 20"),
        ({"pos": -3}, r"its sizes are"),
        ({"n_envs": 0}, r"field 'observations': it has the shape"),
    ],
)
def test_contradictory_buffers_in_memory(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=r"^The replay buffer.*" + message):
        load_transitions(make_buffer(**changes))


# Advice -----------------------------------------------------------------------------------------------------------------


def record(make: Callable[[], gym.Env[Any, Any]], name: str, scale: float = 2.0, **more: Any) -> None:
    env, rng = make(), np.random.default_rng(0)
    observations, actions, rewards = [env.reset(seed=0)[0]], [], []
    for _ in range(20):
        actions.append(rng.normal(0, scale, 1).astype(np.float32))
        observation, reward, *_ = env.step(actions[-1])
        observations.append(observation)
        rewards.append(float(reward))
    ends = np.arange(20) == 19
    episode = EpisodeBuffer(observations=np.array(observations), actions=np.array(actions), rewards=rewards,
                            terminations=ends & False, truncations=ends)  # fmt: skip
    minari.create_dataset_from_buffers(name, [episode], env=env, **more)


@pytest.mark.filterwarnings("ignore")
def test_actions_that_the_recorded_environment_has_clipped_are_clipped_here() -> None:
    record(lambda: gym.wrappers.ClipAction(gym.make("Pendulum-v1")), "tests/clip-v0")
    with pytest.warns(UserWarning, match=r"of 20 actions lay outside the bounds, by up to .* as ClipAction did"):
        data = load_transitions("tests/clip-v0")
    assert data.action_space == spaces.Box(-2, 2, (1,)) and np.abs(data.actions).max() == 1
    assert TD3BC(dataset="tests/clip-v0", **SMALL).learn(1).action_space == data.action_space


@pytest.mark.filterwarnings("ignore")
def test_bounds_of_the_environment_hold_where_none_were_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(lambda: gym.make("Pendulum-v1"), "tests/free-v0", action_space=spaces.Box(-np.inf, np.inf, (1,), np.float32))
    message = refusal("tests/free-v0")
    assert "unbounded" in message and "env=" in message and "clip_actions=True" in message and "wrapper" not in message
    pendulum = gym.make("Pendulum-v1")
    assert load_transitions("tests/free-v0", env=pendulum, clip_actions=True).action_space == pendulum.action_space
    TD3BC("MlpPolicy", pendulum, dataset="tests/free-v0", clip_actions=True, **SMALL).learn(1)
    assert describe(["tests/free-v0", "--clip-actions", "--figure", str(tmp_path / "free.png")]) == 2
    assert "--env" in capsys.readouterr().err
    assert describe(["tests/free-v0", "--clip-actions", "--env", "Pendulum-v1", "--figure", str(tmp_path / "free.png")]) == 0
    assert "each from -2 to 2" in capsys.readouterr().out
    assert load_transitions(minari.load_dataset("tests/free-v0"), env=pendulum, clip_actions=True).actions.max() == 1


UNUSABLE = {
    "multibinary": (spaces.MultiBinary(3), spaces.Box(-1, 1, (2,))),
    "discrete": (spaces.Dict(a=spaces.Box(-1, 1, (2,)), phase=spaces.Discrete(3)), spaces.Box(-1, 1, (2,))),
    "flat actions": (spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2, 2))),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_who_has_recorded_data_is_told_about_arrays(name: str) -> None:
    observation_space, action_space = UNUSABLE[name]
    steps = 4
    stack = [observation_space.sample() for _ in range(steps + 1)]
    is_dict = isinstance(observation_space, spaces.Dict)
    observations = {key: np.stack([row[key] for row in stack]) for key in stack[0]} if is_dict else np.stack(stack)
    ends = np.arange(steps) == steps - 1
    actions = np.stack([action_space.sample() for _ in range(steps)])
    episode = EpisodeBuffer(observations=observations, actions=actions, rewards=np.ones(steps), terminations=ends,
                            truncations=ends & False)  # fmt: skip
    minari.create_dataset_from_buffers(
        "tests/kind-v0", [episode], observation_space=observation_space, action_space=action_space
    )
    message = refusal("tests/kind-v0")
    assert "wrapper" not in message and "dataset=dict(" in message
    # What it advises, done
    if is_dict:
        phase = np.eye(3, dtype=np.float32)[observations["phase"]]
        observations = {"a": observations["a"], "phase": phase}
    arrays = {
        "observations": {key: values[:-1] for key, values in observations.items()} if is_dict else observations[:-1],
        "actions": actions.reshape(len(actions), -1),
        "rewards": np.ones(steps),
        "terminals": ends,
        "timeouts": ends & False,
    }
    assert len(load_transitions(arrays)) == steps


def test_advice_of_single_values_is_that_of_the_format(tmp_path: Path) -> None:
    dataset = make_dataset("tests/mixed-v0")
    edit_hdf5(dataset, lambda file: file["episode_1/rewards"].__setitem__(1, np.nan))
    assert "filter_episodes(lambda episode: episode.id != ...)" in refusal("tests/mixed-v0")
    kept = minari.load_dataset("tests/mixed-v0").filter_episodes(lambda episode: episode.id != 1)
    assert np.isfinite(load_transitions(kept).rewards).all()
    rewards = np.zeros(9)
    rewards[1] = np.nan
    assert "filter_episodes" not in refusal(write_d4rl(tmp_path, rewards=rewards))
