"""Importance of each channel: one function per criterion, its formula and source. One file per family."""

from pruning.importance import (
    activations,
    batch_norm,
    filters,
    greedy,
    obs,
    regression,
    taylor,
)
from pruning.importance.ranking import FALLBACK, Criteria, Ranking, needs_of
from pruning.importance.registry import (
    Criterion,
    Folding,
    Ordering,
    RegisteredCriterion,
    criterion,
    criterion_names,
    find_criterion,
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
    "batch_norm",
    "criterion",
    "criterion_names",
    "filters",
    "find_criterion",
    "greedy",
    "needs_of",
    "obs",
    "order_channels",
    "regression",
    "score_channels",
    "taylor",
]
