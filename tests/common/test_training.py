"""What holds for training whatever the algorithm."""

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback

from sb3_dmpo import ALGOS, CQL, DMPO, IQL, LAPO, DiffusionQL, InfoDMPO, OfflineAlgorithm
from sb3_dmpo.common.arguments import argument_ranges
from sb3_dmpo.common.losses import effective_sample_size
from sb3_dmpo.common.metrics import MetricAverager
from sb3_dmpo.common.updates import denormals_flushed, error_quantiles
from sb3_dmpo.data import DatasetError
from sb3_dmpo.several_seeds.several_seeds import learn_together
from tests.toy_data import make_transitions


def test_noise_and_minibatches_have_streams_of_their_own() -> None:
    """Seeded alike, the two generators would give the same numbers to the noise and to the choice of transitions."""
    model = DMPO("MlpPolicy", dataset=make_transitions(), policy_kwargs={"net_arch": [8]}, seed=3, device="cpu").learn(1)
    noise, buffer = model._noise_generator, model.replay_buffer.generator
    assert noise.initial_seed() != buffer.initial_seed()
    first, second = (th.rand(1000, generator=th.Generator().manual_seed(g.initial_seed())) for g in (noise, buffer))
    assert abs(float(th.corrcoef(th.stack([first, second]))[0, 1])) < 0.1
    twin = DMPO("MlpPolicy", dataset=make_transitions(), policy_kwargs={"net_arch": [8]}, seed=3, device="cpu")
    assert twin._noise_generator.initial_seed() == noise.initial_seed()


def test_bellman_errors_are_those_of_the_critic_loss() -> None:
    for algorithm in (DMPO, IQL, CQL):
        model = algorithm("MlpPolicy", dataset=make_transitions(), policy_kwargs={"net_arch": [8]}, seed=0, device="cpu")
        model.learn(1)
        batch = model.sample_batch(50)
        errors = model.bellman_errors(batch)
        assert errors is not None and errors.shape == (2, 50, 1)
        if algorithm is CQL:
            actor = model.policy.actor
            loss = model.critic_loss(batch, actor(batch.observations), actor(batch.next_observations))[1]["critic_loss"]
        else:
            loss = model.critic_loss(batch)[1]["critic_loss"]
        assert th.allclose(errors.square().mean(dim=1).sum(), loss), algorithm
    assert list(error_quantiles(th.arange(101.0))) == [f"bellman_error_p{level:02d}" for level in (5, 25, 50, 75, 95)]
    assert [round(float(value), 3) for value in error_quantiles(th.arange(101.0)).values()] == [5, 25, 50, 75, 95]
    assert error_quantiles(None) == {}


@pytest.mark.parametrize("factor", [1.0, 1e-30, 1e-37, 1e30, 0.0])
def test_effective_sample_size_of_any_weights(factor: float) -> None:
    """Squares of small weights vanish, which is no reason to end a run."""
    found = float(effective_sample_size(factor * th.tensor([[1.0], [1.0], [2.0], [0.0]])))
    assert found == (pytest.approx(16 / (4 * 6)) if factor > 0 else 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 1.5}, "gamma is 1.5, expected a number from 0 to 1"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"batch_size": 0}, "batch_size is 0, expected a whole number of at least 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"batch_size": 10**7}, "batch_size is 10000000, expected a whole number of at least 1 and at most 1000000"),
        ({"policy_delay": 0}, "policy_delay is 0"),
        ({"n_components": 1}, "n_components is 1, expected a whole number of at least 2"),
        ({"learning_rate": -1e-3}, "learning_rate is -0.001"),
        ({"learning_rate": None}, "learning_rate is None, expected a number of at least 0 or a schedule"),
        ({"gumbel_temperature": 0}, "gumbel_temperature is 0"),
        ({"advantage_scale": float("inf")}, "advantage_scale is inf"),
        ({"value_bounds": (1.0, 0.0)}, "value_bounds is"),
        ({"value_bounds": 3}, "value_bounds is 3, expected two numbers"),
        ({"reward_scale": "unit"}, "reward_scale is 'unit', expected a finite number or one of 'return_range'"),
        ({"reward_scale": float("nan")}, "reward_scale is nan"),
        ({"reward_shift": "1"}, "reward_shift is '1'"),
        ({"normalize_observations": "yes"}, "normalize_observations is 'yes', expected True or False"),
        ({"advantage_weight": "clip"}, "advantage_weight is 'clip', expected 'normalized' or "),
        ({"target_gate": 1}, "target_gate is 1, expected 'online' or 'target'"),
        ({"latent_embedding": -1}, "latent_embedding is -1, expected 'observation' or 'none' or a whole number"),
        ({"policy_kwargs": [8]}, "policy_kwargs is .8., expected a dict"),
        ({"seed": -1}, "seed is -1, expected a whole number from 0"),
        ({"compile": "yes"}, "compile is 'yes'"),
        ({"gating_dtype": "float16"}, "gating_dtype is 'float16'"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"DMPO: {message}"):
        DMPO("MlpPolicy", dataset=make_transitions(), device="cpu", **arguments)


