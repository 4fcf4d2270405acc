"""OneStepDMPO."""

from typing import Any, Literal

from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_dmpo.dmpo.dmpo import DMPO
from sb3_dmpo.dmpo.policies import Gate


class OneStepDMPO(DMPO):
    """
    DMPO whose sub-policies part and whose critics see nothing but the data: one step of policy improvement per way of acting.

    Not an algorithm of the paper. It is :class:`DMPO` with other defaults:

    * The decoder is calibrated (Rybkin et al., ICML 2021, eq. 7), the prior ``p(z|s)`` learned and ``q(z|s, a)`` exact, so
      that the sub-policies are the components of a mixture density of the data.
    * The critics have layer norm and evaluate what the data do, ``n_steps`` rewards at a time (SARSA; Brandfonbrener et al.,
      NeurIPS 2021, *Offline RL Without Off-Policy Evaluation*). No action that the data lack enters a target.
    * Every sub-policy climbs the critics where the data are its own (``q_coef``), without advantage weights.
    * The gate is the argmax of the values over the sub-policies that the data support in that state.

    The setting is not confirmed on long runs: the documentation has what was measured.

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
    :param q_coef: see :class:`DMPO`
    :param policy_kwargs: arguments of the policy; ``critic_layer_norm`` is True unless it is given
    :param kwargs: further arguments of :class:`DMPO`
    """

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
