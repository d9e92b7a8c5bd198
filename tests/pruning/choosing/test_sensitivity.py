from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pruning import find_groups
from pruning.choosing.sensitivity import Curve, measure_curve
from pruning.errors import SettingsError
from pruning.evaluation import evaluate
from pruning.structure.masks import apply_masks
from pruning.structure.plan import Plan


class Net(nn.Module):
    """A residual group, a group inside the block, and two groups tied by a chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Linear(4, 10), nn.Linear(10, 6), nn.Linear(6, 10)
        self.split, self.left, self.right = nn.Linear(10, 8), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.outer(self.inner(x).relu())
        a, b = self.split(x).chunk(2, dim=1)
        out: Tensor = self.left(a.relu()) + self.right(b.relu())
        return out


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def samples() -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        inputs=torch.randn(60, 4, generator=generator), targets=torch.randint(3, (60,), generator=generator)
    )


def test_points_are_those_of_the_masked_coupled_group(model: Net, samples: SimpleNamespace) -> None:
    groups = find_groups(model, samples.inputs[:1])
    group = next(group for group in groups if len({piece.parameter for piece in group.slices}) > 4)
    curve = measure_curve(model, groups, group.name, [0.5, 0.2], "l2_norm", samples)
    whole = evaluate(model, samples)
    assert (curve.baseline_accuracy, curve.baseline_loss) == (whole.accuracy, whole.loss)
    assert [(point.rate, point.removed) for point in curve.points] == [(0.2, 2), (0.5, 5)]
    norms = model.stem.weight.detach().norm(dim=1) + model.outer.weight.detach().norm(dim=1)
    order = norms.argsort().tolist()
    masked = apply_masks(model, Plan.of(groups, {group.name: order[:5]}), groups=groups)
    assert curve.points[1].loss == evaluate(masked, samples).loss
    assert curve.points[1].loss != whole.loss
    assert curve.measured_with == (group.name,)


def test_rates_that_remove_nothing_give_no_point(model: Net, samples: SimpleNamespace) -> None:
    groups = find_groups(model, samples.inputs[:1])
    inner = next(group for group in groups if group.size == 6)
    curve = measure_curve(model, groups, inner.name, [0.01, 0.05, 0.16, 0.17, 0.99], "l1_norm", samples)
    assert [(point.rate, point.removed) for point in curve.points] == [(0.16, 1), (0.99, 5)]
    assert measure_curve(model, groups, inner.name, [0.01], "l1_norm", samples).points == ()


def test_tied_groups_are_masked_together(model: Net, samples: SimpleNamespace) -> None:
    groups = find_groups(model, samples.inputs[:1])
    first, second = (group for group in groups if group.ties)
    curve = measure_curve(model, groups, second.name, [0.5], "l2_norm", samples)
    assert curve.measured_with == (first.name, second.name)
    other = measure_curve(model, groups, first.name, [0.5], "l2_norm", samples)
    assert curve.points == other.points


def test_model_is_untouched_and_the_curve_survives_json(model: Net, samples: SimpleNamespace) -> None:
    groups = find_groups(model, samples.inputs[:1])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    heard: list[tuple[int, int]] = []
    curve = measure_curve(
        model,
        groups,
        next(iter(groups)).name,
        [0.2, 0.4],
        "taylor_weight",
        samples,
        progress=lambda done, total: heard.append((done, total)),
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert Curve.model_validate_json(curve.model_dump_json()) == curve
    assert heard == [(1, 2), (2, 2)]


def test_unknown_group_and_rates_out_of_bounds_are_refused(model: Net, samples: SimpleNamespace) -> None:
    groups = find_groups(model, samples.inputs[:1])
    with pytest.raises(SettingsError, match=r"unknown group 'stem\.weight'; did you mean"):
        measure_curve(model, groups, "stem.weight", [0.5], "l2_norm", samples)
    with pytest.raises(SettingsError, match=r"\[0.0, 1.0\]"):
        measure_curve(model, groups, next(iter(groups)).name, [0.0, 0.5, 1.0], "l2_norm", samples)
