"""Videos: what is on the frames, and that a file is there only when it is complete."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dmpo import ALGOS
from sb3_dmpo.cli.enjoy import record
from sb3_dmpo.cli.enjoy.record import EpisodeCounter, RecordingEnv, VideoWriter, choose_renderer
from sb3_dmpo.cli.episodes import EVAL_SEED_OFFSET, seed_episodes
from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.cli.free_name import free_name
from sb3_dmpo.common.evaluation import evaluate_policy
from sb3_dmpo.plots.common import METHOD_NAMES, PALETTE
from sb3_dmpo.plots.overlay import Overlay

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
pytest.importorskip("rl_zoo3")

Outcome = tuple[int, str, str]
FRAME = np.full((101, 151, 3), 128, np.uint8)


def colours(picture: np.ndarray) -> set[str]:
    return {"#{:02X}{:02X}{:02X}".format(*pixel) for pixel in np.unique(picture.reshape(-1, 3), axis=0)}


def frames_of(path: Path) -> tuple[dict[str, object], list[np.ndarray]]:
    reader = imageio_ffmpeg.read_frames(str(path))
    metadata = next(reader)
    width, height = metadata["size"]
    return metadata, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


def test_bars_of_all_sub_policies_and_a_box_around_the_active_one() -> None:
    overlay = Overlay("dmpo")
    values = np.array([1.0, 3.0, 2.0], np.float32)
    picture = overlay.draw(FRAME, ["step 1"], values, active=1)
    assert picture.shape[0] >= 480 and picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    panel = picture[:, -320:]
    assert {*PALETTE[:3], "#EEEEEE", "#FFFFFF"} <= colours(panel) and PALETTE[3] not in colours(panel)
    widths = [
        int((panel == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2).sum(axis=1).max()) for colour in PALETTE[:3]
    ]
    assert widths[0] < widths[2] < widths[1]


def test_the_strip_shows_the_steps_of_this_episode() -> None:
    overlay = Overlay("dmpo")
    values = np.zeros(2, np.float32)
    strips = [overlay.draw(FRAME, [], values, active)[-30, -320:] for active in (0, 1)]
    assert [colours(strip) & set(PALETTE) for strip in strips] == [{PALETTE[0]}, {PALETTE[0], PALETTE[1]}]
    overlay.start_episode()
    assert colours(overlay.draw(FRAME, [], values, 1)[-30, -320:]) & set(PALETTE) == {PALETTE[1]}


@pytest.mark.parametrize("n_components", [2, 8, 16, 40])
def test_nothing_is_drawn_beyond_the_panel(n_components: int) -> None:
    """Whatever the number of sub-policies and the length of the texts, the edge of the panel stays white."""
    overlay = Overlay("infodmpo on a dataset with a very very long name and then some more")
    values = np.linspace(-12345.678, 0.001234, n_components, dtype=np.float32)
    panel = overlay.draw(FRAME, ["episode 1000, step 100000, return -123456.7"], values, n_components - 1)[:, -320:]
    assert (panel[:, -3:] == 255).all() and (panel[-6:] == 255).all() and (panel[:, :4] == 255).all()


def test_a_policy_without_components_has_texts_only() -> None:
    assert not colours(Overlay("bc").draw(FRAME, ["step 1"])[:, -320:]) & set(PALETTE)


def test_an_incomplete_video_is_not_there(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "new" / "video.mp4", fps=20)
    for i in range(5):
        writer.append(np.full((64, 96, 3), 40 * i, np.uint8))
    assert not writer.path.exists()
    writer.close()
    metadata, frames = frames_of(writer.path)
    assert metadata["fps"] == 20 and len(frames) == writer.n_frames == 5
    assert [path.name for path in writer.path.parent.iterdir()] == ["video.mp4"]
    assert abs(int(frames[4].mean()) - 160) < 10


def test_enjoy_records(call: Callable[..., Outcome], tmp_path: Path) -> None:
    from tests.doors import enjoy, train

    tiny = ["-n", "6", "--eval-freq", "-1", "--seed", "1", "-params", "policy_kwargs:dict(net_arch=[8])", "batch_size:16"]
    assert call(train, *tiny, "n_components:3")[0] == 0
    code, out, err = call(enjoy, "--record", "--episodes", "1")
    assert code == 0, err
    path = tmp_path / "logs/dmpo/TwoGoals-v0_1/videos/dmpo.mp4"
    assert "Video: logs/dmpo/TwoGoals-v0_1/videos/dmpo.mp4" in out and "over 1 episodes" in out
    _, frames = frames_of(path)
    assert 1 <= len(frames) <= 40 and frames[0].shape == (480, 800, 3)
    assert call(enjoy, "--record", "other.mp4", "-n", "3")[0] == 0
    assert len(frames_of(tmp_path / "other.mp4")[1]) == 3
    (tmp_path / "file").touch()
    for arguments, message, expected in (
        (["--record", "film.avi"], ".mp4", 2),
        (["--record", "--n-envs", "2"], "--n-envs", 2),
        (["--record", "file/film.mp4"], "Not a directory: 'file/film.mp4'", 1),
    ):
        code, _, err = call(enjoy, *arguments)
        assert code == expected and message in err and len(err.splitlines()) == 1


def test_rendering_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(record.sys, "platform", "linux")
    libraries = {"OSMesa": "libOSMesa.so"}
    monkeypatch.setattr(record.ctypes.util, "find_library", libraries.get)
    choose_renderer()
    assert record.os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.delenv("MUJOCO_GL")
    libraries.clear()
    choose_renderer()  # not every environment needs one; for MuJoCo the frames say what is missing
    assert "MUJOCO_GL" not in record.os.environ
    monkeypatch.setenv("MUJOCO_GL", "egl")
    choose_renderer()


def test_sub_policies_that_act_as_one_get_one_colour() -> None:
    overlay = Overlay("DMPO", is_one=True)
    values = np.array([1.0, 3.0, 2.0], np.float32)
    for active in (0, 1, 2):
        panel = overlay.draw(FRAME, [], values, active)[:, -320:]
    assert colours(panel) & set(PALETTE) == {PALETTE[0]}


def test_older_videos_are_kept(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        names.append(free_name(tmp_path / "videos" / "dmpo.mp4"))
        names[-1].parent.mkdir(exist_ok=True)
        names[-1].touch()
    assert [path.name for path in names] == ["dmpo.mp4", "dmpo-2.mp4", "dmpo-3.mp4"]


class _Unrenderable(gym.Env[Any, Any]):
    observation_space = action_space = gym.spaces.Box(-1, 1, (1,))
    render_mode = "rgb_array"

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self) -> Any:
        raise ImportError("libEGL.so.1: cannot open shared object file")


def test_a_library_that_rendering_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = RecordingEnv([_Unrenderable], 1, 0, tmp_path / "x.mp4", "DMPO")
    env.reset()
    with pytest.raises(UsageError, match=r"(?s)cannot be rendered .*libEGL\.so\.1"):
        env.step(np.zeros((1, 1), np.float32))
    monkeypatch.setitem(sys.modules, "mujoco", None)
    monkeypatch.setattr(record, "has_display", lambda: False)
    with pytest.raises(UsageError, match=r"libegl1 .* or libosmesa6"):
        env.step(np.zeros((1, 1), np.float32))
    env.close()
    assert not list(tmp_path.iterdir())


def test_every_algorithm_has_a_name_for_the_title_of_its_videos() -> None:
    assert set(METHOD_NAMES) == set(ALGOS)


@pytest.fixture(params=["PointMaze_UMaze-v3", "AntMaze_UMaze-v5"])
def maze(request: pytest.FixtureRequest) -> gym.Env[Any, Any]:
    gym.register_envs(pytest.importorskip("gymnasium_robotics"))
    return gym.make(request.param, render_mode="rgb_array")


def where(picture: np.ndarray, is_meant: np.ndarray) -> np.ndarray:
    """Middle of the pixels that are meant, as x and y on a floor whose middle is the origin."""
    rows, columns = np.nonzero(is_meant)
    height, width = picture.shape[:2]
    return np.array([columns.mean() - (width - 1) / 2, (height - 1) / 2 - rows.mean()])


def test_a_maze_is_recorded_from_above(maze: gym.Env[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path begins and ends where the agent does, in the scale of the picture (the goal hovers: a little larger)."""
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    choose_renderer()
    if "MUJOCO_GL" not in record.os.environ:
        pytest.skip("MuJoCo needs EGL or OSMesa")
    env = RecordingEnv([lambda: maze], None, 0, tmp_path / "x.mp4", "IQL")
    inner: Any = maze.unwrapped
    env.reset()
    plain = inner.render()
    red, green, blue = plain.astype(int).transpose(2, 0, 1)
    pixels_per_metre = where(plain, (red > 120) & (green < 60) & (blue < 60)) / inner.goal
    assert pixels_per_metre[0] == pytest.approx(pixels_per_metre[1], rel=0.05) and pixels_per_metre[0] > 15

    colour = [int(PALETTE[4][i : i + 2], 16) for i in (1, 3, 5)]
    view, grey = env.envs[0], np.full((480, 480, 3), 128, np.uint8)
    simulation = getattr(inner, "point_env", None) or inner.ant_env
    monkeypatch.setattr(simulation, "render", lambda: grey)
    start = simulation.data.qpos[:2].copy()
    drawn = view.render()
    assert where(drawn, (drawn == colour).all(axis=2)) == pytest.approx(start * pixels_per_metre, abs=20)
    simulation.data.qpos[:2] = end = start + np.array([0.0, 1.5])
    env.step(np.zeros((1, *maze.action_space.shape), np.float32))
    longer = view.render()
    added = where(longer, (longer == colour).all(axis=2) & ~(drawn == colour).all(axis=2))
    assert added == pytest.approx((start + end) / 2 * pixels_per_metre, abs=20)
    env.reset()
    again = view.render()
    assert (again == colour).all(axis=2).sum() <= (drawn == colour).all(axis=2).sum() + 20
    env.close()


