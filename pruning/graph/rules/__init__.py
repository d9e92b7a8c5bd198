"""One rule per operator of ATen: which axes of its inputs and outputs hold the same channels.

A rule is a function of a `Call` and is registered by the operator's name. It states an axis equation, or builds axes
where they depend on arguments. To add an operator: write its rule in the file of its family, and a sample row in
`tests/pruning/graph/rules/`, by which the two laws are tested. Operators that ATen tags as pointwise share one rule.
"""

from __future__ import annotations

from typing import Any

from pruning.graph.rules import matrix, reductions, reshaping, spatial
from pruning.graph.rules.call import RULES, Call, Rule, is_pointwise, operator_name, rule


def find_rule(func: Any) -> Rule | None:
    """The rule of an operator, or None if there is none."""
    found = RULES.get(operator_name(func))
    if found is None and is_pointwise(func):
        return reductions.broadcast
    return found


__all__ = [
    "RULES",
    "Call",
    "Rule",
    "find_rule",
    "is_pointwise",
    "matrix",
    "operator_name",
    "reductions",
    "reshaping",
    "rule",
    "spatial",
]
