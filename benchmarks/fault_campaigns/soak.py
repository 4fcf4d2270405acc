"""An hour of training with a checkpoint every minute: memory, file handles, processes and temporary files do not grow."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.fault_campaigns.common import OURS, Row, row

#: Name in the results, then dataset (None: the toy's own), evaluation environment and settings.
RUNS: dict[str, tuple[str | None, str | None, dict[str, Any]]] = {
    "toy": (None, "TwoGoals-v0", {"batch_size": 128, "policy_kwargs": {"net_arch": [64, 64]}}),
    "hopper": ("zoo/hopper/medium-v0", None, {"batch_size": 256, "policy_kwargs": {"net_arch": [256, 256]}}),
}
#: Updates between two evaluations.
EVAL_FREQ = 1_000
_KEPT_CHECKPOINTS = 3
#: Updates after which nothing is compiled any more.
_COMPILED_AFTER = 10


class TimedCheckpoints(BaseCallback):
    """
    Saves a checkpoint every so many seconds, keeps the newest ones, and ends the training in time. The time begins when
    everything is compiled: on a busy machine that may take a minute.

    :param folder: where checkpoints go
    :param every: seconds between two of them
    :param seconds: length of the training
    """

    def __init__(self, folder: Path, every: float, seconds: float) -> None:
        super().__init__()
        self.folder, self.every, self.seconds = folder, every, seconds

    def _on_step(self) -> bool:
        now = time.monotonic()
        if self.n_calls < _COMPILED_AFTER:
            return True
        if self.n_calls == _COMPILED_AFTER:
            self.due, self.end = now + self.every, now + self.seconds
            (self.folder / "saved").touch()
        if now >= self.due:
            self.due += self.every
            self.model.save(self.folder / f"rl_model_{self.num_timesteps}_steps.zip")
            checkpoints = sorted(self.folder.glob("rl_model_*.zip"), key=lambda path: path.stat().st_mtime)
            for path in checkpoints[:-_KEPT_CHECKPOINTS]:
                path.unlink()
            with open(self.folder / "saved", "a", encoding="utf-8") as file:
                file.write(f"{self.num_timesteps}\n")
        return now < self.end


def train(name: str, folder: Path, every: float, seconds: float) -> None:
    """The process that is watched: training, evaluations and checkpoints."""
    from sb3_dmpo import DMPO
    from sb3_dmpo.common.callbacks import NormalizedEvalCallback
    from sb3_dmpo.envs import make_two_goals_dataset
    from sb3_dmpo.envs.registration import register_environment

    th.set_num_threads(1)
    dataset, env_id, settings = RUNS[name]
    data: Any = make_two_goals_dataset() if dataset is None else dataset
    env = make_vec_env(env_id or register_environment(data))
    evaluation = NormalizedEvalCallback(env, eval_freq=EVAL_FREQ, n_eval_episodes=2, log_path=str(folder), verbose=0)
    model = DMPO("MlpPolicy", dataset=data, seed=0, device="cpu", **settings)
    model.learn(10**9, callback=[TimedCheckpoints(folder, every, seconds), evaluation])


# Watching -------------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A training process and what was seen of it: (seconds, resident bytes, file handles, child processes)."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes]
    samples: list[tuple[float, int, int, int]] = field(default_factory=list)
    temporary: set[Path] = field(default_factory=set)
    began: float | None = None

    def sample(self, warm_up: float) -> None:
        """
        Look at the process, if its updates have begun.

        :param warm_up: seconds that do not count
        """
        if self.began is None and not (self.folder / "saved").exists():
            return
        now = time.monotonic()
        self.began = self.began or now
        seconds = now - self.began
        proc = Path("/proc", str(self.process.pid))
        try:
            resident = int(proc.joinpath("statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            handles = len(os.listdir(proc / "fd"))
            children = sum(len(task.joinpath("children").read_text().split()) for task in proc.joinpath("task").iterdir())
        except (OSError, IndexError):
            return
        if handles == 0:  # it has just ended
            return
        self.samples.append((seconds, resident, handles, children))
        if seconds < warm_up:
            self.temporary = set((self.folder / "tmp").iterdir())

    def result(self, warm_up: float, minute: float) -> Row:
        """
        The line of the results.

        :param warm_up: seconds that do not count
        :param minute: seconds over which the median of the memory is taken
        """
        code = self.process.wait()
        counted = np.array([sample for sample in self.samples if sample[0] >= warm_up], dtype=float).reshape(-1, 4)
        if code != 0 or len(counted) < 4:
            return row("soak", OURS, 1, 0, f"{self.name}: ended early, with code {code}")
        minutes = ((counted[:, 0] - warm_up) // minute).astype(int)
        # The last one is left out if it was cut short.
        medians = [float(np.median(counted[minutes == index, 1])) for index in range(max(minutes[-1], 1))]
        spread = 100 * (max(medians) - min(medians)) / medians[0]
        drift = 100 * (medians[-1] - medians[0]) / medians[0]
        # Medians, because a checkpoint that is being written is open.
        handles, children = [int(np.median(part)) for part in (counted[:10, 2], counted[-10:, 2])], int(counted[:, 3].max())
        # Half-written files, and those in the system's folder that were not there when the memory began to count.
        left = {path for path in self.folder.rglob("*.tmp")} | (set((self.folder / "tmp").iterdir()) - self.temporary)
        updates = (self.folder / "saved").read_text(encoding="utf-8").split()
        passed = code == 0 and spread <= 1.0 and handles[0] == handles[1] and children == 0 and not left
        detail = (
            f"{self.name}: {counted[-1, 0] / 60:.0f} min, {len(updates)} checkpoints, {updates[-1]} updates; resident "
            f"{medians[0] / 2**20:.1f} MiB in the first minute after warm-up, {medians[-1] / 2**20:.1f} in the last, "
            f"spread of the minutes {spread:.2f}%, drift {drift:+.2f}%; file handles {handles[0]} -> {handles[1]}, "
            f"children {children}, temporary files left {len(left)}"
        )
        return row("soak", OURS, 1, int(passed), detail)


def soak(
    seconds: float = 3600.0, warm_up: float = 120.0, every: float = 60.0, names: tuple[str, ...] = tuple(RUNS)
) -> list[Row]:
    """
    Train side by side and watch.

    :param seconds: length, after the warm-up
    :param warm_up: seconds before memory counts
    :param every: seconds between two checkpoints
    :param names: which runs
    """
    with tempfile.TemporaryDirectory() as root:
        watched, total = [], warm_up + seconds
        for name in names:
            folder = Path(root, name)
            (folder / "tmp").mkdir(parents=True)
            environment = os.environ | {
                "TMPDIR": str(folder / "tmp"),
                "SB3_DMPO_CACHE": str(folder / "cache"),
                "OMP_NUM_THREADS": "1",
            }
            if RUNS[name][0] is None:
                environment["MINARI_DATASETS_PATH"] = str(folder / "minari")
            command = [sys.executable, "-m", __name__, name, str(folder), str(every), str(total)]
            search = [str(Path(__file__).resolve().parents[2]), *filter(None, sys.path)]
            environment["PYTHONPATH"] = os.pathsep.join(search)
            watched.append(Watched(name, folder, subprocess.Popen(command, env=environment)))
        try:
            while any(run.process.poll() is None for run in watched):
                for run in watched:
                    run.sample(warm_up)
                time.sleep(min(5.0, every / 5))
        finally:
            for run in watched:
                run.process.kill()
        return [run.result(warm_up, max(60.0, every) if seconds >= 600 else seconds / 4) for run in watched]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=train.__doc__)
    parser.add_argument("name", choices=RUNS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("every", type=float)
    parser.add_argument("seconds", type=float)
    arguments = parser.parse_args()
    train(arguments.name, arguments.folder, arguments.every, arguments.seconds)
