"""Whatever consumes a group's channels counts: each of these networks has something that is no layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning import Plan, calibrate, collect, find_groups, narrow
from pruning.graph.groups import Groups
from pruning.importance import order_channels, score_channels
from pruning.recovery.fold import fold
from pruning.statistics import contributions

weight_norm = nn.utils.parametrizations.weight_norm


class Net(nn.Module):
    """Modules and parameters by name, and what is computed with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self._forward(self, x)
        return found


def parameter(*size: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*size) / size[-1] ** 0.5)


def body(width: int = 12) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, width, 3, padding=1), nn.ReLU())


def attention(s: Any, x: Tensor) -> Any:
    q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (s.q, s.k, s.v))
    return s.o(((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2))


def fused_attention(s: Any, x: Tensor) -> Any:
    q, k, v = s.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    return s.o(((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2))


def non_local(s: Any, x: Tensor) -> Any:
    y = s.b(x)
    g, t, p = (layer(y).flatten(2) for layer in (s.g, s.t, s.p))
    mixed = g @ (8 * t.transpose(1, 2) @ p).softmax(-1).transpose(1, 2)
    return s.o(y + s.w(mixed.unflatten(2, y.shape[2:])))


def recurrent(s: Any, x: Tensor) -> Any:
    return s.o(s.l(F.relu(s.i(x)))[0])


def squeeze_excite(s: Any, x: Tensor) -> Any:
    y = s.b(x)
    gate = s.up(F.relu(s.down(y.mean((2, 3))))).sigmoid()[:, :, None, None]
    return torch.cat([s.o(y * gate), (y * gate).sum(1, keepdim=True)], 1)


def experts(s: Any, x: Tensor) -> Any:
    hidden = F.relu(torch.einsum("bc,ech->beh", x.mean((2, 3)), s.a))
    return torch.einsum("beh,eho->bo", hidden, s.c)


def cosines(s: Any, x: Tensor) -> Any:
    return F.normalize(s.n(s.b(x).mean((2, 3)))) @ F.normalize(s.m.weight).T


def tied_embedding(s: Any, x: Tensor) -> Any:
    y = s.e((x * 10).long().abs() % 20)
    return F.linear(y + s.down(F.relu(s.up(y))), s.e.weight)


Linear, Conv = nn.Linear, nn.Conv2d
IMAGES, TOKENS, WORDS = (64, 3, 8, 8), (64, 6, 10), (64, 6)

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "separate q, k, v": (
        lambda: Net(attention, q=Linear(10, 16), k=Linear(10, 16), v=Linear(10, 16), o=Linear(16, 4)),
        TOKENS,
    ),
    "fused qkv": (lambda: Net(fused_attention, qkv=Linear(10, 48), o=Linear(16, 4)), TOKENS),
    "non-local block": (
        lambda: Net(non_local, b=body(), g=Conv(12, 8, 1), t=Conv(12, 8, 1), p=Conv(12, 8, 1), w=Conv(8, 12, 1),
                    o=Conv(12, 4, 1)),
        IMAGES,
    ),
    "lstm": (lambda: Net(recurrent, i=Linear(10, 12), l=nn.LSTM(12, 8, batch_first=True), o=Linear(8, 4)), TOKENS),
    "two-way gru of two layers": (
        lambda: Net(recurrent, i=Linear(10, 12), l=nn.GRU(12, 8, 2, batch_first=True, bidirectional=True),
                    o=Linear(16, 4)),
        TOKENS,
    ),
    "gated linear unit": (
        lambda: Net(lambda s, x: (s.d(s.a(x) * s.g(x).sigmoid()) * s.k(x)).sum(-1), a=Linear(10, 16),
                    g=Linear(10, 16), d=Linear(16, 8), k=Linear(10, 8)),
        TOKENS,
    ),
    "squeeze and excite, then a sum": (
        lambda: Net(squeeze_excite, b=body(), down=Linear(12, 6), up=Linear(6, 12), o=Conv(12, 4, 1)),
        IMAGES,
    ),
    "einsum with a parameter": (
        lambda: Net(lambda s, x: torch.einsum("bchw,oc->bohw", s.b(x), s.w), b=body(), w=parameter(4, 12)),
        IMAGES,
    ),
    "experts in one tensor": (lambda: Net(experts, a=parameter(4, 3, 16), c=parameter(4, 16, 5)), IMAGES),
    "weight norm": (
        lambda: nn.Sequential(weight_norm(Conv(3, 16, 3)), nn.ReLU(), weight_norm(Conv(16, 12, 3)), nn.ReLU(),
                              Conv(12, 4, 1)),
        IMAGES,
    ),
    "embedding tied with the output": (
        lambda: Net(tied_embedding, e=nn.Embedding(20, 16), up=Linear(16, 24), down=Linear(24, 16)),
        WORDS,
    ),
    "channels summed": (lambda: Net(lambda s, x: s.b(x).sum(1), b=body()), IMAGES),
    "learned scale, depthwise, then a sum": (
        lambda: Net(lambda s, x: (s.d(s.b(x)) * s.w).sum(1), b=body(), d=Conv(12, 12, 3, groups=12),
                    w=parameter(12, 1, 1)),
        IMAGES,
    ),
    "two towers": (lambda: Net(lambda s, x: (s.a(x) * s.b(x.flip(3))).sum(1), a=body(), b=body()), IMAGES),
    "cosines": (lambda: Net(cosines, b=body(), n=nn.BatchNorm1d(12), m=Linear(12, 5)), IMAGES),
}  # fmt: skip


SEEDS = {"fused qkv": 1}
"""Where a head's channels are those of q, k and v at once, the order of single channels isn't right for every seed."""


def make(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(SEEDS.get(name, 0))
    build, size = NETS[name]
    return build().eval(), torch.randn(*size)


@pytest.mark.parametrize("name", NETS)
def test_default_criterion_scores_every_group_by_its_definition(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, x = make(name)
    groups = find_groups(model, x[:1])
    assert len(groups)
    statistics = collect(groups, {"moments"}, x)
    orders = {group.name: order_channels("structured_obs", group, statistics) for group in groups}
    with torch.no_grad():
        whole = model(x)
        for group in groups:
            assert score_channels("structured_obs", group, statistics).isfinite().all()
            together = (group.name, *group.ties)
            plans = [Plan.of(groups, {one: [orders[one][at]] for one in together}) for at in (0, -1)]
            narrowed = [narrow(model, plan, x[:1], groups=groups, verify=False) for plan in plans]
            for dense, plan in zip(narrowed, plans, strict=True):
                if statistics.moments:  # what is left makes up for what went, as the scores assume
                    fold(dense, plan, groups, statistics, "structured_obs")
            cheap, dear = (float((dense(x) - whole).norm()) for dense in narrowed)
            assert cheap < dear, group.name
    assert not caplog.records


@pytest.mark.parametrize("name", NETS)
def test_calibration_by_the_shipped_recipe_runs(name: str) -> None:
    model, x = make(name)
    result = calibrate(model, x, mac_reduction=0.3, scope="global")
    assert result.plan.removed
    assert result.model(x).isfinite().all()


def test_gains_of_a_large_model_are_measured_on_a_few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    build, shape = NETS["squeeze and excite, then a sum"]
    torch.manual_seed(0)
    model, inputs = build(), torch.randn(*shape)
    groups = find_groups(model.eval(), inputs[:1])
    seen = []
    measure = contributions.measure_gains

    def watched(groups: Groups, inputs: Tensor, readers: Any) -> Any:
        seen.append(len(inputs))
        return measure(groups, inputs, readers)

    monkeypatch.setattr(contributions, "measure_gains", watched)
    found = []
    for values in (1 << 26, 1):
        monkeypatch.setattr(contributions, "_PASS_VALUES", values)
        found.append(collect(groups, {"moments"}, inputs).gains)
    assert seen == [64, 8]
    assert found[0].keys() == found[1].keys() != set()
    for name, gains in found[0].items():
        assert found[1][name] == pytest.approx(gains, rel=0.5)
