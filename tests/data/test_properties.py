"""Whatever the episodes look like, they end up as the right transitions, and then as the right tensors."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer

from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.data import load_transitions
from tests.dataset_helpers import ACTIONS, make_dataset, random_episodes

shapes = st.sampled_from([(), (1,), (3,), (2, 2)])
floats = st.builds(
    lambda shape, dtype: spaces.Box(-np.inf, np.inf, shape, dtype),
    shapes,
    st.sampled_from([np.float16, np.float32, np.float64]),
)
# Not (2, 2) of uint8: that is an image.
integers = st.builds(
    lambda shape, dtype: spaces.Box(0, 100, shape, dtype),
    st.sampled_from([(), (1,), (3,)]),
    st.sampled_from([np.uint8, np.int8, np.int32, np.int64]),
)
boxes = floats | integers
keys = st.text("abcxyz_-", min_size=1, max_size=4)
observation_spaces = st.recursive(
    boxes, lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=3).map(spaces.Dict), max_leaves=4
)
endings = st.sampled_from(["terminated", "truncated", "neither"])
episode_lists = st.lists(st.tuples(st.integers(1, 5), endings), min_size=1, max_size=5).map(tuple)
in_pytest = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def leaves(space: spaces.Space[Any], value: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """The entries of an observation by their path, the slow and simple way."""
    if not isinstance(space, spaces.Dict):
        return {prefix: np.asarray(value)}
    found: dict[str, np.ndarray] = {}
    for key, inner in space.spaces.items():
        found |= leaves(inner, value[key], f"{prefix}/{key}" if prefix else key)
    return found


def flat(space: spaces.Space[Any], value: Any, step: int) -> np.ndarray:
    entries = leaves(space, value)
    return np.concatenate([entries[path][step].reshape(-1).astype(np.float32) for path in sorted(entries)])


def expected(space: spaces.Space[Any], episodes: list[EpisodeBuffer]) -> list[tuple[Any, ...]]:
    low, high = ACTIONS.low.astype(float), ACTIONS.high.astype(float)
    return [
        (
            flat(space, episode.observations, step),
            flat(space, episode.observations, step + 1),
            2.0 * (np.asarray(episode.actions[step], float) - low) / (high - low) - 1.0,
            episode.rewards[step],
            bool(episode.terminations[step]),
        )
        for episode in episodes
        for step in range(len(episode.rewards))
    ]


@in_pytest
@given(observation_spaces, episode_lists, st.integers(0, 2**16))
def test_any_episodes_become_the_right_transitions(
    tmp_path_factory: pytest.TempPathFactory, space: spaces.Space[Any], episodes: tuple[tuple[int, str], ...], seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        recorded = random_episodes(space, ACTIONS, episodes, seed)
        dataset = make_dataset(observation_space=space, buffers=recorded)
        transitions = load_transitions(dataset.spec.dataset_id, cache=False)
    rows = expected(space, recorded)
    assert len(transitions) == len(rows)
    for index, (observation, next_observation, action, reward, terminated) in enumerate(rows):
        np.testing.assert_array_equal(transitions.observations[index], observation)
        np.testing.assert_array_equal(transitions.next_observations[index], next_observation)
        np.testing.assert_allclose(transitions.actions[index], action, atol=1e-6)
        np.testing.assert_allclose(transitions.rewards[index], reward, rtol=1e-6)
        assert transitions.terminations[index] == terminated
    assert transitions.episode_lengths.tolist() == [length for length, _ in episodes]

    buffer = OfflineReplayBuffer.from_transitions(transitions, seed=seed)
    np.testing.assert_allclose(
        buffer.observation_mean.numpy(), transitions.observations.astype(float).mean(axis=0), atol=1e-6, rtol=1e-6
    )
    np.testing.assert_allclose(
        buffer.observation_std.numpy(), transitions.observations.astype(float).std(axis=0), atol=1e-6, rtol=1e-6
    )
    fields = ("observations", "next_observations", "rewards", "terminations")
    columns = [getattr(transitions, name).reshape(len(transitions), -1) for name in fields]
    known = {tuple(row) for row in np.concatenate(columns, axis=1).tolist()}
    sample = buffer.sample(16)
    drawn = [sample.observations, sample.next_observations, sample.rewards, sample.dones]
    for row in th.cat([column.reshape(16, -1) for column in drawn], dim=1).tolist():
        assert tuple(row) in known
