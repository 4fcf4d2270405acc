"""What the runs of a sweep take: hours, jobs and GPUs, from measured times."""

import argparse
import csv
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sb3_dmpo
from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.cli.literals import parse_value
from sb3_dmpo.cli.sweep.options import DEFAULT_MINUTES
from sb3_dmpo.cli.sweep.runs import PlannedRun

#: Rows that tell how long an update takes as ``train`` does it if nothing else is asked for.
_VARIANT, _MEASURE = "eager float32", "updates per CPU-second"
_DEFAULT_COMPONENTS = 8


@dataclass
class Times:
    """
    Measured speed of the algorithms.

    :param path: file of the rows; empty: there is none
    :param rates: updates per second of one CPU core, by algorithm
    :param by_components: the same by algorithm and number of sub-policies, from measurements of their own
    :param machines: what they were measured on
    :param has_gpu: whether the file has times on a GPU
    """

    path: str = ""
    rates: dict[str, float] = field(default_factory=dict)
    by_components: dict[tuple[str, int], float] = field(default_factory=dict)
    machines: set[str] = field(default_factory=set)
    has_gpu: bool = False

    def seconds_per_update(self, plan: PlannedRun) -> float | None:
        """
        Seconds of one CPU core for an update; None: not measured.

        :param plan: the run
        """
        rate = self.rates.get(plan.algo)
        if rate is None:
            return None
        n_components = parse_value(plan.settings.get("n_components", _DEFAULT_COMPONENTS))
        # Both numbers of a ratio are from the same hour of the same machine.
        here, usual = (self.by_components.get((plan.algo, n)) for n in (n_components, _DEFAULT_COMPONENTS))
        ratio = usual / here if here and usual else 1.0
        return ratio / rate


def default_times() -> Path | None:
    """The measurements that a checkout holds; None where there is no checkout."""
    path = Path(sb3_dmpo.__file__).parent.parent / "benchmarks" / "results" / "speed.csv"
    return path if path.is_file() else None


def read_times(path: Path | None) -> Times:
    """
    Measurements as ``benchmarks/speed.py`` writes them.

    :param path: the file; None: nothing is known
    :raises UsageError: it cannot be read, or is no such file
    """
    if path is None:
        return Times()
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        times = Times(str(path), has_gpu=any(row["device"].startswith("cuda") for row in rows))
        for row in rows:
            is_ours = (row["system"], row["variant"], row["measure"]) == ("sb3_dmpo", _VARIANT, _MEASURE)
            if not is_ours or row["device"] != "cpu" or row["threads"] != "1":
                continue
            by_components = re.fullmatch(r"(\w+) by \|Z\|", row["case"])
            if row["table"] == "train":
                times.rates[row["case"]] = float(row["median"])
                times.machines.add(f"{row['cpu']}, PyTorch {row['torch']}")
            elif by_components:
                times.by_components[by_components[1], int(row["setting"].rpartition(" ")[2])] = float(row["median"])
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"The times {path} cannot be read ({error!r}): name a file of benchmarks/speed.py.") from error
    return times


def needs(plans: Sequence[PlannedRun], times: Times, options: argparse.Namespace) -> list[str]:
    """
    Lines that say how many runs and jobs there are, how long they take and which GPUs they need.

    :param plans: the runs
    :param times: measured times
    :param options: parsed options of the sweep
    """
    hours = {plan: _hours(plan, times) for plan in plans}
    known = [value for value in hours.values() if value is not None]
    lines = [f"{len(plans)} runs, {len({plan.group for plan in plans})} settings", ""]
    lines += _table(plans, hours)
    lines += ["", _jobs(hours.values(), options), _gpus(times, options)]
    if known:
        at_once = max(sum(known) / options.jobs, max(known))
        lines.append(
            f"Together {_number(sum(known))} hours of one CPU core; with --jobs {options.jobs} at least {_number(at_once)} "
            f"hours. The longest run takes {_number(max(known))}."
        )
    if unknown := sorted({plan.algo for plan, value in hours.items() if value is None}):
        lines.append(
            f"Without {', '.join(unknown)}: not measured{'' if times.path else ', name a file of times with --times'}."
        )
    if known:
        lines.append(
            f"Estimated from {times.path}: {_MEASURE} ({_VARIANT}, one thread, the settings of the locomotion tasks) on "
            f"{'; '.join(sorted(times.machines))}. Evaluations, loading and a busy machine come on top."
        )
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _hours(plan: PlannedRun, times: Times) -> float | None:
    seconds = times.seconds_per_update(plan)
    return None if seconds is None else plan.total_updates() * seconds / 3600


def _table(plans: Sequence[PlannedRun], hours: dict[PlannedRun, float | None]) -> list[str]:
    """One line for all runs of an algorithm with as many updates."""
    kinds = dict.fromkeys((plan.name, plan.total_updates()) for plan in plans)
    width = max(len("algorithm"), *(len(name) for name, _ in kinds))
    lines = [f"{'algorithm':{width}}  {'runs':>5}  {'updates':>10}  {'hours each':>10}  {'hours':>8}"]
    for name, updates in kinds:
        of_kind = [hours[plan] for plan in plans if (plan.name, plan.total_updates()) == (name, updates)]
        known = [value for value in of_kind if value is not None]
        each, together = (_number(max(known)), _number(sum(known))) if known else ("?", "?")
        lines.append(f"{name:{width}}  {len(of_kind):5}  {updates:10,}  {each:>10}  {together:>8}")
    return lines


def _jobs(hours: Iterable[float | None], options: argparse.Namespace) -> str:
    if options.cluster == "local":
        return f"{options.jobs} at a time on this machine (--jobs), {options.threads} CPU thread(s) each."
    limit = (options.time or DEFAULT_MINUTES) / 60
    n_jobs = sum(math.ceil(max(value or 0, 1e-9) / limit) for value in hours)
    return (
        f"{n_jobs:,} SLURM jobs of at most {limit:g} hours (--time), {options.threads} CPU thread(s) each, {options.jobs} at "
        "a time (--jobs); a run that needs longer goes on in another job."
    )


def _gpus(times: Times, options: argparse.Namespace) -> str:
    if options.cluster == "slurm" and options.gres:
        asked = f"Each job asks for {options.gres}"
    elif options.gpus:
        asked = f"The runs share {len(options.gpus)} GPU(s)"
    else:
        asked = f"No GPU is asked for ({'--gres gpu:1' if options.cluster == 'slurm' else '--gpus 0 1'} does)"
    measured = "" if times.has_gpu else " No time on a GPU has been measured: the hours are a CPU's."
    return f"GPU: {asked}; a run needs none and uses one at most.{measured}"
