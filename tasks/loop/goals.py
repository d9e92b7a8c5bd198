"""What the target asks of the baseline, and how near to it a model has come: one number for the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pruning.errors import SettingsError
from tasks.measured import Measured
from tasks.params.prune_parts import Target

LATENCY = ("latency_reduction", "latency_ms")


@dataclass(frozen=True)
class Goals:
    """The target as reductions.

    Where several are asked for, all rise to their ends together: the loop's goal is the largest of them.

    Attributes:
        asked: Kind of target -> the reduction that it comes to, against the baseline.
    """

    asked: Mapping[str, float]

    @property
    def total(self) -> float:
        """The loop's last goal."""
        return max(self.asked.values())

    def at(self, goal: float) -> dict[str, float]:
        """Return the reduction of each kind at a goal of the loop."""
        return {kind: goal * (share / self.total) for kind, share in self.asked.items()}

    def reached(self, reductions: Mapping[str, float]) -> float:
        """Return the goal of the loop that a model has reached: of several, the one that is furthest behind."""
        return min(reductions[kind] * (self.total / share) for kind, share in self.asked.items())


def goals_of(target: Target, baseline: Measured, baseline_ms: float | None) -> Goals:
    """Return what a target comes to.

    Args:
        target: Of the settings.
        baseline: What the reductions are of.
        baseline_ms: Its predicted latency, where the target names one.

    Raises:
        SettingsError: The target is no reduction of this baseline, or names a latency and there is no profile.
    """
    asked = dict(target.shares)
    if target.size_bytes is not None:
        asked["size_bytes"] = 1 - target.size_bytes / baseline.size_bytes
    if target.names_latency and baseline_ms is None:
        raise SettingsError(
            "prune.target names a latency, but there is no profile to predict it from; give profile.batch_sizes, or a "
            "profile.path (the log of `python -m flows.profile` says why none could be measured)"
        )
    if target.latency_ms is not None and baseline_ms is not None:
        asked["latency_ms"] = 1 - target.latency_ms / baseline_ms
    for kind, share in asked.items():
        if share <= 0:
            found = f"{baseline.size_bytes:,} bytes" if kind == "size_bytes" else f"{baseline_ms:.4g} ms"
            raise SettingsError(
                f"prune.target.{kind} is {getattr(target, kind):,}, but the baseline takes {found} already; "
                "ask for less"
            )
    return Goals(asked)
