"""Sequences of steps: pieces of the dataset's episodes, imagined ones, and where both come from."""

from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_dmpo.decision_transformer.buffers import SequenceReplayBuffer
from sb3_dmpo.maple.dynamics import DynamicsEnsemble
from sb3_dmpo.maple.policies import ContextEncoder, MAPLEPolicy
from sb3_dmpo.maple.termination import TerminationRule, checked_ends

#: Rows of a rollout that go through the ensemble at once: what fits a processor's caches; on GPUs a bound of all nets' rows.
CPU_BLOCK_ROWS, GPU_BLOCK_NET_ROWS = 512, 500_000
#: Episodes whose hidden states are computed at once, and how many of their steps.
EPISODES_AT_ONCE, STEPS_AT_ONCE = 1024, 64
#: How far beyond the dataset's range, and at least how far from 0, imagined observations may go.
RANGE_MARGIN, SMALLEST_RANGE = 0.05, 100.0


class Sequences(NamedTuple):
    """
    A minibatch of sequences. The steps that count stand first, at least one; the others are masked out of every loss.

    :param observations: shape ``(batch, T, S)``
    :param actions: actions in [-1, 1], shape ``(batch, T, A)``
    :param next_observations: shape ``(batch, T, S)``
    :param rewards: shape ``(batch, T, 1)``
    :param dones: 1 where the task terminated, shape ``(batch, T, 1)``
    :param valid: 1 where the step counts, shape ``(batch, T, 1)``
    :param last_actions: the action before the sequence, 0 at the beginning of an episode, shape ``(batch, A)``
    :param policy_hidden: state of the policy's encoder before the first step, shape ``(batch, G)``
    :param value_hidden: state of the value encoder there, shape ``(batch, G)``
    :param noise: the random numbers of this update, by name
    """

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    rewards: th.Tensor
    dones: th.Tensor
    valid: th.Tensor
    last_actions: th.Tensor
    policy_hidden: th.Tensor
    value_hidden: th.Tensor
    noise: dict[str, th.Tensor]

    def mean(self, values: th.Tensor, n_steps: th.Tensor | None = None) -> th.Tensor:
        """
        Mean over all steps that count, 0-d.

        :param values: shape ``(batch, T, 1)``
        :param n_steps: what the sum is divided by; None: by the number of these steps
        """
        return (values * self.valid).sum() / (self.valid.sum() if n_steps is None else n_steps)

    def and_then(self, other: "Sequences") -> "Sequences":
        """
        Both, one after the other.

        :param other: further sequences of the same length
        """
        names = [name for name in self._fields if name != "noise"]
        joined: dict[str, Any] = {name: th.cat([getattr(self, name), getattr(other, name)]) for name in names}
        return Sequences(**joined, noise={})


class HiddenStates(NamedTuple):
    """
    States of both encoders before every step of the dataset.

    :param policy: shape ``(N, G)``
    :param value: shape ``(N, G)``
    """

    policy: th.Tensor
    value: th.Tensor


