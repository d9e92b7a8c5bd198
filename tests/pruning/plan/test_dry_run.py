"""What the model's own code holds of sizes is found by rehearsing, and named with its line."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pruning
from pruning.plan.masks import apply_masks
from pruning.plan.verification import outputs_of, relative_difference


class Chain(nn.Module):
    """Three convolutions; subclasses say what happens between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 4, 1)

    def between(self, x: Tensor) -> Any:
        return x

    def forward(self, x: Tensor) -> Any:
        return self.third(self.between(self.second(F.relu(self.first(x)))))


class LiteralView(Chain):
    def between(self, x: Tensor) -> Any:
        return x.reshape(x.shape[0], 12, -1).view(x.shape[0], 12, 12, 12)


class BatchShift(Chain):
    """A reshape that silently moves channels into the batch when the width changes."""

    def between(self, x: Tensor) -> Any:
        return x.permute(0, 2, 3, 1).reshape(-1, 12).sum(0).reshape(1, -1, 1, 1)


class ScaledByAll(Chain):
    """The number follows the width, and the extents of the input: no one value is right."""

    def between(self, x: Tensor) -> Any:
        return x / math.sqrt(x[0].numel())


class LiteralSlice(Chain):
    def between(self, x: Tensor) -> Any:
        return torch.cat([x[:, :5] * 2, x[:, 5:]], 1)


class LiteralGroups(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(12, 1, 3, 3))

    def between(self, x: Tensor) -> Any:
        return F.conv2d(x, self.w, groups=12)


class BranchOnWidth(Chain):
    def between(self, x: Tensor) -> Any:
        return x * 2 if x.shape[1] == 12 else x


class Assertion(Chain):
    def between(self, x: Tensor) -> Any:
        assert x.shape[1] == 12, "I only know 12 channels"
        return x + 1


class PositionTable(Chain):
    """The values of arange come from the size, so the axis along them can't lose a channel."""

    def between(self, x: Tensor) -> Any:
        return x * torch.arange(x.shape[1]).view(1, -1, 1, 1)


def image() -> Tensor:
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (LiteralView(), "test_dry_run.py:"),
        (BatchShift(), "test_dry_run.py:"),
        (ScaledByAll(), "works out another size where the inputs have another size"),
        (LiteralGroups(), "test_dry_run.py:"),
        (BranchOnWidth(), "test_dry_run.py:"),
        (Assertion(), "I only know 12 channels"),
        (PositionTable(), "arange computes its values from the size"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_size_in_code_leaves_its_group_whole_and_the_others_free(model: nn.Module, reason: str) -> None:
    groups = pruning.find_groups(model, image())
    assert [group.name for group in groups] == ["first.weight:0"]
    row = groups.report()["second.weight"]
    assert any(reason in text for text in row.reasons), row
    plan = pruning.Plan.of(groups, {"first.weight:0": [1, 4]})
    dense = pruning.narrow(model, plan, image())
    masked = pruning.apply_masks(model, plan)
    assert relative_difference(outputs_of(masked, image()), outputs_of(dense, image())) < 1e-5


def test_a_literal_slice_keeps_what_lies_before_its_border() -> None:
    model = LiteralSlice()
    groups = pruning.find_groups(model, image())
    assert [(group.name, group.size) for group in groups] == [("first.weight:0", 8), ("second.weight:0.1", 7)]
    plan = pruning.Plan.of(groups, {"second.weight:0.1": [0, 3]})
    dense = pruning.narrow(model, plan, image())
    masked = pruning.apply_masks(model, plan)
    assert relative_difference(outputs_of(masked, image()), outputs_of(dense, image())) < 1e-5


def test_a_slice_that_would_begin_at_another_channel_is_found() -> None:
    class Window(Chain):
        """Eight of twelve rows, from the third on: shapes agree even if rows before them go."""

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(12, 4))

        def forward(self, x: Tensor) -> Any:
            x = super().forward(x).mean((2, 3))
            beside = (x @ self.table[:2].t()).sum(-1) + (x @ self.table[10:].t()).sum(-1)
            return x @ self.table[2:10].t() + beside[:, None]

    model = Window()
    groups = pruning.find_groups(model, image())
    plan = pruning.Plan.of(groups, {group.name: [0] for group in groups})
    pruning.narrow(model, plan, image())
    # The rows before the window hold its place; those behind it may go.
    assert [(group.name, group.size) for group in groups if "table" in group.name] == [("table:0.2", 2)]


def test_the_same_line_in_many_modules_is_found_in_one_go() -> None:
    several = nn.ModuleList(Assertion() for _ in range(4))

    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = several

        def forward(self, x: Tensor) -> list[Tensor]:
            return [branch(x) for branch in self.branches]

    found = pruning.find_groups(Parallel(), image())
    assert [group.name for group in found] == [f"branches.{i}.first.weight:0" for i in range(4)]


def test_an_operator_without_a_rule_freezes_what_it_touches_and_is_named() -> None:
    class Unknown(Chain):
        def between(self, x: Tensor) -> Any:
            return torch.linalg.inv(x)

    groups = pruning.find_groups(Unknown(), image()[..., :16, :16])
    assert [group.name for group in groups] == ["first.weight:0"]
    assert "linalg_inv_ex" in groups.unknown_operators or "linalg_inv" in groups.unknown_operators
    assert "no rule covers linalg_inv" in str(groups.report()["second.weight"])


def test_control_flow_that_depends_on_values_is_traced_on_real_tensors() -> None:
    class Gate(Chain):
        def between(self, x: Tensor) -> Any:
            return x * 2 if x.abs().sum().item() > 0 else x

    model = Gate()
    groups = pruning.find_groups(model, image())
    assert len(groups) == 2
    plan = pruning.Plan.of(groups, {"second.weight:0": [0, 5, 6]})
    assert pruning.narrow(model, plan, image()).get_submodule("second").out_channels == 9


def test_a_model_that_does_not_run_is_an_error_that_says_so() -> None:
    with pytest.raises(pruning.errors.ModelError, match=r"forward pass of Chain fails.*expected input"):
        pruning.find_groups(Chain(), torch.randn(1, 5, 8, 8))


class Experts(nn.Module):
    """A mixture of two experts: the likeliest gets the token, and code looks up which tokens each one gets."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.into, self.router, self.out = nn.Linear(6, width), nn.Linear(width, 2), nn.Linear(width, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 20), nn.ReLU(), nn.Linear(20, width)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Any:
        hidden = self.into(x).relu()
        chosen = nn.functional.one_hot(self.router(hidden).argmax(-1), 2)
        mixed = torch.zeros_like(hidden)
        for number, expert in enumerate(self.experts):
            (tokens,) = torch.where(chosen[:, number])
            mixed.index_add_(0, tokens, expert(hidden[tokens]))
        return self.out(mixed)


@pytest.mark.parametrize("seed", range(4))
def test_experts_that_data_choose_are_narrowed_though_narrower_ones_choose_otherwise(seed: int) -> None:
    torch.manual_seed(seed)
    model, tokens = Experts(), torch.randn(32, 6)
    groups = pruning.find_groups(model, tokens)
    assert [group.name for group in groups] == ["into.weight:0", "experts.0.0.weight:0", "experts.1.0.weight:0"]
    plan = pruning.Plan.of(groups, {group.name: list(range(0, group.size, 3)) for group in groups})
    narrow = pruning.narrow(model, plan, tokens)  # which compares it with the masked model
    others = torch.randn(64, 6)
    torch.testing.assert_close(narrow(others), apply_masks(model, plan, groups=groups)(others))
