"""MAPLE."""

import copy
import pathlib
import time
import warnings
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common import utils
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from tqdm import tqdm

from sb3_dmpo.common import ranks
from sb3_dmpo.common.arguments import (
    FINITE,
    NOT_NEGATIVE,
    POSITIVE,
    SIZE,
    UNIT,
    Range,
    optional,
)
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.evaluation import env_id_of
from sb3_dmpo.common.model_zip import read_arrays_of
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.common.type_aliases import Metrics, NoiseSpec, OfflineBatch
from sb3_dmpo.data import DatasetError
from sb3_dmpo.decision_transformer.buffers import SequenceReplayBuffer
from sb3_dmpo.files.npz import pack_npz, read_npz
from sb3_dmpo.files.save_util import preserved_random_state
from sb3_dmpo.maple.dynamics import DynamicsEnsemble, EnsembleTraining, part_of, split
from sb3_dmpo.maple.fitted_dynamics import DataKey, FittedDynamics, OpenLoopErrors
from sb3_dmpo.maple.policies import MAPLEPolicy
from sb3_dmpo.maple.retained_rollouts import RetainedRollouts
from sb3_dmpo.maple.rollouts import (
    CPU_BLOCK_ROWS,
    GPU_BLOCK_NET_ROWS,
    EpisodePieces,
    HiddenStates,
    LearnedEnvironment,
    ModelBuffer,
    RolloutNoise,
    Sequences,
    observation_limits,
)
from sb3_dmpo.maple.termination import RULES, TerminationRule, checked_ends, find_rule, known_rule, rule_name

SelfMAPLE = TypeVar("SelfMAPLE", bound="MAPLE")

#: The target entropy of the published code, on every task.
PUBLISHED_TARGET_ENTROPY = -3.0
#: What the algorithm's own streams of random numbers are for.
_MODEL_STREAM, _ROLLOUT_STREAM = 0, 1


def _is_arch(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(SIZE.accepts, value))


