"""Tables for people: baseline against pruned model, with score, size, MACs and latency."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from textwrap import wrap
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads those of `typing` from Python 3.12 on

from pruning.metrics import Measure
from tasks.intervals import Interval, Paired, describe_pairs
from tasks.stages import benchmark
from tasks.workspace import Workspace

Trend = Literal["better", "worse", "same"]


@dataclass(frozen=True)
class Line:
    """One quantity of both models, and its change.

    Attributes:
        quantity: Its name.
        baseline: Its value before.
        pruned: Its value after.
        change: Between the two.
        remark: A note on the change.
        trend: Whether the change is for the better; "same" if it is within chance or the noise of the clock.
        spread: Its name, and the spreads of the three cells; None if the quantity is counted exactly.
    """

    quantity: str
    baseline: str
    pruned: str
    change: str
    remark: str = ""
    trend: Trend = "same"
    spread: tuple[str, str, str, str] | None = None

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The four cells."""
        return self.quantity, self.baseline, self.pruned, self.change


HEAD = Line("", "baseline", "pruned", "change")

WIDTH = 80
"""Of a terminal."""


_Count = Annotated[int, Field(gt=0)]


class Figures(TypedDict):
    """What one model scored on the test set, and what it costs."""

    score: float
    macs: _Count
    parameters: _Count
    size_bytes: _Count
    score_interval: NotRequired[Interval]
    weight_sparsity: NotRequired[float]
    effective_macs: NotRequired[_Count]


class QuantizedFigures(TypedDict):
    """What the quantised file scored on the test set, beside the float one.

    Attributes:
        score: Its score.
        pairs: The dense model and the file sample by sample; None where the score is no mean over samples.
        score_interval: Of the score.
    """

    score: float
    pairs: Paired | None
    score_interval: NotRequired[Interval]


class Scores(TypedDict):
    """Of both models."""

    baseline: float
    dense: float


class Differences(TypedDict):
    """How far the pruned model's outputs are from those they have to equal.

    Attributes:
        dense_vs_masked: Largest relative difference of the outputs from those of the masked model.
        onnx_vs_torch: The same for the ONNX file against the model.
        onnx_close: Share of the validation samples on which file and model agree.
        num_samples: How many these are.
    """

    dense_vs_masked: float
    onnx_vs_torch: float
    onnx_close: float
    num_samples: _Count


class Summary(TypedDict):
    """The part of `summary.json` that is shown elsewhere.

    Attributes:
        measure: What the score is called.
        higher_is_better: Whether more of it is better.
        is_share: Whether it lies in [0, 1] and is written in percent.
        kind: What was pruned.
        baseline: The model before, on the test set.
        dense: The model after.
        score_drop: By how much the pruned model is worse.
        pairs: Both compared sample by sample; None where the score is no mean over samples.
        floor: Worst score on the validation set that was accepted.
        validation: The score there of both models.
        parity: How far the model's outputs may differ from those of the masked model and of the ONNX file.
        proven: Whether the comparison with the masked model could have shown a difference.
        test_samples: Number of test samples.
        attempts: Number of attempts.
        accepted: Number of accepted ones.
        stopped_because: Why the loop ended.
        quantized: The quantised file, where there is one.
    """

    measure: str
    higher_is_better: bool
    is_share: bool
    kind: str
    baseline: Figures
    dense: Figures
    score_drop: float
    pairs: Paired | None
    floor: float
    validation: Scores
    parity: Differences
    proven: bool
    test_samples: _Count
    attempts: int
    accepted: int
    stopped_because: str
    quantized: NotRequired[QuantizedFigures]


def as_sentence(text: str) -> str:
    """Begin a text with a capital letter, unless its first word has one within: mAP."""
    first = text.split(" ", 1)[0]
    return text if first != first.lower() else text[:1].upper() + text[1:]


def measure_in(summary: Summary) -> Measure:
    """Return what the score of a summary is."""
    return Measure(summary["measure"], summary["higher_is_better"], summary["is_share"])


