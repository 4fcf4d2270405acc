"""The table of ``benchmarks/speed.py`` about several seeds at once, and its contenders."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.timing.ours import N_UPDATES, OneRun, make_model, setting, waiting
from benchmarks.timing.rows import Row, measured
from benchmarks.timing.tables import devices, rates
from benchmarks.timing.turns import Effort, arena, in_turn
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.several_seeds.several_seeds import learn_together

HERE = "benchmarks.timing.seeds"
N_SEEDS = 5
#: Networks and batches of the toy task and of the others
SETTINGS: tuple[dict[str, Any], ...] = (
    {"batch_size": 128, "policy_kwargs": {"net_arch": [64, 64]}},
    {"batch_size": 256, "policy_kwargs": {"net_arch": [256, 256]}},
)
ALONE, IN_TURN, AT_ONCE = "one seed", f"{N_SEEDS} seeds, one after the other", f"{N_SEEDS} seeds at once"


class OneRunOfSeveral(OneRun):
    """:class:`OneRun` of :func:`learn_together`."""

    def _begin(self, models: Any) -> None:
        learn_together(models, N_UPDATES, [*[None] * (len(models) - 1), self])


def _models(algo: str, n_seeds: int, **arguments: Any) -> list[OfflineAlgorithm]:
    first = make_model(algo, compile=False, **arguments)
    others = [make_model(algo, compile=False, seed=seed, **arguments) for seed in range(1, n_seeds)]
    for model in others:
        model.set_dataset(first.dataset)
    return [first, *others]


def one_after_the_other(algo: str, n_seeds: int, device: str = "cpu", **arguments: Any) -> Callable[[int], None]:
    """
    Updates of every seed by its own ``learn``.

    :param algo: as in ``ALGOS``
    :param n_seeds: number of models
    :param device: device of the models
    :param arguments: deviations from :func:`setting`
    """
    runs = [OneRun(model) for model in _models(algo, n_seeds, device=device, **arguments)]

    def run(n: int) -> None:
        for one in runs:
            one(n)

    return waiting(run, device)


def at_once(algo: str, n_seeds: int, device: str = "cpu", **arguments: Any) -> Callable[[int], None]:
    """
    Updates of every seed by :func:`learn_together`.

    :param algo: as in ``ALGOS``
    :param n_seeds: number of models
    :param device: device of the models
    :param arguments: deviations from :func:`setting`
    """
    return waiting(OneRunOfSeveral(_models(algo, n_seeds, device=device, **arguments)), device)


def seeds_rows(algos: Sequence[str], threads: int, effort: Effort) -> Iterator[Row]:
    """
    Several seeds at once beside one after the other and beside a single one, not compiled.

    :param algos: names as in ``ALGOS``
    :param threads: number of threads
    :param effort: how long to measure
    """
    for device in devices():
        for algo in algos:
            for changes in SETTINGS:
                options: dict[str, Any] = {"algo": algo, "device": device, **changes}
                with arena(threads) as processes:
                    contenders = {
                        ALONE: processes.enter(ALONE, HERE, "one_after_the_other", n_seeds=1, **options),
                        IN_TURN: processes.enter(IN_TURN, HERE, "one_after_the_other", n_seeds=N_SEEDS, **options),
                        AT_ONCE: processes.enter(AT_ONCE, HERE, "at_once", n_seeds=N_SEEDS, **options),
                    }
                    in_turn(list(contenders.values()), effort, wall=device != "cpu")
                for variant, contender in contenders.items():
                    values, measure = rates(contender, device)
                    columns = {
                        "table": "seeds",
                        "case": algo,
                        "system": "sb3_dmpo",
                        "variant": variant,
                        "setting": setting(algo, changes)[1],
                        "device": device,
                        "threads": threads,
                        "measure": measure.replace("updates", "updates of every seed"),
                    }
                    for other in (IN_TURN, ALONE) if variant == AT_ONCE else ():
                        yield measured(values, rates(contenders[other], device)[0], other, **columns)
                    if variant != AT_ONCE:
                        yield measured(values, **columns)
