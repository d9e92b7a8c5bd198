from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

import pruning
from pruning.errors import PlanError
from tests.pruning.networks import IMAGE, make

X = torch.zeros(IMAGE)


@pytest.fixture(scope="module")
def groups() -> pruning.Groups:
    return pruning.find_groups(make("Residual"), X)


def test_a_plan_survives_json_to_the_letter(groups: pruning.Groups) -> None:
    plan = pruning.Plan.of(groups, {group.name: [1, 0] for group in groups})
    text = plan.model_dump_json()
    again = pruning.Plan.model_validate_json(text)
    assert again == plan
    assert again.model_dump_json() == text


def test_a_plan_from_json_needs_inputs_to_be_read(groups: pruning.Groups) -> None:
    plan = pruning.Plan.of(groups, {next(iter(groups)).name: [2]})
    again = pruning.Plan.model_validate_json(plan.model_dump_json())
    with pytest.raises(PlanError, match="needs example_inputs"):
        pruning.apply_masks(groups.model, again)
    masked = pruning.apply_masks(groups.model, again, X)
    expected = pruning.apply_masks(groups.model, plan)
    assert all(torch.equal(a, b) for a, b in zip(masked.parameters(), expected.parameters(), strict=True))


def test_a_plan_applies_to_another_instance_of_the_same_factory(groups: pruning.Groups) -> None:
    plan = pruning.Plan.of(groups, {group.name: [0] for group in groups})
    torch.manual_seed(99)
    other = type(groups.model)()
    dense = pruning.narrow(other, plan, torch.randn(IMAGE))
    assert sum(p.numel() for p in dense.parameters()) == pruning.count_parameters(groups, plan)


def test_a_model_with_other_shapes_is_refused(groups: pruning.Groups) -> None:
    plan = pruning.Plan.of(groups, {group.name: [0] for group in groups})
    with pytest.raises(PlanError, match=r"the plan was made for|unknown group"):
        pruning.narrow(make("Depthwise"), plan, X)
    other = make("Residual")
    wider = nn.Conv2d(3, 17, 3)
    other.get_submodule("features.0")[0] = wider  # type: ignore[operator]
    with pytest.raises(PlanError, match=r"features\.0\.0\.\w+. of Residual has shape"):
        pruning.apply_masks(other, plan)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"nothing:0": [0]}, "unknown group 'nothing:0'"),
        ({"features.0.0.weight:0": [16]}, "distinct channels below 16"),
        ({"features.0.0.weight:0": range(16)}, "lose all of its 16 channels"),
    ],
)
def test_an_impossible_plan_says_what_is_wrong(
    groups: pruning.Groups, removed: dict[str, list[int]], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        pruning.Plan.of(groups, removed)


def test_an_unsorted_plan_file_is_refused() -> None:
    with pytest.raises(ValidationError, match="sorted, distinct"):
        pruning.Plan(removed={"a:0": (2, 1)}, sizes={"a:0": 4})
    with pytest.raises(ValidationError, match="no size"):
        pruning.Plan(removed={"a:0": (1,)}, sizes={})


def test_composition_translates_to_the_first_plans_numbering() -> None:
    first = pruning.Plan(removed={"a:0": (0, 3)}, sizes={"a:0": 6})
    second = pruning.Plan(removed={"a:0": (1, 2), "b:0": (0,)}, sizes={"a:0": 4, "b:0": 2})
    assert first.then(second).removed == {"a:0": (0, 2, 3, 4), "b:0": (0,)}
    with pytest.raises(PlanError, match="the first leaves 4"):
        first.then(pruning.Plan(removed={"a:0": (1,)}, sizes={"a:0": 5}))


def test_tied_groups_have_to_lose_equal_counts() -> None:
    groups = pruning.find_groups(make("ChunkedBlocks"), X)
    tied = next(group for group in groups if group.ties)
    with pytest.raises(PlanError, match="equal counts"):
        pruning.Plan.of(groups, {tied.name: [0]})
    pruning.Plan.of(groups, {tied.name: [0], **{other: [1] for other in tied.ties}})
