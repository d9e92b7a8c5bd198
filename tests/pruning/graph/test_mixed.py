"""Channels over which a statistic is computed go only on demand; what is masked then computes it over the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.plan.verification import outputs_of, relative_difference


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
    assert "over what is kept: layer_norm computes its statistics over it" in str(stream)


def _exact(model: nn.Module, inputs: Tensor) -> pruning.Groups:
    """Narrow all streams by a quarter, verified, and compare once more in float64."""
    model.eval()
    groups = pruning.find_groups(model, inputs, allow_mixed=True)
    streams = [group for group in groups if group.mixed]
    assert streams
    plan = pruning.Plan.of(groups, {group.name: range(1, 1 + group.size // 4) for group in streams})
    dense = pruning.narrow(model, plan, inputs, groups=groups)
    masked = pruning.apply_masks(model, plan, groups=groups)
    expected = outputs_of(masked.double(), inputs.double())
    assert relative_difference(expected, outputs_of(dense.double(), inputs.double())) < 1e-12
    assert relative_difference(outputs_of(model.double(), inputs.double()), expected) > 1e-3
    return groups


class HandWritten(nn.Module):
    """Norms written out, and one without a gain of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 24), nn.Linear(24, 5)
        self.layers = nn.ModuleList(nn.Linear(24, 24) for _ in range(4))
        self.gain = nn.Parameter(torch.rand(24) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.layers[0](x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.gain)
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        x = x + self.layers[1]((x - mean) / (variance + 1e-5).sqrt()).sigmoid()
        x = x + self.layers[2](nn.functional.normalize(x, dim=-1))
        x = x + self.layers[3](nn.functional.layer_norm(x, x.shape[-1:]))
        out: Tensor = self.last(x)
        return out


class Residual(nn.Module):
    """Group norms of one group and of four in front of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(1, 16), nn.GroupNorm(4, 16)])
        self.layers = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x).relu())
        return x


class Standardised(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1, with a gain or without."""

    def __init__(self, into: int, out: int, *, gain: bool, bias: bool = True) -> None:
        super().__init__(into, out, 3, padding=1, bias=bias)
        self.gain = nn.Parameter(torch.rand(out, 1, 1, 1) + 0.5) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        gain = None if self.gain is None else (self.gain * 0.1).view(-1)
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = nn.functional.batch_norm(flat, None, None, weight=gain, training=True).reshape_as(self.weight)
        out: Tensor = self._conv_forward(x, weight, self.bias)
        return out


class StandardisedByHand(nn.Conv2d):
    """The same, written out."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        out: Tensor = self._conv_forward(x, (self.weight - mean) / (variance + 1e-10).sqrt(), self.bias)
        return out


class Standardising(nn.Module):
    """A residual network that norms filters in place of activations; its products sum over channels, too."""

    def __init__(self, make: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.last = make(3, 12), nn.Linear(12, 5)
        self.branches = nn.ModuleList(nn.Sequential(make(12, 16), nn.ReLU(), make(16, 12)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for branch in self.branches:
            x = x + 0.2 * branch(x)
        flat = x.flatten(2)
        out: Tensor = self.last((flat.transpose(1, 2) @ flat).softmax(-1) @ flat.transpose(1, 2))
        return out


def _post_norm() -> nn.Module:
    layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True)
    return nn.Sequential(
        nn.Linear(6, 24), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(24, 5)
    )


def _group_norms() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 1), Residual(), Residual(), nn.Conv2d(16, 5, 1))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (Transformer, (2, 7, 6)),
        (HandWritten, (3, 4, 6)),
        (_post_norm, (2, 7, 6)),
        (_group_norms, (2, 3, 8, 8)),
        (lambda: Standardising(partial(Standardised, gain=True)), (2, 3, 6, 6)),
        (lambda: Standardising(partial(Standardised, gain=False)), (2, 3, 6, 6)),
        (lambda: Standardising(StandardisedByHand), (2, 3, 6, 6)),
    ],
    ids=[
        *("layer norms", "written by hand", "post-norm", "group norms"),
        *("standardised filters with gains", "standardised filters", "filters standardised by hand"),
    ],
)
def test_narrowed_streams_are_the_masked_model_whose_norms_see_what_is_kept(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    _exact(make(), torch.randn(shape))


class Softmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).softmax(-1))
        return out


def test_what_is_no_norm_keeps_its_channels_whole_and_is_named() -> None:
    groups = pruning.find_groups(Softmax(), torch.randn(2, 6), allow_mixed=True)
    assert not len(groups)
    assert "softmax normalises over it" in str(groups.report())


class OneLine(nn.Module):
    """One line of code norms two kinds of channels, of equal numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 12), nn.Linear(6, 12)
        self.first, self.second = nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = (nn.functional.layer_norm(t, t.shape[-1:]) for t in (self.one(x), self.other(x)))
        out: Tensor = self.first(a) * self.second(b)
        return out


