"""The command line: what runs leave behind, what is refused and how, and that nothing typed or found is executed."""

import csv
import pickle
import re
import runpy
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

import sb3_dmpo
from sb3_dmpo import ALGOS, DMPO
from sb3_dmpo.cli.configs import check_hyperparameters, config_path, find_entry, load_config, parse_values
from sb3_dmpo.cli.data.convert import environment_spec
from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.cli.literals import as_yaml, parse_value
from sb3_dmpo.cli.results import COLUMNS, ResultsFile
from sb3_dmpo.common.evaluation import EvaluationResult
from sb3_dmpo.data import DatasetError
from sb3_dmpo.data.tasks import ReferenceScores, describe_data, entry_keys
from sb3_dmpo.envs import TwoGoals
from sb3_dmpo.envs.registration import environment_name
from tests.contract import DATA, copies, differs, make
from tests.doors import enjoy, train

pytest.importorskip("rl_zoo3")

TINY = ["-n", "6", "--eval-episodes", "2", "--seed", "1", "-params", "policy_kwargs:dict(net_arch=[8])", "batch_size:16"]
Outcome = tuple[int, str, str]


def assert_one_line(outcome: Outcome, *words: str, code: int = 2) -> None:
    assert outcome[0] == code, outcome
    lines = outcome[2].strip().splitlines()
    assert len(lines) == 1, outcome[2]
    for word in words:
        assert word in lines[0]


# Runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("toy_drawn")
def test_a_run_leaves_model_checkpoints_scores_and_a_picture(call: Callable[..., Outcome], tmp_path: Path) -> None:
    arguments = ["--algo", "dmpo", *TINY, "n_components:2", "--eval-freq", "3", "--save-freq", "4", "--results", "out/r.csv"]
    code, out, err = call(train, *arguments)
    assert code == 0, err
    run = tmp_path / "logs" / "dmpo" / "TwoGoals-v0_1"
    last_lines = out.strip().splitlines()[-3:]
    assert [line.split(":")[0] for line in last_lines] == ["Model", "Score", "Figure"]
    assert "logs/dmpo/TwoGoals-v0_1/TwoGoals-v0.zip" in last_lines[0]
    assert re.search(r"return -?\d.* over 2 episodes, normalised score .* success rate .* time-outs", last_lines[1])
    for name in ("rl_model_4_steps.zip", "best_model.zip", "evaluations.npz", "two_goals.png"):
        assert (run / name).stat().st_size > 0
    assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [3, 6]

    settings = yaml.safe_load((run / "TwoGoals-v0" / "config.yml").read_text())
    assert settings["n_components"] == 2 and settings["batch_size"] == 16
    assert yaml.safe_load((run / "TwoGoals-v0" / "args.yml").read_text())["dataset"] == "sb3_dmpo/two-goals/demonstrations-v0"

    with open(tmp_path / "out" / "r.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["updates"], row["evaluation"], row["n_episodes"]) for row in rows] == [
        ("3", "training", "2"),
        ("6", "final", "2"),
    ]
    last = rows[-1]
    assert (last["algorithm"], last["seed"], last["label"], last["score_kind"]) == ("dmpo", "1", "toy", "normalized")
    assert last["command"].startswith("python -m sb3_dmpo train --algo dmpo -n 6")
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", last["commit"]) and last["version"] == sb3_dmpo.__version__

    model = DMPO.load(run / "TwoGoals-v0.zip")
    assert (model.num_timesteps, model.n_components, model.seed, model.replay_buffer) == (6, 2, 1, None)
    assert model.learning_rate == 0.001  # a plain number: the zip needs no rl_zoo3

    code, out, err = call(enjoy, "--algo", "dmpo", "--no-render", "--episodes", "2")
    assert code == 0, err
    assert "Loading latest experiment, id=1" in out and "over 2 episodes" in out.splitlines()[-1]


def test_continuing_goes_on_counting_with_the_zips_own_settings(call: Callable[..., Outcome], tmp_path: Path) -> None:
    assert call(train, *TINY, "n_components:2", "--eval-freq", "-1")[0] == 0
    zip_path = "logs/dmpo/TwoGoals-v0_1/TwoGoals-v0.zip"
    code, _, err = call(train, "-i", zip_path, "-n", "4", "--eval-freq", "-1", "-params", "learning_rate:lin_1e-3")
    assert code == 0, err
    model = DMPO.load(tmp_path / "logs/dmpo/TwoGoals-v0_2/TwoGoals-v0.zip")
    assert (model.num_timesteps, model._n_updates, model.n_components, model.seed) == (10, 10, 2, 1)
    assert model.actor_optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    # Another seed that is typed is the model's, as the rows say, and gives other draws.
    others = []
    for seed in ("1", "5"):
        assert call(train, "-i", zip_path, "-n", "4", "--eval-freq", "-1", "--seed", seed, "-f", f"logs_{seed}")[0] == 0
        others.append(DMPO.load(tmp_path / f"logs_{seed}/dmpo/TwoGoals-v0_1/TwoGoals-v0.zip"))
    assert [other.seed for other in others] == [1, 5]
    first, second = (next(iter(other.policy.parameters())) for other in others)
    assert not th.equal(first, second)
    assert_one_line(call(train, "-i", zip_path, "-params", "policy_kwargs:dict(net_arch=[4])"), "policy_kwargs", "-i")
    assert_one_line(call(train, "--algo", "infodmpo", "-i", zip_path, "-n", "1"), zip_path, "infodmpo")


