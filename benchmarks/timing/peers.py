"""Contenders of d3rlpy, run by the interpreter of ``.venv-peers`` (``make peers``), without anything of this package."""

from collections.abc import Callable
from typing import Any

import d3rlpy
import numpy as np

from benchmarks.timing import synthetic

CONFIGS: dict[str, Any] = {
    "td3_bc": d3rlpy.algos.TD3PlusBCConfig,
    "iql": d3rlpy.algos.IQLConfig,
    "awac": d3rlpy.algos.AWACConfig,
    "bc": d3rlpy.algos.BCConfig,
    "cql": d3rlpy.algos.CQLConfig,
}


def train(algo: str, device: str = "cpu", n_transitions: int = 100_000) -> Callable[[int], None]:
    """
    Updates through ``fit``, with batch 256, 2x256 networks and what else is the default.

    :param algo: key of ``CONFIGS``
    :param device: device of the model
    :param n_transitions: size of the dataset
    """
    data = synthetic.arrays(n_transitions)
    dataset = d3rlpy.dataset.MDPDataset(
        data["observations"], data["actions"], data["rewards"], np.zeros(n_transitions), timeouts=data["timeouts"]
    )
    config = CONFIGS[algo](batch_size=256)
    for name in ("encoder_factory", "actor_encoder_factory", "critic_encoder_factory", "value_encoder_factory"):
        if hasattr(config, name):
            setattr(config, name, d3rlpy.models.VectorEncoderFactory([256, 256]))
    model = config.create(device=False if device == "cpu" else device)
    model.build_with_dataset(dataset)
    silent = d3rlpy.logging.NoopAdapterFactory()

    def run(n: int) -> None:
        model.fit(dataset, n_steps=n, n_steps_per_epoch=n, show_progress=False, logger_adapter=silent, save_interval=10**9)

    return run
