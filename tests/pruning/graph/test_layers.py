from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pruning.graph.layers import LayerCall, from_matrix, output_rows, to_matrix
from pruning.statistics.layer_hooks import Observer, find_layers, observe

LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2, dilation=(1, 2)), (2, 4, 9, 8)),
    (nn.Conv1d(3, 4, 3, padding="same", dilation=2), (2, 3, 9)),
    (nn.Conv1d(3, 4, 4, padding="same"), (2, 3, 9)),
    (nn.Conv1d(3, 4, 3, padding="valid"), (2, 3, 9)),
    (nn.Conv3d(2, 4, 2), (2, 2, 4, 4, 4)),
    (nn.Conv2d(3, 3, 3, groups=3, padding_mode="reflect", padding=1), (3, 5, 5)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 5, 5)),
    (nn.ConvTranspose1d(4, 6, 2, dilation=2), (2, 4, 5)),
    (nn.ConvTranspose2d(2, 3, 2, padding=1), (2, 2, 4, 4)),
    (nn.Linear(3, 4), (2, 5, 3)),
    (nn.Linear(3, 4, bias=False), (3,)),
]


class Calls(Observer):
    def __init__(self) -> None:
        self.seen: list[LayerCall] = []

    def on_layer(self, call: LayerCall) -> None:
        self.seen.append(call)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])
def test_outputs_are_the_matrix_times_the_unfolded_inputs(layer: nn.Module, shape: tuple[int, ...]) -> None:
    calls = Calls()
    observe(layer, torch.randn(shape), [calls])
    (call,) = calls.seen
    weight = layer.get_parameter("weight").detach()
    matrix = to_matrix(weight, call.geometry)
    assert torch.equal(from_matrix(matrix, weight.shape, call.geometry), weight)
    found = torch.einsum("rgk,gok->rgo", torch.cat([columns for _, columns in call.rows()]), matrix)
    if call.bias is not None:
        found = found + layer.get_parameter("bias").detach().reshape(call.geometry.groups, -1)
    torch.testing.assert_close(found, output_rows(call.outputs, call.geometry), rtol=1e-5, atol=1e-5)


class Transposed(nn.Module):
    """Weights that lie the other way round, as in GPT-2's layers, and a product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias, self.plain = (nn.Parameter(torch.randn(s)) for s in ((3, 4), (4,), (4, 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addmm(self.bias, x, self.weight)
        return (x @ x.T) @ x @ self.plain


def test_products_with_transposed_weights_are_layers_and_products_of_activations_are_not() -> None:
    model, calls = Transposed(), Calls()
    observe(model, torch.randn(5, 3), [calls])
    assert [call.weight for call in calls.seen] == ["weight", "plain"]
    matrix = to_matrix(model.weight.detach(), calls.seen[0].geometry)
    assert torch.equal(matrix[0], model.weight.detach().T)
    assert calls.seen[0].bias == "bias"


def test_long_inputs_are_unfolded_in_chunks_that_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    observe(nn.Conv2d(2, 3, 3), torch.randn(7, 2, 6, 6), [calls])
    (whole,) = [columns for _, columns in calls.seen[0].rows()]
    monkeypatch.setattr("pruning.graph.layers._CHUNK", 2 * 2 * 36 * 9)
    parts = list(calls.seen[0].rows())
    assert [len(range(7)[here]) for here, _ in parts] == [2, 2, 2, 1]
    assert torch.equal(torch.cat([columns for _, columns in parts]), whole)


class Chained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2)
        self.twice, self.last = nn.Conv2d(2, 2, 1), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm(self.first(x))
        x = self.twice(self.twice(x).relu_())
        out: Tensor = self.last(x.mean((2, 3)))
        return out


def test_layers_are_found_in_order_with_the_norm_and_the_sum_that_follow() -> None:
    model = Chained().train()
    found = [
        (one.weight, one.bias, one.num_calls, one.running_mean, one.summed)
        for one in find_layers(model, torch.randn(2, 2, 4, 4))
    ]
    assert found == [
        ("first.weight", None, 1, "norm.running_mean", True),
        ("twice.weight", "twice.bias", 2, None, False),
        ("last.weight", "last.bias", 1, None, False),
    ]
    assert model.training
    assert int(model.norm.num_batches_tracked or 0) == 0