class EpisodePieces:
    """
    The episodes of a dataset, cut into consecutive pieces from their first step on; the last piece of an episode may be
    shorter.

    :param buffer: the dataset
    :param length: steps of a piece, T
    """

    def __init__(self, buffer: SequenceReplayBuffer, length: int) -> None:
        self.buffer, self.length = buffer, length
        lengths = buffer.known_episode_lengths()
        stops = np.cumsum(lengths)
        self.episode_starts, self.episode_lengths = stops - lengths, lengths
        n_pieces = -(-lengths // length)
        episodes = np.repeat(np.arange(len(lengths)), n_pieces)
        numbers = np.arange(len(episodes)) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
        firsts = self.episode_starts[episodes] + length * numbers
        storage = buffer.generator.device
        self.firsts = th.from_numpy(firsts).to(storage)
        self.sizes = th.from_numpy(np.minimum(stops[episodes] - firsts, length)).to(storage)
        is_first = th.zeros(buffer.n_offline, dtype=th.bool, device=storage)
        is_first[th.from_numpy(self.episode_starts).to(storage)] = True
        self.is_first = is_first

    def last_actions(self, steps: th.Tensor) -> th.Tensor:
        """
        The action before every step, 0 at the beginning of an episode, on the buffer's device.

        :param steps: numbers of steps, any shape
        """
        actions = self.buffer.steps(steps - (~self.is_first[steps]).long()).actions
        return actions.masked_fill(self.is_first[steps].to(actions.device).unsqueeze(-1), 0.0)

    def hidden_states(self, policy: MAPLEPolicy, encoders: tuple[ContextEncoder, ContextEncoder]) -> HiddenStates:
        """
        Run both encoders over all episodes, each from a state of zeros.

        :param policy: scales the observations
        :param encoders: the policy's and the value encoder
        """
        n, device = self.buffer.n_offline, self.buffer.device
        states = [th.zeros(n, encoder.gru.hidden_size, dtype=policy.log_alpha.dtype, device=device) for encoder in encoders]
        # Episodes of similar length together, so that little is computed for nothing.
        order = np.argsort(-self.episode_lengths, kind="stable")
        for episodes in np.array_split(order, -(-len(order) // EPISODES_AT_ONCE)):
            self._fill(states, policy, encoders, self.episode_starts[episodes], self.episode_lengths[episodes])
        return HiddenStates(*states)

    @th.no_grad()
    def _fill(
        self,
        states: list[th.Tensor],
        policy: MAPLEPolicy,
        encoders: tuple[ContextEncoder, ContextEncoder],
        starts: np.ndarray,
        lengths: np.ndarray,
    ) -> None:
        """Write the states before every step of some episodes, the longest first."""
        storage, device = self.is_first.device, self.buffer.device
        hidden = [states[i].new_zeros(len(starts), states[i].shape[1]) for i in range(2)]
        for begin in range(0, int(lengths[0]), STEPS_AT_ONCE):
            n_active = int((lengths > begin).sum())
            offsets = np.arange(begin, begin + STEPS_AT_ONCE)
            # Of episodes that end in here the last step is repeated; nobody reads what follows on it.
            inside = offsets < lengths[:n_active, None]
            steps = th.from_numpy(starts[:n_active, None] + np.minimum(offsets, lengths[:n_active, None] - 1)).to(storage)
            observations = policy.scale_observations(self.buffer.steps(steps).observations.to(states[0].dtype))
            last_actions = self.last_actions(steps).to(states[0].dtype)
            mask = th.from_numpy(inside).to(device)
            rows = steps.to(device)[mask]
            for i, encoder in enumerate(encoders):
                after = encoder.hidden_states(observations, last_actions, hidden[i][:n_active])
                before = th.cat([hidden[i][:n_active].unsqueeze(1), after[:, :-1]], dim=1)
                states[i][rows] = before[mask]
                hidden[i] = after[:, -1]

    def sequences(self, numbers: th.Tensor, hidden: HiddenStates) -> Sequences:
        """
        Pieces by number, padded with zeros, on the buffer's device, without noise.

        :param numbers: numbers of pieces, shape ``(n,)``
        :param hidden: states before every step
        """
        firsts, sizes = self.firsts[numbers], self.sizes[numbers]
        offsets = th.arange(self.length, device=firsts.device)
        inside = offsets < sizes.unsqueeze(1)
        steps = firsts.unsqueeze(1) + th.minimum(offsets, sizes.unsqueeze(1) - 1)
        found = self.buffer.steps(steps)
        valid = inside.to(found.rewards.device).unsqueeze(2).to(found.rewards.dtype)
        rows = firsts.to(self.buffer.device)
        return Sequences(
            observations=found.observations * valid,
            actions=found.actions * valid,
            next_observations=found.next_observations * valid,
            rewards=found.rewards * valid,
            dones=found.dones * valid,
            valid=valid,
            last_actions=self.last_actions(firsts),
            policy_hidden=hidden.policy[rows],
            value_hidden=hidden.value[rows],
            noise={},
        )


class LearnedEnvironment(NamedTuple):
    """
    The ensemble as an environment, with its penalty and its limits.

    :param ensemble: predicts
    :param rule: when an episode ends
    :param penalty: kind of the penalty
    :param penalty_coef: its weight
    :param penalty_clip: the largest penalty
    :param reward_range: where penalised rewards are clipped
    :param observation_min: where observations are clipped, shape ``(S,)``
    :param observation_max: the same above
    """

    ensemble: DynamicsEnsemble
    rule: TerminationRule
    penalty: str
    penalty_coef: float
    penalty_clip: float
    reward_range: tuple[float, float]
    observation_min: th.Tensor
    observation_max: th.Tensor

    def step(
        self, observations: th.Tensor, actions: th.Tensor, noise: th.Tensor, members: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        """
        Penalised rewards ``(n, 1)``, next observations ``(n, S)``, whether the episode ended ``(n, 1)``, and the clipped
        penalties ``(n, 1)``. All numbers are finite, whatever the ensemble predicts.

        :param observations: shape ``(n, S)``
        :param actions: shape ``(n, A)``
        :param noise: standard normal, shape ``(n, 1+S)``
        :param members: which net answers, by row, shape ``(n,)``
        """
        rewards, next_observations, penalties = self.ensemble.step(observations, actions, noise, members, self.penalty)
        penalties = penalties.nan_to_num(nan=self.penalty_clip, posinf=self.penalty_clip).clamp(max=self.penalty_clip)
        low, high = self.reward_range
        # What is not finite is the worst reward, and leaves the state where it was.
        penalised = th.where(rewards.isfinite(), rewards - self.penalty_coef * penalties, low).clamp(low, high)
        ends = checked_ends(self.rule(observations, actions, next_observations), len(observations))
        next_observations = th.where(next_observations.isfinite(), next_observations, observations)
        next_observations = th.minimum(th.maximum(next_observations, self.observation_min), self.observation_max)
        return penalised, next_observations, ends.unsqueeze(1).to(rewards.dtype), penalties


class RolloutNoise(NamedTuple):
    """
    The random numbers of imagined episodes.

    :param actions: standard normal, shape ``(T, n, A)``
    :param model: standard normal, shape ``(T, n, 1+S)``
    :param members: which net answers, by step and row, shape ``(T, n)``
    """

    actions: th.Tensor
    model: th.Tensor
    members: th.Tensor


class RolloutStatistics(NamedTuple):
    """
    What a rollout was like, 0-d each.

    :param mean_reward: mean penalised reward of the steps that count
    :param mean_penalty: mean clipped penalty of these
    :param max_penalty: largest clipped penalty of these
    :param valid_fraction: share of the episodes that still go on at the last step
    :param mean_return: mean sum of the rewards, without penalty, of an episode
    """

    mean_reward: th.Tensor
    mean_penalty: th.Tensor
    max_penalty: th.Tensor
    valid_fraction: th.Tensor
    mean_return: th.Tensor


class ModelBuffer:
    """
    A ring of imagined sequences: whole rollouts, the oldest one is overwritten. What can be rebuilt is not stored: a next
    observation is the next step's, and a step counts if no earlier one was terminal.

    :param n_rollouts: number of rollouts that are kept
    :param rollout_size: sequences of a rollout
    :param length: steps of a sequence, T
    :param policy: for sizes, type and device
    :param first: number of the rollout that stands first in it
    """

    def __init__(self, n_rollouts: int, rollout_size: int, length: int, policy: MAPLEPolicy, first: int = 0) -> None:
        self.n_rollouts, self.rollout_size, self.length, self.first = n_rollouts, rollout_size, length, first
        capacity = n_rollouts * rollout_size
        like = policy.log_alpha.detach()
        self.observations = like.new_zeros(capacity, length + 1, policy.observation_size)
        # The action before the sequence stands first.
        self.actions = like.new_zeros(capacity, length + 1, policy.action_size)
        self.rewards = like.new_zeros(capacity, length, 1)
        self.dones = like.new_zeros(capacity, length, 1)
        self.policy_hidden = like.new_zeros(capacity, policy.gru_size)
        self.value_hidden = like.new_zeros(capacity, policy.gru_size)
        self.n_filled = 0

    def slot(self, number: int) -> int:
        """
        First row of a rollout.

        :param number: number of the rollout
        """
        return ((number - self.first) % self.n_rollouts) * self.rollout_size

    def sequences(self, rows: th.Tensor) -> Sequences:
        """
        Sequences by row, without noise.

        :param rows: shape ``(n,)``
        """
        observations, actions, dones = self.observations[rows], self.actions[rows], self.dones[rows]
        alive = (1.0 - dones).cumprod(dim=1)
        return Sequences(
            observations=observations[:, :-1],
            actions=actions[:, 1:],
            next_observations=observations[:, 1:],
            rewards=self.rewards[rows],
            dones=dones,
            valid=th.cat([th.ones_like(alive[:, :1]), alive[:, :-1]], dim=1),
            last_actions=actions[:, 0],
            policy_hidden=self.policy_hidden[rows],
            value_hidden=self.value_hidden[rows],
            noise={},
        )

    @th.no_grad()
    def roll_out(
        self, rows: slice, environment: LearnedEnvironment, policy: MAPLEPolicy, start: Sequences, noise: RolloutNoise
    ) -> th.Tensor:
        """
        Imagine episodes and store them; their clipped penalties, shape ``(n, T, 1)``. They go on after a terminal step, which
        costs less than leaving them out; these steps do not count.

        :param rows: where they are stored
        :param environment: the learned environment
        :param policy: acts, by samples
        :param start: first observations, actions before them and hidden states; the rest of it is not read
        :param noise: the random numbers
        """
        observations, last_actions, hidden = start.observations[:, 0], start.last_actions, start.policy_hidden
        self.observations[rows, 0], self.actions[rows, 0] = observations, last_actions
        self.policy_hidden[rows], self.value_hidden[rows] = hidden, start.value_hidden
        all_penalties = []
        for step in range(self.length):
            actions, hidden = policy.act(observations, hidden, last_actions, noise.actions[step], in_training=True)
            answer = environment.step(observations, actions, noise.model[step], noise.members[step])
            rewards, observations, dones, penalties = answer
            self.actions[rows, step + 1], self.observations[rows, step + 1] = actions, observations
            self.rewards[rows, step], self.dones[rows, step] = rewards, dones
            all_penalties.append(penalties)
            last_actions = actions
        return th.stack(all_penalties, dim=1)

    def statistics(self, rows: slice, penalties: th.Tensor, penalty_coef: float) -> RolloutStatistics:
        """
        What the sequences of some rows are like.

        :param rows: the rows
        :param penalties: their clipped penalties, shape ``(n, T, 1)``
        :param penalty_coef: weight of the penalty
        """
        indices = th.arange(rows.start, rows.stop, device=self.rewards.device)
        found = self.sequences(indices)
        returns = ((found.rewards + penalty_coef * penalties) * found.valid).sum(dim=(1, 2))
        return RolloutStatistics(
            mean_reward=found.mean(found.rewards),
            mean_penalty=found.mean(penalties),
            max_penalty=(penalties * found.valid).max(),
            valid_fraction=found.valid[:, -1].mean(),
            mean_return=returns.mean(),
        )


def observation_limits(observations: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Where imagined observations are clipped, shape ``(S,)`` each.

    :param observations: those of the dataset, shape ``(N, S)``
    """
    low, high = observations.amin(dim=0), observations.amax(dim=0)
    margin = RANGE_MARGIN * (high - low)
    return (low - margin).clamp(max=-SMALLEST_RANGE), (high + margin).clamp(min=SMALLEST_RANGE)
