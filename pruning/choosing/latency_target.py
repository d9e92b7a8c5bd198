"""Come down to a predicted latency by the widths that a profile rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pruning.choosing.landing import Landing, Target
from pruning.errors import TargetError
from pruning.structure.bundles import Bundle
from pruning.structure.plan import Plan
from pruning.timing.latency_cost import LatencyCost

_ATTEMPTS = 8


def rewarded(bundles: Sequence[Bundle], cost: LatencyCost) -> tuple[Bundle, ...]:
    """Leave to each bundle the counts at which the model is faster than at every smaller one, all others being whole.

    No block size is assumed: where the profile shows steps of 16, what is left are multiples of 16.
    """
    found = []
    for bundle in bundles:
        fastest, counts = float("inf"), []
        for removed in bundle.counts:
            kept = {name: size - removed for name, size in zip(bundle.names, bundle.sizes, strict=True)}
            ms = cost.predict(kept)
            if ms < fastest:
                fastest = ms
                counts.append(removed)
        found.append(replace(bundle, counts=tuple(counts), obstacle=f"{bundle.obstacle}, widths that gain speed"))
    return tuple(found)


def plan_for_latency(
    bundles: Sequence[Bundle], cost: LatencyCost, at_most: float, name: str, choose: Callable[[Landing], Plan]
) -> Plan:
    """Let a way of choosing land on a latency, and see to it that the plan is predicted to meet it as it is.

    Choosing follows the lower envelope. Where a plan's own widths don't lie on it, the envelope has to come down
    further, by the ratio of the two.

    Args:
        bundles: what may go.
        cost: predicts.
        at_most: milliseconds per batch.
        name: what messages call the target.
        choose: makes a plan that meets a landing's target.

    Raises:
        TargetError: the model meets the target as it is, or no plan was found that does.
    """
    now = cost.predict({})
    if now <= at_most:
        raise TargetError(f"{name} is met already: the model is predicted to take {now:.4g} ms; ask for less")
    offered, goal = rewarded(bundles, cost), at_most
    for _ in range(_ATTEMPTS):
        plan = choose(Landing(offered, Target(name, cost, goal)))
        found = cost.predict({group: size - len(plan.removed[group]) for group, size in plan.sizes.items()})
        if found <= at_most * (1 + 1e-9):
            return plan
        goal *= at_most / found
    raise TargetError(
        f"{name} can't be met: {found:.4g} ms is the nearest predicted, {at_most:.4g} ms was asked; give other limits"
    )
