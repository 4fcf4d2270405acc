"""Contenders of this package and of Stable-Baselines3."""

import inspect
import queue
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3 import TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger

from benchmarks.timing import synthetic
from sb3_dmpo import ALGOS
from sb3_dmpo.common.buffers import OfflineReplayBuffer
from sb3_dmpo.common.evaluation import evaluate_policy
from sb3_dmpo.common.offline_algorithm import OfflineAlgorithm
from sb3_dmpo.data import load_transitions
from sb3_dmpo.envs.spaces_only import SpacesOnlyEnv
from sb3_dmpo.envs.wrappers import SuccessInfo

N_TRANSITIONS = 100_000
#: Length of the run whose beginning is measured
N_UPDATES = 1_000_000_000
OBSERVATION_SPACE = spaces.Box(-np.inf, np.inf, (synthetic.OBSERVATION_SIZE,), np.float32)
ACTION_SPACE = spaces.Box(-1.0, 1.0, (synthetic.ACTION_SIZE,), np.float32)
#: Constructor arguments by variant; what an algorithm has no argument for, it has no variant of
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "eager float32": {"compile": False, "gating_dtype": "float32"},
    "eager": {"compile": False, "gating_dtype": "auto"},
    "compiled": {"compile": True, "gating_dtype": "auto"},
    "compiled float32": {"compile": True, "gating_dtype": "float32"},
}


def replay_buffer(n: int | None = None) -> ReplayBuffer:
    """
    The synthetic transitions in a buffer of SB3.

    :param n: number of transitions, by default ``N_TRANSITIONS``
    """
    n = n or N_TRANSITIONS
    data = synthetic.arrays(n)
    buffer = ReplayBuffer(n, OBSERVATION_SPACE, ACTION_SPACE, device="cpu")
    buffer.observations[:, 0] = data["observations"]
    buffer.next_observations[:, 0] = np.roll(data["observations"], -1, axis=0)
    buffer.actions[:, 0] = data["actions"]
    buffer.rewards[:, 0] = data["rewards"]
    buffer.dones[:, 0] = buffer.timeouts[:, 0] = data["timeouts"]
    buffer.full = True
    return buffer


def signature(name: str) -> dict[str, inspect.Parameter]:
    """
    Constructor arguments of an algorithm, those of its base classes included.

    :param name: as in ``ALGOS``
    """
    classes = [cls for cls in ALGOS[name].__mro__ if issubclass(cls, OfflineAlgorithm)]
    return {key: value for cls in reversed(classes) for key, value in inspect.signature(cls.__init__).parameters.items()}


def variants(name: str, only: Collection[str] = tuple(VARIANTS)) -> dict[str, dict[str, Any]]:
    """
    The variants that an algorithm has, by name; what would be the same as another one is left out.

    :param name: as in ``ALGOS``
    :param only: those that are asked for
    """
    known = signature(name)
    found: dict[str, dict[str, Any]] = {}
    for variant, arguments in VARIANTS.items():
        possible = {key: value for key, value in arguments.items() if key in known}
        if variant in only and possible not in found.values():
            found[variant] = possible
    return found


