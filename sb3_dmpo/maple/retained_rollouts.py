"""The weights that make the imagined episodes of the model buffer again: the episodes themselves are not in the zip."""

from collections import deque
from typing import NamedTuple

import numpy as np
import torch as th
from torch import nn
from torch.nn.utils import parameters_to_vector

from sb3_dmpo.files.safe_zip import DamagedFileError
from sb3_dmpo.maple.policies import ContextEncoder, MAPLEPolicy


class Recipe(NamedTuple):
    """
    What made a rollout: enough to make it again.

    :param number: number of the rollout
    :param refresh: number of updates at the refresh whose hidden states it began with
    :param actor: parameters of the policy's encoder and of the actor
    """

    number: int
    refresh: int
    actor: th.Tensor


class RetainedRollouts:
    """
    What made the rollouts that are still in the model buffer.

    :param n_retained: number of rollouts that it holds
    """

    def __init__(self, n_retained: int) -> None:
        self.recipes: deque[Recipe] = deque(maxlen=n_retained)
        #: Parameters of both encoders at the refreshes that are still needed, by number of updates.
        self.encoders: dict[int, tuple[th.Tensor, th.Tensor]] = {}

    def note_refresh(self, done: int, policy: MAPLEPolicy) -> None:
        """
        Keep the encoders with which the dataset's hidden states were computed.

        :param done: number of updates before it
        :param policy: their owner
        """
        self._keep({recipe.refresh for recipe in self.recipes})
        self.encoders[done] = (_parameters(policy.policy_encoder), _parameters(policy.value_encoder))

    def note_rollout(self, number: int, refresh: int, policy: MAPLEPolicy) -> None:
        """
        Keep what acted in a rollout, and drop what only those before the retained ones needed.

        :param number: number of the rollout
        :param refresh: number of updates at the refresh whose hidden states it began with
        :param policy: has acted
        """
        actor = th.cat([_parameters(policy.policy_encoder), _parameters(policy.actor)])
        self.recipes.append(Recipe(number, refresh, actor))
        self._keep({recipe.refresh for recipe in self.recipes})

    def _keep(self, needed: set[int]) -> None:
        self.encoders = {done: vectors for done, vectors in self.encoders.items() if done in needed}

    @th.no_grad()
    def set_encoders(self, policy: MAPLEPolicy, done: int) -> tuple[ContextEncoder, ContextEncoder]:
        """
        Give a policy the encoders of a refresh; they are returned.

        :param policy: the policy
        :param done: number of updates before the refresh
        """
        encoders = (policy.policy_encoder, policy.value_encoder)
        for encoder, vector in zip(encoders, self.encoders[done], strict=True):
            _set_parameters(encoder, vector)
        return encoders

    @th.no_grad()
    def set_actor(self, policy: MAPLEPolicy, recipe: Recipe) -> None:
        """
        Let a policy act as in a rollout.

        :param policy: the policy
        :param recipe: that of the rollout
        """
        size = _size(policy.policy_encoder)
        _set_parameters(policy.policy_encoder, recipe.actor[:size])
        _set_parameters(policy.actor, recipe.actor[size:])

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything as arrays."""
        arrays: dict[str, np.ndarray] = {}
        for done, (policy_encoder, value_encoder) in self.encoders.items():
            arrays[f"refreshes/{done}/policy"] = policy_encoder.numpy()
            arrays[f"refreshes/{done}/value"] = value_encoder.numpy()
        return arrays | {f"rollouts/{recipe.number}/{recipe.refresh}": recipe.actor.numpy() for recipe in self.recipes}

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, np.ndarray], n_retained: int, refresh: int, policy: MAPLEPolicy
    ) -> "RetainedRollouts":
        """
        What :meth:`to_arrays` was called on.

        :param arrays: its return value; other arrays may be among them
        :param n_retained: number of rollouts that the model buffer holds
        :param refresh: number of updates at the last refresh
        :param policy: for the sizes of the weights
        :raises DamagedFileError: they are not that
        """
        made = cls(n_retained)
        encoder_sizes = (_size(policy.policy_encoder), _size(policy.value_encoder))
        recipes = []
        try:
            for name, vector in arrays.items():
                kind, _, rest = name.partition("/")
                if kind == "refreshes" and rest.endswith("/policy"):
                    done = rest.removesuffix("/policy")
                    vectors = [vector, arrays[f"refreshes/{done}/value"]]
                    policy_encoder, value_encoder = map(_checked_vector, vectors, encoder_sizes)
                    made.encoders[int(done)] = (policy_encoder, value_encoder)
                elif kind == "rollouts":
                    number, begun_at = map(int, rest.split("/"))
                    recipes.append(Recipe(number, begun_at, _checked_vector(vector, encoder_sizes[0] + _size(policy.actor))))
            needed = {refresh, *(recipe.refresh for recipe in recipes)} if recipes else set()
            if not needed <= {*made.encoders}:
                raise ValueError("the weights at a refresh are missing")
        except (KeyError, ValueError) as error:
            raise DamagedFileError(f"The imagined episodes in the file cannot be made again ({error}).") from None
        made.recipes.extend(sorted(recipes, key=lambda recipe: recipe.number))
        return made


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _parameters(module: nn.Module) -> th.Tensor:
    """All parameters of a module as one vector in main memory."""
    return parameters_to_vector(module.parameters()).detach().cpu().clone()


def _set_parameters(module: nn.Module, vector: th.Tensor) -> None:
    parameters = list(module.parameters())
    for parameter, values in zip(parameters, th.split(vector, [parameter.numel() for parameter in parameters]), strict=True):
        parameter.copy_(values.view_as(parameter))


def _checked_vector(vector: np.ndarray, size: int) -> th.Tensor:
    if vector.shape != (size,) or vector.dtype not in (np.float32, np.float64):
        raise ValueError(f"there are {vector.shape} numbers for {size} weights")
    return th.tensor(vector)
