"""What is said about a dataset before anything is trained on it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sb3_dmpo.data import Transitions, from_arrays, load_transitions
from sb3_dmpo.data.multimodality import FALSE_ALARMS, estimate_multimodality, valley
from sb3_dmpo.data.report import describe_dataset
from sb3_dmpo.envs import make_two_goals_dataset
from tests.dataset_helpers import make_dataset
from tests.doors import describe
from tests.toy_data import make_transitions


def test_numbers_of_a_dataset() -> None:
    data = make_transitions(n_episodes=4)
    data.actions[:8, 1] = 1.0
    report = describe_dataset(data)
    assert (report.n_transitions, report.observation_size, report.observation_keys) == (32, 3, 0)
    assert report.lengths.tolist() == [8] * 4 and report.n_terminated == 2
    np.testing.assert_allclose(report.returns[0], data.rewards[:8].sum(dtype=np.float64))
    assert report.saturation.tolist() == [0.0, 0.25]
    assert (report.action_low.tolist(), report.action_high.tolist()) == ([-2.0, 0.0], [1.0, 5.0])


def test_a_task_that_ends_within_an_episode_ends_no_episode() -> None:
    """OGBench's masks are 0 wherever the goal is reached, and the recording goes on."""
    n = 15
    data = from_arrays(
        np.zeros((n, 3)), np.zeros((n, 2)), np.zeros(n), np.arange(n) % 5 == 4, masks=~np.isin(np.arange(n), [1, 2, 9])
    )
    assert data.terminations.sum() == 3 and len(data.episode_lengths) == 3
    assert describe_dataset(data).n_terminated == 1


def dataset_of(ways: np.ndarray, observations: np.ndarray, spread: float = 0.1) -> Transitions:
    """
    Episodes of eight steps whose actions are one of two, but for noise.

    :param ways: whether the first or the second, shape ``(n_episodes, 8)``
    :param observations: shape ``(n_episodes, 8, 3)``
    """
    rng = np.random.default_rng(1)
    centres = np.where(ways[..., None], 0.5, -0.5) * np.array([1.0, -1.0])
    actions = np.clip(centres + rng.normal(0.0, spread, (*ways.shape, 2)), -1.0, 1.0).astype(np.float32).reshape(-1, 2)
    data = make_transitions(n_episodes=len(ways))
    return replace(data, actions=actions, observations=observations.astype(np.float32).reshape(-1, 3))


@pytest.mark.parametrize("seed", [0, 1])
def test_two_ways_are_found_and_told_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    observations = rng.normal(size=(120, 8, 3))
    by_chance = estimate_multimodality(dataset_of(rng.random((120, 8)) < 0.5, observations), seed)
    by_state = estimate_multimodality(dataset_of(observations[..., 0] > 0.0, observations), seed)
    assert by_chance is not None and by_state is not None
    assert by_chance.share == 1.0 and by_chance.n_neighbours == 60
    assert abs(by_chance.gap - np.sqrt(2.0)) < 0.1 and abs(by_chance.told_apart - 0.5) < 0.1
    # Only states near the border see both ways, and there the observation says which one.
    assert by_state.share < by_chance.share and by_state.told_apart > 0.75


@pytest.mark.parametrize("spread", [0.1, 0.7, None])
def test_one_way_is_no_two_ways(spread: float | None) -> None:
    """However wide the noise is, also where it is uniform between the bounds."""
    data = dataset_of(np.ones((200, 8), bool), np.random.default_rng(0).normal(size=(200, 8, 3)), spread or 1.0)
    if spread is None:
        data = replace(data, actions=np.random.default_rng(0).uniform(-1.0, 1.0, data.actions.shape).astype(np.float32))
    found = estimate_multimodality(data)
    assert found is not None and found.share <= 2.0 * FALSE_ALARMS


def test_toy_is_multimodal() -> None:
    """
    Real datasets, as measured: 17% here, 50% on hopper/mixed-v0 (six policies), 7% on hopper/expert-v0, 2% on
    pen/expert-v0, 5% on hopper/random-v0 (uniform actions).
    """
    report = describe_dataset(load_transitions(make_two_goals_dataset()))
    assert report.multimodality is not None and 0.12 < report.multimodality.share < 0.25
    assert "what mixtures are made for. OneStepDMPO where" in report.advice
    assert "MAPLE fits the dynamics first: less than a minute of one CPU core per epoch" in report.cost_of_a_model


def test_too_few_episodes() -> None:
    report = describe_dataset(make_transitions(n_episodes=20))
    assert report.multimodality is None and "too few episodes" in report.advice


@pytest.mark.parametrize(("centres", "is_empty"), [((-1.0, 1.0), True), ((0.0, 0.0), False)])
def test_valley(centres: tuple[float, float], is_empty: bool) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(centre, 0.2, 50) for centre in centres])
    emptiness, gap, border = valley(values)
    assert (emptiness < 0.1) == is_empty and (emptiness > 0.8) != is_empty
    if is_empty:
        assert abs(gap - 2.0) < 0.1 and abs(border) < 0.4


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_dataset("tests/report-v0")
    assert describe(["tests/report-v0"]) == 0
    assert (tmp_path / "tests-report-v0.png").stat().st_size > 5000
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["transitions", "11", "in", "5", "episodes"]
    assert "from [-2.0, 0.0] to [2.0, 10.0]" in lines[6]


@pytest.mark.parametrize("values", [[1.0, 1.0 + 4e-16], [-1e17, -1e17], [3e6, 3e6 + 2e-9], [0.0, 5e-324], [7.0, 7.0]])
def test_returns_that_are_equal_but_for_rounding_are_drawn(tmp_path: Path, values: list[float]) -> None:
    pytest.importorskip("matplotlib")
    from sb3_dmpo.plots.dataset import plot_report

    plot_report(replace(describe_dataset(make_transitions(n_episodes=2)), returns=np.array(values)), tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 5000


def test_pictures_replace_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_dataset("my/own-v0")
    rng = np.random.default_rng(0)
    arrays = {"observations": rng.normal(size=(9, 3)), "actions": np.zeros((9, 2)), "rewards": np.zeros(9)}
    np.savez("my-own-v0.npz", **arrays, terminals=np.arange(9) == 8, timeouts=np.zeros(9))
    Path("my-own-v0.png").write_text("precious")
    for dataset, picture in (("my/own-v0", "my-own-v0-2.png"), ("my-own-v0.npz", "my-own-v0-3.png")):
        assert describe([dataset]) == 0
        assert capsys.readouterr().out.splitlines()[-1].split() == ["figure", picture]
        assert Path(picture).stat().st_size > 5000
    assert Path("my-own-v0.png").read_text() == "precious"
    # What is asked for by name is replaced, if it can be a picture.
    assert describe(["my/own-v0", "--figure", "my-own-v0.png"]) == 0
    assert Path("my-own-v0.png").stat().st_size > 5000
    before = Path("my-own-v0.npz").read_bytes()
    assert describe(["my/own-v0", "--figure", "my-own-v0.npz"]) == 2
    assert "--figure my-own-v0.npz has to end in .png" in capsys.readouterr().err
    assert Path("my-own-v0.npz").read_bytes() == before


def test_command_faults(capsys: pytest.CaptureFixture[str]) -> None:
    assert describe(["tests/nothing-v0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sb3_dmpo describe: error: Dataset 'tests/nothing-v0' is not") and error.count("\n") == 1


def test_program_says_nothing_else() -> None:
    command = [sys.executable, "-m", "sb3_dmpo", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "describe" in result.stdout and result.stderr == ""
