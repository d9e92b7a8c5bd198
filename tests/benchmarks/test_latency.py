"""The latency benchmark: its tables and its plot."""

from __future__ import annotations

from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from benchmarks.speed import shares
from benchmarks.speed.duel import Outcome
from benchmarks.speed.race import Time
from benchmarks.speed.shares import fastest
from benchmarks.speed.sweeps import Found, Wall
from benchmarks.speed.tables import as_markdown, draw
from pruning import count_macs
from pruning.latency.profile import LatencyCost
from pruning.plan.plan import Cost
from tests.pruning.latency.test_predict import network, synthetic


def found() -> dict[str, Any]:
    times = [asdict(Time("narrow", size, 0.5, 0.55, 0.02, 0.5, 2.0, 0.49)) for size in (1, 32)]
    tuned = (0.96, 0.98)
    duel = [asdict(Outcome("ours", seed, 0.49, 0.5, 0.4, 0.95, one, 0.975, 0.25)) for seed, one in enumerate(tuned)]
    about = {"measured": "2026-01-01", "on": "a machine"}
    return {
        "shares": {"rows": times, **about},
        "predictions": {"rows": times, **about},
        "duel": {"rows": duel, **about},
        "sweeps": {"rows": [asdict(Found("small", "knee", 4, 12, 3.5, 0.98, 0.5, 0.96, 0.97))], **about},
        "walls": {"rows": [asdict(Wall(1, 20.0)), asdict(Wall(2, 11.0))], **about},
    }


def test_tables_show_time_over_macs_and_over_the_prediction() -> None:
    table = as_markdown(found())
    assert "| narrow | 32 | 0.500 | 0.550 | 0.500 | 1.10 | 1.10 | 2% | 0.98 |" in table
    assert (
        "| ours | 2 | 0.490 ± 0.000 | 0.500 ± 0.000 | 0.400 ± 0.000 | 25% | 95.00% ± 0.00% | 97.00% ± 1.41% |" in table
    )
    assert "| small | knee | 4 | 12 | 3.5 s | 50.00% | 96.00% | 97.00% | 98.00% |" in table
    assert "| 2 | 11.0 s | 0.55 |" in table
    assert table.count("2026-01-01, a machine.") == 5


def test_parts_that_were_not_measured_are_left_out(tmp_path: Path) -> None:
    only = {"shares": found()["shares"]}
    assert "Predictions" not in as_markdown(only)
    draw(only, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_fastest_widths_are_the_best_of_all_where_all_can_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "_STEPS", 100)  # of 16 networks
    monkeypatch.setattr(shares, "_RESTARTS", 2)
    groups = network()
    cost, macs, whole = LatencyCost(groups, synthetic()), Cost(groups).macs, count_macs(groups)
    first, second = (group.name for group in groups)
    tried = [{first: i, second: o} for i, o in product(range(16, 65, 16), repeat=2)]
    for asked in tried:
        share = macs(asked) / whole
        best = min(cost.predict(kept) for kept in tried if 0.97 * share <= macs(kept) / whole <= share)
        assert fastest(groups, cost, share, 0.75) == pytest.approx(best / cost.predict({}))
