"""What a removed channel holds once it is masked: nothing of a buffer, which no mask reaches, and always a number."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pruning
from pruning.errors import VerificationError
from tests.pruning.networks import a_third

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A layer of 12 channels, something done to them, a layer that reads them."""

    def __init__(self, between: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 3)
        self.length = nn.Parameter(torch.rand(12, 1))
        self.kept: Tensor
        self.register_buffer("kept", torch.rand(12, 12) + 0.5)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.between(self, self.first(x)))
        return y


def nearest_of_codebook(net: Net, x: Tensor) -> Tensor:
    distances = (x**2).sum(1, keepdim=True) - 2 * x @ net.kept.t() + (net.kept**2).sum(1)
    return x * distances.amin(1, keepdim=True)


def frozen_layers(net: Net, x: Tensor) -> Tensor:
    return F.linear(torch.relu(F.linear(x, net.kept)), net.kept)


def frozen_norm(net: Net, x: Tensor) -> Tensor:
    scale, shift, mean, variance = net.kept[0], net.kept[1], net.kept[2], net.kept[3]
    return F.normalize(F.batch_norm(x, mean, variance, scale, shift), dim=1)


def length_and_direction(net: Net, _: Tensor) -> Tensor:
    weight = net.first.weight * (net.length / net.first.weight.norm(dim=1, keepdim=True))
    return F.linear(X, weight, net.first.bias)


def logarithm(_: Net, x: Tensor) -> Tensor:
    return x.abs().log()


def of_largest_in_batch(_: Net, x: Tensor) -> Tensor:
    return x / x.abs().amax(0, keepdim=True)


BUFFERS = (nearest_of_codebook, frozen_layers, frozen_norm)
NO_NUMBERS = (length_and_direction, logarithm, of_largest_in_batch, lambda _, x: (x**2) ** -0.5, lambda _, x: 1 / x)


@pytest.mark.parametrize("between", [*BUFFERS, *NO_NUMBERS])
def test_every_group_that_is_offered_can_be_narrowed(between: Callable[[Net, Tensor], Tensor]) -> None:
    model = Net(between)
    groups = pruning.find_groups(model, X, ignore_unused=True)
    pruning.narrow(model, a_third(groups, seed=0), X, groups=groups)


def test_channels_that_a_number_is_divided_by_say_why_they_stay() -> None:
    report = str(pruning.find_groups(Net(logarithm), X, ignore_unused=True).report())
    assert "log gives no number for the zeros of a removed channel" in report


def test_where_masking_gives_no_number_the_plan_is_blamed_and_not_the_inputs() -> None:
    model = Net(lambda _, x: x.abs() ** torch.full((1,), -1.0))
    groups = pruning.find_groups(model, X, ignore_unused=True)
    with pytest.raises(VerificationError, match="with the plan's channels zeroed, the outputs of Net hold no value"):
        pruning.narrow(model, a_third(groups, seed=0), X, groups=groups)
