"""The decoded copy on disk, and the memory that loading takes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces

from sb3_dmpo.data import DatasetError, Transitions, load_transitions, memory
from sb3_dmpo.data import cache as dataset_cache
from sb3_dmpo.data.minari import MinariSource
from sb3_dmpo.envs.spaces_only import SpacesOnlyEnv
from tests.dataset_helpers import edit_hdf5, edit_metadata, make_dataset, random_episodes
from tests.files.test_atomic_write import exit_code_of

NAME = "tests/mixed-v0"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("SB3_DMPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset_cache, "SETTLE_SECONDS", -1.0)
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the datasets that have been decoded."""
    done: list[str] = []
    original = MinariSource.read

    def read(self: MinariSource, progress_bar: bool | None) -> object:
        done.append(str(self.dataset_id))
        return original(self, progress_bar)

    monkeypatch.setattr(MinariSource, "read", read)
    return done


def entries(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.exists() else []


ARRAYS = ("observations", "next_observations", "actions", "rewards", "terminations", "truncations", "episode_lengths")


def stored(transitions: Transitions) -> dict[str, np.ndarray]:
    """What an entry of the cache holds, by name."""
    table = transitions.table
    arrays = {"table": table.rows.copy(), "breaks": table.breaks}
    return arrays | {name: getattr(transitions, name) for name in ("truncations", "episode_lengths")}


def assert_same(one: Transitions, other: Transitions) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype
    assert one.fingerprint == other.fingerprint and one.dataset_id == other.dataset_id
    assert one.observation_space == other.observation_space and one.action_space == other.action_space


def test_second_load_does_not_decode(cache: Path, reads: list[str]) -> None:
    dataset = make_dataset()
    first, second, third = load_transitions(NAME), load_transitions(NAME), load_transitions(dataset)
    assert reads == [NAME]
    assert_same(first, second)
    assert_same(first, third)
    assert all(getattr(second, name).flags.writeable for name in ARRAYS)
    mapped = np.load(entries(cache)[0] / "table.npy", mmap_mode="r")
    np.testing.assert_array_equal(mapped[: len(first), :3], first.observations)


def test_every_observation_is_stored_once(cache: Path) -> None:
    make_dataset()
    transitions = load_transitions(NAME)
    n, n_episodes = len(transitions), len(transitions.episode_lengths)
    (entry,) = entries(cache)
    assert np.load(entry / "table.npy").shape == (n + n_episodes, 3 + transitions.actions.shape[1] + 2)
    assert sorted(path.name for path in entry.iterdir()) == sorted(
        [*(f"{name}.npy" for name in dataset_cache.ARRAYS), "meta.json"]
    )


def test_an_entry_of_an_earlier_version_is_replaced(cache: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It held every array as it is, under another name."""
    make_dataset()
    with monkeypatch.context() as patch:
        patch.setattr(dataset_cache, "CACHE_VERSION", 1)
        first = load_transitions(NAME)
        (old,) = entries(cache)
        for file in old.glob("*.npy"):
            file.unlink()
        for name in ARRAYS:
            np.save(old / f"{name}.npy", getattr(first, name))
        (old / "meta.json").write_text(json.dumps({"dataset_id": NAME, "fingerprint": first.fingerprint}))
    assert_same(first, load_transitions(NAME))
    assert len(reads) == 2 and old not in entries(cache) and len(entries(cache)) == 1
    # Under the name of today's entry it is not read either
    (entry,) = entries(cache)
    for file in entry.glob("*.npy"):
        file.unlink()
    for name in ARRAYS:
        np.save(entry / f"{name}.npy", getattr(first, name))
    assert_same(first, load_transitions(NAME))
    assert len(reads) == 3


def test_without_cache_nothing_is_written(cache: Path, reads: list[str]) -> None:
    make_dataset()
    load_transitions(NAME, cache=False)
    load_transitions(NAME, cache=False)
    assert len(reads) == 2 and entries(cache) == []


def test_selections_are_not_cached(cache: Path) -> None:
    load_transitions(make_dataset().filter_episodes(lambda episode: len(episode) > 1))
    assert entries(cache) == []


def change_one_number(dataset: minari.MinariDataset) -> None:
    """Same size, same times of modification."""
    path = Path(dataset.storage.data_path) / "main_data.hdf5"
    before = path.stat()
    edit_hdf5(dataset, lambda file: file["episode_1/rewards"].__setitem__(0, 123.0))
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_copy(dataset: minari.MinariDataset) -> None:
    """Same size and times, other file, as ``cp -p`` and ``rsync -t`` leave it."""
    path = Path(dataset.storage.data_path) / "main_data.hdf5"
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    with h5py.File(copy, "r+") as file:
        file["episode_1/rewards"][0] = 123.0
    shutil.copystat(path, copy)
    os.replace(copy, path)


@pytest.mark.parametrize("change", [change_one_number, replace_by_copy])
def test_changed_dataset_never_gets_the_old_copy(cache: Path, reads: list[str], change: object) -> None:
    dataset = make_dataset()
    old = load_transitions(NAME)
    change(dataset)  # type: ignore[operator]
    new = load_transitions(NAME)
    assert len(reads) == 2
    assert old.rewards[1] != 123 and new.rewards[1] == 123
    assert old.fingerprint != new.fingerprint
    assert len(entries(cache)) == 1  # the old state is gone


def test_recorded_again_under_the_same_name(reads: list[str]) -> None:
    make_dataset()
    old = load_transitions(NAME)
    minari.delete_dataset(NAME)
    make_dataset(buffers=random_episodes(seed=1))
    new = load_transitions(NAME)
    assert len(reads) == 2 and old.fingerprint != new.fingerprint


def test_changed_spaces_do_not_get_the_old_copy(reads: list[str]) -> None:
    edit_metadata(make_dataset(), description="other")
    load_transitions(NAME)
    edit_metadata(minari.load_dataset(NAME), description="another")
    load_transitions(NAME)
    assert len(reads) == 2


def test_dataset_that_was_just_written_is_not_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_cache, "SETTLE_SECONDS", 1000.0)
    make_dataset()
    load_transitions(NAME)
    assert entries(cache) == []


def test_dataset_that_changes_while_it_is_read_is_not_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset()
    original = MinariSource.read

    def read(self: MinariSource, progress_bar: bool | None) -> object:
        raw = original(self, progress_bar)
        change_one_number(dataset)
        return raw

    monkeypatch.setattr(MinariSource, "read", read)
    load_transitions(NAME)
    assert entries(cache) == []


@pytest.mark.parametrize("name", [*(f"{name}.npy" for name in dataset_cache.ARRAYS), "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_damaged_copy_is_rebuilt(cache: Path, reads: list[str], name: str, damage: str) -> None:
    make_dataset()
    first = load_transitions(NAME)
    file = entries(cache)[0] / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        content[-3] ^= 1
        file.write_bytes(content[:-5] if damage == "cut" else content)
    assert_same(first, load_transitions(NAME))
    assert len(reads) == 2
    assert_same(first, load_transitions(NAME))
    assert len(reads) == 2


def test_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SB3_DMPO_CACHE", str(tmp_path / "file" / "cache"))
    make_dataset()
    load_transitions(NAME)
    load_transitions(NAME)
    assert len(reads) == 2


def test_failed_write_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset()

    def full_disk(file: str, array: np.ndarray, **_: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(dataset_cache.np, "save", full_disk)
    assert len(load_transitions(NAME)) == 11
    assert entries(cache) == []


def test_nearly_full_disk_is_left_alone(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset()
    monkeypatch.setattr(dataset_cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    load_transitions(NAME)
    assert entries(cache) == []


def test_two_writers(cache: Path, reads: list[str]) -> None:
    make_dataset()
    source = MinariSource.from_id(NAME, download=False)
    first, second = dataset_cache.CacheEntry.of(source), dataset_cache.CacheEntry.of(source)
    transitions = load_transitions(NAME, cache=False)
    arrays = stored(transitions)
    for entry in (first, second):
        assert entry is not None
        entry.store(arrays, transitions.fingerprint)
    assert len(entries(cache)) == 1
    assert_same(transitions, load_transitions(NAME))
    assert len(reads) == 1


@pytest.mark.parametrize("memory_map", [False, True])
def test_writers_do_not_remove_what_others_are_writing(cache: Path, memory_map: bool) -> None:
    make_dataset()
    entry = dataset_cache.CacheEntry.of(MinariSource.from_id(NAME, download=False))
    assert entry is not None
    with entry.new_folder() as folder:
        (folder / "table.npy").touch()
        load_transitions(NAME, memory_map=memory_map)
        load_transitions(NAME, memory_map=memory_map)
        assert sorted(entries(cache)) == sorted([entry.folder, folder]) and list(folder.iterdir())
    assert entries(cache) == [entry.folder]


def test_who_comes_second_uses_the_entry_of_the_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset()
    original, first = MinariSource.read, []

    def read(self: MinariSource, progress_bar: bool | None) -> object:
        raw = original(self, progress_bar)
        if not first:
            first.append(True)
            first[0] = load_transitions(NAME, memory_map=True)
        return raw

    monkeypatch.setattr(MinariSource, "read", read)
    second = load_transitions(NAME, memory_map=True)
    assert_same(first[0], second)
    assert len(entries(cache)) == 1 and Path(second.observations.filename).parent == entries(cache)[0]  # type: ignore[attr-defined]


def test_an_entry_that_goes_while_it_is_published_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset()
    original = dataset_cache.CacheEntry._publish

    def publish(self: dataset_cache.CacheEntry, folder: Path) -> None:
        original(self, folder)
        shutil.rmtree(cache)

    monkeypatch.setattr(dataset_cache.CacheEntry, "_publish", publish)
    transitions = load_transitions(NAME, memory_map=True)
    assert not cache.exists() and np.isfinite(transitions.observations).all()


@pytest.mark.slow
def test_processes_with_an_empty_cache(cache: Path, tmp_path: Path) -> None:
    """Mapped and plain at the same moment: all get the same data."""
    make_dataset()
    code = (
        "import sys, time, os; from pathlib import Path; from sb3_dmpo.data import load_transitions, cache\n"
        "cache.SETTLE_SECONDS = -1.0\n"
        "Path(sys.argv[1], 'ready' + sys.argv[2]).touch()\n"
        "while not Path(sys.argv[1], 'go').exists(): time.sleep(0.001)\n"
        "print(load_transitions(sys.argv[3], memory_map=sys.argv[2] != '0').fingerprint)"
    )
    commands = [[sys.executable, "-c", code, str(tmp_path), str(i), NAME] for i in range(3)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]
    while len(list(tmp_path.glob("ready*"))) < 3 and all(process.poll() is None for process in processes):
        time.sleep(0.01)
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=120) for process in processes]
    assert len({output for output, _ in outputs}) == 1 and outputs[0][0].strip(), outputs
    assert len(entries(cache)) == 1


def test_the_same_file_in_the_spaces_of_two_environments(cache: Path, tmp_path: Path) -> None:
    """Each keeps its entry: two processes that take turns do not remove the other's."""
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = np.zeros((20, 3)), np.zeros((20, 2))
        file["rewards"], file["terminals"], file["timeouts"] = np.zeros(20), np.zeros(20, bool), np.arange(20) % 5 == 4
    box = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    env = SpacesOnlyEnv(box, spaces.Box(-2.0, 2.0, (2,), np.float32))
    load_transitions(path)
    load_transitions(path, env=env)
    assert len(entries(cache)) == 2


def test_kills_leave_nothing_for_long(cache: Path) -> None:
    make_dataset()
    entry = dataset_cache.CacheEntry.of(MinariSource.from_id(NAME, download=False))
    assert entry is not None

    def killed() -> None:
        with entry.new_folder() as folder:
            (folder / "half.npy").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code_of(killed) == -signal.SIGKILL
    assert len(entries(cache)) == 1
    load_transitions(NAME)
    assert [path.name.startswith(".") for path in entries(cache)] == [False]


def test_others_may_read_an_entry(cache: Path) -> None:
    make_dataset()
    load_transitions(NAME)
    (entry,) = entries(cache)
    assert {path.stat().st_mode & 0o055 for path in (entry, *entry.iterdir())} == {0o055, 0o044}


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("value", [np.nan, 0.25])
def test_planted_entries_are_not_believed(
    cache: Path, value: float, memory_map: bool, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where everybody may write, an entry with right checksums may be anybody's; NaN is believed nowhere."""
    make_dataset()
    right = load_transitions(NAME)
    (entry,) = entries(cache)
    arrays = stored(right)
    arrays["table"][:, :3] = value
    np.save(entry / "table.npy", arrays["table"])
    own = dataset_cache.CacheEntry.of(MinariSource.from_id(NAME, download=False))
    assert own is not None
    meta = {"fingerprint": "0" * 64, "checksum": own._checksum(arrays, "0" * 64)}
    (entry / "meta.json").write_text(json.dumps(meta))
    if np.isfinite(value):
        cache.chmod(0o1777)
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        original = Path.lstat

        def lstat(self: Path) -> os.stat_result:
            found = original(self)
            is_mine = not self.name.endswith("-12345") and self.parent == cache
            return os.stat_result((*found[:4], 54321 if is_mine else 12345, *found[5:]))

        monkeypatch.setattr(Path, "lstat", lstat)
    for _ in range(2):
        assert_same(right, load_transitions(NAME, memory_map=memory_map))
    assert len(reads) == 2


def test_folder_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dataset_cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SB3_DMPO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert dataset_cache.cache_folder() == tmp_path / "xdg" / "sb3_dmpo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dataset_cache.cache_folder() == tmp_path / ".cache" / "sb3_dmpo"
    for name in ("SB3_DMPO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # not the working directory
    assert dataset_cache.cache_folder() == tmp_path / ".cache" / "sb3_dmpo"


def test_copy_larger_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset()
    load_transitions(NAME)
    monkeypatch.setattr(dataset_cache, "available_memory", lambda: 10)
    with pytest.raises(DatasetError, match=r"only 10 bytes are left"):
        load_transitions(NAME)


# Memory -------------------------------------------------------------------------------------------------------------


def peak_over_size(path: str | Path) -> float:
    tracemalloc.start()
    try:
        transitions = load_transitions(path, progress_bar=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    arrays = (transitions.observations, transitions.next_observations, transitions.actions, transitions.rewards)
    return peak / sum(array.nbytes for array in arrays)


def test_peak_memory_of_minari(reads: list[str]) -> None:
    load_transitions(make_dataset("tests/warm-v0"))  # imports
    space = spaces.Box(-np.inf, np.inf, (20,), np.float64)
    make_dataset(observation_space=space, buffers=random_episodes(space, episodes=((1000, "truncated"),) * 50))
    assert peak_over_size(NAME) < 1.2
    assert peak_over_size(NAME) < 1.2
    assert reads == ["tests/warm-v0", NAME]


@pytest.mark.parametrize("has_next", [False, True])
def test_peak_memory_of_d4rl(tmp_path: Path, has_next: bool) -> None:
    n = 200_000
    with h5py.File(tmp_path / "large.hdf5", "w") as file:
        file["observations"] = np.zeros((n, 8))
        file["actions"] = np.zeros((n, 2), np.float32)
        file["rewards"] = np.zeros(n)
        file["terminals"] = np.zeros(n, bool)
        file["timeouts"] = np.arange(n) % 1000 == 999
        if has_next:
            file["next_observations"] = np.zeros((n, 8))
    assert peak_over_size(tmp_path / "large.hdf5") < 1.3


def test_available_memory_is_that_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, usage = tmp_path / "limit", tmp_path / "usage"
    monkeypatch.setattr(memory, "_CGROUPS", ((limit, usage),))
    machine = memory.available_memory()
    assert machine is not None and machine > 1_000_000
    limit.write_text("max\n")
    usage.write_text("1000\n")
    assert memory.available_memory() > 1_000_000  # type: ignore[operator]
    limit.write_text("5000\n")
    assert memory.available_memory() == 4000
    monkeypatch.setattr(memory, "_CGROUPS", ())
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "nothing")
    assert memory.available_memory() is not None
    monkeypatch.setattr(memory.os, "sysconf", lambda _: (_ for _ in ()).throw(ValueError()))
    assert memory.available_memory() is None


def test_sizes_for_people() -> None:
    assert [memory.format_bytes(size) for size in (12, 2048, 3.5 * 2**20, 2**30, 2**41)] == [
        "12 bytes",
        "2.0 KiB",
        "3.5 MiB",
        "1.0 GiB",
        "2.0 TiB",
    ]
