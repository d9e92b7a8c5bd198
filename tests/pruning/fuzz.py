"""Random networks for images and sequences.

Modules and functional operators with branches, sums, concatenations, splits, shared weights, tables that are read as
far as the input goes, paths that the input chooses, and outputs in any container.
"""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LONGEST = 13  # rows of a table along each extent


class Values(list[Tensor]):
    """What the steps of one pass gave so far, the input first; and the path that the caller chose."""

    path: int


Step = Callable[["RandomNetwork", Values], Tensor]
Made = tuple[str, int, Step]


class RandomNetwork(nn.Module):
    """A program drawn from a seed: each step takes earlier tensors [n, c, *extents] and appends one.

    Every second one reads sequences, of numbers [n, 3, t] or of tokens [n, t]; the others read images [n, 3, h, w].
    """

    def __init__(self, seed: int, num_steps: int = 10) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.random = Random(seed)
        self.dims = 1 + seed % 2
        self.tokens = self.dims == 1 and self.random.random() < 0.5
        self.container = self.random.choice(list(CONTAINERS))
        self.parts, self.weights = nn.ModuleList(), nn.ParameterList()
        self.forked: set[int] = set()  # layers that are run on some paths alone
        self.needs_all_paths = False
        self.listing: list[str] = []
        self.channels = [3]
        self.steps: list[Step] = []
        self.emit(embedding(self) if self.tokens else self.convolution(0, self.random.choice([6, 8, 12])))
        for _ in range(num_steps):
            self.emit(self.random.choice(MAKERS if self.dims == 2 else MAKERS + SEQUENCE_MAKERS)(self))
        self.head = nn.Linear(self.channels[-1], 4)
        self.beside = self.pick()  # also an output
        del self.random  # 625 numbers, that every copy of the network would copy
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
                nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
        self.eval()

    @property
    def program(self) -> str:
        """What the network does, to be printed where something is wrong."""
        lines = [
            f"{self.dims}-d, {'tokens' if self.tokens else 'numbers'}, gives {self.container}, {self.beside} beside"
        ]
        return "\n".join([*lines, *self.listing])

    def make_input(self, batch: int, *extents: int, seed: int = 0) -> Tensor:
        """Make a random input of as many extents as the network reads."""
        generator = torch.Generator().manual_seed(seed)
        if self.tokens:
            return torch.randint(0, 20, (batch, *extents[: self.dims]), generator=generator)
        return torch.randn(batch, 3, *extents[: self.dims], generator=generator)

    def forward(self, x: Tensor, path: int = 0) -> Any:
        values = Values([x])
        values.path = path
        for step in self.steps:
            values.append(step(self, values))
        extents = tuple(range(2, 2 + self.dims))
        logits = self.head(values[-1].mean(extents))
        # Not the mean: that of an instance norm is zero but for rounding, which nothing can be compared with.
        return CONTAINERS[self.container][0](logits, values[self.beside].amax(extents))

    def tensors_of(self, result: Any) -> list[Tensor]:
        """Take the tensors out of the container."""
        return list(CONTAINERS[self.container][1](result))

    def emit(self, made: Made) -> None:
        text, channels, step = made
        self.listing.append(f"{len(self.listing) + 1}: {text} -> {channels}")
        self.channels.append(channels)
        self.steps.append(step)

    # What a step can be. Each returns a description, the channels it gives, and the function.

    def pick(self) -> int:
        return (
            self.random.randrange(max(1, len(self.channels) - 4), len(self.channels)) if len(self.channels) > 1 else 0
        )

    def add_part(self, part: nn.Module) -> int:
        self.parts.append(part)
        return len(self.parts) - 1

    def convolution(self, source: int, out: int, groups: int = 1, kernel: int = 3) -> Made:
        kind = nn.Conv1d if self.dims == 1 else nn.Conv2d
        bias = self.random.random() < 0.5
        part = self.add_part(kind(self.channels[source], out, kernel, padding=kernel // 2, groups=groups, bias=bias))
        return f"conv {source}, {groups} groups", out, lambda net, t: net.parts[part](t[source])


@dataclass
class Record:
    logits: Tensor
    features: Tensor


class Plain:
    def __init__(self, logits: Tensor, features: Tensor) -> None:
        self.logits, self.features = logits, features


class Slotted:
    __slots__ = ("features", "logits")

    def __init__(self, logits: Tensor, features: Tensor) -> None:
        self.logits, self.features = logits, features


class Mapped(dict[str, Any]):
    pass


class Listed(list[Any]):
    pass


Named = namedtuple("Named", "logits features")

CONTAINERS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], Any]]] = {
    "a tensor": (lambda a, _: a, lambda r: [r]),
    "a tuple": (lambda a, b: (a, b), lambda r: r),
    "a dict": (lambda a, b: {"a": a, "b": [b]}, lambda r: [r["a"], r["b"][0]]),
    "a dataclass": (Record, lambda r: [r.logits, r.features]),
    "an object": (Plain, lambda r: [r.logits, r.features]),
    "an object with slots": (Slotted, lambda r: [r.logits, r.features]),
    "a namespace": (lambda a, b: SimpleNamespace(a=a, b=b), lambda r: [r.a, r.b]),
    "a named tuple": (Named, lambda r: r),
    "a subclass of dict": (lambda a, b: Mapped(a=a, b=b), lambda r: [r["a"], r["b"]]),
    "an ordered dict": (lambda a, b: OrderedDict(a=a, b=b), lambda r: [r["a"], r["b"]]),
    "a subclass of list": (lambda a, b: Listed([a, b]), lambda r: r),
    "a set": (lambda a, _: {a}, lambda r: r),
    "a generator": (lambda a, b: (t for t in (a, b)), lambda r: r),
    "a dataclass in a list in an object": (
        lambda a, b: Plain([Record(a, b)], {}),  # type: ignore[arg-type]
        lambda r: [r.logits[0].logits, r.logits[0].features],
    ),
}


