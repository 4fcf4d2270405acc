"""
Everything about a GPU in ten minutes: whether captured updates are right there, and how fast they are.

    python benchmarks/gpu_check.py                          # prints one table, writes benchmarks/results/gpu.csv
    python benchmarks/gpu_check.py --device cpu --quick     # does the same in small without a GPU; the figures mean nothing

It needs the package and PyTorch and makes its own data, a million transitions of 17 + 6 numbers. What fails is a row of the
table, and the rest goes on. With ``--dataset``, the run at the end is on a dataset with evaluations in its environment.

On a CPU, where there are no CUDA graphs, what would be captured is done again instead of replayed, and ``--quick`` does not
compile: it is the script that is tried there.
"""

import argparse
import contextlib
import itertools
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import Logger

from sb3_dmpo import ALGOS, OfflineAlgorithm, __version__
from sb3_dmpo.cli.results import write_rows
from sb3_dmpo.common import capture, compilation, offline_algorithm
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.compilation import undone
from sb3_dmpo.data import load_transitions, recover_environment
from sb3_dmpo.several_seeds.several_seeds import learn_together

HERE = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "gpu.csv"
#: What matters most comes first, in case the time does not suffice.
ALGORITHMS = ("infodmpo", "td3_bc", "iql", "dmpo")
OBSERVATION_SIZE, ACTION_SIZE = 17, 6
MODES: dict[str, dict[str, Any]] = {
    "eager": {"compile": False, "capture": False},
    "compiled": {"compile": True, "capture": False},
    "captured": {"compile": False, "capture": True},
    "compiled and captured": {"compile": True, "capture": True},
}
FASTEST = "compiled and captured"
COLUMNS = ("check", "algorithm", "mode", "value", "unit", "low", "high", "note", "device", "torch", "commit", "command")


class Effort(NamedTuple):
    """
    How much is done.

    :param transitions: size of the data
    :param net_arch: hidden layers
    :param batch_size: minibatch size
    :param components: sub-policies
    :param warm_up: updates before a measurement
    :param seconds: length of a block
    :param blocks: blocks of a measurement
    :param compared: updates after which weights are compared
    :param watched: updates in which nothing may wait for the device
    :param seeds: models that learn at once
    :param whole: updates of the run at the end
    """

    transitions: int
    net_arch: list[int]
    batch_size: int
    components: int
    warm_up: int
    seconds: float
    blocks: int
    compared: int
    watched: int
    seeds: int
    whole: int


FULL = Effort(1_000_000, [256, 256], 256, 8, 50, 1.0, 5, 200, 1_000, 5, 1_000_000)
QUICK = Effort(1_000, [8], 16, 2, 2, 0.001, 2, 4, 4, 2, 8)


class Row(NamedTuple):
    """One line of the table."""

    check: str
    algorithm: str
    mode: str
    value: float | str
    unit: str = ""
    low: float | str = ""
    high: float | str = ""
    note: str = ""


def device_name(device: th.device) -> str:
    """
    Name of the processor that is looked at.

    :param device: the device
    """
    return th.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.processor() or platform.machine()}"


