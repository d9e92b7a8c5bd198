"""The notation in which an operator's rule is written: einops' own, with additions.

    linear      "... i, o i, o -> ... o"
    conv        "b (g i) *, (g o) i *, (g o) -> b (g o) *"
    cat on 1    "a x c, a y c -> a x+y c"
    attention   "... n d, ... s d, ... s v -> ... n v"

A name states that two axes hold the same channels; `(g i)` is a flattened product, `x+y` a concatenation. `...` stands
for any number of leading axes, which broadcast. Never pruned are: a capital, `_` (one axis) and `*` (any number of
axes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

from pruning.graph.axes import Atom, Axis, concat, cut, factor, freeze, product, unify

EXTENT = "it is an extent that the operator works along, not a channel"


@dataclass(frozen=True)
class Token:
    """One axis of a pattern: a product of names, a sum of names, `_`, or a run (`...` or `*`)."""

    names: tuple[str, ...]
    kind: str  # "product", "sum", "run" or "spatial"


Pattern = tuple[Token, ...]


@cache
def parse(equation: str) -> tuple[tuple[Pattern, ...], tuple[Pattern, ...]]:
    """Parse an equation into the patterns of its inputs and of its outputs.

    Raises:
        ValueError: The equation is malformed; the text names the offending token.
    """
    sides = equation.split("->")
    if len(sides) != 2:
        raise ValueError(f"equation {equation!r} needs exactly one '->'")
    inputs, outputs = (tuple(_parse_pattern(p, equation) for p in side.split(",")) for side in sides)
    return inputs, outputs


def _parse_pattern(pattern: str, equation: str) -> Pattern:
    tokens = []
    words = pattern.replace("(", " ( ").replace(")", " ) ").split()
    while words:
        word = words.pop(0)
        if word == "(":
            if ")" not in words:
                raise ValueError(f"a '(' is never closed in {pattern!r} of {equation!r}")
            end = words.index(")")
            tokens.append(Token(tuple(words[:end]), "product"))
            words = words[end + 1 :]
        elif word in ("...", "*"):
            tokens.append(Token((word,), "run" if word == "..." else "spatial"))
        elif all(name.isidentifier() for name in word.split("+")):
            tokens.append(Token(tuple(word.split("+")), "sum" if "+" in word else "product"))
        else:
            raise ValueError(f"token {word!r} of {equation!r} is no name, sum, product, '...', '*' or '_'")
    return tuple(tokens)


class Names:
    """The axes that the names of one equation stand for; built up operand by operand."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        self.axes: dict[str, Axis] = {}
        self.run: list[Axis] = []

    def state(self, name: str, axis: Axis) -> None:
        """State that `name` stands for `axis`. An axis of size 1 broadcasts against a wider one."""
        if name == "_" or name.isupper():
            freeze(axis, EXTENT)
        if name == "_":
            return
        known = self.axes.get(name)
        if known is None or (known.size == 1 and axis.size != 1):
            self.axes[name] = axis
        elif axis.size == known.size or axis.size != 1:
            unify(known, axis)

    def state_run(self, axes: Sequence[Axis]) -> None:
        """State the axes of a `...`, aligned from the right, broadcasting."""
        missing = len(axes) - len(self.run)
        self.run = [*axes[:missing], *self.run] if missing > 0 else self.run
        offset = len(self.run) - len(axes)
        for position, axis in enumerate(axes, start=offset):
            known = self.run[position]
            if known.size == 1:
                self.run[position] = axis
            elif axis.size != 1:
                unify(known, axis)

    def match(self, pattern: Pattern, axes: Sequence[Axis]) -> None:
        """Match one operand's pattern against its axes.

        Raises:
            ValueError: The operand has another number of axes, or sizes that contradict the pattern.
        """
        fixed = sum(token.kind not in ("run", "spatial") for token in pattern)
        has_run = fixed < len(pattern)
        if len(axes) < fixed or (len(axes) > fixed and not has_run):
            raise ValueError(f"an operand of {len(axes)} axes can't match a pattern of {fixed}")
        rest = list(axes)
        for token in pattern:
            if token.kind == "run":
                self.state_run([rest.pop(0) for _ in range(len(axes) - fixed)])
            elif token.kind == "spatial":
                for _ in range(len(axes) - fixed):
                    freeze(rest.pop(0), EXTENT)
            else:
                self._state_token(token, rest.pop(0))

    def _state_token(self, token: Token, axis: Axis) -> None:
        if len(token.names) == 1:
            self.state(token.names[0], axis)
            return
        sizes = self._sizes(token, axis.size)
        pieces = factor(axis, sizes) if token.kind == "product" else cut(axis, sizes)
        for name, piece in zip(token.names, pieces, strict=True):
            self.state(name, piece)

    def _sizes(self, token: Token, total: int) -> list[int]:
        known = {name: self.axes[name].size for name in token.names if name in self.axes} | {
            name: self.sizes[name] for name in token.names if name in self.sizes
        }
        unknown = [name for name in token.names if name not in known]
        if len(unknown) > 1:
            raise ValueError(f"the sizes of {', '.join(unknown)} are not known")
        if unknown and token.kind == "product":
            known[unknown[0]] = total // max(1, prod(known.values()))
        elif unknown:
            known[unknown[0]] = total - sum(known.values())
        return [known[name] for name in token.names]

    def build(self, pattern: Pattern, shape: Sequence[int]) -> list[Axis]:
        """Build the axes of an output with the given shape."""
        fixed = sum(token.kind not in ("run", "spatial") for token in pattern)
        axes: list[Axis] = []
        for token in pattern:
            if token.kind == "run":
                axes.extend(self.run)
            elif token.kind == "spatial":
                axes.extend(Atom(size, EXTENT) for size in shape[len(axes) : len(axes) + len(shape) - fixed])
            elif token.names == ("_",):
                axes.append(Atom(shape[len(axes)], EXTENT))
            elif token.kind == "sum":
                axes.append(concat([self.axes[name] for name in token.names]))
            elif len(token.names) == 1:
                axes.append(self.axes[token.names[0]])
            else:
                axes.append(product([self.axes[name] for name in token.names]))
        return axes


def contracted(equation: str) -> tuple[str, ...]:
    """List the names that occur on inputs alone, in order."""
    inputs, outputs = parse(equation)
    kept = {name for pattern in outputs for token in pattern for name in token.names}
    found = [name for pattern in inputs for token in pattern for name in token.names]
    return tuple(dict.fromkeys(name for name in found if name not in kept and name not in ("...", "*", "_")))
