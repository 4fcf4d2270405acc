"""What policies share that remember the episode in SB3's ``state``."""

from collections.abc import Sequence

import numpy as np


def checked_starts(initial: Sequence[np.ndarray], state: Sequence[np.ndarray], episode_start: np.ndarray | None) -> np.ndarray:
    """
    Which environments begin an episode, shape ``(n,)``, after a check that a state is one for them.

    :param initial: a state before the first step, every array with one row per environment
    :param state: the state that was passed
    :param episode_start: as passed to ``predict``
    :raises ValueError: the state or ``episode_start`` is of other environments, or the state is not finite
    """
    n_envs = len(initial[0])
    expected, found = [array.shape for array in initial], [np.shape(array) for array in state]
    if found != expected:
        raise ValueError(
            f"The state has the shapes {found}, expected {expected}: pass the state that `predict` returned for the same "
            f"{n_envs} environment(s), or None where all episodes begin."
        )
    for number, (before, given) in enumerate(zip(initial, state, strict=True)):
        # Where an episode begins with infinity, that stands for what is unknown.
        if not np.isfinite(given).all() and np.isfinite(before).all():
            name = getattr(initial, "_fields", range(len(initial)))[number]
            index = tuple(np.argwhere(~np.isfinite(given))[0].tolist())
            raise ValueError(
                f"The state's {name} is not finite: index {index} is {np.asarray(given)[index]}. Pass the state that "
                "`predict` returned as it is, or None where all episodes begin."
            )
    starts = np.zeros(n_envs, bool) if episode_start is None else np.asarray(episode_start, bool).reshape(-1)
    if len(starts) != n_envs:
        raise ValueError(f"episode_start has {len(starts)} entries for {n_envs} environment(s).")
    return starts
