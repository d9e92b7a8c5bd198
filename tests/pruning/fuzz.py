"""Random networks: modules and functional operators with branches, sums, concatenations, splits and shared weights."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[list[Tensor]], Tensor]


class RandomNetwork(nn.Module):
    """A program drawn from a seed: each step takes earlier tensors [n, c, h, w] and appends one."""

    def __init__(self, seed: int, num_steps: int = 10) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.random = Random(seed)
        self.parts = nn.ModuleList()
        self.weights = nn.ParameterList()
        self.listing: list[str] = []
        self.channels = [3]
        self.steps: list[Step] = []
        self.emit(self.convolution(0, self.random.choice([6, 8, 12])))
        for _ in range(num_steps):
            self.emit(self.random.choice(MAKERS)(self))
        self.head = nn.Linear(self.channels[-1], 4)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
                nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
        self.eval()

    def forward(self, x: Tensor) -> Any:
        tensors = [x]
        for step in self.steps:
            tensors.append(step(tensors))
        return self.head(tensors[-1].mean((2, 3)))

    def __deepcopy__(self, memo: dict[int, Any]) -> RandomNetwork:
        """Steps close over `self`, so a copy draws its program anew and takes the copied modules over."""
        from copy import deepcopy

        twin = RandomNetwork.__new__(RandomNetwork)
        memo[id(self)] = twin
        nn.Module.__init__(twin)
        twin.listing, twin.channels = self.listing, self.channels
        twin.parts, twin.weights = deepcopy(self.parts, memo), deepcopy(self.weights, memo)
        twin.head = deepcopy(self.head, memo)
        twin.steps = [lambda tensors, bound=step: bound.on(twin, tensors) for step in self.programs]  # type: ignore[misc]
        twin.programs = self.programs
        twin.training = self.training
        return twin

    programs: list[Bound]

    def emit(self, made: tuple[str, int, Callable[[RandomNetwork, list[Tensor]], Tensor]]) -> None:
        text, channels, function = made
        self.listing.append(f"{len(self.listing) + 1}: {text} -> {channels}")
        self.channels.append(channels)
        bound = Bound(function)
        self.programs = [*getattr(self, "programs", []), bound]
        self.steps.append(lambda tensors: bound.on(self, tensors))

    # What a step can be. Each returns a description, the channels it gives, and the function.

    def pick(self) -> int:
        return (
            self.random.randrange(max(1, len(self.channels) - 4), len(self.channels)) if len(self.channels) > 1 else 0
        )

    def add_part(self, part: nn.Module) -> int:
        self.parts.append(part)
        return len(self.parts) - 1

    def convolution(self, source: int, out: int, groups: int = 1, kernel: int = 3) -> Any:
        part = self.add_part(
            nn.Conv2d(
                self.channels[source], out, kernel, padding=kernel // 2, groups=groups, bias=self.random.random() < 0.5
            )
        )
        return f"conv {source}, {groups} groups", out, lambda net, t: net.parts[part](t[source])


class Bound:
    """A step's function, to be run on whichever copy of the network."""

    def __init__(self, function: Callable[[RandomNetwork, list[Tensor]], Tensor]) -> None:
        self.function = function

    def on(self, network: RandomNetwork, tensors: list[Tensor]) -> Tensor:
        return self.function(network, tensors)


def plain(net: RandomNetwork) -> Any:
    return net.convolution(net.pick(), net.random.choice([6, 8, 12, 16]), kernel=net.random.choice([1, 3]))


def grouped(net: RandomNetwork) -> Any:
    source = net.pick()
    groups = net.random.choice([g for g in (1, 2, 3, 4, net.channels[source]) if net.channels[source] % g == 0])
    return net.convolution(source, groups * net.random.choice([1, 2, 3]), groups)


def norm(net: RandomNetwork) -> Any:
    source = net.pick()
    c = net.channels[source]
    kinds: list[Any] = [lambda: nn.BatchNorm2d(c)] * 4 + [
        lambda: nn.GroupNorm(2 if c % 2 == 0 else 1, c),
        lambda: nn.InstanceNorm2d(c),
    ]
    part = net.add_part(net.random.choice(kinds)())
    return f"{type(net.parts[part]).__name__} {source}", c, lambda n, t: n.parts[part](t[source])


def activation(net: RandomNetwork) -> Any:
    source = net.pick()
    function: Any = net.random.choice(
        [F.relu, torch.sigmoid, F.gelu, torch.tanh, F.hardswish, lambda x: x + 0.5, lambda x: x.clone().mul_(2)]
    )
    return f"activation {source}", net.channels[source], lambda n, t: function(t[source])


