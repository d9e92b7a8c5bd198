from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pruning.errors import DataError
from pruning.graph.layers import own_slices, rows_of
from pruning.plan.dry_run import find_groups
from pruning.statistics.collect import collect


def samples(num: int) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        inputs=torch.randn(num, 1, 4, 4, generator=generator), targets=torch.randint(3, (num,), generator=generator)
    )


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filters, self.norm, self.head = nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.filters(x)).relu().flatten(1))
        return out


def model() -> Net:
    torch.manual_seed(0)
    return Net()


def test_rows_hold_each_channels_values_even_where_it_has_several_places() -> None:
    net = model()
    (group,) = find_groups(net, torch.zeros(1, 1, 4, 4))
    pieces = {piece.parameter: piece for piece in group.slices}
    filters = rows_of(net.filters.weight.detach(), pieces["filters.weight"], 5)
    assert torch.equal(filters, net.filters.weight.detach().reshape(5, 9))
    flattened = rows_of(net.head.weight.detach(), pieces["head.weight"], 5)
    assert flattened.shape == (5, 12)
    for channel in range(5):
        assert torch.equal(flattened[channel], net.head.weight.detach()[:, 4 * channel : 4 * channel + 4].T.flatten())


def test_own_slices_are_the_filter_its_bias_and_the_norm() -> None:
    net = model()
    (group,) = find_groups(net, torch.zeros(1, 1, 4, 4))
    found = {piece.parameter for piece in own_slices(group, dict(net.named_parameters()))}
    assert found == {"filters.weight", "filters.bias", "norm.weight", "norm.bias"}


def test_gradient_products_are_those_of_the_whole_parameters() -> None:
    net, data = model().eval(), samples(8)
    groups = find_groups(net, data.inputs[:1])
    found = collect(groups, {"gradients"}, data, batch_size=8)
    own = [parameter for layer in (net.filters, net.norm) for parameter in layer.parameters()]
    gradients = torch.autograd.grad(nn.functional.cross_entropy(net(data.inputs), data.targets), own)
    products = torch.zeros(5)
    for parameter, gradient in zip(own, gradients, strict=True):
        products += (gradient * parameter).detach().reshape(5, -1).sum(dim=1)
    (group,) = groups
    torch.testing.assert_close(found.of("gradients", group), products.double().square(), rtol=1e-4, atol=0)


def test_minibatches_follow_the_seed_and_every_sample_is_seen() -> None:
    net, data = model(), samples(20)
    groups = find_groups(net, data.inputs[:1])
    (group,) = groups
    heard: list[tuple[int, int]] = []
    found = [
        collect(groups, {"gradients"}, data, batch_size=6, seed=seed, progress=lambda *at: heard.append(at))
        for seed in (0, 0, 1)
    ]
    scores = [statistics.of("gradients", group) for statistics in found]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
    assert heard[:4] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_frozen_parameters_have_gradients_too_and_stay_frozen() -> None:
    net, data = model(), samples(6)
    net.requires_grad_(False)
    groups = find_groups(net, data.inputs[:1])
    (group,) = groups
    with torch.no_grad():
        found = collect(groups, {"gradients"}, data)
    assert bool((found.of("gradients", group) > 0).any())
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_weights_alone_need_no_samples() -> None:
    groups = find_groups(model(), torch.zeros(1, 1, 4, 4))
    assert collect(groups, {"weights"}).gathered == {}
    with pytest.raises(DataError, match="no samples"):
        collect(groups, {"gradients"}, samples(0))
