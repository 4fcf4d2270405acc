"""D4RL files and SB3's replay buffers."""

import os
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.save_util import save_to_pkl

from sb3_dmpo.data import (
    DatasetError,
    dataset_identifier,
    dataset_spaces,
    load_transitions,
    recording,
    recover_environment,
)
from sb3_dmpo.data import replay_buffer as dataset_replay_buffer
from sb3_dmpo.data.tasks import reference_scores
from tests.data.test_minari import SpacesEnv
from tests.doors import convert

# D4RL ---------------------------------------------------------------------------------------------------------------

N_ROWS = 9
#: Ends: row 2 terminal, row 3 cut (an episode of one step), row 6 cut, row 8 without a flag
TERMINALS = np.isin(np.arange(N_ROWS), [2])
TIMEOUTS = np.isin(np.arange(N_ROWS), [3, 6])


def d4rl_arrays(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(N_ROWS, 3)),
        "actions": rng.uniform(-1, 1, (N_ROWS, 2)).astype(np.float32),
        "rewards": rng.normal(size=N_ROWS),
        "terminals": TERMINALS,
        "timeouts": TIMEOUTS,
        **changes,
    }
    return {name: values for name, values in arrays.items() if values is not None}


def write_d4rl(folder: Path, **changes: Any) -> Path:
    path = folder / "hopper_medium-v2.hdf5"
    with h5py.File(path, "w") as file:
        for name, values in d4rl_arrays(**changes).items():
            file[name] = values
        file["infos/qpos"] = np.full((N_ROWS, 2), np.nan)
        file["metadata/algorithm"] = b"SAC"
    return path


@pytest.mark.parametrize("block_rows", [1, 2, 4, 100])
def test_d4rl_steps_without_a_successor_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_rows: int) -> None:
    monkeypatch.setattr(recording, "BLOCK_ROWS", block_rows)
    arrays = d4rl_arrays()
    transitions = load_transitions(write_d4rl(tmp_path), cache=False)
    kept = [0, 1, 2, 4, 5, 7]
    successors = [1, 2, 2, 5, 6, 8]  # that of the terminal step 2 is a stand-in
    np.testing.assert_array_equal(transitions.observations, arrays["observations"][kept].astype(np.float32))
    np.testing.assert_array_equal(transitions.next_observations, arrays["observations"][successors].astype(np.float32))
    np.testing.assert_array_equal(transitions.actions, arrays["actions"][kept])
    np.testing.assert_array_equal(transitions.rewards, arrays["rewards"][kept].astype(np.float32))
    assert transitions.terminations.tolist() == [False, False, True, False, False, False]
    assert transitions.truncations.tolist() == [False, False, False, False, True, True]
    assert transitions.episode_lengths.tolist() == [3, 2, 1]
    assert transitions.dataset_id == "hopper_medium-v2.hdf5" == dataset_identifier(tmp_path / "hopper_medium-v2.hdf5")


def test_d4rl_keeps_all_steps_with_stored_successors(tmp_path: Path) -> None:
    successors = np.random.default_rng(1).normal(size=(N_ROWS, 3)).astype(np.float32)
    path = write_d4rl(tmp_path, next_observations=successors, rewards=np.ones((N_ROWS, 1)), terminals=TERMINALS[:, None])
    transitions = load_transitions(str(path))
    assert len(transitions) == N_ROWS
    np.testing.assert_array_equal(transitions.next_observations, successors)
    assert transitions.episode_lengths.tolist() == [3, 1, 3, 2]
    np.testing.assert_array_equal(transitions.terminations, TERMINALS)
    assert np.flatnonzero(transitions.truncations).tolist() == [3, 6, 8]


def test_d4rl_terminal_wins_over_timeout_and_end_of_file(tmp_path: Path) -> None:
    ends = np.isin(np.arange(N_ROWS), [4, 8])
    transitions = load_transitions(write_d4rl(tmp_path, terminals=ends, timeouts=ends))
    assert transitions.episode_lengths.tolist() == [5, 4]
    assert np.flatnonzero(transitions.terminations).tolist() == [4, 8]
    assert not transitions.truncations.any()


