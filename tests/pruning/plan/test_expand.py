"""What was narrowed comes back: trained values where channels were kept, the old ones where they went."""

from __future__ import annotations

import pytest
import torch

import pruning
from pruning.plan.narrow import expand
from pruning.plan.verification import outputs_of, relative_difference
from tests.pruning.networks import IMAGE, NETWORKS, make

X = torch.randn(IMAGE)


@pytest.mark.parametrize("name", NETWORKS)
def test_widened_and_masked_it_computes_what_the_narrowed_model_computes(name: str) -> None:
    model = make(name)
    groups = pruning.find_groups(model, X[:1])
    plan = pruning.Plan.of(groups, {group.name: [0] for group in groups})
    dense = pruning.narrow(model, plan, X[:1], groups=groups)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.mul_(1.1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    masked = pruning.apply_masks(expand(dense, plan, groups), plan, groups=groups)
    assert relative_difference(outputs_of(dense, X), outputs_of(masked, X)) < 1e-5
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_another_plan_brings_channels_back_with_their_old_values() -> None:
    model = make("Plain")
    groups = pruning.find_groups(model, X[:1])
    group = next(iter(groups))
    first = pruning.Plan.of(groups, {group.name: [0, 1]})
    dense = pruning.narrow(model, first, X[:1], groups=groups)
    piece = next(one for one in group.slices if one.role == "producer")
    with torch.no_grad():
        dense.get_parameter(piece.parameter).add_(1.0)
    again = pruning.narrow(expand(dense, first, groups), pruning.Plan.of(groups, {group.name: [2]}), X[:1])
    found, old = again.get_parameter(piece.parameter), model.get_parameter(piece.parameter)
    assert torch.equal(found[:2], old[:2])
    assert torch.equal(found[2:], old[3:] + 1.0)
