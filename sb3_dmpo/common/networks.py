"""Networks of the algorithms. All of them take scaled observations and actions in [-1, 1]."""

import itertools
import math

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn


def drop(hidden: th.Tensor, uniform: th.Tensor | None, dropout: float) -> th.Tensor:
    """
    Dropout with given random numbers, same shape.

    :param hidden: what is dropped from
    :param uniform: U(0, 1) draws, same shape; None drops nothing
    :param dropout: probability of zeroing an entry
    """
    return hidden if uniform is None else hidden * (uniform >= dropout) / (1.0 - dropout)


class Actor(nn.Module):
    """
    Deterministic actor ``mu(s)`` with tanh output.

    :param observation_size: S
    :param action_size: A
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation of the hidden layers
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.mu = nn.Sequential(*create_mlp(observation_size, action_size, net_arch, activation_fn, squash_output=True))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Actions, shape ``(batch, action_size)``."""
        actions: th.Tensor = self.mu(observations)
        return actions


class LatentEmbedding(nn.Module):
    """
    What the one-hot latent becomes before it meets the observation: ``relu(W z + b)``, or z itself.

    :param n_components: K
    :param embedding_size: width of the embedding; 0 passes z through
    """

    def __init__(self, n_components: int, embedding_size: int) -> None:
        super().__init__()
        self.output_size = embedding_size or n_components
        self.net = nn.Sequential(nn.Linear(n_components, embedding_size), nn.ReLU()) if embedding_size else nn.Identity()

    def forward(self, z: th.Tensor) -> th.Tensor:
        """Embedding, shape ``(batch, output_size)``."""
        embedded: th.Tensor = self.net(z)
        return embedded


def activate(activation: nn.Module, hidden: th.Tensor) -> th.Tensor:
    """
    Activation of a fresh hidden layer, same shape; in place where no gradient is recorded, because comparing all
    components is bound by memory outside the matrix products.

    :param activation: the activation module
    :param hidden: its input, not used again by the caller
    """
    if isinstance(activation, nn.ReLU) and not th.is_grad_enabled():
        return hidden.relu_()
    activated: th.Tensor = activation(hidden)
    return activated


def remaining_layers(net: nn.Sequential, hidden: th.Tensor) -> th.Tensor:
    """
    Output of a network from the output of its first linear layer on.

    :param net: linear layers and activations
    :param hidden: output of ``net[0]``, not used again by the caller
    """
    for layer in list(net)[1:]:
        hidden = activate(layer, hidden)
    return hidden


def first_layer_split(net: nn.Sequential, shared: th.Tensor, own: th.Tensor) -> th.Tensor:
    """
    Output of a first linear layer on every pair of a shared and an own input, shape ``(batch, n, width)``.

    The layer's matrix is split by columns, so that the shared part is multiplied once and not n times.

    :param net: network whose first layer takes ``[shared, own]``
    :param shared: shape ``(batch, shared_size)``
    :param own: shape ``(batch or 1, n, own_size)``
    """
    layer = net[0]
    assert isinstance(layer, nn.Linear)
    size = shared.shape[1]
    shared_part = nn.functional.linear(shared, layer.weight[:, :size], layer.bias)
    return shared_part.unsqueeze(1) + nn.functional.linear(own, layer.weight[:, size:])


def chosen_actions(actions: th.Tensor, index: th.Tensor) -> th.Tensor:
    """
    One action per observation out of several, shape ``(batch, action_size)``.

    :param actions: shape ``(batch, n, action_size)``
    :param index: which one, shape ``(batch, 1)``
    """
    # gather, because torch.export fixes the batch size in take_along_dim.
    return actions.gather(1, index.unsqueeze(2).expand(-1, -1, actions.shape[2])).squeeze(1)