def test_d4rl_takes_spaces_from_the_environment(tmp_path: Path) -> None:
    path = write_d4rl(tmp_path, actions=np.tile([4.0, -2.0], (N_ROWS, 1)))
    assert dataset_spaces(path)[1] == spaces.Box(-1, 1, (2,))
    with pytest.raises(
        DatasetError, match=r"hopper_medium-v2\.hdf5', episode 0, step 0, field 'actions': index 0 is 4.*\[-1, 1\]"
    ):
        load_transitions(path)
    env = SpacesEnv(spaces.Box(-1, 1, (3,)), spaces.Box(-4, 4, (2,)))
    transitions = load_transitions(path, env=env)
    assert transitions.action_space == env.action_space
    np.testing.assert_array_equal(transitions.actions, np.tile([1, -0.5], (6, 1)))
    with pytest.raises(DatasetError, match=r"its observation space"):
        load_transitions(path, env=SpacesEnv(spaces.Box(-1, 1, (4,)), env.action_space))


def broken(name: str, index: Any, value: float) -> dict[str, Any]:
    values = d4rl_arrays()[name].copy()
    values[index] = value
    return {name: values}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timeouts": None}, r"it lacks 'timeouts'; it holds 'actions', 'observations'"),
        ({"observations": np.zeros(N_ROWS)}, r"field 'observations': it has the shape \(9,\), expected \(steps, width\)"),
        (
            {"actions": np.zeros((4, 2))},
            r"field 'actions': it has the shape \(4, 2\), expected \(9, 2\) as there are 9 rewards",
        ),
        ({"terminals": np.zeros(3)}, r"field 'terminals': it has the shape \(3,\)"),
        ({"next_observations": np.zeros((9, 2))}, r"field 'next_observations': it has the shape \(9, 2\), expected \(9, 3\)"),
        ({"actions": np.full((9, 2), b"x")}, r"field 'actions': it holds .*no numbers"),
        (broken("observations", (5, 1), np.nan), r"episode 2, step 1, field 'observations': index 1 is nan"),
        (broken("observations", (8, 0), np.inf), r"episode 3, step 1, field 'observations': index 0 is inf"),
        (broken("rewards", 7, np.nan), r"episode 3, step 0, field 'rewards': it is nan"),
        ({name: values[:0] for name, values in d4rl_arrays().items()}, r"it holds no transitions"),
    ],
)
def test_d4rl_faults(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_d4rl(tmp_path, **changes)
    with pytest.raises(DatasetError, match=r"^Dataset '.*hopper_medium-v2\.hdf5'.*" + message):
        load_transitions(path)


def test_d4rl_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "available_memory", lambda: 100)
    with pytest.raises(DatasetError, match=r"it needs 252 bytes of memory, only 100 bytes are left"):
        load_transitions(write_d4rl(tmp_path))


def test_d4rl_damaged_or_missing_file(tmp_path: Path) -> None:
    path = write_d4rl(tmp_path)
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(
        DatasetError, match=r"hopper_medium-v2\.hdf5': it cannot be (opened|read).*Download or write the file again"
    ):
        load_transitions(path)
    with pytest.raises(DatasetError, match=r"nothing\.h5' does not exist: check the path"):
        load_transitions(tmp_path / "nothing.h5")


@pytest.fixture
def own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Minari root for this test alone."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "minari").mkdir()
    return tmp_path / "minari"


