"""Settings of a run: from the config, an Optuna study and the command line."""

from collections import OrderedDict
from pprint import pprint
from typing import Any

from gymnasium import spaces
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.utils import LinearSchedule

from sb3_dmpo.cli.configs import RUN_KEYS, check_hyperparameters, find_entry, parse_values
from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.cli.literals import plain
from sb3_dmpo.cli.train.resume import InterruptedRun
from sb3_dmpo.data.loading import dataset_spaces

#: The paper's protocol, for what neither the command line nor the config says.
EVAL_FREQ, EVAL_EPISODES = 5000, 10
_MAX_EVAL_ENVS = 10


class RunSettings(ExperimentManager):
    """The part of :class:`OfflineExperimentManager` that finds the settings of the algorithm and of its evaluation."""

    dataset: str
    resumed: InterruptedRun | None
    final_eval_episodes: int

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Settings for the dataset, with those of a study and of ``-params`` over them; values, and as they were written.

        :raises UsageError: no entry for the dataset, or a name that nobody knows
        """
        key, written = find_entry(self.config, self.dataset)
        print(f"Loading hyperparameters from: {self.config}, entry {key!r}")
        if self.storage and self.study_name and self.trial_id is not None:
            print("Loading from Optuna study...")
            written.update(self.load_trial(self.storage, self.study_name, self.trial_id))
        written.update(self.custom_hyperparams or {})
        hyperparams = parse_values(written)
        check_hyperparameters(hyperparams, ALGOS[self.algo], self.algo)
        if self.n_timesteps <= 0 and "n_timesteps" not in hyperparams:
            raise UsageError(f"{self.config} does not say how many updates to do (n_timesteps): use -n.")
        hyperparams.setdefault("n_timesteps", self.n_timesteps)
        if self.resumed is not None:
            self.resumed.check_config(plain(dict(written)), self.args.n_timesteps)
        self._choose_protocol(hyperparams)
        print("Hyperparameters (those being tuned will be overridden):")
        pprint(dict(sorted(written.items())))
        return hyperparams, OrderedDict(sorted(written.items()))

    def _choose_protocol(self, hyperparams: dict[str, Any]) -> None:
        """
        Frequency, episodes and environments of the evaluation: command line, config, the paper's, in this order.

        :param hyperparams: parsed settings
        """
        if self.n_eval_episodes is None:
            self.n_eval_episodes = int(hyperparams.get("eval_episodes", EVAL_EPISODES))
            self.final_eval_episodes = int(hyperparams.get("final_eval_episodes", self.n_eval_episodes))
        else:
            self.final_eval_episodes = self.n_eval_episodes
        if self.eval_freq is None:
            self.eval_freq = int(hyperparams.get("eval_freq", EVAL_FREQ))
        if min(self.n_eval_episodes, self.final_eval_episodes) < 1:
            raise UsageError("--eval-episodes has to be at least 1; --eval-freq -1 switches evaluation off.")
        if self.n_eval_envs is None:
            self.n_eval_envs = min(self.n_eval_episodes, _MAX_EVAL_ENVS)

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        # Schedules of SB3 itself and plain floats: the zip must load where there is no rl_zoo3.
        for key, value in hyperparams.items():
            if key.endswith("learning_rate") and isinstance(value, str):
                kind, _, initial = value.partition("_")
                try:
                    if kind != "lin":
                        raise ValueError
                    hyperparams[key] = LinearSchedule(float(initial), 0.0, 1.0)
                except ValueError:
                    raise UsageError(f"{key} is {value!r}: write a number, or e.g. lin_3e-4 (falling to 0).") from None
        return hyperparams

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        processed, *others = super()._preprocess_hyperparams(hyperparams)
        if self._eval_env_kwargs_args is None:
            self.eval_env_kwargs = self.env_kwargs
        arguments = {key: value for key, value in processed.items() if key == "policy" or key not in RUN_KEYS}
        arguments["dataset"] = self.dataset
        arguments["memory_map"] = self.args.memory_map
        if "policy" not in arguments:
            is_dict = isinstance(dataset_spaces(self.dataset)[0], spaces.Dict)
            arguments["policy"] = "MultiInputPolicy" if is_dict else "MlpPolicy"
        return (arguments, *others)