def test_missing_device() -> None:
    with pytest.raises(ValueError, match=r"device is 'cuda:99', but PyTorch finds \d+ CUDA devices"):
        DMPO("MlpPolicy", dataset=make_transitions(), device="cuda:99")


def test_other_algorithms_arguments() -> None:
    with pytest.raises(ValueError, match=r"IQL: expectile is 1\.0, expected a number between 0 and 1"):
        IQL("MlpPolicy", dataset=make_transitions(), device="cpu", expectile=1.0)
    with pytest.raises(ValueError, match="IQL: dropout is 'much', expected a number from 0 to 1"):
        IQL("MlpPolicy", dataset=make_transitions(), device="cpu", dropout="much")
    with pytest.raises(
        ValueError, match="LAPO: latent_size is -1, expected a whole number of at least 1 and at most 1000000, or None"
    ):
        LAPO("MlpPolicy", dataset=make_transitions(), device="cpu", latent_size=-1)
    with pytest.raises(ValueError, match="DiffusionQL: max_grad_norm is 0, expected a number above 0, or None"):
        DiffusionQL("MlpPolicy", dataset=make_transitions(), device="cpu", max_grad_norm=0)
    with pytest.raises(ValueError, match="InfoDMPO: info_learning_rate is -1"):
        InfoDMPO("MlpPolicy", dataset=make_transitions(), device="cpu", info_learning_rate=-1)


def test_ranges_are_those_of_the_algorithm_and_its_bases() -> None:
    own, of_dmpo, of_base = (set(cls.argument_ranges) for cls in (InfoDMPO, DMPO, OfflineAlgorithm))
    assert own == {"info_learning_rate"} and "n_components" in of_dmpo and "tau" in of_base
    assert set(argument_ranges(InfoDMPO)) == own | of_dmpo | of_base
    assert "expectile" not in argument_ranges(DMPO)


@pytest.mark.parametrize("name", ALGOS)
def test_constructors_have_one_idiom(name: str) -> None:
    parameters = list(inspect.signature(ALGOS[name].__init__).parameters.values())
    assert [parameter.name for parameter in parameters[:5]] == ["self", "policy", "env", "dataset", "learning_rate"]
    assert parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    assert not any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)


@pytest.mark.parametrize(("name", "near"), [("n_component", "n_components"), ("learningrate", "learning_rate")])
def test_unknown_argument_names_the_near_ones(name: str, near: str) -> None:
    with pytest.raises(TypeError, match=f"DMPO\\(\\) has no argument '{name}'. Did you mean {near}"):
        DMPO("MlpPolicy", dataset=make_transitions(), device="cpu", **{name: 1})


def test_run_goes_on_with_its_own_data_only(tmp_path: Path) -> None:
    data, other = make_transitions(), make_transitions(n_episodes=12)
    model = DMPO("MlpPolicy", dataset=data, policy_kwargs={"net_arch": [8]}, seed=3, device="cpu").learn(2)
    model.save(tmp_path / "model")
    DMPO.load(tmp_path / "model", dataset=data).learn(1, reset_num_timesteps=False)
    changed = DMPO.load(tmp_path / "model", dataset=other)
    with pytest.raises(DatasetError, match=r"has changed since this run began .*reset_num_timesteps=True"):
        changed.learn(1, reset_num_timesteps=False)
    changed.learn(1)
    # Asked for by name, another dataset is taken within a run too.
    model.set_dataset(other)
    assert model.learn(1, reset_num_timesteps=False).num_timesteps == 3


def small_dmpo() -> DMPO:
    return DMPO("MlpPolicy", dataset=make_transitions(), policy_kwargs={"net_arch": [8]}, seed=3, device="cpu")


def test_loss_that_is_not_finite_names_term_update_and_the_last_good_file(tmp_path: Path) -> None:
    class Diverging(DMPO):
        def update(self, batch: Any) -> Any:
            metrics = super().update(batch)
            return metrics | {"kl": th.tensor(float("nan"))} if self._n_updates == 5 else metrics

    model = Diverging("MlpPolicy", dataset=make_transitions(), policy_kwargs={"net_arch": [8]}, seed=3, device="cpu")
    path = tmp_path / "model.zip"
    model.learn(4)
    model.save(path)
    before = path.read_bytes()
    with pytest.raises(FloatingPointError, match=r"kl is nan at update 5: .* The last good state is .*model\.zip"):
        model.learn(10, reset_num_timesteps=False, callback=CheckpointCallback(7, str(tmp_path)))
    # The checkpoint is due before the log: it has found out, and has left no file.
    assert not list(tmp_path.glob("rl_model*")) and path.read_bytes() == before


