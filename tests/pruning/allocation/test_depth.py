"""Scores of blocks, against what they say by hand; and how many of them go before channels do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning.allocation.depth import Measure, choose_depth, score_blocks
from pruning.allocation.selection import make_plan
from pruning.errors import DataError, OutOfReachError, SettingsError
from pruning.evaluation import evaluate
from pruning.plan.blocks import Blocks, find_blocks
from pruning.plan.dry_run import find_groups
from pruning.plan.narrow import narrow
from pruning.plan.plan import Plan, count_macs
from pruning.recovery.reconstruct import reconstruct
from zoo.models import resnet


class Times(nn.Module):
    """x + linear(x) for a linear layer that multiplies by a matrix; in place where asked, on one side or the other."""

    def __init__(self, matrix: Tensor, how: str = "new") -> None:
        super().__init__()
        self.layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        self.layer.weight.data = matrix
        self.how = how

    def forward(self, x: Tensor) -> Any:
        if self.how == "on the branch":
            branch = self.layer(x)
            branch += x
            return branch
        if self.how == "on the stream":
            x = x * 1
            x += self.layer(x)
            return x
        return x + self.layer(x)


def found(*modules: nn.Module) -> Blocks:
    return find_blocks(nn.Sequential(*modules).eval(), torch.ones(1, 2))


QUARTER = torch.tensor([[0.0, -1.0], [1.0, 0.0]])


@pytest.mark.parametrize("how", ["new", "on the branch", "on the stream"])
def test_influence_is_one_minus_the_cosine_by_hand(how: str) -> None:
    # x + 2x keeps its direction; x + a quarter turn of x is an eighth of a turn away, so 1 - cos 45° = 0.2929.
    blocks = found(Times(2 * torch.eye(2), how), Times(QUARTER, how))
    scores = score_blocks(blocks, torch.tensor([[1.0, 0.0], [3.0, 4.0]]), "block_influence", batch_size=1)
    assert scores == pytest.approx({"0.layer": 0.0, "1.layer": 1 - 0.5**0.5}, abs=1e-6)


def test_output_error_is_that_of_the_outputs_without_each_block() -> None:
    # The model gives 3x by its first block and then turns: without the first 2/3 is missing, without the second
    # |(x + Rx) - x| / |x + Rx| = 1 / sqrt 2.
    blocks = found(Times(2 * torch.eye(2)), Times(QUARTER))
    scores = score_blocks(blocks, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "output_error", batch_size=1)
    assert scores == pytest.approx({"0.layer": 2 / 3, "1.layer": 0.5**0.5}, abs=1e-6)


def test_loss_is_the_difference_of_two_evaluations_and_the_model_stays() -> None:
    blocks = found(Times(2 * torch.eye(2)), Times(QUARTER))
    samples = SimpleNamespace(inputs=torch.tensor([[1.0, 2.0], [3.0, 4.0]]), targets=torch.tensor([0, 1]))
    before = {name: tensor.clone() for name, tensor in blocks.model.state_dict().items()}
    scores = score_blocks(blocks, samples)
    for name in blocks:
        masked = evaluate(blocks.masked([name]), samples).loss
        assert scores[name] == pytest.approx(masked - evaluate(blocks.model, samples).loss, abs=1e-6)
    assert scores["0.layer"] != pytest.approx(scores["1.layer"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in blocks.model.state_dict().items())


def test_faults_are_named() -> None:
    blocks = found(Times(QUARTER))
    unknown: Any = "perplexity"
    measures: tuple[Measure, ...] = ("output_error", "block_influence")
    with pytest.raises(SettingsError, match="perplexity"):
        score_blocks(blocks, torch.ones(2, 2), unknown)
    with pytest.raises(DataError, match="targets"):
        score_blocks(blocks, torch.ones(2, 2))
    for measure in measures:
        with pytest.raises(DataError, match="no samples"):
            score_blocks(blocks, torch.ones(0, 2), measure)


def stacked(number: int = 3) -> nn.Module:
    """Residual blocks of which the first of each pair does next to nothing."""
    torch.manual_seed(0)
    modules: list[nn.Module] = [nn.Linear(2, 2)]
    for index in range(number):
        modules += [Times((0.01 if index % 2 else 1.0) * torch.randn(2, 2))]
    return nn.Sequential(*modules).eval()


def by_loss(table: dict[int, float]) -> Any:
    """An attempt that says what so many blocks cost; a number that isn't in the table is out of reach."""

    def attempt(_model: nn.Module, gone: tuple[str, ...]) -> tuple[int, float]:
        if len(gone) not in table:
            raise OutOfReachError(f"{len(gone)} blocks don't reach it, nearest {len(gone)}0 %", f"{len(gone)}0 %")
        return len(gone), table[len(gone)]

    return attempt


