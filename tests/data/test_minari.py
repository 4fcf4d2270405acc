"""Minari datasets: transitions and every fault of the data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.dataset.minari_storage import MinariStorage
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dmpo.data import DatasetError, Transitions, dataset_identifier, dataset_spaces, load_transitions
from sb3_dmpo.data import transitions as dataset_types
from sb3_dmpo.data.minari_download import near_ids
from sb3_dmpo.data.preprocessing import canonical_observation, canonical_observation_space, flatten_observations, scale_actions
from tests.dataset_helpers import (
    ACTIONS,
    BOX,
    DICT,
    MIXED_EPISODES,
    NESTED_DICT,
    edit_hdf5,
    edit_metadata,
    make_dataset,
    random_episodes,
    replace_array,
)


@pytest.fixture(autouse=True)
def minari_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("SB3_DMPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "minari"


def check_against_minari(transitions: Transitions, dataset: minari.MinariDataset) -> None:
    """The slow and obvious way: one step after the other."""
    space = canonical_observation_space(dataset.observation_space)
    row = 0
    for episode in dataset.iterate_episodes():
        flat = flatten_observations(canonical_observation(episode.observations), space)
        actions = scale_actions(episode.actions, dataset.action_space)
        for step in range(len(episode)):
            np.testing.assert_array_equal(transitions.observations[row], flat[step])
            np.testing.assert_array_equal(transitions.next_observations[row], flat[step + 1])
            np.testing.assert_array_equal(transitions.actions[row], actions[step])
            assert transitions.rewards[row] == np.float32(episode.rewards[step])
            assert transitions.terminations[row] == episode.terminations[step]
            assert transitions.truncations[row] == episode.truncations[step]
            row += 1
    assert row == len(transitions) == transitions.episode_lengths.sum()
    assert transitions.observation_space == space


@pytest.mark.parametrize("space", [BOX, DICT, NESTED_DICT], ids=["box", "dict", "nested"])
@pytest.mark.parametrize("as_object", [False, True], ids=["id", "object"])
def test_awkward_episodes_become_the_right_transitions(space: spaces.Space, as_object: bool) -> None:
    dataset = make_dataset(observation_space=space)
    transitions = load_transitions(dataset if as_object else "tests/mixed-v0")
    check_against_minari(transitions, dataset)
    assert transitions.episode_lengths.tolist() == [length for length, _ in MIXED_EPISODES]
    assert transitions.dataset_id == "tests/mixed-v0"
    expected = [np.sum(episode.rewards.astype(np.float32)) for episode in dataset.iterate_episodes()]
    np.testing.assert_allclose(transitions.episode_returns(), expected, rtol=1e-6)


def test_arrays_are_contiguous_float32_whatever_was_recorded() -> None:
    buffers = random_episodes()
    make_dataset(buffers=buffers)
    transitions = load_transitions("tests/mixed-v0")
    for name in ("observations", "next_observations", "actions", "rewards"):
        array = getattr(transitions, name)
        assert array.dtype == np.float32 and array.flags.c_contiguous and array.flags.writeable, name
    assert transitions.terminations.dtype == transitions.truncations.dtype == np.bool_
    assert np.abs(transitions.actions).max() <= 1


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.uint8, np.float64])
def test_other_number_types(dtype: type) -> None:
    if dtype is np.uint8 and minari.__version__ in ("0.5.0", "0.5.1", "0.5.2", "0.5.3"):
        pytest.skip("Minari before 0.5.4 stores such observations as JPEG images.")
    space = spaces.Box(0, 100, (3,), dtype)
    dataset = make_dataset(observation_space=space)

    def use_integer_flags(file: h5py.File) -> None:
        replace_array(file, "episode_0/terminations", np.array([1], np.uint8))

    edit_hdf5(dataset, use_integer_flags)
    check_against_minari(load_transitions("tests/mixed-v0"), dataset)


def test_selection_of_episodes() -> None:
    dataset = make_dataset()
    selection = dataset.filter_episodes(lambda episode: len(episode) > 1)
    transitions = load_transitions(selection)
    assert transitions.episode_lengths.tolist() == [3, 4, 2]
    check_against_minari(transitions, selection)
    # The numbers in messages are those of the dataset, not of the selection
    edit_hdf5(dataset, lambda file: file["episode_3/rewards"].__setitem__(2, np.nan))
    with pytest.raises(DatasetError, match=r"episode 3, step 2, field 'rewards'"):
        load_transitions(selection)


def test_episodes_without_steps_are_left_out() -> None:
    buffers = random_episodes(episodes=((2, "truncated"), (1, "terminated"), (1, "truncated")))
    dataset = make_dataset(buffers=buffers)

    def empty_second(file: h5py.File) -> None:
        for name, shape in (("observations", (1, 3)), ("actions", (0, 2)), ("rewards", 0), ("terminations", 0)):
            replace_array(file, f"episode_1/{name}", np.zeros(shape))
        replace_array(file, "episode_1/truncations", np.zeros(0, bool))
        file["episode_2/rewards"][0] = np.inf

    edit_hdf5(dataset, empty_second)
    edit_metadata(dataset, total_steps=3)
    with pytest.raises(DatasetError, match=r"episode 2, step 0, field 'rewards': it is inf"):
        load_transitions("tests/mixed-v0")
    edit_hdf5(dataset, lambda file: file["episode_2/rewards"].__setitem__(0, 0.5))
    assert load_transitions("tests/mixed-v0").episode_lengths.tolist() == [2, 1]


def test_other_storage_formats_are_read_through_minari(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(observation_space=NESTED_DICT)
    monkeypatch.setattr(type(dataset.storage), "FORMAT", "arrow")
    transitions = load_transitions(dataset, cache=False)
    check_against_minari(transitions, dataset)


def test_compressed_images_are_decoded() -> None:
    space = spaces.Box(0, 255, (32, 32), np.uint8)
    episodes = random_episodes(space, episodes=((2, "truncated"),))
    dataset = make_dataset(observation_space=space, buffers=episodes)
    check_against_minari(load_transitions("tests/mixed-v0"), dataset)
    check_against_minari(load_transitions(dataset, cache=False), dataset)


def test_rounding_excess_of_actions_is_clipped() -> None:
    dataset = make_dataset()
    edit_hdf5(dataset, lambda file: file["episode_1/actions"].__setitem__((1, 0), 2.001))
    assert load_transitions("tests/mixed-v0").actions[2, 0] == 1.0


def test_transitions_pass_through() -> None:
    make_dataset()
    transitions = load_transitions("tests/mixed-v0")
    assert load_transitions(transitions) is transitions
    assert dataset_spaces(transitions) == (transitions.observation_space, transitions.action_space)


def test_spaces_and_identifier_without_reading_data() -> None:
    dataset = make_dataset(observation_space=NESTED_DICT)
    (Path(dataset.storage.data_path) / "main_data.hdf5").write_bytes(b"")
    for source in ("tests/mixed-v0", dataset):
        assert dataset_spaces(source) == (canonical_observation_space(NESTED_DICT), ACTIONS)
        assert dataset_identifier(source) == "tests/mixed-v0"
    assert dataset_identifier(None) is None
    assert dataset_identifier("folder/hopper.hdf5") == "hopper.hdf5"


def test_fingerprint_tells_content() -> None:
    make_dataset("tests/a-v0")
    make_dataset("tests/b-v0")
    make_dataset("tests/c-v0", buffers=random_episodes(seed=1))
    a, b, c = (load_transitions(f"tests/{name}-v0").fingerprint for name in "abc")
    assert a == b != c


def test_progress_bar_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset()
    load_transitions("tests/mixed-v0", cache=False)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(dataset_types, "PROGRESS_DELAY_SECONDS", 0.0)
    load_transitions("tests/mixed-v0", cache=False, progress_bar=False)
    assert capsys.readouterr() == ("", "")
    load_transitions("tests/mixed-v0", cache=False)
    assert "Loading tests/mixed-v0: 100%" in capsys.readouterr().err


# Faults -------------------------------------------------------------------------------------------------------------


def poke(name: str, index: Any, value: float) -> Callable[[h5py.File], None]:
    return lambda file: file[name].__setitem__(index, value)


def put(name: str, values: Any) -> Callable[[h5py.File], None]:
    return lambda file: replace_array(file, name, values)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (poke("episode_1/observations", (2, 1), np.nan), r"episode 1, step 2, field 'observations': index 1 is nan"),
        (poke("episode_1/observations", (3, 0), np.inf), r"episode 1, step 3, field 'observations': index 0 is inf"),
        (poke("episode_3/observations", (0, 2), 1e300), r"episode 3, step 0, field 'observations': index 2 is inf"),
        (poke("episode_4/actions", (1, 1), np.nan), r"episode 4, step 1, field 'actions': index 1 is nan"),
        (poke("episode_0/rewards", 0, -np.inf), r"episode 0, step 0, field 'rewards': it is -inf"),
        (poke("episode_3/actions", (2, 0), 2.5), r"episode 3, step 2, field 'actions': index 0 is 2\.5, outside .*\[-2, 2\]"),
        (
            poke("episode_3/actions", (2, 1), -0.5),
            r"step 2, field 'actions': index 1 is -0\.5, outside .*\[0, 10\].*clip_actions=True",
        ),
        (put("episode_1/observations", np.zeros((3, 3))), r"episode 1, field 'observations': it has 3 rows, expected 4 \(one"),
        (put("episode_1/observations", np.zeros((4, 5))), r"episode 1, field 'observations': it has the shape \(4, 5\)"),
        (put("episode_1/actions", np.zeros((4, 2))), r"episode 1, field 'actions': it has 4 rows, expected 3"),
        (put("episode_1/actions", np.zeros((3, 1))), r"'actions': it has the shape \(3, 1\), expected \(3, 2\)"),
        (put("episode_2/terminations", np.zeros(2, bool)), r"episode 2, field 'terminations': it has 2 rows, expected 1"),
        (
            put("episode_2/truncations", np.array([np.nan])),
            r"episode 2, step 0, field 'truncations': it is nan, neither 0 nor 1",
        ),
        (put("episode_2/rewards", np.array([b"a"])), r"field 'rewards': it holds .*no numbers"),
        (lambda file: file.pop("episode_3"), r"episode 3, field 'rewards': it cannot be read"),
        (lambda file: file.pop("episode_3/actions"), r"episode 3, field 'actions': it cannot be read"),
        (put("episode_2/rewards", np.zeros(7)), r"announces 11 steps, but its episodes hold 17"),
    ],
)
def test_faults_in_the_data_are_named_with_their_place(edit: Callable[[h5py.File], None], message: str) -> None:
    edit_hdf5(make_dataset(), edit)
    with pytest.raises(DatasetError, match=r"^Dataset 'tests/mixed-v0'.*" + message):
        load_transitions("tests/mixed-v0")


def test_key_of_a_nested_observation_is_named() -> None:
    dataset = make_dataset(observation_space=NESTED_DICT)
    edit_hdf5(dataset, poke("episode_1/observations/achieved_goal/kettle", (2, 1, 0), np.nan))
    with pytest.raises(DatasetError, match=r"episode 1, step 2, field 'observations/achieved_goal/kettle': index 2 is nan"):
        load_transitions("tests/mixed-v0")
    edit_hdf5(dataset, lambda file: file.pop("episode_0/observations/observation"))
    with pytest.raises(DatasetError, match=r"episode 0, field 'observations/observation': it cannot be read"):
        load_transitions("tests/mixed-v0")


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.01, 0.0])
def test_truncated_file(kept: float) -> None:
    path = Path(make_dataset().storage.data_path) / "main_data.hdf5"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DatasetError, match=r"Dataset 'tests/mixed-v0'.*(cannot be opened|cannot be read).*Delete"):
        load_transitions("tests/mixed-v0")


def test_overwritten_bytes_never_pass_silently_as_other_errors() -> None:
    dataset = make_dataset()
    path = Path(dataset.storage.data_path) / "main_data.hdf5"
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(20):
        position = int(rng.integers(len(content) - 64))
        path.write_bytes(content[:position] + rng.bytes(64) + content[position + 64 :])
        try:
            load_transitions("tests/mixed-v0", cache=False)
        except DatasetError:
            pass


def test_missing_file() -> None:
    (Path(make_dataset().storage.data_path) / "main_data.hdf5").unlink()
    with pytest.raises(DatasetError, match=r"Dataset 'tests/mixed-v0': its data cannot be opened.*Delete"):
        load_transitions("tests/mixed-v0")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            spaces.Discrete(2),
            r"action space of dataset 'tests/bad-v0' is Discrete\(2\).* Use an algorithm for discrete actions\.$",
        ),
        (spaces.Box(-np.inf, np.inf, (2,)), r"action space of dataset 'tests/bad-v0' is unbounded"),
    ],
)
def test_action_spaces(space: spaces.Space, message: str) -> None:
    make_dataset("tests/bad-v0", action_space=space, buffers=[])
    for function in (load_transitions, dataset_spaces):
        with pytest.raises(DatasetError, match=message):
            function("tests/bad-v0")


def test_observation_space() -> None:
    make_dataset("tests/bad-v0", observation_space=spaces.Dict({"mode": spaces.Discrete(3)}), buffers=[])
    with pytest.raises(DatasetError, match=r"Dataset 'tests/bad-v0': Key 'mode'.*only numeric Box"):
        load_transitions("tests/bad-v0")


def test_empty_dataset() -> None:
    make_dataset(buffers=[])
    with pytest.raises(DatasetError, match=r"Dataset 'tests/mixed-v0': it holds no transitions"):
        load_transitions("tests/mixed-v0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minari_version": "99.0.0"}, r"written by Minari 99\.0\.0"),
        ({"minari_version": None}, r"does not say which Minari wrote it"),
        ({"total_episodes": -3}, r"announces -3 episodes"),
        ({"total_episodes": "many"}, r"announces many episodes"),
        ({"total_episodes": 9}, r"episode 5, field 'rewards': it cannot be read"),
        ({"observation_space": "{}"}, r"'observation_space' cannot be read"),
        ({"observation_space": None}, r"neither 'observation_space' nor 'env_spec'"),
        ({"data_format": "punched_cards"}, r"data cannot be opened"),
    ],
)
def test_damaged_metadata(changes: dict[str, Any], message: str) -> None:
    edit_metadata(make_dataset(), **changes)
    with pytest.raises(DatasetError, match=r"Dataset 'tests/mixed-v0'.*" + message):
        load_transitions("tests/mixed-v0")


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_metadata_that_is_no_json_table(content: str) -> None:
    (Path(make_dataset().storage.data_path) / "metadata.json").write_text(content)
    with pytest.raises(DatasetError, match=r"Dataset 'tests/mixed-v0': its metadata\.json"):
        load_transitions("tests/mixed-v0")


class SpacesEnv(gym.Env[Any, Any]):
    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (spaces.Box(-1, 1, (4,)), ACTIONS, r"its observation space is .*\(3,\).*environment is .*\(4,\)"),
        (spaces.Dict({"observation": BOX}), ACTIONS, r"its observation space"),
        (spaces.Discrete(3), ACTIONS, r"the environment does not fit"),
        (BOX, spaces.Box(-1, 1, (2,)), r"its action space is Box"),
        (BOX, spaces.Box(-2, 2, (3,)), r"its action space is Box"),
        (BOX, spaces.Discrete(2), r"that of the environment is Discrete\(2\)"),
    ],
)
def test_environment_that_does_not_match(observation_space: spaces.Space, action_space: spaces.Space, message: str) -> None:
    make_dataset()
    env = SpacesEnv(observation_space, action_space)
    with pytest.raises(DatasetError, match=r"Dataset 'tests/mixed-v0': .*" + message):
        load_transitions("tests/mixed-v0", env=env)
    transitions = load_transitions("tests/mixed-v0")
    with pytest.raises(DatasetError, match=message):
        load_transitions(transitions, env=env)


def test_environment_that_matches() -> None:
    make_dataset()
    env = SpacesEnv(spaces.Box(-1, 1, (3,), np.float32), ACTIONS)
    assert len(load_transitions("tests/mixed-v0", env=env)) == 11
    assert len(load_transitions("tests/mixed-v0", env=DummyVecEnv([lambda: env]))) == 11


def test_dataset_larger_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset()
    monkeypatch.setattr(dataset_types, "available_memory", lambda: 100)
    with pytest.raises(DatasetError, match=r"needs 448 bytes of memory, only 100 bytes are left\. Free"):
        load_transitions("tests/mixed-v0")


def test_sizes_that_a_damaged_header_announces_are_not_allocated() -> None:
    def announce(file: h5py.File) -> None:
        del file["episode_1/observations"]
        file.create_dataset("episode_1/observations", shape=(10**13, 3), chunks=(1, 3), dtype=np.float64)

    dataset = make_dataset()
    edit_hdf5(dataset, announce)
    with pytest.raises(DatasetError, match=r"episode 1, field 'observations': it has 10000000000000 rows, expected 4"):
        load_transitions("tests/mixed-v0")
    edit_hdf5(dataset, lambda file: file.pop("episode_1/rewards"))
    edit_hdf5(dataset, lambda file: file.create_dataset("episode_1/rewards", shape=(10**13,), chunks=(1,), dtype="f4"))
    edit_metadata(dataset, total_steps=8 + 10**13)
    with pytest.raises(DatasetError, match=r"it needs .* TiB of memory, only .* are left"):
        load_transitions("tests/mixed-v0")


def test_unknown_kinds_of_datasets() -> None:
    with pytest.raises(DatasetError, match=r"A list is no dataset: pass a Minari id"):
        load_transitions([])
    with pytest.raises(DatasetError, match=r"neither a Minari id .* nor a path"):
        load_transitions("../somewhere/data.csv")
    with pytest.raises(DatasetError, match=r"has no version: write e\.g\. 'tests/mixed-v0'.*Found.*tests/mixed-v0"):
        make_dataset()
        load_transitions("tests/mixed")


def test_dataset_that_is_not_local(minari_root: Path) -> None:
    with pytest.raises(DatasetError, match=r"There are no datasets\."):
        load_transitions("tests/mixed-v0")
    make_dataset("tests/mixed-v0")
    make_dataset("other/thing-v3")
    with pytest.raises(DatasetError) as error:
        load_transitions("tests/mixes-v1")
    message = str(error.value)
    for part in (
        "'tests/mixes-v1'",
        str(minari_root),
        "Near ids found there: tests/mixed-v0.",
        "minari download tests/mixes-v1",
        "download=True",
        "--download",
        "MINARI_DATASETS_PATH",
    ):
        assert part in message
    with pytest.raises(DatasetError, match=r"Found there: other/thing-v3, tests/mixed-v0"):
        load_transitions("zzz-v9")


def test_root_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file" / "minari"))
    with pytest.raises(DatasetError, match=r"Minari root cannot be used.*MINARI_DATASETS_PATH"):
        load_transitions("tests/mixed-v0")


def test_minari_is_not_asked_to_make_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset()
    monkeypatch.setattr(MinariStorage, "read", lambda *_: pytest.fail("this would import what the file names"))
    load_transitions("tests/mixed-v0")


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        ("d4rl/pen/human-v2", "D4RL/pen/human-v2"),
        ("DRL4/pen/human-v2", "D4RL/pen/human-v2"),
        ("pen/human-v1", "D4RL/pen/human-v2"),
        ("zo/hopper/mixed-v0", "zoo/hopper/mixed-v0"),
        ("hopper/mixed-v3", "zoo/hopper/mixed-v0"),
    ],
)
def test_near_ids(asked: str, first: str) -> None:
    """Misspelt and missing namespaces, the case and the version."""
    known = ["D4RL/door/human-v2", "D4RL/pen/human-v2", "my/toy-v0", "zoo/hopper/medium-v0", "zoo/hopper/mixed-v0"]
    assert near_ids(asked, known)[0] == first
    assert near_ids("nothing-like/this-v9", known) == []
