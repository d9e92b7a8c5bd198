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


class Stream(nn.Module):
    """Most of its products are with a stream of 32 channels, over which a norm computes its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.end = nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 100)
        self.up, self.down = nn.Linear(32, 4), nn.Linear(4, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out: Tensor = self.end(self.norm(x + self.down(self.up(x).relu())))
        return out


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such luck")


def test_reconstruction_brings_outputs_nearer_on_other_inputs() -> None:
    row = recover(Architecture("own/small", small, numbers), 0.3, 200)
    assert row.status == "better", row
    assert row.macs_removed >= 0.3
    assert 0 < row.after < row.before < math.inf


def test_streams_are_narrowed_where_the_target_is_out_of_reach_without() -> None:
    row = recover(Architecture("own/stream", Stream, numbers), 0.5, 200)
    assert row.streams
    assert row.status == "better", row
    assert row.macs_removed >= 0.5


@pytest.mark.parametrize(
    ("build", "target", "status"),
    [
        (Fails, 0.3, "the model itself fails"),
        (lambda: nn.Linear(16, 5), 0.3, "nothing can be pruned"),
        (small, 0.999, "out of reach"),
    ],
)
def test_a_row_says_which_step_raised(build: type[nn.Module], target: float, status: str) -> None:
    row = recover(Architecture("own/other", build, numbers), target, 8)
    assert row.status == status
    assert bool(row.error) == status.endswith(("reach", "fails"))


def test_relative_error_is_of_all_tensors_of_floating_point() -> None:
    expected = [[torch.tensor([3.0, 0.0]), torch.tensor([7])], [torch.tensor([4.0])]]
    found = [[torch.tensor([3.0, 1.0]), torch.tensor([9])], [torch.tensor([2.0])]]
    assert relative_error(expected, found) == pytest.approx(math.sqrt(5 / 25))
