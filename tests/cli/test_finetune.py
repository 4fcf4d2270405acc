"""``train.py --finetune``: the online stage of a run, its files, its rows, and going on after a kill."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch as th

from sb3_dmpo import DMPO
from tests.cli.test_train import Outcome, assert_one_line

pytest.importorskip("rl_zoo3")

from tests.doors import train

RUN = ["--algo", "dmpo", "-n", "6", "--seed", "1", "--eval-freq", "4", "--eval-episodes", "2", "--save-freq", "8"]
RUN += ["--finetune", "24", "--finetune-params", "learning_starts:8"]
SMALL = ["-params", "policy_kwargs:dict(net_arch=[8])", "batch_size:16"]
FOLDER = Path("dmpo/TwoGoals-v0_1")


def test_a_run_that_goes_on_online(call: Callable[..., Outcome], tmp_path: Path) -> None:
    code, out, err = call(train, *RUN, "n_envs:2", "--eval-freq", "12", *SMALL, "--results", "r.csv")
    assert code == 0, err
    folder = tmp_path / "logs" / FOLDER
    offline, online = (DMPO.load(path / "TwoGoals-v0.zip") for path in (folder, folder / "finetune"))
    assert (offline.num_timesteps, offline._n_updates) == (6, 6)
    assert (online.num_timesteps, online._n_updates) == (24, 6 + 8)
    for line in ("Score before fine-tuning: return", "Score after fine-tuning: return", "zip (24 steps, 14 updates)"):
        assert line in out
    assert np.load(folder / "finetune" / "evaluations.npz")["timesteps"].tolist() == [12, 24]
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    found = [(row["updates"], row["env_steps"], row["evaluation"]) for row in rows]
    assert found == [("6", "0", "final"), ("7", "12", "training"), ("13", "24", "final")]
    assert (folder / "finetune" / "best_model.zip").exists()


@pytest.mark.parametrize(("interval", "episodes"), [("2", ["2", "4", "6", "8"]), ("5", ["5"]), ("-2", [])])
def test_the_log_of_the_online_stage(call: Callable[..., Outcome], tmp_path: Path, interval: str, episodes: list[str]) -> None:
    run = [word if word != "24" else "150" for word in RUN]
    code, _, err = call(train, *run, *SMALL, "--eval-freq", "-1", "--save-freq", "-1", "--log-interval", interval)
    assert code == 0, err
    path = tmp_path / "logs" / FOLDER / "finetune" / "progress.csv"
    rows = list(csv.DictReader(path.open()))
    assert [row["time/episodes"] for row in rows if row.get("time/episodes")] == episodes


def test_killed_and_resumed(call: Callable[..., Outcome], tmp_path: Path) -> None:
    """The stage goes on from its newest whole checkpoint, and a finished one is left alone."""
    assert call(train, *RUN, *SMALL)[0] == 0
    stage = tmp_path / "logs" / FOLDER / "finetune"
    (stage / "TwoGoals-v0.zip").unlink()
    for steps in (16, 24):
        # What a kill leaves while the transitions of a checkpoint are written.
        (stage / f"rl_model_replay_buffer_{steps}_steps.npz").unlink()
    code, out, err = call(train, *RUN, *SMALL, "--resume")
    assert code == 0, err
    assert "TwoGoals-v0.zip (6 updates) was finished before" in out
    assert "Resuming logs/dmpo/TwoGoals-v0_1/finetune/rl_model_8_steps.zip" in out
    model = DMPO.load(stage / "TwoGoals-v0.zip")
    assert (model.num_timesteps, model._n_updates) == (24, 6 + 16)
    assert np.load(stage / "evaluations.npz")["timesteps"].tolist() == [4, 8, 12, 16, 20, 24]
    weights = model.policy.state_dict()

    code, out, _ = call(train, *RUN, *SMALL, "--resume")
    assert code == 0 and "finetune/TwoGoals-v0.zip was finished before" in out
    assert all(
        th.equal(value, weights[name]) for name, value in DMPO.load(stage / "TwoGoals-v0.zip").policy.state_dict().items()
    )
    changed = call(train, *RUN, "noise_std:0.2", *SMALL, "--resume")
    assert_one_line(changed, "begun with other settings", "noise_std: 0.1 before, 0.2 now")
    longer = call(train, *(word if word != "24" else "48" for word in RUN), *SMALL, "--resume")
    assert_one_line(longer, "begun with other settings", "finetune: 24 before, 48 now")


def test_tuples_among_the_settings_are_no_others(call: Callable[..., Outcome], tmp_path: Path) -> None:
    command = [*RUN[:-1], "train_freq:(1,'episode')", "learning_starts:8", *SMALL]
    assert call(train, *command)[0] == 0
    code, out, err = call(train, *command, "--resume")
    assert code == 0 and "finetune/TwoGoals-v0.zip was finished before" in out, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--algo", "bc", "--finetune", "5"], ["bc has no critic", "td3_bc"]),
        (["--algo", "maple", "--finetune", "5"], ["maple learns from episodes that its model", "td3_bc"]),
        (["--finetune", "5", "--finetune-params", "noise_sdt:1"], ["noise_sdt", "noise_std"]),
        (["--finetune", "5", "--finetune-params", "n_envs:0"], ["n_envs is 0", "at least 1"]),
        (["--finetune", "5", "--finetune-params", "noise_std:True"], ["noise_std", "at least 0"]),
        (["--finetune", "5", "--finetune-params", "online_ratio:2"], ["online_ratio is 2", "from 0 to 1"]),
        (["--finetune", "5", "--finetune-params", "train_freq:(1,'day')"], ["train_freq", "episode"]),
        (["--finetune", "5", "--finetune-params", "train_freq:(1,'episode')", "n_envs:2"], ["whole episodes", "n_envs is 2"]),
        (["--finetune-params", "n_envs:2"], ["needs --finetune"]),
        (["--finetune", "-5"], ["positive number"]),
        (["--finetune", "5", "-optimize"], ["does not go with -optimize"]),
        (["--finetune", "5", "--finetune-params", "n_envs:"], ["'n_envs:' is no setting", "NAME:VALUE"]),
    ],
)
def test_what_is_refused(call: Callable[..., Outcome], tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    assert_one_line(call(train, *arguments), *words)
    assert not (tmp_path / "logs").exists()
