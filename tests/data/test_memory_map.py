"""A memory-mapped dataset gives the numbers of one in memory, and stays on disk."""

import errno
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from sb3_dmpo import ALGOS
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.read_ahead import ReadAhead
from sb3_dmpo.data import DatasetError, load_transitions
from sb3_dmpo.data import cache as dataset_cache
from sb3_dmpo.data import loading as datasets
from sb3_dmpo.data import transitions as dataset_types
from sb3_dmpo.data.transitions import new_mapped_array
from sb3_dmpo.decision_transformer.buffers import SequenceReplayBuffer
from tests.contract import SMALL
from tests.data.test_properties import episode_lists, in_pytest
from tests.dataset_helpers import ACTIONS, make_dataset, random_episodes
from tests.doors import train
from tests.toy_data import make_replay_buffer

SPACE = spaces.Box(-np.inf, np.inf, (3,), np.float64)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in which also what has just been written may go."""
    monkeypatch.setenv(dataset_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setattr(dataset_cache, "SETTLE_SECONDS", -1e9)
    return tmp_path / "cache"


def recorded(episodes: Any = ((40, "truncated"), (3, "terminated"), (25, "neither"))) -> str:
    buffers = random_episodes(SPACE, ACTIONS, tuple(episodes), 0)
    return str(make_dataset(observation_space=SPACE, buffers=buffers).spec.dataset_id)


def assert_equal_tuples(one: Any, other: Any) -> None:
    for name in one._fields:
        first, second = getattr(one, name), getattr(other, name)
        assert th.equal(first, second) if isinstance(first, th.Tensor) else first == second, name


def transforms(buffer_type: Any, dataset: str, **options: Any) -> tuple[Any, Any]:
    return tuple(
        buffer_type.from_transitions(load_transitions(dataset, memory_map=memory_map), **options)
        for memory_map in (False, True)
    )


@in_pytest
@given(episode_lists, st.integers(0, 2**16), st.sampled_from([1.0, 0.5]), st.sampled_from([1.0, 2.0, "standardize"]))
def test_any_dataset_gives_the_same_minibatches(
    tmp_path_factory: pytest.TempPathFactory, episodes: Any, seed: int, action_clip: float, reward_scale: Any
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        dataset = recorded(episodes)
        if reward_scale == "standardize" and sum(length for length, _ in episodes) == 1:
            reward_scale = 1.0
        options = {"seed": seed, "action_clip": action_clip, "reward_scale": reward_scale}
        in_memory, mapped = transforms(SequenceReplayBuffer, dataset, **options)
    assert mapped.memory_map and not in_memory.memory_map
    assert mapped.fingerprint == in_memory.fingerprint
    assert th.equal(mapped.observation_mean, in_memory.observation_mean)
    assert th.equal(mapped.observation_std, in_memory.observation_std)
    for _ in range(3):
        assert_equal_tuples(mapped.sample(7), in_memory.sample(7))
        assert_equal_tuples(mapped.sample_sequences(4, 3), in_memory.sample_sequences(4, 3))


def test_observations_and_actions_stay_on_disk(cache: Path) -> None:
    dataset = recorded()
    transitions = load_transitions(dataset, memory_map=True)
    (entry,) = cache.iterdir()
    for name in ("observations", "actions"):
        array = getattr(transitions, name)
        assert isinstance(array, np.memmap) and Path(str(array.filename)) == entry / "table.npy"
        assert not array.flags.writeable
    buffer = OfflineReplayBuffer.from_transitions(transitions, action_clip=0.5)
    assert buffer.observations.data_ptr() == transitions.observations.ctypes.data
    assert buffer.actions.data_ptr() == transitions.actions.ctypes.data
    np.testing.assert_array_equal(transitions.next_observations, load_transitions(dataset).next_observations)


def test_the_copy_on_disk_serves_both_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = recorded()
    first = load_transitions(dataset, memory_map=True)
    monkeypatch.setattr("sb3_dmpo.data.minari.MinariSource.read", None)
    for memory_map in (True, False):
        again = load_transitions(dataset, memory_map=memory_map)
        assert again.fingerprint == first.fingerprint
        np.testing.assert_array_equal(again.observations, first.observations)


def test_d4rl_files_can_be_mapped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        file["observations"], file["actions"] = rng.normal(size=(30, 3)), rng.uniform(-1, 1, (30, 2))
        file["rewards"], file["terminals"] = rng.normal(size=30), np.zeros(30, bool)
        file["timeouts"] = np.arange(30) % 10 == 9
    assert_equal_tuples(*(buffer.sample(9) for buffer in transforms(OfflineReplayBuffer, str(tmp_path / "data.hdf5"), seed=0)))


def test_a_dataset_larger_than_memory_can_be_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = recorded()
    for module in (dataset_types, dataset_cache):
        monkeypatch.setattr(module, "available_memory", lambda: 100)
    with pytest.raises(DatasetError, match="of memory"):
        load_transitions(dataset)
    assert len(load_transitions(dataset, memory_map=True)) == 68
    # Also from the copy
    assert len(load_transitions(dataset, memory_map=True)) == 68


def test_a_disk_without_room(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    dataset = recorded()
    monkeypatch.setattr(dataset_types.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 100}))
    with pytest.raises(DatasetError, match=r"needs .* in .*cache, only 100 bytes"):
        load_transitions(dataset, memory_map=True)
    assert list(cache.iterdir()) == []


def test_a_disk_that_fills_while_it_is_decoded(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Its place is taken before anything is written to the map: a write without room would end the process (SIGBUS)."""

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    dataset = recorded()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DatasetError, match=r"(?s)it needs .* in .*cache, .*No space left.*SB3_DMPO_CACHE"):
        load_transitions(dataset, memory_map=True)
    assert not list(cache.iterdir())


