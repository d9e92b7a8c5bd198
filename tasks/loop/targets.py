"""The target as reductions of the baseline, where a step starts, and how far a model has come, in milliseconds too."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

import pruning
from pruning.containers import Inputs
from pruning.errors import SettingsError
from pruning.io.onnx import export_onnx
from pruning.latency.measure import measure_latency, runtime_here
from pruning.latency.profile import Profiles
from tasks.config.schema import Settings
from tasks.config.target_schema import Target
from tasks.loop.measurements import latency_cost
from tasks.models import ModelMetrics
from tasks.terminal import command_line
from tasks.workspace import Workspace

LATENCY = ("latency_reduction", "latency_ms")


@dataclass(frozen=True)
class Goals:
    """The target as reductions.

    Several targets rise together, each to its own end; the loop's goal is the largest of them.

    Attributes:
        asked: Kind of target -> its reduction against the baseline.
    """

    asked: Mapping[str, float]

    @property
    def total(self) -> float:
        """The loop's last goal."""
        return max(self.asked.values())

    @property
    def name_latency(self) -> bool:
        """Whether a latency is among them."""
        return any(kind in self.asked for kind in LATENCY)

    def at(self, goal: float) -> dict[str, float]:
        """Return the reduction of each kind at a goal of the loop."""
        return {kind: goal * (share / self.total) for kind, share in self.asked.items()}

    def reached(self, reductions: Mapping[str, float]) -> float:
        """Return the goal that a model has reached; with several targets, the one furthest behind counts."""
        return min(reductions[kind] * (self.total / share) for kind, share in self.asked.items())


def goals_of(target: Target, baseline: ModelMetrics, baseline_ms: float | None) -> Goals:
    """Convert a target to reductions of the baseline.

    Args:
        target: Of the settings.
        baseline: The model before pruning.
        baseline_ms: Its predicted latency, if the target names one.

    Raises:
        SettingsError: The target is no reduction of this baseline, or names a latency and there is no profile.
    """
    asked = dict(target.shares)
    check_latency(target, baseline_ms)
    if target.size_bytes is not None:
        asked["size_bytes"] = 1 - target.size_bytes / baseline.size_bytes
        if asked["size_bytes"] <= 0:
            raise _met_already(f"size_bytes is {target.size_bytes:,}", f"{baseline.size_bytes:,} bytes")
    if target.latency_ms is not None and baseline_ms is not None:
        asked["latency_ms"] = 1 - target.latency_ms / baseline_ms
    return Goals(asked)


def check_latency(target: Target, baseline_ms: float | None) -> None:
    """Check that a latency that is asked for is below the baseline's, which a profile tells before anything is trained.

    Args:
        target: Of the settings.
        baseline_ms: The baseline's predicted latency; None without a profile.

    Raises:
        SettingsError: The baseline meets it already, or there is no profile.
    """
    if target.names_latency and baseline_ms is None:
        raise SettingsError(
            "prune.target names a latency, but there is no profile to predict it from; give profile.batch_sizes, or a "
            f"profile.path (the log of {command_line('run profile')} says why none could be measured)"
        )
    if target.latency_ms is not None and baseline_ms is not None and target.latency_ms >= baseline_ms:
        raise _met_already(f"latency_ms is {target.latency_ms:,}", f"{baseline_ms:.4g} ms")


def _met_already(asked: str, found: str) -> SettingsError:
    return SettingsError(f"prune.target.{asked}, but the baseline takes {found} already; ask for less")


_HOW = {
    "profile.path": "the profile that decides the widths was measured by this run itself{place}",
    "prune.measure_latency": "steps that are accepted correct the next ones by their measured latency, where the "
    "profile is of the machine that runs them",
}
_INSTEAD = {
    "profile.path": "commit the profile that was measured (profile/profile.json in the workspace) and name it under "
    "profile.path",
    "prune.measure_latency": "set prune.measure_latency to false",
}


