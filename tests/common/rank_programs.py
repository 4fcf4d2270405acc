"""
What one of several processes does in the tests of them: ``python -m tests.common.rank_programs NAME FOLDER``.

A program writes what its process has found to ``FOLDER/NAME-RANK.pt``.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback

from sb3_dmpo import ALGOS, OfflineAlgorithm
from sb3_dmpo.common import ranks
from sb3_dmpo.maple.dynamics import EnsembleTraining
from tests.contract import make
from tests.toy_data import make_transitions

#: By name in :data:`CASES`: algorithm and arguments.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ALGOS},
    "iql_dmpo": ("iql", {"variant": "dmpo"}),
    "iql_dropout": ("iql", {"dropout": 0.1}),
    "diffusion_max_q": ("diffusion_ql", {"max_q_backup": True, "ema_start": 2}),
    "awac_clipped": ("awac", {"advantage_weight": "clipped", "n_steps": 3}),
    "dmpo_values": ("dmpo", {"value_targets": True, "decoder": "calibrated"}),
    "dmpo_exact": ("dmpo", {"assignment": "exact", "bootstrap": "component", "advantage_scale": 0.0, "n_steps": 3}),
    # Of few steps: the order of the rows decides on the last bit of the evidence, and they multiply it.
    "dmpo_episode": ("dmpo", {"assignment": "episode", "prior": "learned", "evidence_steps": 3.0}),
    "dmpo_average": ("dmpo", {"ema_decay": 0.9}),
}
#: How many episodes the dataset has: of an odd number, one is cut between two processes.
EPISODES = {"dmpo_episode": 9}
SMALLER: dict[str, dict[str, Any]] = {"maple": {"model_batch_size": 16}}
UPDATES, BATCH = 8, 16


def made(case: str, **kwargs: Any) -> OfflineAlgorithm:
    """The model of a case."""
    name, arguments = CASES[case]
    return make(
        name, dataset=make_transitions(EPISODES.get(case, 10)), batch_size=BATCH, **SMALLER.get(name, {}) | arguments | kwargs
    )


def state_of(model: OfflineAlgorithm) -> dict[str, th.Tensor]:
    """Everything that was learned."""
    state = {name: value.clone() for name, value in model.policy.state_dict().items()}
    state |= {f"buffers.{name}": value.clone() for name, value in model.policy.named_buffers()}
    fitted = getattr(model, "dynamics", None)
    if fitted is not None:
        state |= {f"dynamics.{name}": th.from_numpy(np.array(value)) for name, value in fitted.ensemble.to_arrays().items()}
    return state


def equality() -> dict[str, Any]:
    """Every algorithm: its minibatches, the order of the data in which its ensemble was fitted, and what came out."""
    found: dict[str, Any] = {}
    shuffle = EnsembleTraining._shuffled
    for case in CASES:
        model, batches, orders = made(case), list[Any](), list[th.Tensor]()
        draw = model.sample_batch

        def kept(size: int, draw: Any = draw, batches: list[Any] = batches) -> Any:
            batches.append(draw(size))
            return batches[-1]

        def ordered(self: EnsembleTraining, epoch: int, model: Any = model, orders: list[th.Tensor] = orders) -> th.Tensor:
            rows = shuffle(self, epoch)
            orders.append(rows + model.replay_buffer.first_row)
            return rows

        model.sample_batch, EnsembleTraining._shuffled = kept, ordered  # type: ignore[method-assign]
        model.learn(UPDATES, log_interval=3)
        EnsembleTraining._shuffled = shuffle  # type: ignore[method-assign]
        found[case] = {"batches": batches, "orders": orders, "state": state_of(model)}
        found[case]["n_rows"] = model.replay_buffer.n_offline
        found[case]["logged"] = {key: float(value) for key, value in model._metrics.means().items()}
    return found


def compiled() -> dict[str, Any]:
    """The same updates as they are written and as compiled code."""
    return {str(is_compiled): state_of(made("td3_bc", compile=is_compiled).learn(4)) for is_compiled in (False, True)}


def resumed() -> dict[str, Any]:
    """Runs in one go, and with a file in between that process 0 has written."""
    found = {}
    for name in ("dmpo", "one_step_dmpo", "diffusion_ql", "decision_transformer", "maple"):
        whole = made(name).learn(UPDATES)
        path = Path(sys.argv[2]) / f"{name}.zip"
        half = made(name).learn(5)
        half.save(path)
        with ranks.first_alone():
            model = ALGOS[name].load(path, dataset=make_transitions(), device="cpu")
        model.learn(UPDATES - 5, reset_num_timesteps=False)
        found[name] = {"whole": state_of(whole), "resumed": state_of(model)}
    return found


class StopAt(BaseCallback):
    """Ends the training."""

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.updates = updates

    def _on_step(self) -> bool:
        return self.num_timesteps < self.updates


def reductions() -> dict[str, Any]:
    """The reductions, what each process holds, who writes, and what is refused."""
    own = ranks.rank()
    folder = Path(sys.argv[2])
    found: dict[str, Any] = {
        "rank": (own, ranks.world(), ranks.is_joined()),
        "mean": ranks.mean(th.tensor([1.0, 2.0]) * (own + 1)),
        "total": ranks.total(th.tensor([1.0, 2.0]) * (own + 1)),
        "max": ranks.max(th.tensor(float(own))),
        "min": ranks.min(th.tensor(float(own))),
        "first": ranks.first(th.tensor(own + 7)),
        "gradients": ranks.mean_gradients([th.full((2, 3), float(own)), th.tensor(2.0 * own), th.zeros(0)]),
        "share": ranks.share(5),
        "object": ranks.object_of_first(f"of {own}"),
        "numbers": ranks.mean_numbers({"a": float(own), "b": 1.0}),
    }
    bc = make("bc", dataset=make_transitions())
    checkpoints = CheckpointCallback(2, str(folder / f"checkpoints-{own}"))
    bc.tensorboard_log = str(folder / "tensorboard")
    bc.learn(4, callback=[checkpoints])
    bc.save(folder / f"saved-{own}")
    part = bc.replay_buffer
    whole = make("bc", dataset=make_transitions())
    found["rows"] = (part.first_row, part.n_offline, part.n_whole, part.fingerprint, part.episode_lengths.tolist())
    found["statistics"] = (part.observation_mean, part.observation_std)
    stopped = whole.learn(10_000, callback=StopAt(20))
    found["stopped"] = stopped.num_timesteps
    found["refused"] = []
    for refused in (
        lambda: make("bc", dataset=make_transitions(), batch_size=15).learn(1),
        lambda: make("bc", dataset=make_transitions(), seed=None).learn(1),
        lambda: make("maple", dataset=make_transitions(), rollout_batch_size=15).learn(1),
        lambda: make("maple", dataset=make_transitions(1)).learn(1),
        lambda: make("dmpo", dataset=make_transitions()).learn_online(1),
    ):
        try:
            refused()
        except ValueError as error:
            found["refused"].append(str(error))
    return found


def _killed(how: signal.Signals) -> None:
    model = made("dmpo", compile=False)
    if ranks.rank() == 1:
        draw = model.sample_batch

        def killing(size: int) -> Any:
            if model._n_updates == 5:
                (Path(sys.argv[2]) / "killed").touch()
                os.kill(os.getpid(), how)
            return draw(size)

        model.sample_batch = killing  # type: ignore[method-assign]
    model.learn(1_000_000)


def killed() -> None:
    """Process 1 is killed."""
    _killed(signal.SIGKILL)


def halted() -> None:
    """Process 1 stands still, as one does whose machine is gone."""
    _killed(signal.SIGSTOP)


def slow() -> dict[str, Any]:
    """Process 0 takes its time between two updates, as in an evaluation; nobody is lost."""

    class Pause(BaseCallback):
        def _on_step(self) -> bool:
            time.sleep(float(sys.argv[3]) if self.num_timesteps == 2 else 0.0)
            return True

    return state_of(made("bc").learn(4, Pause()))


if __name__ == "__main__":
    program = globals()[sys.argv[1]]
    for constant, setting in (("SILENT_SECONDS", "SILENT"), ("BEAT_SECONDS", "BEAT")):
        if setting in os.environ:
            setattr(ranks, constant, float(os.environ[setting]))
    with ranks.joined():
        result = program()
        th.save(result, Path(sys.argv[2]) / f"{sys.argv[1]}-{ranks.rank()}.pt")