class MAPLE(OfflineAlgorithm):
    """
    MAPLE: a model-based method. An ensemble of dynamics models is fitted to the dataset; a recurrent soft actor-critic learns
    from short imagined episodes in them and from the data. What a model gets wrong is not forbidden by a large penalty: the
    policy learns to recognise, from the steps so far, which dynamics it faces, and adapts when it acts.

    Paper: Chen, Yu, Li, Luo, Qin, Shang, Ye: *Offline Model-based Adaptable Policy Learning*, NeurIPS 2021. Details follow the
    published code, but for three points in which that contradicts the idea of the method: there the policy's encoder is never
    trained, every step of an imagined episode is answered by another model, and the target entropy is -3 on every task.
    ``published_code=True`` does the same.

    :meth:`learn` first fits the ensemble, which takes no timestep (:meth:`learn_model`), and then counts one timestep per
    update. Where the same data serve several runs, ``dynamics=`` takes the ensemble of another one.

    Observations are not scaled; the ensemble has a scaler of its own. ``policy_delay`` has no effect.

    :param policy: ``"MlpPolicy"``, ``"MultiInputPolicy"`` or a policy class
    :param env: environment; optional
    :param dataset: Minari id, ``MinariDataset``, SB3 ``ReplayBuffer``, path to a D4RL HDF5 file, ...
    :param learning_rate: learning rate of actor, critics and entropy coefficient
    :param batch_size: number of sequences in a minibatch
    :param n_models: number of networks in the ensemble
    :param n_elites: how many of them answer in imagined episodes, the best on held-out data
    :param model_arch: widths of their hidden layers
    :param model_learning_rate: their learning rate
    :param model_batch_size: transitions in a minibatch of each of them
    :param model_patience: the ensemble is finished when more epochs than this in a row have improved no network
    :param model_max_epochs: or after so many epochs; None: no limit
    :param dynamics: ensemble to take instead of fitting one: the path of a MAPLE zip, or ``other_model.dynamics``; it has to
        be fitted to the same data. Its number of networks, elites and widths are taken over
    :param rollout_length: steps of an imagined episode, and of a piece of the dataset
    :param rollout_batch_size: imagined episodes at a time
    :param rollout_interval: updates between them
    :param n_retained_rollouts: how many times' episodes are kept
    :param real_ratio: share of the minibatch that comes from the dataset
    :param penalty: ``"aleatoric"``: largest norm of the standard deviations that a network predicts; ``"disagreement"``:
        largest distance of a network's prediction to the mean of all
    :param penalty_coef: weight of the penalty in imagined rewards
    :param penalty_clip: the largest penalty
    :param reward_slack: factor on the penalty's share in the lower bound of imagined rewards
    :param termination_fn: when an imagined episode ends: ``"auto"`` (by the names of dataset and environment), the name of a
        rule (``"hopper"``, ``"walker2d"``, ``"halfcheetah"``, ``"ant"``, ``"humanoid"``, ``"never"``, ``"two_goals"``), or a
        function ``f(observations, actions, next_observations)`` of tensors to a bool tensor ``(n,)``, at the top of a module
    :param gru_size: width of the recurrent states
    :param context_size: size of the context
    :param target_entropy: target of the policy's entropy; None: minus the number of action entries
    :param refresh_interval: updates after which the recurrent states of the dataset are computed anew
    :param published_code: see above
    :param kwargs: further arguments of :class:`OfflineAlgorithm`
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": MAPLEPolicy, "MultiInputPolicy": MAPLEPolicy}
    policy: MAPLEPolicy
    fixed_arguments: ClassVar[tuple[str, ...]] = (
        *("context_size", "gru_size", "n_retained_rollouts", "penalty", "penalty_clip", "penalty_coef", "published_code"),
        *("reward_slack", "rollout_batch_size", "rollout_length"),
    )
    argument_ranges: ClassVar[dict[str, Range]] = {
        **dict.fromkeys(("n_models", "n_elites", "model_batch_size", "rollout_length", "rollout_batch_size"), SIZE),
        **dict.fromkeys(("rollout_interval", "n_retained_rollouts", "gru_size", "context_size", "refresh_interval"), SIZE),
        "model_arch": Range(_is_arch, "widths of the hidden layers, e.g. (200, 200, 200, 200)"),
        "model_learning_rate": POSITIVE,
        "model_max_epochs": optional(SIZE),
        "model_patience": SIZE,
        "penalty_clip": NOT_NEGATIVE,
        "penalty_coef": NOT_NEGATIVE,
        "real_ratio": UNIT,
        "reward_slack": NOT_NEGATIVE,
        "target_entropy": optional(FINITE),
    }
    shared_arguments: ClassVar[tuple[str, ...]] = ("batch_size", "model_batch_size", "rollout_batch_size")
    learns_online: ClassVar[bool] = False
    why_offline: ClassVar[str] = "learns from episodes that its model of the recorded data imagines, and not online"
    can_learn_together: ClassVar[bool] = False
    stores_arrays: ClassVar[bool] = True
    replay_buffer_type: ClassVar[type[OfflineReplayBuffer]] = SequenceReplayBuffer

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        dataset: Any = None,
        learning_rate: float | Schedule = 3e-4,
        batch_size: int = 256,
        n_models: int = 20,
        n_elites: int = 14,
        model_arch: tuple[int, ...] | list[int] = (200, 200, 200, 200),
        model_learning_rate: float = 1e-3,
        model_batch_size: int = 256,
        model_patience: int = 5,
        model_max_epochs: int | None = None,
        dynamics: Any = None,
        rollout_length: int = 10,
        rollout_batch_size: int = 50_000,
        rollout_interval: int = 1000,
        n_retained_rollouts: int = 5,
        real_ratio: float = 0.05,
        penalty: Literal["aleatoric", "disagreement"] = "aleatoric",
        penalty_coef: float = 0.25,
        penalty_clip: float = 20.0,
        reward_slack: float = 1.0,
        termination_fn: str | TerminationRule = "auto",
        gru_size: int = 128,
        context_size: int = 16,
        target_entropy: float | None = None,
        refresh_interval: int = 4000,
        published_code: bool = False,
        normalize_observations: bool = False,
        **kwargs: Any,
    ) -> None:
        self.n_models = n_models
        self.n_elites = n_elites
        self.model_arch = model_arch
        self.model_learning_rate = model_learning_rate
        self.model_batch_size = model_batch_size
        self.model_patience = model_patience
        self.model_max_epochs = model_max_epochs
        self.rollout_length = rollout_length
        self.rollout_batch_size = rollout_batch_size
        self.rollout_interval = rollout_interval
        self.n_retained_rollouts = n_retained_rollouts
        self.real_ratio = real_ratio
        self.penalty = penalty
        self.penalty_coef = penalty_coef
        self.penalty_clip = penalty_clip
        self.reward_slack = reward_slack
        self.gru_size = gru_size
        self.context_size = context_size
        self.target_entropy = target_entropy
        self.refresh_interval = refresh_interval
        self.published_code = published_code
        self._set_termination(termination_fn)
        self._dynamics: FittedDynamics | None = None
        self._dynamics_summary: dict[str, Any] | None = None
        self._given_dynamics: FittedDynamics | None = None
        #: The ensemble after the last epoch, until it is finished.
        self._half_trained: dict[str, np.ndarray] | None = None
        self._pieces: EpisodePieces | None = None
        self._observation_limits: tuple[th.Tensor, th.Tensor] | None = None
        self._rule: TerminationRule | None = None
        self._environment: LearnedEnvironment | None = None
        self._forget_rollouts()
        super().__init__(
            policy, env, dataset, learning_rate, batch_size, normalize_observations=normalize_observations, **kwargs
        )
        # Ensemble and rollouts draw from streams of their own, so that each can be made again.
        self._stream_seed = _stream_seed(self.seed)
        if dynamics is not None:
            self._given_dynamics = self._read_dynamics(dynamics)

    def check_combinations(self) -> None:
        """
        Refuse arguments that do not go together, each of which is in its range.

        :raises ValueError: they do not
        """
        if self.n_elites > self.n_models:
            raise ValueError(f"MAPLE: n_elites is {self.n_elites}, expected at most n_models, which is {self.n_models}.")

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        As in the base class. An ensemble and imagined episodes that have been begun go on with the numbers they began with.

        :param seed: the seed; None leaves all generators as they are
        """
        super().set_random_seed(seed)
        has_begun = self._dynamics or self._half_trained or self._stored_arrays or self._retained.recipes
        if seed is not None and not has_begun:
            self._stream_seed = _stream_seed(seed)

    def _forget_rollouts(self) -> None:
        """There are no imagined episodes (any more)."""
        self._hidden: HiddenStates | None = None
        self._model_buffer: ModelBuffer | None = None
        self._n_rollouts = 0
        #: Number of updates at the last one.
        self._rolled_out_at = -1
        self._retained = RetainedRollouts(self.n_retained_rollouts)
        #: Number of updates when the hidden states were last computed.
        self._refresh = 0

    def _policy_arguments(self) -> dict[str, Any]:
        return {"gru_size": self.gru_size, "context_size": self.context_size}

    def _setup_model(self) -> None:
        super()._setup_model()
        policy = self.policy
        policy.policy_encoder.requires_grad_(not self.published_code)
        self.add_optimizer("actor", [policy.actor] if self.published_code else [policy.actor, policy.policy_encoder])
        # The value encoder follows both critics, with moments of its own in each optimizer.
        self.add_optimizer("critic_1", [policy.critics.q1, policy.value_encoder])
        self.add_optimizer("critic_2", [policy.critics.q2, policy.value_encoder])
        self.add_optimizer("alpha", [policy.log_alpha])
        self.add_target(policy.critics, policy.critics_target, every=1)

    # Dataset ---------------------------------------------------------------------------------------------------------

    def _on_dataset(self, buffer: OfflineReplayBuffer) -> None:
        assert isinstance(buffer, SequenceReplayBuffer)
        if self._given_dynamics is not None and self._given_dynamics.data != DataKey.of(buffer):
            raise DatasetError(
                f"The ensemble that was passed as `dynamics` was fitted to other data "
                f"({self._given_dynamics.data}) than {buffer.dataset_id or 'this dataset'} "
                f"({DataKey.of(buffer)}): pass that of a run on the same data and rewards, or leave `dynamics` out "
                "to fit one."
            )
        self._rule = self._rule_of(buffer)
        self._check_rule(buffer)
        super()._on_dataset(buffer)
        self._observation_limits = observation_limits(buffer.observations[: buffer.n_offline])
        self._pieces = self._environment = None
        self._hidden = self._model_buffer = None

    def set_dataset(self, dataset: Any) -> None:
        """
        Learn from another dataset from the next call of ``learn`` on. An ensemble that was fitted to other data is then
        replaced by a new one.

        :param dataset: as in the constructor
        """
        super().set_dataset(dataset)
        self._pieces = self._environment = None

    @property
    def _data(self) -> SequenceReplayBuffer:
        assert isinstance(self.replay_buffer, SequenceReplayBuffer)
        return self.replay_buffer

    @property
    def _episode_pieces(self) -> EpisodePieces:
        if self._pieces is None:
            self._pieces = EpisodePieces(self._data, self.rollout_length)
        return self._pieces

    def _transitions(self, rows: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Inputs and targets of the ensemble, rows by number."""
        found = self._data.steps(rows)
        targets = th.cat([found.rewards, found.next_observations - found.observations], dim=-1)
        return th.cat([found.observations, found.actions], dim=-1), targets

    def _make_generator(self, device: th.device, *path: int) -> th.Generator:
        """A generator of one of the algorithm's own streams, of which every process has its own."""
        return _generator(device, self._stream_seed, *path, *ranks.process_path())

    def _set_termination(self, rule: str | TerminationRule) -> None:
        """Take a rule of the user's. Its name goes into the zip; who loads that names the function again."""
        self.termination_fn: str = rule_name(rule)
        is_own = self.termination_fn != "auto" and self.termination_fn not in RULES
        self._own_rule: TerminationRule | None = find_rule(self.termination_fn) if is_own else None

    def _rule_of(self, buffer: OfflineReplayBuffer) -> TerminationRule:
        if self._own_rule is not None:
            return self._own_rule
        if self.termination_fn in RULES:
            return RULES[self.termination_fn]
        if self.termination_fn != "auto":
            raise ValueError(
                f"The model's file names the termination rule {self.termination_fn!r}, and nothing is imported because a file "
                "says so: pass the function to `load` as `termination_fn`."
            )
        names = [str(self.dataset_id)]
        if self.env is not None and (env_id := env_id_of(self.env)) is not None:
            names.append(env_id)
        name = known_rule(names, self.policy.observation_size)
        if name is None and bool((buffer.dones[: buffer.n_offline] > 0).any()):
            warnings.warn(
                f"MAPLE knows no termination rule for {names[0]}, but episodes of the dataset end in terminal states: "
                "imagined ones only will when a coordinate leaves [-100, 100]. Pass termination_fn, a function "
                "f(observations, actions, next_observations) of tensors to a bool tensor (n,), or the name of a rule.",
                stacklevel=2,
            )
        return RULES[name or "halfcheetah"]

    def _check_rule(self, buffer: SequenceReplayBuffer) -> None:
        """Try the termination rule, before hours are spent on an ensemble."""
        assert self._rule is not None
        tried = buffer.steps(th.arange(min(buffer.n_offline, 2), device=buffer.generator.device))
        try:
            checked_ends(self._rule(tried.observations, tried.actions, tried.next_observations), len(tried.observations))
        except Exception as error:  # a function of the user's
            size = self.policy.observation_size
            raise ValueError(
                f"The termination rule {self.termination_fn!r} does not work on flat observations of size {size} ({error}): "
                "pass another termination_fn."
            ) from error

    # The ensemble ----------------------------------------------------------------------------------------------------

    @property
    def dynamics(self) -> FittedDynamics | None:
        """The fitted ensemble, which can be passed to another model as ``dynamics``; None before there is one."""
        self._unpack()
        return self._dynamics or self._given_dynamics

    def _read_dynamics(self, source: Any) -> FittedDynamics:
        if isinstance(source, FittedDynamics):
            return source
        if not isinstance(source, str | pathlib.Path):
            raise TypeError(f"dynamics is a {type(source).__name__}, expected the path of a MAPLE zip or `model.dynamics`.")
        content = read_arrays_of(source, type(self).__name__)
        found = _arrays_of("dynamics", read_npz(content) if content is not None else {})
        if not found:
            raise ValueError(f"{source} holds no finished ensemble: let `learn_model` come to its end there first.")
        fitted = FittedDynamics.from_arrays(found)
        sizes = (fitted.ensemble.mean.weight.shape[1] - 1, len(fitted.ensemble.input_mean))
        own = (self.policy.observation_size, self.policy.observation_size + self.policy.action_size)
        if sizes != own:
            raise ValueError(
                f"The ensemble in {source} is of observations of size {sizes[0]} and actions of size {sizes[1] - sizes[0]}; "
                f"here it is {own[0]} and {own[1] - own[0]}."
            )
        return fitted

    def _use_dynamics(self, fitted: FittedDynamics) -> None:
        # That of another model stays where it is.
        ensemble = copy.deepcopy(fitted.ensemble).to(self.device).requires_grad_(False)
        self._dynamics = fitted._replace(ensemble=ensemble)
        self._dynamics_summary = ensemble.summary()
        self.n_models, self.n_elites = ensemble.n_models, len(ensemble.elites)
        self.model_arch = tuple(layer.weight.shape[1] for layer in ensemble.layers()[:-2])
        self._half_trained = None

    def learn_model(
        self: SelfMAPLE, callback: MaybeCallback = None, progress_bar: bool = False, log_interval: int | None = 1
    ) -> SelfMAPLE:
        """
        Fit the ensemble of dynamics to the dataset, unless there is one already; :meth:`learn` does it by itself.

        It takes no timestep. After every epoch the log is written, with the epoch as its step, and callbacks get
        ``on_rollout_end`` (not ``on_step``): a model that is saved there, or after an interrupt, goes on with the next epoch.

        :param callback: callback(s) called after every epoch
        :param progress_bar: show a progress bar
        :param log_interval: write the log every so many epochs; None switches it off
        :raises DatasetError: the dataset is not there or not usable, or ``dynamics`` was fitted to other data
        :raises FloatingPointError: the loss is no longer finite
        :return: the model itself
        """
        self._setup_dataset()
        if getattr(self, "_logger", None) is None:
            self._logger = utils.configure_logger(self.verbose, self.tensorboard_log, type(self).__name__, True)
        with self._env_for_callbacks():
            self._find_ensemble(self._init_callback(callback), progress_bar, log_interval)
        return self

    def _find_ensemble(self, callback: BaseCallback, progress_bar: bool, log_interval: int | None) -> None:
        """An ensemble for the dataset: the one that there is, the one that was passed, or a new one."""
        self._unpack()
        key = DataKey.of(self._data)
        if self._dynamics is not None and self._dynamics.data == key:
            return
        self._dynamics = self._dynamics_summary = None
        self._forget_rollouts()
        if self._given_dynamics is not None:
            self._use_dynamics(self._given_dynamics)
        else:
            self._fit_ensemble(key, callback, progress_bar, log_interval)

    def _fit_ensemble(self, key: DataKey, callback: BaseCallback, progress_bar: bool, log_interval: int | None) -> None:
        training = self._ensemble_training()
        if self._half_trained is not None:
            arrays = dict(self._half_trained)
            if DataKey.from_arrays(arrays) == key:
                training.restore(arrays)
        with tqdm(desc="Dynamics ensemble", unit="epoch", initial=training.epoch, disable=not progress_bar) as bar:
            while not training.is_over:
                values = training.run_epoch()
                bar.update()
                bar.set_postfix(holdout_mse=values["model/holdout_mse"], stale=values["model/stale_epochs"])
                if training.is_over:
                    training.finish()
                    self._use_dynamics(FittedDynamics(training.ensemble, key, self._stream_seed))
                else:
                    self._half_trained = training.to_arrays() | key.to_arrays()
                if log_interval is not None and training.epoch % log_interval == 0:
                    for name, value in values.items():
                        self.logger.record(name, value)
                    self.logger.dump(step=training.epoch)
                callback.update_locals(locals())
                callback.on_rollout_end()
        if self._dynamics is None:  # there was no epoch left to do
            training.finish()
            self._use_dynamics(FittedDynamics(training.ensemble, key, self._stream_seed))

    def _ensemble_training(self) -> EnsembleTraining:
        with preserved_random_state():
            th.manual_seed(self._stream_seed)
            sizes = (self.policy.observation_size, self.policy.action_size)
            ensemble = DynamicsEnsemble(*sizes, self.n_models, self.n_elites, tuple(self.model_arch)).to(self.device)
        storage = self._data.generator.device
        return EnsembleTraining(
            ensemble,
            self._transitions,
            self._data.n_whole or self._data.n_offline,
            lambda *path: _generator(storage, self._stream_seed, _MODEL_STREAM, *path),
            first_row=self._data.first_row,
            n_rows=self._data.n_offline,
            learning_rate=self.model_learning_rate,
            batch_size=self.model_batch_size // ranks.world(),
            patience=self.model_patience,
            max_epochs=self.model_max_epochs,
        )

    @th.no_grad()
    def open_loop_errors(self, horizon: int | None = None, n_pieces: int = 1000) -> OpenLoopErrors:
        """
        How far the elites stray on their own predictions, when they follow recorded actions from steps that were held out.
        (What comes after such a step may have been among the training data.)

        :param horizon: number of steps; None: ``rollout_length``
        :param n_pieces: at most so many pieces of episodes
        :raises ValueError: there is no ensemble, it is of other data, or no held-out step has so many behind it
        """
        self._setup_dataset()
        fitted, data = self.dynamics, self._data
        if fitted is None or fitted.data != DataKey.of(data):
            raise ValueError("There is no ensemble that was fitted to these data: call `learn_model` first.")
        horizon = horizon or self.rollout_length
        storage = data.generator.device
        held_out, _ = split(data.n_whole or data.n_offline, _generator(storage, fitted.seed, _MODEL_STREAM, 0))
        held_out = part_of(held_out, data.first_row, data.n_offline)
        starts = held_out[held_out + horizon <= data.episode_ends(held_out)][:n_pieces]
        if len(starts) == 0:
            raise ValueError(
                f"No held-out step of the dataset has {horizon} steps of its episode behind it: shorten the horizon."
            )
        return fitted.open_loop_errors(data, starts, horizon)

    @property
    def has_learned(self) -> bool:
        """Whether there is something that is worth saving."""
        return super().has_learned or self._half_trained is not None or self._dynamics is not None

    def _prepare_updates(self, callback: BaseCallback, log_interval: int | None, progress_bar: bool) -> None:
        self._find_ensemble(callback, progress_bar, log_interval=None if log_interval is None else 1)
        self._make_environment()
        if self._model_buffer is None:
            self._replay_rollouts()

    def _make_environment(self) -> LearnedEnvironment:
        if self._environment is None:
            assert self._dynamics is not None and self._rule is not None and self._observation_limits is not None
            buffer = self._data
            low, high = self._observation_limits
            slack = self.penalty_coef * self.penalty_clip * self.reward_slack
            self._environment = LearnedEnvironment(
                self._dynamics.ensemble,
                self._rule,
                self.penalty,
                self.penalty_coef,
                self.penalty_clip,
                (buffer.min_reward - slack, buffer.max_reward),
                low.to(self.device),
                high.to(self.device),
            )
        return self._environment

    # Imagined episodes -----------------------------------------------------------------------------------------------

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """
        Imagine episodes when it is time, sample minibatches and do the updates.

        :param gradient_steps: number of updates
        :param batch_size: minibatch size
        """
        for _ in range(gradient_steps):
            self._imagine()
            super().train(1, batch_size)

    def _imagine(self) -> None:
        """What belongs to the next update. An interrupt in here loses nothing: the same is done again."""
        done = self._n_updates
        is_refresh = done % self.refresh_interval == self.rollout_interval % self.refresh_interval
        if self._hidden is None or (is_refresh and self._refresh != done):
            self._refresh_hidden(done)
        if self._model_buffer is None or (done % self.rollout_interval == 0 and self._rolled_out_at != done):
            self._roll_out(done)

    def _refresh_hidden(self, done: int) -> None:
        """Compute the recurrent states of the dataset with the encoders of now."""
        policy = self.policy
        self._hidden = self._episode_pieces.hidden_states(policy, (policy.policy_encoder, policy.value_encoder))
        self._refresh = done
        self._retained.note_refresh(done, policy)

    def _new_model_buffer(self) -> ModelBuffer:
        sizes = (self.n_retained_rollouts, self.rollout_batch_size // ranks.world(), self.rollout_length)
        numbers = [recipe.number for recipe in self._retained.recipes]
        # A ring that is not full yet begins with the first of them.
        return ModelBuffer(*sizes, self.policy, min(numbers, default=0) if len(numbers) < self.n_retained_rollouts else 0)

    def _roll_out(self, done: int) -> None:
        """Imagine episodes with the policy of now."""
        since = time.monotonic()
        buffer = self._model_buffer or self._new_model_buffer()
        assert self._hidden is not None
        values = self._fill(buffer, self._n_rollouts, self._hidden, self.policy)
        self._retained.note_rollout(self._n_rollouts, self._refresh, self.policy)
        self._model_buffer = buffer
        self._n_rollouts, self._rolled_out_at = self._n_rollouts + 1, done
        self.logger.record("time/rollout_seconds", time.monotonic() - since)
        for name, value in values.items():
            self.logger.record(f"rollout/{name}", value)

    @th.no_grad()
    def _fill(self, buffer: ModelBuffer, number: int, hidden: HiddenStates, policy: MAPLEPolicy) -> dict[str, float]:
        """
        Imagine the episodes of one rollout and store them; what they are like, by name.

        :param buffer: where they go
        :param number: number of the rollout; all that is drawn depends on it alone
        :param hidden: recurrent states of the dataset
        :param policy: acts
        """
        environment, data = self._make_environment(), self._data
        ensemble, n, length = environment.ensemble, buffer.rollout_size, self.rollout_length
        storage = data.generator.device
        draw_starts = self._make_generator(storage, _ROLLOUT_STREAM, number, 0)
        generator = self._make_generator(self.device, _ROLLOUT_STREAM, number, 1)
        starts = th.randint(data.n_offline, (n,), generator=draw_starts, device=storage)
        first = buffer.slot(number)
        size = CPU_BLOCK_ROWS if self.device.type == "cpu" else max(GPU_BLOCK_NET_ROWS // ensemble.n_models, 1)
        penalties = []
        for begin in range(0, n, size):
            steps = starts[begin : begin + size]
            rows = slice(first + begin, first + begin + len(steps))
            noise = self._rollout_noise(len(steps), generator, ensemble)
            penalties.append(buffer.roll_out(rows, environment, policy, self._starts(steps, hidden), noise))
        buffer.n_filled = max(buffer.n_filled, first + n)
        statistics = buffer.statistics(slice(first, first + n), th.cat(penalties), self.penalty_coef)
        values = {name: float(value) for name, value in statistics._asdict().items()}
        # What the recorded behaviour got over as many steps from the same ones
        to_go, ends = data.returns_to_go, data.episode_ends(starts)
        beyond = starts + length
        later = th.where(beyond < ends, to_go[beyond.clamp(max=data.n_offline - 1)].squeeze(1), 0.0)
        values["dataset_return"] = float((to_go[starts].squeeze(1) - later).mean())
        return ranks.mean_numbers(values)

    def _starts(self, steps: th.Tensor, hidden: HiddenStates) -> Sequences:
        """Steps of the dataset as sequences of one step."""
        found, rows = self._data.steps(steps.unsqueeze(1)), steps.to(self.device)
        valid, last_actions = th.ones_like(found.rewards), self._episode_pieces.last_actions(steps)
        transitions = (found.observations, found.actions, found.next_observations, found.rewards, found.dones)
        return Sequences(*transitions, valid, last_actions, hidden.policy[rows], hidden.value[rows], {})

    def _rollout_noise(self, n: int, generator: th.Generator, ensemble: DynamicsEnsemble) -> RolloutNoise:
        options: dict[str, Any] = {"generator": generator, "device": generator.device}
        length, policy = self.rollout_length, self.policy
        actions = th.randn((length, n, policy.action_size), **options)
        model = th.randn((length, n, 1 + policy.observation_size), **options)
        shape = (length, n) if self.published_code else (1, n)
        chosen = th.randint(len(ensemble.elites), shape, **options).expand(length, n)
        return RolloutNoise(actions, model, ensemble.elites[chosen])

    @th.no_grad()
    def _replay_rollouts(self) -> None:
        """Make the retained episodes again, with the weights of the time: they are not in the zip."""
        retained = self._retained
        if not retained.encoders:
            return
        # On a copy: an interrupt must not leave the weights of then behind.
        policy = copy.deepcopy(self.policy)
        buffer = self._new_model_buffer()
        for done in sorted(retained.encoders):
            hidden = self._episode_pieces.hidden_states(policy, retained.set_encoders(policy, done))
            for recipe in retained.recipes:
                if recipe.refresh == done:
                    retained.set_actor(policy, recipe)
                    self._fill(buffer, recipe.number, hidden, policy)
            if done == self._refresh:
                self._hidden = hidden
        self._model_buffer = buffer if retained.recipes else None

    # Updates ---------------------------------------------------------------------------------------------------------

    def noise_specs(self, batch_size: int) -> dict[str, NoiseSpec]:
        """The random numbers that one update consumes, by name."""
        spec = NoiseSpec("normal", (batch_size, self.rollout_length, self.policy.action_size))
        return {"noise": spec, "next_noise": spec}

    def sample_batch(self, batch_size: int) -> Sequences:  # type: ignore[override]
        """
        Pieces of the dataset's episodes and imagined ones, with scaled observations and the noise of one update.

        :param batch_size: number of sequences
        """
        assert self._hidden is not None and self._model_buffer is not None
        n_real = ranks.share(int(self.real_ratio * batch_size * ranks.world()))
        data, episode_pieces = self._data, self._episode_pieces
        pieces = data._draw(len(episode_pieces.firsts), n_real)
        rows = data._draw(self._model_buffer.n_filled, batch_size - n_real).to(self.device)
        batch = episode_pieces.sequences(pieces, self._hidden).and_then(self._model_buffer.sequences(rows))
        return batch._replace(
            observations=self.policy.scale_observations(batch.observations),
            next_observations=self.policy.scale_observations(batch.next_observations),
            noise=self.sample_noise(batch_size),
        )

    @property
    def entropy_target(self) -> float:
        """The target entropy in use."""
        if self.target_entropy is not None:
            return self.target_entropy
        return PUBLISHED_TARGET_ENTROPY if self.published_code else -float(self.policy.action_size)

    @property
    def value_range(self) -> tuple[float, float]:
        """Where targets of the critics are clipped: the returns that imagined rewards allow."""
        low, high = self._make_environment().reward_range
        horizon = 1.0 - self.gamma
        return (low / horizon, high / horizon) if horizon > 0 else (-np.inf, np.inf)

    def losses(self, batch: Sequences) -> tuple[dict[str, th.Tensor], Metrics]:
        """
        The loss of every optimizer, 0-d, all from the same parameters; and what is to be logged.

        :param batch: the minibatch
        """
        policy = self.policy
        observations, actions = batch.observations, batch.actions
        contexts, next_contexts = _contexts(policy.policy_encoder, batch, batch.policy_hidden)
        value_contexts, next_value_contexts = _contexts(policy.value_encoder, batch, batch.value_hidden)
        alpha = policy.log_alpha.detach().exp()
        mean = partial(batch.mean, n_steps=ranks.mean(batch.valid.sum()))
        with th.no_grad():
            next_actions, next_log_probs = policy.actor(next_contexts, batch.next_observations).sample(
                batch.noise["next_noise"]
            )
            next_values = th.minimum(*policy.critics_target(next_value_contexts, batch.next_observations, next_actions))
            targets = batch.rewards + self.gamma * (1.0 - batch.dones) * (next_values - alpha * next_log_probs)
            targets = targets.clamp(*self.value_range)
        q_values = policy.critics(value_contexts, observations, actions)
        critic_1_loss, critic_2_loss = (0.5 * mean((targets - values).square()) for values in q_values)
        sampled, log_probs = policy.actor(contexts, observations).sample(batch.noise["noise"])
        sampled_values = th.minimum(*policy.critics(value_contexts.detach(), observations, sampled))
        actor_loss = mean(alpha * log_probs - sampled_values)
        alpha_loss = -mean(policy.log_alpha * (log_probs.detach() + self.entropy_target))
        losses = {"actor": actor_loss, "critic_1": critic_1_loss, "critic_2": critic_2_loss, "alpha": alpha_loss}
        metrics = {f"{name}_loss": loss for name, loss in losses.items()}
        metrics |= {"alpha": alpha, "entropy": -mean(log_probs.detach()), "q_value": mean(q_values[0].detach())}
        return losses, metrics | {"target_q": mean(targets)}

    def update_variant(self, batch_size: int) -> tuple[Any, ...]:
        """
        What decides which operations the current update consists of; it is compiled once for every value.

        :param batch_size: minibatch size
        """
        return (*super().update_variant(batch_size), self.value_range)

    def _fixed_data(self, buffer: OfflineReplayBuffer) -> list[th.Tensor]:
        """Nothing: hidden states and imagined episodes are made anew as training goes on."""
        return []

    def update(self, batch: Sequences) -> Metrics:  # type: ignore[override]
        """One update of everything but the ensemble."""
        losses, metrics = self.losses(batch)
        self.optimize_all(losses)
        return metrics

    def bellman_errors(self, batch: OfflineBatch) -> th.Tensor | None:
        """None: targets need sequences, and the log has their mean."""
        return None

    # Saving and loading ----------------------------------------------------------------------------------------------

    def _excluded_save_params(self) -> list[str]:
        runtime = ["_dynamics", "_given_dynamics", "_half_trained", "_pieces", "_environment", "_hidden", "_model_buffer"]
        return [*super()._excluded_save_params(), *runtime, "_observation_limits", "_retained", "_own_rule", "_rule"]

    def _packed_arrays(self) -> bytes | None:
        if self._stored_arrays is not None:  # loaded, and never needed since
            return self._stored_arrays
        parts = self._retained.to_arrays()
        if (fitted := self._dynamics or self._given_dynamics) is not None:
            parts |= {f"dynamics/{name}": value for name, value in fitted.to_arrays().items()}
        if self._half_trained is not None:
            parts |= {f"training/{name}": value for name, value in self._half_trained.items()}
        return pack_npz(parts) if parts else None

    def _unpack(self) -> None:
        """Read what the zip held besides networks and optimizers; not before it is needed, which it is not for acting."""
        if self._stored_arrays is None:
            return
        arrays = read_npz(self._stored_arrays)
        if dynamics := _arrays_of("dynamics", arrays):
            self._use_dynamics(FittedDynamics.from_arrays(dynamics))
        self._half_trained = _arrays_of("training", arrays) or None
        self._retained = RetainedRollouts.from_arrays(arrays, self.n_retained_rollouts, self._refresh, self.policy)
        self._stored_arrays = None

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> "MAPLE":
        """
        Load a model. No dataset and no environment are needed, and global random generators are left alone. The ensemble is
        read when training goes on, not for acting.

        :param args: arguments of SB3's ``load``: the path, optionally an environment, a device, ...
        :param kwargs: the same by name, and attributes to change, e.g. ``dataset=...``, ``termination_fn=...`` or
            ``dynamics=...``, which takes the place of the ensemble in the file
        :return: the model
        """
        dynamics = kwargs.pop("dynamics", None)
        model = super().load(*args, **kwargs)
        assert isinstance(model, MAPLE)
        if dynamics is not None:
            # The ensemble in the file, and what was imagined in it, would come first.
            model._stored_arrays = model._dynamics = model._dynamics_summary = model._half_trained = None
            model._forget_rollouts()
            model._given_dynamics = model._read_dynamics(dynamics)
        if "termination_fn" in kwargs:
            model._set_termination(kwargs["termination_fn"])
        return model


def _stream_seed(seed: int | None) -> int:
    return int(np.random.SeedSequence(seed).spawn(1)[0].generate_state(1)[0])


def _generator(device: th.device, *path: int) -> th.Generator:
    generator = th.Generator(device=device)
    generator.manual_seed(int(np.random.SeedSequence(path).generate_state(1)[0]))
    return generator


def _arrays_of(part: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays whose names begin with the part's and a ``/``, by the rest of the name."""
    return {name.removeprefix(f"{part}/"): value for name, value in arrays.items() if name.startswith(f"{part}/")}


def _contexts(encoder: Any, batch: Sequences, hidden: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Contexts of all steps and, without gradient, of the next ones, shape ``(batch, T, C)`` each, in one pass.

    :param encoder: a :class:`~sb3_dmpo.maple.policies.ContextEncoder`
    :param batch: the minibatch
    :param hidden: its states before the first step, shape ``(batch, G)``
    """
    observations = th.cat([batch.observations[:, :1], batch.next_observations], dim=1)
    last_actions = th.cat([batch.last_actions.unsqueeze(1), batch.actions], dim=1)
    contexts = encoder.contexts(encoder.hidden_states(observations, last_actions, hidden))
    return contexts[:, :-1], contexts[:, 1:].detach()
