"""One-step search: draw many ways to share a target among the groups, judge each quickly, keep the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from pruning.choosing.landing import Landing
from pruning.errors import SettingsError
from pruning.evaluation import Progress
from pruning.structure.groups import Groups
from pruning.structure.plan import Plan

Judge = Callable[[Plan], float]
"""plan -> how good the model is that it leaves; the highest wins."""


def search(
    groups: Groups,
    landing: Landing,
    orders: Mapping[str, Sequence[int]],
    judge: Judge,
    *,
    candidates: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Return the best of so many plans that meet a target.

    A candidate draws a rate for each bundle of groups, uniform over what the bundle may give, and all rates are brought
    to the target by a common factor; then single channels go or stay so that it is met closely. The first candidate
    draws nothing: it gives the same share of every group.

    Source: Li et al. 2020 (EagleEye), arXiv 2007.02491: candidates are judged after their batch norms were measured
    anew, which tells their rank after fine-tuning; that is the caller's `judge`.

    Args:
        groups: found on the model to be pruned.
        landing: bundles and target.
        orders: for each group its channels, the first to go first.
        judge: called once for each candidate.
        candidates: how many.
        seed: of the rates.
        progress: told after each candidate.

    Raises:
        TargetError: the target can't be met.
        SettingsError: there are no candidates.
    """
    if candidates < 1:
        raise SettingsError(f"candidates is {candidates}; expected 1 or more")
    landing.lowest()
    generator = torch.Generator().manual_seed(seed)
    seen: dict[tuple[int, ...], float] = {}
    for number in range(candidates):
        drawn = torch.rand(len(landing.bundles), generator=generator, dtype=torch.float64).tolist()
        levels = tuple(_to_target(landing, drawn if number else [1.0] * len(drawn)))
        if levels not in seen:
            seen[levels] = judge(landing.plan(groups, levels, orders))
        if progress is not None:
            progress(number + 1, candidates)
    best = max(seen, key=lambda levels: (seen[levels], [-level for level in levels]))
    return landing.plan(groups, best, orders)


def _to_target(landing: Landing, rates: Sequence[float]) -> list[int]:
    """Scale rates by the smallest common factor that meets the target."""

    def levels_at(factor: float) -> list[int]:
        return [
            bundle.nearest_level(min(1.0, factor * rate) * bundle.counts[-1])
            for bundle, rate in zip(landing.bundles, rates, strict=True)
        ]

    def rate_after(index: int, level: int) -> float:
        bundle = landing.bundles[index]
        return bundle.counts[level] / max(bundle.counts[-1] * rates[index], 1e-9)

    highest = 1.0 / max(min(rates), 1e-3)
    if not landing.met(levels_at(highest)):
        return landing.settle(landing.lowest(), rate_after)
    return landing.settle(landing.scale(levels_at, highest)[1], rate_after)
