"""Several seeds at once: every model ends as on its own, and one that stops or fails leaves the others alone."""

import csv
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch as th
import yaml
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.logger import Logger

from sb3_dmpo import ALGOS, BC, OfflineAlgorithm
from sb3_dmpo.common import compilation
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.policies import DeterministicPolicy
from sb3_dmpo.common.type_aliases import Metrics, OfflineBatch
from sb3_dmpo.data import Transitions
from sb3_dmpo.several_seeds.several_seeds import DivergedSeedsError, _Stack, learn_together
from tests.common.test_compilation import NoSynchronisation
from tests.contract import DATA, Counter, LogKeeper, assert_same, make, vec_env
from tests.doors import train
from tests.toy_data import make_transitions

#: Together they have delayed updates, several optimizers, operations of the package's own and a schedule.
QUICK = ("bc", "td3_bc")


def models(name: str, n: int = 3, **arguments: Any) -> list[OfflineAlgorithm]:
    return [make(name, dataset=DATA, seed=seed, **arguments) for seed in range(n)]


def assert_close(first: OfflineAlgorithm, second: OfflineAlgorithm) -> None:
    """Weights, states of the optimizers, counters and generators."""
    for (name, a), b in zip(first.policy.state_dict().items(), second.policy.state_dict().values(), strict=True):
        th.testing.assert_close(a, b, atol=2e-5, rtol=1e-4, msg=lambda message, name=name: f"{name}: {message}")
    for name, (optimizer, _, parameters) in first._optimizers.items():
        other = second._optimizers[name]
        assert optimizer.param_groups[0]["lr"] == other[0].param_groups[0]["lr"]
        for mine, yours in zip(parameters, other[2], strict=True):
            assert set(optimizer.state[mine]) == set(other[0].state[yours])
            for key, value in optimizer.state[mine].items():
                th.testing.assert_close(value, other[0].state[yours][key], atol=2e-5, rtol=1e-3)
    assert (first.num_timesteps, first._n_updates) == (second.num_timesteps, second._n_updates)
    assert th.equal(first._noise_generator.get_state(), second._noise_generator.get_state())
    assert th.equal(first.replay_buffer.generator.get_state(), second.replay_buffer.generator.get_state())


def falling(progress: float) -> float:
    return 1e-3 * progress


def assert_as_alone(name: str, n_updates: int, **arguments: Any) -> None:
    together = models(name, **arguments)
    learn_together(together, n_updates)
    for model, alone in zip(together, models(name, **arguments), strict=True):
        assert_close(model, alone.learn(n_updates))
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in model.policy.parameters())
    first, second = (model.policy.state_dict() for model in together[:2])
    assert any(not th.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", QUICK)
def test_every_seed_ends_as_on_its_own(name: str) -> None:
    assert_as_alone(name, 40, learning_rate=falling)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALGOS if name not in QUICK and ALGOS[name].can_learn_together])
def test_every_seed_of_the_other_algorithms_ends_as_on_its_own(name: str) -> None:
    assert_as_alone(name, 24)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("dmpo", {"value_targets": True}),
        ("dmpo", {"gating_dtype": "bfloat16", "policy_kwargs": {"net_arch": [32, 32]}}),
        ("dmpo", {"latent_embedding": "none"}),
        ("infodmpo", {"published_code": True}),
        ("diffusion_ql", {"max_q_backup": True}),
        ("decision_transformer", {"dropout": 0.0}),
        ("td3_bc", {"policy_kwargs": {"net_arch": [16], "optimizer_class": th.optim.AdamW}}),
        ("td3_bc", {"policy_kwargs": {"net_arch": [16], "optimizer_kwargs": {"fused": False}}}),
    ],
)
def test_every_variant_ends_as_on_its_own(name: str, arguments: dict[str, Any]) -> None:
    assert_as_alone(name, 8, **arguments)


def test_the_data_are_held_once() -> None:
    together = models("bc")
    learn_together(together, 2)
    buffers = [model.replay_buffer for model in together]
    assert len({buffer.observations.data_ptr() for buffer in buffers}) == 1
    assert len({id(buffer.generator) for buffer in buffers}) == 3


