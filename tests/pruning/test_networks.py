"""Whole-model laws, on every network of the table: what is narrowed computes what is masked."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import pruning
from pruning.plan.verification import outputs_of, relative_difference
from tests.pruning.networks import IMAGE, NETWORKS, make


def random_plan(groups: pruning.Groups, share: float, seed: int) -> pruning.Plan:
    generator = torch.Generator().manual_seed(seed)
    removed: dict[str, list[int]] = {}
    for group in groups:
        count = max(1, int(share * group.size))
        removed[group.name] = torch.randperm(group.size, generator=generator)[:count].tolist()
    return pruning.Plan.of(groups, removed)


def image(seed: int = 3) -> torch.Tensor:
    return torch.randn(IMAGE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NETWORKS)
def test_narrowed_computes_what_masked_computes(name: str) -> None:
    model, x = make(name), image()
    groups = pruning.find_groups(model, x)
    assert len(groups) > 0
    assert not groups.unknown_operators
    plan = random_plan(groups, 0.3, 1)
    dense = pruning.narrow(model, plan, x)
    masked = pruning.apply_masks(model, plan)
    fresh = image(4)
    assert relative_difference(outputs_of(masked, fresh), outputs_of(dense, fresh)) < 1e-5
    assert relative_difference(outputs_of(model, fresh), outputs_of(masked, fresh)) > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_cost_of_a_plan_is_the_cost_of_the_narrowed_model(name: str) -> None:
    model, x = make(name), image()
    groups = pruning.find_groups(model, x)
    plan = random_plan(groups, 0.3, 2)
    dense = pruning.narrow(model, plan, x, groups=groups)
    with FlopCounterMode(display=False) as counter:
        dense(x)
    assert pruning.count_macs(groups, plan) * 2 == counter.get_total_flops()
    assert pruning.count_parameters(groups, plan) == sum(p.numel() for p in dense.parameters())
    assert pruning.count_macs(groups, plan) < pruning.count_macs(groups)


@pytest.mark.thorough
@pytest.mark.parametrize("name", NETWORKS)
def test_removing_one_set_then_another_is_removing_both(name: str) -> None:
    model, x = make(name), image()
    first = random_plan(pruning.find_groups(model, x), 0.25, 5)
    once = pruning.narrow(model, first, x)
    groups = pruning.find_groups(once, x)
    second = random_plan(groups, 0.25, 6) if all(g.size > 1 for g in groups) else pruning.Plan.of(groups, {})
    twice = pruning.narrow(once, second, x)
    at_once = pruning.narrow(model, first.then(second), x)
    assert {n: p.shape for n, p in twice.named_parameters()} == {n: p.shape for n, p in at_once.named_parameters()}
    for (_, a), (_, b) in zip(twice.state_dict().items(), at_once.state_dict().items(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NETWORKS)
def test_removing_nothing_is_the_identity_and_the_original_stays(name: str) -> None:
    model, x = make(name), image()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    groups = pruning.find_groups(model, x)
    same = pruning.narrow(model, pruning.Plan.of(groups, {}), x)
    pruning.narrow(model, random_plan(groups, 0.3, 1), x)
    assert torch.equal(torch.get_rng_state(), random_state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
        assert torch.equal(value, same.state_dict()[key])
    assert not {p.data_ptr() for p in same.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert {module.training for module in model.modules()} == {False}
