"""The wheel holds everything that the command line needs, and works without a checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel, built from a copy of the sources."""
    pytest.importorskip("setuptools", minversion="68")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("sb3_dmpo", "zoo_configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
    ]
    subprocess.run([*command, str(source)], check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_nothing_is_missing_and_nothing_too_much(installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    configs = {f"zoo_configs/{name}" for name in files(ROOT / "zoo_configs")}
    assert files(installed / "sb3_dmpo") == files(ROOT / "sb3_dmpo") | configs and len(configs) >= 12
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"sb3_dmpo"}


@pytest.mark.slow
def test_the_command_line_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed)}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "sb3_dmpo", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    out = run("train", "--algo", "bc", "-n", "3", "--eval-episodes", "2", "--seed", "0", "--num-threads", "1")
    assert f"{installed}/sb3_dmpo/zoo_configs/bc.yml" in out and "Score:" in out
    command = (tmp_path / "logs/bc/TwoGoals-v0_1/TwoGoals-v0/command.txt").read_text()
    assert command.startswith("python -m sb3_dmpo train --algo bc")
    assert "over 2 episodes" in run("enjoy", "--algo", "bc", "--no-render", "--episodes", "2")
    assert "BC (--algo bc)" in run("inspect", "logs/bc/TwoGoals-v0_1/TwoGoals-v0.zip")