def test_statistics_that_one_line_computes_of_two_kinds_of_channels_keep_both_whole() -> None:
    groups = pruning.find_groups(OneLine(), torch.randn(2, 6), allow_mixed=True)
    assert not len(groups)
    assert "computes statistics over several kinds of channels" in str(groups.report())


def test_a_plan_read_from_json_finds_the_streams_it_names() -> None:
    model = Transformer().eval()
    groups = pruning.find_groups(model, X, allow_mixed=True)
    [stream] = _streams(groups)
    plan = pruning.Plan.of(groups, {stream.name: range(4)})
    read = pruning.Plan.model_validate_json(plan.model_dump_json())
    assert pruning.narrow(model, read, X).get_parameter("qkv.weight").shape == (72, 20)


def test_a_narrowed_stream_can_be_trained() -> None:
    torch.manual_seed(0)
    model = Transformer()
    groups = pruning.find_groups(model, X, allow_mixed=True)
    [stream] = _streams(groups)
    plan = pruning.Plan.of(groups, {stream.name: range(0, 24, 3)})
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


def test_channels_that_are_zero_already_are_proven_by_those_that_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 3)).eval()
    groups = pruning.find_groups(model, torch.randn(2, 6), allow_mixed=True)
    [stream] = groups
    plan = pruning.Plan.of(groups, {stream.name: range(4)})
    first = pruning.apply_masks(model, plan, groups=groups)
    model.load_state_dict(first.state_dict())
    masked = pruning.apply_masks(first, plan, groups=groups)
    x = torch.randn(5, 6)
    assert torch.equal(first(x), masked(x))
    assert pruning.narrow(model, plan, torch.randn(2, 6), groups=groups)(x).shape == (5, 3)
    assert torch.allclose(pruning.narrow(model, plan, x, groups=groups)(x), first(x), atol=1e-6)


def test_reconstruction_makes_up_for_most_of_a_stream_and_takes_positions_for_no_branch() -> None:
    torch.manual_seed(0)
    model, inputs, others = Transformer().eval(), torch.randn(256, 7, 6), torch.randn(64, 7, 6)
    groups = pruning.find_groups(model, X, allow_mixed=True)
    limits = pruning.Limits(min_channels=1)
    plan = pruning.make_plan(groups, "structured_obs", pruning.ChannelSparsity(0.25), samples=inputs, limits=limits)
    assert plan.removed[_streams(groups)[0].name]
    dense = pruning.narrow(model, plan, X, groups=groups)
    with torch.no_grad():
        before = (dense(others) - model(others)).norm()
        pruning.reconstruct(dense, model, plan, groups, inputs)
        assert (dense(others) - model(others)).norm() < 0.7 * before


class ChannelAttention(nn.Module):
    """Attention among the channels of a head, whose width is worked out from the stream's and stays: XCiT's."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.norm, self.last = nn.Linear(6, width), nn.LayerNorm(width), nn.Linear(width, 5)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 4, 1).unbind(0)
        mixed = (q @ k.transpose(-2, -1) / n).softmax(-1) @ v
        out: Tensor = self.last(x + self.out(mixed.permute(0, 3, 1, 2).reshape(b, n, c)))
        return out


def test_a_number_worked_out_from_a_stream_stays_where_its_axis_does() -> None:
    """The number of tokens, which moves with the inputs, is none of these: other lengths are verified too."""
    torch.manual_seed(0)
    groups = _exact(ChannelAttention(), X)
    assert {group.size for group in groups} == {24, 4}, "the stream, and the heads"


class OneOfTwo(nn.Module):
    """A stream whose width the code insists on, at a line that reads another group too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.inner = nn.Linear(6, 24), nn.LayerNorm(24), nn.Linear(24, 24)
        self.last, self.other = nn.Linear(24, 5), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        inner = self.inner(x).relu()
        if x.shape[-1] != 24:
            inner = inner[..., :5]
        out: Tensor = self.last(x) + self.other(inner)
        return out


def test_a_stream_that_cannot_go_takes_no_other_group_along() -> None:
    alone, both = (pruning.find_groups(OneOfTwo(), torch.randn(3, 6), allow_mixed=mixed) for mixed in (False, True))
    assert [group.name for group in alone] == ["inner.weight:0"]
    assert [group.name for group in both] == ["inner.weight:0"]
    assert "was written for its size" in str(both.report()["norm.weight"])
