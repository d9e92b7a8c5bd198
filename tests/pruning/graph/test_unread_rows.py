"""Rows of a table that the example didn't read are no channels; what a slice reads of channels stays prunable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pruning
from pruning.plan.other_sizes import difference_elsewhere

Step = Callable[["Net", Tensor, Tensor], Any]
LONGEST, WIDTH, READ = 32, 12, 7


class Net(nn.Module):
    """Tokens, a step that reads a table of LONGEST rows in some way, a hidden layer that can be pruned."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step = step
        self.embed, self.hidden, self.last = nn.Embedding(40, WIDTH), nn.Linear(WIDTH, 20), nn.Linear(20, 5)
        self.table = nn.Parameter(torch.randn(LONGEST, WIDTH))
        self.positions, self.scores = nn.Embedding(LONGEST, WIDTH), nn.Linear(WIDTH, LONGEST)
        self.project, self.norm, self.scale = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Parameter(torch.rand(1))
        self.widen, self.narrow = nn.Linear(WIDTH, LONGEST), nn.Linear(LONGEST, WIDTH)
        self.mask: Tensor
        self.register_buffer("mask", torch.tril(torch.ones(1, 1, LONGEST, LONGEST)))
        self.cache: Tensor
        self.register_buffer("cache", torch.zeros(2, LONGEST, WIDTH))
        self.eval()

    def forward(self, tokens: Tensor) -> Any:
        x = self.embed(tokens)
        return self.last(torch.relu(self.hidden(self.step(self, x, tokens))))


def length(x: Tensor) -> int:
    return x.size(1)


def masked(net: Net, x: Tensor, _tokens: Tensor) -> Any:
    scores = (x @ x.transpose(1, 2))[:, None].masked_fill(net.mask[:, :, : length(x), : length(x)] == 0, -1e9)
    return (scores.softmax(-1) @ x[:, None])[:, 0]


def cached(net: Net, x: Tensor, _tokens: Tensor) -> Any:
    cache = net.cache[: len(x)].clone()
    cache[:, : length(x)] = net.project(x)
    return x + cache[:, : length(x)]


def scored(net: Net, x: Tensor, _tokens: Tensor) -> Any:
    return net.scores(x)[..., : length(x)].softmax(-1) @ x


def relative(net: Net, x: Tensor, _tokens: Tensor) -> Any:
    return (x @ x.transpose(1, 2) + (x @ net.table.t())[..., : length(x)]).softmax(-1) @ x


def also_a_weight(net: Net, x: Tensor, _tokens: Tensor) -> Any:
    return net.narrow(torch.relu(F.linear(x, net.table))) + net.table[: length(x)]


STEPS: dict[str, Step] = {
    "a slice": lambda net, x, _: x + net.table[: length(x)],
    "the last rows": lambda net, x, _: x + net.table[-length(x) :],
    "rows of an embedding": lambda net, x, _: x + net.positions(torch.arange(length(x))),
    "rows of an embedding's weights": lambda net, x, _: x + net.positions.weight[: length(x)],
    "a causal mask": masked,
    "a cache": cached,
    "a layer with a column for each position": scored,
    "relative positions": relative,
    "scaled": lambda net, x, _: x + (net.table * net.scale)[: length(x)],
    "normed": lambda net, x, _: x + net.norm(net.table)[: length(x)],
    "projected": lambda net, x, _: x + net.project(net.table)[: length(x)],
    "narrowed": lambda net, x, _: x + net.table.narrow(0, 3, length(x)),
    "selected": lambda net, x, _: x + net.table.index_select(0, torch.arange(length(x))),
    "indexed": lambda net, x, _: x + net.table[torch.arange(length(x))],
    "gathered": lambda net, x, _: x + net.table.gather(0, torch.arange(length(x))[:, None].expand(-1, WIDTH)),
    "rolled": lambda net, x, _: x + net.table.roll(1, 0)[: length(x)],
    "flipped": lambda net, x, _: x + net.table.flip(0)[: length(x)],
    "chunked": lambda net, x, _: x + net.table.chunk(2)[0][: length(x)],
    "split": lambda net, x, _: x + net.table.split_with_sizes([length(x), LONGEST - length(x)])[0],
    "reshaped": lambda net, x, _: x + net.table.view(4, 8, WIDTH)[:, : length(x)].sum(0) if length(x) < 9 else x,
    "transposed": lambda net, x, _: (x.transpose(1, 2) + net.table.t()[:, : length(x)]).transpose(1, 2),
    "resized": lambda net, x, _: x + F.interpolate(net.table.t()[None], size=length(x))[0].t(),
    "padded": lambda net, x, _: x + F.pad(net.table, (0, 0, 1, 0))[: length(x)],
    "repeated": lambda net, x, _: x + net.table.repeat(2, 1)[: length(x)],
    "summed up": lambda net, x, _: x + net.table[: length(x)].sum(0),
    "also a weight": also_a_weight,
}


@pytest.mark.parametrize("name", STEPS)
def test_rows_that_the_example_does_not_read_are_no_channels(name: str) -> None:
    model, tokens = Net(STEPS[name]), torch.randint(0, 40, (2, READ), generator=torch.Generator().manual_seed(0))
    groups = pruning.find_groups(model, tokens, ignore_unused=True)
    assert "hidden.weight:0" in groups
    rows = {("table", 0), ("mask", 2), ("mask", 3), ("cache", 1), ("scores.weight", 0), ("positions.weight", 0)}
    assert not rows & {(s.parameter, s.axis) for group in groups for s in group.slices}, str(groups)
    plan = pruning.Plan.of(groups, {group.name: range(group.size // 3) for group in groups})
    dense = pruning.narrow(model, plan, tokens, groups=groups)
    assert difference_elsewhere(pruning.apply_masks(model, plan), dense, tokens)[0] < 1e-5
    longest = torch.randint(0, 40, (2, {"narrowed": LONGEST - 3, "chunked": LONGEST // 2}.get(name, LONGEST)))
    model(longest)
    dense(longest)


def test_the_reason_is_said() -> None:
    report = pruning.find_groups(Net(STEPS["a slice"]), torch.randint(0, 40, (2, READ)), ignore_unused=True).report()
    assert "the example inputs don't read all of it" in str(report["table"])


class Packed(nn.Module):
    """One weight for queries, keys and values, in slices; one matrix for two layers; channels cut by position."""

    def __init__(self) -> None:
        super().__init__()
        self.packed, self.two = nn.Parameter(torch.randn(36, 8)), nn.Parameter(torch.randn(8, 20))
        self.out, self.join, self.last = nn.Linear(12, 8), nn.Linear(20, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        third, half = len(self.packed) // 3, self.two.shape[1] // 2
        q, k, v = (F.linear(x, self.packed[third * i : third * (i + 1)]) for i in range(3))
        x = x + self.out((q @ k.transpose(1, 2) * 0.1).softmax(-1) @ v)
        y = torch.relu(torch.cat([x @ self.two[:, :half], x @ self.two[:, half:]], -1))
        return self.last(torch.relu(self.join(torch.cat([y[..., half:], y[..., :half]], -1))))


def test_slices_that_read_all_channels_between_them_are_pruned() -> None:
    model, x = Packed().eval(), torch.randn(2, 5, 8)
    groups = pruning.find_groups(model, x)
    assert sum(group.size for group in groups) == 12 + 12 + 20 + 8, str(groups.report())
    removed = {group.name: range(group.size // 3) for group in groups}
    pruning.narrow(model, pruning.Plan.of(groups, removed), x, groups=groups)
