"""How long a model of the loop takes: predicted from the profile, and measured where the profile is of this machine."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

import pruning
from pruning.files.export import export_onnx
from pruning.timing.latency import measure_latency
from pruning.timing.profiling import runtime_here
from tasks.measurements import latency_cost
from tasks.params.settings import Settings
from tasks.workspace import Workspace

TOLERANCE = 0.02
"""Of a share of the baseline's latency: measured ones that differ by less from what was asked count as it."""

_ROUNDS = 41
_BUSY = 0.1
"""Of the median: on a machine that is busier, long passes are interrupted more often than short ones, and the ratio of
two times says little."""

log = logging.getLogger("secateur")


@dataclass(frozen=True)
class Quickness:
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
        """Return by how much the latency came down; one measured within tolerance of what was asked counts as it."""
        share = self.predicted_share * (self.ratio or 1.0)
        return asked if 1 - asked < share <= (1 - asked) * (1 + TOLERANCE) else 1 - share


def quickness_of(
    model: nn.Module, baseline: nn.Module, settings: Settings, workspace: Workspace, example: Tensor, *, measured: bool
) -> Quickness | None:
    """Return a model's latency against the baseline's; None where no latency is asked for.

    Args:
        model: Narrowed from the baseline.
        baseline: The model before pruning.
        settings: Name the target.
        workspace: The profile lies in it, among the measurements.
        example: One sample [1, ...].
        measured: Whether to measure too; that needs a profile of this machine.
    """
    if not settings.prune.target.names_latency:
        return None
    cost = latency_cost(workspace, pruning.find_groups(model, example))
    assert cost is not None, "the loop was opened with a profile"
    runtime, whole_ms = cost.profile.runtime, cost.profile.whole_ms
    predicted = cost.predict({})
    here = runtime_here(provider=runtime.provider, num_threads=runtime.num_threads, batch_size=runtime.batch_size)
    if not measured or runtime != here:
        return Quickness(predicted, predicted / whole_ms, None)
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
        return Quickness(predicted, predicted / whole_ms, None)
    share = now.lower_quartile_ms / whole.lower_quartile_ms
    ratio = share / (predicted / whole_ms)
    log.info("prune: measured at %.3f of the baseline's latency, predicted %.3f", share, predicted / whole_ms)
    return Quickness(predicted, predicted / whole_ms, ratio if abs(ratio - 1) > TOLERANCE else 1.0)
