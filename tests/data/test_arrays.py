"""Arrays in memory, OGBench's files, d3rlpy's dumps, and what a path leads to."""

import gzip
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces

from sb3_dmpo import BC, TD3BC
from sb3_dmpo.data import DatasetError, dataset_identifier, dataset_spaces, from_arrays, load_transitions, open_dataset
from tests.data.test_dataset_sources import N_ROWS, TERMINALS, TIMEOUTS, d4rl_arrays, write_d4rl
from tests.data.test_minari import SpacesEnv, make_dataset
from tests.doors import convert


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Minari root and a cache for each test alone."""
    for variable, name in (("MINARI_DATASETS_PATH", "minari"), ("SB3_DMPO_CACHE", "cache")):
        monkeypatch.setenv(variable, str(tmp_path / name))
        (tmp_path / name).mkdir()


SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "batch_size": 4, "seed": 0, "device": "cpu"}
FIELDS = ("observations", "next_observations", "actions", "rewards", "terminations", "truncations", "episode_lengths")


def assert_same_data(first: Any, second: Any) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), name)


# Arrays in memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_next", [False, True])
def test_arrays_give_what_a_file_with_them_gives(tmp_path: Path, has_next: bool) -> None:
    following = np.random.default_rng(1).normal(size=(N_ROWS, 3)) if has_next else None
    arrays = d4rl_arrays(next_observations=following)
    before = {name: values.copy() for name, values in arrays.items()}
    expected = load_transitions(write_d4rl(tmp_path, next_observations=following), cache=False)
    assert_same_data(load_transitions(arrays), expected)
    assert_same_data(from_arrays(**arrays), expected)
    lists = {name: values.tolist() for name, values in arrays.items()}
    assert_same_data(load_transitions(lists), expected)
    for name, values in before.items():
        np.testing.assert_array_equal(arrays[name], values, name)


def test_models_learn_from_arrays_with_their_own_bounds_and_name(tmp_path: Path) -> None:
    space = spaces.Box(-4.0, 4.0, (2,), np.float32)
    arrays = d4rl_arrays(actions=np.tile([4.0, -2.0], (N_ROWS, 1)), action_space=space, dataset_id="my log")
    model = TD3BC(dataset=arrays, **SMALL).learn(2)
    assert model.action_space == space and model.dataset_id == "my log" == dataset_identifier(arrays)
    np.testing.assert_array_equal(model.replay_buffer.actions, np.tile([1.0, -0.5], (6, 1)))
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"pass .*`dataset=` to `load`"):
        TD3BC.load(tmp_path / "model").learn(1)
    TD3BC.load(tmp_path / "model", dataset=arrays).learn(1, reset_num_timesteps=False)
    # The bounds of the environment hold where none are given
    env = SpacesEnv(spaces.Box(-1, 1, (3,)), space)
    assert load_transitions({**arrays, "action_space": None}, env=env).action_space == space


def test_dict_and_image_observations() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (N_ROWS, 4, 4, 3)).astype(np.uint8)
    assert load_transitions(d4rl_arrays(observations=images)).observation_space == spaces.Box(0, 255, (4, 4, 3), np.uint8)
    entries = {"b": rng.normal(size=(N_ROWS, 2)), "a": {"x": rng.normal(size=(N_ROWS, 1))}}
    data = load_transitions(d4rl_arrays(observations=entries))
    assert list(data.observation_space.spaces) == ["a/x", "b"] and data.observations.shape == (6, 3)
    np.testing.assert_array_equal(data.observations[0, 1:], entries["b"][0].astype(np.float32))
    BC("MultiInputPolicy", dataset=d4rl_arrays(observations=entries), **SMALL).learn(1)


def with_value(name: str, row: int, value: Any, dtype: Any = np.float64) -> dict[str, Any]:
    values = d4rl_arrays()[name].astype(dtype)
    values[row] = value
    return {name: values}


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"timeouts": None}, r"it lacks 'timeouts'.*timeouts.* only cut"),
    ({"rewards": None}, r"it lacks 'rewards'"),
    ({"terminals": None, "actions": None}, r"it lacks 'actions', 'terminals'"),
    (with_value("terminals", 4, np.nan), r"step 4, field 'terminals': it is nan, neither 0 nor 1"),
    (with_value("timeouts", 2, np.nan), r"step 2, field 'timeouts': it is nan"),
    (with_value("terminals", 3, 0.3), r"step 3, field 'terminals': it is 0\.3"),
    ({"terminals": np.full(N_ROWS, 7)}, r"step 0, field 'terminals': it is 7"),
    ({"rewards": np.ones(N_ROWS, complex)}, r"field 'rewards': it holds complex128, no real numbers"),
    ({"rewards": np.ones((N_ROWS, 2))}, r"field 'rewards': it has the shape \(9, 2\)"),
    ({"rewards": np.float32(1)}, r"field 'rewards': it is a single number"),
    ({"observations": np.zeros(N_ROWS)}, r"field 'observations': it has the shape \(9,\).*observations\[:, None\]"),
    ({"actions": np.zeros(N_ROWS)}, r"field 'actions'.*actions\[:, None\]"),
    ({"actions": np.zeros(N_ROWS, int)}, r"field 'actions'.*its actions are discrete"),
    ({"actions": np.zeros((N_ROWS, 2, 1))}, r"field 'actions'.*reshape\(len\(actions\), -1\)"),
    ({"observations": np.zeros((4, 3))}, r"field 'observations': it has the shape \(4, 3\), expected \(9, 3\)"),
    ({"observations": np.full((N_ROWS, 3), "a")}, r"field 'observations': it holds <U1, no numbers"),
]


@pytest.mark.parametrize(("changes", "message"), FAULTS)
def test_faults_name_the_array_for_every_format(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arrays = d4rl_arrays(**changes)
    with pytest.raises(DatasetError, match=r"^The arrays.*" + message):
        load_transitions(arrays)
    if next(iter(changes)) not in ("action_space",) and np.asarray(arrays.get("observations")).dtype.kind != "U":
        with pytest.raises(DatasetError, match=r"hdf5'.*" + message.replace("timeouts.* only cut", "only cut")):
            load_transitions(write_d4rl(tmp_path, **changes))
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DatasetError, match=r"data\.npz'.*" + message):
        load_transitions(tmp_path / "data.npz")


def test_settings_of_arrays_are_checked() -> None:
    with pytest.raises(DatasetError, match=r"'next_observation' means nothing here.*'next_observations'"):
        load_transitions({**d4rl_arrays(), "next_observation": np.zeros((N_ROWS, 3))})
    given = {"next_obs": np.zeros((N_ROWS, 3)), "dones": TERMINALS, "weights": np.ones(N_ROWS)}
    with pytest.raises(
        DatasetError, match=r"'next_obs' means nothing here\. Call it 'next_observations' if that is what it is;"
    ):
        load_transitions({**d4rl_arrays(), **given})
    with pytest.raises(
        DatasetError, match=r"'dones', 'next_obs' mean nothing here\. Call them 'terminals', 'next_observations'"
    ):
        load_transitions({**d4rl_arrays(terminals=None), **given})
    with pytest.raises(DatasetError, match=r"'reward' means nothing here\. Call it 'rewards'"):
        load_transitions({**ogbench(), "reward": np.zeros(15)})  # else nobody would learn from them
    load_transitions({**d4rl_arrays(), "infos/qpos": np.zeros(N_ROWS), "qvel": np.zeros(N_ROWS)})
    with pytest.raises(DatasetError, match=r"'terminations' and 'terminals' are the same"):
        load_transitions({**d4rl_arrays(), "terminations": TERMINALS})
    with pytest.raises(DatasetError, match=r"field 'action_space': it is a tuple, no space"):
        load_transitions(d4rl_arrays(action_space=(-1, 1)))
    with pytest.raises(DatasetError, match=r"field 'observations': ValueError"):
        load_transitions(d4rl_arrays(observations=[[1.0], [1.0, 2.0]]))
    with pytest.raises(DatasetError, match=r"CartPole.*is an environment.*env="):
        load_transitions(gym.make("CartPole-v1").unwrapped)


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_files_with_next_observations_under_another_name_are_refused(tmp_path: Path, suffix: str) -> None:
    arrays = {**d4rl_arrays(), "next_obs": np.zeros((N_ROWS, 3)), "qpos": np.zeros(N_ROWS)}
    path = tmp_path / f"data{suffix}"
    if suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            file.update(arrays)
    with pytest.raises(DatasetError, match=r"data\.\w+': 'next_obs' means nothing here\. Call it 'next_observations'"):
        open_dataset(path)


@pytest.mark.parametrize("suffix", ["", ".npz", ".hdf5"])
def test_steps_without_a_successor(tmp_path: Path, suffix: str) -> None:
    """Bandit logs: every episode has one step. What the error advises helps."""
    n = 12
    arrays: dict[str, Any] = {
        "observations": np.arange(3.0 * n).reshape(n, 3),
        "actions": np.zeros((n, 2)),
        "rewards": np.ones(n),
        "terminals": np.zeros(n),
        "timeouts": np.ones(n),
    }

    def given(**changes: Any) -> Any:
        found, path = arrays | changes, tmp_path / f"{len(changes)}{suffix}"
        if suffix == ".npz":
            np.savez(path, **found)
        elif suffix:
            with h5py.File(path, "w") as file:
                file.update(found)
        return path if suffix else found

    with pytest.raises(
        DatasetError, match=r"none of its 12 steps is followed.*Add next_observations.*terminals 1.*timeouts 0"
    ):
        load_transitions(given())
    for changes in ({"next_observations": np.zeros((n, 3))}, {"terminals": np.ones(n), "timeouts": np.zeros(n)}):
        data = load_transitions(given(**changes))
        assert data.episode_lengths.tolist() == [1] * n
    with pytest.raises(DatasetError, match="it holds no transitions"):
        load_transitions(given(valids=np.zeros(n), masks=np.ones(n), x=np.zeros(1)))


# Actions outside the bounds -------------------------------------------------------------------------------------------


def test_actions_outside_are_refused_or_clipped_with_how_many_and_how_far(tmp_path: Path) -> None:
    arrays = d4rl_arrays()
    arrays["actions"][4] = [1.25, 0.0]
    path = write_d4rl(tmp_path, actions=arrays["actions"])
    for dataset in (arrays, path):
        with pytest.raises(
            DatasetError, match=r"field 'actions'.*\(1 of 6 actions leave it, by up to 0\.25\).*clip_actions=True"
        ):
            load_transitions(dataset)
        for _ in range(2):  # a copy in the cache would not say it
            with pytest.warns(UserWarning, match=r"1 of 6 actions lay outside the bounds, by up to 0\.25, and are clipped"):
                assert load_transitions(dataset, clip_actions=True).actions.max() <= 1.0
        with pytest.raises(DatasetError, match="clip_actions"):
            load_transitions(dataset)
    with pytest.warns(UserWarning, match="are clipped"):
        TD3BC(dataset=arrays, clip_actions=True, **SMALL).learn(1)


def test_advice_is_in_the_words_of_the_command_line_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_d4rl(tmp_path, actions=np.full((N_ROWS, 2), 1.5))
    assert convert([str(path), "tests/clipped-v0", "--env", "none"]) == 2
    error = capsys.readouterr().err
    assert "--clip-actions" in error and "clip_actions=" not in error and "--env" in error and "env=" not in error
    with pytest.warns(UserWarning, match="are clipped"):
        assert convert([str(path), "tests/clipped-v0", "--env", "none", "--clip-actions"]) == 0
    assert convert(["tests/nothing-v0", "tests/x-v0"]) == 2
    error = capsys.readouterr().err
    assert "--download" in error and "download=" not in error


# OGBench ----------------------------------------------------------------------------------------------------------------


def ogbench(n_episodes: int = 3, length: int = 5, seed: int = 0, **more: Any) -> dict[str, Any]:
    """As the files are: one row for every observation, ``terminals`` at the last one of each episode."""
    rng = np.random.default_rng(seed)
    n = n_episodes * length
    return {
        "observations": rng.normal(size=(n, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "terminals": (np.arange(n) % length == length - 1).astype(np.float32),
        "qpos": rng.normal(size=(n, 4)),
        **more,
    }


def test_ogbench_file_without_rewards_can_be_imitated(tmp_path: Path) -> None:
    arrays = ogbench()
    np.savez(tmp_path / "cube-single-play-v0.npz", **arrays)
    data = load_transitions(tmp_path / "cube-single-play-v0.npz")
    kept = [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13]
    np.testing.assert_array_equal(data.observations, arrays["observations"][kept])
    np.testing.assert_array_equal(data.next_observations, arrays["observations"][np.add(kept, 1)])
    assert data.episode_lengths.tolist() == [4, 4, 4] and not data.terminations.any()
    assert np.flatnonzero(data.truncations).tolist() == [3, 7, 11]
    assert not data.has_rewards and not load_transitions(tmp_path / "cube-single-play-v0.npz").has_rewards
    BC(dataset=tmp_path / "cube-single-play-v0.npz", **SMALL).learn(1)
    with pytest.raises(DatasetError, match=r"'cube-single-play-v0\.npz': it holds no rewards.*singletask.*BC"):
        TD3BC(dataset=tmp_path / "cube-single-play-v0.npz", **SMALL).learn(1)


def test_masks_end_the_task_also_within_an_episode(tmp_path: Path) -> None:
    rewards = np.arange(15.0)
    masks = np.ones(15, np.float32)
    masks[[2, 3, 14]] = 0
    arrays = ogbench(rewards=rewards, masks=masks)
    np.savez_compressed(tmp_path / "data.npz", **arrays)
    for data in (load_transitions(tmp_path / "data.npz"), load_transitions(arrays)):
        assert data.has_rewards and data.rewards.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 14]
        assert np.flatnonzero(data.terminations).tolist() == [2, 3, 12]
        assert np.flatnonzero(data.truncations).tolist() == [7]
        assert data.episode_lengths.tolist() == [4, 4, 5]
        # The task goes on being recorded after its end
        np.testing.assert_array_equal(data.next_observations[2], arrays["observations"][3])


def test_both_forms_that_ogbench_gives_in_memory_are_the_file() -> None:
    arrays = ogbench(rewards=np.arange(15.0), masks=np.ones(15))
    raw = load_transitions(arrays)
    valid = arrays["terminals"] == 0
    following = np.roll(arrays["observations"], -1, axis=0)
    ends = np.append(arrays["terminals"][1:], 1.0)
    regular = {name: arrays[name][valid] for name in ("observations", "actions", "rewards", "masks")}
    assert_same_data(load_transitions({**regular, "next_observations": following[valid], "terminals": ends[valid]}), raw)
    compact = {**arrays, "valids": valid.astype(np.float32), "terminals": np.minimum(arrays["terminals"] + ends, 1)}
    assert_same_data(load_transitions(compact), raw)


@pytest.mark.parametrize("memory_map", [False, True])
def test_folder_of_shards_is_one_dataset(tmp_path: Path, memory_map: bool) -> None:
    folder = tmp_path / "cube-double-play-100m-v0"
    folder.mkdir()
    parts = [ogbench(n_episodes=2, seed=seed, rewards=np.full(10, seed), masks=np.ones(10)) for seed in range(11)]
    for number, part in enumerate(parts):
        np.savez(folder / f"cube-double-play-100m-v0-{number}.npz", **part)
    np.savez(folder / "cube-double-play-100m-v0-val.npz", **ogbench(seed=99))
    data = load_transitions(str(folder), memory_map=memory_map)
    assert data.rewards.tolist() == np.repeat(np.arange(11), 8).tolist()
    assert data.dataset_id == "cube-double-play-100m-v0/" == dataset_identifier(str(folder))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert_same_data(data, load_transitions(joined))
    np.savez(folder / "maze-v0-0.npz", **parts[0])
    with pytest.raises(DatasetError, match=r"several datasets \(cube-double-play-100m-v0, maze-v0\)"):
        load_transitions(folder)
    (folder / "maze-v0-0.npz").unlink()
    np.savez(folder / "cube-double-play-100m-v0-11.npz", **{**parts[0], "actions": np.zeros((10, 3))})
    with pytest.raises(DatasetError, match=r"field 'actions': its files differ"):
        load_transitions(folder)


def test_npz_files_are_bounded_and_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **d4rl_arrays(rewards=np.array([object()] * N_ROWS)))
    with pytest.raises(DatasetError, match=r"field 'rewards': it holds object, no numbers"):
        load_transitions(path)
    np.savez(path, **d4rl_arrays())
    content = path.read_bytes()
    path.write_bytes(content.replace(b"'shape': (9, 3)", b"'shape': (9,33)"))
    with pytest.raises(DatasetError, match=r"data\.npz.*Download or write the file again"):
        load_transitions(path)
    path.write_bytes(content[:-40])
    with pytest.raises(DatasetError, match=r"data\.npz.*Download or write the file again"):
        load_transitions(path)


# d3rlpy -----------------------------------------------------------------------------------------------------------------


def write_d3rlpy_2(path: Path, **changes: Any) -> list[tuple[slice, bool]]:
    """A dump as d3rlpy 2 writes it: three episodes of the rows of ``d4rl_arrays``."""
    arrays = d4rl_arrays()
    episodes = [(slice(0, 3), True), (slice(3, 7), False), (slice(7, 9), False)]
    with h5py.File(path, "w") as file:
        file["columns"] = ["observations", "actions", "rewards", "terminated"]
        file["num_episodes"] = len(episodes)
        for i, (rows, terminated) in enumerate(episodes):
            for name in ("observations", "actions", "rewards"):
                file[f"{name}_{i}"] = arrays[name][rows].reshape(rows.stop - rows.start, -1)
            file[f"terminated_{i}"] = terminated
        file["version"] = "2.1"
        for name, value in changes.items():
            file.pop(name, None)
            if value is not None:
                file[name] = value
    return episodes


def as_flags() -> dict[str, Any]:
    return d4rl_arrays(terminals=np.arange(N_ROWS) == 2, timeouts=np.isin(np.arange(N_ROWS), [6, 8]))


def test_dumps_of_d3rlpy(tmp_path: Path) -> None:
    expected = load_transitions(as_flags())
    episodes = write_d3rlpy_2(tmp_path / "buffer.h5")
    assert_same_data(load_transitions(tmp_path / "buffer.h5"), expected)
    arrays = as_flags()
    with h5py.File(tmp_path / "mdp.h5", "w") as file:
        for name in ("observations", "actions", "rewards", "terminals"):
            file[name] = arrays[name]
        file["episode_terminals"] = arrays["terminals"] | arrays["timeouts"]
        file["discrete_action"] = False
        file["version"] = "1.0"
    assert_same_data(load_transitions(tmp_path / "mdp.h5"), expected)
    # In memory the objects are told by their module
    kind = type("ReplayBuffer", (), {"__module__": "d3rlpy.dataset.replay_buffer"})
    dataset = kind()
    dataset.episodes = [
        SimpleNamespace(**{name: arrays[name][rows] for name in ("observations", "actions", "rewards")}, terminated=terminated)
        for rows, terminated in episodes
    ]
    assert_same_data(load_transitions(dataset), expected)
    dataset.episodes = [SimpleNamespace()]
    with pytest.raises(DatasetError, match=r"dump of d3rlpy 2"):
        load_transitions(dataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"observations": np.ma.masked_greater(np.array([[0.0, 0.0], [1e5, 0.0]]), 1.0)},
            r"episode 1, step 1, field 'obs.*masked",
        ),
        ({"rewards": np.ma.masked_greater([0.0, 1e5], 1.0)}, r"episode 1, step 1, field 'rewards': it is masked"),
        ({"terminated": np.ma.masked}, r"episode 1, field 'terminated': it is masked"),
        ({"actions": np.array([[0], [1]])}, r"^The episodes of d3rlpy: their actions are discrete"),
    ],
)
def test_episodes_of_d3rlpy_in_memory_are_checked(changes: dict[str, Any], message: str) -> None:
    dataset = type("ReplayBuffer", (), {"__module__": "d3rlpy.dataset.replay_buffer"})()
    whole = {"observations": np.zeros((2, 2)), "actions": np.zeros((2, 1)), "rewards": np.zeros(2), "terminated": True}
    changed = [whole | changes, whole | changes] if "actions" in changes else [whole, whole | changes]
    dataset.episodes = [SimpleNamespace(**episode) for episode in changed]
    with pytest.raises(DatasetError, match=message):
        load_transitions(dataset)


OBSERVATIONS: dict[str, Callable[[np.random.Generator], dict[str, Any]]] = {
    "table": lambda rng: {"": rng.normal(size=(N_ROWS, 2, 3)).astype(np.float32)},
    "entries": lambda rng: {"/b": rng.normal(size=(N_ROWS, 2)), "/a": rng.normal(size=(N_ROWS, 1, 2))},
    "nested": lambda rng: {
        "/b": rng.normal(size=(N_ROWS, 2)),
        "/a/y": rng.normal(size=(N_ROWS, 1)),
        "/a/x": np.zeros((N_ROWS, 3)),
    },
    "image": lambda rng: {"": rng.integers(0, 256, (N_ROWS, 4, 5, 3)).astype(np.uint8)},
    "large image": lambda rng: {"": rng.integers(0, 256, (N_ROWS, 40, 36, 3)).astype(np.uint8)},
    "image among entries": lambda rng: {
        "/camera/left": rng.integers(0, 256, (N_ROWS, 33, 32)).astype(np.uint8),
        "/speed": rng.normal(size=(N_ROWS, 1)),
    },
}


@pytest.mark.parametrize("kind", list(OBSERVATIONS))
def test_observations_of_every_kind_are_converted_unchanged(tmp_path: Path, kind: str) -> None:
    entries = {f"observations{key}": value for key, value in OBSERVATIONS[kind](np.random.default_rng(0)).items()}
    write_d4rl(tmp_path, **{"observations": None, **entries}).rename(tmp_path / "own.hdf5")
    assert convert([str(tmp_path / "own.hdf5"), "tests/own-v0"]) == 0
    ours, theirs = load_transitions("tests/own-v0", cache=False), load_transitions(tmp_path / "own.hdf5", cache=False)
    assert_same_data(ours, theirs)
    assert ours.observation_space == theirs.observation_space
    # Minari itself reads it too
    episode = next(iter(minari.load_dataset("tests/own-v0")))
    for name, value in entries.items():
        found: Any = episode.observations
        for key in name.split("/")[1:]:
            found = found[key]
        np.testing.assert_array_equal(found[:3], value[:3].astype(np.float32) if value.dtype == np.float64 else value[:3])
        assert found.dtype == (np.uint8 if value.dtype == np.uint8 else np.float32)


def test_an_entry_that_is_a_group_too_is_not_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = d4rl_arrays(
        observations=None, **{"observations/a": np.zeros((N_ROWS, 1)), "observations/a/x": np.zeros((N_ROWS, 1))}
    )
    np.savez(tmp_path / "own.npz", **{name: value for name, value in arrays.items() if value is not None})
    assert convert([str(tmp_path / "own.npz"), "tests/own-v0"]) == 2
    assert "'a' is an entry of the observations, and 'a/x' is one below it" in capsys.readouterr().err


def test_dump_of_d3rlpy_becomes_a_minari_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_d3rlpy_2(tmp_path / "buffer.h5")
    assert convert([str(tmp_path / "buffer.h5"), "tests/from-d3rlpy-v0"]) == 0
    ours, theirs = load_transitions("tests/from-d3rlpy-v0"), load_transitions(tmp_path / "buffer.h5")
    np.testing.assert_array_equal(ours.observations, theirs.observations)
    assert ours.episode_lengths.tolist() == [3, 3, 1]
    capsys.readouterr()
    np.savez(tmp_path / "raw.npz", **ogbench())
    assert convert([str(tmp_path / "raw.npz"), "tests/raw-v0"]) == 2
    assert "holds no rewards" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards_1": None}, r"episode 1 of 3 is not complete"),
        ({"terminated_1": np.nan}, r"episode 1, step 3, field 'terminals': it is nan"),
        ({"actions_0": np.zeros((3, 1), np.int32)}, r"d3rlpy with discrete actions"),
        ({"rewards_2": np.zeros((5, 1))}, r"episode 2, field 'actions': it has the shape \(2, 2\), expected \(5, 2\)"),
        ({"num_episodes": 10**12}, r"episode 3 of 1000000000000 is not complete"),
        ({"num_episodes": 0}, r"it holds no transitions"),
        ({"observations_0": None}, r"dump of d3rlpy, but not of the kind"),
    ],
)
def test_dumps_of_d3rlpy_that_are_not_usable(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_d3rlpy_2(tmp_path / "buffer.h5", **changes)
    with pytest.raises(DatasetError, match=r"buffer\.h5'.*" + message):
        load_transitions(tmp_path / "buffer.h5")


# What a path leads to ---------------------------------------------------------------------------------------------------


def write(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def write_groups(*names: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with h5py.File(path, "w") as file:
            for name in names:
                file[f"{name}/rewards"] = np.zeros(3)

    return make


def write_model(path: Path) -> None:
    BC(dataset=d4rl_arrays(), **SMALL).save(path)


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("x")


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("data.hdf5", write_groups("data", "mask"), r"it holds groups \('data', 'mask'\) and no flat arrays.*dataset=dict"),
        ("main_data.hdf5", write_groups("episode_0", "episode_1"), r"episodes of a Minari dataset.*id"),
        ("data.hdf5", write(b"version https://git-lfs.github.com/spec/v1\n"), r"pointer of Git LFS.*git lfs pull"),
        ("data.npz", write(b"<!DOCTYPE html><html>404</html>"), r"a web page: the download has failed"),
        ("data.hdf5", write(b""), r"it is empty"),
        ("data.csv", write(b"a,b\n1,2\n"), r"it is a text file.*\*\.hdf5"),
        ("data.npy", write(b"\x93NUMPY\x01\x00"), r"a single array \(\.npy\).*numpy\.savez"),
        ("data.parquet", write(b"PAR1...."), r"a Parquet file"),
        ("data.hdf5.gz", write(gzip.compress(b"x")), r"compressed with gzip.*gunzip"),
        ("data.hdf5", write(b"\x80\x04K\x01."), r"it is a pickle.*\.pkl"),
        ("data.bin", write(b"\x00\x01\xff" * 9), r"no file of a known format"),
        ("model.zip", write_model, r"the zip of a model.*load"),
        ("data.hdf5", make_folder, r"a folder without a dataset; it holds 'notes\.txt'"),
        ("data.npz", write(b"PK\x05\x06" + bytes(18)), r"a zip file without arrays"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path: Path, name: str, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / name)
    for given in (tmp_path / name, str(tmp_path / name)):
        with pytest.raises(DatasetError, match=message):
            open_dataset(given)


def test_home_folders_and_files_with_another_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_d4rl(tmp_path)
    assert len(load_transitions(f"~/{path.name}")) == len(load_transitions(path.rename(tmp_path / "data"))) == 6
    with pytest.raises(DatasetError, match=r"'nobody.*\.hdf5' does not exist|cannot be found"):
        load_transitions("~nobody_at_all/nobody.hdf5")


def test_folder_of_a_minari_dataset_is_named_by_its_id() -> None:
    folder = Path(make_dataset("tests/mixed-v0").storage.data_path)
    for given in (folder, folder.parent):
        with pytest.raises(DatasetError, match=r"the folder of a Minari dataset\. Pass its id.*tests/mixed-v0"):
            load_transitions(given)


@pytest.mark.parametrize("given", ["", "a\0.hdf5", b"x-v0", "a" * 5000 + "-v0", "../../etc/x-v0", "/etc/x-v0", 3, None])
def test_what_is_no_path_is_refused(given: Any) -> None:
    with pytest.raises(DatasetError):
        dataset_spaces(given)


def test_data_without_flags_of_time_limits_say_what_to_do(tmp_path: Path) -> None:
    path = write_d4rl(tmp_path, timeouts=None)
    with pytest.raises(DatasetError, match=r"file\['timeouts'\] = numpy\.zeros\(len\(file\['terminals'\]\), bool\)"):
        load_transitions(path)
    with h5py.File(path, "r+") as file:
        file["timeouts"] = np.zeros(len(file["terminals"]), bool)
    assert load_transitions(path).episode_lengths.tolist() == [3, 5]
    assert TIMEOUTS.any()
