"""Importance of each channel: one function per criterion, its formula and source. One file per family of criteria."""

from pruning.importance import (
    activations,
    filters,
    flap,
    obs,
    regression,
    taylor,
    wanda,
)
from pruning.importance.registry import (
    FALLBACK,
    Criteria,
    Criterion,
    Folding,
    Ordering,
    Ranking,
    RegisteredCriterion,
    criterion,
    criterion_names,
    find_criterion,
    needs_of,
    order_channels,
    score_channels,
)

__all__ = [
    "FALLBACK",
    "Criteria",
    "Criterion",
    "Folding",
    "Ordering",
    "Ranking",
    "RegisteredCriterion",
    "activations",
    "criterion",
    "criterion_names",
    "filters",
    "find_criterion",
    "flap",
    "needs_of",
    "obs",
    "order_channels",
    "regression",
    "score_channels",
    "taylor",
    "wanda",
]
