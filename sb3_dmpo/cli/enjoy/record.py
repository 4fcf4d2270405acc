"""Episodes for watching a model: counted until there are enough, and as MP4 files, without a display too."""

import ctypes.util
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dmpo.cli.episodes import episodes_of_each, seed_episodes
from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.common.evaluation import EvaluationResult
from sb3_dmpo.data import DatasetSource
from sb3_dmpo.data.tasks import reference_scores
from sb3_dmpo.plots.maze_view import from_above
from sb3_dmpo.plots.overlay import Overlay

_DEFAULT_FPS = 30


def has_display() -> bool:
    """Whether windows can be opened."""
    return not sys.platform.startswith("linux") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def choose_renderer() -> None:
    """Have MuJoCo render without a display where there is none, nothing else was asked for and a library for it is there."""
    if has_display() or "MUJOCO_GL" in os.environ:
        return
    for renderer, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = renderer
            return


class EpisodeCounter(DummyVecEnv):
    """
    Environments that remember how their episodes went, and end rl_zoo3's loop (as Ctrl-C does) after enough of them.

    :param env_fns: makers of the environments
    :param limit: number of episodes; None: no limit
    :param seed: seed of the run, which gives the episodes theirs
    """

    def __init__(self, env_fns: list[Callable[[], gym.Env[Any, Any]]], limit: int | None, seed: int) -> None:
        super().__init__(env_fns)
        seed_episodes(self, seed)
        #: Episodes that each environment has yet to run.
        self._left: list[float] = [math.inf] * self.num_envs
        if limit is not None:
            self._left = list(episodes_of_each(limit, self.num_envs))
        self.episodes: list[dict[str, Any]] = []

    def step_async(self, actions: NDArray[Any]) -> None:
        """
        Take the actions.

        :param actions: one for every environment
        :raises KeyboardInterrupt: all episodes have been run
        """
        if not any(self._left):
            raise KeyboardInterrupt
        super().step_async(actions)

    def step_wait(self) -> Any:
        """Do the step."""
        observations, rewards, dones, infos = super().step_wait()
        for i in np.flatnonzero(dones):
            if self._left[i]:
                self._left[i] -= 1
                self.episodes.append({**infos[i]["episode"], "is_success": infos[i].get("is_success")})
        return observations, rewards, dones, infos

    def result(self, dataset: DatasetSource, env_id: str | None) -> EvaluationResult | None:
        """
        What the episodes so far amount to, None if none has ended.

        :param dataset: where reference scores are looked for
        :param env_id: the environment, if it is not the dataset's
        """
        if not self.episodes:
            return None
        successes = [episode["is_success"] for episode in self.episodes]
        return EvaluationResult(
            returns=np.array([episode["r"] for episode in self.episodes], np.float64),
            lengths=np.array([episode["l"] for episode in self.episodes], np.int64),
            successes=None if None in successes else np.array(successes, np.bool_),
            reference=reference_scores(dataset, env_id),
        )


class VideoWriter:
    """
    An MP4 file that appears when it is complete.

    :param path: the file
    :param fps: frames per second
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.fps = fps
        self.n_frames = 0
        self._partial = path.with_name(f".{path.stem}.partial.mp4")
        self._stream: Any = None

    def append(self, frame: NDArray[np.uint8]) -> None:
        """
        Add a frame.

        :param frame: shape ``(height, width, 3)``, even sizes, the same for all frames
        """
        if self._stream is None:
            import imageio_ffmpeg

            self.path.parent.mkdir(parents=True, exist_ok=True)
            size = (frame.shape[1], frame.shape[0])
            # macro_block_size: every player shows even sizes; multiples of 16 would rescale the text.
            self._stream = imageio_ffmpeg.write_frames(
                str(self._partial), size, fps=self.fps, quality=7, macro_block_size=2, ffmpeg_log_level="error"
            )
            self._stream.send(None)
        self._stream.send(np.ascontiguousarray(frame))
        self.n_frames += 1

    def close(self) -> None:
        """Complete the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
            os.replace(self._partial, self.path)


class RecordingEnv(EpisodeCounter):
    """
    A single environment whose episodes are written to a video, with what the policy thinks beside the picture. Mazes are seen
    from above.

    :param env_fns: maker of the environment
    :param limit: number of episodes; None: no limit
    :param seed: seed of the run, which gives the episodes theirs
    :param path: the video
    :param title: first line on the frames
    """

    def __init__(
        self, env_fns: list[Callable[[], gym.Env[Any, Any]]], limit: int | None, seed: int, path: Path, title: str
    ) -> None:
        super().__init__(env_fns, limit, seed)
        self.envs = [from_above(env) for env in self.envs]
        self.model: Any = None
        self.overlay = Overlay(title)
        self.video = VideoWriter(path, float(self.envs[0].metadata.get("render_fps") or _DEFAULT_FPS))
        self._steps, self._return = 0, 0.0

    def step_async(self, actions: NDArray[Any]) -> None:
        """
        Draw what the action follows from, and take it.

        :param actions: shape ``(1, action_size)``
        """
        super().step_async(actions)
        frame = self._frame()
        if not isinstance(frame, np.ndarray):
            raise UsageError(f"{self.envs[0]} renders no pictures (render_mode 'rgb_array'): it cannot be recorded.")
        lines = [f"episode {len(self.episodes) + 1}, step {self._steps}, return {self._return:.1f}"]
        policy: Any = getattr(self.model, "policy", None)
        if not hasattr(policy, "component_q_values"):
            self.video.append(self.overlay.draw(frame, lines))
            return
        observation = self._obs_from_buf()
        active = int(policy.select_component(observation)[0])
        if not self.overlay.is_one:
            lines.append(f"sub-policy {active} acts")
        self.video.append(self.overlay.draw(frame, lines, policy.component_q_values(observation)[0], active))

    def _frame(self) -> Any:
        """
        :raises UsageError: a library is missing, or the environment renders nothing
        """
        try:
            return self.envs[0].render()
        except Exception as error:  # of MuJoCo, OpenGL, pygame, ...
            reason = f"{type(error).__name__}: {' '.join(str(error).split()) or 'without a word'}"
            remedy = "install the library that it names"
            if "mujoco" in sys.modules and not has_display():
                remedy = (
                    "without a display MuJoCo needs EGL or OSMesa: apt-get install libegl1 (then MUJOCO_GL=egl) or libosmesa6 "
                    f"(then MUJOCO_GL=osmesa); MUJOCO_GL is {os.environ.get('MUJOCO_GL', 'not set')} now"
                )
            raise UsageError(f"--record: {self.envs[0].unwrapped} cannot be rendered ({reason}): {remedy}.") from error

    def step_wait(self) -> Any:
        """Do the step."""
        observations, rewards, dones, infos = super().step_wait()
        self._steps, self._return = self._steps + 1, self._return + float(rewards[0])
        if dones[0]:
            self.overlay.start_episode()
            self._steps, self._return = 0, 0.0
        return observations, rewards, dones, infos

    def close(self) -> None:
        """Complete the video and close the environment."""
        self.video.close()
        super().close()
