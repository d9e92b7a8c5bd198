"""A small causal language model over bytes, after Llama: RMS norms in front, gated MLPs, rotated positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def rotated(x: Tensor) -> Tensor:
    """Turn each pair of channels of queries or keys [N, heads, T, C] by an angle that grows with the position."""
    half = x.shape[-1] // 2
    frequencies = 10_000 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * frequencies
    first, second = x.chunk(2, dim=-1)
    turned = first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()
    return torch.cat(turned, dim=-1)


class Attention(nn.Module):
    """Causal self-attention: [N, T, C] to the same."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_channels = heads, channels // heads
        self.query, self.key, self.value = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Attend to the positions before and at each position."""
        query, key, value = (
            layer(x).unflatten(-1, (-1, self.head_channels)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(rotated(query), rotated(key), value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """SwiGLU: [N, T, C] to the same."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(channels, hidden, bias=False), nn.Linear(channels, hidden, bias=False)
        self.down = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Work on each position."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention, then the MLP, each added to the stream: [N, T, C] to the same."""

    def __init__(self, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(channels), nn.RMSNorm(channels)
        self.attention, self.mlp = Attention(channels, heads), GatedMLP(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Add both branches."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class LanguageModel(nn.Module):
    """Bytes [N, T] to the logits of the next ones, [N, T, 256]."""

    def __init__(self, channels: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, channels)
        self.blocks = nn.Sequential(*(Block(channels, heads, hidden) for _ in range(depth)))
        self.norm, self.head = nn.RMSNorm(channels), nn.Linear(channels, 256, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(
                    parameter, std=0.02 / (2 * depth) ** (0.5 * name.endswith(("out.weight", "down.weight")))
                )

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict each next byte."""
        return self.head(self.norm(self.blocks(self.embed(tokens))))


def make_model(channels: int = 128, depth: int = 6, heads: int = 4, hidden: int = 352) -> LanguageModel:
    """Build the model: 1.3 million parameters."""
    return LanguageModel(channels, depth, heads, hidden)