def compare(summary: Summary) -> list[Line]:
    """Return the lines that the summary holds: score on the test set, size, MACs, parameters.

    Where weights are stored sparse, two more: their share of zeros, and the MACs of a runtime that skips them.
    """
    before, after, measure = summary["baseline"], summary["dense"], measure_in(summary)
    macs = "MACs, mean over inputs" if summary["kind"] == "dynamic" else "MACs"
    lines = [
        score_line(f"{measure.name} (test)", before, after, summary["pairs"], measure),
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


def score_line(
    quantity: str, before: Mapping[str, Any], after: Mapping[str, Any], pairs: Paired | None, measure: Measure
) -> Line:
    """Return the line of a score, with its interval where it is a mean over samples.

    Args:
        quantity: Its name.
        before: Score and interval of the first model.
        after: Of the second.
        pairs: Both sample by sample.
        measure: What the score is.
    """
    change = after["score"] - before["score"]
    texts = measure.show(before["score"]), measure.show(after["score"]), measure.show_change(change)
    if pairs is None or "score_interval" not in before or "score_interval" not in after:
        more = f"{abs(change / before['score']):.1%} {'less' if change < 0 else 'more'}" if before["score"] else ""
        remark = "" if measure.is_share or not change else more
        return Line(quantity, *texts, remark, _trend(0.0, measure.gain(before["score"], after["score"])))
    return Line(
        quantity,
        *texts,
        describe_pairs(pairs, measure),
        "same" if pairs["low"] <= 0 <= pairs["high"] else _trend(0.0, measure.gain(0.0, pairs["difference"])),
        (
            "95 % interval",
            measure.show_interval(*before["score_interval"]),
            measure.show_interval(*after["score_interval"]),
            measure.show_change_interval(pairs["low"], pairs["high"]),
        ),
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
    """Say that nothing was pruned, and why; None if an attempt was accepted."""
    if summary["accepted"]:
        return None
    count = summary["attempts"]
    return (
        f"nothing was pruned: none of {count} attempts was accepted ({summary['stopped_because']}), and the "
        "result is the baseline"
    )


def ended_because(summary: Summary) -> str:
    """Say how the loop ended, and whether nothing was accepted."""
    return f"{summary['stopped_because']}{'' if summary['accepted'] else '; nothing was accepted'}"


def latency_name(batch_size: int, threads: int) -> str:
    """Return the name of a latency; one thread isn't mentioned."""
    return f"latency, batch {batch_size}{'' if threads == 1 else f', {threads} threads'}"


def compare_latency(workspace: Workspace) -> list[Line]:
    """Return one line for every number of threads and batch size of the benchmark."""
    return [latency_line(before, after) for before, after in benchmark.read_latencies(workspace)]


def latency_line(before: benchmark.Row, after: benchmark.Row) -> Line:
    """Compare two latencies measured in turns: the ratio of the medians, with its range by the quartiles."""
    quartiles = [quartiles_of(row) for row in (before, after)]
    low, high = quartiles[0][0] / quartiles[1][1], quartiles[0][1] / quartiles[1][0]
    predicted = before["predicted_ms"], after["predicted_ms"]
    remarks = [
        *([f"predicted: {predicted[0] / predicted[1]:.2f} × as fast"] if predicted[0] and predicted[1] else ()),
        *(["measured: no difference beyond the noise of the clock"] if low <= 1 <= high else ()),
    ]
    return Line(
        latency_name(after["batch_size"], after["threads"]),
        f"{before['median_ms']:.3f} ms",
        f"{after['median_ms']:.3f} ms",
        f"{before['median_ms'] / after['median_ms']:.2f} × as fast",
        "; ".join(remarks),
        "better" if low > 1 else "worse" if high < 1 else "same",
        ("quartiles", as_quartiles(quartiles[0]), as_quartiles(quartiles[1]), f"[{low:.2f}, {high:.2f}]"),
    )


def quartiles_of(measured: benchmark.Row) -> Interval:
    """Return the quartiles of a latency in milliseconds."""
    return measured["lower_quartile_ms"], measured["upper_quartile_ms"]


def as_quartiles(quartiles: Interval) -> str:
    """Write quartiles in milliseconds for people, with three significant digits."""
    return "[{}, {}]".format(*(f"{value:.{min(3, max(0, 2 - floor(log10(value))))}f}" for value in quartiles))


def as_ms(median: float, lower: float, upper: float) -> str:
    """Write a median in milliseconds with its quartiles."""
    return f"{median:.3f} ms {as_quartiles((lower, upper))}"


def as_text(lines: list[Line]) -> str:
    """Lay the lines out for a terminal of 80 columns, with spread and remark below their quantity."""
    rows = [cells for line in (HEAD, *lines) for cells in _rows(line)]
    last = max(len(row[3]) for row in rows)
    middle = [max(len(row[column]) for row in rows) for column in (1, 2)]
    first = min(max(len(row[0]) for row in rows), WIDTH - last - sum(middle) - 6)
    widths = (first, *middle, last)
    laid = [text for line in lines for text in _laid(line, widths)]
    rule = "─" * (sum(widths) + 6)
    return "\n".join([*_laid(HEAD, widths), rule, *laid])


def _rows(line: Line) -> list[tuple[str, str, str, str]]:
    """Return the cells of a quantity, and those of its spread."""
    spread = [(f"  {line.spread[0]}", *line.spread[1:])] if line.spread else []
    return [line.cells, *spread]


def _laid(line: Line, widths: tuple[int, ...]) -> list[str]:
    found = []
    for row in _rows(line):
        above, name = ([row[0]], "") if len(row[0]) > widths[0] else ([], row[0])
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        found += [*above, "  ".join([name.ljust(widths[0]), *cells]).rstrip()]
    return found + wrap(line.remark, WIDTH, initial_indent="  ", subsequent_indent="  ")


def as_markdown(lines: list[Line]) -> str:
    """Lay the lines out as a Markdown table."""
    rows = []
    for line in lines:
        more = (line.remark, *line.spread[1:]) if line.spread else (line.remark, "", "", "")
        cells = (
            line.quantity,
            *(f"{cell} {spread}".strip() for cell, spread in zip(line.cells[1:], more[1:], strict=True)),
        )
        rows.append((*cells[:-1], cells[-1] + (f", {more[0]}" if more[0] else "")))
    return markdown_table(HEAD.cells, rows, numbers=(1, 2, 3))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Collection[int] = ()) -> str:
    """Write a table in Markdown.

    Args:
        head: The columns' names.
        rows: One text for each column.
        numbers: The columns, counted from 0, that are aligned to the right.
    """
    ruler = ["--:" if column in numbers else "---" for column in range(len(head))]
    return "\n".join([f"| {' | '.join(head)} |", f"|{'|'.join(ruler)}|", *(f"| {' | '.join(row)} |" for row in rows)])


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out in columns, for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def as_bytes(count: int) -> str:
    """Write a number of bytes for people."""
    return f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