@pytest.mark.usefixtures("own_root")
@pytest.mark.parametrize("has_next", [False, True])
def test_d4rl_file_becomes_a_minari_dataset_with_the_same_transitions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], has_next: bool
) -> None:
    arrays = d4rl_arrays(observations=np.random.default_rng(1).normal(size=(N_ROWS, 11)).astype(np.float32))
    actions = np.random.default_rng(2).uniform(-1, 1, (N_ROWS, 3)).astype(np.float32)
    following = np.concatenate([arrays["observations"][1:], arrays["observations"][:1]])
    # An end's successor is no row of the file.
    following[TERMINALS | TIMEOUTS] += 1
    path = write_d4rl(
        tmp_path, observations=arrays["observations"], actions=actions, next_observations=following if has_next else None
    ).rename(tmp_path / "hopper-medium-v2.hdf5")
    name = f"tests/hopper/medium-v{int(has_next)}"
    assert convert([str(path), name]) == 0
    assert "Evaluation in Hopper-v4, reference scores from D4RL" in capsys.readouterr().out
    ours, theirs = load_transitions(name, cache=False), load_transitions(path, cache=False)
    for field in ("observations", "next_observations", "actions", "rewards", "terminations", "truncations", "episode_lengths"):
        found, expected = getattr(ours, field), getattr(theirs, field)
        if field == "next_observations":
            # Nobody reads what follows the end of the task.
            found, expected = found[~ours.terminations], expected[~theirs.terminations]
        np.testing.assert_array_equal(found, expected, field)
    assert recover_environment(name).spec.max_episode_steps == 1000
    assert reference_scores(name)[:2] == (-20.272305, 3234.3)
    assert convert([str(path), name]) == 2
    assert "it is there already" in capsys.readouterr().err


@pytest.mark.usefixtures("own_root")
def test_a_file_that_does_not_fit_the_environment_of_its_name_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """D4RL's ant observes 84 contact forces, which Ant-v4 leaves out."""
    observations, actions = np.zeros((N_ROWS, 111), np.float32), np.zeros((N_ROWS, 8), np.float32)
    path = write_d4rl(tmp_path, observations=observations, actions=actions).rename(tmp_path / "ant-medium-v2.hdf5")
    assert convert([str(path), "tests/ant/medium-v2"]) == 2
    err = capsys.readouterr().err
    assert "does not fit Ant-v4, which its name suggests" in err and "(111,)" in err and "(27,)" in err and "--env none" in err
    assert list(minari.list_local_datasets()) == []
    # As the advice says
    assert convert([str(path), "tests/ant/medium-v2", "--env", "none"]) == 0
    # Without the simulator nothing is known about the environment
    monkeypatch.setattr(gym, "make", lambda spec: (_ for _ in ()).throw(gym.error.DependencyNotInstalled("no mujoco")))
    assert convert([str(path), "tests/ant/medium-v3"]) == 0
    assert "Ant-v4 cannot be made here" in capsys.readouterr().out


@pytest.mark.usefixtures("own_root")
def test_what_cannot_be_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    following = np.random.default_rng(3).normal(size=(N_ROWS, 3))
    path = write_d4rl(tmp_path, next_observations=following)
    for arguments, message in (
        ([str(path), "tests/broken-v0", "--env", "none"], "episode 0, step 0: the next observation is not"),
        ([str(path), "no id"], "no id for a dataset"),
        (["x.txt", "tests/x-v0"], "neither a Minari id"),
        ([str(path), "tests/x-v0", "--env", "Hoper-v4"], "Did you mean Hopper-v4"),
        ([str(tmp_path / "none.hdf5"), "tests/x-v0"], "does not exist"),
    ):
        assert convert(arguments) == 2
        assert message in capsys.readouterr().err
    assert list(minari.list_local_datasets()) == []


# Replay buffers -----------------------------------------------------------------------------------------------------

SPACE = spaces.Box(-10, 1000, (2,), np.float64)
ACTION_SPACE = spaces.Box(-3, 3, (1,))
DICT_SPACE = spaces.Dict({"b": SPACE, "a": spaces.Box(-1, 1000, (1,))})


def observe(step: int, n_envs: int, as_dict: bool = False) -> Any:
    """Numbers that tell environment and step: 100 * environment + step."""
    numbers = 100.0 * np.arange(n_envs) + step
    values = np.stack([numbers, numbers + 0.5], axis=1)
    return {"b": values, "a": numbers[:, None]} if as_dict else values