def test_the_place_on_the_disk_is_taken_at_once(tmp_path: Path) -> None:
    array = new_mapped_array(tmp_path / "x.npy", (1000, 1000), np.float32)
    assert (tmp_path / "x.npy").stat().st_blocks * 512 >= array.nbytes


def test_a_dataset_that_is_not_in_files() -> None:
    for dataset in (make_replay_buffer(), load_transitions(make_replay_buffer())):
        with pytest.raises(DatasetError, match="only a whole dataset in files"):
            load_transitions(dataset, memory_map=True)


def test_a_dataset_that_was_just_written_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, waited = recorded(), []
    monkeypatch.setattr(dataset_cache, "SETTLE_SECONDS", 1e9)
    monkeypatch.setattr(datasets.time, "sleep", waited.append)
    load_transitions(dataset, memory_map=True)
    assert waited == [datasets.SETTLE_SECONDS]


def test_a_damaged_file_leaves_nothing(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    dataset = recorded()

    def fail(*arguments: Any) -> None:
        raise DatasetError("damaged")

    monkeypatch.setattr(datasets, "validate", fail)
    with pytest.raises(DatasetError, match="damaged"):
        load_transitions(dataset, memory_map=True)
    assert list(cache.iterdir()) == []


def test_what_a_mapped_buffer_cannot_do() -> None:
    dataset = recorded()
    transitions = load_transitions(dataset, memory_map=True)
    with pytest.raises(ValueError, match="Nothing can be added"):
        OfflineReplayBuffer.from_transitions(transitions, extra_capacity=5)
    buffer = OfflineReplayBuffer.from_transitions(transitions)
    with pytest.raises(ValueError, match="Nothing can be added"):
        buffer.reserve(5)
    with pytest.raises(ValueError, match="Nothing can be added"):
        buffer.restore_added(buffer.added_arrays())
    with pytest.raises(ValueError, match="not pickled"):
        pickle.dumps(buffer)


@pytest.mark.parametrize("name", ["bc", "iql", "lapo", "rebrac", "decision_transformer", "maple"])
def test_training_ends_with_the_same_weights(name: str, tmp_path: Path) -> None:
    """Also when a run in memory goes on mapped: the data are the same, and so is their hash."""
    dataset = recorded()
    small: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}}
    if name == "decision_transformer":
        small = {"embed_dim": 8, "context_length": 4}

    if name == "maple":
        small |= SMALL["maple"]

    def model(memory_map: bool) -> Any:
        return ALGOS[name]("MlpPolicy", dataset=dataset, batch_size=8, seed=0, memory_map=memory_map, device="cpu", **small)

    in_memory = model(False).learn(2)
    in_memory.save(tmp_path / "half.zip")
    in_memory.learn(2, reset_num_timesteps=False)
    mapped = model(True).learn(2)
    mapped.learn(2, reset_num_timesteps=False)
    resumed = ALGOS[name].load(tmp_path / "half.zip", dataset=dataset, memory_map=True, device="cpu")
    resumed.learn(2, reset_num_timesteps=False)
    assert mapped.replay_buffer.memory_map and resumed.replay_buffer.memory_map
    for key, value in in_memory.policy.state_dict().items():
        assert th.equal(value, mapped.policy.state_dict()[key]), key
        assert th.equal(value, resumed.policy.state_dict()[key]), key