def test_a_buffer_that_was_passed_gives_each_the_draws_it_would_give_alone() -> None:
    def with_buffer() -> list[OfflineAlgorithm]:
        buffer = OfflineReplayBuffer.from_transitions(DATA, device="cpu", seed=5)
        return [make("bc", dataset=buffer, seed=seed) for seed in range(2)]

    together = with_buffer()
    learn_together(together, 4)
    for i, model in enumerate(together):
        assert_close(model, with_buffer()[i].learn(4))


def test_a_twin_of_a_buffer_cannot_change_it() -> None:
    buffer = OfflineReplayBuffer.from_transitions(DATA, device="cpu", seed=0, extra_capacity=4)
    twin = buffer.twin(seed=0)
    assert_same(list(twin.sample(8)[:5]), list(buffer.sample(8)[:5]))
    twin.reserve(2)
    one = np.ones((1, DATA.observations.shape[1]), np.float32)
    twin.add(one, one, np.zeros((1, 2), np.float32), np.ones(1), np.zeros(1), [{}])
    assert (twin.n_added, buffer.n_added, buffer.size()) == (1, 0, buffer.n_offline)
    assert twin.observations.data_ptr() != buffer.observations.data_ptr()


def test_zips_within_the_run_are_those_of_single_runs(tmp_path: Path) -> None:
    """They hold one model each, and go on as usual."""
    together = models("bc", 2)
    learn_together(together, 4, [CheckpointCallback(2, str(tmp_path / str(model.seed))) for model in together])
    for model, alone in zip(together, models("bc", 2), strict=True):
        alone.learn(4, callback=CheckpointCallback(2, str(tmp_path / "alone")))
        path = tmp_path / str(model.seed) / "rl_model_2_steps.zip"
        assert path.stat().st_size == pytest.approx((tmp_path / "alone" / path.name).stat().st_size, rel=0.01)
        half = ALGOS["bc"].load(path, dataset=DATA)
        assert (half.num_timesteps, half.seed) == (2, model.seed)
        assert_close(half.learn(2, reset_num_timesteps=False), alone)


def test_a_run_goes_on(tmp_path: Path) -> None:
    together = models("bc", 2)
    learn_together(together, 3)
    for model in together:
        model.save(tmp_path / str(model.seed))
    loaded = [ALGOS["bc"].load(tmp_path / str(seed), dataset=DATA) for seed in range(2)]
    for halves in (together, loaded):
        learn_together(halves, 3, reset_num_timesteps=False)
        for model, alone in zip(halves, models("bc", 2), strict=True):
            assert_close(model, alone.learn(6))


def test_logs_and_callbacks_are_those_of_single_runs() -> None:
    def keepers(members: list[OfflineAlgorithm]) -> list[LogKeeper]:
        found = [LogKeeper() for _ in members]
        for model, keeper in zip(members, found, strict=True):
            model.set_logger(Logger(None, [keeper]))
        return found

    together, alone = models("td3_bc", 2), models("td3_bc", 2)
    logs, expected = keepers(together), keepers(alone)
    counters = [Counter(), None]
    learn_together(together, 6, counters, log_interval=2)
    assert counters[0].n_calls == 6 and counters[0].locals["self"] is together[0]
    for model in alone:
        model.learn(6, log_interval=2)
    for found, wanted in zip(logs, expected, strict=True):
        for a, b in zip(found.written, wanted.written, strict=True):
            assert set(a) == set(b)
            for key in b:
                assert key.startswith("time/") or a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), key


def test_a_model_that_a_callback_stops_leaves() -> None:
    together, alone = models("bc"), models("bc")
    learn_together(together, 6, [None, Counter(stop_after=3), None])
    alone[1].learn(6, callback=Counter(stop_after=3))
    for i in (0, 2):
        alone[i].learn(6)
    assert together[1].num_timesteps == 3
    for model, other in zip(together, alone, strict=True):
        assert_close(model, other)


