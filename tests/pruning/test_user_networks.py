"""Networks in the style of users' code: narrowed exactly on the example and on every other input that they take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pruning
from pruning.plan.verification import outputs_of, relative_difference
from tests.pruning.networks import a_third
from tests.pruning.user_networks import NETWORKS

NOTHING_TO_PRUNE = {
    "mixture_of_experts_routed_loop",  # the values of the input decide how many rows each expert sees
    "netvlad_pooling",  # channels are normalised over
}


def made(name: str) -> tuple[nn.Module, Any, list[Any]]:
    """Return a network whose batch norms have statistics that tell their channels apart."""
    torch.manual_seed(0)
    model, example, others = NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval(), example, others


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # torch's advice to who builds such an encoder
@pytest.mark.parametrize("name", NETWORKS)
def test_narrowed_network_computes_what_the_masked_one_does_on_every_input(name: str) -> None:
    model, example, others = made(name)
    groups = pruning.find_groups(model, example)
    assert bool(len(groups)) == (name not in NOTHING_TO_PRUNE)
    plan = a_third(groups, seed=1)
    dense = pruning.narrow(model, plan, example, groups=groups)
    masked = pruning.apply_masks(model, plan, groups=groups)
    for inputs in (example, *others):
        expected = outputs_of(masked, inputs)
        assert expected
        assert relative_difference(expected, outputs_of(dense, inputs)) < 1e-4
