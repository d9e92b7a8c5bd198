"""The products within recurrent layers, against the same layers gone through step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from pruning.graph.layers import LayerCall
from pruning.statistics.layer_hooks import Observer, find_layers, observe

CELLS: dict[str, Callable[..., nn.RNNCellBase]] = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN": nn.RNNCell}
LENGTHS = torch.tensor([6, 4, 4, 1])


class Calls(Observer):
    def __init__(self) -> None:
        self.seen: list[LayerCall] = []

    def on_layer(self, call: LayerCall) -> None:
        self.seen.append(call)


class Net(nn.Module):
    """A recurrent layer with first states of its own, on padded or packed sequences [samples, steps, channels]."""

    def __init__(self, kind: str, packed: bool, **options: Any) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(3, 5, **options)
        self.packed = packed
        shape = (self.layer.num_layers * (2 if self.layer.bidirectional else 1), 4, 5)
        self.first = nn.Buffer(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        state = (self.first, self.first.flip(2)) if isinstance(self.layer, nn.LSTM) else self.first
        if self.packed:
            given: PackedSequence | Tensor = pack_padded_sequence(x, LENGTHS, batch_first=True)
        else:
            given = x if self.layer.batch_first else x.transpose(0, 1)
        found = self.layer(given, state)[0]
        outputs: Tensor = found.data if self.packed else found
        return outputs


def expected(net: Net, x: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """What each weight reads, [samples, steps, channels], sample by sample and step by step."""
    layer, read, inputs = net.layer, {}, [row[:length] for row, length in zip(x, lengths, strict=True)]
    directions = 2 if layer.bidirectional else 1
    for depth in range(layer.num_layers):
        given = []
        for direction in range(directions):
            names = [f"{kind}_l{depth}" + ("_reverse" if direction else "") for kind in ("weight_ih", "weight_hh")]
            cell = CELLS[type(layer).__name__](inputs[0].shape[1], 5, layer.bias)
            cell.load_state_dict({name: getattr(layer, f"{name}{names[0][9:]}") for name, _ in cell.named_parameters()})
            before, after = [torch.zeros(len(x), x.shape[1], 5) for _ in range(2)]
            for sample, sequence in enumerate(inputs):
                first = net.first[depth * directions + direction, sample]
                state: Any = (first, first.flip(0)) if isinstance(cell, nn.LSTMCell) else first
                for step in reversed(range(len(sequence))) if direction else range(len(sequence)):
                    before[sample, step] = state[0] if isinstance(state, tuple) else state
                    state = cell(sequence[step], state)
                    after[sample, step] = state[0] if isinstance(state, tuple) else state
            read[f"layer.{names[0]}"] = nn.utils.rnn.pad_sequence(inputs, batch_first=True)
            read[f"layer.{names[1]}"] = before
            given.append(after)
        inputs = [row[:length] for row, length in zip(torch.cat(given, 2), lengths, strict=True)]
    return read


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"bias": False, "bidirectional": True}],
    ids=["plain", "deep", "no bias"],
)
@pytest.mark.parametrize("kind", CELLS)
@torch.no_grad()
def test_products_are_those_of_a_pass_step_by_step(kind: str, options: dict[str, Any], packed: bool) -> None:
    torch.manual_seed(0)
    net, x, calls = Net(kind, packed, **options), torch.randn(4, 6, 3), Calls()
    observe(net, x, [calls], recurrent=True)
    wanted = expected(net, x, LENGTHS if packed else torch.full((4,), 6))
    assert {call.weight for call in calls.seen} == set(wanted)
    assert len(calls.seen) == len(wanted)
    for call in calls.seen:
        inputs = wanted[call.weight]
        if packed:
            inputs = pack_padded_sequence(inputs, LENGTHS, batch_first=True).data
        torch.testing.assert_close(call.inputs, inputs, msg=call.weight)
        product = inputs @ net.get_parameter(call.weight).T
        if net.layer.bias:
            assert call.bias == call.weight.replace("weight", "bias")
            product = product + net.get_parameter(call.bias)
        torch.testing.assert_close(call.outputs, product, msg=call.weight)
        assert call.recurrent == ("input" if "weight_ih" in call.weight else "state")


class Steps(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell = CELLS[kind](3, 5)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        found: Tensor = state[0] if isinstance(state, tuple) else state
        return found


@pytest.mark.parametrize("kind", CELLS)
@torch.no_grad()
def test_a_cell_is_two_layers_at_each_step(kind: str) -> None:
    torch.manual_seed(0)
    net, x, calls = Steps(kind), torch.randn(2, 4, 3), Calls()
    observe(net, x, [calls], recurrent=True)
    assert [call.weight for call in calls.seen] == ["cell.weight_ih", "cell.weight_hh"] * 4
    torch.testing.assert_close(torch.stack([call.inputs for call in calls.seen[::2]], 1), x)
    assert not calls.seen[1].inputs.any()
    torch.testing.assert_close(calls.seen[3].inputs, net(x[:, :1]))


def test_only_those_who_ask_are_told() -> None:
    net, x = Net("LSTM", packed=False), torch.randn(4, 6, 3)
    assert not find_layers(net, x)
    layers = find_layers(net, x, recurrent=True)
    assert [layer.weight for layer in layers] == ["layer.weight_ih_l0", "layer.weight_hh_l0"]
    assert not any(layer.tied for layer in layers)


def test_weights_that_are_computed_make_no_layer() -> None:
    net = nn.GRU(3, 5)
    nn.utils.parametrizations.weight_norm(net, "weight_hh_l0")
    assert not find_layers(net, torch.randn(4, 2, 3), recurrent=True)