def add(net: RandomNetwork) -> Any:
    first = net.pick()
    others = [i for i in range(1, len(net.channels)) if net.channels[i] == net.channels[first]]
    second = net.random.choice(others or [first])
    operator: Any = net.random.choice([torch.add, torch.mul, torch.maximum])
    return f"{operator.__name__} {first}, {second}", net.channels[first], lambda n, t: operator(t[first], t[second])


def concatenate(net: RandomNetwork) -> Any:
    sources = [net.pick() for _ in range(net.random.choice([2, 2, 3]))]
    return f"cat {sources}", sum(net.channels[s] for s in sources), lambda n, t: torch.cat([t[s] for s in sources], 1)


def chunk(net: RandomNetwork) -> Any:
    source, which = net.pick(), net.random.randrange(2)
    if net.channels[source] % 2:
        return activation(net)
    return f"chunk {which} of {source}", net.channels[source] // 2, lambda n, t: t[source].chunk(2, 1)[which]


def piece(net: RandomNetwork) -> Any:
    source = net.pick()
    size = net.channels[source]
    if size < 4:
        return activation(net)
    start = net.random.randrange(0, size - 2)
    stop = net.random.randrange(start + 2, size + 1)
    return f"slice {start}:{stop} of {source}", stop - start, lambda n, t: t[source][:, start:stop]


def shuffle(net: RandomNetwork) -> Any:
    source = net.pick()
    groups = net.random.choice([g for g in (1, 2, 3, 4) if net.channels[source] % g == 0])

    def function(_net: RandomNetwork, t: list[Tensor]) -> Tensor:
        n, c, h, w = t[source].shape
        return t[source].view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, -1, h, w)

    return f"shuffle {source} by {groups}", net.channels[source], function


def squeeze_and_excite(net: RandomNetwork) -> Any:
    source = net.pick()
    c = net.channels[source]
    part = net.add_part(nn.Sequential(nn.Conv2d(c, 4, 1), nn.ReLU(), nn.Conv2d(4, c, 1), nn.Sigmoid()))
    return f"gate {source}", c, lambda n, t: t[source] * n.parts[part](t[source].mean((2, 3), keepdim=True))


def over_channels(net: RandomNetwork) -> Any:
    source, out = net.pick(), net.random.choice([6, 8, 12])
    part = net.add_part(nn.Linear(net.channels[source], out))
    return f"linear {source}", out, lambda n, t: n.parts[part](t[source].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def transposed(net: RandomNetwork) -> Any:
    source, out = net.pick(), net.random.choice([6, 8])
    part = net.add_part(nn.ConvTranspose2d(net.channels[source], out, 3, padding=1))
    return f"transposed conv {source}", out, lambda n, t: n.parts[part](t[source])


def functional(net: RandomNetwork) -> Any:
    source, out = net.pick(), net.random.choice([6, 8])
    net.weights.append(nn.Parameter(torch.randn(out, net.channels[source], 1, 1) * 0.3))
    index = len(net.weights) - 1
    return f"functional conv {source}", out, lambda n, t: F.conv2d(t[source], n.weights[index])


def shared(net: RandomNetwork) -> Any:
    """A convolution that was made before, applied to another tensor of the same width."""
    fitting = [
        (i, part, s)
        for i, part in enumerate(net.parts)
        if isinstance(part, nn.Conv2d)
        for s in range(1, len(net.channels))
        if net.channels[s] == part.in_channels
    ]
    if not fitting:
        return activation(net)
    index, part, source = net.random.choice(fitting)
    return f"conv again {source}", part.out_channels, lambda n, t: n.parts[index](t[source])


def attention(net: RandomNetwork) -> Any:
    source = net.pick()
    c = net.channels[source]
    part = net.add_part(nn.Linear(c, 3 * c))

    def function(n: RandomNetwork, t: list[Tensor]) -> Tensor:
        x = t[source].flatten(2).transpose(1, 2)
        q, k, v = n.parts[part](x).chunk(3, -1)
        out = F.scaled_dot_product_attention(q, k, v, scale=0.3)
        return out.transpose(1, 2).view(*t[source].shape[:1], -1, *t[source].shape[2:])

    return f"attention {source}", c, function


MAKERS: list[Callable[[RandomNetwork], Any]] = [
    plain, plain, plain, grouped, grouped, norm, norm, activation, activation, add, add, concatenate, concatenate,
    chunk, piece, shuffle, shuffle, squeeze_and_excite, over_channels, transposed, functional, shared, attention,
]  # fmt: skip
