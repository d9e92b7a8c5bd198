"""Widths that hardware rewards: as versioned tables, as a profile measures them, and plans on them.

A table is measured once, and says where. What a machine measures by itself is a profile (`pruning.latency`), which is
an input of whoever hands it over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pruning.allocation.budget import Budget, BudgetSolver, joined
from pruning.errors import OutOfReachError, SettingsError, unknown_name
from pruning.latency.profile import LatencyCost
from pruning.plan.constraints import TiedGroups
from pruning.plan.plan import Plan

Admits = Callable[[int, int], bool]
"""(channels that a group keeps, channels that it has in the original model) -> whether that count is admitted."""

PORTABLE = "portable"

_AVX2_TIMES = {8: 2.40, 16: 1.40, 24: 1.09, 32: 1.02, 40: 1.26, 48: 1.11, 56: 1.02, 64: 1.00}
"""Channels that a convolution makes -> time for each of them, 64 channels = 1."""

_AVX2_PERIOD = 64


@dataclass(frozen=True)
class KernelWidths:
    """The counts that one kind of kernel rewards.

    Attributes:
        name: what settings call it.
        source: where the figures come from.
        steps: which counts are admitted, the most rewarded first; a later step is taken where an earlier one can't
            reach a target.
    """

    name: str
    source: str
    steps: tuple[Admits, ...]


def find_kernel_widths(name: str) -> KernelWidths:
    """Return the table of a name.

    Raises:
        SettingsError: There is none.
    """
    if name not in _TABLES:
        raise SettingsError(unknown_name("target of rounding", name, _TABLES))
    return _TABLES[name]


def kernel_widths_names() -> tuple[str, ...]:
    """Return the names of all tables, the default first."""
    return tuple(_TABLES)


def _multiples(block: int) -> Admits:
    """Admit multiples of a block, of 8 in groups narrower than four blocks."""

    def admits(kept: int, original: int) -> bool:
        return kept % (8 if original < 4 * block else block) == 0

    return admits


def _within(limit: float) -> Admits:
    """Admit multiples of 8 at which a channel takes at most so many times as long as one of 64."""

    def admits(kept: int, _original: int) -> bool:
        whole, rest = divmod(kept, _AVX2_PERIOD)
        taken = whole * _AVX2_PERIOD + (rest * _AVX2_TIMES[rest] if rest in _AVX2_TIMES else 0.0)
        return kept % 8 == 0 and taken <= limit * kept

    return admits


_TABLES = {
    one.name: one
    for one in (
        KernelWidths(
            name=PORTABLE,
            source="Vectors of 32-bit floats hold 8 (AVX2) or 16 (AVX-512), and the kernels of oneDNN, of ONNX Runtime "
            "and of GPUs' matrix units work on blocks of 8 or 16 channels: multiples of 16 fill both, multiples of 8 "
            "lose least in groups where 16 is too coarse. Not measured: no machine is preferred.",
            steps=(_multiples(16), _multiples(8)),
        ),
        KernelWidths(
            name="onnxruntime_x86_avx2",
            source="2026-11-21, ONNX Runtime 1.31.1, CPUExecutionProvider, one thread, batch 1, AMD EPYC 25/1/1 "
            "(x86_64, AVX2): a 3 × 3 convolution of 64 channels on 16 × 16, by the channels that it makes "
            "(docs/latency.md). Above 64 the pattern begins anew, and what it costs is shared by more channels.",
            steps=(_within(1.15), _within(1.3), _within(1.5), _within(float("inf"))),
        ),
    )
}


_SURCHARGES = (1.1, 1.2, 1.4, 2.0, float("inf"))

_log = logging.getLogger(__name__)


def faster_counts(bundles: Sequence[TiedGroups], cost: LatencyCost) -> tuple[TiedGroups, ...]:
    """Leave to each bundle the counts at which the model is faster than at every smaller one, all others being whole.

    Where the profile shows steps of 16, what is left are multiples of 16. Of a bundle that can come to multiples of the
    profile's granule, others are not looked at.
    """
    found = []
    for bundle in bundles:
        fastest, counts = float("inf"), []
        multiples = [one for one in bundle.counts if _is_multiple(bundle, one, cost.profile.granule)]
        for removed in sorted({0, *multiples}) if any(multiples) else bundle.counts:
            ms = cost.predict(bundle.kept(removed))
            if ms < fastest:
                fastest = ms
                counts.append(removed)
        found.append(replace(bundle, counts=tuple(counts), obstacle=f"{bundle.obstacle}, widths that gain speed"))
    return tuple(found)


def rounded(
    bundles: Sequence[TiedGroups], target: Budget, by: KernelWidths | LatencyCost, original_sizes: Mapping[str, int]
) -> BudgetSolver:
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
        solver = BudgetSolver(rung, target)
        if solver.in_reach():
            if number:
                _log.info(
                    "%s is out of reach of the widths that the runtime rewards most; others are allowed", target.name
                )
            return solver
    solver = BudgetSolver(bundles, target)
    if solver.in_reach():  # otherwise the solver says what stands in the way
        _log.warning("%s is out of reach of rounded widths; they are not rounded", target.name)
    return solver


def _light(bundles: Sequence[TiedGroups], cost: LatencyCost, limit: float) -> tuple[TiedGroups, ...]:
    """Leave the counts whose surcharge is within a limit."""
    found = []
    for bundle in bundles:
        counts = [
            removed
            for removed in bundle.counts
            if not removed
            or (_is_multiple(bundle, removed, cost.profile.granule) and cost.surcharge(bundle.kept(removed)) <= limit)
        ]
        found.append(replace(bundle, counts=tuple(counts), obstacle=f"{bundle.obstacle}, widths that gain speed"))
    return tuple(found)


def _admitted(
    bundles: Sequence[TiedGroups], admits: Admits, name: str, original_sizes: Mapping[str, int]
) -> tuple[TiedGroups, ...]:
    """Leave the counts that a step of a table admits for every group of a bundle."""
    found = []
    for bundle in bundles:
        whole = {name: original_sizes.get(name, size) for name, size in zip(bundle.names, bundle.sizes, strict=True)}
        counts = [
            one
            for one in bundle.counts
            if not one or all(admits(size, whole[name]) for name, size in bundle.kept(one).items())
        ]
        found.append(replace(bundle, counts=tuple(counts), obstacle=f"{bundle.obstacle}, widths that {name} rewards"))
    return tuple(found)


def _is_multiple(bundle: TiedGroups, removed: int, block: int) -> bool:
    return all(size % block == 0 for size in bundle.kept(removed).values())


_ATTEMPTS = 8


def plan_for_latency(
    bundles: Sequence[TiedGroups],
    cost: LatencyCost,
    at_most: float,
    name: str,
    choose: Callable[[BudgetSolver], Plan],
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
        OutOfReachError: no plan was found that meets it.
    """
    offered, goal = faster_counts(bundles, cost), at_most
    for _ in range(_ATTEMPTS):
        plan = choose(BudgetSolver(offered, joined([*beside, Budget(name, cost, goal)])))
        found = cost.predict({group: size - len(plan.removed[group]) for group, size in plan.sizes.items()})
        if found <= at_most * (1 + 1e-9):
            return plan
        goal *= at_most / found
    raise OutOfReachError(
        f"{name} can't be met: {found:.4g} ms is the nearest predicted, {at_most:.4g} ms was asked; give other limits",
        f"{found:.4g} ms is the nearest predicted",
    )
