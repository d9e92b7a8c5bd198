"""Recurrent layers: all gates of a hidden unit go together, and one unit goes in all layers and directions of a module.

A removed unit stays at zero: its candidate is tanh(0) = 0, so its state never leaves an initial state of zero.

Packing puts the rows of padded sequences under one another, step by step, and leaves out the padding: it permutes rows
and never features, so layers over packed sequences say what those over padded ones say.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pruning.graph.axes import Axis, concat, factor, unify
from pruning.graph.rules.call import Call, Contraction, OperandAxis, freeze_all, frozen, is_open, rule

PACKED = "sequences are packed along it"
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(call: Call) -> list[list[Axis]]:
    """time batch i, (GATE h) i, (GATE h) h, (GATE h), (GATE h) -> time batch h+h, layers batch h

    Of packed sequences: rows i, … -> rows h+h, layers batch h
    """
    x = call["data"] if call["input"] is None else call["input"]
    parameters = list(call["params"])
    states = list(call["hx"]) if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    directions = 2 if call["bidirectional"] else 1
    *leading, entering = call.axes(x)
    freeze_all([leading[1 if call["batch_first"] and len(leading) == 2 else 0]], "a recurrent layer steps along it")
    hidden = call.axes(states[-1])[-1]
    out = call.axes(states[0])[-1]
    width = len(parameters) // (call["num_layers"] * directions)
    if width % 2 == 0:  # without a projection, what goes out is the hidden state
        unify(out, hidden)
    for layer in range(call["num_layers"]):
        for direction in range(directions):
            start = (layer * directions + direction) * width
            _step(call, leading, entering, hidden, out, parameters[start : start + width])
        entering = concat([out] * directions)
    call.zero = call.zero and not any(map(is_open, leading))
    return [[*leading, entering], *(call.axes(state) for state in states)]


@rule("_pack_padded_sequence")
def pack(call: Call) -> list[list[Axis]]:
    """time batch *, batch -> rows *, time"""
    x = call["input"]
    steps, samples, *features = call.axes(x)
    freeze_all([steps, samples, *call.axes(call["lengths"])], PACKED)
    call.zero = call.typed(x).zero
    rows, sizes = call.outputs
    return [[*frozen(rows.shape[:1], PACKED), *features], frozen(sizes.shape, PACKED)]


@rule("_pad_packed_sequence")
def pad(call: Call) -> list[list[Axis]]:
    """rows *, time -> time batch *, batch"""
    data = call["data"]
    rows, *features = call.axes(data)
    freeze_all([rows, *call.axes(call["batch_sizes"])], PACKED)
    call.zero = call.typed(data).zero and not call["padding_value"]
    padded, lengths = call.outputs
    return [[*frozen(padded.shape[:2], PACKED), *features], frozen(lengths.shape, PACKED)]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(call: Call) -> list[list[Axis]]:
    """b i, (GATE h) i, (GATE h) h, (GATE h), (GATE h) -> b h"""
    states = list(call["hx"]) if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    *leading, entering = call.axes(call["input"])
    hidden = call.axes(states[0])[-1]
    parameters = [call[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if call[name] is not None]
    _step(call, leading, entering, hidden, hidden, parameters)
    for state in states[1:]:
        unify(hidden, call.axes(state)[-1])
    call.zero = call.zero and not any(map(is_open, leading))
    return [[*leading, hidden] for _ in call.outputs]


def _step(
    call: Call, leading: Sequence[Axis], entering: Axis, hidden: Axis, out: Axis, parameters: Sequence[Tensor]
) -> None:
    """State one layer in one direction; `out` is the hidden axis itself unless it is projected."""
    gates = _GATES[call.name.removesuffix("_cell")]
    from_input, from_state, *rest = parameters
    for weight, source in ((from_input, entering), (from_state, out)):
        rows, columns = call.axes(weight)
        unify(columns, source)
        call.facts.summed.append(source)
        _by_gate(rows, gates, hidden)
        call.use("recurrent.weight", weight)
        sources = call.typed(weight).sources
        roles = (OperandAxis(sources, rows, (hidden,), ()), OperandAxis(sources, columns, (), (source,)))
        call.facts.contractions.append(Contraction((*leading, rows, columns), roles, call.module))
    for other in rest:
        axes = call.axes(other)
        if len(axes) == 1:
            _by_gate(axes[0], gates, hidden)
            call.use("recurrent.bias", other)
        else:
            unify(axes[0], out)
            unify(axes[1], hidden)
            call.facts.summed.append(hidden)
            sources = call.typed(other).sources
            roles = (OperandAxis(sources, axes[0], (out,), ()), OperandAxis(sources, axes[1], (), (hidden,)))
            call.facts.contractions.append(Contraction((*leading, *axes), roles, call.module))


def _by_gate(rows: Axis, gates: int, hidden: Axis) -> None:
    gate, units = factor(rows, [gates, hidden.size])
    freeze_all([gate], "it is the gates of a recurrent layer")
    unify(units, hidden)