class InterruptAtThree(BaseCallback):
    """Presses Ctrl-C."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 3:
            signal.raise_signal(signal.SIGINT)
        return True


def test_ctrl_c_saves_once_and_exits_130(call: Callable[..., Outcome], tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    code, out, err = call(train, *TINY, "callback:tests.cli.test_train.InterruptAtThree", "--results", "r.csv")
    assert code == 130
    assert out.count("Saving to") == 1 and "Score:" not in out
    assert err.splitlines()[-1] == "sb3_dmpo train: interrupted"
    assert DMPO.load(tmp_path / "logs/dmpo/TwoGoals-v0_1/TwoGoals-v0.zip").num_timesteps in (3, 4)
    assert not (tmp_path / "r.csv").exists()
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_before_the_first_update_saves_nothing(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DMPO, "_setup_dataset", lambda self, continuing: signal.raise_signal(signal.SIGINT))
    code, out, _ = call(train, *TINY)
    assert code == 130 and "nothing to save" in out
    assert not list(tmp_path.rglob("*.zip"))


class DictTwoGoals(TwoGoals):
    """TwoGoals with a nested Dict observation."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.observation_space = spaces.Dict({"where": spaces.Dict({"position": self.observation_space})})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, info = super().reset(seed=seed, options=options)
        return {"where": {"position": observation}}, info

    def step(self, action: Any) -> Any:
        observation, *others = super().step(action)
        return ({"where": {"position": observation}}, *others)


@pytest.fixture(scope="module")
def dict_dataset() -> str:
    """A dataset with nested Dict observations whose environment is registered."""
    gym.register("DictTwoGoals-v0", entry_point="tests.cli.test_train:DictTwoGoals", max_episode_steps=40)
    env = gym.make("DictTwoGoals-v0")
    rng = np.random.default_rng(0)
    episodes = [
        EpisodeBuffer(
            observations={"where": {"position": rng.uniform(-1, 1, (6, 2)).astype(np.float32)}},
            actions=rng.uniform(-1, 1, (5, 2)).astype(np.float32),
            rewards=np.zeros(5, np.float32),
            terminations=np.zeros(5, bool),
            truncations=np.arange(5) == 4,
        )
        for _ in range(4)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers("tests/dict-goals-v0", episodes, env=env)
    return "tests/dict-goals-v0"


def test_dict_observations_choose_their_policy_and_environment(
    call: Callable[..., Outcome], tmp_path: Path, dict_dataset: str
) -> None:
    code, out, err = call(train, "--dataset", dict_dataset, *TINY, "--num-threads", "1", "--vec-env", "dummy")
    assert code == 0, err
    assert "entry 'default'" in out and "Score:" in out and "Figure" not in out
    model = DMPO.load(tmp_path / "logs/dmpo/tests-dict-goals-v0_1/tests-dict-goals-v0.zip")
    assert list(model.observation_space) == ["where/position"]
    assert call(enjoy, "--dataset", dict_dataset, "--no-render", "--episodes", "1")[0] == 0
    # Trained in another environment than the recorded one: enjoy takes the same.
    assert call(train, "--dataset", dict_dataset, "--env", "DictTwoGoals-v0", *TINY)[0] == 0
    code, out, err = call(enjoy, "--dataset", dict_dataset, "--no-render", "-n", "45")
    assert code == 0, err
    assert "id=2" in out


class ImageEnv(gym.Env[Any, Any]):
    """Rewards are what the policy makes of random images, so that it matters which way round it gets them."""

    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, **shapes: Any) -> None:
        images = {key: spaces.Box(0, 255, tuple(shape), np.uint8) for key, shape in shapes.items()}
        self.observation_space = spaces.Dict(images) if len(images) > 1 else images["image"]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), float(action.sum()), False, False, {}


