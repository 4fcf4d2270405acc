"""What happens between two updates of a run: evaluations, the log kept beside the model, and Ctrl-C."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from rl_zoo3.callbacks import TrialEvalCallback
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, filter_excluded_keys
from stable_baselines3.common.vec_env import VecEnv

from sb3_dmpo.cli.episodes import seed_episodes
from sb3_dmpo.cli.results import append_lines, csv_line, read_rows
from sb3_dmpo.common.callbacks import NormalizedEvalCallback
from sb3_dmpo.common.evaluation import EvaluationResult
from sb3_dmpo.files.save_util import atomic_write

#: Takes the result, the number of updates, and whether this is the run's final evaluation.
ResultHandler = Callable[[EvaluationResult, int, bool], None]

#: The column that says after how many updates a row was written.
UPDATES = "time/total_timesteps"
#: The column that says how long the run has learned by then. SB3's ``time/time_elapsed`` starts anew when it is resumed.
WALL_SECONDS = "time/wall_seconds"


class RunEvalCallback(NormalizedEvalCallback):
    """
    :class:`NormalizedEvalCallback` of a run of the command line.

    :param eval_env: environments, run at once
    :param dataset: where reference scores are looked for
    :param final_eval_episodes: episodes of the evaluation after the last update
    :param seed: seed of the run, which gives those episodes theirs
    :param on_result: is called after every evaluation
    :param kwargs: as of ``EvalCallback``
    """

    def __init__(
        self, eval_env: VecEnv, dataset: Any, final_eval_episodes: int, seed: int, on_result: ResultHandler, **kwargs: Any
    ) -> None:
        super().__init__(eval_env, dataset=dataset, **kwargs)
        self.final_eval_episodes = final_eval_episodes
        self.seed = seed
        self.on_result = on_result
        self.final_result: EvaluationResult | None = None

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.model._total_timesteps:
            seed_episodes(self.eval_env, self.seed)
        return super()._on_step()

    def _log_evaluation(self, result: EvaluationResult) -> None:
        super()._log_evaluation(result)
        is_last = self.num_timesteps >= self.model._total_timesteps
        if is_last and len(result.returns) == self.final_eval_episodes:
            self.final_result = result
        self.on_result(result, self.num_timesteps, self.final_result is not None)

    def evaluate_at_end(self) -> EvaluationResult:
        """The evaluation after the last update: the one that the training has just done, if it had as many episodes."""
        if self.final_result is None:
            if self.n_eval_episodes != self.final_eval_episodes:
                # evaluations.npz holds one array with as many columns as episodes.
                self.n_eval_episodes, self.log_path = self.final_eval_episodes, None
            self.eval_freq = 1
            self._on_step()
        assert self.final_result is not None
        return self.final_result


class TrialProgress(TrialEvalCallback):
    """Evaluates a trial of a search, and says ten times how far it is."""

    def _on_step(self) -> bool:
        goes_on: bool = super()._on_step()
        total = max(self.model._total_timesteps, 1)
        if 10 * self.num_timesteps // total > 10 * (self.num_timesteps - 1) // total:
            score = "" if self.last_mean_reward == -np.inf else f", mean return {self.last_mean_reward:.2f}"
            print(f"Trial {self.trial.number}: {self.num_timesteps:,} of {total:,} updates{score}", flush=True)
        return goes_on


class ProgressFile(BaseCallback):
    """
    Writes every dump of the log into a CSV file, and with it how long the run has learned.

    :param path: the file
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._since = 0.0

    def wall_seconds(self) -> float:
        """
        Wall-clock seconds of learning, evaluations included. In a resumed run those up to its checkpoint (the last row of the
        file before it) count; the time in between and the updates that were lost do not.
        """
        return time.monotonic() - self._since

    def _on_training_start(self) -> None:
        rows = [row for row in read_progress(self.path) if float(row[UPDATES]) <= self.num_timesteps]
        writer = _ProgressWriter(self.path, self.wall_seconds)
        writer.rewrite(rows)
        self._since = time.monotonic() - max((float(row.get(WALL_SECONDS) or 0) for row in rows), default=0.0)
        self.logger.output_formats.append(writer)

    def _on_step(self) -> bool:
        return True


