"""Several processes that train one model."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_dmpo import OfflineAlgorithm
from sb3_dmpo.common import ranks
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.losses import advantage_weights
from sb3_dmpo.data import Transitions, load_transitions
from sb3_dmpo.data import cache as dataset_cache
from sb3_dmpo.decision_transformer.buffers import SequenceReplayBuffer
from sb3_dmpo.maple.dynamics import EnsembleTraining
from sb3_dmpo.several_seeds.several_seeds import check_together
from tests.common.rank_programs import BATCH, CASES, UPDATES, made, state_of
from tests.contract import assert_same, make
from tests.dataset_helpers import make_dataset
from tests.toy_data import EPISODE_LENGTH, make_transitions

WORLD = 2
ROOT = Path(__file__).parents[2]


def start(program: str, folder: Path, *arguments: str, **environment: str) -> list[subprocess.Popen[str]]:
    """Start a program in as many processes as there are to be, with what ``torchrun`` would tell them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(WORLD)}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "tests.common.rank_programs", program, str(folder), *arguments]
    return [
        subprocess.Popen(command, env=common | {"RANK": str(rank)}, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in range(WORLD)
    ]


def ended(processes: Sequence[subprocess.Popen[str]], timeout: float = 900.0) -> list[tuple[int, str]]:
    """Exit codes and what was said on stderr."""
    try:
        said = [process.communicate(timeout=timeout)[1] for process in processes]
        return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]
    finally:
        for process in processes:
            process.kill()


def results(program: str, folder: Path, *arguments: str, **environment: str) -> list[Any]:
    """What the processes of a program have found."""
    for code, said in ended(start(program, folder, *arguments, **environment)):
        assert code == 0, said
    return [th.load(folder / f"{program}-{rank}.pt", weights_only=False) for rank in range(WORLD)]


