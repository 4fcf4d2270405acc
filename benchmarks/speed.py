"""
Speed of everything, on this machine: ``python benchmarks/speed.py`` prints its tables and writes them to
``benchmarks/results/speed.csv``.

Each system runs in turn with the others in the same minutes, so that ratios hold on a busy machine where single figures do
not. d3rlpy takes part once ``make peers`` has made its environment. ``--quick`` is for a look.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import acting_tables, tables
from benchmarks.timing import rows as rows_module
from benchmarks.timing.ours import VARIANTS
from benchmarks.timing.seeds import seeds_rows
from benchmarks.timing.turns import QUICK, Effort
from sb3_dmpo import ALGOS

RESULTS = Path(__file__).parent / "results" / "speed.csv"
TABLES = ("train", "scaling", "seeds", "data", "predict", "eval", "arithmetic")

#: Algorithms of the train table: MAPLE fits a model first and imagines episodes in between, its updates are a part of the work
TRAINED = tuple(name for name in ALGOS if name != "maple")
#: Algorithms of the eval table, slow and quick
EVALUATED = ("dmpo", "infodmpo", "iql", "td3_bc", "bc")
#: Algorithms of the arithmetic table
COUNTED = ("dmpo", "infodmpo", "td3_bc")
#: Algorithms of the seeds table
OF_SEVERAL_SEEDS = ("dmpo", "td3_bc", "bc")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """
    The options.

    :param argv: arguments; None: those of the process
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(TABLES), help="tables to measure, e.g. train,predict")
    parser.add_argument("--algos", default=",".join(ALGOS), help="algorithms, but for the scaling table")
    parser.add_argument("--threads", default="1,2", help="threads of the train table; the others use the first number")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="variants of the train and scaling tables")
    parser.add_argument("--quick", action="store_true", help="short blocks and few of them")
    parser.add_argument("--repeats", type=int, default=None, help="blocks of every contender")
    parser.add_argument("--seconds", type=float, default=None, help="processor seconds of a block")
    parser.add_argument("--transitions", type=int, default=None, help="size of the data table's dataset, in thousands")
    parser.add_argument("--output", type=Path, default=None, help=f"CSV file (default: {RESULTS}, none with --quick)")
    options = parser.parse_args(argv)
    if options.transitions is None:
        options.transitions = 20_000 if options.quick else 1_000_000
    options.only, options.algos, options.variants = (
        names.split(",") for names in (options.only, options.algos, options.variants)
    )
    options.threads = [int(count) for count in options.threads.split(",")]
    if options.output is None and not options.quick:
        options.output = RESULTS
    for table in options.only:
        if table not in TABLES:
            parser.error(f"{table!r} is no table; there are {', '.join(TABLES)}.")
    try:
        tables.check_names(options.algos, options.variants)
    except ValueError as error:
        parser.error(str(error))
    return options


def main(argv: Sequence[str] | None = None) -> list[rows_module.Row]:
    """
    Measure, print and save; the rows.

    :param argv: arguments; None: those of the process
    """
    options = parse(argv)
    effort = QUICK if options.quick else Effort()
    effort = Effort(options.seconds or effort.seconds, options.repeats or effort.repeats, effort.warm_up)

    def asked(algos: Sequence[str]) -> list[str]:
        return [name for name in algos if name in options.algos]

    makers: dict[str, Callable[[], Iterator[rows_module.Row]]] = {
        "train": lambda: tables.train_rows(asked(TRAINED), options.threads, effort, options.variants),
        "scaling": lambda: tables.scaling_rows(options.threads[0], effort, options.variants),
        "seeds": lambda: seeds_rows(asked(OF_SEVERAL_SEEDS), options.threads[0], effort),
        "data": lambda: acting_tables.data_rows(options.threads[0], effort, options.transitions),
        "predict": lambda: acting_tables.predict_rows(options.algos, options.threads[0], effort),
        "eval": lambda: acting_tables.eval_rows(asked(EVALUATED), options.threads[0], effort),
        "arithmetic": lambda: tables.arithmetic_rows(asked(COUNTED)),
    }
    origin, found = rows_module.origin(), []
    for table in TABLES:
        if table not in options.only:
            continue
        print(f"\n{table}", flush=True)
        for row in makers[table]():
            found.append(row | origin)
            print(rows_module.line(row), flush=True)
        if options.output is not None:
            rows_module.write(options.output, found)
    return found


if __name__ == "__main__":
    main()
