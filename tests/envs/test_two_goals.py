import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sb3_dmpo.envs import TWO_GOALS_DATASET_ID, TwoGoals, make_two_goals_dataset, two_goals, two_goals_data
from sb3_dmpo.envs.two_goals import GOAL_RADIUS, GOALS, OBSTACLE_RADIUS, OBSTACLES, START


def walk(env: gym.Env, direction: tuple[float, float]) -> tuple[list[float], bool, bool, dict]:
    """Rewards, terminated, truncated and the last info of an episode that always acts the same."""
    env.reset(seed=3)
    rewards, terminated, truncated, info = [], False, False, {}
    while not (terminated or truncated):
        _, reward, terminated, truncated, info = env.step(np.array(direction, np.float32))
        rewards.append(reward)
    return rewards, terminated, truncated, info


@pytest.fixture
def empty_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    return tmp_path / "root"


def test_passes_gymnasiums_checks() -> None:
    check_env(gym.make("TwoGoals-v0", render_mode="rgb_array").unwrapped)


def test_reset_starts_near_the_start_and_follows_the_seed() -> None:
    env = gym.make("TwoGoals-v0")
    starts = np.array([env.reset(seed=seed)[0] for seed in range(50)])
    assert np.abs(starts - START).max() <= 0.05
    assert starts.std(axis=0).min() > 0.02
    np.testing.assert_array_equal(env.reset(seed=7)[0], starts[7])


def test_a_step_moves_by_a_fifth_of_the_action_and_stays_inside() -> None:
    env = TwoGoals()
    start, _ = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(np.array([0.5, -1.0], np.float32))
    np.testing.assert_allclose(observation, start + np.array([0.1, -0.2]), atol=1e-6)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info == {"is_success": False, "is_collision": False}
    for _ in range(10):
        observation, *_ = env.step(np.array([-3.0, 0.0], np.float32))
    assert observation[0] == -1.5


@pytest.mark.parametrize(
    "direction, last_reward, ends, success, collision",
    [
        ((0.9, 0.4), 1.0, "terminated", True, False),
        ((0.9, -0.4), 1.0, "terminated", True, False),
        ((1.0, 0.0), -1.0, "terminated", False, True),
        ((0.0, 0.0), 0.0, "truncated", False, False),
    ],
)
def test_episodes_end_at_goals_obstacles_and_the_time_limit(
    direction: tuple[float, float], last_reward: float, ends: str, success: bool, collision: bool
) -> None:
    rewards, terminated, truncated, info = walk(gym.make("TwoGoals-v0"), direction)
    assert rewards[-1] == last_reward and not any(rewards[:-1])
    assert (terminated, truncated) == (ends == "terminated", ends == "truncated")
    assert (info["is_success"], info["is_collision"]) == (success, collision)
    assert len(rewards) == 40 or terminated


def test_only_the_end_of_a_step_counts_and_borders_do_not() -> None:
    assert two_goals.outcome(OBSTACLES[0] + [0.0, OBSTACLE_RADIUS * 0.999]) == (-1.0, True)
    assert two_goals.outcome(OBSTACLES[0] + [OBSTACLE_RADIUS * 1.001, 0.0]) == (0.0, False)
    assert two_goals.outcome(GOALS[1] - [GOAL_RADIUS * 0.999, 0.0]) == (1.0, True)
    assert two_goals.outcome(GOALS[1] - [GOAL_RADIUS * 1.001, 0.0]) == (0.0, False)


@pytest.mark.parametrize("action", [np.zeros(3), np.array([np.nan, 0.0]), np.float32(1.0)])
def test_unusable_actions_are_refused(action: np.ndarray) -> None:
    env = TwoGoals()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="two finite numbers"):
        env.step(action)


