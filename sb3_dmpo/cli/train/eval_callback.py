"""Evaluation as a run needs it: every result is passed on, and the last one can use more episodes."""

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from sb3_dmpo.common.callbacks import NormalizedEvalCallback
from sb3_dmpo.common.evaluation import EvaluationResult

#: Takes the result, the number of updates, and whether this is the run's final evaluation.
ResultHandler = Callable[[EvaluationResult, int, bool], None]


class RunEvalCallback(NormalizedEvalCallback):
    """
    :class:`NormalizedEvalCallback` of a run of the command line.

    :param eval_env: environments, run at once
    :param dataset: where reference scores are looked for
    :param final_eval_episodes: episodes of the evaluation after the last update
    :param on_result: is called after every evaluation
    :param kwargs: as of ``EvalCallback``
    """

    def __init__(
        self, eval_env: VecEnv, dataset: str, final_eval_episodes: int, on_result: ResultHandler, **kwargs: Any
    ) -> None:
        super().__init__(eval_env, dataset=dataset, **kwargs)
        self.final_eval_episodes = final_eval_episodes
        self.on_result = on_result
        self.final_result: EvaluationResult | None = None

    def _log_evaluation(self, result: EvaluationResult) -> None:
        super()._log_evaluation(result)
        is_last = self.num_timesteps >= self.model._total_timesteps
        if is_last and len(result.returns) == self.final_eval_episodes:
            self.final_result = result
        self.on_result(result, self.num_timesteps, self.final_result is not None)

    def evaluate_at_end(self) -> EvaluationResult:
        """The evaluation after the last update: the one that the training has just done, if it had as many episodes."""
        if self.final_result is None:
            if self.n_eval_episodes != self.final_eval_episodes:
                # evaluations.npz holds one array with as many columns as episodes.
                self.n_eval_episodes, self.log_path = self.final_eval_episodes, None
            self.eval_freq = 1
            self._on_step()
        assert self.final_result is not None
        return self.final_result