@pytest.mark.filterwarnings("ignore:.*flattens images")
@pytest.mark.parametrize(
    "shapes",
    [{"image": (6, 5, 3)}, {"image": (6, 5, 3), "other": (3, 6, 5)}],
    ids=["channels last", "channels last and first"],
)
def test_images_reach_the_policy_as_they_are_in_the_data(call: Callable[..., Outcome], shapes: dict[str, Any]) -> None:
    name = "x".join(str(size) for shape in shapes.values() for size in shape)
    gym.register(f"Image{name}-v0", entry_point="tests.cli.test_train:ImageEnv", kwargs=shapes, max_episode_steps=4)
    env = gym.make(f"Image{name}-v0")
    episodes = []
    for seed in range(3):
        env.observation_space.seed(seed)
        seen = [env.observation_space.sample() for _ in range(5)]
        observations = {key: np.stack([row[key] for row in seen]) for key in shapes} if len(shapes) > 1 else np.stack(seen)
        episodes.append(
            EpisodeBuffer(
                observations=observations,
                actions=np.random.default_rng(seed).uniform(-1, 1, (4, 2)).astype(np.float32),
                rewards=np.zeros(4),
                terminations=np.zeros(4, bool),
                truncations=np.arange(4) == 3,
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(f"tests/image{name}-v0", episodes, env=env)
    run = ["--algo", "td3_bc", "--dataset", f"tests/image{name}-v0"]
    code, out, err = call(train, *run, *TINY, "--finetune", "4", "--finetune-params", "learning_starts:2")
    assert code == 0, err
    watched = call(enjoy, *run, "--no-render", "--episodes", "2")
    assert watched[0] == 0, watched[2]
    # enjoy shows the episodes of the last evaluation.
    assert re.findall("return .*", out.partition("Score: ")[2])[0] == re.findall("return .*", watched[1])[-1]


def test_a_dataset_without_environment_trains_without_evaluation(call: Callable[..., Outcome], tmp_path: Path) -> None:
    from stable_baselines3.common.buffers import ReplayBuffer

    position, action = spaces.Box(-1.5, 1.5, (2,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32)
    buffer = ReplayBuffer(30, position, action, device="cpu", handle_timeout_termination=False)
    for _ in range(30):
        buffer.add(position.sample(), position.sample(), action.sample(), np.zeros(1), np.zeros(1), [{}])
    with open(tmp_path / "my log.pkl", "wb") as file:
        pickle.dump(buffer, file)
    assert_one_line(call(train, "--dataset", "my log.pkl", *TINY), "--env", "--eval-freq -1")
    code, _, err = call(train, "--dataset", "my log.pkl", "--eval-freq", "-1", *TINY)
    assert code == 0, err
    assert (tmp_path / "logs/dmpo/my-log-v0_1/my-log-v0.zip").is_file()
    # Only what comes then needs one.
    gym.register("LogGoals-v0", entry_point=TwoGoals, max_episode_steps=5)
    more = ["--dataset", "my log.pkl", *TINY, "--resume", "--finetune", "5", "--env"]
    code, out, err = call(train, *more, "LogGoals-v0")
    assert code == 0, err
    assert "Score after fine-tuning" in out
    assert_one_line(call(train, *more, "TwoGoals-v0"), "env: LogGoals-v0 before, TwoGoals-v0 now")


def test_rl_zoo3s_own_scripts_know_our_models(call: Callable[..., Outcome], tiny: Path) -> None:
    from sb3_dmpo.cli.zoo import run_script

    def zoo(argv: list[str]) -> int:
        run_script(argv)
        return 0

    code, out, _ = call(zoo, "enjoy", "--algo", "dmpo", "--env", "TwoGoals-v0", "-f", str(tiny), "--no-render", "-n", "45")
    assert code == 0 and "Mean reward" in out
    with pytest.raises(UsageError, match="record_video"):
        run_script(["record-video"])


# Faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--algo", "infodmp"], ["'infodmp'", "infodmpo"]),
        (["--algo", "zzz"], ["'zzz'", "Known:", "dmpo", "infodmpo"]),
        (["--dataset", "sb3_dmpo/two-goals/demonstration-v0"], ["sb3_dmpo/two-goals/demonstrations-v0", "--download"]),
        (["--datasett", "x"], ["'--datasett'", "--dataset"]),
        (["-n", "many"], ["-n", "'many'"]),
        (["-params", "foo:1"], ["'foo'", "Known:", "n_components"]),
        (["-params", "n_component:4"], ["'n_component'", "n_components"]),
        (["-params", "seed:4"], ["--seed"]),
        (["-params", "normalize:True"], ["'normalize'", "normalize_observations"]),
        (["-params", "frame_stack:4"], ["'frame_stack'", "dataset"]),
        (["-params", "policy_kwargs:dict(netarch=[3])"], ["'netarch'", "net_arch"]),
        (["-params", "policy:MlpPolicyy"], ["MlpPolicyy"]),
        (["-params", "gamma"], ["NAME:VALUE"]),
        (["-params", "gamma:high"], ["gamma", "'high'", "float"]),
        (["-params", "batch_size:1.5"], ["batch_size", "1.5", "int"]),
        (["-params", "value_targets:1"], ["value_targets", "bool"]),
        (["-params", "target_gate:onlin"], ["target_gate", "'onlin'", "online"]),
        (["-params", "learning_rate:cos_1"], ["learning_rate", "lin_3e-4"]),
        (["-conf", "nowhere.yml"], ["nowhere.yml"]),
        (["-i", "nowhere.zip"], ["nowhere.zip"]),
        (["--env", "TwoGoal-v0"], ["'TwoGoal-v0'", "TwoGoals-v0"]),
        (["--gym-packages", "no_such_package"], ["no_such_package"]),
        (["--eval-episodes", "0"], ["--eval-episodes", "--eval-freq -1"]),
        (["--n-eval-envs", "0"], ["--n-eval-envs is 0", "at least 1"]),
        (["-params", "n_timesteps:'many'"], ["n_timesteps", "'many'", "whole number"]),
        (["-params", "n_timesteps:0"], ["n_timesteps", "0", "at least 1"]),
        (["-params", "eval_freq:2.5"], ["eval_freq", "2.5", "whole number"]),
        (["-params", "eval_episodes:True"], ["eval_episodes", "True", "whole number"]),
        (["-params", "final_eval_episodes:0"], ["final_eval_episodes", "0", "at least 1"]),
        (["-params", "policy:3"], ["policy", "3", "name"]),
        (["-params", "env_kwargs:3"], ["env_kwargs", "3", "dict("]),
        (["-params", "monitor_kwargs:[1]"], ["monitor_kwargs", "[1]", "dict("]),
        (["-params", "callback:3"], ["callback", "3", "'package.module.Class'"]),
        (["-params", "callback:'no_such_package.Callback'"], ["callback", "no_such_package"]),
        (["-params", "callback:'rl_zoo3.callbacks.NoSuchCallback'"], ["callback", "NoSuchCallback"]),
        (["-params", "policy:'no_such_package.Policy'"], ["policy", "no_such_package"]),
        (["-n", "6", "-params", "n_timesteps:4"], ["n_timesteps:4", "-n", "6"]),
        (["--eval-freq", "3", "-params", "eval_freq:2"], ["eval_freq:2", "--eval-freq", "3"]),
        (["--eval-episodes", "3", "-params", "eval_episodes:2"], ["eval_episodes:2", "--eval-episodes", "3"]),
        (["--env-kwargs", "a:1", "-params", "env_kwargs:dict(a=2)"], ["env_kwargs", "--env-kwargs"]),
        (["--eval-freq", "-1", "-params", "final_eval_episodes:3"], ["final_eval_episodes:3", "--eval-freq larger"]),
        (["-params", "eval_freq:-1", "eval_episodes:3"], ["eval_episodes:3", "--eval-freq larger"]),
        (["-optimize", "-params", "final_eval_episodes:3"], ["final_eval_episodes:3", "--n-evaluations"]),
        (["-optimize", "-params", "eval_freq:3"], ["eval_freq:3", "--n-evaluations"]),
        (["--save-replay-buffer"], ["--save-replay-buffer"]),
        (["-uuid"], ["-uuid is of no use", "folder of its own"]),
    ],
)
def test_faults_are_one_line_and_leave_nothing(
    call: Callable[..., Outcome], tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    assert_one_line(call(train, *arguments), *words)
    assert not list(tmp_path.rglob("*_1"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # -params has the last word on the last evaluation, --eval-episodes on those before.
        (["--eval-freq", "3", "--eval-episodes", "1", "-params", "final_eval_episodes:2"], [(3, 1), (6, 1), (6, 2)]),
        (["-params", "eval_freq:4.0", "eval_episodes:1", "n_timesteps:6"], [(4, 1), (6, 1)]),
        # As the advice says: a single evaluation, after the last update.
        (["--eval-freq", "1000", "-params", "final_eval_episodes:3", "n_timesteps:6"], [(6, 3)]),
    ],
)
def test_settings_of_the_run_in_params_are_honoured(
    call: Callable[..., Outcome], tmp_path: Path, arguments: list[str], expected: list[tuple[int, int]]
) -> None:
    tiny = ["policy_kwargs:dict(net_arch=[8])", "batch_size:16"]
    length = [] if "n_timesteps:6" in arguments else ["n_timesteps:6"]
    code, _, err = call(train, "--algo", "bc", "--seed", "1", "--results", "r.csv", *arguments, *tiny, *length)
    assert code == 0, err
    with open(tmp_path / "r.csv", newline="") as file:
        found = [(int(row["updates"]), int(row["n_episodes"])) for row in csv.DictReader(file)]
    assert found == expected


class RememberedCallback(BaseCallback):
    """Remembers that it was called."""

    calls: ClassVar[list[int]] = []

    def _on_step(self) -> bool:
        self.calls.append(self.num_timesteps)
        return True


def test_callbacks_and_arguments_of_environments_in_params_are_honoured(
    call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Counted(TwoGoals):
        def __init__(self, render_mode: str | None = None, marker: int = 0) -> None:
            super().__init__(render_mode)
            made.append(marker)

    monkeypatch.setitem(
        gym.registry, "TwoGoals-v0", gym.envs.registration.EnvSpec("TwoGoals-v0", Counted, max_episode_steps=40)
    )
    RememberedCallback.calls.clear()
    path = f"{RememberedCallback.__module__}.RememberedCallback"
    tiny = [*TINY, f"callback:'{path}'", "env_kwargs:dict(marker=7)", "monitor_kwargs:dict(info_keywords=('is_success',))"]
    code, _, err = call(train, "--algo", "bc", *tiny)
    assert code == 0, err
    assert RememberedCallback.calls == [1, 2, 3, 4, 5, 6] and made.count(7) == 1 + 2
    # An option goes before the config.
    Path("c.yml").write_text("default: {n_timesteps: 6, env_kwargs: {marker: 7}}")
    made.clear()
    assert call(train, "--algo", "bc", "-conf", "c.yml", "--env-kwargs", "marker:8", *TINY)[0] == 0
    assert made.count(8) == 1 + 2 and 7 not in made


@pytest.mark.parametrize(
    ("arguments", "config", "expected"),
    [
        (["--env-kwargs", "marker:3", "shift:4", "--eval-env-kwargs", "marker:5"], "", (5, 0)),
        (["--env-kwargs", "marker:3"], "env_kwargs: dict(shift=4)", (3, 0)),
        ([], "env_kwargs: dict(marker=6)", (6, 0)),
    ],
)
def test_enjoy_makes_the_environment_that_the_run_was_evaluated_in(
    call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, arguments: list[str], config: str, expected: tuple[int, int]
) -> None:
    made: list[tuple[int, int]] = []

    class Marked(TwoGoals):
        def __init__(self, render_mode: str | None = None, marker: int = 0, shift: int = 0) -> None:
            super().__init__(render_mode)
            made.append((marker, shift))

    spec = gym.envs.registration.EnvSpec("TwoGoals-v0", Marked, max_episode_steps=40)
    monkeypatch.setitem(gym.registry, "TwoGoals-v0", spec)
    Path("c.yml").write_text(f"default:\n  n_timesteps: 6\n  {config}\n")
    code, _, err = call(train, "--algo", "bc", "-conf", "c.yml", *arguments, *TINY)
    assert code == 0, err
    assert expected in made
    made.clear()
    code, _, err = call(enjoy, "--algo", "bc", "--no-render", "--episodes", "1")
    assert code == 0, err
    assert set(made) == {expected}
    # What is typed goes before it
    made.clear()
    assert call(enjoy, "--algo", "bc", "--no-render", "--episodes", "1", "--env-kwargs", "shift:9")[0] == 0
    assert set(made) == {(expected[0], 9)}


def test_missing_packages_are_named(call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rl_zoo3.train", None)
    assert_one_line(call(train), "rl_zoo3.train", "sb3_dmpo[zoo]")
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_one_line(call(train, "-optimize"), "pandas")


def test_results_that_cannot_be_written_are_found_before_training(call: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    outcome = call(train, *TINY, "--results", "other.csv")
    assert_one_line(outcome, "other.csv", "columns")
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"
    assert_one_line(call(train, *TINY, "--results", "other.csv/r.csv"), "other.csv", code=1)


def test_enjoy_names_what_is_there(call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_one_line(call(enjoy), "no runs in logs", "-f")
    (tmp_path / "logs" / "dmpo" / "TwoGoals-v0_1").mkdir(parents=True)
    assert_one_line(call(enjoy), "TwoGoals-v0_1", "--exp-id")
    # Who runs the tests may be allowed everything.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert_one_line(call(enjoy), "You may not read logs")
    assert_one_line(call(enjoy, "--algo", "dmp"), "dmpo")
    assert_one_line(call(enjoy, "--episode", "x"), "invalid int value")


@pytest.mark.parametrize(
    ("verb", "needed"),
    [("train", []), ("enjoy", []), ("sweep", []), ("collect", ["--model", "x", "--dataset", "a/b-v0", "--env", "x"])],
)
def test_the_scripts_are_thin_doors(
    call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, verb: str, needed: list[str]
) -> None:
    script = str(Path(sb3_dmpo.__file__).parent.parent / "benchmarks" / f"{verb}.py")

    def run(argv: list[str]) -> Any:
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name="__main__")
        return ended.value.code

    assert_one_line(call(run, script, *needed, "--no-such-option"), f"sb3_dmpo {verb}: error: ", "--no-such-option")


# Nothing is executed --------------------------------------------------------------------------------------------

MALICIOUS = (
    "__import__('os').system('touch pwned')",
    "dict(a=__import__('os').system('touch pwned'))",
    "[open('pwned', 'w')]",
    "(lambda: open('pwned', 'w'))()",
    "[x for x in [open('pwned', 'w')]]",
    "dict(**{'a': open('pwned', 'w')})",
    "{**open('pwned', 'w')}",
    "f'{open(chr(112), chr(119))}'",
    "nn.Module.__subclasses__()",
    "nn.Module",
    "os.system('touch pwned')",
    "9**9**9",
    "dict(a=1" + "[" * 5000,
)


@pytest.mark.parametrize("text", MALICIOUS)
def test_values_are_never_executed(call: Callable[..., Outcome], tmp_path: Path, text: str) -> None:
    assert_one_line(call(train, "-params", f"gamma:{text}"), "gamma" if text == "nn.Module" else "")
    assert_one_line(call(train, "--env-kwargs", f"a:{text}") if text != "nn.Module" else (2, "", "x"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("-1", -1),
        ("1_000", 1000),
        ("True", True),
        ("None", None),
        ("lin_3e-4", "lin_3e-4"),
        ("return_range", "return_range"),
        ("'quoted (text)'", "quoted (text)"),
        ("MlpPolicy", "MlpPolicy"),
        ("[256, 256]", [256, 256]),
        ("(0, 100)", (0, 100)),
        ("{'pi': [64], 'qf': []}", {"pi": [64], "qf": []}),
        ("dict(net_arch=dict(pi=[1]), activation_fn=nn.Tanh)", {"net_arch": {"pi": [1]}, "activation_fn": nn.Tanh}),
        ("th.nn.ReLU", nn.ReLU),
        (3, 3),
    ],
)
def test_values(text: Any, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)
    if not isinstance(value, dict | tuple | str):
        assert parse_value(as_yaml(value)) == value


def test_settings_beside_a_model_are_never_executed(call: Callable[..., Outcome], tmp_path: Path, tiny: Path) -> None:
    shutil.copytree(tiny, tmp_path / "logs")
    folder = tmp_path / "logs/dmpo/TwoGoals-v0_1/TwoGoals-v0"
    for name in ("args.yml", "config.yml"):
        kept = (folder / name).read_text()
        (folder / name).write_text(f"{kept}\nx: !!python/object/apply:os.system ['touch {tmp_path}/pwned']\n")
        assert_one_line(call(enjoy, "--no-render"), str(folder.relative_to(tmp_path)), "python/object/apply:os.system")
        (folder / name).write_text(kept)
    assert not (tmp_path / "pwned").exists()
    kept = (folder / "config.yml").read_text()
    (folder / "config.yml").write_text(kept + "\nnormalize: true\n")
    assert_one_line(call(enjoy, "--no-render"), "normalize")
    # What stock rl_zoo3 writes is plain data too.
    (folder / "config.yml").write_text("!!python/object/apply:collections.OrderedDict\n- - - gamma\n    - 0.99\n")
    assert call(enjoy, "--no-render", "--episodes", "1")[0] == 0


# Configs --------------------------------------------------------------------------------------------------------

ADROIT_TASKS = ("pen", "hammer", "door", "relocate")


@pytest.mark.parametrize("algorithm", ["dmpo", "infodmpo"])
@pytest.mark.parametrize(
    ("dataset", "key"),
    [
        ("sb3_dmpo/two-goals/demonstrations-v0", "two-goals"),
        ("mujoco/halfcheetah/expert-v0", "mujoco"),
        ("zoo/hopper/mixed-v0", "mujoco"),
        ("data/walker2d-medium-replay-v2.hdf5", "mujoco"),
        *((f"D4RL/{task}/human-v2", "adroit-human") for task in ADROIT_TASKS),
        *((f"D4RL/{task}/cloned-v2", "adroit-cloned") for task in ADROIT_TASKS),
        ("zoo/pen/noisy-v0", "adroit-noisy"),
        ("zoo/pen/expert-v0", "adroit"),
        ("D4RL/antmaze/medium-play-v1", "antmaze"),
        ("zoo/pointmaze/umaze-v0", "pointmaze"),
        ("D4RL/kitchen/complete-v2", "kitchen"),
        ("my/robot-v0", "default"),
    ],
)
def test_entries_of_families(algorithm: str, dataset: str, key: str) -> None:
    assert find_entry(str(config_path(algorithm)), dataset)[0] == key


def test_the_papers_settings() -> None:
    def settings(algorithm: str, dataset: str) -> dict[str, Any]:
        return parse_values(find_entry(str(config_path(algorithm)), dataset)[1])

    human = settings("dmpo", "D4RL/pen/human-v2")
    assert (human["n_timesteps"], human["advantage_scale"], human["learning_rate"]) == (10_000, 5.0, 3e-4)
    assert settings("dmpo", "D4RL/pen/cloned-v2")["advantage_scale"] == 10.0
    human = settings("infodmpo", "zoo/door/human-v0")
    assert (human["n_timesteps"], human["advantage_scale"], human["info_learning_rate"]) == (10_000, 10.0, 3e-6)
    assert settings("infodmpo", "zoo/hopper/medium-v0")["info_learning_rate"] == 5e-7
    assert settings("infodmpo", "hopper-medium-expert-v2.hdf5")["advantage_scale"] == 5.0
    ant = settings("dmpo", "D4RL/antmaze/umaze-v1")
    assert (ant["value_targets"], ant["reward_scale"], ant["value_bounds"], ant["learning_rate"]) == (
        True,
        100,
        [0, 100],
        2e-4,
    )
    assert ant["policy_kwargs"] == {"net_arch": [256, 256, 256]} and ant["final_eval_episodes"] == 100
    toy = settings("dmpo", "sb3_dmpo/two-goals/demonstrations-v0")
    assert (toy["n_timesteps"], toy["batch_size"], toy["learning_rate"]) == (3000, 128, 1e-3)


@pytest.mark.parametrize(
    "path", sorted((Path(sb3_dmpo.__file__).parent.parent / "zoo_configs").glob("*.yml")), ids=lambda p: p.stem
)
def test_every_entry_of_every_config_is_understood(path: Path) -> None:
    for entry in load_config(str(path)).values():
        assert entry["n_timesteps"] >= 1
        check_hyperparameters(parse_values(entry), ALGOS[path.stem], path.stem)


def test_texts_inside_dicts_and_lists_are_read(call: Callable[..., Outcome], tmp_path: Path) -> None:
    policy_kwargs = "{net_arch: [16], activation_fn: nn.ReLU, optimizer_kwargs: {betas: [9e-1, 0.99]}}"
    free = "env_kwargs: {path: /data/x, size: '1'}, callback: [{a.B: {name: '3e-4'}}]"
    Path("c.yml").write_text(f"default: {{policy_kwargs: {policy_kwargs}, {free}}}")
    settings = parse_values(find_entry("c.yml", "a/b-v0")[1])
    optimizer_kwargs = {"betas": [0.9, 0.99]}
    assert settings == {
        "policy_kwargs": {"net_arch": [16], "activation_fn": nn.ReLU, "optimizer_kwargs": optimizer_kwargs},
        # What an environment or a callback takes may be any text.
        "env_kwargs": {"path": "/data/x", "size": "1"},
        "callback": [{"a.B": {"name": "3e-4"}}],
    }
    Path("c.yml").write_text("default: {policy_kwargs: {net_arch: [8], activation_fn: nn.ReLU}, batch_size: 16}")
    code, _, err = call(train, "--algo", "bc", "-conf", "c.yml", "-n", "2", "--eval-freq", "-1", "-f", "logs")
    assert code == 0, err
    (path,) = Path("logs").rglob("TwoGoals-v0.zip")
    assert sb3_dmpo.load(path).policy_kwargs["activation_fn"] is nn.ReLU


def test_keys_are_tried_from_special_to_general(tmp_path: Path) -> None:
    keys = entry_keys("D4RL/pen/human-v2")
    assert keys == ["D4RL/pen/human-v2", "pen-human", "adroit-human", "pen", "adroit", "default"]
    config = tmp_path / "c.yml"
    config.write_text("".join(f"'{key}': {{n_timesteps: {i}, learning_rate: 3e-4}}\n" for i, key in enumerate(keys)))
    for i, dataset in enumerate(
        ["D4RL/pen/human-v2", "zoo/pen/human-v0", "D4RL/door/human-v2", "D4RL/pen/x-v0", "D4RL/door/x-v0"]
    ):
        assert find_entry(str(config), dataset)[1]["n_timesteps"] == i
    # YAML takes a number without a dot for a text.
    assert parse_values(find_entry(str(config), "a/b-v0")[1])["learning_rate"] == 3e-4
    config.write_text("pen: {n_timesteps: 1}")
    with pytest.raises(UsageError, match="needs one of"):
        find_entry(str(config), "a/b-v0")
    config.write_text("- a")
    with pytest.raises(UsageError, match="map dataset ids"):
        load_config(str(config))
    (tmp_path / "c.py").write_text("hyperparams = {'default': {'n_timesteps': 7}}")
    assert find_entry(str(tmp_path / "c.py"), "a/b-v0") == ("default", {"n_timesteps": 7})


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("~/.d4rl/datasets/hopper_medium-v2.hdf5", "hopper-medium"),
        ("halfcheetah_medium_expert-v2.hdf5", "halfcheetah-medium-expert"),
        ("walker2d_medium_replay.hdf5", "walker2d-medium-replay"),
        ("/data/pen-v0_demos_clipped.hdf5", "pen-human"),
        ("door-demos-v0-bc-combined.hdf5", "door-cloned"),
        ("hammer-v0_expert_clipped.hdf5", "hammer-expert"),
        ("relocate-human-v1.hdf5", "relocate-human"),
    ],
)
def test_files_as_d4rl_names_them_have_the_settings_of_their_task(path: str, key: str) -> None:
    """The file name alone says which entry of a config is theirs, and in which environment ``convert`` puts them."""
    assert entry_keys(path)[1] == key
    env = environment_spec(path, None)
    assert env is not None and env.id.lower().replace("adroithand", "").startswith(key.partition("-")[0])


def test_environment_names() -> None:
    assert environment_name("D4RL/pen/human-v2") == "D4RL-pen-human-v2"
    assert environment_name("sb3_dmpo/two-goals/demonstrations-v0") == "TwoGoals-v0"
    assert environment_name("some where/hopper-medium-v2.hdf5") == "hopper-medium-v2"
    assert environment_name("a/b") == "a-b-v0"
    # To gymnasium -v01 is -v1, which is another dataset's.
    for name in ("my/toy-v1", "my/toy-v01", "my/toy-v001", "my/toy-v0", "my/toy-v00"):
        env_id = environment_name(name)
        gym.register(env_id, entry_point=TwoGoals)
        assert gym.spec(env_id).id == env_id
    assert environment_name("my/toy-v0") == "my-toy-v0" and environment_name("my/toy-v01") == "my-toy-v01-v0"


@pytest.mark.parametrize("name", list(ALGOS))
def test_searched_hyperparameters_are_arguments_of_the_algorithm(name: str) -> None:
    optuna = pytest.importorskip("optuna")
    from sb3_dmpo.cli.search import make_sampler

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampled = make_sampler(ALGOS[name])(optuna.create_study().ask(), 2, 1, {})
    assert {"learning_rate", "batch_size", "policy_kwargs"} <= set(sampled)
    check_hyperparameters(sampled, ALGOS[name], name)


@pytest.mark.parametrize("name", list(ALGOS))
def test_searched_hyperparameters_have_an_effect(name: str) -> None:
    optuna = pytest.importorskip("optuna")
    from sb3_dmpo.cli.search import make_sampler

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampled = make_sampler(ALGOS[name])(optuna.create_study().ask(), 2, 1, {})
    usual_model = make(name, dataset=DATA).learn(4)
    usual = copies(usual_model)
    for argument in sampled.keys() - {"batch_size", "policy_kwargs"}:
        # The sampled one may be the usual one.
        value = next(value for value in (sampled[argument], 5) if value != getattr(usual_model, argument))
        changed = copies(make(name, dataset=DATA, **{argument: value}).learn(4))
        assert changed.keys() != usual.keys() or differs(usual, changed), argument


def test_a_search_keeps_what_it_does_not_sample(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    from sb3_dmpo.cli.search import convert_params, make_sampler, with_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    config: dict[str, Any] = {"policy_kwargs": "dict(critic_layer_norm=True, net_arch=[8])", "tau": 0.1}
    study = optuna.create_study()

    def trial_of(typed: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a trial runs with, and what a run with its number does."""
        settings = parse_values({**config, **typed})
        trial = study.ask()
        sampled = make_sampler(ALGOS["rebrac"], settings, typed)(trial, 2, 1, {})
        return {**settings, **sampled}, parse_values(with_trial(config, convert_params(trial.params), typed))

    sampled, taken = trial_of({})
    assert sampled == taken and sampled["tau"] != 0.1
    assert sampled["policy_kwargs"]["critic_layer_norm"] is True and sampled["policy_kwargs"]["net_arch"] != [8]
    # What is typed has the last word, and is not sampled
    sampled, taken = trial_of({"policy_kwargs": "dict(critic_layer_norm=False)", "gamma": "0.5", "batch_size": "16"})
    assert sampled == taken and (sampled["gamma"], sampled["batch_size"]) == (0.5, 16)
    assert sampled["policy_kwargs"].keys() == {"critic_layer_norm", "net_arch"}
    assert sampled["policy_kwargs"]["critic_layer_norm"] is False
    sampled, taken = trial_of({"policy_kwargs": "dict(net_arch=[4])"})
    assert sampled == taken and sampled["policy_kwargs"] == {"net_arch": [4]}
    with pytest.raises(UsageError, match="policy_kwargs is 3"):
        with_trial(config, {}, {"policy_kwargs": "3"})


def search_with(monkeypatch: pytest.MonkeyPatch, learn: Callable[..., Any]) -> None:
    """Trials learn in another way."""
    pytest.importorskip("pandas")
    monkeypatch.setattr(ALGOS["rebrac"], "learn", learn)


SEARCH = ["-optimize", "--algo", "rebrac", "--n-trials", "2", "--eval-episodes", "1", "--n-evaluations", "1", "-n", "2"]


def test_trials_have_the_policy_kwargs_of_the_config(call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, Any]] = []

    def learn(model: Any, *args: Any, **kwargs: Any) -> None:
        found.append(model.policy_kwargs)
        raise ValueError("a trial that has diverged")

    search_with(monkeypatch, learn)
    Path("c.yml").write_text("default: {n_timesteps: 2, policy_kwargs: dict(critic_layer_norm=True)}")
    # Without a completed trial there is no best one, which is said.
    assert_one_line(call(train, *SEARCH, "-conf", "c.yml"), "no trial was completed", "--n-trials")
    assert len(found) == 2 and all(kwargs["critic_layer_norm"] is True and kwargs["net_arch"] for kwargs in found)
    found.clear()
    kwargs = "policy_kwargs:dict(net_arch=[8])"
    assert_one_line(call(train, *SEARCH, "-conf", "c.yml", "-params", kwargs), "no trial was completed")
    assert found == [{"net_arch": [8]}] * 2


def test_a_search_ends_where_no_trial_can_succeed(call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fail(model: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(1)
        raise DatasetError("Dataset 'x': it is broken. Mend it.")

    search_with(monkeypatch, fail)
    code, _, err = call(train, *SEARCH)
    assert code == 2 and "it is broken. Mend it." in err and len(calls) == 1
    # No run that enjoy would find.
    assert not list(Path("logs/rebrac").glob("*_1"))

    def interrupt(model: Any, *args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    search_with(monkeypatch, interrupt)
    code, out, err = call(train, *SEARCH)
    assert (code, err.splitlines()[-1]) == (130, "sb3_dmpo train: interrupted") and "No trial was completed." in out


def test_the_same_command_goes_on_with_a_study(call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    """With trials of its own, and Ctrl-C ends it with what is there."""
    search_with(monkeypatch, lambda model, *args, **kwargs: model)
    storage = ["--storage", "study.log", "--study-name", "s", "--seed", "3", "--no-optim-plots"]
    for _ in range(2):
        code, _, err = call(train, *SEARCH, *storage)
        assert code == 0, err
    from sb3_dmpo.cli.search import count_trials

    assert count_trials("study.log", "s") == 4
    reports = [list(csv.DictReader(path.open())) for path in Path("logs/rebrac").glob("report_*.csv")]
    rows = max(reports, key=len)
    assert len({row["params_learning_rate"] for row in rows}) == len(rows) == 4

    def interrupt(model: Any, *args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    search_with(monkeypatch, interrupt)
    code, out, err = call(train, *SEARCH, *storage)
    assert (code, err.splitlines()[-1]) == (130, "sb3_dmpo train: interrupted") and "Best trial" in out


@pytest.mark.slow
def test_search(call: Callable[..., Outcome], tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    code, _, err = call(train, "-optimize", "--n-trials", "1", "--eval-episodes", "2", "-n", "4", "--seed", "0")
    assert code == 0, err
    assert list((tmp_path / "logs" / "dmpo").glob("report_*.csv"))


# Results --------------------------------------------------------------------------------------------------------


def test_rows_of_runs_at_the_same_time_stay_whole(tmp_path: Path) -> None:
    constant = dict.fromkeys(COLUMNS, "x, y")
    files = [ResultsFile(tmp_path / "new" / "r.csv", {**constant, "seed": seed}) for seed in range(4)]
    result = EvaluationResult(np.array([1.0, 3.0]), np.array([5, 5]), None, ReferenceScores(0.0, 10.0, "a test"))

    def write(file: ResultsFile) -> None:
        for updates in range(10):
            file.append(result, updates=updates)

    threads = [threading.Thread(target=write, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open(tmp_path / "new" / "r.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted((int(row["seed"]), int(row["updates"])) for row in rows) == [(s, u) for s in range(4) for u in range(10)]
    assert {(row["score"], row["score_kind"], row["success_rate"], row["command"]) for row in rows} == {
        ("20.0000", "normalized", "", "x, y")
    }


def test_data_are_called_what_they_are() -> None:
    datasets = ("D4RL/pen/human-v2", "zoo/pen/noisy-v0", "mujoco/hopper/medium-v0", "hopper-medium-v2.hdf5", "my/robot-v0")
    labels = [describe_data(dataset) for dataset in datasets]
    assert labels == ["Minari port of D4RL", "stand-in, not D4RL", "Minari MuJoCo, not D4RL", "D4RL file", "own data"]


@pytest.mark.parametrize(
    ("dataset", "label"),
    [
        ("~/.d4rl/datasets/hopper_medium_replay-v2.hdf5", "D4RL file"),
        ("pen-v0_demos_clipped.hdf5", "D4RL file"),
        ("Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5", "D4RL file"),
        ("~/.ogbench/data/cube-single-play-v0.npz", "OGBench file"),
        ("antmaze-giant-navigate-100m-v0/", "OGBench file"),
        ("puzzle-4x4-noisy-v0-val.npz", "OGBench file"),
        *[(name, "own data") for name in ("log.npz", "dump_of_d3rlpy.h5", "my_log.hdf5", "my-shards/", "buffer.pkl")],
        *[(name, "own data") for name in ("door.HDF5", "D4RL/log.npz", "zoo/buffer.pkl", "mujoco/shards/")],
    ],
)
def test_files_are_called_by_their_names(dataset: str, label: str) -> None:
    assert describe_data(dataset) == label
