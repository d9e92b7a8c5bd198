"""Criteria that look at first and second derivatives, on cases worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pruning import find_groups
from pruning.importance import find_criterion, score_channels
from pruning.statistics.collect import collect


def two_layers(first: list[list[float]], second: list[list[float]]) -> nn.Sequential:
    layers = [nn.Linear(len(matrix[0]), len(matrix), bias=False) for matrix in (first, second)]
    for layer, matrix in zip(layers, (first, second), strict=True):
        layer.weight.data = torch.tensor(matrix)
    return nn.Sequential(*layers)


def mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.flatten(1).sum(dim=1).mean()


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * outputs.square().sum(dim=1).mean()


def scores(name: str, model: nn.Module, inputs: Tensor, loss: object, batch_size: int = 64) -> list[float]:
    groups = find_groups(model, inputs[:1])
    (group,) = groups
    samples = SimpleNamespace(inputs=inputs, targets=torch.zeros(len(inputs)))
    statistics = collect(groups, find_criterion(name).needs, samples, loss, batch_size=batch_size)  # type: ignore[arg-type]
    found: list[float] = score_channels(name, group, statistics).tolist()
    return found


def test_gradient_magnitude_adds_up_over_minibatches() -> None:
    model = two_layers([[2.0], [3.0]], [[1.0, -3.0]])  # g = v·x
    inputs = torch.tensor([[1.0], [1.0], [-2.0]])
    assert scores("gradient_magnitude", model, inputs, mean, batch_size=1) == [4, 12]


def test_taylor_takes_the_magnitude_per_example() -> None:
    model = two_layers([[2.0], [3.0]], [[1.0, -1.0]])  # z·∂L/∂z = w·x·v: over both examples it cancels
    assert scores("taylor", model, torch.tensor([[1.0], [-1.0]]), mean) == [2, 3]


def test_taylor_takes_the_mean_over_positions_first() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False))
    model[0].weight.data = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1)
    model[1].weight.data.fill_(1)  # type: ignore[operator]
    assert scores("taylor", model, torch.tensor([3.0, -1.0]).reshape(1, 1, 1, 2), mean) == [1, 2]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(1, 2, bias=False), nn.Linear(2, 1), nn.Linear(2, 1)
        self.first.weight.data = torch.tensor([[1.0], [1.0]])
        self.left.weight.data, self.right.weight.data = torch.tensor([[1.0, 2.0]]), torch.tensor([[-1.0, 3.0]])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return torch.cat([self.left(x), self.right(x)], 1)


def test_taylor_adds_consumers_up_before_the_magnitude() -> None:
    assert scores("taylor", Branches(), torch.tensor([[2.0]]), mean) == [0, 10]


def test_obd_squares_the_gradients_of_single_samples() -> None:
    model = two_layers([[2.0], [3.0]], [[1.0, -1.0]])  # the gradient of the batch is 0, those of the samples ±v
    assert scores("obd", model, torch.tensor([[1.0], [-1.0]]), mean) == [2, 4.5]
    # not the last sample's alone: x = 1 and x = 3 give (1 + 9)/2
    assert scores("obd", model, torch.tensor([[1.0], [3.0]]), mean) == [10, 22.5]


def test_obd_takes_models_that_vmap_cannot() -> None:
    class Looks(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:  # doubles what is negative
            return self[1](self[0](x if float(x.sum()) > 0 else 2 * x))  # type: ignore[no-any-return]

    model = Looks(*two_layers([[2.0], [3.0]], [[1.0, -1.0]]))
    assert scores("obd", model, torch.tensor([[1.0], [-1.0]]), mean) == [5, 11.25]


@pytest.mark.parametrize("name", ["obd_hutchinson", "hessian_trace"])
def test_hessian_is_exact_on_a_quadratic(name: str) -> None:
    # y_i = v_i w_i x, L = ½ mean Σ y²: h_ii = v_i² mean(x²) = [2.5, 10], and there is nothing off the diagonal
    model = two_layers([[2.0], [3.0]], [[1.0, 0.0], [0.0, 2.0]])
    assert scores(name, model, torch.tensor([[1.0], [2.0]]), half_square) == pytest.approx([5, 45])


def test_hessian_trace_is_divided_by_twice_the_number_of_weights() -> None:
    # each sample reads one of the two inputs: H = ½ v² I for both weights of a filter, trace v², ‖w‖² = 5 and 10
    model = two_layers([[1.0, 2.0], [1.0, 3.0]], [[1.0, 0.0], [0.0, 2.0]])
    assert scores("hessian_trace", model, torch.eye(2), half_square, batch_size=1) == pytest.approx([5 / 4, 4 * 10 / 4])


def test_hessian_trace_converges_where_the_hessian_is_not_diagonal() -> None:
    model = two_layers([[1.0, 2.0], [1.0, 3.0]], [[1.0, 0.0], [0.0, 2.0]])
    inputs = torch.ones(300, 2)  # H = v² [[1, 1], [1, 1]], trace 2 v²
    found = scores("hessian_trace", model, inputs, half_square, batch_size=1)
    assert found == pytest.approx([2 * 5 / 4, 8 * 10 / 4], rel=0.15)
