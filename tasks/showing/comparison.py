"""Baseline against dense model, as people read it: accuracy, size, MACs and latency together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads those of `typing` from Python 3.12 on

from tasks import benchmark
from tasks.workspace import Workspace


@dataclass(frozen=True)
class Line:
    """One quantity of both models, and what became of it."""

    quantity: str
    baseline: str
    dense: str
    change: str
    remark: str = ""

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The four cells; a remark stands behind the change."""
        return self.quantity, self.baseline, self.dense, f"{self.change}{self.remark}"


HEAD = Line("", "baseline", "dense", "change")


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
    stopped_because: str


def compare(summary: Summary) -> list[Line]:
    """Return the lines that the summary holds: accuracy on the test set, size, MACs, parameters.

    Where weights are stored sparse, two more: their share of zeros, and the MACs of a runtime that skips them.
    """
    before, after = summary["baseline"], summary["dense"]
    macs = "MACs, mean over inputs" if summary["kind"] == "dynamic" else "MACs"
    lines = [
        Line(
            f"{summary['measure']} (test)",
            f"{before['accuracy']:.2%}",
            f"{after['accuracy']:.2%}",
            f"{-100 * summary['accuracy_drop'] or 0.0:+.2f} points",
        ),
        Line("size", as_bytes(before["size_bytes"]), as_bytes(after["size_bytes"]), _less(before, after, "size_bytes")),
        Line(macs, f"{before['macs']:,}", f"{after['macs']:,}", _less(before, after, "macs")),
        Line("parameters", f"{before['parameters']:,}", f"{after['parameters']:,}", _less(before, after, "parameters")),
    ]
    if "effective_macs" in after:
        whole = {"effective_macs": before.get("effective_macs", before["macs"])}
        zeros = before.get("weight_sparsity", 0.0), after["weight_sparsity"]
        change = f"{100 * (zeros[1] - zeros[0]):+.1f} points"
        lines += [
            Line("weights that are zero", f"{zeros[0]:.1%}", f"{zeros[1]:.1%}", change),
            Line(
                "effective MACs",
                f"{whole['effective_macs']:,}",
                f"{after['effective_macs']:,}",
                _less(whole, after, "effective_macs"),
            ),
        ]
    return lines


def latency_name(batch_size: int, threads: int) -> str:
    """Return what a latency is called; one thread goes without saying."""
    return f"latency, batch {batch_size}{'' if threads == 1 else f', {threads} threads'}"


def compare_latency(workspace: Workspace) -> list[Line]:
    """Return one line for every number of threads and batch size of the benchmark."""
    return [_latency_line(before, after) for before, after in benchmark.read_latencies(workspace)]


def _latency_line(before: benchmark.Row, after: benchmark.Row) -> Line:
    remark = ""
    if before["predicted_ms"] and after["predicted_ms"]:
        remark = f" ({before['predicted_ms'] / after['predicted_ms']:.2f} predicted)"
    return Line(
        latency_name(after["batch_size"], after["threads"]),
        f"{before['median_ms']:.3f} ms",
        f"{after['median_ms']:.3f} ms",
        f"{before['median_ms'] / after['median_ms']:.2f} × as fast",
        remark,
    )


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


def _less(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> str:
    return f"{after[key] / before[key] - 1:+.1%}"


def as_bytes(count: int) -> str:
    """Write a number of bytes for people."""
    return f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