class Poison(BaseCallback):
    """Makes a weight infinite."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 3:
            with th.no_grad():
                next(self.model.policy.actor.parameters()).view(-1)[0] = np.inf
        return True


@pytest.mark.parametrize("log_interval", [4, None])
def test_a_model_that_diverges_is_named_and_the_others_go_on(log_interval: int | None) -> None:
    together = models("bc")
    with pytest.raises(DivergedSeedsError, match=r"Seed 1: .* at update 4: training has diverged") as caught:
        learn_together(together, 6, [None, Poison(), None], log_interval=log_interval)
    assert caught.value.models == [together[1]]
    for i, alone in enumerate(models("bc")):
        if i != 1:
            assert_close(together[i], alone.learn(6))


class NewParameters(BaseCallback):
    """Replaces the states of the optimizers, and the weights, by equal ones."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 3:
            self.model.set_parameters(self.model.get_parameters())
        return True


def test_parameters_may_be_set_on_the_way() -> None:
    together = models("bc", 2)
    learn_together(together, 6, [NewParameters(), None])
    for model, alone in zip(together, models("bc", 2), strict=True):
        assert_close(model, alone.learn(6))


def test_the_update_does_not_wait_for_the_device() -> None:
    together = models("td3_bc", 2)
    learn_together(together, 1)
    stack = _Stack(together, is_compiled=False)
    for _ in range(2):
        stack.update()
    with NoSynchronisation():
        for _ in range(2):
            stack.update()
    stack.release()


def test_compiled_runs_are_compiled_and_resumed_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    graphs = []
    monkeypatch.setattr(th, "compile", lambda graph, **options: graphs.append(graph) or graph)
    together = models("td3_bc", 2, compile=True)
    learn_together(together, 4)
    assert len(graphs) == 2  # with and without the delayed part, not one for every model
    together[1].save(tmp_path / "model")
    resumed = ALGOS["td3_bc"].load(tmp_path / "model", dataset=DATA).learn(2, reset_num_timesteps=False)
    assert resumed._compiled.is_on
    assert_close(resumed, make("td3_bc", dataset=DATA, seed=1, compile=False).learn(6))


