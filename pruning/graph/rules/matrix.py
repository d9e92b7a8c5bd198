"""Matrix products, attention, recurrent layers: what is summed over, what stays, and what it costs.

All gates of a hidden unit of a recurrent layer go together, and one unit goes in all layers and directions of a module.
A removed unit stays at zero: its candidate is tanh(0) = 0, so its state never leaves an initial state of zero. Packing
puts the rows of padded sequences under one another, step by step, and leaves out the padding: it permutes rows and
never features, so layers over packed sequences say what those over padded ones say.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pruning.graph.axes import Axis, concat, factor, unify
from pruning.graph.rules.call import (
    Call,
    Contraction,
    Inapplicable,
    OperandAxis,
    Typed,
    freeze_all,
    frozen,
    is_open,
    rule,
)
from pruning.graph.rules.reductions import broadcast_axes, nonzero_in_sum


@rule("linear")
def linear(call: Call) -> list[list[Axis]]:
    """... i, o i, o -> ... o"""
    call.use("linear.weight", call["weight"])
    call.use("linear.bias", call["bias"])
    return call.contraction("... i, o i, o -> ... o", call["input"], call["weight"], call["bias"])


@rule("matmul", "mm", "bmm", "mv", "dot", "vdot")
def matmul(call: Call) -> list[list[Axis]]:
    """... m k, ... k n -> ... m n"""
    a, b = call.inputs
    equations = {
        (False, False): "... m k, ... k n -> ... m n",
        (True, False): "k, ... k n -> ... n",
        (False, True): "... m k, k -> ... m",
        (True, True): "k, k -> ",
    }
    return call.contraction(equations[a.ndim == 1, b.ndim == 1], a, b)


@rule("addmm", "baddbmm")
def addmm(call: Call) -> list[list[Axis]]:
    """c, ... m k, ... k n -> ... m n"""
    c, a, b = call.inputs
    [axes] = call.contraction("... m k, ... k n -> ... m n", a, b)
    out = broadcast_axes(axes, call.axes(c))
    call.nonzero = nonzero_in_sum(out, [Typed(axes, call.nonzero), call.typed(c)])
    return [out]


@rule("_grouped_mm")
def grouped_mm(call: Call) -> list[list[Axis]]:
    """T k, E k n -> T n: each expert multiplies its own rows. PyTorch asks for multiples of 16 bytes."""
    a, experts, bias = call["self"], call["mat2"], call["bias"]
    if a.ndim != 2 or experts.ndim != 3 or bias is not None:
        raise Inapplicable("rows of one matrix times a stack of matrices are what is understood")
    number = 16 // experts.element_size()
    call.facts.multiples += [(axis, number) for axis in call.axes(experts)[1:]] if number > 1 else []
    return call.contraction("T k, E k n -> T n", a, experts)


@rule("linalg_solve_triangular")
def solve_triangular(call: Call) -> list[list[Axis]]:
    """... M M, ... M k -> ... M k, or with the unknown on the left ... k M: each column is solved by itself.

    A removed matrix of a batch holds zeros, which can be divided by only where its diagonal is taken to be one.
    """
    matrix, sides = call["self"], call["B"]
    if not call["unitriangular"] and call.typed(matrix).zero:
        freeze_all(call.axes(matrix)[:-2], f"{call.name} gives no number for the zeros of a removed matrix")
    pattern = "... M k" if call["left"] else "... k M"
    [axes] = call.equation(f"... M _, {pattern} -> {pattern}", matrix, sides)
    call.nonzero = nonzero_in_sum(axes, [call.typed(sides)])
    return [axes]


@rule("outer")
def outer(call: Call) -> list[list[Axis]]:
    """m, n -> m n"""
    return call.contraction("m, n -> m n", *call.inputs)


@rule("einsum")
def einsum(call: Call) -> list[list[Axis]]:
    """The equation is the operator's own argument."""
    text = call["equation"].replace(" ", "")
    left, arrow, right = text.partition("->")
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        right = ("..." if "..." in left else "") + "".join(c for c in sorted(set(letters)) if letters.count(c) == 1)
    if any(len(set(p)) < len(p) for p in left.replace("...", "").split(",")):
        raise Inapplicable(f"{text!r} names an axis twice in one operand")
    words = {True: lambda p: "... " + _spaced(p.replace("...", "")), False: _spaced}
    sides = [words["..." in p](p) for p in left.split(",")]
    if any("..." in p and not p.startswith("...") for p in (*left.split(","), right)):
        raise Inapplicable(f"{text!r} has an ellipsis that does not come first")
    return call.contraction(f"{', '.join(sides)} -> {words['...' in right](right)}", *call.inputs)


def _spaced(letters: str) -> str:
    # Lower case, because a capital would mean that the axis is never pruned.
    return " ".join(c if c.islower() else f"{c.lower()}_" for c in letters)


@rule("scaled_dot_product_attention")
def attention(call: Call) -> list[list[Axis]]:
    """... h l d, ... h s d, ... h s v -> ... h l v"""
    query, key, value = (call[name] for name in ("query", "key", "value"))
    ratio = query.shape[-3] // key.shape[-3] if call["enable_gqa"] else 1
    if ratio > 1:
        equation = "... (h r) l d, ... h s d, ... h s v -> ... (h r) l v"
        [axes] = call.equation(equation, query, key, value, r=ratio)
    else:
        [axes] = call.equation("... l d, ... s d, ... s v -> ... l v", query, key, value)
    *batch, rows, depth = call.axes(query)
    columns = call.axes(key)[-2]
    if call["attn_mask"] is not None:  # a bias of each head, or one for all
        broadcast_axes([*batch, rows, columns], call.axes(call["attn_mask"]))
    call.mix(columns, "attention normalises over it")
    if call["scale"] is None:
        call.mix(depth, "attention divides by the root of its size")
    elif not (call.typed(query).zero or call.typed(key).zero):
        call.mix(depth, "attention sums over it although its removed channels are not zero")
    for terms in ((*batch, rows, columns, depth), (*axes, columns)):
        call.facts.contractions.append(Contraction(terms, (), call.module))
    call.zero = call.typed(value).zero and not is_open(rows)
    return [axes]


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
