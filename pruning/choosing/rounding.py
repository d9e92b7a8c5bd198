"""Widths that the runtime rewards: counts at which what goes in channels comes back in time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pruning.choosing.kernel_widths import Admits, KernelWidths
from pruning.choosing.landing import Budget, Landing
from pruning.structure.bundles import Bundle
from pruning.timing.latency_cost import LatencyCost

_SURCHARGES = (1.1, 1.2, 1.4, 2.0, float("inf"))

_log = logging.getLogger(__name__)


def faster_counts(bundles: Sequence[Bundle], cost: LatencyCost) -> tuple[Bundle, ...]:
    """Leave to each bundle the counts at which the model is faster than at every smaller one, all others being whole.

    Where the profile shows steps of 16, what is left are multiples of 16. Of a bundle that can come to multiples of the
    profile's granule, others are not looked at.
    """
    found = []
    for bundle in bundles:
        fastest, counts = float("inf"), []
        multiples = [one for one in bundle.counts if _is_multiple(bundle, one, cost.profile.granule)]
        for removed in sorted({0, *multiples}) if any(multiples) else bundle.counts:
            ms = cost.predict(_kept(bundle, removed))
            if ms < fastest:
                fastest = ms
                counts.append(removed)
        found.append(replace(bundle, counts=tuple(counts), obstacle=f"{bundle.obstacle}, widths that gain speed"))
    return tuple(found)


def rounded(
    bundles: Sequence[Bundle], target: Budget, by: KernelWidths | LatencyCost, original_sizes: Mapping[str, int]
) -> Landing:
    """Return a landing on the widths that a runtime rewards, for a target that is no latency.

    By a table: the counts of its first step; where these don't reach the target, those of the next, then any count.
    By a profile: multiples of its granule at which the layers that a bundle touches take at most 1.1 times their
    share of the MACs. Where these don't reach the target, 1.2, 1.4, 2 times, then any multiple, then any count.

    Args:
        bundles: what may go.
        target: the cost to come down to.
        by: what tells which widths are rewarded.
        original_sizes: channels of each group in the original model, where the one at hand is narrower already.
    """
    if isinstance(by, KernelWidths):
        rungs = [_admitted(bundles, step, by.name, original_sizes) for step in by.steps]
    else:
        rungs = [_light(bundles, by, limit) for limit in _SURCHARGES]
    for number, rung in enumerate(rungs):
        landing = Landing(rung, target)
        if landing.in_reach():
            if number:
                _log.info(
                    "%s is out of reach of the widths that the runtime rewards most; others are allowed", target.name
                )
            return landing
    _log.warning("%s is out of reach of rounded widths; they are not rounded", target.name)
    return Landing(bundles, target)


def _light(bundles: Sequence[Bundle], cost: LatencyCost, limit: float) -> tuple[Bundle, ...]:
    """Leave the counts whose surcharge is within a limit."""
    found = []
    for bundle in bundles:
        counts = [
            removed
            for removed in bundle.counts
            if not removed
            or (_is_multiple(bundle, removed, cost.profile.granule) and cost.surcharge(_kept(bundle, removed)) <= limit)
        ]
        found.append(replace(bundle, counts=tuple(counts), obstacle=f"{bundle.obstacle}, widths that gain speed"))
    return tuple(found)


def _admitted(
    bundles: Sequence[Bundle], admits: Admits, name: str, original_sizes: Mapping[str, int]
) -> tuple[Bundle, ...]:
    """Leave the counts that a step of a table admits for every group of a bundle."""
    found = []
    for bundle in bundles:
        widths = [(size, original_sizes.get(name, size)) for name, size in zip(bundle.names, bundle.sizes, strict=True)]
        counts = [one for one in bundle.counts if not one or all(admits(size - one, whole) for size, whole in widths)]
        found.append(replace(bundle, counts=tuple(counts), obstacle=f"{bundle.obstacle}, widths that {name} rewards"))
    return tuple(found)


def _is_multiple(bundle: Bundle, removed: int, block: int) -> bool:
    return all((size - removed) % block == 0 for size in bundle.sizes)


def _kept(bundle: Bundle, removed: int) -> dict[str, int]:
    return {name: size - removed for name, size in zip(bundle.names, bundle.sizes, strict=True)}
