"""Branches that run in training alone are narrowed along with the rest."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pruning
from tests.pruning.networks import IMAGE, make

X = torch.randn(IMAGE)


def test_an_auxiliary_head_loses_the_channels_of_the_trunk_and_its_own() -> None:
    model = make("AuxiliaryHead")
    groups = pruning.find_groups(model, X[:1])
    consumers = {s.parameter for s in groups["first.0.weight:0"].slices if s.role == "consumer"}
    assert consumers == {"second.0.0.weight", "auxiliary.0.0.weight"}
    assert "auxiliary.0.0.weight:0" in groups
    dense = pruning.narrow(model, pruning.Plan.of(groups, {g.name: [0, 2] for g in groups}), X)
    out, auxiliary = dense.train()(X)
    F.cross_entropy(out + auxiliary, torch.tensor([1, 2])).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in dense.parameters())


def test_macs_are_those_of_eval_mode() -> None:
    model = make("AuxiliaryHead")
    groups = pruning.find_groups(model, X[:1])
    without = pruning.Plan.of(groups, {"auxiliary.0.0.weight:0": [0]})
    assert pruning.count_macs(groups) == pruning.count_macs(groups, without)
    assert pruning.count_parameters(groups, without) < pruning.count_parameters(groups)


def test_a_training_pass_that_needs_targets_leaves_its_own_branch_whole() -> None:
    class NeedsTargets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.last, self.loss_head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor, targets: Any = None) -> Any:
            x = self.trunk(x).relu()
            if self.training:
                assert targets is not None, "targets are needed in training"
                return self.loss_head(x)
            return self.last(x)

    groups = pruning.find_groups(NeedsTargets(), X)
    assert not len(groups)  # the loss head reads the trunk
    assert "it may reach loss_head.weight" in str(groups.report()["trunk.weight"])
    groups = pruning.find_groups(NeedsTargets(), X, ignore_unused=True)
    assert [group.name for group in groups] == ["trunk.weight:0"]
    reason = str(groups.report()["loss_head.weight"])
    assert "the forward pass doesn't use it, and fails in training mode: targets are needed" in reason
