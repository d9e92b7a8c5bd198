"""Networks of several inputs: criteria, reconstruction and calibration take what `find_groups` takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.allocation.sensitivity import Sensitivity
from pruning.errors import DataError
from pruning.evaluation import evaluate
from pruning.importance import find_criterion
from pruning.importance.registry import criterion_names
from pruning.recovery.reconstruct import reconstruct
from pruning.statistics.collect import NEEDS, collect

GENERATOR = torch.Generator().manual_seed(0)
ONE, TWO = torch.randn(20, 3, 6, 6, generator=GENERATOR), torch.randn(20, 2, 6, 6, generator=GENERATOR)
LABELS = torch.randint(0, 4, (20,), generator=GENERATOR)
INPUTS: dict[str, Any] = {"a tuple": (ONE, TWO), "a dict": {"y": TWO, "x": ONE}}


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))
        self.b = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8))
        self.out = nn.Conv2d(24, 4, 1)
        self.eval()

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.out(torch.cat([self.a(x).relu(), self.b(y).relu()], 1)).mean((2, 3))


class Joined(Pair):
    """The same network of one input."""

    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x[:, :3], x[:, 3:])


@pytest.mark.parametrize("kind", INPUTS)
def test_statistics_of_several_inputs_are_those_of_one_that_holds_them(kind: str) -> None:
    needs = [need for need in NEEDS if need != "inversions"]  # its noise depends on how inputs are given
    groups, joined = pruning.find_groups(Pair(), INPUTS[kind]), pruning.find_groups(Joined(), torch.cat([ONE, TWO], 1))
    of_several = collect(groups, needs, SimpleNamespace(inputs=INPUTS[kind], targets=LABELS), batch_size=8)
    of_one = collect(joined, needs, SimpleNamespace(inputs=torch.cat([ONE, TWO], 1), targets=LABELS), batch_size=8)
    for need, found in of_one.gathered.items():
        for name, values in found.items():
            other = of_several.gathered[need][name]
            if isinstance(values, torch.Tensor):
                assert isinstance(other, torch.Tensor)
                assert torch.allclose(values, other), (need, name)
            else:
                assert values.kind == other.kind, (need, name)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", criterion_names())
def test_every_criterion_scores_networks_of_several_inputs(name: str, kind: str) -> None:
    groups = pruning.find_groups(Pair(), INPUTS[kind])
    samples = SimpleNamespace(inputs=INPUTS[kind], targets=LABELS) if find_criterion(name).needs - {"weights"} else None
    assert pruning.make_plan(groups, name, channel_sparsity=0.3, samples=samples, ignore=["out"]).removed


@pytest.mark.parametrize("kind", INPUTS)
def test_networks_of_several_inputs_are_calibrated(kind: str) -> None:
    model = Pair()
    found = pruning.calibrate(model, INPUTS[kind], mac_reduction=0.3, recalibrate_norms=True, batch_size=8)
    assert [refit.layer for refit in found.refits] == ["a.0.weight", "b.0.weight", "out.weight"]
    assert any(refit.error_after < refit.error_before for refit in found.refits)


@pytest.mark.parametrize("kind", INPUTS)
def test_evaluation_sensitivity_and_scores_of_weights_are_those_of_one_input_that_holds_them(kind: str) -> None:
    of_several: Any = SimpleNamespace(inputs=INPUTS[kind], targets=LABELS)
    of_one: Any = SimpleNamespace(inputs=torch.cat([ONE, TWO], 1), targets=LABELS)
    found, expected = evaluate(Pair(), of_several, batch_size=8), evaluate(Joined(), of_one, batch_size=8)
    assert (found.score, found.loss) == pytest.approx((expected.score, expected.loss))
    groups, joined = pruning.find_groups(Pair(), INPUTS[kind]), pruning.find_groups(Joined(), of_one.inputs)
    for criterion in ("taylor_weight", "obd"):
        scores = pruning.choose_weights(groups, weight_sparsity=0.5, criterion=criterion, samples=of_several)
        others = pruning.choose_weights(joined, weight_sparsity=0.5, criterion=criterion, samples=of_one)
        assert scores.keys() == others.keys()
        assert all(float((scores[name] == others[name]).double().mean()) > 0.98 for name in scores)
    orders = {group.name: range(group.size) for group in groups}
    shared, whole = (
        Sensitivity(groups.model, groups, orders, [0.5], of_several, batch_size=8, share=share)
        for share in (True, False)
    )
    for group in groups:
        assert shared.curve(group.name) == whole.curve(group.name)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ((ONE, TWO[:2]), r"as many in each; found shapes \(20, 3, 6, 6\), \(2, 2, 6, 6\)"),
        ((ONE, torch.tensor(3.0)), "along axis 0 of every tensor"),
        ((ONE[:0], TWO[:0]), "at least one is needed|needs inputs"),
        ([ONE, TWO], "as a tuple or a dict|a tuple of arguments"),
    ],
)
def test_samples_that_cannot_be_told_apart_are_one_message(inputs: Any, text: str) -> None:
    model, example = Pair(), (ONE[:2], TWO[:2])
    groups = pruning.find_groups(model, example)
    with pytest.raises(DataError, match=text):
        pruning.make_plan(groups, "structured_obs", channel_sparsity=0.3, samples=inputs)
    plan = pruning.Plan.of(groups, {"a.0.weight:0": [0]})
    dense = pruning.narrow(model, plan, example, groups=groups)
    with pytest.raises(pruning.errors.SecateurError, match=text):
        reconstruct(dense, model, plan, groups, inputs)
