"""Scaled dot-product attention, in the one form in which it arrives below autograd."""

from __future__ import annotations

from pruning.algebra.axes import Axis
from pruning.rules.call import Call, is_open, rule
from pruning.rules.facts import Contraction
from pruning.rules.pointwise import broadcast_axes


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
