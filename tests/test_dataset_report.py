"""What is said about a dataset before anything is trained on it."""

import subprocess
import sys

import numpy as np
import pytest

from sb3_dmpo.cli.data_command import main
from sb3_dmpo.common.dataset_report import describe_dataset
from tests.dataset_helpers import make_dataset
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


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset("tests/report-v0")
    assert main(["describe", "tests/report-v0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["transitions", "11", "in", "5", "episodes"]
    assert "from [-2.0, 0.0] to [2.0, 10.0]" in lines[6]


def test_command_faults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "tests/nothing-v0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("datasets: error: Dataset 'tests/nothing-v0' is not") and error.count("\n") == 1


def test_program_says_nothing_else() -> None:
    """Not that it is imported twice, above all."""
    command = [sys.executable, "-m", "sb3_dmpo.common.datasets", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "describe" in result.stdout and result.stderr == ""