def setting(name: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """
    Arguments of an algorithm, its own but for 2x256 networks where it lets one choose, and what they are in words.

    :param name: as in ``ALGOS``
    :param arguments: deviations
    """
    known = signature(name)
    own_batch = known["batch_size"].default
    result: dict[str, Any] = {"batch_size": own_batch, **arguments}
    words = [f"batch {result['batch_size']}"]
    if "embed_dim" in known:
        words.append(f"{known['n_layers'].default} layers of {known['embed_dim'].default}")
    else:
        result.setdefault("policy_kwargs", {"net_arch": [256, 256]})
        arch = result["policy_kwargs"]["net_arch"]
        words.append(f"{len(arch)}x{arch[0]}")
    if "n_components" in known:
        words.append(f"|Z| {result.get('n_components', known['n_components'].default)}")
    for steps in ("n_diffusion_steps", "context_length"):
        if steps in known:
            words.append(f"{known[steps].default} {steps.replace('_', ' ').removeprefix('n ')}")
    return result, ", ".join(words)


def make_model(name: str, device: str = "cpu", seed: int = 0, **arguments: Any) -> OfflineAlgorithm:
    """
    A model with the synthetic data.

    :param name: as in ``ALGOS``
    :param device: its device
    :param seed: its seed
    :param arguments: deviations from :func:`setting`
    """
    model = ALGOS[name]("MlpPolicy", dataset=replay_buffer(), seed=seed, device=device, **setting(name, arguments)[0])
    model.set_logger(Logger(None, []))
    return model


def sb3_model(device: str = "cpu", net_arch: tuple[int, ...] = (256, 256), batch_size: int = 256) -> TD3:
    """
    SB3's TD3 with the synthetic data.

    :param device: its device
    :param net_arch: widths of the hidden layers
    :param batch_size: minibatch size
    """
    env = SpacesOnlyEnv(OBSERVATION_SPACE, ACTION_SPACE)
    arguments: dict[str, Any] = {"policy_kwargs": {"net_arch": list(net_arch)}, "batch_size": batch_size, "buffer_size": 1}
    model = TD3("MlpPolicy", env, device=device, seed=0, **arguments)
    model.replay_buffer = replay_buffer()
    model.replay_buffer.device = model.device
    model.set_logger(Logger(None, []))
    return model


class OneRun(BaseCallback):
    """
    A single long call of ``learn`` in pieces: it goes on in a thread of its own until as many updates are done as were asked
    for, and waits there. So everything is set up (and compiled) once, as in a long run.

    :param model: the model
    """

    def __init__(self, model: OfflineAlgorithm) -> None:
        super().__init__()
        self.orders: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.left = 0
        self.thread = threading.Thread(target=self._learn, args=(model,), daemon=True)
        self.thread.start()

    def _begin(self, model: OfflineAlgorithm) -> None:
        model.learn(N_UPDATES, callback=self)

    def _learn(self, model: OfflineAlgorithm) -> None:
        self.left = self.orders.get()
        try:
            self._begin(model)
        except BaseException as error:
            self.answers.put(error)

    def _on_step(self) -> bool:
        self.left -= 1
        if self.left == 0:
            self.answers.put(None)
            self.left = self.orders.get()
        return True

    def __call__(self, n: int) -> None:
        """
        Do some updates.

        :param n: how many
        """
        self.orders.put(n)
        error = self.answers.get()
        if error is not None:
            raise error


def waiting(run: Callable[[int], Any], device: str) -> Callable[[int], None]:
    """
    The function, ended when the device has done its work.

    :param run: enqueues work
    :param device: where
    """
    import torch as th

    def run_and_wait(n: int) -> None:
        run(n)
        if device.startswith("cuda"):
            th.cuda.synchronize()

    return run_and_wait


# Factories of the server ----------------------------------------------------------------------------------------


def train(algo: str, device: str = "cpu", **arguments: Any) -> Callable[[int], None]:
    """
    Updates through ``learn``.

    :param algo: as in ``ALGOS``
    :param device: device of the model
    :param arguments: deviations from :func:`setting`
    """
    model = make_model(algo, device, **arguments)
    return waiting(OneRun(model), device)


def sb3_train(device: str = "cpu", **arguments: Any) -> Callable[[int], None]:
    """
    Updates of SB3's TD3 through ``train``: its ``learn`` would step an environment as well.

    :param device: device of the model
    :param arguments: as of :func:`sb3_model`
    """
    model = sb3_model(device, **arguments)
    return waiting(lambda n: model.train(n, model.batch_size), device)


def predict(algo: str, batch: int = 1) -> Callable[[int], float]:
    """
    Calls of ``predict``, deterministic; returns the median of their milliseconds of processor time: on a busy machine, a
    call that outlasts its time slice would count the work of others.

    :param algo: as in ``ALGOS``, or ``"sb3"`` for SB3's TD3
    :param batch: number of observations; 1: a single one without the axis of the batch
    """
    model = sb3_model() if algo == "sb3" else make_model(algo)
    observations = np.random.default_rng(0).normal(size=(64, batch, synthetic.OBSERVATION_SIZE)).astype(np.float32)
    inputs = observations[:, 0] if batch == 1 else observations

    def run(n: int) -> float:
        times = np.empty(n)
        for i in range(n):
            start = time.process_time()
            model.predict(inputs[i % len(inputs)], deterministic=True)
            times[i] = time.process_time() - start
        return 1e3 * float(np.median(times))

    return run


def sample(source: str, memory_map: bool = False) -> Callable[[int], None]:
    """
    Minibatches of 256.

    :param source: Minari id
    :param memory_map: whether the data stay on disk
    """
    return _sampling(OfflineReplayBuffer.from_transitions(load_transitions(source, memory_map=memory_map), seed=0))


def sb3_sample(n_transitions: int) -> Callable[[int], None]:
    """
    Minibatches of 256 from SB3's buffer.

    :param n_transitions: its size
    """
    return _sampling(replay_buffer(n_transitions))


def _sampling(buffer: ReplayBuffer) -> Callable[[int], None]:
    def run(n: int) -> None:
        for _ in range(n):
            buffer.sample(256)

    return run


def train_on(algo: str, dataset: str) -> Callable[[int], None]:
    """
    Updates on a dataset of Minari, with its settings in the zoo.

    :param algo: as in ``ALGOS``
    :param dataset: Minari id
    """
    return OneRun(zoo_model(algo, dataset))


def zoo_model(algo: str, dataset: str) -> OfflineAlgorithm:
    """
    A model with 2x256 networks for a dataset.

    :param algo: as in ``ALGOS``
    :param dataset: Minari id
    """
    model = ALGOS[algo]("MlpPolicy", dataset=dataset, seed=0, device="cpu")
    model.set_logger(Logger(None, []))
    return model


def evaluate(
    algo: str, dataset: str, env_id: str, n_episodes: int = 10, max_episode_steps: int | None = None
) -> Callable[[int], None]:
    """
    Evaluations as the command line does them, all episodes at once and of full length: no fall ends them.

    :param algo: as in ``ALGOS``
    :param dataset: Minari id
    :param env_id: id of the environment
    :param n_episodes: episodes of an evaluation, and environments
    :param max_episode_steps: length of an episode, None: that of the environment
    """
    model = zoo_model(algo, dataset)
    options: dict[str, Any] = {"terminate_when_unhealthy": False, "max_episode_steps": max_episode_steps}
    env = make_vec_env(env_id, n_envs=n_episodes, seed=0, wrapper_class=SuccessInfo, env_kwargs=options)

    def run(n: int) -> None:
        for _ in range(n):
            evaluate_policy(model, env, n_eval_episodes=n_episodes)

    return run


def step_alone(env_id: str, n_episodes: int = 10, max_episode_steps: int = 1_000) -> Callable[[int], None]:
    """
    The steps of an evaluation without anything around them: what the environment itself takes.

    :param env_id: id of the environment
    :param n_episodes: episodes of an evaluation
    :param max_episode_steps: length of an episode
    """
    env = gym.make(env_id, terminate_when_unhealthy=False, max_episode_steps=max_episode_steps).unwrapped
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (max_episode_steps, *(env.action_space.shape or ())))

    def run(n: int) -> None:
        for _ in range(n * n_episodes):
            env.reset(seed=0)
            for action in actions:
                env.step(action)

    return run
