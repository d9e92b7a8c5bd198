"""Importance of each channel: one function per criterion, its formula and source. One file per family."""

from pruning.criteria import batch_norm, control, distances, gradients, norms
from pruning.criteria.registry import (
    Criterion,
    Ordering,
    RegisteredCriterion,
    criterion,
    criterion_names,
    find_criterion,
    order_channels,
    score_channels,
)

__all__ = [
    "Criterion",
    "Ordering",
    "RegisteredCriterion",
    "batch_norm",
    "control",
    "criterion",
    "criterion_names",
    "distances",
    "find_criterion",
    "gradients",
    "norms",
    "order_channels",
    "score_channels",
]
