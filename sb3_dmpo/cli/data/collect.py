"""
Make a Minari dataset of what an agent of Stable-Baselines3 does, or of a replay buffer:
``sb3_dmpo collect --algo sac --model sac.zip --env Hopper-v5 -n 200000 --noise 0.1 --dataset my/hopper/sac-v0``.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tqdm import tqdm

from sb3_dmpo.cli.data.agents import load_agent
from sb3_dmpo.cli.errors import Parser, UsageError, check_env_id, import_packages
from sb3_dmpo.cli.literals import StoreSettings
from sb3_dmpo.common.arguments import BOUNDS, COUNT, COUNT_OR_ZERO, NOT_NEGATIVE, SEED, UNIT
from sb3_dmpo.data import load_transitions
from sb3_dmpo.data.minari_write import check_new_id, environment_text, episodes_of, write_new_dataset
from sb3_dmpo.data.recorded_env import register_robotics
from sb3_dmpo.data.tasks import reference_scores

Env = gym.Env[Any, Any]
#: The action at an observation; whether an episode begins with it.
Actor = Callable[[Any, bool], Any]

#: Options that only an agent has a use for, with their defaults.
_OF_AGENTS: dict[str, Any] = {
    **{"n_timesteps": 100_000, "noise": 0.0, "random": 0.0, "stochastic": False, "seed": 0, "reference_episodes": 20},
    **{"vecnormalize": None, "trust_pickle": False},
}
_DEFAULTS = _OF_AGENTS | {"model": None, "replay_buffer": None, "algo": None, "reference": None}
_RANGES = {"n_timesteps": COUNT, "noise": NOT_NEGATIVE, "random": UNIT, "seed": SEED, "reference_episodes": COUNT_OR_ZERO}


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    # What is not typed is not there: so that it can be told what was.
    parser = Parser(prog="sb3_dmpo collect", description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument("--dataset", required=True, metavar="ID", help="id of the new dataset, e.g. my/hopper/sac-v0")
    parser.add_argument("--env", required=True, help="environment, also for evaluation")
    parser.add_argument(
        "--env-kwargs", nargs="+", action=StoreSettings, default={}, metavar="KEY:VALUE", help="arguments of the environment"
    )
    parser.add_argument("--gym-packages", nargs="+", default=[], help="packages that register environments")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="zip of an agent")
    source.add_argument("--replay-buffer", metavar="FILE.pkl", help="pickle of a replay buffer of Stable-Baselines3")
    parser.add_argument("--algo", help="algorithm of the agent, as in rl_zoo3; with --replay-buffer, for the metadata only")
    parser.add_argument("-n", "--n-timesteps", type=int, help="steps, rounded up to whole episodes (default: 100,000)")
    parser.add_argument("--noise", type=float, help="std of Gaussian noise on the actions, in half their range")
    parser.add_argument("--random", type=float, metavar="SHARE", help="share of steps with a random action")
    parser.add_argument("--stochastic", action="store_true", help="sample the actions of the agent")
    parser.add_argument("--vecnormalize", metavar="FILE.pkl", help="statistics of VecNormalize (needs --trust-pickle)")
    parser.add_argument("--trust-pickle", action="store_true", help="unpickle the files, which executes what they say")
    parser.add_argument("--seed", type=int, help="default: 0")
    scores = parser.add_mutually_exclusive_group()
    scores.add_argument("--reference", nargs=2, type=float, metavar=("MIN", "MAX"), help="reference scores")
    scores.add_argument(
        "--reference-episodes",
        type=int,
        help="episodes of the agent to measure them with, where D4RL has none; 0: none (default: 20)",
    )
    return parser


def noisy_actor(
    model: BaseAlgorithm, space: spaces.Box, options: argparse.Namespace, normalize: Callable[[Any], Any]
) -> Actor:
    """
    The agent with noise. One with a memory sees every step; of its own actions it remembers what it chose, without the noise.

    :param model: agent
    :param space: its actions
    :param options: ``noise``, ``random``, ``stochastic``, ``seed``
    :param normalize: what the agent's observations go through
    """
    rng = np.random.default_rng(options.seed)
    half_range = 0.5 * (space.high - space.low)
    state: Any = None

    def act(observation: Any, is_first: bool) -> Any:
        nonlocal state
        action, state = model.predict(
            normalize(observation),
            state=None if is_first else state,
            episode_start=np.array([is_first]),
            deterministic=not options.stochastic,
        )
        if rng.random() < options.random:
            return rng.uniform(space.low, space.high).astype(space.dtype)
        if options.noise > 0.0:
            action = action + rng.normal(0.0, options.noise, space.shape) * half_range
        return np.clip(action, space.low, space.high).astype(space.dtype)

    return act


def stacked(items: Sequence[Any]) -> Any:
    """
    Observations of an episode one above the other, in every entry of Dict observations.

    :param items: observations
    """
    if isinstance(items[0], dict):
        return {key: stacked([item[key] for item in items]) for key in items[0]}
    return np.stack(items)


def rollout(env: Env, act: Actor, seed: int | None) -> EpisodeBuffer:
    """
    One episode.

    :param env: environment
    :param act: the action at an observation
    :param seed: seed of the reset
    """
    observation, _ = env.reset(seed=seed)
    observations: list[Any] = [observation]
    steps: list[tuple[Any, Any, bool, bool]] = []
    done = False
    while not done:
        action = act(observation, not steps)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        steps.append((action, reward, terminated, truncated))
        done = terminated or truncated
    actions, rewards, terminations, truncations = zip(*steps, strict=True)
    return EpisodeBuffer(
        observations=stacked(observations),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        terminations=np.array(terminations, np.bool_),
        truncations=np.array(truncations, np.bool_),
    )


def mean_return(env: Env, act: Actor, n_episodes: int, seed: int) -> float:
    """
    Mean undiscounted return.

    :param env: environment
    :param act: the action at an observation
    :param n_episodes: number of episodes
    :param seed: seed of the first one
    """
    returns = [float(np.sum(rollout(env, act, seed if i == 0 else None).rewards)) for i in range(n_episodes)]
    return float(np.mean(returns))


def find_reference(options: argparse.Namespace, env: Env, agent: Actor | None) -> tuple[dict[str, float], str]:
    """
    Reference scores as metadata, and where they come from: the command line, D4RL, or random actions and the agent itself.

    :param options: parsed options
    :param env: environment to measure in
    :param agent: the agent without noise
    """
    known = reference_scores(env_id=options.env)
    if options.reference is not None:
        low, high = (float(score) for score in options.reference)
        source = "the command line"
    elif known is not None:
        low, high, source = known
    elif agent is None or options.reference_episodes < 1:
        return {}, ""
    else:
        env.action_space.seed(options.seed)
        n = options.reference_episodes
        low = mean_return(env, lambda *_: env.action_space.sample(), n, options.seed + 1)
        high = mean_return(env, agent, n, options.seed + 1)
        source = f"{n} episodes each of random actions and of the agent without noise"
    if not low < high:
        return {}, f"none: {low:g} to {high:g} by {source} is no range"
    return {"ref_min_score": float(low), "ref_max_score": float(high)}, f"{low:.2f} to {high:.2f}, from {source}"


def collected(env: Env, act: Actor, options: argparse.Namespace) -> Iterator[EpisodeBuffer]:
    """
    Episodes until there are enough steps, with a progress bar.

    :param env: environment
    :param act: the action at an observation
    :param options: ``n_timesteps``, ``seed``, ``dataset``
    """
    steps = 0
    with tqdm(total=options.n_timesteps, unit="step", desc=options.dataset) as bar:
        while steps < options.n_timesteps:
            episode = rollout(env, act, options.seed if steps == 0 else None)
            steps += len(episode.rewards)
            bar.update(len(episode.rewards))
            yield episode


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check(options: argparse.Namespace) -> argparse.Namespace:
    """
    The options with their defaults.

    :param options: those that were typed
    :raises UsageError: one contradicts another, or is out of its range
    """
    typed = vars(options)
    if "replay_buffer" in typed:
        unused = [_option(name) for name in _OF_AGENTS if name in typed]
        if unused:
            what = "--replay-buffer is written as it was recorded, by no agent that acts now"
            raise UsageError(f"{what}: leave {', '.join(unused)} out, or name an agent with --model and --algo.")
    options = argparse.Namespace(**_DEFAULTS | typed)
    import_packages(options.gym_packages)
    register_robotics()
    check_env_id(options.env)
    check_new_id(options.dataset)
    if options.model is not None and options.algo is None:
        raise UsageError("--model needs --algo, the algorithm that the agent was trained with.")
    if options.vecnormalize is not None and not options.trust_pickle:
        raise UsageError(
            "--vecnormalize is a pickle, which executes what it says: add --trust-pickle if you made it or trust its maker."
        )
    for name, accepted in _RANGES.items():
        if not accepted.accepts(getattr(options, name)):
            raise UsageError(f"{_option(name)} is {getattr(options, name)!r}, expected {accepted.description}.")
    if options.reference is not None and not BOUNDS.accepts(options.reference):
        raise UsageError(f"--reference is {options.reference}, expected {BOUNDS.description}.")
    return options


def run(argv: Sequence[str]) -> None:
    """
    Collect as the command line says.

    :param argv: arguments
    :raises UsageError: what was asked for cannot be done
    :raises DatasetError: the id is taken, or the replay buffer is not usable
    """
    options = _check(make_parser().parse_args(argv))
    with contextlib.closing(gym.make(options.env, **options.env_kwargs)) as env:
        source = _write(options, env)
    print(f"Dataset: {options.dataset}; reference scores {source or 'unknown'}")
    print(f"Train on it: python -m sb3_dmpo train --algo dmpo --dataset {options.dataset}")


def _write(options: argparse.Namespace, env: Env) -> str:
    """
    Write the dataset; where its reference scores come from.

    :param options: checked options
    :param env: the environment
    """
    if not isinstance(env.action_space, spaces.Box):
        raise UsageError(f"{options.env} has the action space {env.action_space}; algorithms here need Box.")
    if env.spec is not None:
        # Before any work.
        environment_text(env.spec)
    if options.replay_buffer is not None:
        transitions = load_transitions(options.replay_buffer, env=env, cache=False)
        whole = episodes_of(transitions, env.observation_space)
        episodes: Iterator[EpisodeBuffer] = iter(
            tqdm(whole, total=len(transitions.episode_lengths), unit="episode", desc=options.dataset)
        )
        scores, source = find_reference(options, env, None)
        description = "A replay buffer of Stable-Baselines3."
    else:
        model = load_agent(options.algo, options.model, env, options.trust_pickle)
        normalize: Callable[[Any], Any] = lambda observation: observation  # noqa: E731
        if options.vecnormalize is not None:
            # Of the environment it only wants to know the spaces.
            normalize = VecNormalize.load(options.vecnormalize, DummyVecEnv([lambda: env])).normalize_obs
        # Actions are sampled by PyTorch's generator.
        th.manual_seed(options.seed)
        plain = argparse.Namespace(noise=0.0, random=0.0, stochastic=False, seed=options.seed)
        agent = noisy_actor(model, env.action_space, plain, normalize)
        scores, source = find_reference(options, env, agent)
        episodes = collected(env, noisy_actor(model, env.action_space, options, normalize), options)
        kind = "sampled" if options.stochastic else "deterministic"
        description = f"{options.algo}, {kind} actions, noise {options.noise:g}, random share {options.random:g}."
    write_new_dataset(
        options.dataset,
        episodes,
        env.observation_space,
        env.action_space,
        env.spec,
        algorithm_name=options.algo or "replay buffer",
        description=description,
        **scores,
    )
    return source
