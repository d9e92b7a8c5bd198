"""Sizes that code checks, divides by or is bound to: what follows a width is found, and what can't follow is named."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.errors import PlanError


class Checked(nn.Module):
    """Attention whose code checks its own sizes, between operators that don't show what the checks are about."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width, self.heads = width, heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        x = x.transpose(0, 1)
        query, key, value = self.query(x), self.key(x), self.value(x)
        n, b, width = x.shape
        assert width == self.width, f"expected {self.width} channels, found {width}"
        query = query / 6**0.5
        query, key, value = (t.view(n, b, self.heads, -1).permute(1, 2, 0, 3) for t in (query, key, value))
        weights = (query @ key.transpose(-2, -1)).softmax(-1)
        if weights.shape[1] != self.heads:
            raise ValueError(f"expected {self.heads} heads")
        return (weights @ value).permute(0, 2, 1, 3).flatten(2)


class CheckedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 24), nn.Linear(24, 5)
        self.attention = nn.ModuleList(Checked() for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        for attention, out in zip(self.attention, self.out, strict=True):
            x = x + out(attention(x))
        return self.last(x)


def _exact(model: nn.Module, inputs: Tensor, sizes: set[int]) -> pruning.Groups:
    """Narrow all groups by two channels or one, verified; their sizes are known."""
    groups = pruning.find_groups(model.eval(), inputs)
    assert {group.size for group in groups} == sizes, groups.report()
    plan = pruning.Plan.of(groups, {group.name: range(max(group.multiple, group.size // 8)) for group in groups})
    pruning.narrow(model, plan, inputs, groups=groups)
    return groups


def test_an_attribute_that_code_checks_a_size_against_follows_it() -> None:
    groups = _exact(CheckedTwice(), torch.randn(2, 7, 6), {24, 4, 6})
    assert [group.size for group in groups].count(4) == 2, "the heads of both"


class ScaledBySize(nn.Module):
    """Its temperature, a tensor, follows the width of its heads, which stay; how many there are may change."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = heads
        self.query, self.key, self.value, self.last = (nn.Linear(24, 24) for _ in range(4))
        self.position = nn.Parameter(torch.randn(7, 24))

    def split(self, x: Tensor) -> Tensor:
        x = x.view(*x.shape[:-1], self.heads, -1)
        return x.permute(0, 2, 1, 3).contiguous().view(-1, x.shape[1], x.shape[-1])

    def forward(self, x: Tensor) -> Any:
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        positions = self.split(self.key(self.position)[None]).repeat(query.shape[0] // self.heads, 1, 1)
        scores = query @ (key + positions).transpose(-2, -1) / torch.tensor(query.shape[-1]).sqrt()
        found = (scores.softmax(-1) @ value).view(-1, self.heads, x.shape[1], value.shape[-1])
        return self.last(found.transpose(1, 2).flatten(2))


def test_an_attribute_is_given_up_only_where_what_follows_it_is_to_blame() -> None:
    groups = _exact(ScaledBySize(), torch.randn(2, 7, 24), {4, 6})
    assert {group.name: group.size for group in groups} == {"query.weight:0.0": 4, "value.weight:0.1": 6}


class Temperature(nn.Module):
    """Attention of one head, whose temperature follows the width of a stream, and a mean by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.qkv, self.last = nn.Linear(6, 12), nn.Linear(12, 36), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        query, key, value = self.qkv(x).unflatten(-1, (3, -1)).unbind(-2)
        x = x + (query @ key.transpose(-2, -1) * x.shape[-1] ** -0.5).softmax(-1) @ value
        return self.last(x), x.sum(-1) / x.shape[-1]


def test_a_number_that_follows_a_width_and_is_no_size_keeps_its_value() -> None:
    model, x = Temperature(), torch.randn(2, 7, 6)
    groups = _exact(model, x, {12})
    plan = pruning.Plan.of(groups, {group.name: range(3) for group in groups})
    assert all(group.mixed == () for group in groups)
    dense = pruning.narrow(model, plan, x, groups=groups)
    masked = pruning.apply_masks(model, plan, groups=groups)
    other = torch.randn(3, 9, 6)
    for found, expected in zip(dense(other), masked(other), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
    again = copy.deepcopy(dense)
    assert torch.equal(again(other)[0], dense(other)[0])


class Experts(nn.Module):
    """Experts in one grouped product, which takes rows of a multiple of 16 bytes alone."""

    def __init__(self, width: int = 24, inner: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, 5)
        self.into = nn.Parameter(torch.randn(3, width, inner) / 5)
        self.out = nn.Parameter(torch.randn(3, inner, width) / 4)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        rows = torch.tensor([2, 5, 8], dtype=torch.int32)
        hidden = torch._grouped_mm(x, self.into, rows).relu()
        return self.last(x + torch._grouped_mm(hidden, self.out, rows))


def test_groups_whose_operator_takes_multiples_alone_lose_multiples() -> None:
    model, x = Experts(), torch.randn(8, 6)
    groups = _exact(model, x, {24, 16})
    assert {group.multiple for group in groups} == {4}
    assert "16 channels, in multiples of 4" in str(groups)
    with pytest.raises(PlanError, match=r"'into:2' of Experts loses channels in multiples of 4.* removes 3"):
        pruning.Plan.of(groups, {"into:2": [0, 1, 2]})
    plan = pruning.make_plan(groups, "l2_norm", pruning.ChannelSparsity(0.3))
    assert plan.removed
    assert all(len(gone) % 4 == 0 for gone in plan.removed.values())
    pruning.narrow(model, plan, x, groups=groups)


def test_a_width_that_has_no_smaller_multiple_stays_whole_and_says_why() -> None:
    model = Experts(width=24, inner=4)
    groups = _exact(model, torch.randn(8, 6), {24})
    assert "an operator takes widths in multiples of 4 alone" in str(groups.report()["into"])
