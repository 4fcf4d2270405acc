"""Networks of DMPO: the actor that all sub-policies share, the posterior that assigns data to them, and a learned prior."""

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn

from sb3_dmpo.common.networks import EnsembleCritic, LatentEmbedding, first_layer_split, remaining_layers


class MixtureActor(nn.Module):
    """
    Actor ``mu(s, z)`` shared by all sub-policies; z is a one-hot or a point of the simplex (section 4 of the paper).

    :param observation_size: S
    :param action_size: A
    :param n_components: K
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation of the hidden layers
    :param embedding_size: width of the latent's embedding (the published code uses S); 0 feeds z itself
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        n_components: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        embedding_size: int,
    ) -> None:
        super().__init__()
        self.n_components = n_components
        self.latent_embedding = LatentEmbedding(n_components, embedding_size)
        input_size = observation_size + self.latent_embedding.output_size
        self.mu = nn.Sequential(*create_mlp(input_size, action_size, net_arch, activation_fn, squash_output=True))
        self.register_buffer("one_hots", th.eye(n_components), persistent=False)
        self.one_hots: th.Tensor

    def forward(self, observations: th.Tensor, z: th.Tensor) -> th.Tensor:
        """
        Actions, shape ``(batch, action_size)``.

        :param observations: shape ``(batch, observation_size)``
        :param z: shape ``(batch, n_components)``
        """
        actions: th.Tensor = self.mu(th.cat([observations, self.latent_embedding(z)], dim=1))
        return actions

    def all_components(self, observations: th.Tensor) -> th.Tensor:
        """
        Actions of every sub-policy, shape ``(batch, n_components, action_size)``.

        :param observations: shape ``(batch, observation_size)``
        """
        embedded = self.latent_embedding(self.one_hots)
        hidden = first_layer_split(self.mu, observations, embedded.unsqueeze(0))
        return remaining_layers(self.mu, hidden)

    def weights_and_biases(self) -> tuple[list[th.Tensor], list[th.Tensor]]:
        """Matrices ``(out, in)`` and biases ``(out,)`` of the layers behind the embedding."""
        layers = [layer for layer in self.mu if isinstance(layer, nn.Linear)]
        return [layer.weight for layer in layers], [layer.bias for layer in layers]


class Posterior(nn.Module):
    """
    Categorical distribution over components given a state and an action: ``q(z|s, a)`` or infoDMPO's ``g(z|s, a)``.

    :param observation_size: S
    :param action_size: A
    :param n_components: K
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation of the hidden layers
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        n_components: int,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.logits = nn.Sequential(*create_mlp(observation_size + action_size, n_components, net_arch, activation_fn))

    def forward(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Unnormalised log-probabilities, shape ``(batch, n_components)``.

        :param observations: shape ``(batch, observation_size)``
        :param actions: shape ``(batch, action_size)``
        """
        logits: th.Tensor = self.logits(th.cat([observations, actions], dim=1))
        return logits


class ComponentCritic(EnsembleCritic):
    """
    ``n_critics`` functions ``Q_j(s, z)``, without shared layers: what acting as sub-policy z from here on is worth.

    :param observation_size: S
    :param n_components: K
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation of the hidden layers
    :param n_critics: number of functions
    :param layer_norm: whether a layer norm follows on the activation of every hidden layer
    """

    def __init__(
        self,
        observation_size: int,
        n_components: int,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.ReLU,
        n_critics: int = 2,
        layer_norm: bool = False,
    ) -> None:
        super().__init__(observation_size, 0, net_arch, activation_fn, n_critics, layer_norm, n_outputs=n_components)

    def forward(self, observations: th.Tensor, actions: th.Tensor | None = None) -> th.Tensor:
        """
        Values of all sub-policies, shape ``(n_critics, batch, n_components)``.

        :param observations: shape ``(batch, observation_size)``
        :param actions: nothing depends on them
        """
        return super().forward(observations, observations[:, :0])

    def all_actions(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :meth:`forward`, of the sub-policies' actions.

        :param observations: shape ``(batch, observation_size)``
        :param actions: nothing depends on them
        """
        return self.forward(observations)


class ComponentPrior(nn.Module):
    """
    Categorical distribution over components given a state: ``p(z|s)``, how the data act there.

    :param observation_size: S
    :param n_components: K
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation of the hidden layers
    """

    def __init__(
        self, observation_size: int, n_components: int, net_arch: list[int], activation_fn: type[nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.logits = nn.Sequential(*create_mlp(observation_size, n_components, net_arch, activation_fn))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        Log-probabilities, shape ``(batch, n_components)``.

        :param observations: shape ``(batch, observation_size)``
        """
        return th.log_softmax(self.logits(observations), dim=1)
