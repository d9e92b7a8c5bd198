"""Come down to a predicted latency by the widths that a profile rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pruning.choosing.landing import Budget, Landing, joined
from pruning.choosing.rounding import faster_counts
from pruning.errors import TargetError
from pruning.structure.bundles import Bundle
from pruning.structure.plan import Plan
from pruning.timing.latency_cost import LatencyCost

_ATTEMPTS = 8


def plan_for_latency(
    bundles: Sequence[Bundle],
    cost: LatencyCost,
    at_most: float,
    name: str,
    choose: Callable[[Landing], Plan],
    beside: Sequence[Budget] = (),
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
        beside: other targets to meet along with it.

    Raises:
        TargetError: no plan was found that meets it.
    """
    offered, goal = faster_counts(bundles, cost), at_most
    for _ in range(_ATTEMPTS):
        plan = choose(Landing(offered, joined([*beside, Budget(name, cost, goal)])))
        found = cost.predict({group: size - len(plan.removed[group]) for group, size in plan.sizes.items()})
        if found <= at_most * (1 + 1e-9):
            return plan
        goal *= at_most / found
    raise TargetError(
        f"{name} can't be met: {found:.4g} ms is the nearest predicted, {at_most:.4g} ms was asked; give other limits"
    )
