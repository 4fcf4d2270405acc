"""Evaluation: episodes on vector environments, success, and D4RL's normalised score with its reference scores."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minari import MinariDataset
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common import evaluation as sb3_evaluation
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_dmpo.common.environments import find_environment, refuse_normalized
from sb3_dmpo.common.policies import OfflinePolicy
from sb3_dmpo.data.tasks import ReferenceScores, reference_scores
from sb3_dmpo.envs.wrappers import FlattenNestedDict, SuccessInfo


def normalized_score(
    returns: ArrayLike, dataset: str | MinariDataset | None = None, env_id: str | None = None
) -> float | None:
    """
    Mean normalised score (0 is D4RL's random policy, 100 its expert), or None where no reference scores are known.

    :param returns: undiscounted returns of episodes
    :param dataset: Minari id or dataset, see :func:`reference_scores`
    :param env_id: id of the environment
    """
    reference = reference_scores(dataset, env_id)
    return None if reference is None else float(reference.normalize(returns).mean())


def env_id_of(env: gym.Env[Any, Any] | VecEnv) -> str | None:
    """
    The id an environment was registered under, or None if it has none or runs in another process.

    :param env: environment; of a VecEnv its first one counts
    """
    if isinstance(env, VecEnv):
        # Specs of other processes would have to be pickled, and a spec that cannot be pickled kills the process.
        if not isinstance(env.unwrapped, DummyVecEnv):
            return None
        env = env.unwrapped.envs[0]
    return None if env.spec is None else str(env.spec.id)


def to_vec_env(env: gym.Env[Any, Any] | VecEnv | str) -> VecEnv:
    """
    The environment as a VecEnv that reports ``is_success`` and has no nested observations. VecEnvs are returned as they are.

    :param env: environment, VecEnv or environment id
    """
    found: Any = find_environment(env)
    if isinstance(found, VecEnv):
        return found
    wrapped = SuccessInfo(FlattenNestedDict(found) if isinstance(found.observation_space, spaces.Dict) else found)
    return DummyVecEnv([lambda: wrapped])


@dataclass(frozen=True)
class EvaluationResult:
    """
    What :func:`evaluate_policy` measured.

    :param returns: undiscounted return of every episode, shape (n_eval_episodes,)
    :param lengths: steps of every episode, shape (n_eval_episodes,)
    :param successes: success of every episode, shape (n_eval_episodes,), or None if the environment does not say
    :param reference: reference scores, or None if unknown
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    successes: NDArray[np.bool_] | None
    reference: ReferenceScores | None

    def __iter__(self) -> Iterator[float]:
        """Mean and standard deviation of the returns, which is what SB3's ``evaluate_policy`` returns."""
        return iter((self.mean_return, self.std_return))

    @property
    def mean_return(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def std_return(self) -> float:
        """Standard deviation of the returns over the episodes (population)."""
        return float(self.returns.std())

    @property
    def success_rate(self) -> float | None:
        """Share of successful episodes between 0 and 1, or None."""
        return None if self.successes is None else float(self.successes.mean())

    @property
    def normalized_score(self) -> float | None:
        """Mean normalised score, 0 to 100, or None."""
        return None if self.reference is None else float(self.reference.normalize(self.returns).mean())

    def summary(self, updates: int) -> dict[str, Any]:
        """
        The figures as plain data.

        :param updates: how many updates the evaluated model has seen
        """
        return {
            "updates": updates,
            "n_episodes": len(self.returns),
            "mean_return": self.mean_return,
            "std_return": self.std_return,
            "success_rate": self.success_rate,
            "normalized_score": self.normalized_score,
            "reference": None if self.reference is None else self.reference.source,
        }


class _SuccessRecorder:
    """Collects ``is_success`` at the end of every episode that SB3's evaluation counts, through its callback."""

    def __init__(self) -> None:
        self.successes: list[bool | None] = []

    def __call__(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        # As in SB3: with a Monitor, an episode has ended when the Monitor says so.
        if locals_["done"] and (not locals_["is_monitor_wrapped"] or "episode" in locals_["info"]):
            self.successes.append(locals_["info"].get("is_success"))

    def result(self) -> NDArray[np.bool_] | None:
        if any(success is None for success in self.successes):
            return None
        return np.array(self.successes, np.bool_)


class _Infos(list[dict[str, Any]]):
    """Infos of a VecEnv's steps that it copies one level deep: an evaluation neither changes nor keeps what is in them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> list[dict[str, Any]]:
        return [dict(info) for info in self]


@contextlib.contextmanager
def _shallow_infos(env: VecEnv) -> Iterator[None]:
    """
    Spare the deep copies of all infos in every step, about a twentieth of an evaluation on MuJoCo.

    :param env: environments; those of other processes send copies anyway
    """
    inner = env.unwrapped
    if not isinstance(inner, DummyVecEnv):
        yield
        return
    inner.buf_infos = _Infos(inner.buf_infos)
    try:
        yield
    finally:
        inner.buf_infos = list(inner.buf_infos)


def evaluate_policy(
    model: PolicyPredictor,
    env: gym.Env[Any, Any] | VecEnv | str,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    render: bool = False,
    dataset: str | MinariDataset | None = None,
    warn: bool = True,
) -> EvaluationResult:
    """
    Run a policy with SB3's ``evaluate_policy``, on all environments of a VecEnv at once.

    :param model: model or policy with SB3's ``predict``
    :param env: environment, VecEnv or environment id (what is made for an id is closed afterwards). A single environment gets
        :class:`SuccessInfo` (and :class:`FlattenNestedDict` for Dict observations); those of a VecEnv have to have them.
    :param n_eval_episodes: number of episodes, divided among the environments
    :param deterministic: whether the policy acts deterministically
    :param render: whether to render
    :param dataset: where reference scores are looked for first, see :func:`reference_scores`; needed where the environments
        run in other processes
    :param warn: whether SB3 warns of environments without a ``Monitor``
    :raises ValueError: fewer than one episode, or VecNormalize scales observations that the policy scales itself
    :return: returns, lengths and successes by episode, and the reference scores; ``mean, std = evaluate_policy(...)`` takes
        mean and standard deviation of the returns
    """
    if n_eval_episodes < 1:
        raise ValueError(f"n_eval_episodes is {n_eval_episodes}, but an evaluation needs at least one episode.")
    recorder = _SuccessRecorder()
    with contextlib.ExitStack() as stack:
        if isinstance(env, str):
            env = stack.enter_context(contextlib.closing(find_environment(env)))
        vec_env = to_vec_env(env)
        if isinstance(getattr(model, "policy", model), OfflinePolicy):
            refuse_normalized(vec_env)
        stack.enter_context(_shallow_infos(vec_env))
        returns, lengths = sb3_evaluation.evaluate_policy(
            model,
            vec_env,
            n_eval_episodes=n_eval_episodes,
            deterministic=deterministic,
            render=render,
            callback=recorder,
            return_episode_rewards=True,
            warn=warn,
        )
        return EvaluationResult(
            returns=np.asarray(returns, np.float64),
            lengths=np.asarray(lengths, np.int64),
            successes=recorder.result(),
            reference=reference_scores(dataset, env_id_of(vec_env)),
        )