@pytest.mark.parametrize("what", ["weight", "optimizer"])
def test_weight_that_is_not_finite_is_never_saved(tmp_path: Path, what: str) -> None:
    model = small_dmpo().learn(3)
    model.save(tmp_path / "model")
    before = (tmp_path / "model.zip").read_bytes()
    with th.no_grad():
        if what == "weight":
            next(iter(model.policy.parameters()))[0] = float("inf")
        else:
            optimizer, _, parameters = model._optimizers["actor"]
            optimizer.state[parameters[0]]["exp_avg"][0] = float("nan")
    name = next(iter(model.policy.named_parameters()))[0] if what == "weight" else "actor_optimizer's exp_avg 0"
    for act in (lambda: model.save(tmp_path / "model"), model.dump_logs):
        with pytest.raises(FloatingPointError, match=f"{name} holds (inf|nan) after update 3: .*model.zip"):
            act()
    assert (tmp_path / "model.zip").read_bytes() == before


def test_metrics_are_averaged_and_checked_in_blocks() -> None:
    averager = MetricAverager(capacity=4)
    for update in range(1, 11):
        metrics = {"a": th.tensor(float(update))} | ({"b": th.tensor(2.0 * update)} if update % 2 == 0 else {})
        averager.append(metrics, update)
    assert averager.means() == {"a": 5.5, "b": 12.0}
    averager.clear()
    assert averager.means() == {}
    averager.append({"a": th.tensor(1.0)}, 11)
    assert averager.means() == {"a": 1.0}
    for update, value in ((12, float("inf")), (13, float("nan")), (14, 1.0)):
        averager.append({"a": th.tensor(value)}, update)
    with pytest.raises(FloatingPointError, match="a is inf at update 12"):
        averager.append({"a": th.tensor(1.0)}, 15)


def test_metrics_in_double_precision() -> None:
    averager = MetricAverager()
    for update in range(1, 4):
        averager.append({"a": th.tensor(1.0 + 1e-12 * update, dtype=th.float64)}, update)
    assert averager.means()["a"] == pytest.approx(1.0 + 2e-12, abs=1e-15)


def test_first_bad_metric_is_named_whatever_it_came_with() -> None:
    averager = MetricAverager()
    for update in range(1, 6):
        delayed = {"late": th.tensor(float("nan"))} if update == 2 else {}
        averager.append({"always": th.tensor(float("-inf") if update >= 3 else 0.0)} | delayed, update)
    with pytest.raises(FloatingPointError, match="late is nan at update 2"):
        averager.means()


def flushes_denormals() -> bool:
    return sys.float_info.min / 2 == 0.0


class FlushingDMPO(DMPO):
    """Notes whether its updates flush denormal numbers."""

    def update(self, batch: Any) -> Any:
        self.flushed = flushes_denormals()
        return super().update(batch)


@pytest.mark.skipif(not th.set_flush_denormal(False), reason="this processor cannot flush denormal numbers")
def test_denormal_numbers_are_flushed_in_updates_alone() -> None:
    """CQL's gradients get denormal where the values of actions are far apart; its updates then took three times as long."""
    settings: dict[str, Any] = {"dataset": make_transitions(), "policy_kwargs": {"net_arch": [8]}, "device": "cpu"}
    noted = []

    class Note(BaseCallback):
        def _on_step(self) -> bool:
            noted.append(flushes_denormals())
            return True

    model = FlushingDMPO("MlpPolicy", **settings).learn(2, callback=Note())
    assert model.flushed and noted == [False, False] and not flushes_denormals()
    together = [FlushingDMPO("MlpPolicy", seed=seed, **settings) for seed in (0, 1)]
    learn_together(together, 2)
    assert together[0].flushed and not flushes_denormals()


@pytest.mark.skipif(not th.set_flush_denormal(False), reason="this processor cannot flush denormal numbers")
def test_flushing_that_the_user_has_switched_on_stays_on() -> None:
    th.set_flush_denormal(True)
    try:
        DMPO("MlpPolicy", dataset=make_transitions(), policy_kwargs={"net_arch": [8]}, device="cpu").learn(1)
        assert flushes_denormals()
        with pytest.raises(RuntimeError, match="in the middle"), denormals_flushed():
            raise RuntimeError("in the middle")
        assert flushes_denormals()
    finally:
        th.set_flush_denormal(False)
    with pytest.raises(RuntimeError, match="in the middle"), denormals_flushed():
        assert flushes_denormals()
        raise RuntimeError("in the middle")
    assert not flushes_denormals()
