"""Choosing among the checkpoints of a run without an environment."""

import os
from typing import Any, Literal, get_args

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.offline_evaluation import (
    action_distance,
    component_usage,
    dataset_of,
    fitted_q_evaluation,
    initial_state_value,
)
from sb3_dmpo.data import Transitions
from sb3_dmpo.files.save_util import preserved_random_state

Criterion = Literal["fqe", "initial_value", "action_distance"]


def offline_measures(model: OfflineAlgorithm, data: Transitions, **fqe_kwargs: Any) -> dict[str, float]:
    """
    Everything that can be measured of a model on a dataset: ``fqe`` and its ``fqe_std`` over critics, ``initial_value`` (with
    a critic), ``action_distance``, ``components_used`` (exp of the entropy of their usage, with a mixture).

    :param model: the model
    :param data: the dataset
    :param fqe_kwargs: settings of ``fitted_q_evaluation``
    """
    with preserved_random_state():
        fitted = fitted_q_evaluation(model, data, **fqe_kwargs)
        measures = {"fqe": fitted.mean, "fqe_std": fitted.std, "action_distance": action_distance(model, data)}
        if hasattr(model.policy, "critic"):
            measures["initial_value"] = initial_state_value(model, data)
        if hasattr(model.policy, "n_components"):
            usage = component_usage(model, data)
            measures["components_used"] = float(np.exp(-(usage * np.log(np.maximum(usage, 1e-12))).sum()))
    return measures


def offline_score(measures: dict[str, float], criterion: Criterion) -> float:
    """
    What is to be large: the fitted value less its standard deviation over the critics, the model's own value of the initial
    states, or the negative distance of its actions from the data.

    :param measures: as :func:`offline_measures` returns them
    :param criterion: which of them
    """
    if criterion == "fqe":
        return measures["fqe"] - measures["fqe_std"]
    return -measures["action_distance"] if criterion == "action_distance" else measures["initial_value"]


class OfflineSelectionCallback(BaseCallback):
    """
    Measures the model on a dataset every so many updates, logs the measures under ``offline/``, and keeps the best model by
    one of them as ``best_offline_model.zip``. Random streams of the training are the same with and without it.

    How well the measures rank checkpoints differs between datasets, see ``benchmarks/results/offline_selection_summary.csv``.

    :param eval_freq: updates between measurements
    :param save_path: folder of the best model; None: it is not saved
    :param criterion: see :func:`offline_score`
    :param dataset: as of ``load_transitions``; None: what the model trains on
    :param verbose: 1 says when there is a new best model
    :param fqe_kwargs: settings of ``fitted_q_evaluation``
    :raises ValueError: unknown criterion, or ``eval_freq`` below 1
    """

    def __init__(
        self,
        eval_freq: int,
        save_path: str | None = None,
        criterion: Criterion = "fqe",
        dataset: Any = None,
        verbose: int = 0,
        **fqe_kwargs: Any,
    ) -> None:
        super().__init__(verbose)
        if criterion not in get_args(Criterion):
            raise ValueError(f"Unknown criterion {criterion!r}, choose one of {list(get_args(Criterion))}.")
        if eval_freq < 1:
            raise ValueError(f"eval_freq is {eval_freq}, it has to be at least 1.")
        self.eval_freq = eval_freq
        self.save_path = save_path
        self.criterion: Criterion = criterion
        self.dataset = dataset
        self.fqe_kwargs = fqe_kwargs
        self.best_score = -np.inf
        #: Measures by update.
        self.measures: dict[int, dict[str, float]] = {}

    def _on_training_start(self) -> None:
        assert isinstance(self.model, OfflineAlgorithm)
        self._data = dataset_of(self.model, self.dataset)
        if self.criterion == "initial_value" and not hasattr(self.model.policy, "critic"):
            raise ValueError(f"{type(self.model).__name__} has no critic that could tell a value: choose another criterion.")

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq != 0:
            return True
        assert isinstance(self.model, OfflineAlgorithm)
        measures = offline_measures(self.model, self._data, **self.fqe_kwargs)
        self.measures[self.num_timesteps] = measures
        for name, value in measures.items():
            self.logger.record(f"offline/{name}", value)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        score = offline_score(measures, self.criterion)
        if score > self.best_score:
            self.best_score = score
            if self.verbose > 0:
                self.logger.info(f"New best model by {self.criterion} after {self.num_timesteps} updates: {score:.4g}")
            if self.save_path is not None:
                self.model.save(os.path.join(self.save_path, "best_offline_model"))
        return True
