"""Mazes from above: the whole maze with the path walked so far, instead of what a camera beside the agent sees."""

import math
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sb3_dmpo.plots.common import PALETTE

#: Where Gymnasium-Robotics' mazes keep the MuJoCo environment of their agent.
_SIMULATIONS = ("ant_env", "point_env")
_PATH_WIDTH, _START_RADIUS = 3, 5
#: Cells of the maze's outer walls that are seen, both sides together.
_SEEN_OF_WALLS = 0.5


def from_above(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """
    The environment, as a :class:`MazeView` if it is a maze.

    :param env: any environment
    """
    inner = env.unwrapped
    is_maze = hasattr(inner, "maze") and any(hasattr(inner, name) for name in _SIMULATIONS)
    return MazeView(env) if is_maze else env


class MazeView(gym.Wrapper[Any, Any, Any, Any]):
    """
    Renders a maze of Gymnasium-Robotics (AntMaze, PointMaze) from above, with the path of the episode so far.

    :param env: a maze
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        maze: Any = env.unwrapped
        self._simulation: Any = next(getattr(maze, name) for name in _SIMULATIONS if hasattr(maze, name))
        self._path: list[NDArray[np.float64]] = []
        model, walls = self._simulation.model, maze.maze
        self._tangent = math.tan(math.radians(model.vis.global_.fovy) / 2)
        n_cells = max(walls.map_width, walls.map_length) - 2 + _SEEN_OF_WALLS
        self._distance = n_cells * walls.maze_size_scaling / 2 / self._tangent
        renderer = self._simulation.mujoco_renderer
        # -1: no camera of the model (Ant's follows it at the height of the walls), but one that stands as this says.
        renderer.camera_id = -1
        renderer.default_cam_config = {
            "lookat": np.zeros(3),
            "distance": self._distance,
            "azimuth": 90.0,
            "elevation": -90.0,
        }

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Begin an episode, and its path.

        :param seed: passed on
        :param options: passed on
        """
        observation, info = super().reset(seed=seed, options=options)
        self._path = [self._position()]
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        Take a step.

        :param action: passed on
        """
        result = super().step(action)
        self._path.append(self._position())
        return result

    def render(self) -> Any:
        """The picture, shape ``(height, width, 3)``; what the environment gives where that is no picture."""
        frame: Any = super().render()
        if not isinstance(frame, np.ndarray) or not self._path:
            return frame
        height, width = frame.shape[:2]
        # On the floor. The camera looks at the origin, which is the middle of the maze.
        pixels_per_metre = height / 2 / self._tangent / self._distance
        points = np.array([width / 2, height / 2]) + np.stack(self._path) * [pixels_per_metre, -pixels_per_metre]
        picture = Image.fromarray(frame)
        pen = ImageDraw.Draw(picture)
        pen.line([tuple(point) for point in points.tolist()], PALETTE[4], _PATH_WIDTH, joint="curve")
        pen.circle(tuple(points[0]), _START_RADIUS, PALETTE[4], "black")
        return np.asarray(picture)

    def _position(self) -> NDArray[np.float64]:
        position: NDArray[np.float64] = self._simulation.data.qpos[:2].copy()
        return position
