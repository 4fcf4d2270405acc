"""Downloads through a local stand-in for Minari's remote, and environments rebuilt from records."""

import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import pytest
from gymnasium import spaces
from minari.dataset.minari_storage import MinariStorage
from minari.storage import remotes
from minari.storage.remotes.cloud_storage import CloudStorage

from sb3_dmpo.data import DatasetError, load_transitions, recover_environment
from sb3_dmpo.data.minari_write import write_new_dataset
from sb3_dmpo.files.temporary import SUFFIX
from tests.dataset_helpers import ACTIONS, BOX, edit_metadata, make_dataset, random_episodes
from tests.files.test_atomic_write import exit_code_of

NAME = "tests/mixed-v0"


class NetworkDownError(Exception):
    """A remote's library has errors of its own."""


class FolderStorage(CloudStorage):
    """Serves what another Minari root holds; the name of the remote says what goes wrong."""

    source: Path

    def __init__(self, name: str, token: str | None = None) -> None:
        self.name = name
        if name == "offline":
            raise NetworkDownError("[Errno -2] Name or service not known\nand a long tail of details")

    def list_datasets(self, prefix: str | None = None) -> Iterable[str]:
        ids = [path.parent.parent.relative_to(self.source).as_posix() for path in self.source.rglob("metadata.json")]
        return [name for name in ids if name.startswith(prefix or "")]

    def get_dataset_metadata(self, dataset_id: str) -> dict[str, Any]:
        metadata: dict[str, Any] = json.loads((self.source / dataset_id / "data" / "metadata.json").read_text())
        return metadata

    def download_dataset(self, dataset_id: str, path: Path) -> None:
        target = path / dataset_id / "data"
        target.mkdir(parents=True)
        for file in sorted((self.source / dataset_id / "data").iterdir(), reverse=True):
            content = file.read_bytes()
            cut = self.name == "cuts" and file.suffix == ".hdf5"
            (target / file.name).write_bytes(content[: len(content) // 2] if cut else content)
            if self.name == "breaks":
                raise NetworkDownError("connection lost")
            if self.name == "interrupted":
                raise KeyboardInterrupt
            if self.name == "incomplete":
                return

    def list_namespaces(self) -> Iterable[str]:
        return ["tests"]

    def download_namespace_metadata(self, namespace: str, path: Path) -> None:
        (path / namespace).mkdir(parents=True, exist_ok=True)
        (path / namespace / "namespace_metadata.json").write_text('{"description": "remote"}')

    def upload_dataset(self, dataset_id: str) -> None:
        raise AssertionError

    def upload_namespace(self, namespace: str) -> None:
        raise AssertionError


@pytest.fixture(autouse=True)
def local_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local root, and a remote that holds ``tests/mixed-v0``."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "remote"))
    make_dataset(NAME)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "local"))
    monkeypatch.setenv("SB3_DMPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(FolderStorage, "source", tmp_path / "remote", raising=False)
    monkeypatch.setitem(remotes._registry, "folder", lambda: FolderStorage)
    monkeypatch.setenv("MINARI_REMOTE", "folder://fine")
    return tmp_path / "local"


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_download(local_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transitions = load_transitions(NAME, download=True)
    assert len(transitions) == 11
    assert capsys.readouterr().out == ""
    assert files(local_root) == [
        "tests/mixed-v0/data/main_data.hdf5",
        "tests/mixed-v0/data/metadata.json",
        "tests/namespace_metadata.json",
    ]
    assert list(minari.list_local_datasets()) == [NAME]
    assert (local_root / "tests").stat().st_mode == local_root.stat().st_mode


def test_local_datasets_are_not_downloaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    load_transitions(NAME, download=True)
    monkeypatch.setenv("MINARI_REMOTE", "folder://offline")
    assert len(load_transitions(NAME, download=True, cache=False)) == 11


def test_what_is_there_already_stays(local_root: Path) -> None:
    make_dataset("tests/other-v0")
    (local_root / "tests" / "namespace_metadata.json").write_text('{"description": "mine"}')
    before = (local_root / "tests" / "other-v0" / "data" / "main_data.hdf5").stat()
    load_transitions(NAME, download=True)
    assert sorted(minari.list_local_datasets()) == [NAME, "tests/other-v0"]
    assert (local_root / "tests" / "namespace_metadata.json").read_text() == '{"description": "mine"}'
    assert (local_root / "tests" / "other-v0" / "data" / "main_data.hdf5").stat() == before


@pytest.mark.parametrize(
    ("remote", "reason"),
    [
        ("folder://offline", r"NetworkDownError: \[Errno -2\] Name or service not known\)"),
        ("folder://breaks", r"NetworkDownError: connection lost\)"),
        ("folder://incomplete", r"main_data\.hdf5.*No such file"),
        ("folder://cuts", r"OSError: .*truncated file"),
        ("nowhere://bucket", r"KeyError: 'nowhere'"),
    ],
)
def test_failed_download_is_one_sentence_and_leaves_nothing(
    local_root: Path, monkeypatch: pytest.MonkeyPatch, remote: str, reason: str
) -> None:
    make_dataset("tests/other-v0")
    before = files(local_root)
    monkeypatch.setenv("MINARI_REMOTE", remote)
    with pytest.raises(DatasetError, match=rf"^Dataset 'tests/mixed-v0' could not be downloaded from {remote} to .*") as error:
        load_transitions(NAME, download=True)
    assert error.match(reason) and error.match("check the id, the network connection and MINARI_REMOTE")
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is None and error.value.__suppress_context__
    assert files(local_root) == before
    assert [path.name for path in local_root.iterdir()] == ["tests"]
    # Nothing stands in the way of the next attempt
    monkeypatch.setenv("MINARI_REMOTE", "folder://fine")
    assert len(load_transitions(NAME, download=True)) == 11


def test_interrupted_download_leaves_nothing(local_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_REMOTE", "folder://interrupted")
    with pytest.raises(KeyboardInterrupt):
        load_transitions(NAME, download=True)
    assert list(local_root.iterdir()) == []


def test_version_that_the_remote_does_not_have() -> None:
    with pytest.raises(DatasetError, match=r"tests/mixed-v7.*doesn't exist in the remote.*latest compatible.*tests/mixed-v0"):
        load_transitions("tests/mixed-v7", download=True)
    with pytest.raises(DatasetError, match=r"Couldn't find any version for dataset tests/nothing"):
        load_transitions("tests/nothing-v0", download=True)


@pytest.mark.parametrize("what", ["download", "write"])
def test_what_a_killed_process_leaves_is_removed_by_the_next(local_root: Path, what: str) -> None:
    def killed() -> None:
        if what == "download":
            FolderStorage.list_namespaces = lambda self: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
            load_transitions(NAME, download=True)
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(MinariStorage, "update_metadata", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
                write_new_dataset("tests/new-v0", random_episodes(), BOX, ACTIONS)

    assert exit_code_of(killed) == -signal.SIGKILL
    left = list(local_root.rglob(f"*{SUFFIX}"))
    assert len(left) == 1 and not list(minari.list_local_datasets())
    if what == "download":
        load_transitions(NAME, download=True)
    else:
        write_new_dataset("tests/other-v0", random_episodes(), BOX, ACTIONS)
    assert not list(local_root.rglob("*.tmp")) and len(list(minari.list_local_datasets())) == 1


def test_root_that_cannot_be_written(local_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local_root.mkdir()

    def read_only(*_: Any) -> Any:
        raise PermissionError(30, "Read-only file system", str(local_root))

    monkeypatch.setattr("sb3_dmpo.data.minari_download.temporary_folder", read_only)
    with pytest.raises(DatasetError, match=r"could not be downloaded.*Read-only file system"):
        load_transitions(NAME, download=True)


# Environments -------------------------------------------------------------------------------------------------------

PENDULUM = dict(
    observation_space=spaces.Box(-8, 8, (3,)), action_space=spaces.Box(-2, 2, (1,)), buffers=[], env=None, eval_env=None
)


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterable[str]:
    """A module that a dataset could name; importing it fails the test."""
    name = "evil_module_of_a_dataset"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nEnv = Wrapper = object\n")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield name
    assert not (tmp_path / "executed").exists()
    assert name not in sys.modules


def record(env_id: str, entry_point: str = "gymnasium.envs.classic_control.pendulum:PendulumEnv", **changes: Any) -> str:
    spec = {"id": env_id, "entry_point": entry_point, "max_episode_steps": 200, "kwargs": {}, "additional_wrappers": []}
    return json.dumps({**spec, **changes})


def pendulum_dataset(**metadata: Any) -> str:
    dataset = make_dataset("tests/pendulum-v0", **PENDULUM)  # type: ignore[arg-type]
    edit_metadata(dataset, **metadata)
    return "tests/pendulum-v0"


def test_recorded_environment_is_made_with_its_arguments() -> None:
    name = pendulum_dataset(
        env_spec=record("Pendulum-v1", max_episode_steps=50),
        eval_env_spec=record("Pendulum-v1", max_episode_steps=7, kwargs={"g": 3.5}),
    )
    env = recover_environment(name)
    assert env.spec is not None and env.spec.max_episode_steps == 7
    assert env.unwrapped.g == 3.5  # type: ignore[attr-defined]
    env = recover_environment(minari.load_dataset(name), eval_env=False, render_mode="rgb_array")
    assert env.spec is not None and env.spec.max_episode_steps == 50 and env.render_mode == "rgb_array"


def test_recorded_without_time_limit() -> None:
    env = recover_environment(pendulum_dataset(env_spec=record("Pendulum-v1", max_episode_steps=None)))
    env.reset(seed=0)
    assert not any(env.step(env.action_space.sample())[3] for _ in range(201))


def test_entry_point_of_the_file_is_never_imported(evil: str) -> None:
    entry_point = f"{evil}:Env"
    env = recover_environment(pendulum_dataset(env_spec=record("Pendulum-v1", entry_point)))
    assert type(env.unwrapped).__name__ == "PendulumEnv"
    for env_id in ("Evil-v0", f"{evil}:Pendulum-v1", f"{evil}:Evil-v0"):
        edit_metadata(minari.load_dataset("tests/pendulum-v0"), env_spec=record(env_id, entry_point))
        with pytest.raises(DatasetError, match=rf"environment '{env_id}' is not registered.*never imported.*pass it as env="):
            recover_environment("tests/pendulum-v0")


def test_spaces_that_were_not_recorded_come_from_registered_environments_only(evil: str) -> None:
    name = pendulum_dataset(env_spec=record("Evil-v0", f"{evil}:Env"), observation_space=None)
    with pytest.raises(DatasetError, match=r"'Evil-v0' is not registered"):
        load_transitions(name)
    minari.delete_dataset(name)
    episodes = random_episodes(spaces.Box(-1, 1, (3,)), spaces.Box(-2, 2, (1,)))
    edit_metadata(
        make_dataset(name, **{**PENDULUM, "buffers": episodes}),  # type: ignore[arg-type]
        env_spec=record("Pendulum-v1", f"{evil}:Env"),
        observation_space=None,
        action_space=None,
    )
    assert load_transitions(name).action_space == gym.make("Pendulum-v1").action_space


def test_wrappers_of_the_file_are_left_out(evil: str) -> None:
    wrapper = {"name": "Wrapper", "entry_point": f"{evil}:Wrapper", "kwargs": {}}
    name = pendulum_dataset(env_spec=record("Pendulum-v1", additional_wrappers=[wrapper]))
    with pytest.warns(UserWarning, match=r"wrappers \['Wrapper'\] recorded with Pendulum-v1 are left out"):
        recover_environment(name)


def test_environment_whose_spaces_are_not_those_of_the_dataset() -> None:
    make_dataset(NAME)
    edit_metadata(minari.load_dataset(NAME), env_spec=record("Pendulum-v1"))
    with pytest.raises(DatasetError, match=r"its action space is .* but that of the environment"):
        recover_environment(NAME)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, r"it recorded no environment"),
        ("{", r"the recorded environment cannot be read"),
        ("[]", r"the recorded environment cannot be read"),
        (json.dumps({"id": 3}), r"environment 3 is not registered"),
        (record("Pendulum-v1", kwargs={"gravity": 1}), r"'Pendulum-v1' could not be made with .*gravity.*TypeError"),
        (record("Pendulum-v1", kwargs={"id": "CartPole-v1"}), r"could not be made"),
        (record("Pendulum-v1", kwargs=[1]), r"cannot be read"),
    ],
)
def test_records_that_cannot_be_used(spec: str | None, message: str) -> None:
    name = pendulum_dataset(env_spec=spec)
    with pytest.raises(DatasetError, match=r"Dataset 'tests/pendulum-v0': .*" + message):
        recover_environment(name)
