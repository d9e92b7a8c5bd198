"""Statistics and reconstruction copy the model's state once, however many batches there are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pruning
from pruning.statistics.collect import collect
from pruning.statistics.moments import Moments


class _Clones(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts copies of tensors of one shape."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.clone.default and args[0].shape == self.shape
        return func(*args, **(kwargs or {}))


class _Counts(nn.Module):
    """Writes into its own buffer at each pass."""

    passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 7, 1), nn.Conv2d(7, 5, 1)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += 1
        out: Tensor = self.second(torch.relu(self.first(inputs)) * self.passes)
        return out


def test_state_is_copied_once_and_not_for_each_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 7, 1), nn.ReLU(), nn.Conv2d(7, 5, 1)).eval()
    inputs = torch.randn(24, 3, 4, 4)
    groups = pruning.find_groups(model, inputs[:1])
    with _Clones(model.get_parameter("0.weight").shape) as clones:
        collect(groups, {"moments"}, inputs, batch_size=4)
    assert clones.count == 1


def test_reconstruction_copies_state_once_and_what_it_refits_once_more() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 7, 1), nn.ReLU(), nn.Conv2d(7, 5, 1)).eval()
    inputs = torch.randn(24, 3, 4, 4)
    groups = pruning.find_groups(model, inputs[:1])
    plan = pruning.Plan.of(groups, {"0.weight:0": [1]})
    shapes = [model.get_parameter("0.weight").shape, torch.Size((6, 3, 1, 1))]
    counts = []
    for shape in shapes:
        dense = pruning.narrow(model, plan, inputs[:1], groups=groups)
        with _Clones(shape) as clones:
            refits = pruning.reconstruct(dense, model, plan, groups, inputs, batch_size=4)
        counts.append(clones.count)
    assert [refit.skipped for refit in refits] == ["", ""]
    assert counts == [1, 2]


def test_what_a_pass_writes_into_is_as_it_was_for_the_next() -> None:
    torch.manual_seed(0)
    model, inputs = _Counts().eval(), torch.randn(6, 3, 4, 4)
    groups = pruning.find_groups(model, inputs[:1])
    weight = "second.weight"
    found = [collect(groups, {"moments"}, one).moments[weight] for one in torch.split(inputs, 1)]
    together = collect(groups, {"moments"}, inputs, batch_size=1).moments[weight]
    assert isinstance(together, Moments)
    torch.testing.assert_close(together.gram, sum(one.gram for one in found if isinstance(one, Moments)))
    assert float(model.passes) == 0