def test_failing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for one model: with ``compile="auto"`` the runs go on without compiled updates, and say so once."""

    def fail(*inputs: th.Tensor) -> None:
        raise th._dynamo.exc.TorchDynamoException("the compiler broke")

    monkeypatch.setattr(th, "compile", lambda graph, **options: fail)
    monkeypatch.setattr(compilation, "AUTO_UPDATES", 4)
    together = models("td3_bc", 2, compile="auto")
    with pytest.warns(UserWarning, match=r"Compiling has failed \(the compiler broke\)") as warned:
        learn_together(together, 4)
    assert len(warned) == 1 and not any(model._is_compiled for model in together)
    for model, alone in zip(together, models("td3_bc", 2, compile=False), strict=True):
        assert_close(model, alone.learn(4))
    with pytest.raises(th._dynamo.exc.TorchDynamoException, match="the compiler broke"):
        learn_together(models("td3_bc", 2, compile=True), 4)


def test_training_that_does_more_than_updates() -> None:
    with pytest.raises(ValueError, match=r"Several seeds of MAPLE cannot learn at once: .* Train one after the other"):
        learn_together(models("maple", 2), 1)


@pytest.mark.slow
def test_compiled_code() -> None:
    assert_as_alone("dmpo", 4, compile=True)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"gamma": 0.9}, "gamma is 0.99 in number 0 and 0.9 in number 1"),
        ({"learning_rate": 1e-2}, "learning rate of actor"),
        ({"policy_kwargs": {"net_arch": [8]}}, "policy_kwargs"),
        ({"dataset": make_transitions(n_episodes=3), "reward_scale": 2.0}, "reward_scale"),
    ],
)
def test_models_differ_by_their_seeds_alone(second: dict[str, Any], message: str) -> None:
    others = make("bc", dataset=DATA), make("bc", **{"dataset": DATA, "seed": 1, **second})
    with pytest.raises(ValueError, match=message):
        learn_together(others, 1)
    assert all(model._n_updates == 0 for model in others)


def test_what_cannot_learn_together() -> None:
    model = make("bc", dataset=DATA)
    for group, message in (([], "given 0"), ([model, model], "each of them once")):
        with pytest.raises(ValueError, match=message):
            learn_together(group, 1)
    with pytest.raises(ValueError, match="of one class"):
        learn_together([model, make("td3_bc", dataset=DATA)], 1)
    with pytest.raises(ValueError, match="1 models and 2 callbacks"):
        learn_together([model], 1, [None, None])
    with pytest.raises(ValueError, match="number of updates done is 1 in number 0 and 0"):
        learn_together([make("bc", dataset=DATA).learn(1), model], 1)
    other_optimizer = {"net_arch": [8], "optimizer_class": th.optim.SGD}
    with pytest.raises(ValueError, match="Several seeds of BC cannot learn at once: only plain Adam"):
        learn_together([make("bc", dataset=DATA, policy_kwargs=other_optimizer)], 1)


class CountingPolicy(DeterministicPolicy):
    """Has a buffer that the updates change, as those of mixtures do."""

    learned_buffers: ClassVar[tuple[str, ...]] = ("n_seen",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("n_seen", th.zeros(()))


class CountingBC(BC):
    """Adds up the actions that it has seen."""

    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": CountingPolicy}

    def update(self, batch: OfflineBatch) -> Metrics:
        self.policy.n_seen.add_(batch.actions.sum())
        return super().update(batch)


def test_buffers_that_updates_change_are_each_models_own() -> None:
    """At the start they are equal, which those with the statistics of the data stay."""

    def seeds() -> list[CountingBC]:
        return [CountingBC("MlpPolicy", dataset=DATA, seed=seed, batch_size=16, device="cpu") for seed in range(2)]

    together = seeds()
    learn_together(together, 4)
    for model, alone in zip(together, seeds(), strict=True):
        assert_close(model, alone.learn(4))
    assert together[0].policy.n_seen != together[1].policy.n_seen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_timesteps": -5}, "BC: total_timesteps is -5, expected a number of at least 0"),
        ({"total_timesteps": "a"}, "BC: total_timesteps is 'a'"),
        ({"log_interval": 0}, "BC: log_interval is 0"),
        ({"log_interval": -1}, "BC: log_interval is -1"),
        ({"gamma": 5}, "BC: gamma is 5, expected a number from 0 to 1"),
        ({"ema_decay": 0.5}, "BC: ema_decay was None when its networks were made, and is 0.5 now"),
    ],
)
def test_arguments_are_checked_as_by_learn(change: dict[str, Any], message: str) -> None:
    together = models("bc", 2)
    (name, value), arguments = *change.items(), {"total_timesteps": 2}
    if name in ("total_timesteps", "log_interval"):
        arguments[name] = value
    else:
        for model in together:
            setattr(model, name, value)
    for train_all in (partial(learn_together, together), together[0].learn):
        with pytest.raises(ValueError, match=message):
            train_all(**arguments)
    assert all(model._n_updates == 0 for model in together)


def test_models_and_callbacks_from_anything_that_gives_them_one_by_one() -> None:
    together = models("bc", 2)
    learn_together(iter(together), 2e0, (Counter(stop_after=n) for n in (1, 2)))
    assert [model.num_timesteps for model in together] == [1, 2]


def test_models_and_callbacks_that_are_none() -> None:
    together = models("bc", 2)
    for group, callbacks, message in (
        (together[0], None, "models is a BC, expected a list"),
        (["bc", "bc"], None, "number 0 is a str"),
        (together, Counter(), "callbacks is a Counter, expected a list"),
        (together, lambda *_: True, "callbacks is a function, expected a list"),
    ):
        with pytest.raises(TypeError, match=f"learn_together.* {message}"):
            learn_together(group, 2, callbacks)


def test_a_callback_belongs_to_one_model() -> None:
    together, callback, several = models("bc", 2), Counter(), [Counter(), Counter()]
    for shared in ([callback, callback], [several, several]):
        with pytest.raises(ValueError, match="A callback belongs to one model"):
            learn_together(together, 2, shared)
    seen = []

    def note(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        seen.append(variables["self"].seed)
        return True

    # A function has no state that would be one model's.
    learn_together(together, 2, [note, note])
    assert seen == [0, 1, 0, 1]


def test_value_bounds_of_other_data_are_refused() -> None:
    """A recorded update has the bounds of one of them."""
    others = Transitions(**vars(DATA) | {"rewards": 100.0 * DATA.rewards, "fingerprint": "larger"})
    for options in ({"name": "lapo", "reward_scale": 1.0}, {"name": "dmpo", "value_targets": True}):
        together = [make(**options, dataset=data, seed=seed) for seed, data in enumerate((DATA, others))]
        with pytest.raises(ValueError, match=r"differ by their seeds alone: target_bounds is "):
            learn_together(together, 2)
        assert [model._n_updates for model in together] == [0, 0]


class NewRate(BaseCallback):
    """Assigns a learning rate after the third update."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 3:
            self.model.learning_rate = 1e-2
        return True


