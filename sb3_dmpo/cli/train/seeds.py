"""``train --seeds 0-4``: the runs of several seeds in one process, their updates done at once."""

import argparse
import contextlib
from typing import Any

from stable_baselines3.common.utils import set_random_seed

from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.cli.train.callbacks import StopOnInterrupt
from sb3_dmpo.cli.train.exp_manager import OfflineExperimentManager, can_begin
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.data import DatasetError
from sb3_dmpo.several_seeds.several_seeds import DivergedSeedsError, check_together, learn_together


class _StopAllOnInterrupt(StopOnInterrupt):
    """Ends the training of all seeds after the same update, also if Ctrl-C comes while one of them is being evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self._update = -1
        self._goes_on = True

    def _on_step(self) -> bool:
        # The callback is asked by every model in turn; the first one's answer holds for all.
        update = self.locals["self"].num_timesteps
        if update != self._update:
            self._update, self._goes_on = update, super()._on_step()
        return self._goes_on


class SeveralSeedsManager:
    """
    The runs of several seeds, each with folder, callbacks, evaluations and zip of its own, for rl_zoo3's ``train``.

    :param args: parsed options with ``seeds``
    :param positional: as rl_zoo3's ``train`` passes them
    :param keywords: the same by name
    """

    def __init__(self, args: argparse.Namespace, *positional: Any, **keywords: Any) -> None:
        self.interrupt = _StopAllOnInterrupt()
        self.managers: list[OfflineExperimentManager] = []
        for i, seed in enumerate(args.seeds):
            own = argparse.Namespace(**vars(args) | {"seed": seed})
            # One progress bar says all.
            own_keywords = keywords | {"seed": seed, "show_progress": keywords["show_progress"] and i == 0}
            manager = OfflineExperimentManager(own, *positional, **own_keywords)
            manager.interrupt, manager.label = self.interrupt, f"Seed {seed}: "
            self.managers.append(manager)
        self._until_saved = contextlib.ExitStack()
        self._failure: DivergedSeedsError | None = None

    def setup_experiment(self) -> tuple[list[OfflineAlgorithm], dict[str, Any]]:
        """
        Make folder, environments, callbacks and model of every run.

        :raises UsageError: the models cannot learn together
        """
        models: list[Any] = []
        hyperparams: dict[str, Any] = {}
        try:
            for manager in self.managers:
                print(f"--- Seed {manager.seed}")
                set_random_seed(manager.seed)
                made = manager.setup_experiment()
                assert made is not None
                models.append(made[0])
                hyperparams = made[1]
            check_together(models)
        except BaseException as error:
            for manager in self.managers:
                manager.discard()
            if isinstance(error, ValueError) and not isinstance(error, DatasetError):
                raise UsageError(f"--seeds: {error}") from error
            raise
        return models, hyperparams

    def learn(self, models: list[OfflineAlgorithm]) -> None:
        """
        Train all models at once, and evaluate each at the end.

        :param models: the models
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.interrupt.listening())
            try:
                with can_begin(models[0], self.managers):
                    self._learn_and_evaluate(models)
            except KeyboardInterrupt:
                self.interrupt.requested = True
                for manager in self.managers:
                    manager.close_progress_bars()
            finally:
                # Until the models are saved, Ctrl-C must not come between.
                self.interrupt.note_only()
                for manager, model in zip(self.managers, models, strict=True):
                    manager.close_environments(model)
            self._until_saved = stack.pop_all()

    def _learn_and_evaluate(self, models: list[OfflineAlgorithm]) -> None:
        first = self.managers[0]
        callbacks = [manager.callbacks for manager in self.managers]
        try:
            learn_together(models, first.n_timesteps, callbacks, **first.learn_arguments())
        except DivergedSeedsError as error:
            self._failure = error
        for manager, model in zip(self.managers, models, strict=True):
            if manager.eval_callback is not None and not self.interrupt.requested and not self._has_failed(model):
                manager.final_result = manager.eval_callback.evaluate_at_end()

    def _has_failed(self, model: OfflineAlgorithm) -> bool:
        return self._failure is not None and model in self._failure.models

    def save_trained_model(self, models: list[OfflineAlgorithm]) -> None:
        """
        Save every model and say where it is and how good it is.

        :param models: the models
        :raises KeyboardInterrupt: training was interrupted (after saving)
        :raises DivergedSeedsError: some seeds have diverged (after saving the others)
        """
        with self._until_saved:
            for manager, model in zip(self.managers, models, strict=True):
                print(f"--- Seed {manager.seed}")
                if self._has_failed(model):
                    print(f"Diverged: no model is saved, what came before is in {manager.save_path}")
                    continue
                # The others are saved all the same.
                with contextlib.suppress(KeyboardInterrupt):
                    manager.save_trained_model(model)
        if self._failure is not None:
            raise self._failure
        if self.interrupt.requested:
            raise KeyboardInterrupt
