"""Where the runs of a sweep are done: on this machine or on a SLURM cluster, through submitit."""

import contextlib
import getpass
import math
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.cli.sweep.runs import Worker, read_json, write_json
from sb3_dmpo.cli.train.callbacks import interrupts_handled

#: submitit ends local jobs after this time; a run ends by itself.
_TEN_YEARS = 10 * 365 * 24 * 60
#: How long local runs may take to stop in peace.
_PATIENCE = 10.0


class Jobs(ABC):
    """Workers on a cluster."""

    #: Seconds between two looks at the jobs.
    poll_seconds: float
    #: How many workers there may be at once.
    limit: float

    @abstractmethod
    def submit(self, workers: Sequence[Worker]) -> list[str]:
        """
        Submit workers; their job ids.

        :param workers: the workers
        """

    @abstractmethod
    def alive(self, job_ids: Sequence[str]) -> set[str]:
        """
        Those of the jobs that are waiting or running, or of which nothing is known at the moment.

        :param job_ids: job ids
        """

    @abstractmethod
    def stop(self, workers: Sequence[Worker]) -> str:
        """
        The sweep ends before its runs; what has become of them, in words.

        :param workers: those that were running
        """


def make_executor(cluster: str, folder: Path) -> Any:
    """
    submitit's executor.

    :param cluster: ``local`` or ``slurm``
    :param folder: where it keeps its files
    :raises UsageError: submitit or the cluster is not there
    """
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise UsageError("Sweeps need submitit: pip install 'sb3_dmpo[zoo,cluster]'.") from error
    try:
        return AutoExecutor(folder, cluster=cluster)
    except RuntimeError as error:
        raise UsageError(f"--cluster {cluster}: {error}") from error


class LocalJobs(Jobs):
    """
    So many runs at a time on this machine.

    :param folder: where submitit keeps its files
    :param n_jobs: runs at a time
    :param gpus: CUDA devices to divide among the runs; empty: as the environment says
    """

    poll_seconds = 1.0

    def __init__(self, folder: Path, n_jobs: int, gpus: Sequence[str] = ()) -> None:
        self.executor = make_executor("local", folder)
        self.executor.update_parameters(timeout_min=_TEN_YEARS)
        self.limit = n_jobs
        self.gpus = list(gpus)
        self._jobs: dict[str, tuple[Any, str]] = {}

    def submit(self, workers: Sequence[Worker]) -> list[str]:
        return [self._start(worker) for worker in workers]

    def _start(self, worker: Worker) -> str:
        gpu = ""
        if self.gpus:
            busy = [device for _, device in self._jobs.values()]
            gpu = min(self.gpus, key=busy.count)
            worker.environment["CUDA_VISIBLE_DEVICES"] = gpu
        else:
            # submitit hides all devices from local jobs.
            worker.environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES")
        # Its processes inherit that: a Ctrl-C in the terminal is for the sweep, which tells them.
        with interrupts_handled(signal.SIG_IGN):
            job = self.executor.submit(worker)
        self._jobs[job.job_id] = (job, gpu)
        return str(job.job_id)

    def alive(self, job_ids: Sequence[str]) -> set[str]:
        self._jobs = {job_id: (job, gpu) for job_id, (job, gpu) in self._jobs.items() if not job.done()}
        return set(job_ids) & set(self._jobs)

    def stop(self, workers: Sequence[Worker]) -> str:
        # They stop between two updates; those that do not are ended.
        end = time.monotonic() + _PATIENCE
        for number in (signal.SIGINT, signal.SIGKILL):
            for worker in workers:
                if pid := read_json(Path(worker.folder) / "running.json").get("pid"):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            while self.alive(list(self._jobs)) and time.monotonic() < end:
                time.sleep(0.1)
        return "its runs have been stopped"


class SlurmJobs(Jobs):
    """
    Runs as job arrays on a SLURM cluster. They outlive the sweep, and a later one finds them again.

    :param folder: where submitit keeps its files
    :param n_jobs: tasks of an array that run at a time
    :param parameters: parameters of submitit's SLURM executor
    """

    poll_seconds = 5.0
    #: SLURM queues them all.
    limit = math.inf

    def __init__(self, folder: Path, n_jobs: int, parameters: dict[str, Any]) -> None:
        self.executor = make_executor("slurm", folder)
        self.executor.update_parameters(name="sb3_dmpo", slurm_array_parallelism=n_jobs, **parameters)

    def submit(self, workers: Sequence[Worker]) -> list[str]:
        try:
            with self.executor.batch():
                jobs = [self.executor.submit(worker) for worker in workers]
        except Exception as error:  # submitit has no class of its own for all that sbatch can say
            raise UsageError(f"SLURM does not take the jobs: {error}") from error
        for worker, job in zip(workers, jobs, strict=True):
            write_json(Path(worker.folder) / "job.json", {"job": job.job_id, "attempt": worker.attempt})
        return [str(job.job_id) for job in jobs]

    def alive(self, job_ids: Sequence[str]) -> set[str]:
        # Not sacct, which submitit asks: that needs an accounting database that not every cluster has.
        command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return set(job_ids)
        return set(job_ids) & set(answer.stdout.split())

    def stop(self, workers: Sequence[Worker]) -> str:
        return "its jobs go on in SLURM (scancel --name sb3_dmpo ends them)"
