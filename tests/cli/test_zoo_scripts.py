"""rl_zoo3's own scripts work on what a run leaves behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3")


def run(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the logs of a short run."""
    path = tmp_path_factory.mktemp("runs")
    run(path, "sb3_dmpo", "train", "--algo", "dmpo", "-n", "6", "--eval-freq", "3", "--eval-episodes", "2", "--seed", "0")
    return path


@pytest.mark.slow
def test_plots(folder: Path) -> None:
    pytest.importorskip("seaborn")
    out = run(
        folder, "rl_zoo3.plots.all_plots", "-a", "dmpo", "-e", "TwoGoals-v0", "-f", "logs", "-o", "plots", "--no-display"
    )
    assert "|TwoGoals-v0|" in out.replace(" ", "") and (folder / "plots.pkl").is_file()


@pytest.mark.slow
def test_record_video(folder: Path) -> None:
    arguments = ["--algo", "dmpo", "--env", "TwoGoals-v0", "-f", "logs", "-n", "5", "-o", "videos"]
    run(folder, "sb3_dmpo.cli.zoo", "record_video", *arguments)
    assert [path.suffix for path in (folder / "videos").iterdir()] == [".mp4"]
