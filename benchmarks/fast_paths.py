"""
Whether the fast paths change scores: DMPO with compiled updates and the gate in bfloat16, beside eager float32.

``python benchmarks/fast_paths.py`` compares the committed rows of ``benchmarks/results/fast_paths.csv``, seed by seed;
``--run`` does the runs (10,000 updates each) that are not there yet and appends their rows.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.scores import check_lengths
from sb3_dmpo.cli.results import COLUMNS, ResultsFile, read_rows

RESULTS = Path(__file__).parent / "results" / "fast_paths.csv"
DATASETS = ("zoo/hopper/medium-v0", "zoo/pen/noisy-v0", "zoo/door/human-v0")
VARIANTS = {
    "float32": ("compile:False", "gating_dtype:'float32'"),
    "fast": ("compile:True", "gating_dtype:'auto'"),
}
Rows = list[dict[str, str]]


def run(datasets: list[str], seeds: int, updates: int, path: Path) -> None:
    """
    Do the runs whose last evaluation is not in the file.

    :param datasets: ids
    :param seeds: number of seeds
    :param updates: updates of every run
    :param path: results file, appended to
    """
    results = ResultsFile(path, {}, ("variant", *COLUMNS))
    results.check()
    for dataset in datasets:
        check_lengths(path, dataset, updates)
    done = {(row["dataset"], row["seed"], row["variant"]) for row in read_rows(path) if row["evaluation"] == "final"}
    for seed, dataset, variant in itertools.product(range(seeds), datasets, VARIANTS):
        if (dataset, str(seed), variant) in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder, "rows.csv")
            command = ["--algo", "dmpo", "--dataset", dataset, "--seed", str(seed), "-n", str(updates), "--num-threads", "1"]
            command += ["-f", folder, "--results", str(rows), "-params", *VARIANTS[variant]]
            subprocess.run([sys.executable, str(Path(__file__).parent / "train.py"), *command], check=True)
            results.append_rows([{"variant": variant, **row} for row in read_rows(rows)])


def sign_flip_p_value(differences: np.ndarray) -> float:
    """
    Share of all ways to flip signs under which the mean is at least as far from 0: the exact paired permutation test.

    :param differences: one per seed, shape ``(n,)``
    """
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(differences))))
    means = np.abs(signs @ differences) / len(differences)
    return float(np.mean(means >= np.abs(differences.mean()) - 1e-12))


def compare(rows: Rows) -> list[str]:
    """
    Lines of a Markdown table: scores with and without the fast paths, and the difference over seeds.

    :param rows: of both variants
    """
    lines = [
        "| dataset | measure | seeds | float32 | fast | difference ± standard error | p |",
        "|---|---|---|---|---|---|---|",
    ]
    scores: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in rows:
        for measure in ("all evaluations", *(["last"] if row["evaluation"] == "final" else [])):
            scores[row["dataset"], measure][row["variant"]][row["seed"]].append(float(row["score"]))
    for (dataset, measure), by_variant in sorted(scores.items()):
        seeds = sorted(set.intersection(*(set(by_variant[variant]) for variant in VARIANTS)))
        if len(seeds) < 2:
            continue
        slow, fast = (np.array([np.mean(by_variant[variant][seed]) for seed in seeds]) for variant in VARIANTS)
        difference = fast - slow
        error = difference.std(ddof=1) / np.sqrt(len(seeds))
        lines.append(
            f"| `{dataset}` | {measure} | {len(seeds)} | {slow.mean():.1f} ± {slow.std(ddof=1):.1f} | {fast.mean():.1f} ± "
            f"{fast.std(ddof=1):.1f} | {difference.mean():+.1f} ± {error:.1f} | {sign_flip_p_value(difference):.2f} |"
        )
    return lines


def main() -> None:
    """Run what is missing if asked to, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="do the runs that are missing")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS))
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("-n", "--updates", type=int, default=10_000)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.run:
        run(options.datasets, options.seeds, options.updates, options.output)
    print("\n".join(compare(read_rows(options.output))))


if __name__ == "__main__":
    main()
