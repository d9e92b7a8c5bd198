"""The networks on which other pruning tools crashed, or were silently wrong; as small as the complaint allows."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WindowAttention(nn.Module):
    """Attention in windows of an image, with a table of relative positions, as Swin and MaxViT have."""

    def __init__(self, width: int = 24, heads: int = 3, window: int = 4) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (places[:, :, None] - places[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer("index", apart[..., 0] * (2 * window - 1) + apart[..., 1])

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        s = self.window
        x = torch.roll(x, (-1, -1), (1, 2))
        windows = x.view(b, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)
        qkv = self.qkv(self.norm(windows)).reshape(-1, s * s, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.get_buffer("index").flatten()].view(s * s, s * s, -1).permute(2, 0, 1)
        scores = qkv[0] * (c // self.heads) ** -0.5 @ qkv[1].transpose(-2, -1) + bias
        y = self.out((scores.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(-1, s * s, c))
        y = y.view(b, h // s, w // s, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return x + torch.roll(y, (1, 1), (1, 2))


class Attention(nn.Module):
    """Heads that keep their numbers as plain integers; fewer heads for keys and values where asked."""

    def __init__(self, width: int = 24, heads: int = 4, kv_heads: int = 4, causal: bool = False) -> None:
        super().__init__()
        self.num_heads, self.kv_heads, self.head_dim, self.causal = heads, kv_heads, width // heads, causal
        self.all_head_size = heads * self.head_dim
        self.q, self.out = nn.Linear(width, self.all_head_size), nn.Linear(self.all_head_size, width)
        self.k, self.v = (nn.Linear(width, kv_heads * self.head_dim) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k(x).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v(x).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2)
        k, v = (t.repeat_interleave(self.num_heads // self.kv_heads, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.out(y.transpose(1, 2).reshape(b, n, self.all_head_size))
        return out


class CausalModel(nn.Module):
    def __init__(self, kv_heads: int = 4) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(50, 24), nn.RMSNorm(24)
        self.attention, self.up, self.down = Attention(24, 4, kv_heads, True), nn.Linear(24, 40), nn.Linear(40, 24)
        self.head = nn.Linear(24, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x = self.embed(tokens)
        x = x + self.attention(self.norm(x))
        x = x + self.down(F.silu(self.up(self.norm(x))))
        return {"logits": self.head(x)}


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.body, self.head = kind(6, 12, num_layers=2, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x)[0][:, -1])
        return out


class DenseUNet(nn.Module):
    """Every level is concatenated to all that follow: the depth that overran another tool's recursion."""

    def __init__(self, depth: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(depth))
        self.last = nn.Conv2d(8 + 4 * depth, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x).relu()], 1)
        out: Tensor = self.last(x)
        return out


class Literal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.wide, self.head = nn.Conv2d(3, 16, 5, 4), nn.Linear(144, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.wide(self.conv(x).reshape(x.shape[0], 144)).relu())
        return out


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight lies the other way round."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(i, o)), nn.Parameter(torch.randn(o))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.bias.shape[0])


class Temperature(nn.Module):
    """Divides by the root of the width that its keys have when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        out: Tensor = self.out((q @ k.transpose(-2, -1) / k.size(-1) ** 0.5).softmax(-1) @ v)
        return out


class Spectrum(nn.Module):
    """An operator that no rule knows, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(self.b(torch.fft.fft(self.a(x)).real).relu())
        return out