def fill(buffer: ReplayBuffer, n_steps: int, done_every: int, cut_every: int = 10**9) -> None:
    """Step ``t`` leads from observation ``t`` to ``t + 0.25``."""
    n_envs, as_dict = buffer.n_envs, isinstance(buffer, DictReplayBuffer)
    for step in range(n_steps):
        cut = (step + 1) % cut_every == 0
        buffer.add(
            observe(step, n_envs, as_dict),
            observe(step + (1 if buffer.optimize_memory_usage else 0.25), n_envs, as_dict),
            np.full((n_envs, 1), step / 100),
            np.arange(n_envs) + step,
            np.full(n_envs, cut or (step + 1) % done_every == 0),
            [{"TimeLimit.truncated": cut}] * n_envs,
        )


@pytest.mark.parametrize("block_rows", [3, 1000])
@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("n_steps", [7, 10, 14], ids=["partly", "exactly", "overwritten"])
def test_replay_buffer(monkeypatch: pytest.MonkeyPatch, n_steps: int, n_envs: int, as_dict: bool, block_rows: int) -> None:
    monkeypatch.setattr(dataset_replay_buffer, "BLOCK_ROWS", block_rows)
    kind, space = (DictReplayBuffer, DICT_SPACE) if as_dict else (ReplayBuffer, SPACE)
    buffer = kind(10 * n_envs, space, ACTION_SPACE, device="cpu", n_envs=n_envs)
    fill(buffer, n_steps, done_every=5, cut_every=3)
    transitions = load_transitions(buffer)
    steps = np.arange(max(0, n_steps - 10), n_steps)
    numbers = (100 * np.arange(n_envs)[:, None] + steps).reshape(-1)
    np.testing.assert_array_equal(transitions.observations[:, 0], numbers)
    np.testing.assert_array_equal(transitions.observations[:, -1], numbers + 0.5)
    np.testing.assert_array_equal(transitions.next_observations[:, 0], numbers + 0.25)
    # SB3 stores scaled actions: the width of the action space must not matter
    np.testing.assert_array_equal(transitions.actions[:, 0], np.tile(steps / 100, n_envs).astype(np.float32))
    np.testing.assert_array_equal(transitions.rewards, (np.arange(n_envs)[:, None] + steps).reshape(-1))
    cut, done = (steps + 1) % 3 == 0, (steps + 1) % 5 == 0
    np.testing.assert_array_equal(transitions.terminations, np.tile(done & ~cut, n_envs))
    ends = cut | done
    # Whatever goes on behind the last row is cut there, as in every other format
    ends[-1] = True
    np.testing.assert_array_equal(transitions.truncations, np.tile(ends & ~(done & ~cut), n_envs))
    lengths = np.diff(np.flatnonzero(ends), prepend=-1).tolist()
    assert transitions.episode_lengths.tolist() == lengths * n_envs
    assert not np.shares_memory(transitions.rewards, buffer.rewards)


def test_a_block_of_a_replay_buffer_in_which_no_episode_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_replay_buffer, "BLOCK_ROWS", 3)
    buffer = ReplayBuffer(10, SPACE, ACTION_SPACE, device="cpu")
    for step in range(10):
        cut = step == 9
        action, reward = np.full((1, 1), step / 100), np.zeros(1)
        buffer.add(observe(step, 1, False), observe(step + 1, 1, False), action, reward, np.array([cut]), [{}])
    transitions = load_transitions(buffer)
    np.testing.assert_array_equal(transitions.next_observations[:, 0], np.arange(1, 11))
    assert transitions.episode_lengths.tolist() == [10]


@pytest.mark.parametrize(("n_steps", "kept"), [(7, range(7)), (14, range(5, 14))])
def test_replay_buffer_with_implicit_successors(n_steps: int, kept: range) -> None:
    buffer = ReplayBuffer(10, SPACE, ACTION_SPACE, "cpu", optimize_memory_usage=True, handle_timeout_termination=False)
    fill(buffer, n_steps, done_every=5)
    transitions = load_transitions(buffer)
    steps = np.array(kept)
    np.testing.assert_array_equal(transitions.observations[:, 0], steps)
    np.testing.assert_array_equal(transitions.next_observations[:, 0], steps + 1)
    np.testing.assert_array_equal(transitions.terminations, (steps + 1) % 5 == 0)
    assert np.flatnonzero(transitions.truncations).tolist() == ([] if (kept[-1] + 1) % 5 == 0 else [len(kept) - 1])