class Table(nn.Module):
    """Rows for positions, of which an input reads as many as it has."""

    def __init__(self, channels: int, dims: int, how: str) -> None:
        super().__init__()
        self.how = how
        if how == "scaled":
            self.scale = nn.Parameter(torch.rand(1) + 0.5)
        if how == "projected":
            self.project = nn.Linear(channels, channels)
        rows = torch.randn(channels, *[LONGEST] * dims)
        self.rows: Tensor
        if how == "buffer":
            self.register_buffer("rows", rows)
        else:
            self.rows = nn.Parameter(rows)

    def forward(self, extents: tuple[int, ...]) -> Tensor:
        rows = self.rows
        if self.how == "resized":
            mode = "linear" if len(extents) == 1 else "bilinear"
            return F.interpolate(rows[None], size=extents, mode=mode)[0]
        if self.how == "scaled":
            rows = rows * self.scale
        if self.how == "projected":
            rows = self.project(rows.movedim(0, -1)).movedim(-1, 0)
        if self.how == "chunked":
            rows = rows.chunk(1, 1)[0]
        for axis, size in enumerate(extents, start=1):
            if self.how == "selected":
                rows = rows.index_select(axis, torch.arange(size, device=rows.device))
            elif self.how == "narrowed":
                rows = rows.narrow(axis, 1, size)
            elif self.how == "last":
                rows = rows.movedim(axis, 0)[-size:].movedim(0, axis)
            else:
                rows = rows.movedim(axis, 0)[:size].movedim(0, axis)
        return rows