class EnsembleLinear(nn.Module):
    """
    ``n_models`` independent linear layers in one batched product, initialised as ``nn.Linear`` does.

    :param n_models: number of layers
    :param in_features: input width
    :param out_features: output width
    """

    def __init__(self, n_models: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(in_features)
        self.weight = nn.Parameter(th.empty(n_models, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(th.empty(n_models, 1, out_features).uniform_(-bound, bound))

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """
        Shape ``(n_models, out_features, batch)``: with the batch last, gradients of the matrices need no transposition.

        :param inputs: shape ``(n_models, in_features, batch)``
        """
        # baddbmm would copy the bias first; compiled, the addition becomes one with the activation.
        return th.bmm(self.weight, inputs).add_(self.bias.mT)


class EnsembleLayerNorm(nn.Module):
    """
    Layer norms of ``n_models`` networks, each with a trained scale and shift per unit.

    :param n_models: number of networks
    :param width: number of units
    """

    def __init__(self, n_models: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(th.ones(n_models, 1, width))
        self.bias = nn.Parameter(th.zeros(n_models, 1, width))

    def forward(self, hidden: th.Tensor) -> th.Tensor:
        """
        Every row with mean 0 and variance 1, scaled and shifted, same shape.

        :param hidden: shape ``(n_models, rows, width)``
        """
        return th.addcmul(self.bias, nn.functional.layer_norm(hidden, self.weight.shape[2:]), self.weight)


class EnsembleCritic(nn.Module):
    """
    ``n_critics`` Q-functions ``Q_j(s, a)`` without shared layers, evaluated together.

    :param observation_size: S
    :param action_size: A
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation of the hidden layers
    :param n_critics: number of Q-functions
    :param layer_norm: whether a layer norm follows on the activation of every hidden layer
    :param n_outputs: values per observation and action
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.ReLU,
        n_critics: int = 2,
        layer_norm: bool = False,
        n_outputs: int = 1,
    ) -> None:
        super().__init__()
        self.n_critics = n_critics
        sizes = [observation_size + action_size, *net_arch, n_outputs]
        self.layers = nn.ModuleList(EnsembleLinear(n_critics, *pair) for pair in itertools.pairwise(sizes))
        self.activation = activation_fn()
        self.norms = nn.ModuleList(EnsembleLayerNorm(n_critics, width) for width in (net_arch if layer_norm else []))

    def _hidden_to_output(self, hidden: th.Tensor) -> th.Tensor:
        """Shape ``(n_critics, 1, batch)``, from the first layer's output ``(n_critics, width, batch)``."""
        for i, layer in enumerate(self.layers[1:]):
            hidden = activate(self.activation, hidden)
            hidden = layer(self.norms[i](hidden.mT).mT if self.norms else hidden)
        return hidden

    def forward(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Q-values, shape ``(n_critics, batch, 1)``.

        :param observations: shape ``(batch, observation_size)``
        :param actions: shape ``(batch, action_size)``
        """
        inputs = th.cat([observations, actions], dim=1)
        return self._hidden_to_output(self.layers[0](inputs.mT.expand(self.n_critics, *inputs.mT.shape))).mT

    def all_actions(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Q-values of several actions per observation, shape ``(n_critics, batch, n)``; the observation's part of the
        first layer is computed once.

        :param observations: shape ``(batch, observation_size)``
        :param actions: shape ``(batch, n, action_size)``
        """
        weights, biases = self.weights_and_biases()
        batch, n, action_size = actions.shape
        size = observations.shape[1]
        weight = weights[0].transpose(1, 2)
        shared = th.baddbmm(biases[0], observations.expand(self.n_critics, *observations.shape), weight[:, :size])
        own = th.unflatten(th.matmul(actions.reshape(batch * n, action_size), weight[:, size:]), 1, (batch, n))
        hidden = own + shared.unsqueeze(2) if th.is_grad_enabled() else own.add_(shared.unsqueeze(2))
        hidden = hidden.flatten(1, 2)
        # Not with the batch last: of a transposed factor ONNX Runtime up to 1.23 makes an operator that it lacks for doubles.
        for i, (weight, bias) in enumerate(zip(weights[1:], biases[1:], strict=True)):
            hidden = activate(self.activation, hidden)
            hidden = th.baddbmm(bias, self.norms[i](hidden) if self.norms else hidden, weight.mT)
        return hidden.view(self.n_critics, batch, n)

    def weights_and_biases(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Matrices ``(n_critics, out, in)`` and biases ``(n_critics, 1, out)`` of the layers."""
        layers = [layer for layer in self.layers if isinstance(layer, EnsembleLinear)]
        return [layer.weight for layer in layers], [layer.bias for layer in layers]

    def scales_and_shifts(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Of the layer norms, shape ``(n_critics, 1, width)`` each; none without."""
        norms = [norm for norm in self.norms if isinstance(norm, EnsembleLayerNorm)]
        return [norm.weight for norm in norms], [norm.bias for norm in norms]


class ValueNetwork(nn.Module):
    """
    State value ``V(s)``.

    :param observation_size: S
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation of the hidden layers
    :param layer_norm: whether a layer norm follows on the activation of every hidden layer
    """

    def __init__(
        self,
        observation_size: int,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.ReLU,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        layers = create_mlp(observation_size, 1, net_arch, activation_fn)
        for i, width in reversed(list(enumerate(net_arch if layer_norm else []))):
            layers.insert(2 * i + 2, nn.LayerNorm(width))
        self.vf = nn.Sequential(*layers)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Values, shape ``(batch, 1)``."""
        values: th.Tensor = self.vf(observations)
        return values
