"""Does the runs of a grid until all are finished, and shows how far they are."""

import argparse
import contextlib
import shlex
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from sb3_dmpo.cli.errors import EXIT_FAILURE, EXIT_USAGE, UsageError
from sb3_dmpo.cli.results import COLUMNS, FINETUNE_COLUMNS, TRAINING_COLUMNS, ResultsFile
from sb3_dmpo.cli.sweep.jobs import Jobs, SlurmJobs
from sb3_dmpo.cli.sweep.needs import default_times, needs, read_times
from sb3_dmpo.cli.sweep.options import check_grid, make_grid, make_jobs, make_parser
from sb3_dmpo.cli.sweep.runs import PlannedRun, Worker, check_folders, exit_code_of, options_of_train, read_json
from sb3_dmpo.cli.sweep.table import read_table
from sb3_dmpo.cli.terminal import raw_output
from sb3_dmpo.data import open_dataset
from sb3_dmpo.files.plain_text import plain

#: Variables that set the number of threads of the libraries below PyTorch.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
#: Width of the table where there is no terminal.
_FILE_WIDTH = 160
_SCORE = "last score (mean ± standard deviation of the seeds)"
_STATES = ("finished", "running", "waiting", "failed")


@dataclass
class Run:
    """
    A run of the grid and what is going on with it.

    :param plan: what it is
    :param total: updates of the whole run
    """

    plan: PlannedRun
    total: int
    state: str = "waiting"
    worker: Worker | None = None
    job: str = ""
    attempts: int = 0
    missed: bool = False
    rows: list[dict[str, str]] = field(default_factory=list)

    @property
    def updates(self) -> int:
        """Updates up to the last evaluation."""
        return max((int(row["updates"]) for row in self.rows), default=0)