def test_render_shows_obstacles_goals_and_the_point() -> None:
    env = TwoGoals(render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    assert first is not None and first.shape == (two_goals.IMAGE_SIZE, two_goals.IMAGE_SIZE, 3) and first.dtype == np.uint8

    def pixel(image: np.ndarray, x: float, y: float) -> tuple[int, ...]:
        scale = two_goals.IMAGE_SIZE / (2 * two_goals.LIMIT)
        return tuple(int(value) for value in image[int((two_goals.LIMIT - y) * scale), int((x + two_goals.LIMIT) * scale)])

    assert pixel(first, 0.8, 0.8) == pixel(first, 0.8, -0.8) == two_goals.RED
    assert pixel(first, 0.45, 0.0) == pixel(first, -0.5, 1.0) == two_goals.BLACK
    observation, *_ = env.step(np.array([1.0, 1.0], np.float32))
    second = env.render()
    assert second is not None and pixel(second, *observation) == two_goals.GREEN
    assert TwoGoals().render() is None
    with pytest.raises(ValueError, match="human"):
        TwoGoals(render_mode="human")


def test_dataset_has_the_statistics_of_its_definition() -> None:
    episodes = two_goals_data.demonstrations()
    lengths = np.array([len(episode) for episode in episodes])
    observations = np.concatenate([episode.observations[:-1] for episode in episodes])
    actions = np.concatenate([episode.actions for episode in episodes])
    assert (len(episodes), lengths.sum(), lengths.min(), lengths.max()) == (400, 6645, 12, 24)
    np.testing.assert_allclose(observations.mean(axis=0), [-0.22, 0.00], atol=0.005)
    np.testing.assert_allclose(observations.std(axis=0), [0.48, 0.33], atol=0.005)
    # At the crossing actions go up or down, their mean goes slowly straight ahead.
    crossing = actions[np.abs(observations).max(axis=1) < 0.15]
    assert len(crossing) == 1046
    np.testing.assert_allclose(np.linalg.norm(crossing.mean(axis=0)), 0.41, atol=0.005)
    np.testing.assert_allclose(np.linalg.norm(crossing, axis=1).mean(), 0.77, atol=0.005)


def test_demonstrations_alternate_between_goals_and_replay_in_the_environment() -> None:
    episodes = two_goals_data.demonstrations(n_episodes=20)
    for index, episode in enumerate(episodes):
        assert np.linalg.norm(episode.observations[-1] - GOALS[index % 2]) < GOAL_RADIUS
        assert episode.rewards.tolist() == [0.0] * (len(episode) - 1) + [1.0]
        assert episode.terminations.tolist() == [False] * (len(episode) - 1) + [True]
        assert not episode.truncations.any()
        moved = [two_goals.move(p.astype(float), a) for p, a in zip(episode.observations[:-1], episode.actions, strict=True)]
        np.testing.assert_allclose(moved, episode.observations[1:], atol=1e-6)


def test_dataset_is_written_once_and_read_through_minari(isolated_data_folders: Path) -> None:
    dataset = make_two_goals_dataset()
    written = (isolated_data_folders / TWO_GOALS_DATASET_ID / "data" / "main_data.hdf5").stat().st_mtime_ns
    assert make_two_goals_dataset().id == TWO_GOALS_DATASET_ID
    assert (isolated_data_folders / TWO_GOALS_DATASET_ID / "data" / "main_data.hdf5").stat().st_mtime_ns == written
    assert list(minari.list_local_datasets()).count(TWO_GOALS_DATASET_ID) == 1
    assert (dataset.total_episodes, dataset.total_steps) == (400, 6645)
    episode = dataset[0]
    assert episode.observations.shape == (len(episode.actions) + 1, 2)
    assert episode.infos["is_success"].tolist() == [False] * len(episode.actions) + [True]
    env = dataset.recover_environment(eval_env=True)
    assert env.spec is not None and (env.spec.id, env.spec.max_episode_steps) == ("TwoGoals-v0", 40)
    np.testing.assert_array_equal(minari.get_normalized_score(dataset, np.array([0.0, 1.0])), [0.0, 1.0])


def few_demonstrations(monkeypatch: pytest.MonkeyPatch) -> None:
    episodes = two_goals_data.demonstrations(n_episodes=4)
    monkeypatch.setattr(two_goals_data, "demonstrations", lambda: episodes)


def test_several_writers_at_once_leave_one_whole_dataset(empty_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_demonstrations(monkeypatch)
    write = two_goals_data._write_storage
    barrier = threading.Barrier(4)

    def write_together(path: Path) -> None:
        barrier.wait(timeout=30)
        write(path)

    monkeypatch.setattr(two_goals_data, "_write_storage", write_together)
    with ThreadPoolExecutor(4) as pool:
        datasets = list(pool.map(lambda _: make_two_goals_dataset(), range(4)))
    assert [dataset.total_episodes for dataset in datasets] == [4] * 4
    folder = empty_root / TWO_GOALS_DATASET_ID
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, "namespace_metadata.json"]


def test_an_interrupted_writer_leaves_nothing_behind(empty_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_demonstrations(monkeypatch)

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(two_goals_data.MinariStorage, "update_metadata", interrupted)
        make_two_goals_dataset()
    assert not minari.list_local_datasets()
    assert [path.name for path in (empty_root / TWO_GOALS_DATASET_ID).parent.iterdir()] == ["namespace_metadata.json"]
    assert make_two_goals_dataset().total_episodes == 4


def test_an_unwritable_root_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file" / "root"))
    with pytest.raises(OSError, match=r"toy dataset sb3_dmpo/two-goals.*file.*Set MINARI_DATASETS_PATH"):
        make_two_goals_dataset()


class Counting:
    """Acts by how many steps it remembers."""

    def predict(self, observation: np.ndarray, state: int | None = None, episode_start: object = None, **_: object) -> tuple:
        steps = 0 if state is None else state
        return np.array([1.0, 0.5 * (-1) ** steps], np.float32), steps + 1


def test_pictures_show_agents_that_remember() -> None:
    pytest.importorskip("matplotlib")
    from sb3_dmpo.plots.two_goals import trajectories

    for path in trajectories(Counting(), 2, seed=0)[0]:
        moves = np.diff(path, axis=0)[:4, 1]
        assert (moves[::2] > 0).all() and (moves[1::2] < 0).all()


def test_dataset_id_alone_makes_the_dataset(empty_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_dmpo.data import load_transitions

    few_demonstrations(monkeypatch)
    found = load_transitions(TWO_GOALS_DATASET_ID)
    assert (empty_root / TWO_GOALS_DATASET_ID).is_dir()
    assert len(found) == sum(len(episode) for episode in two_goals_data.demonstrations())
