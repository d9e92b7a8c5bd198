"""The part that an axis of a parameter plays for the channels that lie along it."""

from __future__ import annotations

from typing import Literal

from pruning.algebra.axes import Atom, leaves
from pruning.rules.facts import OperandAxis
from pruning.tracing.trace import Trace

Role = Literal["producer", "consumer", "follower"]


class Roles:
    """The roles of all axes of a trace's parameters."""

    def __init__(self, traced: Trace) -> None:
        self._uses = {name: uses for p in reversed(traced.passes) for name, uses in p.facts.uses.items()}
        self._parameters = traced.parameters
        self._operands: dict[str, list[OperandAxis]] = {}
        for contraction in (c for p in traced.passes for c in p.facts.contractions):
            for operand in contraction.operands:
                for source in operand.sources:
                    self._operands.setdefault(source, []).append(operand)

    def use(self, name: str) -> str:
        """What the parameter is used as."""
        return min(self._uses.get(name, ()), default="")

    def of(self, name: str, position: int, atom: Atom) -> Role:
        """The role of an axis of a parameter for one of its atoms."""
        operands = self._operands.get(name, [])
        axis = self._parameters[name][position]
        # A square layer can have the same channels on both sides: then the axis itself tells which side is meant.
        exact = [operand for operand in operands if operand.axis is axis]
        for operand in exact or operands:
            if any(atom is leaf for made in operand.made for leaf in leaves(made)):
                return "producer"
            if any(atom is leaf for gone in operand.gone for leaf in leaves(gone)):
                return "consumer"
        return "producer" if self.use(name) == "embedding.weight" else "follower"
