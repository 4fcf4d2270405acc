"""
Fault campaigns: kills, damaged and hostile files, full disks, wrong input, an hour of soak; beside stock Stable-Baselines3.

``python benchmarks/faults.py --campaign all`` runs them at full length and writes ``benchmarks/results/faults.csv``;
``--scale 0.01`` runs a hundredth of the trials. The campaigns are in ``benchmarks/fault_campaigns``.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch as th

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sb3_dmpo
from benchmarks.fault_campaigns.common import Row
from benchmarks.fault_campaigns.damage import damaged_files
from benchmarks.fault_campaigns.disk import disk_faults
from benchmarks.fault_campaigns.hostile import hostile_files
from benchmarks.fault_campaigns.hostile_kinds import hostile_kinds
from benchmarks.fault_campaigns.inputs import wrong_input
from benchmarks.fault_campaigns.kills import kills_during_save, kills_during_training
from benchmarks.fault_campaigns.soak import soak
from benchmarks.fault_campaigns.versions import other_versions
from sb3_dmpo.cli.results import commit, read_rows, write_rows


def campaigns(scale: float) -> dict[str, Callable[[], list[Row]]]:
    """
    The campaigns by name.

    :param scale: share of the full number of trials
    """

    def trials(full: int) -> int:
        return max(1, round(full * scale))

    return {
        "save": lambda: kills_during_save(trials(1000)),
        "train": lambda: kills_during_training(trials(100), trials(20), trials(10)),
        "damage": lambda: damaged_files(trials(2000)),
        "hostile": hostile_files,
        "kinds": lambda: hostile_kinds(trials(1000)),
        "input": wrong_input,
        "disk": lambda: disk_faults(trials(100)),
        "versions": other_versions,
        # Compiling and the first evaluation have to lie in the warm-up, on a slow machine too.
        "soak": lambda: soak(3600.0 * scale, max(60.0, 600.0 * min(scale, 1.0))),
    }


def main() -> None:
    """Run campaigns and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaign", choices=["all", *campaigns(1.0)], default="all")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full number of trials")
    parser.add_argument("--output", default="benchmarks/results/faults.csv", help="rows of the same campaigns are replaced")
    options = parser.parse_args()
    th.set_num_threads(1)
    chosen = campaigns(options.scale)
    if options.campaign != "all":
        chosen = {options.campaign: chosen[options.campaign]}
    common = {"commit": commit(), "version": sb3_dmpo.__version__}
    is_whole = True
    for name, campaign in chosen.items():
        command = f"python benchmarks/faults.py --campaign {name}"
        command += "" if options.scale == 1.0 else f" --scale {options.scale:g}"
        rows = [result | {"command": command} | common for result in campaign()]
        write(Path(options.output), rows)
        for result in rows:
            print(
                f"{result['campaign']}, {result['system']}: {result['passed']}/{result['trials']} ({result['detail']})",
                flush=True,
            )
            is_whole = is_whole and (result["system"] != "sb3_dmpo" or result["passed"] == result["trials"])
    sys.exit(0 if is_whole else 1)


def write(path: Path, rows: list[Row]) -> None:
    """
    Put results into a file, in place of those of the same campaigns.

    :param path: CSV file
    :param rows: lines of the results
    """
    names = {result["campaign"] for result in rows}
    kept = [result for result in read_rows(path) if result["campaign"] not in names]
    write_rows(path, list(rows[0]), [*kept, *rows])


if __name__ == "__main__":
    main()
