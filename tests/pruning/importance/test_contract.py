"""What every registered criterion has to obey, on a net with a residual, batch norms and a flattened consumer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pruning import find_groups
from pruning.graph.groups import Groups, Slice
from pruning.importance import criterion_names, find_criterion, order_channels, score_channels
from pruning.statistics.collect import Statistics, collect

NAMES = criterion_names()
DRAWN = {"random", "obd_hutchinson", "hessian_trace"}  # drawn by place, so only their distribution follows the channels


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.inner, self.inner_norm = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.outer, self.outer_norm = nn.Conv2d(5, 6, 1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer_norm(self.outer(self.inner_norm(self.inner(x)).relu()))
        out: Tensor = self.head(x.relu().flatten(1))
        return out


@pytest.fixture
def model() -> Residual:
    torch.manual_seed(0)
    net = Residual()
    for norm in (net.norm, net.inner_norm, net.outer_norm):
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(tensor)  # type: ignore[arg-type]
    return net


@pytest.fixture
def samples() -> SimpleNamespace:
    generator = torch.Generator().manual_seed(1)
    return SimpleNamespace(
        inputs=torch.randn(20, 2, 4, 4, generator=generator), targets=torch.randint(3, (20,), generator=generator)
    )


def statistics_of(groups: Groups, name: str, samples: SimpleNamespace) -> Statistics:
    return collect(groups, find_criterion(name).needs, samples, batch_size=6, seed=0)


def places(piece: Slice) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for index, channel in enumerate(piece.channels().tolist()):
        found.setdefault(channel, []).append(index)
    return found


def permute(groups: Groups, orders: dict[str, list[int]]) -> None:
    """Put channel orders[group][i] in the place of channel i, in every slice: the function stays the same."""
    tensors = dict(groups.model.named_parameters()) | dict(groups.model.named_buffers())
    with torch.no_grad():
        for group in groups:
            for piece in group.slices:
                found = places(piece)
                index = torch.arange(tensors[piece.parameter].shape[piece.axis])
                for channel, source in enumerate(orders[group.name]):
                    index[found[channel]] = torch.tensor(found[source])
                tensor = tensors[piece.parameter]
                tensor.copy_(tensor.index_select(piece.axis, index))


@pytest.mark.parametrize("name", NAMES)
def test_one_finite_score_per_channel_and_each_channel_once_in_the_order(
    name: str, model: Residual, samples: SimpleNamespace
) -> None:
    groups = find_groups(model, samples.inputs[:1])
    statistics = statistics_of(groups, name, samples)
    assert sorted(group.size for group in groups) == [5, 6]
    for group in groups:
        scores = score_channels(name, group, statistics)
        assert scores.shape == (group.size,)
        assert scores.isfinite().all()
        assert sorted(order_channels(name, group, statistics)) == list(range(group.size))


@pytest.mark.parametrize("name", sorted(set(NAMES) - DRAWN))
def test_scores_follow_channels_when_they_are_permuted(name: str, model: Residual, samples: SimpleNamespace) -> None:
    model, samples.inputs = model.double(), samples.inputs.double()  # else rounding decides what hardly counts
    groups = find_groups(model, samples.inputs[:1])
    before = {group.name: score_channels(name, group, statistics_of(groups, name, samples)) for group in groups}
    first = {group.name: order_channels(name, group, statistics_of(groups, name, samples)) for group in groups}
    outputs = model.eval()(samples.inputs)
    orders = {group.name: torch.randperm(group.size).tolist() for group in groups}
    permute(groups, orders)
    torch.testing.assert_close(model(samples.inputs), outputs)
    statistics = statistics_of(groups, name, samples)
    for group in groups:
        order = orders[group.name]
        scores = before[group.name]
        rounding = 1e-9 * float(scores.abs().max())
        torch.testing.assert_close(score_channels(name, group, statistics), scores[order], rtol=1e-4, atol=rounding)
        again = [
            order[channel] for channel in order_channels(name, group, statistics)
        ]  # of equal ones, either is first
        torch.testing.assert_close(scores[again], scores[first[group.name]], rtol=1e-4, atol=rounding)


@pytest.mark.parametrize("name", NAMES)
def test_model_and_global_random_state_are_untouched(name: str, model: Residual, samples: SimpleNamespace) -> None:
    model.train()
    model.norm.eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    groups = find_groups(model, samples.inputs[:1])
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    statistics = statistics_of(groups, name, samples)
    for group in groups:
        order_channels(name, group, statistics)
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert not model.norm.training


@pytest.mark.parametrize("name", NAMES)
def test_docstring_states_a_source(name: str) -> None:
    assert "Source:" in (find_criterion(name).score.__doc__ or "")
