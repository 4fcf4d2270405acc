"""Choosing among the checkpoints of a run without an environment."""

import math
import os
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from sb3_dmpo.common.arguments import COUNT, check_argument
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.offline_evaluation import (
    action_distance,
    check_fqe_arguments,
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
    Everything that can be measured of a model on a dataset: ``fqe`` and its ``fqe_std`` over critics (with rewards),
    ``action_distance``, ``initial_value`` (with a critic), ``components_used`` (exp of the entropy of their usage, with a
    mixture).

    :param model: the model
    :param data: the dataset
    :param fqe_kwargs: settings of ``fitted_q_evaluation``
    """
    with preserved_random_state():
        measures: dict[str, float] = {}
        if data.has_rewards:
            fitted = fitted_q_evaluation(model, data, **fqe_kwargs)
            measures |= {"fqe": fitted.mean, "fqe_std": fitted.std}
        measures["action_distance"] = action_distance(model, data)
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

    Where training goes on (``reset_num_timesteps=False``) with a new callback, the best model that is there is measured first,
    so that only a better one takes its place.

    :param eval_freq: updates between measurements
    :param save_path: folder of the best model; None: it is not saved
    :param criterion: see :func:`offline_score`
    :param dataset: as of ``load_transitions``; None: what the model trains on
    :param verbose: 1 says when there is a new best model
    :param fqe_kwargs: settings of ``fitted_q_evaluation``
    :raises ValueError: unknown criterion, or a number is out of its range
    :raises TypeError: there is no argument of that name, or ``save_path`` is no path
    """

    def __init__(
        self,
        eval_freq: int,
        save_path: str | os.PathLike[str] | None = None,
        criterion: Criterion = "fqe",
        dataset: Any = None,
        verbose: int = 0,
        **fqe_kwargs: Any,
    ) -> None:
        super().__init__(verbose)
        if criterion not in get_args(Criterion):
            raise ValueError(f"Unknown criterion {criterion!r}, choose one of {list(get_args(Criterion))}.")
        if not isinstance(save_path, str | os.PathLike | None):
            raise TypeError(f"save_path is {save_path!r}, expected the path of a folder, or None.")
        check_argument(type(self).__name__, "eval_freq", eval_freq, COUNT)
        check_fqe_arguments(type(self).__name__, fqe_kwargs)
        self.eval_freq = eval_freq
        self.save_path = save_path
        self.criterion: Criterion = criterion
        self.dataset = dataset
        self.fqe_kwargs = fqe_kwargs
        self.best_score = -np.inf
        self._has_warned = False
        #: Measures by update.
        self.measures: dict[int, dict[str, float]] = {}

    @property
    def _best_path(self) -> Path | None:
        return None if self.save_path is None else Path(self.save_path) / "best_offline_model.zip"

    def _on_training_start(self) -> None:
        if not isinstance(self.model, OfflineAlgorithm):
            raise TypeError(f"{type(self).__name__} measures offline algorithms, and {type(self.model).__name__} is none.")
        self._data = dataset_of(self.model, self.dataset)
        if self.criterion == "initial_value" and not hasattr(self.model.policy, "critic"):
            raise ValueError(f"{type(self.model).__name__} has no critic that could tell a value: choose another criterion.")
        if self.criterion == "fqe" and not self._data.has_rewards:
            raise ValueError("The dataset holds no rewards, which 'fqe' needs: choose another criterion.")
        path = self._best_path
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.model.num_timesteps > 0 and not self.measures and path.exists():
            self._measure_earlier(path)

    def _measure_earlier(self, path: Path) -> None:
        """Let the best model of the run that goes on stand until there is a better one."""
        try:
            with preserved_random_state():
                earlier: Any = type(self.model).load(path, device=self.model.device)
            measures = offline_measures(earlier, self._data, **self.fqe_kwargs)
        except (OSError, ValueError, TypeError) as error:
            what = f"The best model so far cannot be measured ({error})"
            raise OSError(f"{what}: move {path} away to go on without it.") from error
        score = offline_score(measures, self.criterion)
        if math.isfinite(score):
            self.best_score = score
            self._say(f"The best model so far by {self.criterion} is that after {earlier.num_timesteps} updates: {score:.4g}")

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
        if not math.isfinite(score):
            # Infinity would be the best for ever.
            self._warn_once(score)
        elif score > self.best_score:
            self.best_score = score
            self._say(f"New best model by {self.criterion} after {self.num_timesteps} updates: {score:.4g}")
            if self._best_path is not None:
                self.model.save(self._best_path)
        return True

    def _say(self, text: str) -> None:
        if self.verbose > 0:
            self.logger.info(text)

    def _warn_once(self, score: float) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"The score by {self.criterion} after {self.num_timesteps} updates is {score}, and such a model is never the "
                "best: look at offline/ in the log, and choose another criterion if this goes on.",
                stacklevel=2,
            )

    def _on_training_end(self) -> None:
        if self.measures and self.best_score == -np.inf:
            warnings.warn(f"No score by {self.criterion} was finite: there is no best model, and none is saved.", stacklevel=2)
