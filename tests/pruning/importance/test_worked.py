"""Criteria on cases worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pruning import find_groups
from pruning.errors import CriterionError
from pruning.graph.groups import Group
from pruning.importance import order_channels, score_channels
from pruning.statistics.collect import Statistics, collect


def two_layers(filters: list[list[float]]) -> tuple[Group, Statistics]:
    model = nn.Sequential(nn.Linear(len(filters[0]), len(filters)), nn.ReLU(), nn.Linear(len(filters), 2))
    model[0].weight.data = torch.tensor(filters)
    model[0].bias.data.fill_(100)  # type: ignore[operator]
    groups = find_groups(model, torch.zeros(1, len(filters[0])))
    return groups["0.weight:0"], collect(groups, {"weights"})


def test_norms_of_filters_leave_the_bias_out() -> None:
    group, statistics = two_layers([[3.0, -4.0], [0.0, 2.0]])
    assert score_channels("l1_norm", group, statistics).tolist() == [7, 2]
    assert score_channels("l2_norm", group, statistics).tolist() == [5, 2]


def test_norms_are_summed_over_coupled_layers() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(1, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.c(self.a(x[:, :1]) + self.b(x))
            return out

    model = Sum()
    model.a.weight.data = torch.tensor([[1.0], [2.0]])
    model.b.weight.data = torch.tensor([[3.0, 4.0], [0.0, -1.0]])
    groups = find_groups(model, torch.zeros(1, 2))
    (group,) = groups
    assert score_channels("l2_norm", group, collect(groups, {"weights"})).tolist() == [6, 3]
    assert score_channels("l1_norm", group, collect(groups, {"weights"})).tolist() == [8, 3]


def test_geometric_median_measures_between_filters_not_their_absolute_values() -> None:
    group, statistics = two_layers([[1.0], [-1.0], [3.0]])
    assert score_channels("geometric_median", group, statistics).tolist() == [4, 6, 6]


def test_of_two_duplicates_only_one_goes_early() -> None:
    group, statistics = two_layers([[0.0], [0.0], [1.0], [2.0], [9.0], [-8.0]])
    scores = score_channels("geometric_median", group, statistics)
    assert scores.tolist() == [20, 20, 20, 22, 50, 52]  # ranked once, channels 0 and 1 would both go
    # without channel 0: 20, 19, 20, 41, 44 for the channels 1 to 5
    assert order_channels("geometric_median", group, statistics)[:2] == [0, 2]


def test_every_channel_is_ordered_once_whatever_rounding_does_to_the_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (2, 3, 32):
        for filters in (torch.ones(size, 9) / 3, torch.randn(size, 9, generator=generator)):
            group, statistics = two_layers(filters.tolist())
            assert sorted(order_channels("geometric_median", group, statistics)) == list(range(size))


def test_bn_scale_reads_gamma() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    model[1].weight.data = torch.tensor([0.5, -2.0, 1.0])
    groups = find_groups(model, torch.zeros(1, 1, 2, 2))
    (group,) = groups
    assert score_channels("bn_scale", group, collect(groups, {"weights"})).tolist() == [0.5, 2, 1]


def test_bn_scale_without_a_batch_norm_names_the_group_and_a_way_out() -> None:
    group, statistics = two_layers([[1.0], [2.0]])
    with pytest.raises(CriterionError, match=r"'0.weight:0': it has no batch norm .* l2_norm"):
        score_channels("bn_scale", group, statistics)


def test_taylor_squares_the_sum_of_each_minibatch_then_adds() -> None:
    # y = v·(w x), loss = mean y: g_w = v·mean(x), so (g·w)² = (w v mean x)² per minibatch
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[2.0], [3.0]])
    model[1].weight.data = torch.tensor([[1.0, -1.0]])
    groups = find_groups(model, torch.zeros(1, 1))
    samples = SimpleNamespace(inputs=torch.tensor([[1.0], [1.0], [-2.0]]), targets=torch.zeros(3, 1))
    found = collect(groups, {"gradients"}, samples, lambda outputs, targets: outputs.mean(), batch_size=1)
    (group,) = groups
    assert score_channels("taylor_weight", group, found).tolist() == [4 + 4 + 16, 9 + 9 + 36]


def test_taylor_counts_gamma_and_beta() -> None:
    # y = γ·x·w + β per channel with running statistics 0 and 1; loss = sum of both: filter γwx, scale γwx, shift β
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2, eps=0.0), nn.Conv2d(2, 1, 1, bias=False))
    model[0].weight.data = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1)
    model[1].weight.data = torch.tensor([3.0, 1.0])
    model[1].bias.data = torch.tensor([0.5, -1.0])
    model[2].weight.data = torch.ones(1, 2, 1, 1)
    groups = find_groups(model, torch.zeros(1, 1, 1, 1))
    samples = SimpleNamespace(inputs=torch.ones(1, 1, 1, 1), targets=torch.zeros(1))
    found = collect(groups, {"gradients"}, samples, lambda outputs, targets: outputs.sum())
    (group,) = groups
    assert score_channels("taylor_weight", group, found).tolist() == pytest.approx([6.5**2, 3.0**2])


def test_taylor_without_gradients_says_how_to_gather_them() -> None:
    group, statistics = two_layers([[1.0], [2.0]])
    with pytest.raises(CriterionError, match=r"needs=\{'gradients'\}"):
        score_channels("taylor_weight", group, statistics)


def test_random_depends_on_the_seed_and_the_group_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    groups = find_groups(model, torch.zeros(1, 2))
    first, second = groups
    scores = [score_channels("random", group, collect(groups, (), seed=seed)) for seed in (0, 0, 1) for group in groups]
    assert torch.equal(scores[0], scores[2])
    assert torch.equal(scores[1], score_channels("random", second, collect(groups, (), seed=0)))
    assert not torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[4])
    assert all(0 <= value < 1 for row in scores for value in row.tolist())
    assert first.size == 8