def in_own_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Datasets are written there, and what has just been written may go into the cache."""
    monkeypatch.setenv(dataset_cache.CACHE_VARIABLE, str(folder / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
    monkeypatch.setattr(dataset_cache, "SETTLE_SECONDS", -1e9)


# One process: nothing is there, nothing changes ----------------------------------------------------------------------


def test_with_one_process_everything_is_what_it_was() -> None:
    own = th.ones(3)
    assert all(reduce(own) is own for reduce in (ranks.mean, ranks.total, ranks.max, ranks.min, ranks.first))
    gradients = [own]
    assert ranks.mean_gradients(gradients) is gradients
    assert (ranks.rank(), ranks.world(), ranks.is_joined(), ranks.share(7)) == (0, 1, False, 7)
    assert ranks.object_of_first("a") == "a" and ranks.process_path() == () and ranks.mean_numbers({"a": 1.0}) == {"a": 1.0}
    with ranks.joined(), ranks.first_alone():
        assert not ranks.is_joined()
    ranks.check_divisible("batch_size", 7)
    consent = ranks.Consent()
    assert consent.goes_on(True) and not consent.goes_on(False)


class Fake:
    """A group of two processes of which the other one has what a test says."""

    def __init__(self, others: Sequence[float]) -> None:
        self.rank, self.world, self._others = 0, 2, list(others)

    def meet(self) -> None:
        """Nobody is waited for."""

    def reduced(self, own: th.Tensor, how: str) -> th.Tensor:
        if not self._others:
            return own
        other = th.as_tensor(self._others.pop(0), dtype=own.dtype)
        return {"sum": th.add, "max": th.maximum, "min": th.minimum}[how](own, other)


def test_weights_are_those_of_the_joined_minibatch(monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = th.tensor([[1.0], [2.0]]), th.tensor([[-3.0], [5.0]])
    joined = advantage_weights(th.cat([own, other]), 10.0)
    shifted = (10.0 * (other - 5.0) / 8.0).exp().mean()
    monkeypatch.setattr(ranks._Group, "current", Fake([5.0, -3.0, float(shifted)]))
    assert th.allclose(advantage_weights(own, 10.0), joined[:2])


def test_all_end_when_one_wants_to(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Fake([])
    monkeypatch.setattr(group, "reduced", lambda own, how: own)
    monkeypatch.setattr(ranks._Group, "current", group)
    consent = ranks.Consent()
    assert consent.goes_on(True)
    assert not all(consent.goes_on(False) for _ in range(100_000))


def first_rows(n: int) -> Transitions:
    """Data of n transitions, the last of which is cut as by a time limit if its episode goes on."""
    data = make_transitions(-(-n // EPISODE_LENGTH))
    names = ("observations", "next_observations", "actions", "rewards", "terminations", "truncations")
    arrays = {name: getattr(data, name)[:n].copy() for name in names}
    arrays["truncations"][-1] = not arrays["terminations"][-1]
    lengths = np.diff([*range(0, n, EPISODE_LENGTH), n])
    return replace(data, **arrays, episode_lengths=lengths)


@pytest.mark.parametrize(("n", "world"), [(80, 2), (80, 3), (7, 4)])
def test_parts_are_the_whole(n: int, world: int) -> None:
    model = make("bc", dataset=first_rows(n))
    model._setup_dataset()
    whole = model.replay_buffer
    parts = [whole.part(number, world) for number in range(world)]
    for name in ("observations", "next_observations", "actions", "rewards", "dones"):
        assert th.equal(th.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert {part.n_whole for part in parts} == {n} and {part.n_offline for part in parts} <= {n // world, -(-n // world)}
    assert all(sum(part.episode_lengths) == part.n_offline for part in parts)
    assert all(th.equal(part.observation_mean, whole.observation_mean) for part in parts)
    assert {part.min_reward for part in parts} == {whole.min_reward}


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("buffer_class", [OfflineReplayBuffer, SequenceReplayBuffer])
def test_parts_of_a_file(
    buffer_class: type[OfflineReplayBuffer], memory_map: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the part is in memory or on disk: what is drawn is what the whole has there, also where an episode is cut."""
    in_own_cache(tmp_path, monkeypatch)
    settings: dict[str, Any] = {"reward_scale": 0.5, "reward_shift": 1.0, "action_clip": 0.5}
    transitions = load_transitions(str(make_dataset().spec.dataset_id), memory_map=True)
    whole = buffer_class.from_transitions(transitions, **settings)
    expected = whole._get_samples(th.arange(whole.n_offline))
    for world in (2, 3):
        parts = [whole.part(number, world, memory_map=memory_map) for number in range(world)]
        assert all(part.memory_map is memory_map for part in parts)
        assert (len({part.table.untyped_storage().data_ptr() for part in parts}) == 1) is memory_map
        # Also a part of a part.
        parts = [*(parts[0].part(number, 2, memory_map=memory_map) for number in range(2)), *parts[1:]]
        rows = [part._get_samples(th.arange(part.n_offline)) for part in parts]
        for name in ("observations", "next_observations", "actions", "rewards", "dones"):
            assert th.equal(th.cat([getattr(samples, name) for samples in rows]), getattr(expected, name)), name
            # What lies on disk is clipped as it is drawn.
            columns = getattr(whole if memory_map else expected, name)
            assert th.equal(th.cat([getattr(part, name) for part in parts]), columns), name
        for part in parts:
            assert part._ahead is None and part.fixed_data() == ([] if memory_map else [part.table, part.breaks])