def commit() -> str:
    """The commit of this checkout with ``+`` if files differ from it, else the package's version."""
    try:
        git = ["git", "-C", str(HERE)]
        name = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
        return name + ("+" if changed.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return __version__


def synthetic(n: int) -> dict[str, Any]:
    """
    Random transitions in episodes of up to 1000 steps.

    :param n: number of transitions, a multiple of 1000
    """
    rng = np.random.default_rng(0)
    return {
        "observations": rng.standard_normal((n, OBSERVATION_SIZE), np.float32),
        "actions": rng.random((n, ACTION_SIZE), np.float32) * 2 - 1,
        "rewards": rng.standard_normal(n, np.float32),
        "terminals": np.zeros(n, bool),
        "timeouts": np.arange(n) % 1000 == 999,
    }


def run_again(
    body: Callable[[], Any], device: th.device, generators: Sequence[th.Generator]
) -> tuple[Callable[[], Any], tuple[Any, tuple[str, ...]]]:
    """
    What stands in for :func:`sb3_dmpo.common.capture.cuda_graph` without a GPU: the same calls around it, and no graph.

    :param body: one update
    :param device: where it runs
    :param generators: those that it draws from
    """
    for _ in range(capture.WARM_UPS):
        body()
    results = body()
    return body, results


@contextlib.contextmanager
def stood_in_for(device: th.device, is_quick: bool) -> Iterator[None]:
    """
    Without a GPU, something else in the place of CUDA graphs, and in quick runs of the compiler too.

    :param device: the device that is looked at
    :param is_quick: whether it is only the script that is tried
    """
    with contextlib.ExitStack() as stack:
        if device.type != "cuda":
            stack.enter_context(mock.patch.object(capture, "cuda_graph", run_again))
            stack.enter_context(mock.patch.object(offline_algorithm, "missing_for_capture", lambda device: None))
            if is_quick:
                stack.enter_context(mock.patch.object(th, "compile", lambda graph, **options: graph))
                stack.enter_context(mock.patch.object(compilation, "missing_for_compilation", lambda *_: None))
        yield


class Ends(BaseCallback):
    """
    Ends a run when the time is up.

    :param at: by :func:`time.monotonic`
    """

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        return time.monotonic() < self.at


class At(BaseCallback):
    """
    Does things after some updates.

    :param actions: by number of the update
    """

    def __init__(self, actions: dict[int, Callable[[], Any]]) -> None:
        super().__init__()
        self.actions = actions

    def _on_step(self) -> bool:
        if self.num_timesteps in self.actions:
            self.actions[self.num_timesteps]()
        return True


class Check:
    """
    All checks on one device.

    :param device: the device
    :param effort: how much is done
    """

    def __init__(self, device: th.device, effort: Effort) -> None:
        self.device, self.effort = device, effort
        arrays = load_transitions(synthetic(effort.transitions))
        self.data = OfflineReplayBuffer.from_transitions(arrays, device=device, seed=0)
        # Compiling takes longer than anything else here: one model of an algorithm does for most checks.
        self._compiled: dict[str, OfflineAlgorithm] = {}

    def model(self, algorithm: str, mode: str, dataset: Any = None, **arguments: Any) -> OfflineAlgorithm:
        """
        A model that has learned nothing yet and logs nothing.

        :param algorithm: as in ``ALGOS``
        :param mode: one of ``MODES``
        :param dataset: what it learns from, None: the synthetic data
        :param arguments: of the constructor
        """
        options: dict[str, Any] = {"seed": 0, "batch_size": self.effort.batch_size, **MODES[mode], **arguments}
        if "dmpo" in algorithm:
            options["n_components"] = self.effort.components
        model: OfflineAlgorithm = ALGOS[algorithm](
            "MlpPolicy",
            dataset=self.data if dataset is None else dataset,
            device=self.device,
            policy_kwargs={"net_arch": self.effort.net_arch},
            **options,
        )
        model.set_logger(Logger(None, []))
        return model

    def mark(self) -> Any:
        """A point in time, of the device where it has a clock of its own."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = th.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Any, second: Any) -> float:
        """
        Seconds between two points in time.

        :param first: what :meth:`mark` returned
        :param second: the same, later
        """
        if self.device.type != "cuda":
            return float(second - first)
        second.synchronize()
        return float(first.elapsed_time(second)) / 1e3

    def seconds(self, work: Callable[[], Any]) -> float:
        """
        How long something takes, until the device is done with it.

        :param work: what is done
        """
        start = self.mark()
        work()
        return self.between(start, self.mark())

    def rate(self, learn: Callable[[int], Any]) -> tuple[float, float, float]:
        """
        Updates per second: median, smallest and largest of some blocks.

        :param learn: does so many updates
        """
        learn(self.effort.warm_up)
        # Their number follows from a block that may still be slow.
        n = self.effort.warm_up
        for _ in range(2):
            n = max(1, int(n * self.effort.seconds / max(self.seconds(lambda n=n: learn(n)), 1e-9)))  # type: ignore[misc]
        rates = [n / self.seconds(lambda: learn(n)) for _ in range(self.effort.blocks)]
        return statistics.median(rates), min(rates), max(rates)

    # The checks, each a generator of rows ------------------------------------------------------------------------

    def compiled(self, algorithm: str, captures: bool) -> OfflineAlgorithm:
        """
        The model whose updates are compiled, each of them once.

        :param algorithm: as in ``ALGOS``
        :param captures: whether they are captured now
        """
        if algorithm not in self._compiled:
            self._compiled[algorithm] = self.model(algorithm, FASTEST)
        self._compiled[algorithm].capture = captures
        return self._compiled[algorithm]

    def speed(self, algorithm: str, mode: str) -> Iterator[Row]:
        """
        Updates per second, and how many kernels an update is.

        :param algorithm: as in ``ALGOS``
        :param mode: one of ``MODES``
        """
        options = MODES[mode]
        model = self.compiled(algorithm, options["capture"]) if options["compile"] else self.model(algorithm, mode)
        median, low, high = self.rate(lambda n: model.learn(n, log_interval=None, reset_num_timesteps=False))
        yield Row("speed", algorithm, mode, median, "updates/s", low, high, went_on_without(model, mode))
        is_cuda, n = self.device.type == "cuda", 10
        kinds, devices = th.profiler.ProfilerActivity, th.autograd.DeviceType
        with th.profiler.profile(activities=[kinds.CUDA if is_cuda else kinds.CPU]) as profile:
            model.train(n, model.batch_size)
            if is_cuda:
                th.cuda.synchronize(self.device)
        events = [event for event in profile.events() or [] if event.device_type == (devices.CUDA if is_cuda else devices.CPU)]
        yield Row("kernels", algorithm, mode, len(events) / n, "per update")

    def captured_equals_compiled(self, algorithm: str) -> Iterator[Row]:
        """
        Whether replays give the weights and the generators of the same updates without graphs, bit for bit.

        :param algorithm: as in ``ALGOS``
        """
        model = self.compiled(algorithm, captures=False)
        # Compiles, and makes every tensor there is.
        model.learn(self.effort.warm_up, log_interval=None)
        begun = snapshot(model)
        with undone(model._update_state()):
            model.learn(self.effort.compared, log_interval=None, reset_num_timesteps=False)
            plain = snapshot(model)
        model = self.compiled(algorithm, captures=True)
        for generator, state in zip(generators(model), begun["generators"], strict=True):
            generator.set_state(state)
        model._n_updates = model.num_timesteps = self.effort.warm_up
        model._filled_rates.clear()
        model.learn(self.effort.compared, log_interval=None, reset_num_timesteps=False)
        found = difference(plain, snapshot(model))
        yield Row("captured equals compiled", algorithm, FASTEST, found or "yes", note=went_on_without(model, FASTEST))

    def resume(self, algorithm: str) -> Iterator[Row]:
        """
        Whether a run that was saved half-way ends as the undisturbed one, bit for bit.

        :param algorithm: as in ``ALGOS``
        """
        n, whole = self.effort.compared, self.compiled(algorithm, captures=True)
        done = whole.num_timesteps
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "half.zip"
            halfway = At({done + n // 2: lambda: whole.save(path)})
            whole.learn(n, callback=halfway, log_interval=None, reset_num_timesteps=False)
            resumed = ALGOS[algorithm].load(path, device=self.device, dataset=self.data)
        resumed.set_logger(Logger(None, []))
        resumed.learn(n - n // 2, log_interval=None, reset_num_timesteps=False)
        found = difference(snapshot(whole), snapshot(resumed))
        yield Row("resumed equals whole", algorithm, FASTEST, found or "yes", note=went_on_without(resumed, FASTEST))

    def waits(self, algorithm: str) -> Iterator[Row]:
        """
        Whether any update waits for the device.

        :param algorithm: as in ``ALGOS``
        """
        model, n = self.compiled(algorithm, captures=True), self.effort.watched
        first = model.num_timesteps + self.effort.warm_up
        switch: Callable[[str], Any] = th.cuda.set_sync_debug_mode if self.device.type == "cuda" else lambda mode: None
        # Losses are looked at every 1000 updates, which is a wait.
        looks = At({first - 1: model._metrics.check, first: lambda: switch("error"), first + n - 1: lambda: switch("default")})
        try:
            model.learn(n + 2 * self.effort.warm_up, log_interval=None, callback=looks, reset_num_timesteps=False)
        finally:
            switch("default")
        yield Row("waits for nothing", algorithm, FASTEST, "yes", note=f"{n - 1} updates {went_on_without(model, FASTEST)}")

    def several_seeds(self, algorithm: str) -> Iterator[Row]:
        """
        Several models at once against one alone.

        :param algorithm: as in ``ALGOS``
        """
        alone = self.compiled(algorithm, captures=True)
        one, low, high = self.rate(lambda n: alone.learn(n, log_interval=None, reset_num_timesteps=False))
        yield Row("one seed", algorithm, FASTEST, one, "updates/s", low, high, went_on_without(alone, FASTEST))
        models = [self.model(algorithm, FASTEST, seed=seed) for seed in range(self.effort.seeds)]
        # All blocks in one call: another call would compile once more.
        first, length = self.effort.warm_up, max(1, int(one * self.effort.seconds / 2))
        marks: list[Any] = []
        borders = [first + i * length for i in range(self.effort.blocks + 1)]
        timer = At({border: lambda: marks.append(self.mark()) for border in borders})
        learn_together(models, borders[-1], callbacks=[timer, *[None] * (len(models) - 1)], log_interval=None)
        rates = [length / self.between(one, other) for one, other in itertools.pairwise(marks)]
        rate, low, high = statistics.median(rates), min(rates), max(rates)
        n = len(models)
        yield Row(f"{n} seeds at once", algorithm, FASTEST, rate, "updates/s of each", low, high)
        yield Row(f"{n} seeds at once", algorithm, FASTEST, one / rate, "times as long as one")
        yield Row(f"{n} seeds at once", algorithm, FASTEST, n * rate / one, "times as fast as one after the other")

    def whole_run(self, algorithm: str, until: float, dataset: str | None) -> Iterator[Row]:
        """
        A whole run, or as much of it as there is time for.

        :param algorithm: as in ``ALGOS``
        :param until: when it has to end, by :func:`time.monotonic`
        :param dataset: Minari id, with evaluations in its environment; None: the synthetic data, without
        """
        model = self.model(algorithm, FASTEST, dataset)
        callbacks: list[BaseCallback] = [Ends(until)]
        evaluation = None
        if dataset is not None:
            evaluation = EvalCallback(
                recover_environment(dataset), n_eval_episodes=10, eval_freq=max(self.effort.whole // 20, 1), verbose=0
            )
            callbacks.append(evaluation)
        start = time.monotonic()
        model.learn(self.effort.whole, callback=callbacks, log_interval=max(self.effort.whole // 100, 1))
        minutes, done = (time.monotonic() - start) / 60, model.num_timesteps
        what = dataset or "synthetic data"
        ended = "" if done == self.effort.whole else ", then the time was up"
        yield Row("whole run", algorithm, FASTEST, minutes, "minutes", note=f"{done:,} updates on {what}{ended}")
        if evaluation is not None:
            yield Row("whole run", algorithm, FASTEST, float(evaluation.last_mean_reward), "mean return", note=what)


def went_on_without(model: OfflineAlgorithm, mode: str) -> str:
    """
    A note if the updates of a model were not what they were to be.

    :param model: the model after ``learn``
    :param mode: one of ``MODES``
    """
    wanted = MODES[mode]["compile"], MODES[mode]["capture"]
    return "" if (bool(model._is_compiled), model._captured.is_on) == wanted else "went on without, see the warnings"


def generators(model: OfflineAlgorithm) -> list[th.Generator]:
    """
    Those of the minibatches and of the noise.

    :param model: the model
    """
    assert isinstance(model.replay_buffer, OfflineReplayBuffer)
    return [model.replay_buffer.generator, model._noise_generator]


def snapshot(model: OfflineAlgorithm) -> dict[str, list[th.Tensor]]:
    """
    Copies of all that updates change.

    :param model: the model
    """
    return {
        "weights and optimizers": [tensor.detach().clone() for tensor in model._update_state()],
        "generators": [generator.get_state() for generator in generators(model)],
    }


def difference(first: dict[str, list[th.Tensor]], second: dict[str, list[th.Tensor]]) -> str:
    """
    What two snapshots do not have in common; nothing if they are the same.

    :param first: one
    :param second: the other
    """
    found = []
    for name, tensors in first.items():
        pairs = list(zip(tensors, second[name], strict=True))
        if not all(th.equal(one, other) for one, other in pairs):
            largest = max(float((one.double() - other.double()).abs().max()) for one, other in pairs if one.numel())
            found.append(f"{name} by {largest:.2g}")
    return "differs: " + ", ".join(found) if found else ""


def attempted(name: str, algorithm: str, mode: str, check: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """
    The rows of a check; a failure is one too.

    :param name: of the check
    :param algorithm: as in ``ALGOS``
    :param mode: one of ``MODES``
    :param check: the check
    """
    try:
        yield from check()
    except Exception as error:  # every reason is worth a line
        reason = next(iter(str(error).strip().splitlines()), "")
        yield Row(name, algorithm, mode, "failed", note=f"{type(error).__name__}: {reason}"[:300])


def rows(check: Check, algorithms: Sequence[str], until: float, dataset: str | None) -> Iterator[Row]:
    """
    All rows, what matters most first; what there is no time for is left out.

    :param check: the checks
    :param algorithms: as in ``ALGOS``
    :param until: when the last run has to end, by :func:`time.monotonic`
    :param dataset: what it is on
    """
    tasks: list[tuple[str, str, str, Callable[[], Iterable[Row]]]] = []
    for algo in algorithms:
        tasks.append(("captured equals compiled", algo, FASTEST, partial(check.captured_equals_compiled, algo)))
        tasks.append(("waits for nothing", algo, FASTEST, partial(check.waits, algo)))
        tasks += (("speed", algo, mode, partial(check.speed, algo, mode)) for mode in (FASTEST, "compiled"))
    tasks.append(("several seeds", algorithms[0], FASTEST, partial(check.several_seeds, algorithms[0])))
    for algo in algorithms:
        tasks.append(("resumed equals whole", algo, FASTEST, partial(check.resume, algo)))
        tasks += (("speed", algo, mode, partial(check.speed, algo, mode)) for mode in ("eager", "captured"))
    tasks.append(("whole run", algorithms[0], FASTEST, partial(check.whole_run, algorithms[0], until, dataset)))
    for name, algo, mode, task in tasks:
        if time.monotonic() < until:
            yield from attempted(name, algo, mode, task)
        else:
            yield Row(name, algo, mode, "no time left")


def shown(value: float | str) -> str:
    """
    A number with four digits, anything else as it is.

    :param value: the value
    """
    return (
        f"{value:,.4g}" if isinstance(value, float) and value < 1e4 else f"{value:,.0f}" if isinstance(value, float) else value
    )


def main(arguments: list[str] | None = None) -> int:
    """
    Print the table line by line, and write the CSV after every line.

    :param arguments: command line, by default that of the process
    :return: 1 if something has failed or differs
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu, ... (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="everything in small: whether the script runs")
    parser.add_argument("--algos", nargs="+", choices=ALGORITHMS, default=ALGORITHMS, metavar="ALGO", help="only these")
    parser.add_argument("--minutes", type=float, default=10.0, help="when the last run ends (default: %(default)s)")
    parser.add_argument("--dataset", metavar="ID", help="Minari dataset of the last run, with evaluations")
    parser.add_argument("--output", type=Path, help=f"CSV (default: {RESULTS.relative_to(HERE)}; none with --quick)")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    device = th.device(options.device)
    if device.type == "cuda" and not th.cuda.is_available():
        parser.error("this PyTorch finds no CUDA device; --device cpu --quick tries the script without one")
    output: Path | None = options.output or (None if options.quick else RESULTS)
    given = sys.argv[1:] if arguments is None else arguments
    origin = (device_name(device), th.__version__, commit(), shlex.join(["python", "benchmarks/gpu_check.py", *given]))
    print(f"{origin[0]}, PyTorch {origin[1]}, sb3_dmpo {origin[2]}")
    written: list[dict[str, Any]] = []
    with stood_in_for(device, options.quick):
        check = Check(device, QUICK if options.quick else FULL)
        failed = False
        for row in rows(check, options.algos, start + 60 * options.minutes, options.dataset):
            spread = f" ({shown(row.low)} to {shown(row.high)})" if row.low != "" else ""
            value = f"{shown(row.value)} {row.unit}{spread}".strip()
            print(f"{row.check:26} {row.algorithm:9} {row.mode:22} {value:48} {row.note}".rstrip(), flush=True)
            written.append(dict(zip(COLUMNS, (*row, *origin), strict=True)))
            if output is not None:
                # After every row: the last ones take long, and the device may be gone before.
                write_rows(output, COLUMNS, written)
            failed |= isinstance(row.value, str) and row.value not in ("yes", "no time left")
            failed |= "went on without" in row.note
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
