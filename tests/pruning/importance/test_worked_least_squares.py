"""Criteria that solve least squares, on cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pruning import Plan, find_groups, narrow
from pruning.errors import CriterionError
from pruning.graph.groups import Groups
from pruning.importance import order_channels, score_channels
from pruning.importance.least_squares import RIDGE, readings
from pruning.importance.obs import remove_one_by_one
from pruning.importance.regression import entry_penalties, select
from pruning.recovery.fold import fold
from pruning.statistics.collect import Statistics, collect
from pruning.statistics.moments import damped
from tests.pruning.networks import make

# x₁ and x₂ of variance 1 and covariance ½, mean 0
HALF = torch.tensor([[a, 0.5 * a + b * math.sqrt(0.75)] for a in (1.0, -1.0) for b in (1.0, -1.0)])


def reader(weights: list[list[float]], inputs: Tensor) -> tuple[Groups, Statistics]:
    """A layer that reads the inputs as they are; its weights are those of the consumer."""
    size = inputs.shape[1]
    model = nn.Sequential(nn.Linear(size, size, bias=False), nn.Linear(size, len(weights)))
    model[0].weight.data, model[1].weight.data = torch.eye(size), torch.tensor(weights)
    groups = find_groups(model, inputs[:1])
    return groups, collect(groups, {"weights", "moments"}, inputs, batch_size=3)


def test_lamp_divides_by_all_that_are_as_large() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    model[0].weight.data = torch.tensor([[1.0, 0], [0, 2], [1, 2]])
    groups = find_groups(model, torch.zeros(1, 2))
    (group,) = groups
    scores = score_channels("lamp", group, collect(groups, {"weights"})).tolist()
    assert scores == pytest.approx([1 / 10, 4 / 9, 1])


MOVED = torch.tensor([[1.0, 4], [3, 4], [1, 0], [3, 0]])  # means 2 and 2, variances 1 and 4, mean squares 5 and 8


def test_flap_is_the_variance_of_what_is_read_times_the_squared_weights() -> None:
    groups, statistics = reader([[2.0, 0.5], [1.0, 0.0]], MOVED)
    (group,) = groups
    assert score_channels("flap", group, statistics).tolist() == pytest.approx([1 * (4 + 1), 4 * 0.25])


def test_wanda_is_the_size_of_what_is_read_times_the_weights_magnitude() -> None:
    groups, statistics = reader([[-2.0, 0.5], [1.0, 0.0]], MOVED)
    (group,) = groups
    expected = [math.sqrt(5) * 3, math.sqrt(8) * 0.5]
    assert score_channels("wanda", group, statistics).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["flap", "wanda"])
def test_the_columns_of_a_channel_and_its_readers_add_up(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(12, 5))
    images = torch.randn(40, 2, 2, 2)
    (group,) = find_groups(model, images[:1])
    found = score_channels(name, group, collect(find_groups(model, images[:1]), {"moments"}, images))
    read, weights = model[:2](images).detach().double(), model.get_parameter("2.weight").detach().double()
    by_column = {
        "flap": read.var(dim=0, correction=0) * weights.square().sum(dim=0),
        "wanda": read.square().mean(dim=0).sqrt() * weights.abs().sum(dim=0),
    }
    torch.testing.assert_close(found, by_column[name].reshape(3, 4).sum(dim=1), rtol=1e-4, atol=0)


def test_lasso_lets_orthogonal_channels_in_at_their_own_products() -> None:
    gram = torch.diag(torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64))
    assert entry_penalties(gram, gram.sum(dim=1)).tolist() == pytest.approx([4, 1, 0.25], rel=1e-5)


def test_lasso_scores_follow_from_the_covariance_and_the_weights() -> None:
    groups, statistics = reader([[2.0, 0.0], [0.0, 1.0]], HALF)
    (group,) = groups
    # two outputs, so the contributions are orthogonal: 1/N ‖X_c W_c‖² = 4 and 1
    assert score_channels("lasso", group, statistics).tolist() == pytest.approx([4, 1], rel=1e-4)


def test_lasso_lets_a_channel_in_late_that_another_stands_in_for() -> None:
    # Y = 1.1 x: while β₁ grows, β₂ (0.1 x) is held out by the same residual until λ has fallen tenfold
    gram = torch.tensor([[1.0, 0.1], [0.1, 0.01]], dtype=torch.float64)
    first, second = entry_penalties(gram, gram.sum(dim=1)).tolist()
    assert first == pytest.approx(1.1, rel=1e-3)
    assert second < 0.2 * first


def test_greedy_adds_what_lowers_the_error_most() -> None:
    selection = select(torch.diag(torch.tensor([4.0, 9.0, 1.0], dtype=torch.float64)), torch.ones(3, dtype=torch.bool))
    assert selection.added == [1, 0, 2]
    assert selection.errors == pytest.approx([1, 5 / 14, 1 / 14])
    assert selection.weights.tolist() == pytest.approx([1, 1, 1])


def test_greedy_multiplicities_stand_in_for_a_duplicate() -> None:
    # X₁ = X₂ and an orthogonal X₃, all of length 1: with the first and third allowed, the first counts twice
    gram = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.float64)
    selection = select(gram, torch.tensor([True, False, True]))
    assert selection.added == [0, 2]
    assert selection.weights[0] == pytest.approx(float(selection.weights[2]))  # added once each: 1 − 9/(2·5) is left
    whole = select(gram, torch.ones(3, dtype=torch.bool))
    assert whole.added[:1] == [0]


def test_structured_obs_charges_what_the_rest_cannot_make_up_for() -> None:
    groups, statistics = reader([[2.0, 1.0]], HALF)
    (group,) = groups
    # removing x₂ costs 1² (1 − ¼); then w₁ = 2 + ½, and removing it costs 2.5²
    assert score_channels("structured_obs", group, statistics).tolist() == pytest.approx([6.25, 0.75], rel=1e-3)
    assert order_channels("structured_obs", group, statistics) == [1, 0]


def test_structured_obs_asks_again_after_each_removal() -> None:
    # of two duplicates the first goes for nothing; the second is then worth all of (1 + 1)²
    inputs = torch.tensor([[1.0, 1, 1], [1, 1, -1], [-1, -1, 1], [-1, -1, -1]])
    groups, statistics = reader([[1.0, 1.0, 1.5]], inputs)
    (group,) = groups
    assert order_channels("structured_obs", group, statistics) == [0, 2, 1]
    assert score_channels("structured_obs", group, statistics).tolist() == pytest.approx([0, 4, 2.25], abs=2e-3)


@pytest.mark.parametrize("many", [0, 256])  # outputs: a layer's own weights are kept up to so many, else products
def test_structured_obs_is_what_removing_the_channels_at_once_costs_however_many_went_before(
    many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruning.importance.obs._MANY_OUTPUTS", many)
    torch.manual_seed(0)
    size, taps = 40, 4  # 160 columns: more than are pending at a time, and than are kept once they are gone
    model = nn.Sequential(nn.Conv2d(3, size, 2), nn.ReLU(), nn.Flatten(), nn.Linear(size * taps, 7))
    inputs = torch.randn(300, 3, 3, 3)
    groups = find_groups(model, inputs[:1])
    (group,) = groups
    statistics = collect(groups, {"weights", "moments"}, inputs)
    (reading,) = readings(group, statistics)
    assert isinstance(reading.covariance, Tensor)
    inverse = torch.linalg.inv(damped(reading.covariance, RIDGE))

    def at_once(channels: list[int]) -> float:  # min ‖(W' − W) X‖² where W' has no columns of these channels
        at = reading.columns[channels].flatten()
        gone = reading.matrix[:, at]
        return float((gone * torch.linalg.solve(inverse[at][:, at], gone.T).T).sum())

    order, costs = remove_one_by_one(group, statistics)
    assert sorted(order) == list(range(size))
    for count in range(1, size + 1):
        assert float(costs[order[:count]].sum()) == pytest.approx(at_once(order[:count]), rel=1e-5)
    for count in (0, 1, 15, 16, 17, 30, 38):
        cheapest = min(
            range(size), key=lambda one: math.inf if one in order[:count] else at_once([*order[:count], one])
        )
        assert cheapest == order[count]


@pytest.mark.parametrize("many", [0, 256])
def test_structured_obs_costs_add_up_where_fewer_inputs_than_columns_were_seen(
    many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruning.importance.obs._MANY_OUTPUTS", many)
    model = make("Plain")
    torch.manual_seed(1)
    inputs = torch.randn(24, 3, 16, 16)
    groups = find_groups(model, inputs[:1])
    statistics = collect(groups, {"weights", "moments"}, inputs)
    group = groups["features.2.0.weight:0"]
    (reading,) = readings(group, statistics)
    assert isinstance(reading.covariance, Tensor)
    assert len(reading.covariance) > len(inputs)
    order, costs = remove_one_by_one(group, statistics)
    assert float(costs.min()) > 0
    inverse = torch.linalg.inv(damped((reading.covariance + reading.covariance.T) / 2, RIDGE))
    for count in range(1, group.size + 1):
        at = reading.columns[order[:count]].flatten()
        gone = reading.matrix[:, at]
        whole = float((gone * torch.linalg.solve(inverse[at][:, at], gone.T).T).sum())
        assert float(costs[order[:count]].sum()) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(("criterion", "weight"), [("structured_obs", 2.5), ("lasso", 2.5), ("reduce_and_reuse", 2.5)])
def test_folding_gives_the_least_squares_weights(criterion: str, weight: float) -> None:
    groups, statistics = reader([[2.0, 1.0]], HALF)
    plan = Plan.of(groups, {"0.weight:0": [1]})
    dense = narrow(groups.model, plan, HALF)
    assert fold(dense, plan, groups, statistics, criterion) == 1
    assert dense.get_parameter("1.weight").flatten().tolist() == pytest.approx([weight], rel=1e-3)


def test_reduce_and_reuse_ranks_by_variance_and_puts_the_mean_into_the_bias() -> None:
    inputs = torch.tensor([[a, 2 * a + 7] for a in (1.0, 3.0, 5.0)])
    groups, statistics = reader([[3.0, 1.0]], inputs)
    (group,) = groups
    variance = 8 / 3
    assert score_channels("reduce_and_reuse", group, statistics).tolist() == pytest.approx([variance, 4 * variance])
    plan = Plan.of(groups, {"0.weight:0": [0]})
    dense = narrow(groups.model, plan, inputs)
    fold(dense, plan, groups, statistics, "reduce_and_reuse")
    assert dense.get_parameter("1.weight").flatten().tolist() == pytest.approx([1 + 3 / 2], rel=1e-3)
    torch.testing.assert_close(dense(inputs), groups.model(inputs), rtol=1e-3, atol=1e-3)


class Two(nn.Module):
    """A group that two convolutions read, one of them with groups, a batch norm after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.left, self.norm = nn.Conv2d(8, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.right = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        out: Tensor = self.norm(self.left(x)) + self.right(x)
        return out


@pytest.mark.parametrize(
    ("criterion", "share"),  # of the error that may be left; multiplicities are one factor for both consumers
    [("structured_obs", 0.6), ("lasso", 0.6), ("reduce_and_reuse", 0.6), ("greedy_forward", 0.95)],
)
def test_folding_brings_every_consumer_nearer_to_the_whole_models_outputs(criterion: str, share: float) -> None:
    torch.manual_seed(0)
    model = Two().eval()
    with torch.no_grad():  # half of the channels are much like the other half
        model.first.weight[4:] = 0.8 * model.first.weight[:4] + 0.05 * torch.randn(4, 2, 3, 3)
        model.first.bias[4:] = model.first.bias[:4]  # type: ignore[index]
    images = torch.randn(32, 2, 6, 6)
    groups = find_groups(model, images[:1])
    statistics = collect(groups, {"moments"}, images)
    (name,) = (group.name for group in groups)
    plan = Plan.of(groups, {name: order_channels(criterion, groups[name], statistics)[:3]})
    dense = narrow(model, plan, images[:2])

    def error() -> float:
        with torch.no_grad():
            return float((dense(images) - model(images)).square().mean())

    before = error()
    assert fold(dense, plan, groups, statistics, criterion) == 2
    assert error() < share * before


def test_criterion_without_a_solution_cannot_be_folded() -> None:
    groups, statistics = reader([[2.0, 1.0]], HALF)
    plan = Plan.of(groups, {"0.weight:0": [1]})
    with pytest.raises(CriterionError, match="use reconstruct"):
        fold(narrow(groups.model, plan, HALF), plan, groups, statistics, "l2_norm")
