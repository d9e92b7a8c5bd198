"""The benchmark of the analysis: both sweeps and their plans, on a small network."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import analysis
from zoo.datasets import digits
from zoo.models import resnet20


def test_both_sweeps_lead_to_plans_that_meet_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = analysis.Network(lambda: digits(), lambda data: resnet20((1, 8, 8), data.num_classes, width=8))
    monkeypatch.setitem(analysis.NETWORKS, "small", small)
    full, cheap = analysis.compare("small", tmp_path, epochs=1)
    assert (full.sweep, cheap.sweep) == ("full", "knee")
    assert 8 * full.groups < full.evaluations <= len(analysis.RATES) * full.groups
    assert cheap.evaluations < 0.5 * full.evaluations
    for found in (full, cheap):
        assert 0.4 < found.macs <= 0.5
        assert found.tuned > 0.5
    assert "| small | knee |" in analysis.as_markdown([full, cheap], {1: 10.0, 2: 5.0})
    assert "(0.50)" in analysis.as_markdown([full, cheap], {1: 10.0, 2: 5.0})