class _LongIfOdd(gym.Env[Any, Any]):
    """Every episode gives its seed as the return; odd seeds take five steps, even ones one."""

    observation_space = action_space = gym.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert seed is not None
        self.seed, self.steps = seed, 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        is_over = self.steps == (5 if self.seed % 2 else 1)
        return np.zeros(1, np.float32), float(self.seed) if is_over else 0.0, is_over, False, {"is_success": is_over}


class _Still:
    def predict(self, observations: np.ndarray, **kwargs: Any) -> Any:
        return np.zeros((len(observations), 1), np.float32), None


@pytest.mark.parametrize("n_envs", [1, 2, 3, 4, 10, 12])
def test_the_episodes_are_the_same_ones_however_many_environments_run_them(n_envs: int) -> None:
    """Not those that end first; ``enjoy`` and a run's last evaluation agree."""
    env_fns: list[Callable[[], gym.Env[Any, Any]]] = [lambda: Monitor(_LongIfOdd())] * n_envs
    expected = [EVAL_SEED_OFFSET + 7 + i for i in range(10)]
    counter = EpisodeCounter(env_fns, 10, seed=7)
    counter.reset()
    with pytest.raises(KeyboardInterrupt):
        while True:
            counter.step(np.zeros((n_envs, 1), np.float32))
    assert sorted(episode["r"] for episode in counter.episodes) == expected
    env = DummyVecEnv(env_fns)
    seed_episodes(env, 7)
    assert sorted(evaluate_policy(_Still(), env, n_eval_episodes=10).returns) == expected
