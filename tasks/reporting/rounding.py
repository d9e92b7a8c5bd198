"""What rounding widths to those that the runtime is fast at cost and brought."""

from __future__ import annotations

from collections.abc import Mapping

import pruning
from pruning.latency.profile import LatencyCost
from pruning.plan.plan import Cost
from tasks.loop.ledger import Row
from tasks.workspace import Json


def rounding_of(
    row: Row | None, kept: Mapping[str, int], baseline: pruning.Groups, latency: LatencyCost | None
) -> Json | None:
    """Compare the dense model with the one that the same step would have given without rounding.

    Args:
        row: Of the step; None where none was accepted.
        kept: Channels of each group of the dense model.
        baseline: Groups of the baseline.
        latency: Predicts for the baseline's groups, where there is a profile.

    Returns:
        Goal, MACs and predicted milliseconds of both; None where nothing was rounded.
    """
    if row is None or row.unrounded is None:
        return None
    cost = Cost(baseline)
    whole = cost.macs({})
    found = {
        "goal": row.goal,
        "mac_reduction": 1 - cost.macs(kept) / whole,
        "unrounded_mac_reduction": 1 - cost.macs(row.unrounded) / whole,
    }
    if latency is not None:
        found |= {
            "baseline_ms": latency.predict({}),
            "predicted_ms": latency.predict(kept),
            "unrounded_ms": latency.predict(row.unrounded),
        }
    return found


def describe_rounding(found: Json) -> str:
    """Say it in a sentence."""
    text = (
        f"Widths are rounded to those that the runtime is fast at: {found['mac_reduction']:.1%} of the MACs were "
        f"removed; without rounding the last step, {found['unrounded_mac_reduction']:.1%}."
    )
    if "predicted_ms" in found:
        predicted, unrounded, whole = (found[name] for name in ("predicted_ms", "unrounded_ms", "baseline_ms"))
        text += f" Predicted latency {predicted:.3g} ms, without rounding {unrounded:.3g} ms, baseline {whole:.3g} ms."
    return text