class _ProgressWriter(KVWriter):
    """
    SB3's CSV format, of which a full disk or a kill leaves whole rows.

    :param path: the file
    :param wall_seconds: how long the run has learned
    """

    def __init__(self, path: Path, wall_seconds: Callable[[], float]) -> None:
        self.path = path
        self._wall_seconds = wall_seconds
        self._columns: list[str] = []

    def rewrite(self, rows: list[dict[str, str]]) -> None:
        """
        Write the file anew.

        :param rows: its rows, all with the same columns
        """
        self._columns = list(rows[0]) if rows else self._columns
        lines = [csv_line(self._columns)] if self._columns else []
        lines += [csv_line([row.get(column, "") for column in self._columns]) for row in rows]
        with atomic_write(self.path) as file:
            file.write("".join(lines).encode("utf-8"))

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """
        Append a row.

        :param key_values: values by name
        :param key_excluded: formats that a name is not for
        :param step: as of SB3's writers
        """
        values = filter_excluded_keys(key_values, key_excluded, "csv") | {WALL_SECONDS: round(self._wall_seconds(), 1)}
        if new := [key for key in values if key not in self._columns]:
            self._columns += new
            self.rewrite([{column: row.get(column, "") for column in self._columns} for row in read_progress(self.path)])
        append_lines(self.path, csv_line([values.get(column, "") for column in self._columns]), csv_line(self._columns))

    def close(self) -> None:
        """Nothing is kept open."""


def read_progress(path: Path) -> list[dict[str, str]]:
    """
    Whole rows of a progress file, none if it is not there; a kill may have left half of the last one.

    :param path: the file
    """
    whole = []
    for row in read_rows(path):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            float(row[UPDATES])
            whole.append({key: value or "" for key, value in row.items() if key is not None})
    return whole


@contextlib.contextmanager
def interrupts_handled(handler: Any) -> Iterator[None]:
    """
    Another handler of Ctrl-C for the duration of a block. Only the main thread can have one.

    :param handler: as ``signal.signal`` takes it
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class SaveBeforeUpdates(BaseCallback):
    """
    Saves the model while what comes before the first update goes on (MAPLE fits an ensemble), so that ``--resume`` finds it.

    :param folder: where the checkpoint goes
    """

    #: Saving takes at most this share of the time.
    largest_share = 0.05

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "rl_model_0_steps.zip"
        self._not_before = 0.0

    def _on_rollout_end(self) -> None:
        now = time.monotonic()
        if self.model.num_timesteps == 0 and now >= self._not_before:
            self.model.save(self.path)
            seconds = time.monotonic() - now
            self._not_before = now + seconds / self.largest_share

    def _on_step(self) -> bool:
        return True


class StopOnInterrupt(BaseCallback):
    """Ends training after the current update (or evaluation) on the first Ctrl-C, and at once on the second."""

    def __init__(self) -> None:
        super().__init__()
        self.requested = False
        self._training = False
        self._is_over = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take over Ctrl-C for the duration of a block."""
        try:
            with interrupts_handled(self._on_interrupt):
                yield
        finally:
            self._training = self._is_over = False

    def note_only(self) -> None:
        """From here on, while listening, nothing is stopped: training is over, and what came out of it has to be saved."""
        self._is_over = True

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        is_first, self.requested = not self.requested, True
        if self._is_over:
            return
        # What comes before the first update may take long, and goes on where it was broken off.
        if not (is_first and self._training) or getattr(self.model, "_is_preparing", False):
            raise KeyboardInterrupt
        sys.stderr.write("\nStopping after this update (or evaluation), then saving. Ctrl-C again stops at once.\n")

    def _on_training_start(self) -> None:
        self._training = True

    def _on_step(self) -> bool:
        return not self.requested
