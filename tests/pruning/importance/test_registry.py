from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pruning import find_groups
from pruning.errors import CriterionError
from pruning.graph.groups import Group, Groups
from pruning.importance import criterion, find_criterion, order_channels, score_channels
from pruning.statistics.collect import Statistics, collect


@pytest.fixture
def groups() -> Groups:
    return find_groups(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(1, 2))


def backwards(group: Group, statistics: Statistics) -> Tensor:
    return -torch.arange(group.size, dtype=torch.float32)


def test_unknown_name_is_met_with_the_nearest_one() -> None:
    with pytest.raises(CriterionError, match=r"'l2norm'; did you mean 'l2_norm'\? Known: activation_variance, "):
        find_criterion("l2norm")


def test_own_function_serves_as_a_criterion(groups: Groups) -> None:
    (group,) = groups
    assert order_channels(backwards, group, collect(groups, ())) == [2, 1, 0]


def test_registered_function_brings_its_declaration() -> None:
    assert find_criterion(find_criterion("taylor_weight").score).needs == {"gradients"}


def test_name_can_be_registered_once() -> None:
    with pytest.raises(CriterionError, match="'l2_norm' is registered already"):
        criterion("l2_norm", needs=())


def test_unknown_need_is_refused(groups: Groups) -> None:
    with pytest.raises(CriterionError, match="did you mean 'weights'"):
        criterion("new", needs={"weight"})
    with pytest.raises(CriterionError, match="did you mean 'gradients'"):
        collect(groups, {"gradient"})


def test_equal_scores_go_by_channel_index(groups: Groups) -> None:
    (group,) = groups
    assert order_channels(lambda group, statistics: torch.ones(group.size), group, collect(groups, ())) == [0, 1, 2]


@pytest.mark.parametrize(
    ("scores", "message"), [([1.0, 2.0], r"shape \(2,\)"), ([1.0, float("nan"), 2.0], r"channels \[1\]")]
)
def test_scores_that_break_the_contract_are_refused(groups: Groups, scores: list[float], message: str) -> None:
    (group,) = groups
    with pytest.raises(CriterionError, match=message):
        score_channels(lambda group, statistics: torch.tensor(scores), group, collect(groups, ()))


def test_gradients_without_samples_are_refused(groups: Groups) -> None:
    with pytest.raises(CriterionError, match="pass samples"):
        collect(groups, {"gradients"})
