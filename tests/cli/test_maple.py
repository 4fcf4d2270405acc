"""MAPLE on the command line: interrupted in every phase and resumed, the ensemble of another run, and where it is shown."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch as th

from sb3_dmpo import MAPLE
from tests.cli.test_train import Outcome, assert_one_line

pytest.importorskip("rl_zoo3")

from sb3_dmpo.cli.configs import config_path, find_entry, parse_values
from sb3_dmpo.maple.dynamics import EnsembleTraining
from tests.doors import enjoy, inspect, train

#: Rollouts before updates 1, 5, 9 and 13, refreshes after 1, 4, 7 and 10.
PARAMS = ["n_models:2", "n_elites:1", "model_arch:(4,)", "model_max_epochs:3", "rollout_length:2", "rollout_batch_size:8"]
PARAMS += ["rollout_interval:4", "n_retained_rollouts:2", "refresh_interval:3", "gru_size:4", "context_size:2", "batch_size:8"]
RUN = ["--algo", "maple", "-n", "14", "--seed", "1", "--save-freq", "4", "--eval-freq", "-1"]
SETTINGS = ["-params", "policy_kwargs:dict(net_arch=[8])", *PARAMS]
FOLDER, ZIP = Path("maple/TwoGoals-v0_1"), Path("maple/TwoGoals-v0_1/TwoGoals-v0.zip")


def assert_same(first: Path, second: Path) -> None:
    models = [MAPLE.load(folder / ZIP) for folder in (first, second)]
    assert [model.num_timesteps for model in models] == [14, 14]
    tensors = [model.policy.state_dict() | dict(model.dynamics.ensemble.state_dict()) for model in models]
    for name, value in tensors[0].items():
        assert th.equal(value, tensors[1][name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("maple")
    assert train([*RUN, "-f", str(folder), *SETTINGS]) == 0
    return folder


@pytest.mark.parametrize("kill", [True, False])
def test_in_the_first_phase(
    call: Callable[..., Outcome], tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, kill: bool
) -> None:
    """Ctrl-C is heard at once and saves; what SIGKILL leaves is the checkpoint after an earlier epoch."""
    original, epochs = EnsembleTraining.run_epoch, list[int]()

    def pressing(self: EnsembleTraining) -> dict[str, float]:
        epochs.append(self.epoch + 1)
        if len(epochs) == 2:
            signal.raise_signal(signal.SIGINT)
        return original(self)

    monkeypatch.setattr(EnsembleTraining, "run_epoch", pressing)
    code, out, err = call(train, *RUN, "-f", "run", *SETTINGS)
    assert (code, err.splitlines()[-1]) == (130, "sb3_dmpo train: interrupted")
    assert "(0 updates)" in out and (tmp_path / "run" / FOLDER / "rl_model_0_steps.zip").is_file()
    if kill:
        (tmp_path / "run" / ZIP).unlink()
    code, out, err = call(train, *RUN, "-f", "run", "--resume", *SETTINGS)
    assert code == 0, err
    assert ("rl_model_0_steps.zip" if kill else "TwoGoals-v0.zip") in out
    assert epochs == [1, 2, 2, 3]
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("updates", [0, 4, 8, 12])
def test_killed_later(call: Callable[..., Outcome], tmp_path: Path, whole: Path, updates: int) -> None:
    """After phase one, in a rollout (which belongs to the update after 4, 8 and 12), and between updates."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / ZIP).unlink()
    for later in range(updates + 4, 14, 4):
        (tmp_path / "run" / FOLDER / f"rl_model_{later}_steps.zip").unlink()
    code, out, err = call(train, *RUN, "-f", "run", "--resume", *SETTINGS)
    assert code == 0, err
    assert f"rl_model_{updates}_steps.zip" in out
    assert_same(tmp_path / "run", whole)


def test_ensemble_of_another_run(call: Callable[..., Outcome], tmp_path: Path, whole: Path) -> None:
    options = ["--dynamics", str(whole / ZIP), *SETTINGS]
    run = [word if word != "1" else "2" for word in RUN]
    code, out, err = call(train, *run, "-f", "second", *options)
    assert code == 0 and "model/" not in out, err
    first, second = (MAPLE.load(folder / ZIP).dynamics for folder in (whole, tmp_path / "second"))
    assert all(th.equal(a, b) for a, b in zip(first.ensemble.parameters(), second.ensemble.parameters(), strict=True))
    assert_one_line(call(train, *RUN, "--dynamics", "missing.zip", *SETTINGS), "--dynamics missing.zip is no file")
    assert_one_line(
        call(train, "--algo", "bc", "-n", "1", "--dynamics", str(whole / ZIP)), "--dynamics: bc fits no ensemble", "maple"
    )
    assert_one_line(call(train, *RUN, *SETTINGS, "dynamics:'x.zip'"), "use the option --dynamics")


def test_another_ensemble_for_an_agent_that_goes_on(call: Callable[..., Outcome], tmp_path: Path, whole: Path) -> None:
    run = [word if word != "1" else "2" for word in RUN]
    assert call(train, *run, "-f", "second", *SETTINGS)[0] == 0
    options = ["-i", str(whole / ZIP), "--dynamics", "second/" + str(ZIP)]
    code, out, err = call(train, *run, "-f", "third", *options)
    assert code == 0 and "model/" not in out, err
    first, second, third = (MAPLE.load(folder / ZIP).dynamics for folder in (whole, tmp_path / "second", tmp_path / "third"))
    of_first, of_second, of_third = (list(model.ensemble.parameters()) for model in (first, second, third))
    assert all(th.equal(a, b) for a, b in zip(of_second, of_third, strict=True)) and not th.equal(of_first[0], of_third[0])


def test_settings_of_the_table() -> None:
    """Those of the authors' program."""
    for dataset in ("D4RL/hopper/medium-v2", "walker2d-medium-replay-v2.hdf5", "zoo/hopper/mixed-v0"):
        found = parse_values(find_entry(str(config_path("maple")), dataset)[1])
        expected = {"published_code": True, "target_entropy": -3, "n_timesteps": 1_000_000, "penalty_coef": 0.25}
        assert {key: found[key] for key in expected} == expected
        assert (found["n_models"], found["n_elites"], found["rollout_length"], found["batch_size"]) == (20, 14, 10, 256)
    found = parse_values(find_entry(str(config_path("maple")), "D4RL/halfcheetah/medium-expert-v2")[1])
    assert (found["penalty_coef"], found["reward_slack"], found["n_timesteps"]) == (5.0, 1.2, 2_000_000)


def test_inspect_and_enjoy(call: Callable[..., Outcome], whole: Path) -> None:
    code, out, _ = call(inspect, str(whole / ZIP))
    assert code == 0 and "dynamics      2 nets, elites " in out and "holdout error" in out
    arguments: list[Any] = ["--algo", "maple", "-f", str(whole), "-n", "30", "--no-render"]
    code, out, err = call(enjoy, *arguments)
    assert code == 0, err