def test_a_learning_rate_that_is_assigned_counts_for_all_or_is_refused() -> None:
    """One tensor holds the rates of all models."""
    alone = make("bc", dataset=DATA).learn(6, callback=NewRate())
    together = models("bc", 2)
    learn_together(together, 6, [NewRate(), NewRate()])
    assert_close(together[0], alone)
    for callbacks in ([NewRate(), None], [None, NewRate()]):
        with pytest.raises(ValueError, match=r"the same learning rates: that of actor is .* in number 0 and .* in number 1"):
            learn_together(together := models("bc", 2), 6, callbacks)
        assert [model._n_updates for model in together] == [3, 3]


def test_after_learning_online_they_end_as_on_their_own() -> None:
    """Whatever the share of collected transitions was in a minibatch there, now they are drawn like the others."""

    def fine_tuned() -> list[OfflineAlgorithm]:
        tuned = models("td3_bc", 2)
        for model in tuned:
            model.learn(2)
            env = vec_env()
            env.seed(model.seed)
            model.set_env(env)
            model.learn_online(20, learning_starts=4, online_ratio=0.75)
        return tuned

    together = fine_tuned()
    learn_together(together, 4)
    for model, alone in zip(together, fine_tuned(), strict=True):
        assert model.replay_buffer.online_ratio is None and model.replay_buffer.n_added == 20
        assert_close(model, alone.learn(4))


# Command line ---------------------------------------------------------------------------------------------------

Outcome = tuple[int, str, str]
RUN = ["--algo", "bc", "-n", "6", "--eval-episodes", "2", "--eval-freq", "3", "--save-freq", "4", "--results", "r.csv"]
TINY = ["-params", "policy_kwargs:dict(net_arch=[8])", "batch_size:16"]


def test_seeds_on_the_command_line_leave_what_their_own_runs_would(call: Callable[..., Outcome], tmp_path: Path) -> None:
    pytest.importorskip("rl_zoo3")
    code, out, err = call(train, *RUN, "--seeds", "0,2", *TINY)
    assert code == 0, err
    assert "Seed 2: Evaluation after 3 updates" in out and out.count("Score:") == 2
    assert call(train, *RUN, "--seed", "2", *TINY)[0] == 0
    runs = [tmp_path / "logs" / "bc" / f"TwoGoals-v0_{i}" for i in (1, 2, 3)]
    whole = ALGOS["bc"].load(runs[0] / "TwoGoals-v0.zip")
    (runs[0] / "TwoGoals-v0.zip").unlink()
    assert call(train, *RUN[:-2], "--seed", "0", *TINY, "--resume")[0] == 0
    resumed = ALGOS["bc"].load(runs[0] / "TwoGoals-v0.zip")
    for key, value in resumed.policy.state_dict().items():
        th.testing.assert_close(value, whole.policy.state_dict()[key], atol=2e-5, rtol=1e-4)
    names = [sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in runs]
    assert names[0] == names[1] == names[2] and "rl_model_4_steps.zip" in names[0]
    mine, single = (ALGOS["bc"].load(run / "TwoGoals-v0.zip") for run in runs[1:])
    assert mine.seed == single.seed == 2 and mine.last_evaluation == single.last_evaluation
    for key, value in mine.policy.state_dict().items():
        th.testing.assert_close(value, single.policy.state_dict()[key], atol=2e-5, rtol=1e-4)
    options = [yaml.safe_load((run / "TwoGoals-v0" / "args.yml").read_text()) for run in runs]
    assert [found["seed"] for found in options] == [0, 2, 2]
    with open(tmp_path / "r.csv", newline="") as file:
        rows = [(row["seed"], row["updates"], row["evaluation"], row["score"]) for row in csv.DictReader(file)]
    assert [row[:3] for row in rows[:4]] == [
        ("0", "3", "training"),
        ("2", "3", "training"),
        ("0", "6", "final"),
        ("2", "6", "final"),
    ]
    assert [row for row in rows[:4] if row[0] == "2"] == rows[4:]


