from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tasks.report import widths
from tasks.showing.comparison import as_markdown, as_text, compare, compare_latency, nothing_accepted
from tasks.showing.page import render
from tasks.workspace import Workspace, write_json


def summary(accuracy: float = 0.95, macs: int = 50, **changed: Any) -> Any:
    before = {"accuracy": 0.95, "macs": 100, "parameters": 100, "size_bytes": 400}
    after = {"accuracy": accuracy, "macs": macs, "parameters": macs, "size_bytes": 4 * macs}
    return {
        "measure": "accuracy",
        "kind": "structured",
        "test_samples": 1000,
        "baseline": before,
        "dense": after,
        "accuracy_drop": 0.95 - accuracy,
        "attempts": 3,
        "accepted": 1,
        "stopped_because": "target reached",
        **changed,
    }


def row(model: str, median: float, spread: float = 0.1, predicted: float | None = None) -> dict[str, Any]:
    quartiles = {"lower_quartile_ms": median * (1 - spread), "upper_quartile_ms": median * (1 + spread)}
    case = {"model": model, "batch_size": 1, "threads": 1, "num_rounds": 5}
    return {**case, "median_ms": median, "predicted_ms": predicted, **quartiles}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def latency(workspace: Workspace, *rows: dict[str, Any]) -> Any:
    workspace.folder("latency").mkdir()
    write_json(workspace.folder("latency") / "latency.json", {"latencies": list(rows)})
    return compare_latency(workspace)


@pytest.mark.parametrize(
    ("accuracy", "trend"), [(0.95, "same"), (0.94, "same"), (0.96, "same"), (0.90, "worse"), (0.99, "better")]
)
def test_an_accuracy_is_better_or_worse_only_beyond_chance(accuracy: float, trend: str) -> None:
    line = compare(summary(accuracy))[0]
    assert line.trend == trend
    assert line.remark.startswith("chance: ±")


def test_accuracy_on_more_samples_tells_more() -> None:
    assert compare(summary(0.94, test_samples=100))[0].trend == "same"
    assert compare(summary(0.94, test_samples=100_000))[0].trend == "worse"


@pytest.mark.parametrize(("macs", "trend"), [(50, "better"), (100, "same"), (120, "worse")])
def test_a_cost_is_better_where_it_is_less(macs: int, trend: str) -> None:
    assert [line.trend for line in compare(summary(macs=macs))[1:]] == [trend] * 3


@pytest.mark.parametrize(("median", "trend"), [(0.5, "better"), (0.95, "same"), (1.05, "same"), (2.0, "worse")])
def test_a_latency_is_better_or_worse_only_beyond_the_quartiles(
    workspace: Workspace, median: float, trend: str
) -> None:
    (line,) = latency(workspace, row("baseline", 1.0), row("dense", median))
    assert line.trend == trend


def test_spread_of_a_latency_stands_wherever_it_is_shown(workspace: Workspace) -> None:
    lines = latency(workspace, row("baseline", 6.0, 0.5, predicted=3.0), row("dense", 1.0, 0.5, predicted=1.5))
    page = render("net on data", lines, [], {}, [])
    for text in (as_text(lines), as_markdown(lines), page.replace("\N{NO-BREAK SPACE}", " ")):
        assert "1.000 ms [0.500, 1.500]" in text
        assert "6.00 × as fast" in text
        assert "quartiles 2.00–18.00, 2.00 predicted" in text


def test_cards_are_coloured_by_what_happened(workspace: Workspace) -> None:
    lines = [*compare(summary(0.90, macs=120)), *latency(workspace, row("baseline", 1.0), row("dense", 2.0))]
    page = render("net on data", lines, [], {}, [])
    assert page.count('<b class="worse">') == 5
    assert '<b class="worse">0.50 × as fast</b>' in page
    assert "better" not in page.partition("<body>")[2]


def test_nothing_accepted_is_the_headline() -> None:
    found = summary(1.0, accepted=0, stopped_because="attempts used up")
    warning = nothing_accepted(found)
    assert warning is not None
    page = render("net on data", compare(found), [], {}, [], warning)
    assert "<h1>net on data, not pruned</h1>" in page
    assert nothing_accepted(summary()) is None


def test_channels_of_a_layer_are_those_that_it_gives() -> None:
    def make(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Embedding(50, width),
            nn.Conv2d(width, 2 * width, 3),
            nn.ConvTranspose2d(2 * width, 6 * width, 3, groups=2),
            nn.Linear(6 * width, 5),
        )

    assert widths(make(4), make(2)) == [("0", 4, 2), ("1", 8, 4), ("2", 24, 12), ("3", 5, 5)]
