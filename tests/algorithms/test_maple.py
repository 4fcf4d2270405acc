"""MAPLE beyond the recorded runs: masks, memory, buffers, phases, what is saved, and what is refused."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.logger import Logger

from sb3_dmpo import DMPO, MAPLE
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.data import DatasetError
from sb3_dmpo.data.transitions import Transitions
from sb3_dmpo.decision_transformer.buffers import SequenceReplayBuffer
from sb3_dmpo.files.npz import pack_npz, read_npz
from sb3_dmpo.files.safe_zip import DamagedFileError
from sb3_dmpo.hub.summary import read_summary, summary_lines
from sb3_dmpo.maple.dynamics import DynamicsEnsemble, EnsembleTraining, input_statistics
from sb3_dmpo.maple.rollouts import LearnedEnvironment, observation_limits
from sb3_dmpo.maple.termination import RULES, known_rule
from tests.conftest import OWN_DATASETS
from tests.contract import DATA, LogKeeper, assert_same, make
from tests.toy_data import DriftEnv, make_transitions


def maple(**kwargs: Any) -> MAPLE:
    model = make("maple", **{"dataset": DATA} | kwargs)
    assert isinstance(model, MAPLE)
    return model


def ends_everything(observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
    return th.ones(len(observations), dtype=th.bool)


def of_the_wrong_shape(observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
    return th.ones(len(observations), 1)


# Losses -------------------------------------------------------------------------------------------------------------


def test_what_stands_in_invalid_steps_changes_nothing() -> None:
    model = maple(termination_fn=ends_everything, real_ratio=0.5).learn(1)
    batch = model.sample_batch(16)
    assert 0 < float(batch.valid.mean()) < 1
    invalid = batch.valid == 0
    names = ("observations", "actions", "next_observations", "rewards")
    filled = batch._replace(**{name: th.where(invalid, 1e6, getattr(batch, name)) for name in names})
    results = []
    for each in (batch, filled):
        losses, _ = model.losses(each)
        gradients = [
            gradient
            for name, loss in losses.items()
            for gradient in th.autograd.grad(loss, model._optimizers[name][2], retain_graph=True)
        ]
        results.append([*losses.values(), *gradients])
    for clean, dirty in zip(*results, strict=True):
        assert th.equal(clean, dirty)


def test_contexts_of_a_sequence_equal_predict_step_by_step() -> None:
    model = maple().learn(1)
    policy = model.policy
    observations = th.from_numpy(DATA.observations[:8])[None]
    state: Any = None
    taken = []
    for observation in DATA.observations[:8]:
        _, state = policy.predict(observation[None], state, deterministic=True)
        taken.append(state.last_actions)
    last_actions = th.from_numpy(np.stack([np.zeros_like(taken[0]), *taken[:-1]], axis=1))
    with th.no_grad():
        hidden = policy.policy_encoder.hidden_states(observations, last_actions, th.zeros(1, policy.gru_size))
        actions = policy.actor(policy.policy_encoder.contexts(hidden), observations).mode()
    np.testing.assert_allclose(hidden[:, -1].numpy(), state.hidden, atol=1e-6)
    np.testing.assert_allclose(actions[0].numpy(), np.concatenate(taken), atol=1e-5)


def test_episode_start_equals_a_fresh_state() -> None:
    policy = maple().learn(1).policy
    _, state = policy.predict(DATA.observations[:2], None, deterministic=True)
    actions, after = policy.predict(DATA.observations[2:4], state, np.array([True, False]), deterministic=True)
    fresh, fresh_after = policy.predict(DATA.observations[2:4], None, deterministic=True)
    assert_same([actions[0], after.hidden[0]], [fresh[0], fresh_after.hidden[0]])
    assert not np.array_equal(actions[1], fresh[1])
    assert after is not state and policy.predict(DATA.observations[:2], state)[1].hidden.dtype == np.float32
    with pytest.raises(ValueError, match="pass the state that `predict` returned"):
        policy.predict(DATA.observations[:3], state)
    with pytest.raises(ValueError, match="episode_start has 3 entries"):
        policy.predict(DATA.observations[:2], state, np.zeros(3, bool))


def test_the_policy_loss_leaves_critics_and_value_encoder_alone() -> None:
    model = maple().learn(1)
    losses, _ = model.losses(model.sample_batch(16))
    critics = [*model.policy.critics.parameters(), *model.policy.value_encoder.parameters()]
    assert not {id(p) for p in critics} & {id(p) for p in model._optimizers["actor"][2]}
    encoder = list(model.policy.value_encoder.parameters())
    assert all(grad is None for grad in th.autograd.grad(losses["actor"], encoder, allow_unused=True))


def test_published_code_freezes_the_encoder_and_asks_another_model_at_every_step() -> None:
    model = maple(published_code=True)
    before = [parameter.clone() for parameter in model.policy.policy_encoder.parameters()]
    model.learn(4)
    for old, new in zip(before, model.policy.policy_encoder.parameters(), strict=True):
        assert th.equal(old, new)
    assert (
        model.entropy_target == -3.0 and maple().entropy_target == -2.0 and maple(target_entropy=-1.0).entropy_target == -1.0
    )
    for published, per_rollout in ((True, False), (False, True)):
        other = maple(published_code=published, rollout_length=8).learn(1)
        noise = other._rollout_noise(50, th.Generator().manual_seed(0), other.dynamics.ensemble)
        assert bool((noise.members == noise.members[0]).all()) == per_rollout
        assert set(noise.members.flatten().tolist()) == set(other.dynamics.ensemble.elites.tolist())


def test_open_loop_errors() -> None:
    """The first step is the plain error on the holdout; a perfect ensemble makes none."""
    model = maple()
    with pytest.raises(ValueError, match="call `learn_model` first"):
        model.open_loop_errors()
    model.learn_model()
    ensemble, found = model.dynamics.ensemble, model.open_loop_errors(2)
    assert found.observations.shape == found.rewards.shape == (2, 2) and found.unchanged.shape == (2,) and found.n_pieces > 3
    with th.no_grad():
        for parameter in ensemble.net_parameters():
            parameter.zero_()
    still = model.open_loop_errors(2)
    np.testing.assert_allclose(still.observations, np.broadcast_to(still.unchanged, (2, 2)), rtol=1e-5)
    with pytest.raises(ValueError, match="has 9 steps of its episode behind it"):
        model.open_loop_errors(9)


# Rollouts -----------------------------------------------------------------------------------------------------------


def test_a_rule_that_ends_everything_leaves_one_step() -> None:
    model = maple(termination_fn=ends_everything).learn(1)
    found = model._model_buffer.sequences(th.arange(20))
    assert bool((found.valid[:, 0] == 1).all()) and bool((found.valid[:, 1:] == 0).all())
    with pytest.raises(ValueError, match=r"termination_fn returned torch.float32 \(2, 1\), expected a bool tensor"):
        maple(termination_fn=of_the_wrong_shape).learn(1)


def test_a_rule_that_does_not_work_is_found_before_the_ensemble_is_fitted() -> None:
    for rule in (of_the_wrong_shape, "two_goals"):  # the latter is of observations of size 2
        model = maple(termination_fn=rule)
        with pytest.raises(
            ValueError, match=r"The termination rule .* does not work on flat observations of size 3 .*: pass another"
        ):
            model.learn(1)
        assert model.dynamics is None and model._half_trained is None


@pytest.mark.parametrize(("share", "batch_size"), [(0.0, 16), (0.05, 8), (1.0, 16), (0.5, 1)])
def test_any_share_of_the_dataset(share: float, batch_size: int) -> None:
    model = maple(real_ratio=share, batch_size=batch_size).learn(2)
    assert len(model.sample_batch(batch_size).rewards) == batch_size


def test_a_seed_that_is_set_before_anything_is_learned() -> None:
    models = [maple(seed=seed) for seed in (0, 1)]
    for model in models:
        model.set_random_seed(3)
        model.learn_model()
    assert_same(*(model.dynamics.ensemble.to_arrays() for model in models))


def test_the_model_buffer_holds_the_last_rollouts() -> None:
    """Seven rollouts of which two are kept; the rest of the ring is not sampled before it is filled."""
    model = maple(rollout_interval=1).learn(1)
    assert model._model_buffer.n_filled == 20 and len(model._model_buffer.rewards) == 40
    kept: list[th.Tensor] = []
    for _ in range(6):
        model.learn(1, reset_num_timesteps=False)
        slot = model._model_buffer.slot(model._n_rollouts - 1)
        kept.append(model._model_buffer.actions[slot : slot + 20].clone())
    assert model._n_rollouts == 7 and [recipe.number for recipe in model._retained.recipes] == [5, 6]
    held = model._model_buffer.actions.flatten(start_dim=1)
    expected = th.cat(kept[-2:]).flatten(start_dim=1)
    assert {tuple(row) for row in held.tolist()} == {tuple(row) for row in expected.tolist()}


def test_a_zip_written_after_several_refreshes_without_a_rollout_goes_on() -> None:
    model = maple(rollout_interval=10, refresh_interval=4).learn(9)
    assert model._retained.encoders.keys() == {0, 6}
    file = io.BytesIO()
    model.save(file)
    loaded = MAPLE.load(file, dataset=DATA, device="cpu")
    for each in (model, loaded):
        each.learn(4, reset_num_timesteps=False)
    assert_same(loaded.get_parameters(), model.get_parameters())


def test_predictions_that_are_not_finite_never_reach_a_loss() -> None:
    ensemble = DynamicsEnsemble(3, 2, 2, 1, (4,))
    with th.no_grad():
        ensemble.mean.bias[:, :, 1:3] = th.tensor([th.nan, th.inf])
        ensemble.mean.bias[:, :, 0] = th.nan
    limits = th.full((3,), 100.0)
    environment = LearnedEnvironment(ensemble, RULES["never"], "aleatoric", 0.25, 20.0, (-6.0, 1.0), -limits, limits)
    observations = th.tensor([[1.0, 2.0, 3.0]])
    with th.no_grad():
        rewards, following, ends, penalties = environment.step(
            observations, th.zeros(1, 2), th.zeros(1, 4), th.zeros(1, dtype=th.long)
        )
        rule = RULES["hopper"](observations, th.zeros(1, 2), th.tensor([[1.0, th.nan, 0.0]]))
    assert float(rewards) == -6.0 and following[0, :2].tolist() == [1.0, 2.0] and bool(following.isfinite().all())
    assert float(penalties) <= 20.0 and float(ends) == 0.0 and rule.tolist() == [True]


def test_a_broken_ensemble_leaves_the_losses_finite() -> None:
    model = maple().learn_model()
    with th.no_grad():
        model.dynamics.ensemble.mean.bias.fill_(th.nan)
    model.learn(4)
    assert bool(model._model_buffer.observations.isfinite().all())
    assert all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters())


def test_limits_of_observations() -> None:
    low, high = observation_limits(th.tensor([[0.0, -1000.0], [10.0, 1000.0]]))
    assert low.tolist() == [-100.0, -1100.0] and high.tolist() == [100.0, 1100.0]


@pytest.mark.parametrize(
    ("names", "size", "rule"),
    [
        (["zoo/hopper/medium-v0"], 11, "hopper"),
        (["hopper-medium-v2.hdf5"], 11, "hopper"),
        (["None", "Walker2d-v4"], 17, "walker2d"),
        (["None", "HalfCheetah-v5"], 17, "halfcheetah"),
        (["D4RL/pointmaze/umaze-v2"], 8, "never"),
        (["None", "PointMaze_UMaze-v3"], 8, "never"),
        (["None", "Pendulum-v1"], 3, "never"),
        (["sb3_dmpo/two-goals-v0", "TwoGoals-v0"], 2, "two_goals"),
        (["zoo/hopper/medium-v0"], 12, None),  # other observations than the rule reads
        (["D4RL/pen/human-v2"], 45, None),
        (["InvertedPendulum-v4"], 4, None),
    ],
)
def test_rules_by_name(names: list[str], size: int, rule: str | None) -> None:
    assert known_rule(names, size) == rule


def test_rule_of_two_goals() -> None:
    positions = th.tensor([[0.0, 0.0], [0.45, 0.1], [0.8, 0.7], [-1.0, 0.0], [-0.5, -1.0]])
    assert RULES["two_goals"](positions, positions, positions).tolist() == [False, True, True, False, True]


def test_unknown_tasks_with_terminal_steps_are_warned_about() -> None:
    with pytest.warns(UserWarning, match="MAPLE knows no termination rule .* Pass termination_fn"):
        maple(termination_fn="auto").learn(1)
    endless = make_transitions()
    endless.terminations[:] = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maple(termination_fn="auto", dataset=endless).learn(1)


def test_termination_functions_have_names(tmp_path: Path) -> None:
    """The zip holds the name; nothing is imported because a file says so."""
    with pytest.raises(ValueError, match="cannot be found again by name"):
        maple(termination_fn=lambda observations, actions, following: following[:, 0] > 0)
    with pytest.raises(ValueError, match="expected one of 'auto', 'hopper'"):
        maple(termination_fn="hoper")
    with pytest.raises(ValueError, match="no such function"):
        maple(termination_fn="tests.algorithms.test_maple:missing")
    name = "tests.algorithms.test_maple:ends_everything"
    model = maple(termination_fn=name).learn(2)
    model.save(tmp_path / "model.zip")
    loaded = MAPLE.load(tmp_path / "model.zip", dataset=DATA)
    assert loaded.termination_fn == name
    with pytest.raises(ValueError, match="nothing is imported because a file says so"):
        loaded.learn(1, reset_num_timesteps=False)
    again = MAPLE.load(tmp_path / "model.zip", dataset=DATA, termination_fn=ends_everything)
    assert again.learn(1, reset_num_timesteps=False).num_timesteps == 3


# The ensemble -------------------------------------------------------------------------------------------------------


class EpochKeeper(BaseCallback):
    """Saves the model after every epoch of its ensemble, and breaks off after some of them."""

    def __init__(self, folder: Path, stop_after: int | None = None) -> None:
        super().__init__()
        self.folder, self.stop_after, self.epochs, self.steps = folder, stop_after, 0, 0

    def _on_rollout_end(self) -> None:
        self.epochs += 1
        assert self.steps == 0
        self.model.save(self.folder / f"epoch_{self.epochs}.zip")
        if self.epochs == self.stop_after:
            raise KeyboardInterrupt

    def _on_step(self) -> bool:
        self.steps += 1
        return True


def test_phase_one_goes_on_with_the_next_epoch(tmp_path: Path) -> None:
    """After an interrupt in the same process, and through a zip: the weights of a run that was never interrupted."""
    arguments: dict[str, Any] = {"model_max_epochs": 4}
    whole = maple(**arguments).learn(6)
    broken = maple(**arguments)
    with pytest.raises(KeyboardInterrupt):
        broken.learn(6, callback=EpochKeeper(tmp_path, stop_after=2))
    assert broken.has_learned and broken.num_timesteps == 0 and not broken._is_preparing
    loaded = MAPLE.load(tmp_path / "epoch_1.zip", dataset=DATA)
    for model in (broken, loaded):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="The given NumPy array is not writable")
            th.set_warn_always(True)
            try:
                model.learn(6, reset_num_timesteps=False)
            finally:
                th.set_warn_always(False)
        assert_same(model.get_parameters(), whole.get_parameters())
        assert_same(model.dynamics.ensemble.to_arrays(), whole.dynamics.ensemble.to_arrays())


def test_learn_model_alone_changes_nothing(tmp_path: Path) -> None:
    whole = maple().learn(4)
    keeper, epochs = LogKeeper(), EpochKeeper(tmp_path)
    apart = maple()
    apart.set_logger(Logger(None, [keeper]))
    assert apart.learn_model(callback=epochs) is apart and apart.num_timesteps == 0
    assert [log["model/epoch"] for log in keeper.written] == [1, 2] and epochs.epochs == 2
    names = {"epoch", "train_loss", "holdout_mse", "n_improved", "stale_epochs"}
    assert {f"model/{name}" for name in names} | {"time/model_seconds"} == set(keeper.written[0])
    assert apart.learn_model().learn(4) is apart and len(keeper.written) == 2
    assert_same(apart.get_parameters(), whole.get_parameters())


def test_early_stopping_without_a_limit() -> None:
    model = maple(model_max_epochs=None, model_patience=1).learn_model()
    ensemble = model.dynamics.ensemble
    errors = ensemble.holdout_errors
    assert ensemble.elites.tolist() == errors.argsort(stable=True)[:2].tolist() and float(errors.max()) < 1e10


def test_the_scaler_leaves_constant_inputs_alone() -> None:
    ensemble = DynamicsEnsemble(1, 1, 2, 1, (4,))
    rows = th.tensor([[1.0, 5.0], [3.0, 5.0]])
    mean, std = input_statistics(lambda numbers: (rows[numbers], rows[numbers]), th.arange(2))
    ensemble.set_scaler(mean, std)
    assert ensemble.input_mean.tolist() == [2.0, 5.0] and ensemble.input_std.tolist() == [1.0, 1.0]


def test_an_ensemble_that_diverges_is_named() -> None:
    data = make_transitions()
    data.rewards[:] = 1e30
    with pytest.raises(FloatingPointError, match=r"dynamics ensemble .* in epoch 1"):
        maple(dataset=data).learn(1)


def test_tiny_datasets_are_their_own_holdout() -> None:
    ensemble = DynamicsEnsemble(1, 1, 2, 1, (4,))
    rows = th.arange(6.0).view(3, 2)
    training = EnsembleTraining(
        ensemble, lambda n: (rows[n], rows[n]), 3, lambda number: th.Generator().manual_seed(number), max_epochs=1
    )
    assert np.isfinite(training.run_epoch()["model/holdout_mse"]) and training.is_over


def test_ensemble_of_another_run(tmp_path: Path) -> None:
    first = maple().learn(2)
    first.save(tmp_path / "first.zip")
    for given in (first.dynamics, tmp_path / "first.zip"):
        second = maple(seed=1, dynamics=given, n_models=7, n_elites=7)
        keeper = LogKeeper()
        second.set_logger(Logger(None, [keeper]))
        second.learn(2, log_interval=1)
        assert not any("model/epoch" in log for log in keeper.written)
        assert_same(second.dynamics.ensemble.to_arrays(), first.dynamics.ensemble.to_arrays())
        assert (second.n_models, second.n_elites) == (3, 2)
        second.save(tmp_path / "second.zip")
        assert MAPLE.load(tmp_path / "second.zip").dynamics.data == first.dynamics.data
    third = MAPLE.load(tmp_path / "first.zip", dataset=make_transitions(12), dynamics=first.dynamics)
    for other in (third, maple(dataset=make_transitions(12), dynamics=first.dynamics), maple(
        dynamics=first.dynamics, reward_scale=2.0
    )):  # fmt: skip
        with pytest.raises(DatasetError, match=r"fitted to other data \(hash toy-10, reward_scale 1, reward_shift 0\)"):
            other.learn(1)


def test_what_is_no_ensemble_is_refused(tmp_path: Path) -> None:
    make("bc", dataset=DATA).learn(1).save(tmp_path / "bc.zip")
    maple().save(tmp_path / "empty.zip")
    maple(dataset=make_transitions(observation_space=spaces.Box(-1, 1, (4,)))).learn(1).save(tmp_path / "other.zip")
    (tmp_path / "text.zip").write_text("text")
    for name, error, message in (
        ("bc.zip", DamagedFileError, "no zip of MAPLE, but of 'BC'"),
        ("empty.zip", ValueError, "holds no finished ensemble"),
        ("other.zip", ValueError, "observations of size 4 and actions of size 2; here it is 3 and 2"),
        ("text.zip", DamagedFileError, "no complete zip"),
        ("missing.zip", FileNotFoundError, "missing.zip"),
    ):
        with pytest.raises(error, match=message):
            maple(dynamics=tmp_path / name)
    with pytest.raises(TypeError, match="dynamics is a int, expected the path"):
        maple(dynamics=3)


def test_new_data_get_a_new_ensemble() -> None:
    model = maple().learn(2)
    first = model.dynamics
    model.set_dataset(make_transitions(12))
    model.learn(2)
    assert model.dynamics.data.fingerprint == "toy-12" != first.data.fingerprint
    assert [recipe.number for recipe in model._retained.recipes] == [0, 1] and len(model._retained.encoders) <= 2


# Zips ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [1, 2, 3, 4, 5, 7, 9])
def test_the_model_buffer_comes_back_bit_for_bit(updates: int, tmp_path: Path) -> None:
    """Whatever of refreshes and rollouts lies before or just behind the checkpoint."""
    whole = maple().learn(10, callback=CheckpointCallback(updates, str(tmp_path)))
    half = MAPLE.load(tmp_path / f"rl_model_{updates}_steps.zip", dataset=DATA)
    half.learn(10 - updates, reset_num_timesteps=False)
    assert_same(half.get_parameters(), whole.get_parameters())
    for name in ("observations", "actions", "rewards", "dones", "policy_hidden", "value_hidden"):
        assert th.equal(getattr(half._model_buffer, name), getattr(whole._model_buffer, name)), name
    assert_same(list(half._hidden), list(whole._hidden))


def test_an_interrupted_rollout_is_made_again() -> None:
    whole, broken = maple().learn(8), maple().learn(3)
    fill = broken._fill

    def interrupt(*args: Any) -> Any:
        fill(*args)
        raise KeyboardInterrupt

    broken._fill = interrupt
    with pytest.raises(KeyboardInterrupt):
        broken.learn(5, reset_num_timesteps=False)
    del broken._fill
    broken.learn(5, reset_num_timesteps=False)
    assert_same(broken.get_parameters(), whole.get_parameters())


@pytest.mark.parametrize("n_retained", [1, 5])
def test_another_number_of_retained_rollouts(n_retained: int, tmp_path: Path) -> None:
    """What is there goes on; nothing that was never imagined is drawn."""
    model = maple(rollout_interval=1).learn(5)
    model.save(tmp_path / "model")
    loaded = MAPLE.load(tmp_path / "model", dataset=DATA, n_retained_rollouts=n_retained)
    loaded.learn(1, reset_num_timesteps=False)
    held = min(n_retained, 3) * 20
    assert loaded._model_buffer.n_filled == held
    assert bool((loaded._model_buffer.actions[:held] != 0).flatten(start_dim=1).any(dim=1).all())


def test_an_ensemble_that_was_passed_is_saved_before_it_is_used(tmp_path: Path) -> None:
    fitted = maple().learn_model().dynamics
    maple(dynamics=fitted).save(tmp_path / "model")
    loaded = MAPLE.load(tmp_path / "model", dataset=DATA).learn(1)
    assert_same(loaded.dynamics.ensemble.to_arrays(), fitted.ensemble.to_arrays())


def test_acting_needs_no_ensemble(tmp_path: Path) -> None:
    """It is read when training goes on; until then it is passed on as it is."""
    model = maple().learn(4)
    model.save(tmp_path / "model.zip")
    loaded = MAPLE.load(tmp_path / "model.zip")
    loaded.predict(DATA.observations)
    assert loaded._dynamics is None and loaded._stored_arrays is not None
    loaded.save(tmp_path / "again.zip")
    again = MAPLE.load(tmp_path / "again.zip")
    assert_same(again.dynamics.ensemble.to_arrays(), model.dynamics.ensemble.to_arrays())
    assert again._stored_arrays is None and len(again._retained.recipes) == 2
    file = io.BytesIO()
    again.save(file)
    file.seek(0)
    assert_same(MAPLE.load(file).dynamics.ensemble.to_arrays(), model.dynamics.ensemble.to_arrays())


def test_damaged_arrays_are_refused() -> None:
    arrays = {"a": np.arange(3.0), "b/c": np.zeros((2, 0), np.int64)}
    assert_same(read_npz(pack_npz(arrays)), arrays)
    ensemble = maple().learn_model().dynamics.ensemble
    for name, value in (
        ("elites", np.array([0, 7])),
        ("elites", np.zeros(2)),
        ("mean.weight", np.zeros((3, 4, 9), np.float32)),
        ("hidden.0.bias", np.zeros(3)),
    ):
        with pytest.raises(DamagedFileError, match="make no ensemble"):
            DynamicsEnsemble.from_arrays(ensemble.to_arrays() | {name: value})
    with pytest.raises(DamagedFileError, match="make no ensemble"):
        DynamicsEnsemble.from_arrays({})


def test_inspect_names_the_ensemble(tmp_path: Path) -> None:
    model = maple().learn(1)
    model.save(tmp_path / "model.zip")
    text = dict(summary_lines(read_summary(tmp_path / "model.zip")))["dynamics"]
    elites = ", ".join(map(str, model.dynamics.ensemble.elites.tolist()))
    assert text.startswith(f"3 nets, elites {elites}; holdout error ") and "of the variance unexplained" in text


# What is refused ----------------------------------------------------------------------------------------------------


def test_arguments() -> None:
    for name, value in (
        ("n_models", 0),
        ("model_arch", ()),
        ("penalty", "none"),
        ("real_ratio", 1.5),
        ("penalty_coef", -1.0),
        ("seed", -1),
    ):
        with pytest.raises(ValueError, match=f"MAPLE: {name} is "):
            maple(**{name: value})
    with pytest.raises(ValueError, match="n_elites is 4, expected at most n_models, which is 3"):
        maple(n_elites=4)


def test_data_without_episodes_are_refused() -> None:
    expected = maple().learn(1).get_parameters()
    for kind in (OfflineReplayBuffer, SequenceReplayBuffer):
        assert_same(maple(dataset=kind.from_transitions(DATA)).learn(1).get_parameters(), expected)
    buffer = OfflineReplayBuffer.from_transitions(DATA)
    buffer.episode_lengths = None
    with pytest.raises(DatasetError, match=r"cannot tell where its episodes end, .* pass what it was made from"):
        maple(dataset=buffer).learn(1)


def test_it_does_not_learn_online() -> None:
    with pytest.raises(
        ValueError, match=r"MAPLE learns from episodes that its model .* use an actor-critic algorithm, e.g. DMPO"
    ):
        maple(env=DriftEnv()).learn_online(1)
    assert DMPO.learns_online


def test_observations_can_be_scaled() -> None:
    model = maple(normalize_observations=True).learn(4)
    assert float(model.policy.observation_std.min()) != 1.0
    assert np.isfinite(model.predict(DATA.observations, deterministic=True)[0]).all()


def test_episodes_of_all_lengths() -> None:
    """Long ones go through the encoders in parts."""
    lengths = np.array([1, 150, 3, 64, 65, 2])
    n = int(lengths.sum())
    rng = np.random.default_rng(0)
    ends = np.zeros(n, bool)
    ends[np.cumsum(lengths) - 1] = True
    data = Transitions(
        observations=rng.normal(size=(n, 3)).astype(np.float32),
        next_observations=rng.normal(size=(n, 3)).astype(np.float32),
        actions=rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        rewards=rng.normal(size=n).astype(np.float32),
        terminations=ends,
        truncations=np.zeros(n, bool),
        episode_lengths=lengths,
        observation_space=DATA.observation_space,
        action_space=DATA.action_space,
        dataset_id=None,
        fingerprint="lengths",
    )
    model = maple(dataset=data).learn(1)
    encoder, begin = model.policy.policy_encoder, int(lengths[0])
    model._refresh_hidden(1)
    observations, actions = th.from_numpy(data.observations), th.from_numpy(data.actions)
    hidden = th.zeros(1, 8)
    for step in range(begin, begin + 150):
        assert th.allclose(model._hidden.policy[step], hidden[0], atol=1e-5), step
        last = actions[step - 1 : step] if step > begin else th.zeros(1, 2)
        with th.no_grad():
            hidden = encoder.step(observations[step : step + 1], last, hidden)
    assert bool((model._hidden.policy[th.from_numpy(np.cumsum(lengths)[:-1])] == 0).all())
    assert model._pieces.sizes.tolist()[:1] == [1] and len(model._pieces.firsts) == int((-(-lengths // 3)).sum())


@pytest.mark.slow
def test_hopper_in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Everything runs on a real task: the ensemble explains the data, most imagined episodes last, all numbers are finite. With
    ``MINARI_DATASETS_PATH`` where the dataset is.
    """
    minari = pytest.importorskip("minari")
    if OWN_DATASETS is not None:
        monkeypatch.setenv("MINARI_DATASETS_PATH", OWN_DATASETS)
    if "zoo/hopper/medium-v0" not in minari.list_local_datasets():
        pytest.skip("zoo/hopper/medium-v0 is not there")
    model = MAPLE(
        "MlpPolicy",
        dataset="zoo/hopper/medium-v0",
        **{"n_models": 5, "n_elites": 3, "model_arch": (64, 64, 64), "model_max_epochs": 3},
        **{"rollout_length": 5, "rollout_batch_size": 2_000, "rollout_interval": 250, "n_retained_rollouts": 4},
        **{"refresh_interval": 1_000, "gru_size": 32, "context_size": 8, "batch_size": 32, "real_ratio": 0.1},
        policy_kwargs={"net_arch": [64, 64]},
        seed=0,
        device="cpu",
    )
    keeper = LogKeeper()
    model.set_logger(Logger(None, [keeper]))
    model.learn(2_000, log_interval=500)
    ensemble = model.dynamics.ensemble
    assert bool((ensemble.output_errors < ensemble.output_variances).all())
    logs = [log for log in keeper.written if "rollout/valid_fraction" in log]
    assert len(logs) == 4 and all(log["rollout/valid_fraction"] > 0.5 for log in logs)
    # What the ensemble promises the policy, beside what the recorded behaviour got over as many steps
    assert all({"rollout/mean_return", "rollout/dataset_return"} <= set(log) for log in logs)
    assert all(np.isfinite(value) for log in keeper.written for value in log.values() if isinstance(value, float))
    errors = model.open_loop_errors()
    assert errors.observations[:, 0].mean() < errors.unchanged[0]
