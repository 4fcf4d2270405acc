"""
Contenders in processes of their own, timed one after the other.

A process holds the contenders of one environment and one number of threads and waits for orders, one JSON object per
line, without using the processor. Its measures are those of its own process, so that what else the machine does changes
the wall clock but hardly the processor time.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Contenders:
    """
    The contenders of this process, and what can be asked of them.

    :param module: module with the factories
    """

    def __init__(self, module: str) -> None:
        self.factories = importlib.import_module(module)
        self.runs: dict[str, Callable[[int], float | None]] = {}

    def ask(self, do: str, name: str, **order: Any) -> dict[str, float]:
        """
        Build a contender, or run it and measure its processor and wall seconds; ``value`` is what it returned, if anything.

        :param do: ``"build"`` or ``"run"``
        :param name: the contender
        :param order: ``factory`` and ``options``, or ``n``
        """
        if do == "build":
            self.runs[name] = getattr(self.factories, order["factory"])(**order["options"])
            return {}
        wall, cpu = time.perf_counter(), time.process_time()
        value = self.runs[name](order["n"])
        answer = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        return answer if value is None else answer | {"value": value}

    def close(self) -> None:
        """Forget all contenders."""
        self.runs.clear()


def serve(module: str, threads: int) -> None:
    """
    Answer orders until the input ends.

    :param module: where the factories are
    :param threads: threads of torch
    """
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import torch as th

    th.set_num_threads(threads)
    contenders = Contenders(module)
    for line in sys.stdin:
        answers.write(json.dumps(contenders.ask(**json.loads(line))) + "\n")
        answers.flush()


class Server:
    """
    A process that holds contenders: :class:`Contenders` from afar.

    :param module: module with the factories
    :param python: interpreter
    :param threads: threads of torch
    """

    def __init__(self, module: str, python: str = sys.executable, threads: int = 1) -> None:
        self.log = tempfile.TemporaryFile("w+")
        count = str(threads)
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.timing.server", "--module", module, "--threads", count],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def ask(self, **order: Any) -> dict[str, float]:
        """
        The answer to an order.

        :param order: what to do
        :raises RuntimeError: the process has ended; the message has the end of what it wrote
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.log.seek(0)
            raise RuntimeError(f"{order.get('name')} failed:\n{self.log.read()[-3000:]}")
        result: dict[str, float] = json.loads(answer)
        return result

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()
        self.log.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--module", required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    serve(options.module, options.threads)