def in_order(blocks: Blocks) -> dict[str, float]:
    return {name: float(place) for place, name in enumerate(blocks)}


@pytest.mark.parametrize(
    ("table", "best", "looked_at"),
    [
        ({0: 1.0, 1: 2.0, 2: 3.0, 3: 0.1, 4: 0.1}, 0, 3),
        ({0: 1.0, 1: 2.0, 2: 0.5, 3: 0.6, 4: 0.7}, 2, 5),
        ({3: 0.5, 4: 0.6}, 3, 5),
        ({0: 1.0, 1: 0.9, 2: 0.8, 3: 0.7, 4: 0.6}, 4, 5),
    ],
)
def test_number_of_blocks_with_the_least_loss_is_found_and_the_search_ends_once_it_rises(
    table: dict[int, float], best: int, looked_at: int
) -> None:
    seen: list[Any] = []
    found = choose_depth(stacked(4), torch.ones(1, 2), by_loss(table), in_order, watch=seen.append)
    assert found.made == best
    assert found.blocks == tuple(f"{index + 1}.layer" for index in range(best))
    assert [len(one.blocks) for one in seen] == list(range(looked_at))


def test_no_more_blocks_go_once_the_target_is_met_without_channels() -> None:
    table = {0: 1.0, 1: 0.9, 2: 0.8, 3: 0.7, 4: 0.6}
    found = choose_depth(
        stacked(4), torch.ones(1, 2), by_loss(table), in_order, enough=lambda number: bool(number >= 2)
    )
    assert found.made == 2


def test_target_out_of_reach_with_any_number_of_blocks_is_refused_with_how_far_it_gets() -> None:
    with pytest.raises(OutOfReachError, match=r"0 blocks don't reach it.*not enough: 2 blocks gone, 20 %") as raised:
        choose_depth(stacked(2), torch.ones(1, 2), by_loss({}), in_order)
    assert raised.value.least == "20 %"
    with pytest.raises(OutOfReachError, match="No block can go: none is found"):
        choose_depth(nn.Linear(2, 2), torch.ones(1, 2), by_loss({}), in_order)


@pytest.mark.thorough
def test_cheapest_block_for_what_it_saves_goes_first_scored_anew_without_those_before() -> None:
    def score(blocks: Blocks) -> dict[str, float]:
        given = {"1.layer": 1.0, "2.layer": 3.0, "3.layer": -5.0}
        if "3.layer" not in blocks:
            given["1.layer"] = 9.0  # it makes up for the third
        return {name: given[name] for name in blocks}

    saved = {"1.layer": 1.0, "2.layer": 4.0, "3.layer": 0.1}
    table = {0: 3.0, 1: 2.0, 2: 1.0, 3: 0.0}
    model = stacked(3)
    found = choose_depth(model, torch.ones(1, 2), by_loss(table), score, saved=lambda _: saved)
    assert found.blocks == ("3.layer", "2.layer", "1.layer")
    found = choose_depth(
        model, torch.ones(1, 2), by_loss(table), score, saved=lambda _: saved, may_go=lambda one: "2" not in one.name
    )
    assert found.blocks == ("3.layer", "1.layer")


@pytest.mark.thorough
def test_blocks_and_channels_to_one_target_with_the_loss_of_what_comes_of_both() -> None:
    torch.manual_seed(0)
    model = resnet(depth=32, width=8).eval()
    images, labels = torch.randn(32, 3, 16, 16), torch.arange(32) % 10
    samples, example = SimpleNamespace(inputs=images, targets=labels), images[:1]
    whole = count_macs(find_groups(model, example))

    def attempt(shallow: nn.Module, gone: tuple[str, ...]) -> tuple[tuple[Plan, nn.Module], float]:
        groups = find_groups(shallow, example)
        share = 1 - 0.6 * whole / count_macs(groups)
        channels = make_plan(groups, mac_reduction=share) if share > 0 else Plan.of(groups, {})
        plan = Plan(removed={}, sizes={}, blocks=gone).then(channels)
        dense = narrow(model, plan, example, groups=groups)
        reconstruct(dense, model, plan, groups, images)
        return (plan, dense), evaluate(dense, samples).loss

    found = choose_depth(model, example, attempt, lambda blocks: score_blocks(blocks, samples))
    assert found.made is not None
    plan, dense = found.made
    assert plan.blocks == found.blocks
    assert count_macs(find_groups(dense, example)) <= 0.6 * whole
    assert evaluate(dense, samples).loss == found.loss
