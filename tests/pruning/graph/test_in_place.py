"""Operators that change a tensor's shape in place, as code does and as `torch.func.vmap` does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning

X = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))


class Body(nn.Module):
    """Two layers with something between them, [n, 24] to [n, 24]."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.fc, self.between = nn.Linear(12, 24), nn.Linear(24, 5), between

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.between(torch.relu(self.a(x))))


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x.unsqueeze_(1).squeeze_(1),
        lambda x: x.t_().mul_(2.0).t_(),
        lambda x: x.transpose_(0, 1).add(1.0).mul_(2.0).transpose_(-2, -1),
        lambda x: x.unsqueeze(0).squeeze_(),
    ],
    ids=["unsqueeze", "t", "transpose", "squeeze"],
)
def test_shapes_changed_in_place_are_followed(between: Callable[[Tensor], Tensor]) -> None:
    model = Body(between)
    groups = pruning.find_groups(model, X)
    assert [group.name for group in groups] == ["a.weight:0"]
    pruning.narrow(model, pruning.Plan.of(groups, {"a.weight:0": [1, 5, 7]}), X, groups=groups)


class Mapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.fc = nn.Linear(12, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(torch.relu(torch.func.vmap(self.a)(x)))


class Ensemble(nn.Module):
    """Three layers of one shape, stacked and run as one; then their mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Parameter(torch.randn(3, 24, 12))
        self.second = nn.Parameter(torch.randn(3, 5, 24))

    def forward(self, x: Tensor) -> Tensor:
        def one(first: Tensor, second: Tensor) -> Tensor:
            return torch.relu(x @ first.T) @ second.T

        return torch.func.vmap(one)(self.first, self.second).mean(0)


@pytest.mark.parametrize(("model", "group"), [(Mapped(), "a.weight:0"), (Ensemble(), "first:1")])
def test_networks_with_vmap_are_pruned(model: nn.Module, group: str) -> None:
    groups = pruning.find_groups(model, X)
    assert group in groups
    pruning.narrow(model, pruning.Plan.of(groups, {group: [1, 5, 7]}), X, groups=groups)