class InterruptOfSeedOne(BaseCallback):
    """Presses Ctrl-C after the third update of seed 1, when seed 0 has been asked already."""

    def _on_step(self) -> bool:
        if self.model.seed == 1 and self.num_timesteps == 3:
            signal.raise_signal(signal.SIGINT)
        return True


def test_ctrl_c_ends_all_seeds_after_the_same_update(call: Callable[..., Outcome], tmp_path: Path) -> None:
    pytest.importorskip("rl_zoo3")
    callback = "callback:tests.algorithms.test_several_seeds.InterruptOfSeedOne"
    code, out, err = call(train, "--algo", "bc", "-n", "9", "--seeds", "0-2", *TINY, callback)
    assert code == 130 and err.splitlines()[-1] == "sb3_dmpo train: interrupted"
    zips = sorted((tmp_path / "logs" / "bc").glob("*/TwoGoals-v0.zip"))
    assert [ALGOS["bc"].load(path).num_timesteps for path in zips] == [4, 4, 4]
    assert out.count("Saving to") == 3 and "Score:" not in out


class PoisonOfSeedOne(Poison):
    """Makes a weight of seed 1 infinite."""

    def _on_step(self) -> bool:
        return self.model.seed != 1 or super()._on_step()


def test_a_seed_that_diverges_costs_its_own_zip_only(call: Callable[..., Outcome], tmp_path: Path) -> None:
    pytest.importorskip("rl_zoo3")
    callback = "callback:tests.algorithms.test_several_seeds.PoisonOfSeedOne"
    arguments = ["--algo", "bc", "-n", "6", "--eval-freq", "-1", "--save-freq", "2", "--seeds", "0", "1", *TINY, callback]
    code, _, err = call(train, *arguments)
    assert code == 1
    error = "sb3_dmpo train: error: Seed 1: actor.mu.0.weight holds inf after update 4: training has diverged."
    last = "The last good state is logs/bc/TwoGoals-v0_2/rl_model_2_steps.zip."
    assert err.strip().splitlines()[-1].startswith(error) and last in err
    found = [path.parent.name for path in (tmp_path / "logs" / "bc").glob("*/TwoGoals-v0.zip")]
    assert found == ["TwoGoals-v0_1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "0-x"], ["0-x", "0-4 7"]),
        (["--seeds", "4-0"], ["4-0"]),
        (["--seeds", "0,,1"], ["--seeds"]),
        (["--seeds", "0-4", "--seed", "1"], ["--seed", "--seeds", "choose one"]),
        (["--seeds", "0-4", "--resume"], ["--resume", "--seed N --resume"]),
        (["--seeds", "0-4", "--finetune", "5"], ["--finetune"]),
        (["--seeds", "0-4", "-i", "model.zip"], ["-i"]),
        (["--seeds", "0-4", "-optimize"], ["-optimize"]),
        (["--seeds", "0-4", "--track"], ["--track"]),
        (["--seeds", "0-1", "-params", "policy_kwargs:dict(optimizer_class=optim.SGD)"], ["only plain Adam", "SGD"]),
    ],
)
def test_faults_are_one_line_and_leave_nothing(
    call: Callable[..., Outcome], tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    pytest.importorskip("rl_zoo3")
    code, _, err = call(train, *arguments)
    lines = err.strip().splitlines()
    assert code == 2 and len(lines) == 1, err
    assert all(word in lines[0] for word in words), err
    assert not list(tmp_path.rglob("*_1"))
