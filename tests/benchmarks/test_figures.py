"""The figures: their data from tiny models, and that they are drawn from whatever is there."""

import csv
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from benchmarks.maze_trajectories import count_near_failures
from benchmarks.scores import read_results
from sb3_dmpo import AWAC, DMPO
from sb3_dmpo.cli.results import TRAINING_COLUMNS
from sb3_dmpo.envs import TWO_GOALS_DATASET_ID, make_two_goals_dataset
from sb3_dmpo.plots.two_goals import FAILURE_COLOUR, SUCCESS_COLOUR
from tests.benchmarks.test_tables import row, write
from tests.dataset_helpers import make_dataset

pytest.importorskip("matplotlib")
figure_data = pytest.importorskip("benchmarks.figure_data")
figures = pytest.importorskip("benchmarks.figures")
learning_curves = pytest.importorskip("benchmarks.learning_curves")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two tiny models of the toy as NAME=PATH."""
    make_two_goals_dataset()
    folder = tmp_path_factory.mktemp("models")
    arguments: dict[str, Any] = {"dataset": TWO_GOALS_DATASET_ID, "policy_kwargs": {"net_arch": [8]}, "seed": 0}
    for name, algorithm in (("dmpo", DMPO), ("awac", AWAC)):
        algorithm("MlpPolicy", **arguments).learn(2).save(folder / name / "model.zip")
    return [f"DMPO={folder}/dmpo/model.zip", f"AWAC={folder}/awac/model.zip"]


def test_data_and_pictures(models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, arguments in (
        (2, ["toy", *models]),
        (4, ["bellman", *models, "--dataset", TWO_GOALS_DATASET_ID, "--samples", "50"]),
        (5, ["episode", models[0], "--dataset", TWO_GOALS_DATASET_ID]),
    ):
        assert figure_data.main([*arguments, "--output", str(tmp_path / f"figure_{number}.npz")]) == 0
    toy, bellman, episode = (np.load(tmp_path / f"figure_{number}.npz") for number in (2, 4, 5))
    assert toy["paths_AWAC"].shape[0] == len(toy["returns_AWAC"]) == 20 and int(toy["n_components_DMPO"]) == 8
    assert "components_AWAC" not in toy and toy["alone_DMPO"].shape[::2] == (8, 2) and toy["alone_returns_DMPO"].shape == (8,)
    assert bellman["errors_DMPO"].shape == (2, 50) and int(bellman["updates_DMPO"]) == 2
    steps = len(episode["components_0"])
    assert episode["values_0"].shape == (steps, 8)
    assert (episode["values_0"].argmax(axis=1) == episode["components_0"]).all()
    assert len(episode["frames_0"]) == sum(step < steps for step in figure_data.FRAME_STEPS)

    names = ("awac", "dmpo")
    rows = [
        row(name, "zoo/hopper/mixed-v0", seed, 10.0 * seed + i, updates=1000 * i, evaluation=kind)
        for name in names
        for seed in (0, 1)
        for i, kind in ((1, "training"), (2, "training"), (3, "final"))
    ]
    write(tmp_path / "a.csv", rows)
    losses = {column: "" for column in TRAINING_COLUMNS} | {"algorithm": "awac", "dataset": "zoo/hopper/mixed-v0", "seed": "0"}
    with open(tmp_path / "a_training.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, TRAINING_COLUMNS)
        writer.writeheader()
        writer.writerows([losses | {"updates": "500", "critic_loss": "1"}, losses | {"updates": "1000", "critic_loss": "3"}])
    capsys.readouterr()
    assert figures.main(["--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "missing: figure_3: no critic losses of DMPO on zoo/hopper/mixed-v0"
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == set(figures.FIGURES) - {
        "long_runs",
        "performance_profiles",
        "maze_trajectories",
    }
    first = (tmp_path / "figures" / "figure_3.png").read_bytes()
    assert figures.main(["--results", str(tmp_path), "--only", "figure_3"]) == 0
    assert (tmp_path / "figures" / "figure_3.png").read_bytes() == first


def test_missing_data_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures.main(["--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(figures.FIGURES) and all(line.startswith("missing: ") for line in lines)
    assert figure_data.main(["toy", "DMPO=somewhere.zip"]) == 1
    assert "somewhere.zip" in capsys.readouterr().err


def test_losses_are_averaged_over_blocks() -> None:
    rows = [
        {"seed": seed, "updates": str(u), "loss": value} for seed, u, value in (("0", 1, "1"), ("0", 5, "3"), ("1", 5, ""))
    ]
    assert learning_curves.by_updates(rows, "loss", block=5) == {5: [2.0]}
    assert learning_curves.by_updates([*rows, {"seed": "1", "updates": "6", "loss": "7"}], "loss", 5) == {5: [2.0], 6: [7.0]}
    # A block stands where its last row does, also where rows and blocks do not end together.
    thousands = [{"seed": "0", "updates": str(1000 * i), "loss": str(i)} for i in range(1, 11)]
    assert learning_curves.by_updates(thousands, "loss", block=833) == {1000 * i: [float(i)] for i in range(1, 11)}


def test_runs_of_two_lengths_have_a_panel_each(tmp_path: Path) -> None:
    """Their learning rates differ, and what they reach after as many updates is not to be mixed."""
    for name, command, length in (("short", "-n 30", 3), ("long", "-n 50", 5)):
        rows = [
            row(algorithm, "zoo/hopper/mixed-v0", 0, float(length), updates=10 * i, evaluation="training", command=command)
            for algorithm in ("dmpo", "awac")
            for i in range(1, length + 1)
        ]
        write(tmp_path / f"{name}.csv", rows)
    rows = read_results(tmp_path)
    assert len(rows) == 2 * (3 + 5)
    assert learning_curves.panels(rows) == [("zoo/hopper/mixed-v0", 30), ("zoo/hopper/mixed-v0", 50)]
    figure, message = learning_curves.figure_3(tmp_path)
    assert message.count("DMPO on zoo/hopper/mixed-v0") == 2
    above = figure.axes[:2]
    assert [axes.get_title() for axes in above] == [f"zoo/hopper/mixed-v0, {length} updates" for length in (30, 50)]
    for axes, length in zip(above, (3, 5), strict=True):
        assert [list(line.get_ydata()) for line in axes.lines] == [[length] * length] * 2


def test_long_runs_show_every_evaluation(tmp_path: Path) -> None:
    """And their mean over ten in a row, for each seed; short runs have no panel."""
    length = learning_curves.LONG
    rows = [
        row("bc", "zoo/hopper/mixed-v0", seed, float(i + 10 * seed), updates=i * length // 12, evaluation=kind)
        for seed in (0, 1)
        for i, kind in [*((i, "training") for i in range(1, 13)), (12, "final")]
    ]
    short = row("dmpo", "zoo/hopper/mixed-v0", 0, 1.0, updates=length - 1)
    write(tmp_path / "a.csv", [*rows, short])
    figure, message = learning_curves.long_runs(tmp_path)
    assert not message and [axes.get_title() for axes in figure.axes] == [f"BC, 2 seeds\n{length:,} updates"]
    first, mean, second, mean_of_second = figure.axes[0].lines
    assert list(first.get_ydata()) == list(range(1, 13)) and list(second.get_ydata()) == list(range(11, 23))
    assert list(mean.get_ydata()) == pytest.approx([5.5, 6.5, 7.5]) and list(mean.get_xdata()) == pytest.approx(
        [updates / 1000 for updates in (10 * length // 12, 11 * length // 12, length)]
    )
    assert list(mean_of_second.get_ydata()) == pytest.approx([15.5, 16.5, 17.5])


class _Pusher:
    """Stands in for a model: pushes in one direction, whatever it sees."""

    num_timesteps = 1_000

    def __init__(self, direction: float) -> None:
        self.action = np.array([direction, 0.0], np.float32)

    def predict(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, None]:
        return self.action, None


def test_trajectories_in_a_maze(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, models: list[str]
) -> None:
    """In a corridor whose goal lies in the east, pushing to the east reaches it, and the path ends there."""
    gym.register_envs(pytest.importorskip("gymnasium_robotics"))
    corridor = [[1, 1, 1, 1, 1], [1, "r", 0, "g", 1], [1, 1, 1, 1, 1]]
    env = gym.make("PointMaze_UMaze-v3", maze_map=corridor, max_episode_steps=200)
    make_dataset("tests/corridor-v0", env.observation_space, env.action_space, env=env)
    env.close()
    directions = {"east": 1.0, "west": -1.0}
    monkeypatch.setattr(figure_data, "load", lambda path, **kwargs: _Pusher(directions[path]))
    arguments = ["maze", "--dataset", "tests/corridor-v0", "--episodes", "3", "East=east", "West=west"]
    assert figure_data.main([*arguments, "--output", str(tmp_path / "maze_trajectories.npz")]) == 0, capsys.readouterr()
    data = np.load(tmp_path / "maze_trajectories.npz")
    assert data["walls"].tolist() == [[True] * 5, [True, False, False, False, True], [True] * 5] and data["cell_size"] == 1
    assert data["successes_East"].all() and not data["successes_West"].any()
    assert data["paths_West"].shape == (3, 201, 2) and data["paths_East"].shape[1] < 201
    for path, goal in zip(data["paths_East"], data["goals_East"], strict=True):
        steps = path[~np.isnan(path[:, 0])]
        assert steps[0, 0] < -0.5 and np.linalg.norm(steps[-1] - goal) <= 0.45 < np.linalg.norm(steps[-2] - goal)

    assert figures.main(["--results", str(tmp_path), "--only", "maze_trajectories"]) == 0
    assert (tmp_path / "figures" / "maze_trajectories.png").is_file()
    figure, _ = figures.FIGURES["maze_trajectories"](tmp_path)
    assert [axes.get_title() for axes in figure.axes] == [
        "East: 100% of 3 episodes\n1,000 updates",
        "West: 0% of 3 episodes\n1,000 updates\n0 of 3 failures end within 1 m of the goal",
    ]
    # Of two that fail, the second ends beside its goal, before the padding.
    paths = np.array([[[0, 0], [5, 0]], [[0, 0], [np.nan] * 2], [[0, 0], [0, 1]]], np.float32)
    goals, successes = np.array([[0, 0], [0, 0.5], [0, 1]], np.float32), np.array([False, False, True])
    assert count_near_failures(paths, goals, successes, distance=1.0) == 1
    for axes, colour in zip(figure.axes, (SUCCESS_COLOUR, FAILURE_COLOUR), strict=True):
        assert [line.get_color() for line in axes.lines[:3]] == [colour] * 3

    capsys.readouterr()
    for wrong, word in (("0", "--episodes is 0"), ("1", "is no maze")):
        assert figure_data.main(["maze", models[0], "--dataset", TWO_GOALS_DATASET_ID, "--episodes", wrong]) == 2
        assert word in capsys.readouterr().err


def test_the_page_shows_every_committed_figure() -> None:
    page = Path(figures.HERE / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", page)
    assert links and all((figures.HERE / link).exists() for link in links if not link.endswith("*.csv")), links
    for name in figures.FIGURES:
        assert f"results/figures/{name}.png" in page, name
