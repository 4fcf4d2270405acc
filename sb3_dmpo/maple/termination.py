"""When an imagined episode ends: rules by task. Nothing of this is learned."""

import importlib
from collections.abc import Callable, Iterable

import torch as th

from sb3_dmpo.data.tasks import entry_keys
from sb3_dmpo.envs import two_goals

#: ``f(observations, actions, next_observations)``, flat raw observations ``(n, S)`` and actions in [-1, 1] ``(n, A)``, to
#: whether the episode ends, bool ``(n,)``.
TerminationRule = Callable[[th.Tensor, th.Tensor, th.Tensor], th.Tensor]

#: Beyond this, the simulation of a locomotion task has blown up.
BOX = 100.0


def _within(values: th.Tensor, low: float, high: float) -> th.Tensor:
    """Whether every entry of a row lies between two bounds; a value that is not finite never does. Shape ``(n,)``."""
    return ((values > low) & (values < high)).all(dim=1)


def hopper(observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
    """The torso is too low or has tilted. (There is no lower bound of the coordinates in the published code.)"""
    height, angle = next_observations[:, 0], next_observations[:, 1]
    is_sane = next_observations.isfinite().all(dim=1) & (next_observations < BOX).all(dim=1)
    return ~(is_sane & (height > 0.7) & (angle.abs() < 0.2))


def walker2d(observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
    """The torso is too low, too high, or has tilted."""
    height, angle = next_observations[:, 0:1], next_observations[:, 1:2]
    return ~(_within(next_observations, -BOX, BOX) & _within(height, 0.8, 2.0) & _within(angle, -1.0, 1.0))


def halfcheetah(observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
    """The state has left the box; also for tasks of which nothing is known."""
    return ~_within(next_observations, -BOX, BOX)


def ant(observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
    """The torso is too low or too high."""
    height = next_observations[:, 0]
    return ~(next_observations.isfinite().all(dim=1) & (height >= 0.2) & (height <= 1.0))


def humanoid(observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
    """The torso is too low or too high."""
    height = next_observations[:, 0]
    return ~((height >= 1.0) & (height <= 2.0))


def never(observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
    """Only time limits end an episode."""
    return th.zeros(len(next_observations), dtype=th.bool, device=next_observations.device)


def two_goals_rule(observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
    """The point is inside an obstacle or a goal."""
    ends = never(observations, actions, next_observations)
    for centres, radius in (
        (two_goals.OBSTACLES, two_goals.OBSTACLE_RADIUS),
        (two_goals.GOALS, two_goals.GOAL_RADIUS),
    ):
        for centre in centres.tolist():
            offsets = next_observations - next_observations.new_tensor(centre)
            ends = ends | (offsets.norm(dim=1) < radius)
    return ends


#: The rules by the name that ``termination_fn`` takes.
RULES: dict[str, TerminationRule] = {
    "hopper": hopper,
    "walker2d": walker2d,
    "halfcheetah": halfcheetah,
    "ant": ant,
    "humanoid": humanoid,
    "never": never,
    "two_goals": two_goals_rule,
}
#: Rule of every task, and the number of observations that it counts on (None: any).
_OF_TASK: dict[str, tuple[str, int | None]] = {
    "hopper": ("hopper", 11),
    "walker2d": ("walker2d", 17),
    "halfcheetah": ("halfcheetah", None),
    "ant": ("ant", None),
    "humanoid": ("humanoid", None),
    **dict.fromkeys(("pointmaze", "maze2d", "pendulum"), ("never", None)),
    "two-goals": ("two_goals", 2),
    "twogoals": ("two_goals", 2),
}


def known_rule(names: Iterable[str], observation_size: int) -> str | None:
    """
    The rule of a task, by the names of its dataset and its environment; None: nothing is known.

    :param names: ids of datasets or environments
    :param observation_size: number of flat observations; a rule that reads others would be wrong
    """
    for name in names:
        # PointMaze_UMaze-v3 is a point maze, whatever the maze.
        for key in (*entry_keys(name), name.rpartition(":")[2].partition("-")[0].partition("_")[0].lower()):
            rule, size = _OF_TASK.get(key, (None, None))
            if rule is not None and size in (None, observation_size):
                return rule
    return None


def rule_name(rule: str | TerminationRule) -> str:
    """
    A rule by name: that of a known one, or ``module:function``.

    :param rule: the rule or its name
    :raises ValueError: there is no such rule, or the function cannot be imported
    """
    if isinstance(rule, str):
        if rule != "auto" and rule not in RULES and ":" not in rule:
            known = ", ".join(map(repr, ["auto", *RULES]))
            raise ValueError(f"termination_fn is {rule!r}, expected one of {known}, or a function as 'module:name'.")
        return rule
    for name, known_function in RULES.items():
        if rule is known_function:
            return name
    name = f"{getattr(rule, '__module__', None)}:{getattr(rule, '__qualname__', None)}"
    if _imported(name) is not rule:
        raise ValueError(
            f"termination_fn is {rule!r}, which cannot be found again by name: define the function at the top of a module."
        )
    return name


def find_rule(name: str) -> TerminationRule:
    """
    The rule of a name.

    :param name: as :func:`rule_name` gives it, not ``"auto"``
    :raises ValueError: there is no such function
    """
    rule = RULES.get(name) or _imported(name)
    if rule is None:
        raise ValueError(f"termination_fn is {name!r}, but there is no such function.")
    return rule


def _imported(name: str) -> TerminationRule | None:
    module, _, function = name.partition(":")
    try:
        found: TerminationRule | None = getattr(importlib.import_module(module), function, None)
    except (ImportError, ValueError):
        return None
    return found


def checked_ends(ends: th.Tensor, n: int) -> th.Tensor:
    """
    What a rule has returned, bool ``(n,)``.

    :param ends: its return value
    :param n: number of rows
    :raises ValueError: it is something else
    """
    if not isinstance(ends, th.Tensor) or ends.dtype != th.bool or ends.shape != (n,):
        found = f"{ends.dtype} {tuple(ends.shape)}" if isinstance(ends, th.Tensor) else type(ends).__name__
        raise ValueError(f"termination_fn returned {found}, expected a bool tensor of the shape ({n},).")
    return ends
