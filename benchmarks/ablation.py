"""
What each option of OneStepDMPO is worth: ``python benchmarks/ablation.py zoo/hopper/mixed-v0 -n 20000``.

Trains the setting with none of its options, with each alone, with all, and with all but one, everything else the same, by
``sb3_dmpo train``. Runs that are in the results file are not repeated. ``--draw`` draws the picture of what is in it.
"""

import argparse
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

from sb3_dmpo.cli.results import read_rows, write_rows
from sb3_dmpo.files.save_util import atomic_write
from sb3_dmpo.plots.common import PALETTE

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.scores import check_lengths, second_half

RESULTS = Path(__file__).parent / "results" / "ablation.csv"
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "ablation.png"
#: Arguments of the training command with an option, and without.
OPTIONS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "episode assignment": ({"assignment": "'episode'"}, {"assignment": "'posterior'"}),
    "critics of sub-policies": (
        {"bootstrap": "'component'", "advantage_scale": "0"},
        {"bootstrap": "'policy'", "advantage_scale": "10"},
    ),
    "calibrated decoder": ({"decoder": "'calibrated'"}, {"decoder": "'fixed'"}),
    "learned prior": ({"prior": "'learned'"}, {"prior": "'values'"}),
    "supported gate": ({"gate": "'supported'"}, {"gate": "'values'"}),
    "layer norm": ({"critic_layer_norm": "True"}, {"critic_layer_norm": "False"}),
    "20-step returns": ({"n_steps": "20"}, {"n_steps": "1"}),
    "averaged networks": ({"ema_decay": "0.9995"}, {"ema_decay": "None"}),
}


def variants() -> dict[str, dict[str, str]]:
    """Arguments of all variants by name."""
    everything = {name: True for name in OPTIONS}
    nothing = {name: False for name in OPTIONS}
    chosen = {"none": nothing, "all": everything}
    chosen |= {f"all but {name}": everything | {name: False} for name in OPTIONS}
    chosen |= {f"only {name}": nothing | {name: True} for name in OPTIONS}
    found = {}
    for variant, is_on in chosen.items():
        arguments: dict[str, str] = {}
        for name, (on, off) in OPTIONS.items():
            arguments |= on if is_on[name] else off
        # The network q(z|s, a) is fitted by samples; critics of sub-policies need to know whose a transition is.
        if is_on["critics of sub-policies"] and not is_on["episode assignment"]:
            arguments["assignment"] = "'exact'"
        found[variant] = arguments
    return found


def command(
    dataset: str, seed: int, updates: int, eval_freq: int, folder: Path, arguments: dict[str, str], compiled: bool = False
) -> list[str]:
    """
    The training command of a variant.

    :param dataset: Minari id
    :param seed: seed of the run
    :param updates: number of updates
    :param eval_freq: updates between evaluations
    :param folder: where the run's files go
    :param arguments: the variant's
    :param compiled: compile the updates
    """
    rest = dict(arguments) | {"compile": str(compiled)}
    policy_kwargs = f"dict(net_arch=[128,128],critic_layer_norm={rest.pop('critic_layer_norm')})"
    params = [f"{name}:{value}" for name, value in rest.items()] + [f"policy_kwargs:{policy_kwargs!r}"]
    run = ["--algo", "one_step_dmpo", "--dataset", dataset, "--seed", str(seed), "-n", str(updates)]
    run += ["--eval-freq", str(eval_freq), "--num-threads", "1", "-f", str(folder), "--results", str(folder / "results.csv")]
    return ["-m", "sb3_dmpo", "train", *run, "-params", *params]


def run(
    dataset: str, seed: int, updates: int, logs: Path, output: Path, evaluations: int = 20, compiled: bool = False
) -> None:
    """
    Train what is not in the results file, and add its rows.

    :param dataset: Minari id
    :param seed: seed of the runs
    :param updates: number of updates
    :param logs: folder of the runs
    :param output: the results file
    :param evaluations: evaluations of a run
    :param compiled: compile the updates
    """
    check_lengths(output, dataset, updates)
    for variant, arguments in variants().items():
        done = read_rows(output)
        if any((row["variant"], row["dataset"], row["seed"]) == (variant, dataset, str(seed)) for row in done):
            continue
        folder = logs / dataset.replace("/", "-") / variant.replace(" ", "_") / f"seed_{seed}"
        (folder / "results.csv").unlink(missing_ok=True)
        print(f"{dataset}, seed {seed}: {variant}", flush=True)
        eval_freq = max(updates // evaluations, 1)
        subprocess.run([sys.executable, *command(dataset, seed, updates, eval_freq, folder, arguments, compiled)], check=True)
        rows = [*done, *({"variant": variant} | row for row in read_rows(folder / "results.csv"))]
        write_rows(output, list(rows[0]), rows)


def summary(rows: list[dict[str, str]]) -> dict[tuple[str, str], tuple[float, float]]:
    """
    Mean and worst evaluation of the second half of each run, then the mean over seeds, by dataset and variant.

    :param rows: of the results file
    """
    runs: dict[tuple[str, str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        runs[row["dataset"], row["variant"], row["seed"]].append(row)
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for (dataset, variant, _), evaluations in runs.items():
        late = second_half(evaluations)
        found[dataset, variant].append((sum(late) / len(late), min(late)))
    return {
        key: (sum(mean for mean, _ in values) / len(values), sum(worst for _, worst in values) / len(values))
        for key, values in found.items()
    }


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """
    A panel per dataset, a bar per variant: mean of the second half, and its worst evaluation as a mark.

    :param rows: of the results file
    :param path: the PNG file
    """
    scores, names = summary(rows), [name for name in variants() if any(row["variant"] == name for row in rows)]
    datasets = sorted({dataset for dataset, _ in scores})
    figure = Figure(figsize=(4.6 * len(datasets) + 2.0, 0.28 * len(names) + 1.1), layout="constrained")
    for axes, dataset in zip(figure.subplots(1, len(datasets), squeeze=False, sharey=True)[0], datasets, strict=True):
        for place, name in enumerate(names):
            mean, worst = scores.get((dataset, name), (float("nan"), float("nan")))
            axes.barh(place, mean, color=PALETTE[0 if name in ("none", "all") else 1 if name.startswith("only") else 2])
            axes.plot(worst, place, "k|", markersize=9)
        axes.set(title=dataset, xlabel="normalised score, mean | worst of the second half", yticks=range(len(names)))
        axes.set_yticklabels(names)
    figure.axes[0].invert_yaxis()  # shared
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=130)


def main(argv: list[str] | None = None) -> None:
    """
    Train the variants, or draw them.

    :param argv: the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*")
    parser.add_argument("-n", "--updates", type=int, default=20_000)
    parser.add_argument("--evaluations", type=int, default=20, help="evaluations of a run")
    parser.add_argument("--compile", action="store_true", help="compile the updates: about 1.5 times as fast on CPUs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logs", type=Path, default=Path("logs/ablation"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args(argv)
    for dataset in options.datasets:
        run(dataset, options.seed, options.updates, options.logs, options.output, options.evaluations, options.compile)
    if options.draw:
        draw(read_rows(options.output), PICTURE)
    for (dataset, variant), (mean, worst) in summary(read_rows(options.output)).items():
        print(f"{dataset:28s} {variant:36s} mean {mean:6.1f}  worst {worst:6.1f}")


if __name__ == "__main__":
    main()
