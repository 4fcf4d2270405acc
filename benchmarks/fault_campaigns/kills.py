"""SIGKILL at random moments, of saves and of trainings."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import TD3
from stable_baselines3.common.callbacks import CheckpointCallback
from tqdm import tqdm

from benchmarks.fault_campaigns.common import (
    OBSERVATIONS,
    OURS,
    STOCK,
    Row,
    in_child,
    make_buffer,
    make_model,
    make_stock,
    row,
    weights_hash,
)
from sb3_dmpo import ALGOS, DMPO
from sb3_dmpo.cli.train.resume import newest_state
from sb3_dmpo.data import load_transitions

N_UPDATES, CHECKPOINT_EVERY = 60, 5


def kills_during_save(trials: int) -> list[Row]:
    """SIGKILL at a random moment while a model is saved over an older one again and again."""
    rows = []
    for system, model, load in ((OURS, make_model("dmpo"), DMPO.load), (STOCK, make_stock(), TD3.load)):
        rng, readable = np.random.default_rng(0), 0
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.zip")
            model.save(path)
            started = time.monotonic()
            for _ in range(3):
                model.save(path)
            duration = (time.monotonic() - started) / 3
            for _ in tqdm(range(trials), desc=f"kills during save, {system}"):
                model.save(path)

                def save_for_ever(model: Any = model, path: str = path) -> None:
                    while True:
                        model.save(path)

                kill(in_child(save_for_ever), float(rng.uniform(0.2, 2.0)) * duration)
                with contextlib.suppress(Exception):
                    load(path, device="cpu").predict(OBSERVATIONS)
                    readable += 1
        rows.append(row("kill during save", system, trials, readable, "file readable afterwards"))
    return rows


def kill(pid: int, seconds: float) -> bool:
    """SIGKILL a child after a while; whether it was still at work."""
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def killed_in(folder: Path, train: Callable[[], None], duration: float, rng: np.random.Generator) -> None:
    """Train in a child that is killed before it has ended; one that was too quick is started again in an empty folder."""
    while not kill(in_child(train), float(rng.uniform(0.05, 0.95)) * duration):
        for path in folder.iterdir():
            path.unlink()


def kills_during_training(trials: int, trials_others: int, trials_of_commands: int = 0) -> list[Row]:
    """SIGKILL at a random moment of a training with checkpoints; resumed, it has to end with the same weights."""
    data = load_transitions(make_buffer())
    rows = []
    for name in ALGOS:
        rng, n, same, in_write, resumed_late = np.random.default_rng(0), trials if name == "dmpo" else trials_others, 0, 0, 0
        with tempfile.TemporaryDirectory() as folder:
            # Once for the caches of the machine, once for the clock.
            for _ in range(2):
                started = time.monotonic()
                whole = make_model(name, data).learn(N_UPDATES, callback=CheckpointCallback(CHECKPOINT_EVERY, folder))
                duration = time.monotonic() - started
        expected = weights_hash(whole)
        for _ in tqdm(range(n), desc=f"kills during training, {name}"):
            with tempfile.TemporaryDirectory() as folder:

                def train(name: str = name, folder: str = folder) -> None:
                    make_model(name, data).learn(N_UPDATES, callback=CheckpointCallback(CHECKPOINT_EVERY, folder))

                killed_in(Path(folder), train, duration, rng)
                in_write += bool(list(Path(folder).glob(".*.tmp")))
                state = newest_state(Path(folder), "none")
                resumed_late += state is not None
                resumed = make_model(name, data) if state is None else ALGOS[name].load(state, dataset=data, device="cpu")
                resumed.learn(N_UPDATES - resumed.num_timesteps, reset_num_timesteps=state is None)
                same += weights_hash(resumed) == expected
        detail = (
            f"{name}: weights and optimizers bit-identical; {resumed_late} resumed from a checkpoint, "
            f"{n - resumed_late} killed before the first, {in_write} while writing one"
        )
        rows.append(row("kill during training", OURS, n, same, detail))
    rows.append(stock_training(trials_others))
    if trials_of_commands:
        rows.append(kills_of_commands(trials_of_commands))
    return rows


def stock_training(trials: int) -> Row:
    """The same with TD3 of SB3: checkpoints of model and replay buffer, resumed with what SB3 offers."""
    rng, same, total, every = np.random.default_rng(0), 0, 120, 20

    def make() -> TD3:
        settings: dict[str, Any] = {"policy_kwargs": {"net_arch": [8, 8]}, "buffer_size": 1000, "learning_starts": 10}
        return TD3("MlpPolicy", "Pendulum-v1", batch_size=16, seed=0, device="cpu", **settings)

    def checkpoints(folder: str) -> CheckpointCallback:
        return CheckpointCallback(every, folder, save_replay_buffer=True)

    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        whole = make().learn(total, callback=checkpoints(folder))
        duration = time.monotonic() - started
    for _ in tqdm(range(trials), desc="kills during training, stable-baselines3"):
        with tempfile.TemporaryDirectory() as folder:

            def train(folder: str = folder) -> None:
                make().learn(total, callback=checkpoints(folder))

            killed_in(Path(folder), train, duration, rng)
            with contextlib.suppress(Exception):
                states = sorted(Path(folder).glob("rl_model_*_steps.zip"), key=lambda path: int(path.stem.split("_")[2]))
                steps = int(states[-1].stem.split("_")[2]) if states else 0
                resumed = TD3.load(states[-1], env="Pendulum-v1", device="cpu") if states else make()
                if states:
                    resumed.load_replay_buffer(Path(folder, f"rl_model_replay_buffer_{steps}_steps.pkl"))
                resumed.learn(total - steps, reset_num_timesteps=not states)
                same += weights_hash(resumed) == weights_hash(whole)
    return row(
        "kill during training", STOCK, trials, same, "TD3 on Pendulum-v1 with save_replay_buffer: weights bit-identical"
    )


def kills_of_commands(trials: int) -> Row:
    """The command line, killed and typed again with ``--resume``."""
    rng, same = np.random.default_rng(0), 0
    script = "import sys, torch; torch.set_num_threads(1); from sb3_dmpo.__main__ import main; sys.exit(main())"
    options = "--algo dmpo -n 400 --seed 1 --save-freq 10 --eval-freq 100 --eval-episodes 1"
    command = [
        sys.executable,
        "-c",
        script,
        "train",
        *shlex.split(options),
        "-params",
        "policy_kwargs:dict(net_arch=[8])",
        "batch_size:16",
    ]
    with tempfile.TemporaryDirectory() as root:
        environment = os.environ | {"MINARI_DATASETS_PATH": f"{root}/minari", "SB3_DMPO_CACHE": f"{root}/cache"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))

        def start(*more: str) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [*command, *more], cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )

        def weights(folder: str) -> str:
            return weights_hash(DMPO.load(Path(root, folder, "dmpo/TwoGoals-v0_1/TwoGoals-v0.zip"), device="cpu"))

        start("-f", "whole").wait()
        for trial in tqdm(range(trials), desc="kills of train.py"):
            folder = f"killed{trial}"
            while True:
                process = start("-f", folder)
                while not list(Path(root).glob(f"{folder}/*/*/rl_model_10_steps.zip")) and process.poll() is None:
                    time.sleep(0.005)
                if kill(process.pid, float(rng.uniform(0.0, 2.0))):
                    break
                folder += "x"
            start("-f", folder, "--resume").wait()
            with contextlib.suppress(OSError):
                same += weights(folder) == weights("whole")
    return row("kill during training", OURS, trials, same, f"train.py {options}, then --resume: bit-identical")
