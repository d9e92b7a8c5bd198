"""Baseline against dense model, as people read it: accuracy, size, MACs and latency together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads those of `typing` from Python 3.12 on

from tasks import benchmark
from tasks.workspace import Workspace

Trend = Literal["better", "worse", "same"]


@dataclass(frozen=True)
class Line:
    """One quantity of both models, and what became of it.

    Attributes:
        quantity: Its name.
        baseline: Its value before.
        dense: Its value after.
        change: From the one to the other.
        remark: What else is to be known of the change.
        trend: Whether the change is for the better; "same" where it is within what chance or the clock does.
    """

    quantity: str
    baseline: str
    dense: str
    change: str
    remark: str = ""
    trend: Trend = "same"

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The four cells; a remark stands behind the change."""
        return (
            self.quantity,
            self.baseline,
            self.dense,
            f"{self.change} ({self.remark})" if self.remark else self.change,
        )


HEAD = Line("", "baseline", "dense", "change")

_NORMAL_95 = 1.96


_Count = Annotated[int, Field(gt=0)]


class Figures(TypedDict):
    """What one model scored on the test set, and what it costs."""

    accuracy: float
    macs: _Count
    parameters: _Count
    size_bytes: _Count
    weight_sparsity: NotRequired[float]
    effective_macs: NotRequired[_Count]


class Summary(TypedDict):
    """What of `summary.json` is shown elsewhere; there is more in it."""

    measure: str
    kind: str
    baseline: Figures
    dense: Figures
    accuracy_drop: float
    test_samples: _Count
    attempts: int
    accepted: int
    stopped_because: str


def compare(summary: Summary) -> list[Line]:
    """Return the lines that the summary holds: accuracy on the test set, size, MACs, parameters.

    Where weights are stored sparse, two more: their share of zeros, and the MACs of a runtime that skips them.
    """
    before, after = summary["baseline"], summary["dense"]
    macs = "MACs, mean over inputs" if summary["kind"] == "dynamic" else "MACs"
    lines = [
        _accuracy_line(summary),
        _cost_line("size", before, after, "size_bytes", as_bytes),
        _cost_line(macs, before, after, "macs"),
        _cost_line("parameters", before, after, "parameters"),
    ]
    if "effective_macs" in after:
        whole = {"effective_macs": before.get("effective_macs", before["macs"])}
        zeros = before.get("weight_sparsity", 0.0), after["weight_sparsity"]
        change = f"{100 * (zeros[1] - zeros[0]):+.1f} points"
        lines += [
            Line("weights that are zero", f"{zeros[0]:.1%}", f"{zeros[1]:.1%}", change, trend=_trend(*zeros)),
            _cost_line("effective MACs", whole, after, "effective_macs"),
        ]
    return lines


def _accuracy_line(summary: Summary) -> Line:
    before, after, count = summary["baseline"]["accuracy"], summary["dense"]["accuracy"], summary["test_samples"]
    chance = _NORMAL_95 * sqrt(sum(share * (1 - share) for share in (before, after)) / count)
    return Line(
        f"{summary['measure']} (test)",
        f"{before:.2%}",
        f"{after:.2%}",
        f"{-100 * summary['accuracy_drop'] or 0.0:+.2f} points",
        f"chance: ±{100 * chance:.2f}",
        _trend(before, after) if abs(after - before) > chance else "same",
    )


def _cost_line(
    quantity: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    key: str,
    show: Callable[[int], str] = "{:,}".format,
) -> Line:
    one, two = before[key], after[key]
    return Line(quantity, show(one), show(two), f"{two / one - 1:+.1%}", trend=_trend(two, one))


def _trend(worse: float, better: float) -> Trend:
    """Say whether the second is above the first."""
    return "same" if worse == better else "better" if better > worse else "worse"


def nothing_accepted(summary: Summary) -> str | None:
    """Say that nothing was pruned, and why; None where an attempt was accepted."""
    if summary["accepted"]:
        return None
    count = summary["attempts"]
    return (
        f"nothing was pruned: none of {count} attempts was accepted ({summary['stopped_because']}), and the dense "
        "model is the baseline"
    )


def ended_because(summary: Summary) -> str:
    """Say how the loop ended, and that nothing was accepted where it was so."""
    return f"{summary['stopped_because']}{'' if summary['accepted'] else '; nothing was accepted'}"


def latency_name(batch_size: int, threads: int) -> str:
    """Return what a latency is called; one thread goes without saying."""
    return f"latency, batch {batch_size}{'' if threads == 1 else f', {threads} threads'}"


def compare_latency(workspace: Workspace) -> list[Line]:
    """Return one line for every number of threads and batch size of the benchmark."""
    return [_latency_line(before, after) for before, after in benchmark.read_latencies(workspace)]


def _latency_line(before: benchmark.Row, after: benchmark.Row) -> Line:
    """Compare two latencies, measured in turns: the ratio of the medians, and how far the quartiles let it go."""
    low = before["lower_quartile_ms"] / after["upper_quartile_ms"]
    high = before["upper_quartile_ms"] / after["lower_quartile_ms"]
    remark = f"quartiles {low:.2f}–{high:.2f}"
    if before["predicted_ms"] and after["predicted_ms"]:
        remark += f", {before['predicted_ms'] / after['predicted_ms']:.2f} predicted"
    return Line(
        latency_name(after["batch_size"], after["threads"]),
        as_latency(before),
        as_latency(after),
        f"{before['median_ms'] / after['median_ms']:.2f} × as fast",
        remark,
        "better" if low > 1 else "worse" if high < 1 else "same",
    )


def as_latency(measured: benchmark.Row) -> str:
    """Write a measured latency for people: the median, and the quartiles behind it."""
    return as_ms(measured["median_ms"], measured["lower_quartile_ms"], measured["upper_quartile_ms"])


def as_ms(median: float, lower: float, upper: float) -> str:
    """Write a median in milliseconds with its quartiles."""
    return f"{median:.3f} ms [{lower:.3f}, {upper:.3f}]"


def as_text(lines: list[Line]) -> str:
    """Lay the lines out for a terminal."""
    rows = [HEAD.cells, *(line.cells for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    rule = "─" * (sum(widths) + 6)
    laid = ["  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in (1, 2, 3))]) for row in rows]
    return "\n".join([laid[0], rule, *laid[1:]])


def as_markdown(lines: list[Line]) -> str:
    """Lay the lines out as a Markdown table."""
    rows = ["|" + "|".join(line.cells) + "|" for line in lines]
    return "\n".join(["|" + "|".join(HEAD.cells) + "|", "|---|---:|---:|---:|", *rows])


def as_bytes(count: int) -> str:
    """Write a number of bytes for people."""
    return f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
