from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pruning.metrics import Measure
from tasks.config.schema import Promote
from tasks.intervals import Paired, compare_pairs, interval_of
from tasks.loop.ledger import Row
from tasks.models import ModelMetrics
from tasks.reporting.html import Report, render
from tasks.reporting.report import widths
from tasks.reporting.tables import as_markdown, as_sentence, as_text, compare, compare_latency, nothing_accepted
from tasks.reporting.verdict import Verdict, decide
from tasks.workspace import Workspace, write_json

PASSED = Verdict("Ready to ship: all is well", ())


def pairs(difference: float, count: int = 1000, both: int = 5) -> Paired:
    """Of so many samples more or fewer right, beside as many lost as won."""
    net = round(difference * count)
    before, after = torch.zeros(count), torch.zeros(count)
    before[: both + max(-net, 0)] = 1
    after[-(both + max(net, 0)) :] = 1
    return compare_pairs(before, after)


def summary(accuracy: float = 0.95, macs: int = 50, **changed: Any) -> Any:
    before = {"score": 0.95, "macs": 100, "parameters": 100, "size_bytes": 400, "score_interval": [0.93, 0.96]}
    after: dict[str, Any] = {"score": accuracy, "macs": macs, "parameters": macs, "size_bytes": 4 * macs}
    after["score_interval"] = [accuracy - 0.02, accuracy + 0.01]
    return {
        "measure": "accuracy",
        "higher_is_better": True,
        "is_share": True,
        "kind": "structured",
        "test_samples": 1000,
        "baseline": before,
        "dense": after,
        "score_drop": 0.95 - accuracy,
        "pairs": pairs(accuracy - 0.95),
        "floor": 0.94,
        "validation": {"baseline": 0.95, "dense": 0.945},
        "parity": {"dense_vs_masked": 1e-7, "onnx_vs_torch": 2e-7, "onnx_close": 1.0, "num_samples": 360},
        "proven": True,
        "attempts": 3,
        "accepted": 1,
        "stopped_because": "target reached",
        **changed,
    }


def row(model: str, median: float, spread: float = 0.1, predicted: float | None = None) -> Any:
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
    line = compare(summary(accuracy, pairs=pairs(accuracy - 0.95, both=20)))[0]
    assert line.trend == trend


def test_accuracy_on_more_samples_tells_more() -> None:
    assert compare(summary(0.94, pairs=pairs(-0.01, 100)))[0].trend == "same"
    assert compare(summary(0.94, pairs=pairs(-0.01, 100_000)))[0].trend == "worse"


def test_text_fits_a_terminal_of_80_columns(workspace: Workspace) -> None:
    rows = [{**row(model, 123.456, predicted=1.0), "batch_size": 32, "threads": 16} for model in ("baseline", "dense")]
    text = as_text([*compare(summary(measure="agreement with the baseline")), *latency(workspace, *rows)])
    assert max(map(len, text.splitlines())) <= 80
    assert "agreement with the baseline (test)" in text
    assert "95 % interval" in text


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
    page = render(Report("net on data", PASSED, lines))
    for text in (as_text(lines), as_markdown(lines), page.replace("\N{NO-BREAK SPACE}", " ")):
        for shown in ("1.000 ms", "[0.500, 1.50]", "6.00 × as fast", "[2.00, 18.00]", "predicted: 2.00 × as fast"):
            assert shown in text


def test_cards_are_coloured_by_what_happened(workspace: Workspace) -> None:
    lines = [*compare(summary(0.90, macs=120)), *latency(workspace, row("baseline", 1.0), row("dense", 2.0))]
    body = render(Report("net on data", PASSED, lines)).partition("<body>")[2]
    assert body.count('<b class="worse">') == len(lines) == 5
    assert '<b class="worse">0.50 × as fast</b>' in body
    assert '<b class="better">' not in body


def test_no_figure_stands_twice(workspace: Workspace) -> None:
    lines = [*compare(summary(macs=51)), *latency(workspace, row("baseline", 1.0), row("dense", 0.2468))]
    body = render(Report("net on data", PASSED, lines)).partition("<body>")[2]
    for text in ("-49.0%", "0.247", '<b class="better">4.05 × as fast'):
        assert body.count(text) == (3 if text == "-49.0%" else 1)


def test_page_says_what_was_tried_and_why_it_was_refused() -> None:
    figures = ModelMetrics(score=0.9, loss=1, macs=10**6, parameters=9, size_bytes=36)
    rows = [
        Row(attempt=0, goal=0.5, reached=0, accepted=False, refused="no plan reaches <50 %>"),
        Row(attempt=3, goal=0.5, reached=0, accepted=False, refused="0.9 can't be met. In the way: g keeps 8 of 32"),
        Row(attempt=1, goal=0.2, reached=0, accepted=False, failed={"wild": "the loss became nan"}),
        Row(
            attempt=2,
            goal=0.1,
            reached=0.1,
            accepted=True,
            measured=figures,
            recipe="plain",
            recipes={"distil": 0.85, "plain": 0.9},
        ),
    ]
    page = render(Report("net on data", PASSED, [], rows))
    for text in (
        "no plan reaches &lt;50 %&gt;",
        "<summary>0.9 can&#x27;t be met.</summary>In the way: g keeps 8 of 32</details>",
        "wild: the loss became nan",
        "distil 85.00%",
        "plain 90.00% (chosen)",
    ):
        assert text in page
    assert page.index("plain 90.00%") < page.index("distil 85.00%"), "the best first"


def test_nothing_accepted_is_the_headline() -> None:
    found = summary(0.95, accepted=0, stopped_because="attempts used up")
    assert nothing_accepted(found) is not None
    page = render(Report("net on data", decide(found, [], Promote()), compare(found)))
    assert '<h1 class="worse">Nothing was pruned</h1>' in page
    assert '<p class="lead">None of 3 attempts was accepted (attempts used up), and' in page
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


def test_a_sentence_begins_with_a_capital_letter_unless_a_name_has_its_own() -> None:
    assert as_sentence("mean IoU is within the floor") == "Mean IoU is within the floor"
    assert as_sentence("mAP is within the floor") == "mAP is within the floor"


def test_an_error_with_intervals_is_written_in_its_own_unit() -> None:
    error = Measure("mean absolute error", higher_is_better=False, is_share=False)
    before, after = torch.linspace(1, 2, 99), torch.linspace(0.5, 1.7, 99)
    found = summary()
    found.update(measure=error.name, higher_is_better=False, is_share=False, pairs=compare_pairs(before, after, error))
    for name, values in (("baseline", before), ("dense", after)):
        found[name].update(score=float(values.mean()), score_interval=interval_of(values))
    line = compare(found)[0]
    assert line.change == "-0.4"
    assert line.trend == "better"
    assert line.spread is not None
    assert line.spread[1].startswith("[1.44")
    assert line.spread[3].startswith("[-0.4")