def test_from_the_command_line(tmp_path: Path, isolated_data_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(isolated_data_folders))  # where the toy may be already
    used: list[bool] = []
    original = OfflineReplayBuffer.sample

    def sample(self: OfflineReplayBuffer, *arguments: Any) -> Any:
        used.append(self.memory_map)
        return original(self, *arguments)

    monkeypatch.setattr(OfflineReplayBuffer, "sample", sample)
    options = ["--algo", "bc", "--device", "cpu", "--seed", "0", "-n", "2", "--eval-freq", "-1", "-f", str(tmp_path / "logs")]
    assert train([*options, "--memory-map"]) == 0
    assert used == [True, True]
    assert (tmp_path / "logs" / "bc" / "TwoGoals-v0_1" / "two_goals.png").stat().st_size > 0


# Reading ahead ---------------------------------------------------------------------------------------------------


def test_the_next_minibatch_is_read_while_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = OfflineReplayBuffer.from_transitions(load_transitions(recorded(), memory_map=True), seed=0)
    assert mapped._ahead is None  # there is no GPU
    mapped._ahead = ReadAhead()
    threads: list[str] = []
    select = mapped._select

    def noted(*rows: th.Tensor) -> th.Tensor:
        threads.append(threading.current_thread().name)
        return select(*rows)

    monkeypatch.setattr(mapped, "_select", noted)
    for _ in range(4):
        mapped.sample(7)
    mapped._ahead._next.result.result()
    assert threads[0] == threading.main_thread().name and len(threads) == 5
    assert all(name.startswith("read-ahead") for name in threads[1:])


def test_what_was_read_ahead_counts_for_nothing_but_time() -> None:
    """Other sizes, kinds and states of the generator than expected give what they give without reading ahead."""
    dataset = recorded()
    in_memory, mapped = transforms(SequenceReplayBuffer, dataset, seed=3)
    mapped._ahead = ReadAhead()
    state = mapped.generator.get_state()
    for turn in range(3):
        for buffer in (in_memory, mapped):
            buffer.generator.set_state(state) if turn == 1 else None
        for size in (5, 5, 9):
            assert_equal_tuples(mapped.sample(size), in_memory.sample(size))
            assert th.equal(mapped.generator.get_state(), in_memory.generator.get_state())
        assert_equal_tuples(mapped.sample_steps(5, 3, 0.9, True), in_memory.sample_steps(5, 3, 0.9, True))
        assert_equal_tuples(mapped.sample_steps(5, 2, 0.9, False), in_memory.sample_steps(5, 2, 0.9, False))
        assert_equal_tuples(mapped.sample_sequences(5, 3), in_memory.sample_sequences(5, 3))
        twin, other = mapped.twin(4), in_memory.twin(4)
        assert_equal_tuples(twin.sample(5), other.sample(5))


def test_a_forked_process_reads_itself() -> None:
    mapped = OfflineReplayBuffer.from_transitions(load_transitions(recorded(), memory_map=True), seed=0)
    mapped._ahead = ReadAhead()
    for _ in range(2):
        mapped.sample(7)
    mapped._ahead._process = 0  # as a process sees it that has been forked off
    executor = mapped._ahead._executor
    mapped.sample(7)
    assert mapped._ahead._executor is not executor and mapped._ahead._process == os.getpid()