def test_replay_buffer_of_an_algorithm(tmp_path: Path) -> None:
    model = SAC("MlpPolicy", gym.make("Pendulum-v1", max_episode_steps=20), learning_starts=1000, buffer_size=50, seed=0)
    model.learn(45)
    model.save_replay_buffer(tmp_path / "replay_buffer")
    for dataset in (model.replay_buffer, tmp_path / "replay_buffer.pkl", str(tmp_path / "replay_buffer.pkl")):
        transitions = load_transitions(dataset)
        assert transitions.episode_lengths.tolist() == [20, 20, 5]
        assert np.flatnonzero(transitions.truncations).tolist() == [19, 39, 44]
        assert not transitions.terminations.any()
        assert transitions.action_space == model.action_space
        np.testing.assert_array_equal(transitions.observations[1:20], transitions.next_observations[:19])
    assert transitions.dataset_id == "replay_buffer.pkl" == dataset_identifier(tmp_path / "replay_buffer.pkl")
    assert dataset_identifier(model.replay_buffer) is None
    assert dataset_spaces(model.replay_buffer) == (model.observation_space, model.action_space)


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("observations", (6, 1), np.nan, r"The replay buffer, episode 1, step 1, field 'observations': index 1 is nan"),
        ("next_observations", (4, 0), np.inf, r"episode 0, step 4, field 'next_observations': index 0 is inf"),
        ("actions", (6, 0), 2.5, r"episode 1, step 1, field 'actions': index 0 is 2\.5.*SB3 stores scaled actions"),
        ("rewards", (0,), np.nan, r"episode 0, step 0, field 'rewards': it is nan"),
    ],
)
def test_replay_buffer_faults(name: str, index: tuple[int, ...], value: float, message: str) -> None:
    buffer = ReplayBuffer(10, SPACE, ACTION_SPACE, device="cpu")
    fill(buffer, 7, done_every=5)
    getattr(buffer, name)[(index[0], 0, *index[1:])] = value
    with pytest.raises(DatasetError, match=message):
        load_transitions(buffer)


def test_replay_buffers_that_cannot_be_used() -> None:
    with pytest.raises(DatasetError, match=r"The replay buffer: it holds no transitions"):
        load_transitions(ReplayBuffer(10, SPACE, ACTION_SPACE))
    with pytest.raises(DatasetError, match=r"action space of the replay buffer is Discrete"):
        load_transitions(ReplayBuffer(10, SPACE, spaces.Discrete(2)))
    buffer = ReplayBuffer(10, SPACE, ACTION_SPACE, device="cpu")
    fill(buffer, 3, done_every=5)
    buffer.observation_space = spaces.Box(-1, 1, (3,))
    with pytest.raises(DatasetError, match=r"its arrays do not fit its spaces.*\(3, 2\), expected \(batch, 3\)"):
        load_transitions(buffer)


class Touch:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_not_executed(tmp_path: Path) -> None:
    buffer = ReplayBuffer(10, SPACE, ACTION_SPACE, device="cpu")
    buffer.extra = Touch(tmp_path / "executed")
    save_to_pkl(tmp_path / "bad.pkl", buffer)
    with pytest.raises(DatasetError, match=r"bad\.pkl': it asks for .*mkdir.*load_from_pkl"):
        load_transitions(tmp_path / "bad.pkl")
    assert not (tmp_path / "executed").exists()
    pickle.loads((tmp_path / "bad.pkl").read_bytes())
    assert (tmp_path / "executed").exists()


def test_pickles_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nothing\.pkl' does not exist"):
        load_transitions(tmp_path / "nothing.pkl")
    save_to_pkl(tmp_path / "list.pkl", [1, 2])
    with pytest.raises(DatasetError, match=r"list\.pkl': it holds a list, no ReplayBuffer"):
        load_transitions(tmp_path / "list.pkl")
    content = pickle.dumps(ReplayBuffer(10, SPACE, ACTION_SPACE, device="cpu"))
    (tmp_path / "cut.pkl").write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"cut\.pkl': it cannot be unpickled .*save_replay_buffer"):
        load_transitions(tmp_path / "cut.pkl")
