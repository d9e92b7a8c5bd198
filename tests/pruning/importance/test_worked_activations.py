"""Criteria that look at activations, on cases worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pruning import find_groups
from pruning.errors import CriterionError
from pruning.importance import score_channels
from pruning.statistics.activations import BINS, Histogram
from pruning.statistics.collect import Statistics, collect


def linear(weights: list[list[float]], biases: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(weights[0]), len(weights), bias=biases is not None)
    layer.weight.data = torch.tensor(weights)
    if biases is not None:
        layer.bias.data = torch.tensor(biases)
    return layer


def scores(name: str, need: str, model: nn.Module, inputs: Tensor, **kwargs: object) -> list[float]:
    groups = find_groups(model, inputs[:1])
    (group,) = groups
    samples = SimpleNamespace(inputs=inputs, targets=torch.zeros(len(inputs), dtype=torch.int64))
    statistics = collect(groups, {"weights", need}, samples, **kwargs)  # type: ignore[arg-type]
    found: list[float] = score_channels(name, group, statistics).tolist()
    return found


def test_apoz_is_the_share_of_zeros_after_the_relu() -> None:
    model = nn.Sequential(linear([[1.0], [-1], [1]], [0.0, 0, -2]), nn.ReLU(), nn.Linear(3, 1))
    assert scores("apoz", "activity", model, torch.tensor([[1.0], [2], [3], [-1]])) == [0.75, 0.25, 0.25]


def test_apoz_refuses_a_network_without_relu_and_names_the_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 1))
    with pytest.raises(CriterionError, match=r"no ReLU acts on its channels \(made by 0\.weight\)"):
        scores("apoz", "activity", model, torch.zeros(2, 2))


def test_relu6_and_relus_that_share_a_module_count_as_relus() -> None:
    relu = nn.ReLU6(inplace=True)
    model = nn.Sequential(linear([[1.0], [-1]]), relu, linear([[1.0, 0], [0, 1]]), relu, nn.Linear(2, 1))
    groups = find_groups(model, torch.zeros(1, 1))
    statistics = collect(groups, {"activity"}, torch.tensor([[1.0], [2], [-1], [3]]))
    assert [score_channels("apoz", group, statistics).tolist() for group in groups] == [[0.75, 0.25]] * 2


def test_minitron_is_the_norm_over_samples_of_the_mean_magnitude_over_positions() -> None:
    model = nn.Sequential(linear([[1.0], [2]]), linear([[3.0, 1]]))
    texts = torch.tensor([[[3.0], [-5]], [[1.0], [-5]]])  # two samples of two positions: mean magnitudes 4 and 3
    assert scores("minitron", "mean_magnitude", model, texts) == [5, 10]
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 3, bias=False))
    for layer in model:
        layer.weight.data.fill_(1)  # type: ignore[operator]
    images = torch.tensor([4.0, -3]).reshape(2, 1, 1, 1).expand(2, 1, 3, 3)
    assert scores("minitron", "mean_magnitude", model, images) == [5, 5]


def test_activation_variance_is_that_of_the_contributions_norm() -> None:
    model = nn.Sequential(linear([[1.0], [2]]), linear([[3.0, 1]]))
    assert scores("activation_variance", "contribution_variance", model, torch.tensor([[1.0], [3]])) == [9, 4]
    # the norm goes over the positions: 5 for the first sample, 0 for the second
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False))
    for layer in model:
        layer.weight.data.fill_(1)  # type: ignore[operator]
    images = torch.tensor([[3.0, 4], [0, 0]]).reshape(2, 1, 1, 2)
    assert scores("activation_variance", "contribution_variance", model, images) == [6.25, 6.25]


def test_contributions_are_those_of_the_convolution_itself() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False))
    images = torch.randn(5, 2, 6, 6)
    found = scores("activation_variance", "contribution_variance", model, images, batch_size=2)
    hidden = model[0](images).detach()
    expected, kernels = [], model.get_parameter("1.weight").detach()
    for channel in range(4):
        alone = nn.functional.conv2d(hidden[:, [channel]], kernels[:, [channel]], stride=2, padding=1)
        expected.append(float(alone.flatten(2).norm(dim=2).var(dim=0, correction=0).sum()))
    assert found == pytest.approx(expected, rel=1e-4)


def test_entropy_of_one_two_and_four_equal_shares() -> None:
    model = nn.Sequential(linear(torch.eye(3).tolist()), linear([[1.0, 1, 1]]))
    inputs = torch.tensor([[1.0, 0, 0], [1, 0, 1], [1, 8, 2], [1, 8, 3]])
    assert scores("entropy", "entropy", model, inputs, batch_size=1) == pytest.approx([0, math.log(2), math.log(4)])


def test_histogram_of_parts_is_that_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 400, generator=generator, dtype=torch.float64) * 10.0 ** torch.arange(400).div(100)
    whole, parts = Histogram(3), Histogram(3)
    whole.add(values)
    for part in values.split(7, dim=1):  # type: ignore[no-untyped-call]
        parts.add(part)
    assert torch.equal(parts.counts, whole.counts)
    assert whole.counts.sum(dim=1).tolist() == [400] * 3
    used = whole.counts.sum(dim=0).nonzero().flatten()
    assert BINS / 2 <= int(used[-1] - used[0]) + 1 <= BINS


def test_output_inversion_is_the_probability_times_the_outgoing_weights() -> None:
    # the second input is 0, so what reads it alone is disturbed to either side of 0; 100 is never reached
    first = linear([[1.0, 0], [0, 1], [0, 1]], [100.0, 0, 0])
    model = nn.Sequential(first, nn.ReLU(), linear([[5.0, 1, 3]]))
    inputs = torch.stack([torch.linspace(-1, 1, 400), torch.zeros(400)], dim=1)
    never, half, thrice = scores("output_inversion", "inversions", model, inputs)
    assert never == 0
    assert half == pytest.approx(0.5, abs=0.1)
    assert thrice == pytest.approx(3 * half)


def test_scop_weighs_gamma_by_the_share_against_the_knockoff() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    model[1].weight.data = torch.tensor([0.5, -2.0, 1.0])
    groups = find_groups(model, torch.zeros(1, 1, 2, 2))
    (group,) = groups
    shares = {"knockoffs": {group.name: torch.tensor([1.0, 0.75, 0.25], dtype=torch.float64)}}
    statistics = Statistics(collect(groups, {"weights"}).tensors, gathered=shares)
    assert score_channels("scop", group, statistics).tolist() == [0.5, 1, -0.5]


def test_knockoffs_of_a_channel_that_tells_the_class_are_found_worse_than_it() -> None:
    model = nn.Sequential(linear(torch.eye(2).tolist()), linear([[1.0, 0], [-1, 0]]))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(160, 2, generator=generator)
    groups = find_groups(model, inputs[:1])
    (group,) = groups
    samples = SimpleNamespace(inputs=inputs, targets=(inputs[:, 0] < 0).long())
    shares = collect(groups, {"knockoffs"}, samples, batch_size=16).of("knockoffs", group)
    assert shares[0] > 0.6
    assert shares[1] == 0.5  # the classes don't depend on it


def test_knockoffs_are_of_the_whole_model_so_that_they_tell_as_much_deep_down() -> None:
    model = nn.Sequential(*(linear(torch.eye(2).tolist()) for _ in range(8)), linear([[3.0, 0], [-3, 0]]))
    inputs = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    samples = SimpleNamespace(inputs=inputs, targets=(inputs[:, 0] < 0).long())
    groups = find_groups(model, inputs[:1])
    statistics = collect(groups, {"knockoffs"}, samples, batch_size=32)
    for group in groups:
        telling, idle = statistics.of("knockoffs", group).tolist()
        assert telling > 0.7
        assert idle == 0.5


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Parameter(torch.ones(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.first(x).relu(), self.second)


@pytest.mark.parametrize(("name", "need"), [("taylor", "activation_gradients"), ("scop", "knockoffs")])
def test_consumer_used_by_a_function_is_refused_by_name_where_gradients_are_needed(name: str, need: str) -> None:
    with pytest.raises(CriterionError, match=r"consumes it, but by a function: .* \(second\)"):
        scores(name, need, Functional(), torch.ones(4, 2), loss=lambda outputs, targets: outputs.sum())


def test_consumer_used_by_a_function_is_seen_where_they_are_not() -> None:
    assert len(scores("structured_obs", "moments", Functional(), torch.rand(8, 2))) == 3
    assert len(scores("entropy", "entropy", Functional(), torch.rand(8, 2))) == 3


def test_inputs_alone_serve_criteria_that_need_no_loss() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    groups = find_groups(model, torch.zeros(1, 2))
    inputs = torch.randn(6, 2)
    assert collect(groups, {"activity", "entropy", "moments"}, inputs).moments["2.weight"].num_rows == 6
    with pytest.raises(CriterionError, match="pass samples with targets"):
        collect(groups, {"fisher"}, inputs)
    with pytest.raises(CriterionError, match="inputs alone will do"):
        collect(groups, {"entropy"})
