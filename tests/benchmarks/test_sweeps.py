"""Both sweeps and their plans, on a small network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.speed import sweeps
from zoo.datasets import digits
from zoo.datasets.splits import Splits
from zoo.models import vgg11


def _half() -> Splits:
    """Every second of the scanned digits."""
    whole = digits()
    train, validation, test = (samples.take(torch.arange(0, len(samples), 2)) for _, samples in whole.named())
    return Splits(train, validation, test, classes=whole.classes)


@pytest.mark.thorough
def test_both_sweeps_lead_to_plans_that_meet_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = sweeps.Network(_half, lambda data: vgg11((1, 8, 8), data.num_classes, width=8))
    monkeypatch.setitem(sweeps.NETWORKS, "small", small)
    monkeypatch.setattr(sweeps, "_SEEDS", 1)
    full, cheap = sweeps.compare("small", tmp_path, epochs=1)
    assert (full.sweep, cheap.sweep) == ("full", "knee")
    assert 8 * full.groups < full.evaluations <= len(sweeps.RATES) * full.groups
    assert cheap.evaluations < 0.5 * full.evaluations
    for found in (full, cheap):
        assert 0.4 < found.macs <= 0.5
        assert found.tuned > 0.5
