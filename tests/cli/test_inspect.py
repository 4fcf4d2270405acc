"""What is inside a zip is said without unpickling anything."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import TD3

from sb3_dmpo import ALGOS, DMPO
from sb3_dmpo.common.callbacks import NormalizedEvalCallback
from sb3_dmpo.envs import TWO_GOALS_DATASET_ID, TwoGoals, make_two_goals_dataset
from sb3_dmpo.hub.summary import read_summary
from tests.contract import DATA, DICT_DATA, make
from tests.doors import inspect as main

Outcome = tuple[int, str, str]


@pytest.fixture
def inspect(call: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Run the command; whatever would unpickle fails."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("something was unpickled")

    def run(*argv: str) -> Outcome:
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in ((pickle, "loads"), (pickle, "load"), (pickle, "Unpickler"), (th, "load")):
                patch.setattr(owner, name, refuse)
            return call(main, *argv)

    return run


def with_attributes(path: Path, **changes: Any) -> None:
    """Rewrite attributes of a zip."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    if "settings.json" in entries:
        settings = json.loads(entries["settings.json"])
        entries["settings.json"] = json.dumps(settings | {"attributes": settings["attributes"] | changes}).encode()
    entries["data"] = json.dumps(json.loads(entries["data"]) | changes).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def remove_settings(path: Path) -> None:
    """What is left is a zip of an early version."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist() if name != "settings.json"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("name", ALGOS)
def test_every_algorithm_is_recognised(name: str, tmp_path: Path) -> None:
    make(name, dataset=DATA).save(tmp_path / "model")
    summary = read_summary(tmp_path / "model")
    assert (summary.algorithm, summary.class_name) == (name, ALGOS[name].__name__)
    if name != "one_step_dmpo":  # younger than such zips, and with the arguments of DMPO
        remove_settings(tmp_path / "model.zip")
        assert read_summary(tmp_path / "model").algorithm == name
    assert summary.hyperparameters["batch_size"] == 16 and "seed" not in summary.hyperparameters


@pytest.mark.parametrize("name", ["dmpo", "infodmpo", "td3_bc"])
def test_files_of_older_versions_are_recognised(name: str, tmp_path: Path) -> None:
    """Those that lack an argument of today."""
    make(name, dataset=DATA).save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist() if entry != "settings.json"}
    attributes = json.loads(entries["data"])
    del attributes["tau"], attributes["policy_delay"]
    if name != "td3_bc":
        del attributes["kl_coef"]
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, json.dumps(attributes) if entry == "data" else content)
    assert read_summary(tmp_path / "model.zip").algorithm == name


def test_a_run_on_the_toy(inspect: Callable[..., Outcome], tmp_path: Path) -> None:
    """It names algorithm, dataset, updates, scores, settings and spaces, of the last model and of the best one."""
    dataset = make_two_goals_dataset()
    callback = NormalizedEvalCallback(
        TimeLimit(TwoGoals(), 40), eval_freq=4, n_eval_episodes=2, best_model_save_path=str(tmp_path)
    )
    model = DMPO(dataset=dataset, n_components=3, batch_size=16, seed=0, policy_kwargs={"net_arch": [8]})
    model.learn(6, callback=callback)
    model.save(tmp_path / "model")
    code, out, err = inspect("model.zip", "best_model")
    assert code == 0, err
    first, second = out.split("\n\n")
    for text in (
        "DMPO (--algo dmpo)",
        TWO_GOALS_DATASET_ID,
        "normalised",
        "over 2 episodes after 4 updates",
        "n_components=3",
    ):
        assert text in " ".join(first.split()), first
    assert "updates       6\n" in first and "updates       4\n" in second
    assert "actions       2 numbers (float32) from [-1. -1.] to [1. 1.]" in first
    assert read_summary(tmp_path / "model").evaluation == model.last_evaluation
    assert model.last_evaluation is not None and model.last_evaluation["updates"] == 4


def test_dict_observations(inspect: Callable[..., Outcome], tmp_path: Path) -> None:
    make("bc", "MultiInputPolicy", dataset=DICT_DATA).save(tmp_path / "model")
    assert "goal/arm" in inspect("model.zip")[1]


def test_models_of_stable_baselines3(inspect: Callable[..., Outcome], tmp_path: Path) -> None:
    TD3("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}).save(tmp_path / "td3")
    code, out, _ = inspect("td3.zip")
    assert code == 0 and "none of this package" in out and "3 numbers (float32)" in out


@pytest.mark.parametrize("has_settings", [True, False])
def test_hostile_texts_stay_texts(inspect: Callable[..., Outcome], tmp_path: Path, has_settings: bool) -> None:
    """Escape sequences, endless texts and values of a wrong kind."""
    make("dmpo", dataset=DATA).save(tmp_path / "model.zip")
    if not has_settings:
        remove_settings(tmp_path / "model.zip")
    with_attributes(
        tmp_path / "model.zip",
        dataset_id="\x1b[2J\u202eevil\n" + "x" * 10_000,
        seed=[1],
        last_evaluation={"mean_return": "high"},
        observation_space=[],
        action_space={"$type": "Box"} if has_settings else {"_shape": "x"},
        policy_class="none",
    )
    code, out, _ = inspect("model.zip")
    assert code == 0 and out.isascii() and "\x1b" not in out and len(out) < 3000
    assert "cannot be read" in out and r"\x1b[2J\u202eevil" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no zip", "no complete zip"), (b"", "no complete zip")],
)
def test_damaged_files_are_one_line(inspect: Callable[..., Outcome], tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.zip").write_bytes(content)
    code, out, err = inspect("model.zip")
    assert code == 2 and not out and message in err and len(err.splitlines()) == 1


def test_no_json(inspect: Callable[..., Outcome], tmp_path: Path) -> None:
    tensors = io.BytesIO()
    th.save({"a": th.zeros(1)}, tensors)
    for data in (b"{", b"[]", b"\xff"):
        with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
            archive.writestr("data", data)
            archive.writestr("policy.pth", tensors.getvalue())
        code, _, err = inspect("model.zip")
        assert code == 2 and "attributes of the model" in err
    assert inspect("nothing.zip")[0] == 1


def test_evaluations_survive_saving_and_loading(tmp_path: Path) -> None:
    model = make("bc", dataset=DATA)
    model.last_evaluation = {"updates": 3, "mean_return": float(np.float64(1.5))}
    model.save(tmp_path / "model")
    assert ALGOS["bc"].load(tmp_path / "model").last_evaluation == {"updates": 3, "mean_return": 1.5}
