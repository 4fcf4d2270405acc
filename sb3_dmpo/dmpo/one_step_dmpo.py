"""OneStepDMPO."""

from typing import Any, ClassVar, Literal

from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_dmpo.dmpo.dmpo import DMPO
from sb3_dmpo.dmpo.policies import Gate


class OneStepDMPO(DMPO):
    """
    DMPO whose sub-policies last an episode: it finds out who made which episode, what acting as each of them is worth from a
    state on, and acts as the best of those that the data know there.

    Not an algorithm of the paper. It is :class:`DMPO` with other defaults:

    * A transition is assigned by the evidence of its whole episode: policies that differ by less than their noise cannot be
      told from a step, but from an episode (``assignment="episode"``).
    * The decoder is calibrated (Rybkin et al., ICML 2021, eq. 7), the prior ``p(z|s)`` learned, so that the
      sub-policies are the components of a mixture density of the data.
    * The critics ``Q_j(s, z)`` have layer norm and evaluate the sub-policies, ``n_steps`` rewards at a time: one step of
      policy improvement (Brandfonbrener et al., NeurIPS 2021, *Offline RL Without Off-Policy Evaluation*). No action that
      the data lack enters a target, and nothing is weighted by advantages.
    * The gate is the argmax of the values over the sub-policies that the data support in that state.

    One step of improvement stays near the data: where good behaviour must be put together from pieces of bad one (AntMaze),
    use an algorithm that evaluates its own policy, e.g. :class:`IQL` or :class:`ReBRAC`.

    :param policy: ``"MlpPolicy"``, ``"MultiInputPolicy"`` or a policy class
    :param env: environment; optional
    :param dataset: Minari id, ``MinariDataset``, SB3 ``ReplayBuffer``, path to a D4RL HDF5 file, ...
    :param learning_rate: learning rate of critics, actor and prior
    :param policy_delay: actor, prior and targets are updated once every ``policy_delay`` updates
    :param n_components: K, number of sub-policies
    :param n_steps: the critics learn from so many rewards at a time
    :param advantage_scale: alpha of the advantage weights; 0 weighs all data alike
    :param bootstrap: see :class:`DMPO`
    :param decoder: see :class:`DMPO`
    :param assignment: see :class:`DMPO`
    :param prior: see :class:`DMPO`
    :param gate: see :class:`DMPO`
    :param gate_support: see :class:`DMPO`
    :param policy_kwargs: arguments of the policy; ``critic_layer_norm`` is True unless it is given
    :param kwargs: further arguments of :class:`DMPO`
    """

    # Of 0 only: critics of sub-policies have no values of actions.
    unused_arguments: ClassVar[tuple[str, ...]] = ("advantage_scale",)

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        dataset: Any = None,
        learning_rate: float | Schedule = 1e-3,
        policy_delay: int = 2,
        n_components: int = 8,
        *,
        n_steps: int = 20,
        advantage_scale: float = 0.0,
        bootstrap: Literal["policy", "data", "component"] = "component",
        decoder: Literal["fixed", "calibrated"] = "calibrated",
        assignment: Literal["posterior", "exact", "episode"] = "episode",
        prior: Literal["values", "learned"] = "learned",
        gate: Gate = "supported",
        gate_support: float = 0.1,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            policy,
            env,
            dataset,
            learning_rate,
            policy_delay,
            n_components,
            n_steps=n_steps,
            advantage_scale=advantage_scale,
            bootstrap=bootstrap,
            decoder=decoder,
            assignment=assignment,
            prior=prior,
            gate=gate,
            gate_support=gate_support,
            policy_kwargs={"critic_layer_norm": True} | (policy_kwargs or {}),
            **kwargs,
        )
