"""Importance of each channel: one function per criterion, its formula and source. One file per family."""

from pruning.criteria import (
    activations,
    batch_norm,
    control,
    curvature,
    distances,
    gradients,
    greedy,
    lasso,
    norms,
    reuse,
    surgeon,
)
from pruning.criteria.registry import (
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
    "Criterion",
    "Folding",
    "Ordering",
    "RegisteredCriterion",
    "activations",
    "batch_norm",
    "control",
    "criterion",
    "criterion_names",
    "curvature",
    "distances",
    "find_criterion",
    "gradients",
    "greedy",
    "lasso",
    "norms",
    "order_channels",
    "reuse",
    "score_channels",
    "surgeon",
]
