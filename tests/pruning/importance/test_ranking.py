"""Groups for which a criterion has no scores fall back to another one, and stay comparable with the others."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pruning import collect, find_groups, make_plan
from pruning.allocation.selection import Scope
from pruning.allocation.thresholds import NORMALISATIONS
from pruning.errors import CriterionError, UnscoredGroupError
from pruning.graph.groups import Group, Groups
from pruning.importance import Ranking, order_channels
from pruning.statistics.collect import Statistics

KIND = "it is one of the odd groups"


@pytest.fixture
def groups() -> Groups:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Linear(16, 16), nn.ReLU()]
    return find_groups(nn.Sequential(*layers, nn.Linear(16, 3)), torch.zeros(1, 16))


def even_groups(group: Group, statistics: Statistics) -> Tensor:
    if int(group.name.split(".")[0]) % 4:
        raise UnscoredGroupError(group.name, KIND, "2nd layer")
    return 1000 * torch.arange(1, group.size + 1).double().square()


def none(group: Group, statistics: Statistics) -> Tensor:
    raise UnscoredGroupError(group.name, KIND)


def test_fallback_orders_and_one_warning_names_kind_groups_reason_and_fallback(
    groups: Groups, caplog: pytest.LogCaptureFixture
) -> None:
    statistics = collect(groups, ())
    names = [group.name for group in groups]
    ranking = Ranking(groups, [even_groups, "l1_norm"], statistics)
    with caplog.at_level(logging.WARNING):
        orders = ranking.orders(names)
        ranking.scores(names)
    for name in names:
        chosen = even_groups if name in ("0.weight:0", "4.weight:0", "8.weight:0") else "l1_norm"
        assert orders[name] == order_channels(chosen, groups[name], statistics)
    (record,) = caplog.records
    text = record.getMessage()
    assert "'even_groups' has no scores for 3 of 6 groups because it is one of the odd groups: 2.weight:0 (2nd" in text
    assert "'l1_norm' ranks their channels instead; choose it by prune.fallback" in text


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_one_threshold_takes_as_much_from_groups_that_fall_back_as_from_others(groups: Groups, normalise: str) -> None:
    scope = Scope("global", normalise)  # type: ignore[arg-type]
    plan = make_plan(groups, even_groups, scope=scope, channel_sparsity=0.5)
    by_kind = [sum(len(plan.removed.get(f"{i}.weight:0", ())) for i in at) for at in ((0, 4, 8), (2, 6, 10))]
    assert abs(by_kind[0] - by_kind[1]) <= 3, by_kind  # of 24 each


def test_scores_that_fall_back_rise_along_the_fallbacks_order(groups: Groups) -> None:
    statistics = collect(groups, ())
    ranking = Ranking(groups, even_groups, statistics)
    names = [group.name for group in groups]
    scores, orders = ranking.scores(names), ranking.orders(names)
    for name in names:
        assert torch.allclose(scores[name][list(orders[name])], scores["0.weight:0"].sort().values), name


def test_fallback_without_scores_gives_way_to_one_that_has_them(groups: Groups) -> None:
    statistics = collect(groups, ())
    orders = Ranking(groups, [even_groups, none], statistics).orders(["2.weight:0"])
    assert orders["2.weight:0"] == order_channels("l2_norm", groups["2.weight:0"], statistics)


def test_criterion_that_scores_nothing_leaves_all_to_the_fallback(groups: Groups) -> None:
    statistics = collect(groups, ())
    assert make_plan(groups, none, scope="global", channel_sparsity=0.5, samples=statistics).removed


def test_broken_contract_is_no_reason_to_fall_back(groups: Groups) -> None:
    with pytest.raises(CriterionError, match="one score per channel"):
        make_plan(groups, lambda group, statistics: torch.zeros(1), channel_sparsity=0.5)


def test_what_the_fallback_needs_is_gathered(groups: Groups) -> None:
    samples = SimpleNamespace(inputs=torch.randn(8, 16), targets=torch.zeros(8, dtype=torch.long))
    plan = make_plan(groups, [even_groups, "taylor_weight"], channel_sparsity=0.5, samples=samples)
    statistics = collect(groups, {"gradients"}, samples)
    order = order_channels("taylor_weight", groups["2.weight:0"], statistics)
    assert set(plan.removed["2.weight:0"]) == set(order[:8])


def test_reader_that_is_no_layer_counts_beside_one_that_is() -> None:
    """Channels 0 to 5 carry all of an output that is their sum; a convolution reads the others a little."""
    torch.manual_seed(0)
    model = _SumAndHead().eval()
    x = torch.randn(32, 3, 8, 8)
    groups = find_groups(model, x[:1])
    for criterion in ("structured_obs", "lasso", "greedy_forward", "activation_variance", "entropy", "taylor"):
        samples = SimpleNamespace(inputs=x, targets=torch.zeros(32, 8, 8, dtype=torch.long))
        plan = make_plan(groups, criterion, channel_sparsity=0.5, samples=samples)
        assert plan.removed == {"body.weight:0": (6, 7, 8, 9, 10, 11)}, criterion


class _SumAndHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 4, 1)
        with torch.no_grad():
            self.body.weight[6:] *= 0.01
            assert self.body.bias is not None
            self.body.bias[6:] *= 0.01
            self.head.weight[:, :6] *= 1e-3

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.body(x))
        return torch.cat([self.head(y), y.sum(1, keepdim=True)], 1)
