"""
Whether a change of the code has left learning alone: every algorithm is trained by another checkout and by this one, and
weights and optimizers have to agree in every bit. Zips of the other checkout have to load here and act the same.

    python benchmarks/same_weights.py OTHER_CHECKOUT
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

HERE = Path(__file__).resolve().parents[1]
OBSERVATION_SPACE = spaces.Box(-np.inf, np.inf, (5,), np.float32)
ACTION_SPACE = spaces.Box(-1.0, 2.0, (2,), np.float32)

#: Small networks, so that every algorithm takes seconds.
SMALL = {"batch_size": 32, "policy_kwargs": {"net_arch": [32, 32]}}
#: The other checkout does not have the algorithm.
NEW = "new"
MODEL_BASED = {
    **{"n_models": 3, "n_elites": 2, "model_arch": [16, 16], "model_max_epochs": 3, "gru_size": 16, "context_size": 4},
    **{"rollout_length": 5, "rollout_batch_size": 200, "rollout_interval": 50, "refresh_interval": 100},
    "termination_fn": "never",
}
TRANSFORMER = {"batch_size": 16, "context_length": 5, "embed_dim": 32, "n_layers": 2, "warmup_steps": 100}
#: What a run of 200 updates would not reach, and variants with a course of their own, by case: algorithm and arguments.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bc": ("bc", {}),
    "td3_bc": ("td3_bc", {}),
    "rebrac": ("rebrac", {}),
    "awac": ("awac", {}),
    "mix_awac": ("mix_awac", {"n_components": 3}),
    "mix_awac, sampled components": ("mix_awac", {"sample_component": True, "published_code": True}),
    "lp_awac": ("lp_awac", {}),
    "lapo": ("lapo", {"policy_delay": 2}),
    "iql": ("iql", {}),
    "iql, variant dmpo": ("iql", {"variant": "dmpo"}),
    "iql, dropout": ("iql", {"dropout": 0.1, "policy_delay": 2}),
    "cql": ("cql", {"pretraining_updates": 100, "n_action_samples": 4}),
    "cql, rho": ("cql", {"pretraining_updates": 0, "importance_sampling": False}),
    "diffusion_ql": ("diffusion_ql", {"ema_start": 50, "n_action_samples": 8}),
    "diffusion_ql, best of backups": ("diffusion_ql", {"max_q_backup": True, "max_grad_norm": None, "n_action_samples": 8}),
    "decision_transformer": ("decision_transformer", TRANSFORMER),
    "maple": ("maple", MODEL_BASED),
    "dmpo": ("dmpo", {}),
    "dmpo, wide": ("dmpo", {"batch_size": 256, "policy_kwargs": {"net_arch": [256, 256]}}),
    "dmpo, value targets": ("dmpo", {"value_targets": True, "reward_shift": -1.0}),
    "dmpo, gated by the targets": ("dmpo", {"target_gate": "target", "latent_embedding": "none"}),
    "one_step_dmpo": ("one_step_dmpo", {"ema_decay": 0.99}),
    "infodmpo": ("infodmpo", {"info_learning_rate": 1e-4}),
    "infodmpo, published code": ("infodmpo", {"published_code": True, "min_q_weight": 0.7}),
}


def episodes(n_episodes: int = 12, length: int = 50) -> ReplayBuffer:
    """
    A buffer with noisy walks in five dimensions.

    :param n_episodes: number of episodes
    :param length: number of steps in each
    """
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(n_episodes * length, OBSERVATION_SPACE, ACTION_SPACE, handle_timeout_termination=False)
    for _ in range(n_episodes):
        observation = rng.normal(size=5).astype(np.float32)
        for step in range(length):
            action = rng.uniform(-1.0, 1.0, size=2).astype(np.float32)
            following = (0.9 * observation + 0.1 * action.sum() + 0.1 * rng.normal(size=5)).astype(np.float32)
            reward = float(1.0 - np.abs(following).mean())
            is_last = np.array([step == length - 1])
            buffer.add(observation, following, action, np.array([reward]), is_last, [{}])
            observation = following
    return buffer


def _tensors(value: Any) -> Iterator[tuple[str, th.Tensor]]:
    """All tensors in nested dicts, with their places."""
    if isinstance(value, th.Tensor):
        yield "", value
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from ((f"{key}.{place}", tensor) for place, tensor in _tensors(value[key]))


def digest(model: Any) -> str:
    """
    A hash of all networks and optimizers of a model.

    :param model: the model
    """
    content = hashlib.sha256()
    for place, tensor in _tensors(model.get_parameters()):
        content.update(f"{place} {tuple(tensor.shape)} {tensor.dtype}".encode())
        content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def actions_of(model: Any) -> list[Any]:
    """
    Actions on fixed observations, as a list.

    :param model: the model
    """
    observations = np.random.default_rng(1).normal(size=(16, 5)).astype(np.float32)
    actions: list[Any] = model.predict(observations, deterministic=True)[0].tolist()
    return actions


def train(cases: list[str], updates: int, folder: Path) -> dict[str, Any]:
    """
    Train with the package that Python finds, and save a zip of every case whose algorithm it knows.

    :param cases: names of the cases
    :param updates: number of updates
    :param folder: where the zips go
    :return: hash and actions by case
    """
    from sb3_dmpo import ALGOS

    results = {}
    for case in cases:
        name, arguments = CASES[case]
        if name not in ALGOS:  # the other checkout may be older
            continue
        small = {} if name == "decision_transformer" else SMALL
        model = ALGOS[name](
            "MlpPolicy", dataset=episodes(), seed=0, device="cpu", compile=False, **small | arguments  # type: ignore[arg-type]
        )
        model.learn(updates)
        model.save(folder / f"{case}.zip")
        results[case] = {"digest": digest(model), "actions": actions_of(model)}
    return results


def load(cases: list[str], folder: Path) -> dict[str, Any]:
    """
    Load zips with the package that Python finds.

    :param cases: names of the cases
    :param folder: where the zips are
    :return: hash and actions, or what went wrong, by case
    """
    from sb3_dmpo import ALGOS

    results = {}
    for case in cases:
        try:
            model = ALGOS[CASES[case][0]].load(folder / f"{case}.zip", device="cpu")
            results[case] = {"digest": digest(model), "actions": actions_of(model)}
        except Exception as error:  # every reason is worth a line
            results[case] = {"error": f"{type(error).__name__}: {error}"}
    return results


def _start(checkout: Path, task: str, cases: list[str], updates: int, folder: Path) -> "subprocess.Popen[str]":
    """Run a task with the package of a checkout, in a process of its own."""
    command = [sys.executable, __file__, str(checkout), "--task", task, "--folder", str(folder), "--updates", str(updates)]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "--cases", *cases], env=environment, stdout=subprocess.PIPE, text=True)


def _result(process: "subprocess.Popen[str]") -> dict[str, Any]:
    output, _ = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, process.args))} has failed.")  # type: ignore[arg-type]
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def compare(other: Path, cases: list[str], updates: int) -> list[tuple[str, str]]:
    """
    What became of every case: ``"same"``, ``"new"`` where the other checkout does not know the algorithm, or what differs.

    :param other: the checkout to compare with
    :param cases: names of the cases
    :param updates: number of updates
    """
    with tempfile.TemporaryDirectory() as name:
        folders = Path(name) / "other", Path(name) / "this"
        for folder in folders:
            folder.mkdir()
        processes = [_start(root, "train", cases, updates, path) for root, path in zip((other, HERE), folders, strict=True)]
        theirs, ours = map(_result, processes)
        known = [case for case in cases if case in theirs]
        loaded = _result(_start(HERE, "load", known, updates, folders[0])) if known else {}
    outcomes = []
    for case in cases:
        if case not in theirs:
            outcomes.append((case, NEW))
            continue
        differences = [f"{what} after training" for what in ours[case] if ours[case][what] != theirs[case][what]]
        differences += [loaded[case]["error"]] if "error" in loaded[case] else []
        differences += [
            f"{what} of its zip" for what in theirs[case] if loaded[case].get(what, theirs[case][what]) != theirs[case][what]
        ]
        outcomes.append((case, "differs: " + ", ".join(differences) if differences else "same"))
    return outcomes


def main(arguments: list[str] | None = None) -> int:
    """
    Print one line per case.

    :param arguments: command line, by default that of the process
    :return: 1 if something differs
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT", help="folder that holds the other sb3_dmpo/")
    parser.add_argument("--updates", type=int, default=200, help="number of updates (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help="only these cases")
    parser.add_argument("--task", choices=["train", "load"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.task is not None:
        th.set_num_threads(1)
        done = (
            load(options.cases, options.folder)
            if options.task == "load"
            else train(options.cases, options.updates, options.folder)
        )
        sys.stdout.write(json.dumps(done) + "\n")
        return 0
    outcomes = compare(options.other.resolve(), options.cases, options.updates)
    for case, outcome in outcomes:
        sys.stdout.write(f"{case}: {outcome}\n")
    return int(any(outcome not in ("same", NEW) for _, outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
