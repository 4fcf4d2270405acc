"""The diffusion policy: actions are denoised step by step, the critics choose among several."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn

from sb3_dmpo.common.gating import best_actions
from sb3_dmpo.common.networks import EnsembleCritic, chosen_actions
from sb3_dmpo.common.policies import OfflinePolicy

#: Seed of the noise behind deterministic actions: every model acts on the same draws.
ACTING_NOISE_SEED = 0
#: Width of the sinusoidal encoding of the diffusion step.
TIME_SIZE = 16


class DiffusionStep(NamedTuple):
    """
    Constants of one diffusion step.

    :param signal: share of the action kept after noising up to this step, the square root of a-bar
    :param noise: share of the noise after noising up to this step
    :param mean_action: factor on the estimated action in the mean of the reverse step
    :param mean_noisy: factor on the noisy action in the mean of the reverse step
    :param std: standard deviation of the reverse step
    """

    signal: float
    noise: float
    mean_action: float
    mean_noisy: float
    std: float


def vp_schedule(n_steps: int) -> list[DiffusionStep]:
    """
    The variance-preserving schedule with rates from 0.1 to 10, first noising step first.

    :param n_steps: number of diffusion steps
    """
    steps = []
    kept_before = 1.0
    for k in range(1, n_steps + 1):
        alpha = math.exp(-0.1 / n_steps - 0.5 * 9.9 * (2 * k - 1) / n_steps**2)
        beta, kept = 1.0 - alpha, kept_before * alpha
        steps.append(
            DiffusionStep(
                signal=math.sqrt(kept),
                noise=math.sqrt(1.0 - kept),
                mean_action=beta * math.sqrt(kept_before) / (1.0 - kept),
                mean_noisy=(1.0 - kept_before) * math.sqrt(alpha) / (1.0 - kept),
                std=math.sqrt(beta * (1.0 - kept_before) / (1.0 - kept)),
            )
        )
        kept_before = kept
    return steps


def time_encodings(n_steps: int) -> th.Tensor:
    """
    Sinusoidal encoding of every step, sines before cosines, shape ``(n_steps, TIME_SIZE)``.

    :param n_steps: number of diffusion steps
    """
    half = TIME_SIZE // 2
    frequencies = th.exp(th.arange(half, dtype=th.float64) * (-math.log(10000.0) / (half - 1)))
    angles = th.arange(n_steps, dtype=th.float64).unsqueeze(1) * frequencies
    return th.cat([angles.sin(), angles.cos()], dim=1).to(th.get_default_dtype())


class DiffusionActor(nn.Module):
    """
    A network that predicts the noise in a noisy action, and the reverse chain that turns noise into actions with it.

    :param observation_size: S
    :param action_size: A
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation of the hidden layers
    :param n_steps: number of diffusion steps
    """

    def __init__(
        self, observation_size: int, action_size: int, net_arch: list[int], activation_fn: type[nn.Module], n_steps: int
    ) -> None:
        super().__init__()
        self.schedule = vp_schedule(n_steps)
        self.time_net = nn.Sequential(*create_mlp(TIME_SIZE, TIME_SIZE, [2 * TIME_SIZE], activation_fn))
        input_size = action_size + TIME_SIZE + observation_size
        self.noise_net = nn.Sequential(*create_mlp(input_size, action_size, net_arch, activation_fn))
        self.register_buffer("time_encodings", time_encodings(n_steps), persistent=False)
        shares = [[step.signal for step in self.schedule], [step.noise for step in self.schedule]]
        self.register_buffer("shares", th.tensor(shares), persistent=False)
        self.time_encodings: th.Tensor
        self.shares: th.Tensor

    def predict_noise(self, observations: th.Tensor, noisy_actions: th.Tensor, time: th.Tensor) -> th.Tensor:
        """
        The noise in some noisy actions, shape ``(batch, action_size)``.

        :param observations: shape ``(batch, observation_size)``
        :param noisy_actions: shape ``(batch, action_size)``
        :param time: embedded diffusion steps, shape ``(batch, TIME_SIZE)``
        """
        noise: th.Tensor = self.noise_net(th.cat([noisy_actions, time, observations], dim=1))
        return noise

    def denoising_loss(self, observations: th.Tensor, actions: th.Tensor, steps: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """
        Mean squared error of the predicted noise, 0-d.

        :param observations: shape ``(batch, observation_size)``
        :param actions: clean actions, shape ``(batch, action_size)``
        :param steps: diffusion steps counted from 0, shape ``(batch,)``
        :param noise: standard normal, shape ``(batch, action_size)``
        """
        signal_share, noise_share = self.shares[:, steps].unsqueeze(2)
        time = self.time_net(self.time_encodings)[steps]
        predicted = self.predict_noise(observations, signal_share * actions + noise_share * noise, time)
        return (predicted - noise).square().mean()

    def forward(self, observations: th.Tensor, noise: Sequence[th.Tensor]) -> th.Tensor:
        """
        Actions at the end of the reverse chain, in [-1, 1], shape ``(batch, action_size)``; differentiable.

        :param observations: shape ``(batch, observation_size)``
        :param noise: the start of the chain, then the noise of every step but the last, each standard normal of shape
            ``(batch, action_size)``
        """
        times = self.time_net(self.time_encodings)
        actions = noise[0]
        for k in reversed(range(len(self.schedule))):
            step = self.schedule[k]
            predicted = self.predict_noise(observations, actions, times[k].expand(observations.shape[0], -1))
            clean = ((actions - step.noise * predicted) / step.signal).clamp(-1.0, 1.0)
            actions = step.mean_action * clean + step.mean_noisy * actions
            if k > 0:
                actions = actions + step.std * noise[len(self.schedule) - k]
        return actions.clamp(-1.0, 1.0)


class DiffusionPolicy(OfflinePolicy):
    """
    Several actions are sampled by the reverse chain; one is drawn with probabilities softmax(min_j Q_j) of the target
    critics. With ``deterministic=True`` the best one is taken, and the chain always runs on the same noise, which is
    part of the model: equal observations give equal actions, whatever else is in the batch.

    :param args: arguments of :class:`OfflinePolicy`
    :param n_diffusion_steps: number of diffusion steps
    :param n_action_samples: number of actions among which ``predict`` chooses
    :param activation_fn: activation of the hidden layers
    :param kwargs: keyword arguments of :class:`OfflinePolicy`
    """

    default_net_arch: ClassVar[tuple[int, ...]] = (256, 256, 256)

    def __init__(
        self,
        *args: Any,
        n_diffusion_steps: int = 5,
        n_action_samples: int = 50,
        activation_fn: type[nn.Module] = nn.Mish,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs | {"activation_fn": activation_fn})
        self.n_diffusion_steps = n_diffusion_steps
        self.n_action_samples = n_action_samples
        sizes = (self.observation_size, self.action_size)
        self.actor: DiffusionActor = DiffusionActor(*sizes, self.actor_arch, self.activation_fn, n_diffusion_steps)
        self.actor_ema = self.make_target(self.actor)
        self.critic = self.make_critic()
        self.critic_target = self.make_target(self.critic)
        generator = th.Generator().manual_seed(ACTING_NOISE_SEED)
        noise = th.randn(n_diffusion_steps, n_action_samples, self.action_size, generator=generator)
        self.register_buffer("acting_noise", noise)
        self.acting_noise: th.Tensor

    gate_networks: ClassVar[tuple[str, ...]] = ("actor", "critic_target")

    def _predict(self, observation: th.Tensor, deterministic: bool = False) -> th.Tensor:  # type: ignore[override]
        observations = self.scale_observations(observation)
        networks = (self.acting("actor"), self.critic_target)
        if deterministic:
            return best_actions(observations, networks, self.sample_table)[1]
        shape = (self.n_diffusion_steps, len(observations) * self.n_action_samples, self.action_size)
        noise = th.randn(shape, device=observations.device, dtype=observations.dtype)
        q_values, actions = self.sample_table(observations, *networks, noise)
        return chosen_actions(actions, th.multinomial(th.softmax(q_values, dim=1), num_samples=1))

    def sample_table(
        self, observations: th.Tensor, actor: nn.Module, critic: nn.Module, noise: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Values of several sampled actions, shape ``(batch, n_action_samples)``, and the actions, shape
        ``(batch, n_action_samples, action_size)``.

        :param observations: scaled observations, shape ``(batch, observation_size)``
        :param actor: the network that denoises
        :param critic: the critics
        :param noise: standard normal, shape ``(n_diffusion_steps, batch * n_action_samples, action_size)``; None: that of
            deterministic actions
        """
        assert isinstance(actor, DiffusionActor) and isinstance(critic, EnsembleCritic)
        # Not len(), which torch.export takes for a constant.
        batch, n = observations.shape[0], self.n_action_samples
        if noise is None:
            noise = self.acting_noise.to(observations).repeat(1, batch, 1)
        actions = th.unflatten(actor(observations.repeat_interleave(n, dim=0), noise.unbind()), 0, (batch, n))
        return critic.all_actions(observations, actions).amin(dim=0), actions

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        return parameters | {"n_diffusion_steps": self.n_diffusion_steps, "n_action_samples": self.n_action_samples}
