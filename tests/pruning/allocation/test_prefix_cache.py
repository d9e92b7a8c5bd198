from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning import find_groups
from pruning.allocation.dataflow import Unsuitable, read_order
from pruning.allocation.prefix_cache import FirstLayers
from pruning.allocation.sensitivity import Sensitivity
from pruning.batches import TensorBatches, as_batches
from pruning.evaluation import whole_pass
from zoo.datasets.splits import Samples
from zoo.models import densenet, resnet, vgg11


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention = nn.Linear(8, 12), nn.MultiheadAttention(12, 3, batch_first=True)
        self.inner, self.last = nn.Linear(12, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.reshape(len(x), 8, 8))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        out: Tensor = self.last(self.inner(x).relu().mean(1))
        return out


class Crooked(nn.Module):
    """In-place operators, views of what crosses the cut, a branch that is read much later, a result in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        early = functional.relu_(self.a(x))
        left, right = early.chunk(2, dim=1)
        late = functional.relu(self.b(early), inplace=True)
        late.add_(1.0)
        values, _ = self.c(late).relu_().flatten(2).max(dim=2)
        out: Tensor = self.out(values) + left.mul_(2).mean() - right.sum(dim=(1, 2, 3)).reshape(-1, 1)
        return out


FACTORIES: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: resnet((1, 8, 8), 4, depth=8, width=4),
    "vgg": lambda: vgg11((1, 8, 8), 4, width=4),
    "densenet": lambda: densenet((1, 8, 8), 4, depth=10, growth=2),
    "attention": Attentive,
    "crooked": Crooked,
}


@pytest.fixture
def samples() -> Samples:
    generator = torch.Generator().manual_seed(0)
    return Samples(torch.randn(21, 1, 8, 8, generator=generator), torch.randint(4, (21,), generator=generator))


def measuring(model: nn.Module, samples: Samples, *, share: bool) -> Sensitivity:
    groups = find_groups(model, samples.inputs[:1])
    orders = {group.name: range(group.size) for group in groups}
    return Sensitivity(model, groups, orders, [0.3, 0.7], samples, sweep="full", batch_size=8, share=share)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", FACTORIES)
def test_curves_are_those_of_whole_passes_to_the_last_bit(name: str, deterministic: bool, samples: Samples) -> None:
    torch.manual_seed(0)
    model = FACTORIES[name]().eval()
    torch.use_deterministic_algorithms(deterministic)
    try:
        shared, whole = (measuring(model, samples, share=share) for share in (True, False))
        names = shared.in_order()
        first = shared._first
        assert first is not None
        cuts = [first.cut({piece.parameter for piece in shared._groups[group].slices}) for group in names]
        assert cuts == sorted(cuts)
        assert max(cuts) > 0
        assert [shared.curve(group) for group in names] == [whole.curve(group) for group in names]
        assert [shared.curve(group) for group in reversed(names)] == [whole.curve(group) for group in reversed(names)]
        assert first._order is not None, "it gave up"
    finally:
        torch.use_deterministic_algorithms(False)


def test_only_what_lies_behind_the_cut_is_computed(samples: Samples) -> None:
    model = vgg11((1, 8, 8), 4, width=4).eval()
    groups = find_groups(model, samples.inputs[:1])
    first = FirstLayers(model, groups.trace, as_batches(samples), 8)
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)][-1]
    forward = first.forward({f"{last}.weight"})
    inputs = samples.inputs[8:16]
    with torch.no_grad():
        expected = model(inputs)
        assert torch.equal(forward(model, 1, inputs), expected)
        assert torch.equal(forward(model, 1, torch.full_like(inputs, 9.0)), expected), "the inputs were looked at"
        model.get_parameter(f"{last}.weight").zero_()
        assert torch.equal(forward(model, 1, inputs), model(inputs))
        assert not torch.equal(model(inputs), expected)


def test_little_memory_moves_the_cut_to_the_left(samples: Samples) -> None:
    model = vgg11((1, 8, 8), 4, width=4).eval()
    groups = find_groups(model, samples.inputs[:1])
    last = {next(reversed(dict(model.named_parameters())))}
    wide, narrow, none = (
        FirstLayers(model, groups.trace, as_batches(samples), 8, max_bytes=size).cut(last)
        for size in (2**20, 21 * 100, 1)
    )
    assert wide >= narrow > none == 0


class Looking(nn.Module):
    """Code that looks at a value, writes into a parameter, keeps what a layer gave, or reads more than before."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.first, self.second, self.last = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(1).mean(1)
        if self.fault == "writes":
            self.last.bias.data.add_(0.0)
        pooled, x = x, self.first(x)
        if self.fault == "keeps":
            self.seen = x.relu()
        if self.fault != "looks" or x.sum() < 1e9:
            x = self.second(x)
        if self.fault == "larger batches" and len(x) > 2:
            x = x + pooled.sum(1, keepdim=True)
        if self.fault == "draws":
            x = functional.dropout(x, 0.5, training=True)
        out: Tensor = self.last(x.relu())
        return out


@pytest.mark.parametrize("fault", ["looks", "writes", "keeps", "larger batches", "draws"])
def test_passes_are_whole_where_they_cannot_be_shared(
    fault: str, samples: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = Looking(fault).eval()
    with caplog.at_level("INFO", "pruning.allocation.prefix_cache"):
        shared = measuring(model, samples, share=True)
        names = shared.in_order()
        torch.manual_seed(1)
        found = [shared.curve(name) for name in names]
    assert "the first layers are run anew each time" in caplog.text
    if fault != "draws":
        whole = measuring(model, samples, share=False)
        assert found == [whole.curve(name) for name in names]


def test_operators_that_write_or_give_numbers_are_named(samples: Samples) -> None:
    for fault, said in (("looks", "gives a number"), ("writes", "writes into what was there before")):
        with pytest.raises(Unsuitable, match=said):
            read_order(Looking(fault), samples.inputs[:1])


def test_no_samples_share_nothing() -> None:
    model = vgg11((1, 8, 8), 4, width=4).eval()
    groups = find_groups(model, torch.zeros(1, 1, 8, 8))
    assert FirstLayers(model, groups.trace, TensorBatches(torch.zeros(0, 1, 8, 8)), 8).forward(set()) is whole_pass
