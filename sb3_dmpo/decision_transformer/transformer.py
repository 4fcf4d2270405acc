"""The networks of Decision Transformer: a GPT-2-like transformer over an episode, and a model of the rewards."""

import math

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn
from torch.nn import functional as F

from sb3_dmpo.common.networks import drop

#: Tokens per step: return-to-go, observation, action.
TOKENS_PER_STEP = 3
#: Standard deviation of the initial weights of the blocks, as in GPT-2.
INITIAL_STD = 0.02


class CausalBlock(nn.Module):
    """
    Attention and a two-layer perceptron, each with layer normalisation before and a residual connection around it.

    :param embed_dim: width of the tokens
    :param n_heads: number of attention heads
    :param dropout: probability of zeroing attention weights and outputs of both parts while training
    :param activation_fn: activation of the perceptron
    """

    def __init__(self, embed_dim: int, n_heads: int, dropout: float, activation_fn: type[nn.Module]) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key_value = nn.Linear(embed_dim, 2 * embed_dim)
        self.projection = nn.Linear(embed_dim, embed_dim)
        self.mlp_norm = nn.LayerNorm(embed_dim)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, 4 * embed_dim), activation_fn(), nn.Linear(4 * embed_dim, embed_dim))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INITIAL_STD)
                nn.init.zeros_(module.bias)

    def _heads(self, tokens: th.Tensor) -> th.Tensor:
        """Shape ``(batch, n_heads, n_tokens, width)``."""
        return th.unflatten(tokens, 2, (self.n_heads, -1)).transpose(1, 2)

    def attention(self, tokens: th.Tensor, visible: th.Tensor, uniform: th.Tensor | None, outputs: slice) -> th.Tensor:
        """
        Multi-head attention, shape ``(batch, n_outputs, embed_dim)``.

        :param tokens: shape ``(batch, n_tokens, embed_dim)``
        :param visible: which token (last dimension) each token may look at, shape ``(batch, 1, n_tokens, n_tokens)``
        :param uniform: draws of the dropout, shape ``(batch, n_heads, n_tokens, n_tokens)``; None drops nothing
        :param outputs: which tokens look
        """
        query = self._heads(self.query(tokens[:, outputs]))
        key, value = map(self._heads, self.key_value(tokens).chunk(2, dim=2))
        visible = visible[:, :, outputs]
        if uniform is None:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        else:
            # The same, spelled out: torch's function would draw what it drops from the global generator.
            scores = (query @ key.transpose(2, 3) / math.sqrt(query.shape[3])).masked_fill(~visible, -math.inf)
            attended = drop(scores.softmax(dim=3), uniform[:, :, outputs], self.dropout) @ value
        projected: th.Tensor = self.projection(attended.transpose(1, 2).flatten(2))
        return projected

    def forward(
        self,
        tokens: th.Tensor,
        visible: th.Tensor,
        attention_uniform: th.Tensor | None = None,
        residual_uniform: th.Tensor | None = None,
        outputs: slice = slice(None),
    ) -> th.Tensor:
        """
        Tokens after the block, shape ``(batch, n_outputs, embed_dim)``.

        :param tokens: shape ``(batch, n_tokens, embed_dim)``
        :param visible: which token (last dimension) each token may look at, shape ``(batch, 1, n_tokens, n_tokens)``
        :param attention_uniform: draws of the attention's dropout, shape ``(batch, n_heads, n_tokens, n_tokens)``; None
            drops nothing
        :param residual_uniform: draws of the dropout of both parts, shape ``(2, batch, n_tokens, embed_dim)``
        :param outputs: which tokens are wanted
        """
        first, second = (None, None) if residual_uniform is None else residual_uniform[:, :, outputs].unbind(0)
        attended = self.attention(self.attention_norm(tokens), visible, attention_uniform, outputs)
        tokens = tokens[:, outputs] + drop(attended, first, self.dropout)
        return tokens + drop(self.mlp(self.mlp_norm(tokens)), second, self.dropout)


