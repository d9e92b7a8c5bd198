"""The dense model is compared with the masked one as far as outputs can be computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import pruning
from pruning.batches import TensorBatches
from pruning.plan.verification import TOLERANCE
from tasks.stages.transform import differences_by_batch


class Cancelled(nn.Module):
    """What it gives is zero but for rounding: the mean of what an instance norm gives."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv1d(8, 16, 3), nn.Conv1d(16, 6, 1), nn.InstanceNorm1d(6)

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.b(self.a(x).relu())).mean(-1)


def test_outputs_that_are_rounding_alone_are_no_difference_and_a_fault_is_one() -> None:
    torch.manual_seed(0)
    model = Cancelled().eval()
    samples = TensorBatches(torch.randn(12, 8, 5))
    groups = pruning.find_groups(model, samples.inputs[:1])
    plan = pruning.Plan.of(groups, {"a.weight:0": [0, 3, 4, 9]})
    masked = pruning.apply_masks(model, plan, groups=groups)
    dense = pruning.narrow(model, plan, samples.inputs[:1], groups=groups, verify=False)
    assert max(differences_by_batch(masked, dense, samples, 4)) < TOLERANCE
    other = nn.Sequential(dense, nn.Threshold(1.0, 2.0))
    assert max(differences_by_batch(masked, other, samples, 4)) > TOLERANCE