def test_an_episode_keeps_its_number() -> None:
    model = made("one_step_dmpo")
    model._setup_dataset()
    whole = model.replay_buffer
    parts = [whole.part(number, 3) for number in range(3)]
    parts = [*(parts[0].part(number, 2) for number in range(2)), *parts[1:]]
    numbers = [part._gather_steps(th.arange(part.n_offline), 3, 0.9, part._index_episodes().ends)[-1] for part in parts]
    assert [part.n_offline % 8 > 0 for part in parts] == [True] * 4
    assert th.equal(th.cat(numbers), th.arange(80) // 8)


def test_sequences_are_never_cut() -> None:
    model = made("decision_transformer")
    model._setup_dataset()
    parts = [model.replay_buffer.part(number, 3) for number in range(3)]
    assert [part.n_offline % 8 for part in parts] == [0, 0, 0] and sum(part.n_offline for part in parts) == 80
    assert th.equal(th.cat([part.episode_returns() for part in parts]), model.replay_buffer.episode_returns())


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """This process is the first of two."""
    group = Fake([])
    monkeypatch.setattr(ranks._Group, "current", group)
    return group


@pytest.mark.parametrize("memory_map", [False, True])
def test_a_process_has_its_rows_of_a_file(
    memory_map: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: Fake
) -> None:
    """The whole is not read into memory, and what is learned from is what one process would have had there."""
    in_own_cache(tmp_path, monkeypatch)
    dataset = str(make_dataset().spec.dataset_id)
    parts = []
    for number in range(2):
        pair.rank = number
        model = make("iql", dataset=dataset, memory_map=memory_map, reward_scale="standardize")
        model._setup_dataset()
        assert model.replay_buffer.memory_map is memory_map
        assert model.replay_buffer.observations.untyped_storage().filename is None or memory_map
        parts.append(model.replay_buffer)
    monkeypatch.setattr(ranks._Group, "current", None)
    model = make("iql", dataset=dataset, reward_scale="standardize")
    model._setup_dataset()
    whole = model.replay_buffer
    rows = [part._get_samples(th.arange(part.n_offline)) for part in parts]
    expected = whole._get_samples(th.arange(whole.n_offline))
    for name in ("observations", "next_observations", "actions", "rewards", "dones"):
        assert th.equal(th.cat([getattr(samples, name) for samples in rows]), getattr(expected, name))
    for part in parts:
        assert abs(part.n_offline - whole.n_offline / 2) < 1 and part.fingerprint == whole.fingerprint
        assert_same((part.observation_mean, part.observation_std), (whole.observation_mean, whole.observation_std))
        assert (part.reward_scale, part.reward_shift) == (whole.reward_scale, whole.reward_shift)


@pytest.mark.parametrize(
    ("device", "n_devices", "words"),
    [("cuda", 1, "2 processes cannot share the 1 GPUs"), ("cuda:1", 2, "write 'cuda'"), ("cuda", 2, ""), ("cpu", 0, "")],
)
def test_every_process_has_a_gpu(monkeypatch: pytest.MonkeyPatch, pair: Fake, device: str, n_devices: int, words: str) -> None:
    monkeypatch.setattr(th.cuda, "device_count", lambda: n_devices)
    monkeypatch.setattr(th.cuda, "current_device", lambda: 0)
    if words:
        with pytest.raises(ValueError, match=words):
            ranks.check_not_shared(th.device(device))
    else:
        ranks.check_not_shared(th.device(device))


def test_compiled_only_where_it_is_asked_for(pair: Fake) -> None:
    model = made("bc", compile="auto")
    model._setup_compilation(10_000_000, continuing=False)
    assert not model._compiled.is_on


def test_several_seeds_are_for_one_process(pair: Fake) -> None:
    with pytest.raises(ValueError, match="learn_together is for one process"):
        check_together([made("bc")])


def test_every_process_draws_for_itself() -> None:
    seeds = {ranks.seed_of(seed, update, stream) for seed in range(3) for update in range(5) for stream in range(2)}
    assert len(seeds) == 30 and all(0 <= seed < 2**63 for seed in seeds)


# Several processes ----------------------------------------------------------------------------------------------------


def joined_noise(model: OfflineAlgorithm, batches: Sequence[Any]) -> dict[str, th.Tensor]:
    """The noise of several minibatches as that of one."""
    noise = {}
    specs = model.noise_specs(BATCH), model.noise_specs(BATCH // WORLD)
    for name, first in batches[0].noise.items():
        blocks = [batch.noise[name] for batch in batches]
        whole = specs[0][name].shape
        if whole == specs[1][name].shape:  # one number for all
            noise[name] = first
        elif name == "baseline_noise" and hasattr(model, "n_value_samples"):  # sample by sample
            parts = [block.view(model.n_value_samples, BATCH // WORLD, -1) for block in blocks]
            noise[name] = th.cat(parts, dim=1).flatten(end_dim=1)
        else:
            (axis,) = [i for i, (a, b) in enumerate(zip(whole, first.shape, strict=True)) if a != b]
            noise[name] = th.cat(blocks, dim=axis)
    return noise


def joined_batch(model: OfflineAlgorithm, batches: Sequence[Any]) -> Any:
    """Several minibatches as one."""
    first = batches[0]
    fields = {name: value for name, value in first._asdict().items() if isinstance(value, th.Tensor)}
    together = {name: th.cat([getattr(batch, name) for batch in batches]) for name in fields}
    return first._replace(**together, noise=joined_noise(model, batches))


def joined_orders(orders: Sequence[Sequence[th.Tensor]], size: int) -> list[th.Tensor]:
    """The order of the data, epoch by epoch, of one process that takes as large minibatches as all together."""
    epochs = []
    for parts in zip(*orders, strict=True):
        columns = [th.split(part, size, dim=1) for part in parts]
        epochs.append(th.cat([th.cat(step, dim=1) for step in zip(*columns, strict=True)], dim=1))
    return epochs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What two processes have found when they trained every algorithm."""
    return results("equality", tmp_path_factory.mktemp("equality"))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_with_the_joined_minibatch(
    trained: list[Any], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [process[case] for process in trained]
    assert_same(found[0]["state"], found[1]["state"])
    model = made(case)
    if case == "maple":
        epochs = joined_orders([process["orders"] for process in found], model.model_batch_size // WORLD)
        monkeypatch.setattr(EnsembleTraining, "_shuffled", lambda self, epoch: epochs[epoch - 1])
        model.learn_model()
    model._setup_dataset()
    assert [process["n_rows"] for process in found] == [model.replay_buffer.n_offline // WORLD] * WORLD
    for number, batches in enumerate(zip(*(process["batches"] for process in found), strict=True)):
        assert len(batches[0].actions) == BATCH // WORLD and not th.equal(batches[0].actions, batches[1].actions)
        model._update_current_progress_remaining(number, UPDATES)
        model._begin_update()
        metrics = model._run_update(joined_batch(model, batches), BATCH)
        assert all(value.isfinite() for value in metrics.values())
    state = state_of(model)
    assert state.keys() == found[0]["state"].keys()
    for name, value in state.items():
        difference = (value.double() - found[0]["state"][name].double()).abs().max() if value.numel() else 0.0
        assert difference <= 1e-6, (name, difference)


@pytest.mark.slow
def test_compiled_updates_reduce_as_well(tmp_path: Path) -> None:
    for found in results("compiled", tmp_path):
        for name, value in found["False"].items():
            assert th.allclose(value, found["True"][name], atol=1e-5), name


@pytest.mark.slow
def test_going_on_from_a_file(tmp_path: Path) -> None:
    first, second = results("resumed", tmp_path)
    for name in first:
        assert_same(first[name]["whole"], first[name]["resumed"], name)
        assert_same(first[name]["resumed"], second[name]["resumed"], name)


@pytest.mark.slow
def test_reductions_parts_and_who_writes(tmp_path: Path) -> None:
    first, second = results("reductions", tmp_path)
    assert (first["rank"], second["rank"]) == ((0, 2, True), (1, 2, True))
    for found in (first, second):
        assert found["mean"].tolist() == [1.5, 3.0] and found["total"].tolist() == [3.0, 6.0]
        assert (found["max"], found["min"], found["first"]) == (1.0, 0.0, 7)
        matrix, number, empty = found["gradients"]
        assert th.equal(matrix, th.full((2, 3), 0.5)) and number == 1.0 and empty.shape == (0,)
        assert found["object"] == "of 0" and found["numbers"] == {"a": 0.5, "b": 1.0}
        refused = found["refused"]
        assert len(refused) == 5
        assert "batch_size is 15, and 2 processes share it equally: choose a multiple of 2" in refused[0]
        assert "seed" in refused[1] and "rollout_batch_size is 15" in refused[2]
        assert "fewer episodes than processes" in refused[3] and "learn_online" in refused[4]
    assert (first["share"], second["share"]) == (2, 3)
    assert first["rows"] == (0, 40, 80, "toy-10", [8] * 5) and second["rows"][:3] == (40, 40, 80)
    assert first["stopped"] == second["stopped"] < 10_000
    assert_same(first["statistics"], second["statistics"])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoints-0", "saved-0.zip", "tensorboard", "reductions-0.pt", "reductions-1.pt"}
    assert len(list(tmp_path.glob("tensorboard/*/*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("program", ["killed", "halted"])
def test_a_lost_process_ends_the_others(program: str, tmp_path: Path) -> None:
    processes = start(program, tmp_path)
    try:
        _, said = processes[0].communicate(timeout=300)
        seconds = time.time() - (tmp_path / "killed").stat().st_mtime
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode == 1, said
    assert "rocess 1 of 0 to 1 has given no sign of life" in said
    assert seconds < 60


@pytest.mark.slow
def test_nobody_is_lost_who_only_takes_long(tmp_path: Path) -> None:
    first, second = results("slow", tmp_path, "8", SILENT="4", BEAT="0.5")
    assert_same(first, second)
