"""Latencies of networks against the one that they came from, measured in turns, and what a profile predicts of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

import pruning
from pruning.io.onnx import export_onnx
from pruning.latency.measure import answer, measure_latency
from pruning.latency.microbenchmarks import ask
from pruning.latency.profile import LatencyCost, Profiles

BATCHES = (1, 32)
_ROUNDS = {1: 81, 32: 15}


@dataclass(frozen=True)
class Time:
    """A network's latency at one batch size, one thread.

    Attributes:
        network: What it is.
        batch_size: Samples per pass.
        macs_share: Its MACs over the baseline's.
        share: Its latency over the baseline's: of lower quartiles, which other programs disturb least.
        spread: Half the distance of the quartiles over the median, of the noisier of the two.
        predicted: The same share by the profile.
        baseline_ms: Lower quartile of the baseline.
        least: Share predicted of the fastest network found with as many MACs; None where none was looked for.
    """

    network: str
    batch_size: int
    macs_share: float
    share: float
    spread: float
    predicted: float
    baseline_ms: float
    least: float | None = None


def profiled(groups: pruning.Groups, batch_sizes: Iterable[int] = BATCHES) -> Profiles:
    """Profile a network on this machine, with one thread."""
    with tempfile.TemporaryDirectory() as folder:
        ask(groups, folder, batch_sizes=tuple(batch_sizes))
        return answer(folder)


def race(baseline: nn.Module, networks: Mapping[str, nn.Module], example: Tensor, profiles: Profiles) -> list[Time]:
    """Measure networks against their baseline, all of them in turns, at every batch size that was profiled.

    Args:
        baseline: The network that was profiled.
        networks: Name -> a network narrowed from it.
        example: One sample [1, ...].
        profiles: Of the baseline.
    """
    groups = {name: pruning.find_groups(one, example) for name, one in networks.items()}
    whole_macs = pruning.count_macs(pruning.find_groups(baseline, example))
    times = []
    with tempfile.TemporaryDirectory() as folder:
        files = {
            name: export_onnx(one, example, Path(folder) / f"{number}.onnx")
            for number, (name, one) in enumerate({"": baseline, **networks}.items())
        }
        for profile in profiles.profiles:
            size = profile.runtime.batch_size
            whole, *found = measure_latency(files, batch_sizes=[size], rounds=_ROUNDS.get(size, 31))
            for one in found:
                predicted = LatencyCost(groups[one.model], profile).predict({}) / profile.whole_ms
                spreads = [(m.upper_quartile_ms - m.lower_quartile_ms) / 2 / m.median_ms for m in (whole, one)]
                times.append(
                    Time(
                        one.model,
                        size,
                        pruning.count_macs(groups[one.model]) / whole_macs,
                        one.lower_quartile_ms / whole.lower_quartile_ms,
                        max(spreads),
                        predicted,
                        whole.lower_quartile_ms,
                    )
                )
    return times
