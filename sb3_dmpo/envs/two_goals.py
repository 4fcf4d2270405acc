"""The two-goal task: a point in the plane that has to pass between obstacles to one of two goals."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

LIMIT = 1.5  #: positions are clipped to [-LIMIT, LIMIT] in both coordinates
STEP_SIZE = 0.2  #: distance covered per coordinate by an action of 1
START = np.array([-1.0, 0.0])
START_NOISE = 0.05  #: half width of the uniform noise on the start
GOALS = np.array([[0.8, 0.8], [0.8, -0.8]])
GOAL_RADIUS = 0.25
OBSTACLES = np.array([[0.45, 0.0], [-0.5, 1.0], [-0.5, -1.0]])
OBSTACLE_RADIUS = 0.2

#: Edge of the rendered image in pixels, and the colours in it.
IMAGE_SIZE = 320
BLUE, RED, BLACK, GREEN, GREY = (40, 90, 220), (225, 60, 50), (20, 20, 20), (30, 160, 70), (150, 200, 165)


def move(position: NDArray[np.float64], action: NDArray[Any]) -> NDArray[np.float64]:
    """
    Position after one step, shape (2,).

    :param position: position before it, shape (2,)
    :param action: displacement in units of ``STEP_SIZE``, shape (2,), clipped to [-1, 1]
    """
    displacement = STEP_SIZE * np.clip(action, -1.0, 1.0).astype(np.float64)
    moved: NDArray[np.float64] = np.clip(position + displacement, -LIMIT, LIMIT)
    return moved


def _inside(position: NDArray[np.float64], centres: NDArray[np.float64], radius: float) -> bool:
    return bool(np.any(np.linalg.norm(centres - position, axis=1) < radius))


def outcome(position: NDArray[np.float64]) -> tuple[float, bool]:
    """
    Reward for arriving at a position and whether the episode ends there: -1 inside an obstacle (tested first), +1
    inside a goal, else 0. Only where a step ends counts, not what it passes through.

    :param position: position after the step, shape (2,)
    """
    if _inside(position, OBSTACLES, OBSTACLE_RADIUS):
        return -1.0, True
    if _inside(position, GOALS, GOAL_RADIUS):
        return 1.0, True
    return 0.0, False


class TwoGoals(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """
    Toy task after section 7.1 of the DMPO paper, which leaves coordinates, radii and limits open; those here are ours.

    Observation: the position, Box(2) in [-1.5, 1.5]. Action: a displacement, Box(2) in [-1, 1], times 0.2. Reward: +1
    inside a goal, -1 inside an obstacle, and both end the episode; 0 otherwise. Registered as ``TwoGoals-v0`` with a
    limit of 40 steps. ``info`` has ``is_success`` and ``is_collision`` at every step.

    :param render_mode: none or ``"rgb_array"``
    :raises ValueError: unknown render mode
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}  # type: ignore[misc]

    def __init__(self, render_mode: str | None = None) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"TwoGoals has no render mode {render_mode!r}: use 'rgb_array' or None.")
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-LIMIT, LIMIT, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._position = START
        self._path: list[NDArray[np.float64]] = [START]
        self._background: NDArray[np.uint8] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """
        Put the point back to the start, with a little noise.

        :param seed: seed of the environment's generator; None goes on with the one it has
        :param options: unused
        :return: observation, shape (2,), and an empty info
        """
        super().reset(seed=seed, options=options)
        self._position = START + self.np_random.uniform(-START_NOISE, START_NOISE, 2)
        self._path = [self._position]
        return self._position.astype(np.float32), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """
        Move the point.

        :param action: displacement, shape (2,), clipped to [-1, 1]
        :return: observation, reward, terminated, truncated (always False: the limit is a wrapper's), info
        :raises ValueError: the action has another shape or is not finite
        """
        action = np.asarray(action)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"TwoGoals takes two finite numbers as action, got {action}.")
        self._position = move(self._position, action)
        self._path.append(self._position)
        reward, terminated = outcome(self._position)
        info = {"is_success": reward > 0, "is_collision": reward < 0}
        return self._position.astype(np.float32), reward, terminated, False, info

    def render(self) -> NDArray[np.uint8] | None:
        """
        The plane with start (blue), goals (red), obstacles (black), the path so far and the point (green).

        :return: image (IMAGE_SIZE, IMAGE_SIZE, 3), or None without a render mode
        """
        if self.render_mode is None:
            return None
        if self._background is None:
            self._background = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 255, np.uint8)
            _draw_discs(self._background, OBSTACLES, OBSTACLE_RADIUS, BLACK)
            _draw_discs(self._background, GOALS, GOAL_RADIUS, RED)
            _draw_discs(self._background, START[None], START_NOISE, BLUE)
        image = self._background.copy()
        _draw_discs(image, np.array(self._path), 0.02, GREY)
        _draw_discs(image, self._position[None], 0.04, GREEN)
        return image


def _draw_discs(image: NDArray[np.uint8], centres: NDArray[np.float64], radius: float, colour: tuple[int, int, int]) -> None:
    """
    Fill discs of the plane [-LIMIT, LIMIT]^2 in an image, in place.

    :param image: (size, size, 3), first row at the top of the plane
    :param centres: (n, 2)
    :param radius: in units of the plane
    :param colour: red, green, blue
    """
    size = len(image)
    axis = (np.arange(size) + 0.5) * (2 * LIMIT / size) - LIMIT
    for x, y in centres:
        image[(axis[None, :] - x) ** 2 + (-axis[:, None] - y) ** 2 < radius**2] = colour