def _check_arguments(*, embed_dim: int, n_heads: int, dropout: float, return_scale: float, **counts: int) -> None:
    for name, count in {"embed_dim": embed_dim, "n_heads": n_heads, **counts}.items():
        if count < 1:
            raise ValueError(f"{name} is {count}, it must be at least 1.")
    if embed_dim % n_heads:
        raise ValueError(f"embed_dim is {embed_dim}, it must be a multiple of n_heads, which is {n_heads}.")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is {dropout}, it must be in [0, 1).")
    if not (math.isfinite(return_scale) and return_scale > 0.0):
        raise ValueError(f"return_scale is {return_scale}, it must be positive.")


class TransformerActor(nn.Module):
    """
    Actions from the past: the tokens are (return-to-go, observation, action) of each step, in this order, each with an
    embedding of the step's number in the episode; the action is read off where the observation went in.

    :param observation_size: S
    :param action_size: A
    :param context_length: largest number of steps
    :param embed_dim: width of the tokens
    :param n_layers: number of blocks
    :param n_heads: number of attention heads
    :param dropout: probability of zeroing an entry while training: of the embeddings and in the blocks
    :param max_episode_length: number of steps that have embeddings of their own; later ones share the last
    :param return_scale: what returns-to-go are divided by
    :param activation_fn: activation of the blocks
    :raises ValueError: an argument is out of its range
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        context_length: int,
        embed_dim: int,
        n_layers: int,
        n_heads: int,
        dropout: float,
        max_episode_length: int,
        return_scale: float,
        activation_fn: type[nn.Module] = nn.ReLU,
    ) -> None:
        _check_arguments(
            context_length=context_length,
            embed_dim=embed_dim,
            n_layers=n_layers,
            n_heads=n_heads,
            dropout=dropout,
            max_episode_length=max_episode_length,
            return_scale=return_scale,
        )
        super().__init__()
        self.context_length = context_length
        self.embed_dim = embed_dim
        self.n_heads = n_heads
        self.dropout = dropout
        self.return_scale = return_scale
        self.timestep_embedding = nn.Embedding(max_episode_length, embed_dim)
        self.return_embedding = nn.Linear(1, embed_dim)
        self.observation_embedding = nn.Linear(observation_size, embed_dim)
        self.action_embedding = nn.Linear(action_size, embed_dim)
        self.embedding_norm = nn.LayerNorm(embed_dim)
        self.blocks = nn.ModuleList(CausalBlock(embed_dim, n_heads, dropout, activation_fn) for _ in range(n_layers))
        self.norm = nn.LayerNorm(embed_dim)
        self.mu = nn.Linear(embed_dim, action_size)
        n_tokens = TOKENS_PER_STEP * context_length
        self.register_buffer("causal", th.ones(n_tokens, n_tokens, dtype=th.bool).tril(), persistent=False)
        self.causal: th.Tensor

    def dropout_shapes(self, batch_size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """
        Shapes of the random numbers that decide what is dropped, of the attention and of the rest, see :meth:`forward`.

        :param batch_size: number of sequences
        """
        n_layers, n_tokens = len(self.blocks), TOKENS_PER_STEP * self.context_length
        residual = (1 + 2 * n_layers, batch_size, n_tokens, self.embed_dim)
        return (n_layers, batch_size, self.n_heads, n_tokens, n_tokens), residual

    def visible(self, mask: th.Tensor) -> th.Tensor:
        """
        Which token (last dimension) each token may look at: those before it that are not padded, and itself, so that
        padding has something to look at; shape ``(batch, 1, n_tokens, n_tokens)``.

        :param mask: False where padded, shape ``(batch, length)``
        """
        n_tokens = TOKENS_PER_STEP * mask.shape[1]
        keys = mask.repeat_interleave(TOKENS_PER_STEP, dim=1)[:, None, None, :]
        itself = th.eye(n_tokens, dtype=th.bool, device=mask.device)
        return (self.causal[:n_tokens, :n_tokens] & keys) | itself

    def forward(
        self,
        observations: th.Tensor,
        actions: th.Tensor,
        returns_to_go: th.Tensor,
        timesteps: th.Tensor,
        mask: th.Tensor,
        attention_uniform: th.Tensor | None = None,
        residual_uniform: th.Tensor | None = None,
    ) -> th.Tensor:
        """
        The action of every step in [-1, 1], shape ``(batch, length, action_size)``, from the steps before it, its
        return-to-go and its observation.

        :param observations: scaled observations, shape ``(batch, length, observation_size)``
        :param actions: shape ``(batch, length, action_size)``; that of the last step has no influence
        :param returns_to_go: shape ``(batch, length, 1)``
        :param timesteps: number of each step in its episode, shape ``(batch, length)``
        :param mask: False where padded, shape ``(batch, length)``
        :param attention_uniform: U(0, 1) draws that decide which attention weights are dropped, shape
            ``(n_layers, batch, n_heads, 3 length, 3 length)``; None keeps all
        :param residual_uniform: the same for the embeddings and the outputs of the blocks' parts, shape
            ``(1 + 2 n_layers, batch, 3 length, embed_dim)``
        """
        dtype = self.action_embedding.weight.dtype
        numbers = self.timestep_embedding(timesteps.clamp(max=self.timestep_embedding.num_embeddings - 1))
        embedded = (
            self.return_embedding(returns_to_go.to(dtype) / self.return_scale),
            self.observation_embedding(observations.to(dtype)),
            self.action_embedding(actions.to(dtype)),
        )
        tokens = self.embedding_norm((th.stack(embedded, dim=2) + numbers.unsqueeze(2)).flatten(1, 2))
        visible = self.visible(mask)
        if residual_uniform is not None:
            tokens = drop(tokens, residual_uniform[0], self.dropout)
        # The last block need not compute what is not read.
        outputs = [slice(None)] * (len(self.blocks) - 1) + [slice(1, None, TOKENS_PER_STEP)]
        for i, block in enumerate(self.blocks):
            attention_draws = None if attention_uniform is None else attention_uniform[i]
            residual_draws = None if residual_uniform is None else residual_uniform[2 * i + 1 : 2 * i + 3]
            tokens = block(tokens, visible, attention_draws, residual_draws, outputs[i])
        return th.tanh(self.mu(self.norm(tokens)))


class RewardModel(nn.Module):
    """
    The reward of a transition, ``r(s, a, s')``, as a perceptron of standardised output.

    :param input_size: width of observation, action and next observation together
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation of the hidden layers
    """

    def __init__(self, input_size: int, net_arch: list[int], activation_fn: type[nn.Module]) -> None:
        super().__init__()
        self.net = nn.Sequential(*create_mlp(input_size, 1, net_arch, activation_fn))
        self.register_buffer("mean", th.zeros(()))
        self.register_buffer("std", th.ones(()))
        self.mean: th.Tensor
        self.std: th.Tensor

    def set_statistics(self, rewards: th.Tensor) -> None:
        """
        Make the untrained output resemble the data.

        :param rewards: rewards of the dataset
        """
        std, mean = th.std_mean(rewards.double(), correction=0)
        self.mean.copy_(mean)
        # All rewards may be the same, up to the rounding of their mean.
        self.std.copy_(std.clamp(min=1e-6 * mean.abs().clamp(min=1.0)))

    def standardize(self, rewards: th.Tensor) -> th.Tensor:
        """
        Rewards in the units of the network's output, same shape.

        :param rewards: rewards of the environment
        """
        return (rewards - self.mean) / self.std

    def standardized(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        Standardised rewards, shape ``(..., 1)``.

        :param observations: scaled observations, shape ``(..., observation_size)``
        :param actions: shape ``(..., action_size)``
        :param next_observations: scaled observations after the step, shape ``(..., observation_size)``
        """
        output: th.Tensor = self.net(th.cat([observations, actions, next_observations], dim=-1))
        return output

    def forward(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """Rewards in the units of the environment, shape ``(..., 1)``."""
        return self.mean + self.std * self.standardized(observations, actions, next_observations)