class Sweep:
    """
    Does runs until all are finished or have failed.

    :param plans: the grid
    :param options: parsed options
    :param console: where progress is shown
    """

    def __init__(self, plans: Sequence[PlannedRun], options: argparse.Namespace, console: Console) -> None:
        self.options, self.console = options, console
        self.root: Path = options.folder
        check_folders(plans, self.root)
        columns = FINETUNE_COLUMNS if any(plan.finetune_steps() for plan in plans) else COLUMNS
        self.results = ResultsFile(options.results or self.root / "results.csv", {}, columns)
        path = self.results.path
        self.training = ResultsFile(path.with_name(f"{path.stem}_training.csv"), {}, TRAINING_COLUMNS)
        self.runs = [Run(plan, plan.total_updates()) for plan in plans]

    def command(self, plan: PlannedRun) -> list[str]:
        """
        Arguments of Python for a run.

        :param plan: the run
        """
        return plan.command(self.root, self.options.save_freq, self.options.threads)

    def prepare(self) -> None:
        """
        Check everything that can be checked before anything runs.

        :raises UsageError: what was asked for cannot be done
        :raises DatasetError: a dataset is not there
        """
        self.results.check()
        self.training.check()
        to_download = {run.plan.dataset for run in self.runs if options_of_train(run.plan.arguments).download}
        for dataset in dict.fromkeys(run.plan.dataset for run in self.runs):
            # Here, once: on a cluster the workers may have no network.
            open_dataset(dataset, download=dataset in to_download)
        for run in self.runs:
            run.plan.prepare(self.root)

    def run(self, jobs: Jobs) -> int:
        """
        Do all runs; number of those that have failed.

        :param jobs: where
        """
        self._find_running(jobs)
        try:
            with self._progress() as show:
                while True:
                    self._look(jobs)
                    self._submit(jobs)
                    show()
                    if all(run.state in ("finished", "failed") for run in self.runs):
                        break
                    time.sleep(jobs.poll_seconds)
        except KeyboardInterrupt:
            outcome = jobs.stop([run.worker for run in self.runs if run.state == "running" and run.worker is not None])
            self._look(jobs)
            self.console.print(f"The sweep has been interrupted, {outcome}. The same command goes on with it.")
            raise
        return sum(run.state == "failed" for run in self.runs)

    def _worker(self, plan: PlannedRun, attempt: str) -> Worker:
        environment: dict[str, str | None] = {name: str(self.options.threads) for name in _THREAD_VARIABLES}
        return Worker(str(plan.folder(self.root)), tuple(self.command(plan)), environment, attempt)

    def _find_running(self, jobs: Jobs) -> None:
        """Jobs that an earlier sweep has left in SLURM are waited for, not submitted a second time."""
        if not isinstance(jobs, SlurmJobs):
            return
        left = {run.plan: read_json(run.plan.folder(self.root) / "job.json") for run in self.runs}
        alive = jobs.alive([content["job"] for content in left.values() if content])
        for run in self.runs:
            content = left[run.plan]
            if content and content["job"] in alive and not run.plan.is_finished(self.root):
                run.state, run.job = "running", content["job"]
                run.worker = self._worker(run.plan, content["attempt"])

    def _look(self, jobs: Jobs) -> None:
        """Find out what has become of every run."""
        running = [run for run in self.runs if run.state == "running"]
        alive = jobs.alive([run.job for run in running]) if running else set()
        for run in self.runs:
            if run.state in ("running", "waiting") and run.plan.is_finished(self.root):
                self._finish(run)
            elif run.state == "running":
                run.rows = run.plan.rows(self.root)
                if run.job not in alive:
                    self._on_death(run)

    def _finish(self, run: Run) -> None:
        run.rows, run.state = run.plan.rows(self.root), "finished"
        # Runs beside others that go on in the environment have made no step there.
        self.results.append_rows([{"env_steps": "0", **row, "algorithm": run.plan.name} for row in run.rows])
        self.training.append_rows(run.plan.training_rows(self.root))
        score = f", score {float(run.rows[-1]['score']):.1f}" if run.rows else ""
        self._note(f"{self._title(run)} is finished{score}")

    def _on_death(self, run: Run) -> None:
        assert run.worker is not None
        code = exit_code_of(Path(run.worker.folder), run.worker.attempt)
        if code is None and not run.missed:
            # Its files may be on their way through a shared file system.
            run.missed = True
            return
        reason = "its worker was lost" if code is None else f"exit code {code}"
        # What cannot be done will not be done the next time.
        if code == EXIT_USAGE or run.attempts > self.options.retries:
            run.state = "failed"
            self._note(f"{self._title(run)} has failed ({reason}): {run.plan.last_words(self.root)}")
        else:
            run.state = "waiting"
            self._note(f"{self._title(run)} died ({reason}), will go on")

    def _submit(self, jobs: Jobs) -> None:
        running = sum(run.state == "running" for run in self.runs)
        waiting = (run for run in self.runs if run.state == "waiting")
        chosen = [run for n, run in enumerate(waiting, start=1) if running + n <= jobs.limit]
        if not chosen:
            return
        for run in chosen:
            run.worker = self._worker(run.plan, uuid.uuid4().hex)
        for run, job in zip(chosen, jobs.submit([run.worker for run in chosen if run.worker is not None]), strict=True):
            run.job, run.state, run.missed = job, "running", False
            run.attempts += 1

    # What is shown ----------------------------------------------------------------------------------------------

    @staticmethod
    def _title(run: Run) -> str:
        return f"{run.plan.name} on {run.plan.dataset}, seed {run.plan.seed}"

    def _note(self, text: str) -> None:
        self.console.print(f"{time.strftime('%H:%M:%S')} {plain(text)}", highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Any]:
        """A table that is redrawn, or nothing but the notes where there is no terminal."""
        if not self.console.is_terminal:
            yield lambda: None
            return
        with Live(self.table(), console=self.console, auto_refresh=False) as live:
            yield lambda: live.update(self.table(), refresh=True)

    def table(self) -> Table:
        """What is going on, one line for all seeds of a setting."""
        table = Table(title=f"{len(self.runs)} runs, results in {self.results.path}")
        for name in ("algorithm", "dataset", *_STATES, "updates", _SCORE):
            table.add_column(name, justify="left" if name in ("algorithm", "dataset") else "right")
        for group in dict.fromkeys(run.plan.group for run in self.runs):
            runs = [run for run in self.runs if run.plan.group == group]
            counts = [str(sum(run.state == state for run in runs) or "") for state in _STATES]
            done = sum(run.total if run.state == "finished" else run.updates for run in runs)
            scores = [float(run.rows[-1]["score"]) for run in runs if run.rows]
            score = f"{np.mean(scores):.1f} ± {np.std(scores):.1f}" if scores else ""
            table.add_row(*map(plain, group), *counts, f"{100 * done / sum(run.total for run in runs):.0f}%", score)
        return table


def run(argv: Sequence[str]) -> int:
    """
    Do the sweep that the command line says; exit code, not 0 if a run has failed.

    :param argv: arguments
    :raises UsageError: what was asked for cannot be done
    """
    typed = list(argv)
    position = typed.index("--") if "--" in typed else len(typed)
    options = make_parser().parse_args(typed[:position])
    if min(options.jobs, options.threads, options.save_freq) < 1 or options.retries < 0:
        raise UsageError("--jobs, --threads and --save-freq have to be at least 1, --retries at least 0.")
    console = Console(file=raw_output())
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    check_grid(options)
    arguments = typed[position + 1 :]
    plans = make_grid(options, arguments) if options.table is None else read_table(options.table, arguments)
    sweep = Sweep(plans, options, console)
    if options.dry_run:
        times = read_times(options.times or default_times())
        for run in sweep.runs:
            console.print(shlex.join(["python", *sweep.command(run.plan)]), highlight=False, markup=False, soft_wrap=True)
        for line in needs(plans, times, options):
            console.print(f"# {line}", highlight=False, markup=False, soft_wrap=True)
        return 0
    jobs = make_jobs(options)
    sweep.prepare()
    failed = sweep.run(jobs)
    console.print(sweep.table())
    return EXIT_FAILURE if failed else 0