class Heads(nn.Module):
    """Attention with heads; causal by a table that is cut to the length, where asked."""

    def __init__(self, channels: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.causal = heads, channels // heads, causal
        self.q, self.k, self.v, self.out = (nn.Linear(channels, channels) for _ in range(4))
        self.mask: Tensor
        if causal:
            self.register_buffer("mask", torch.tril(torch.ones(LONGEST, LONGEST)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        n, t, _ = x.shape
        q, k, v = (
            part(x).view(n, t, self.num_heads, self.head_dim).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        scores = q @ k.transpose(-2, -1) * 0.3
        if self.causal:
            scores = scores.masked_fill(self.mask[:t, :t] == 0, -1e9)
        y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, t, -1)).transpose(1, 2)  # type: ignore[no-any-return]


def plain(net: RandomNetwork) -> Made:
    return net.convolution(net.pick(), net.random.choice([6, 8, 12, 16]), kernel=net.random.choice([1, 3]))


def grouped(net: RandomNetwork) -> Made:
    source = net.pick()
    groups = net.random.choice([g for g in (1, 2, 3, 4, net.channels[source]) if net.channels[source] % g == 0])
    return net.convolution(source, groups * net.random.choice([1, 2, 3]), groups)


def norm(net: RandomNetwork) -> Made:
    source = net.pick()
    c = net.channels[source]
    batch, instance = ((nn.BatchNorm1d, nn.InstanceNorm1d), (nn.BatchNorm2d, nn.InstanceNorm2d))[net.dims - 1]
    kinds: list[Any] = [lambda: batch(c)] * 4 + [
        lambda: nn.GroupNorm(2 if c % 2 == 0 else 1, c),
        lambda: instance(c),
    ]
    part = net.add_part(net.random.choice(kinds)())
    return f"{type(net.parts[part]).__name__} {source}", c, lambda n, t: n.parts[part](t[source])


def activation(net: RandomNetwork) -> Made:
    source = net.pick()
    function: Any = net.random.choice(
        [F.relu, torch.sigmoid, F.gelu, torch.tanh, F.hardswish, lambda x: x + 0.5, lambda x: x.clone().mul_(2)]
    )
    return f"activation {source}", net.channels[source], lambda n, t: function(t[source])


def add(net: RandomNetwork) -> Made:
    first = net.pick()
    others = [i for i in range(1, len(net.channels)) if net.channels[i] == net.channels[first]]
    second = net.random.choice(others or [first])
    operator: Any = net.random.choice([torch.add, torch.mul, torch.maximum])
    return f"{operator.__name__} {first}, {second}", net.channels[first], lambda n, t: operator(t[first], t[second])


def concatenate(net: RandomNetwork) -> Made:
    sources = [net.pick() for _ in range(net.random.choice([2, 2, 3]))]
    return f"cat {sources}", sum(net.channels[s] for s in sources), lambda n, t: torch.cat([t[s] for s in sources], 1)


def chunk(net: RandomNetwork) -> Made:
    source, which = net.pick(), net.random.randrange(2)
    if net.channels[source] % 2:
        return activation(net)
    return f"chunk {which} of {source}", net.channels[source] // 2, lambda n, t: t[source].chunk(2, 1)[which]


def piece(net: RandomNetwork) -> Made:
    source = net.pick()
    size = net.channels[source]
    if size < 4:
        return activation(net)
    start = net.random.randrange(0, size - 2)
    stop = net.random.randrange(start + 2, size + 1)
    return f"slice {start}:{stop} of {source}", stop - start, lambda n, t: t[source][:, start:stop]


def shuffle(net: RandomNetwork) -> Made:
    source = net.pick()
    groups = net.random.choice([g for g in (1, 2, 3, 4) if net.channels[source] % g == 0])

    def function(_net: RandomNetwork, t: Values) -> Tensor:
        n, c, *extents = t[source].shape
        return t[source].view(n, groups, c // groups, *extents).transpose(1, 2).reshape(n, -1, *extents)

    return f"shuffle {source} by {groups}", net.channels[source], function


def squeeze_and_excite(net: RandomNetwork) -> Made:
    source = net.pick()
    c = net.channels[source]
    kind = nn.Conv1d if net.dims == 1 else nn.Conv2d
    part = net.add_part(nn.Sequential(kind(c, 4, 1), nn.ReLU(), kind(4, c, 1), nn.Sigmoid()))
    extents = tuple(range(2, 2 + net.dims))
    return f"gate {source}", c, lambda n, t: t[source] * n.parts[part](t[source].mean(extents, keepdim=True))


def scaled_by_width(net: RandomNetwork) -> Made:
    source = net.pick()
    return f"scale {source}", net.channels[source], lambda _n, t: t[source] * t[source].shape[1] ** -0.5


def over_channels(net: RandomNetwork) -> Made:
    source, out = net.pick(), net.random.choice([6, 8, 12])
    part = net.add_part(nn.Linear(net.channels[source], out))
    return f"linear {source}", out, lambda n, t: n.parts[part](t[source].movedim(1, -1)).movedim(-1, 1)


def transposed(net: RandomNetwork) -> Made:
    source, out = net.pick(), net.random.choice([6, 8])
    kind = nn.ConvTranspose1d if net.dims == 1 else nn.ConvTranspose2d
    part = net.add_part(kind(net.channels[source], out, 3, padding=1))
    return f"transposed conv {source}", out, lambda n, t: n.parts[part](t[source])


def functional(net: RandomNetwork) -> Made:
    source, out = net.pick(), net.random.choice([6, 8])
    net.weights.append(nn.Parameter(torch.randn(out, net.channels[source], *[1] * net.dims) * 0.3))
    index, function = len(net.weights) - 1, (F.conv1d, F.conv2d)[net.dims - 1]
    return f"functional conv {source}", out, lambda n, t: function(t[source], n.weights[index])


def shared(net: RandomNetwork) -> Made:
    """A convolution that was made before, applied to another tensor of the same width."""
    fitting = [
        (i, part, s)
        for i, part in enumerate(net.parts)
        if isinstance(part, nn.Conv1d | nn.Conv2d)
        for s in range(1, len(net.channels))
        if net.channels[s] == part.in_channels
    ]
    if not fitting:
        return activation(net)
    index, part, source = net.random.choice(fitting)
    # A layer that is used here and on a path besides: an example of one path shows no unused parameter.
    net.needs_all_paths |= index in net.forked
    return f"conv again {source}", part.out_channels, lambda n, t: n.parts[index](t[source])


def attention(net: RandomNetwork) -> Made:
    source = net.pick()
    c = net.channels[source]
    part = net.add_part(nn.Linear(c, 3 * c))

    def function(n: RandomNetwork, t: Values) -> Tensor:
        x = t[source].flatten(2).transpose(1, 2)
        q, k, v = n.parts[part](x).chunk(3, -1)
        out = F.scaled_dot_product_attention(q, k, v, scale=0.3)
        return out.transpose(1, 2).view(*t[source].shape[:1], -1, *t[source].shape[2:])

    return f"attention {source}", c, function


def embedding(net: RandomNetwork) -> Made:
    channels = net.random.choice([6, 8, 12])
    part = net.add_part(nn.Embedding(20, channels))
    return "embedding", channels, lambda n, t: n.parts[part](t[0]).transpose(1, 2)


def table(net: RandomNetwork) -> Made:
    source = net.pick()
    how = net.random.choice(
        ["parameter", "buffer", "scaled", "projected", "selected", "narrowed", "last", "resized", "chunked"]
    )
    part = net.add_part(Table(net.channels[source], net.dims, how))
    text = f"add rows of a table ({how}) to {source}"
    return text, net.channels[source], lambda n, t: t[source] + n.parts[part](tuple(t[source].shape[2:]))


def fork_by_path(net: RandomNetwork) -> Made:
    """Layers of which the caller's path chooses one."""
    source, out = net.pick(), net.random.choice([6, 8])
    indices = [len(net.parts), len(net.parts) + 1]
    net.forked.update(indices)
    for _ in indices:
        net.convolution(source, out)
    return f"conv of {source} by path", out, lambda n, t: n.parts[indices[t.path]](t[source])


def fork_by_size(net: RandomNetwork) -> Made:
    """A layer that only inputs above a size run through."""
    source = net.pick()
    first, second = len(net.parts), len(net.parts) + 1
    net.forked.update((first, second))
    net.convolution(source, net.channels[source], kernel=1)
    net.convolution(source, net.channels[source])

    def function(n: RandomNetwork, t: Values) -> Tensor:
        return n.parts[second if t[source].shape[-1] > 6 else first](t[source])  # type: ignore[no-any-return]

    return f"conv of {source} by size", net.channels[source], function


def recurrent(net: RandomNetwork) -> Made:
    source, out = net.pick(), net.random.choice([6, 8])
    both = net.random.random() < 0.5
    kind = net.random.choice([nn.GRU, nn.LSTM, nn.RNN])
    part = net.add_part(kind(net.channels[source], out, batch_first=True, bidirectional=both))
    text = f"{kind.__name__} of {source}{', both ways' if both else ''}"
    return text, out * (1 + both), lambda n, t: n.parts[part](t[source].transpose(1, 2))[0].transpose(1, 2)


def heads(net: RandomNetwork) -> Made:
    source = net.pick()
    c = net.channels[source]
    number = net.random.choice([h for h in (1, 2, 3, 4) if c % h == 0])
    causal = net.random.random() < 0.5
    part = net.add_part(Heads(c, number, causal))
    return f"{number} heads over {source}{', causal' if causal else ''}", c, lambda n, t: n.parts[part](t[source])


def layer_norm(net: RandomNetwork) -> Made:
    source = net.pick()
    part = net.add_part(nn.LayerNorm(net.channels[source]))
    function: Step = lambda n, t: n.parts[part](t[source].transpose(1, 2)).transpose(1, 2)  # noqa: E731
    return f"layer norm of {source}", net.channels[source], function


Maker = Callable[[RandomNetwork], Made]
MAKERS: list[Maker] = [
    plain, plain, plain, grouped, grouped, norm, norm, activation, activation, add, add, concatenate, concatenate,
    chunk, piece, shuffle, shuffle, squeeze_and_excite, over_channels, transposed, functional, shared, attention,
    table, table, fork_by_path, fork_by_size, scaled_by_width,
]  # fmt: skip
SEQUENCE_MAKERS: list[Maker] = [recurrent, heads, heads, layer_norm, table]
