"""Windows that code lays over a tensor by its strides: channels go where the strides follow them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.plan.verification import outputs_of, relative_difference

X = torch.randn(2, 16, 6, generator=torch.Generator().manual_seed(0))
HALF = 4  # positions of half a window


class Windows(nn.Module):
    """Attention within windows that overlap by half, as Longformer's."""

    def __init__(self, *, copies: bool = True, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.copies, self.heads = copies, heads
        self.query, self.key, self.value = (nn.Linear(6, width) for _ in range(3))
        self.last = nn.Linear(width, 5)

    def strides(self, x: Tensor) -> tuple[int, ...]:
        return (*x.stride()[:2], x.stride(2) // 2, *x.stride()[3:])

    def windows(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        x = x.view(b, n, self.heads, c // self.heads).transpose(1, 2)
        if self.copies:
            x = x.contiguous()
        x = x.view(b, self.heads, n // (2 * HALF), 2 * HALF, x.shape[-1])
        return x.as_strided((*x.shape[:2], x.shape[2] * 2 - 1, *x.shape[3:]), self.strides(x))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.windows(layer(x)) for layer in (self.query, self.key, self.value))
        found = torch.einsum("bhcxd,bhcyd->bhcxy", query, key).div(6**0.5).softmax(-1) @ value
        out: Tensor = self.last(found.flatten(2, 3).transpose(1, 2).flatten(2))
        return out


class LiteralStrides(Windows):
    """Its strides are those of 6 channels a head: windows of fewer would have the right shape, and other values."""

    def strides(self, x: Tensor) -> tuple[int, ...]:
        return (384, 96, 24, 6, 1)


@pytest.mark.parametrize("copies", [True, False], ids=["in order", "in another order in memory"])
def test_heads_and_their_channels_go_from_overlapping_windows(copies: bool) -> None:
    model = Windows(copies=copies).eval()
    groups = pruning.find_groups(model, X)
    assert not groups.unknown_operators
    assert {group.size for group in groups} == {4, 6}
    plan = pruning.Plan.of(groups, {group.name: [1] for group in groups})
    dense = pruning.narrow(model, plan, X, groups=groups)
    assert dense.get_parameter("query.weight").shape == (15, 6)
    masked = pruning.apply_masks(model, plan, groups=groups)
    expected = outputs_of(masked.double(), X.double())
    assert relative_difference(expected, outputs_of(dense.double(), X.double())) < 1e-12


def test_strides_that_do_not_follow_keep_the_channels_whole() -> None:
    model = LiteralStrides().eval()
    groups = pruning.find_groups(model, X)
    assert 6 not in {group.size for group in groups}
    assert "strides [384, 96, 24, 6, 1] where" in str(groups.report())


@pytest.mark.parametrize("offset", [0, 5])
def test_windows_that_run_across_channels_keep_them_whole(offset: int) -> None:
    class Across(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.first(x).as_strided((2, 20, 3), (128, 6, 1), offset))
            return out

    assert not [group for group in pruning.find_groups(Across().eval(), X) if "first" in group.name]
