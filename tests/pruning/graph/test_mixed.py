"""Channels over which a statistic is computed go only on demand, and then it is said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pruning


class Transformer(nn.Module):
    """Residual streams behind layer norms; heads whose width is worked out from the width of the stream."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.patches = nn.Linear(6, width)
        self.position = nn.Parameter(torch.randn(1, 7, width))
        self.first, self.second, self.last = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 32), nn.Linear(32, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x) + self.position
        b, n, c = x.shape
        q, k, v = self.qkv(self.first(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / 6**0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, n, c))
        x = x + self.narrow(self.wide(self.second(x)).relu())
        out: Tensor = self.head(self.last(x).mean(1))
        return out


X = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0))


def _streams(groups: pruning.Groups) -> list[pruning.Group]:
    return [group for group in groups if "patches.weight" in {s.parameter for s in group.slices}]


def test_a_residual_stream_behind_a_layer_norm_stays_whole_unless_it_is_allowed() -> None:
    model = Transformer()
    assert not _streams(pruning.find_groups(model, X))
    [stream] = _streams(pruning.find_groups(model, X, allow_mixed=True))
    assert stream.size == 24
    assert any("layer_norm" in reason for reason in stream.mixed)
    assert "not exact: layer_norm computes its statistics over it" in str(stream)


def test_a_narrowed_stream_runs_trains_and_says_how_far_off_it_is() -> None:
    torch.manual_seed(0)
    model = Transformer()
    groups = pruning.find_groups(model, X, allow_mixed=True)
    [stream] = _streams(groups)
    plan = pruning.Plan.of(groups, {stream.name: range(0, 24, 3)})
    with pytest.warns(UserWarning, match=r"differs from the masked one by .*layer_norm computes its statistics"):
        dense = pruning.narrow(model, plan, X, groups=groups)
    assert dense.get_submodule("first").normalized_shape == (16,)
    assert dense.get_parameter("qkv.weight").shape == (72, 16)
    optimizer = torch.optim.Adam(dense.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (dense(X) - torch.arange(5.0)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2


def test_exact_groups_are_still_verified_beside_mixed_ones(recwarn: pytest.WarningsRecorder) -> None:
    model = Transformer()
    groups = pruning.find_groups(model, X, allow_mixed=True)
    exact = [group for group in groups if not group.mixed]
    assert exact
    pruning.narrow(model, pruning.Plan.of(groups, {group.name: [0] for group in exact}), X, groups=groups)
    assert not recwarn.list
