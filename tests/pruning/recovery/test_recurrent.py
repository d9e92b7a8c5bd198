"""Recurrent layers by their products: what reads a group, and what makes up for what it lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning import Plan, collect, find_groups, make_plan, narrow, reconstruct
from pruning.importance import order_channels, score_channels
from pruning.recovery.fold import fold
from pruning.statistics.collector import other_readers


class Tagger(nn.Module):
    """A layer, a recurrent one and another: both groups are read by a recurrent layer."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.i, self.l = nn.Linear(10, 16), getattr(nn, kind)(16, 20, batch_first=True, **options)
        self.o = nn.Linear(20 * (2 if options.get("bidirectional") else 1), 6)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.o(self.l(self.i(x).relu())[0])
        return found


def sequences(count: int, seed: int) -> Tensor:
    """Sequences with fewer directions than channels, so that one channel can make up for another."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
    return 0.4 * torch.randn(count, 9, 10, generator=generator) @ mix


def error(model: nn.Module, dense: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        whole = model(inputs)
        return float((dense(inputs) - whole).norm() / whole.norm())


KINDS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True}),
    ("GRU", {"bidirectional": True}),
    ("RNN", {"num_layers": 2}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_removed_duplicates_are_made_up_for_exactly(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, inputs = Tagger(kind, **options).eval(), sequences(64, 1)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    with torch.no_grad():
        for parameter in (model.i.weight, model.i.bias):
            parameter[1] = parameter[0]
        for parameter in model.l.parameters():
            rows = parameter.view(gates, 20, *parameter.shape[1:])
            rows[:, 1] = rows[:, 0]
    groups = find_groups(model, inputs[:1])
    entering, hidden = (next(g for g in groups if g.size == size) for size in (16, 20))
    statistics = collect(groups, {"moments"}, inputs)
    for group in (entering, hidden):
        scores = score_channels("structured_obs", group, statistics)
        assert float(scores[:2].min()) < 1e-2 * float(scores[2:].min())
    plan = Plan.of(groups, {entering.name: [1], hidden.name: [1]})
    dense = narrow(model, plan, inputs[:1], groups=groups)
    assert error(model, dense, inputs) > 0.02
    refits = reconstruct(dense, model, plan, groups, inputs, ridge=1e-7)
    assert error(model, dense, inputs) < 1e-3
    assert not any(refit.skipped for refit in refits)
    folded = narrow(model, plan, inputs[:1], groups=groups)
    fold(folded, plan, groups, statistics, "structured_obs")
    assert error(model, folded, inputs) < 1e-2


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_outputs_come_nearer_on_inputs_not_seen(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, inputs, unseen = Tagger(kind, **options).eval(), sequences(96, 1), sequences(64, 2)
    groups = find_groups(model, inputs[:1])
    plan = make_plan(groups, "structured_obs", samples=inputs, mac_reduction=0.4)
    assert len(plan.removed) == 2
    dense = narrow(model, plan, inputs[:1], groups=groups)
    own = [name for name, _ in dense.named_parameters() if name.startswith("l.")]
    without, states = error(model, dense, unseen), {name: dense.get_parameter(name).clone() for name in own}
    reconstruct(dense, model, plan, groups, inputs)
    with_all = error(model, dense, unseen)
    assert with_all < 0.6 * without
    with torch.no_grad():  # what the other layers make up for by themselves
        other = narrow(model, plan, inputs[:1], groups=groups)
        reconstruct(other, model, plan, groups, inputs)
        for name in own:
            other.get_parameter(name).copy_(states[name])
    assert with_all < error(model, other, unseen)


class Attends(nn.Module):
    """States are read by the recurrent layer, by a layer, and by scores."""

    def __init__(self) -> None:
        super().__init__()
        self.l, self.o = nn.LSTM(10, 16, batch_first=True), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        states = self.l(x)[0]
        found: Tensor = self.o((states @ states.transpose(1, 2)).softmax(-1) @ states)
        return found


class Projected(nn.Module):
    """Its cells are read by a projection, which is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.l, self.o = nn.LSTM(10, 16, proj_size=8, batch_first=True), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.o(self.l(x)[0])
        return found


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("make", "size", "operators"), [(Attends, 16, {"lstm", "bmm"}), (Projected, 16, {"lstm"})])
def test_readers_that_are_no_layers_are_compared_at_what_they_give(
    make: type[nn.Module], size: int, operators: set[str]
) -> None:
    torch.manual_seed(0)
    model, inputs = make().eval(), sequences(32, 1)
    groups = find_groups(model, inputs[:1])
    group = next(group for group in groups if group.size == size)
    found = {groups.trace.operations[i].name for i, read in other_readers(groups).items() if group in read}
    assert found <= operators | {"matmul"}
    assert "lstm" in found
    statistics = collect(groups, {"moments"}, inputs)
    assert statistics.contributions is not None
    assert group.name in statistics.contributions
    order = order_channels("structured_obs", group, statistics)
    narrowed = [narrow(model, Plan.of(groups, {group.name: [order[at]]}), inputs[:1], groups=groups) for at in (0, -1)]
    cheap, dear = (error(model, dense, inputs) for dense in narrowed)
    assert cheap < dear


@pytest.mark.parametrize("criterion", ["structured_obs", "lasso", "greedy_forward", "activation_variance", "entropy"])
def test_criteria_of_what_layers_read_have_scores(criterion: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, inputs = Tagger("LSTM", bidirectional=True).eval(), sequences(32, 1)
    groups = find_groups(model, inputs[:1])
    plan = make_plan(groups, criterion, samples=inputs, mac_reduction=0.3)
    assert len(plan.removed) == 2
    assert not caplog.records
