"""Matrix products and attention: what is summed over, what stays, and what it costs."""

from __future__ import annotations

from pruning.graph.axes import Axis
from pruning.graph.rules.call import Call, Contraction, Inapplicable, is_open, rule
from pruning.graph.rules.pointwise import broadcast_axes, stays_zero_in_sum


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
    call.zero = call.zero and stays_zero_in_sum(out, [(axes, True), (call.axes(c), call.typed(c).zero)])
    return [out]


@rule("_grouped_mm")
def grouped_mm(call: Call) -> list[list[Axis]]:
    """T k, E k n -> T n: each expert multiplies its own rows. PyTorch asks for multiples of 16 bytes."""
    a, experts, bias = call["self"], call["mat2"], call["bias"]
    if a.ndim != 2 or experts.ndim != 3 or bias is not None:
        raise Inapplicable("rows of one matrix times a stack of matrices are what is understood")
    return call.contraction("T k, E k n -> T n", a, experts)


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