def clock_warning(shaped_by: Sequence[str], profiles: Profiles) -> str | None:
    """Say how a clock shapes the result, and how to get the same bytes every time; None if none does.

    Args:
        shaped_by: The settings that let it, see `Settings.shaped_by_the_clock`.
        profiles: What the loop goes by.
    """
    if not shaped_by:
        return None
    place = f" ({profiles.profiles[0].runtime.described})" if profiles.profiles else ""
    how = "; ".join(_HOW[name].format(place=place) for name in shaped_by)
    return (
        f"The result depends on this machine's clock: {how}. For the same bytes every time, "
        f"{', and '.join(_INSTEAD[name] for name in shaped_by)}."
    )


TOLERANCE = 0.02
"""A measured share of the baseline's latency that differs by less than this from the asked one counts as equal."""

_ROUNDS = 41
_BUSY = 0.1
"""Largest spread, relative to the median: on a busier machine long passes are interrupted more often than short ones,
and the ratio of two times says little."""

log = logging.getLogger("secateur")


@dataclass(frozen=True)
class LatencyEstimate:
    """A model's latency against the baseline's.

    Attributes:
        predicted_ms: From the profile.
        predicted_share: Of the baseline's predicted latency.
        ratio: The measured share over the predicted one; 1 where they differ by no more than `TOLERANCE`, None where
            nothing was measured, or the machine was too busy.
    """

    predicted_ms: float
    predicted_share: float
    ratio: float | None

    def reduction(self, asked: float) -> float:
        """Return the reduction of the latency; one measured within the tolerance of the goal counts as the goal."""
        share = self.predicted_share * (self.ratio or 1.0)
        return asked if 1 - asked < share <= (1 - asked) * (1 + TOLERANCE) else 1 - share


def estimate_latency(
    model: nn.Module, baseline: nn.Module, settings: Settings, workspace: Workspace, example: Inputs, *, measured: bool
) -> LatencyEstimate:
    """Return a model's latency against the baseline's.

    Args:
        model: Narrowed from the baseline.
        baseline: The model before pruning.
        settings: Say how models are exported.
        workspace: Holds the profile, among the measurements.
        example: One sample [1, ...].
        measured: Whether to measure too; that needs a profile of this machine.
    """
    cost = latency_cost(workspace, pruning.find_groups(model, example))
    assert cost is not None, "the loop was opened with a profile"
    runtime, whole_ms = cost.profile.runtime, cost.profile.whole_ms
    predicted = cost.predict({})
    here = runtime_here(provider=runtime.provider, num_threads=runtime.num_threads, batch_size=runtime.batch_size)
    if not measured or runtime != here:
        return LatencyEstimate(predicted, predicted / whole_ms, None)
    with tempfile.TemporaryDirectory() as folder:
        files = {
            name: export_onnx(one, example, Path(folder) / f"{name}.onnx", opset=settings.export.opset)
            for name, one in (("baseline", baseline), ("model", model))
        }
        whole, now = measure_latency(
            files,
            inputs=example,
            batch_sizes=[runtime.batch_size],
            num_threads=runtime.num_threads,
            provider=runtime.provider,
            rounds=_ROUNDS,
        )
    spread = max((one.upper_quartile_ms - one.lower_quartile_ms) / 2 / one.median_ms for one in (whole, now))
    if spread > _BUSY:
        log.warning(
            "prune: the machine is too busy to measure latency (quartiles %.0f %% off the median); "
            "the prediction counts",
            100 * spread,
        )
        return LatencyEstimate(predicted, predicted / whole_ms, None)
    share = now.lower_quartile_ms / whole.lower_quartile_ms
    ratio = share / (predicted / whole_ms)
    log.info("prune: measured at %.3f of the baseline's latency, predicted %.3f", share, predicted / whole_ms)
    return LatencyEstimate(predicted, predicted / whole_ms, ratio if abs(ratio - 1) > TOLERANCE else 1.0)
