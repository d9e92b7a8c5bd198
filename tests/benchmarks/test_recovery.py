"""A row says what the shipped settings did to an architecture."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks.architectures import Architecture
from benchmarks.recovery import recover, relative_error


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))


def numbers(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 16, generator=generator)


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such luck")


def test_reconstruction_brings_outputs_nearer_on_other_inputs() -> None:
    row = recover(Architecture("own/small", small, numbers), 0.3, 200)
    assert row.status == "better", row
    assert row.macs_removed >= 0.3
    assert 0 < row.after < row.before < math.inf


@pytest.mark.parametrize(
    ("build", "target", "status"),
    [
        (Fails, 0.3, "the model itself fails"),
        (lambda: nn.Linear(16, 5), 0.3, "nothing can be pruned"),
        (small, 0.999, "make_plan raised"),
    ],
)
def test_a_row_says_which_step_raised(build: type[nn.Module], target: float, status: str) -> None:
    row = recover(Architecture("own/other", build, numbers), target, 8)
    assert row.status == status
    assert bool(row.error) == status.endswith(("raised", "fails"))


def test_relative_error_is_of_all_tensors_of_floating_point() -> None:
    expected = [[torch.tensor([3.0, 0.0]), torch.tensor([7])], [torch.tensor([4.0])]]
    found = [[torch.tensor([3.0, 1.0]), torch.tensor([9])], [torch.tensor([2.0])]]
    assert relative_error(expected, found) == pytest.approx(math.sqrt(5 / 25))
