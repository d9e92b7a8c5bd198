"""The pictures of a run: sensitivity of each group, attempts, widths of the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pruning.choosing.sensitivity import Curve
from tasks.loop.ledger import Ledger
from tasks.measured import Measured

INK, QUIET, LINE = "#1f2933", "#6b7785", "#d5dbe1"
BEFORE, AFTER, REJECTED = "#cfd8e3", "#1f7a5c", "#c2410c"
LONGEST_NAME = 34
SMALL = 8
PLANES_ACROSS = 2
MARGIN_INCHES = 1.3


def draw_sensitivity(curves: Sequence[Curve], baseline_accuracy: float) -> Figure:
    """Draw accuracy against the share of channels masked: all curves, and the same as a table of colours with names.

    Args:
        curves: In the order of the network.
        baseline_accuracy: On the same samples, nothing masked.
    """
    rates = sorted({point.rate for curve in curves for point in curve.points})
    figure = _figure(11, max(4.2, MARGIN_INCHES + 0.24 * len(curves)))
    if not rates:
        figure.text(0.5, 0.5, "no group was measured", ha="center", color=QUIET)
        return figure
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    colours = colormaps["viridis"](np.linspace(0.0, 0.92, max(len(curves), 2)))
    for curve, colour in zip(curves, colours, strict=False):
        shares = [0.0, *(point.removed / curve.size for point in curve.points)]
        accuracies = [baseline_accuracy, *(point.accuracy for point in curve.points)]
        left.plot(shares, accuracies, color=colour, linewidth=1.4, marker="o", markersize=2.5)
    left.axhline(baseline_accuracy, color=QUIET, linewidth=0.8, linestyle=":")
    _dress(left, "channels of the group masked", "validation accuracy", "one curve a group, input dark, output light")
    left.set_xlim(0, 1)
    left.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    left.yaxis.set_major_formatter(PercentFormatter(1))
    drops = np.full((len(curves), len(rates)), np.nan)
    for row, curve in enumerate(curves):
        for point in curve.points:
            drops[row, rates.index(point.rate)] = baseline_accuracy - point.accuracy
    image = right.imshow(drops, aspect="auto", cmap="OrRd", vmin=0, vmax=max(0.01, float(np.nanmax(drops, initial=0))))
    right.set_yticks(range(len(curves)), [_short(curve.group) for curve in curves], fontsize=SMALL - 1)
    right.set_xticks(range(len(rates)), [f"{rate:.0%}" for rate in rates], fontsize=SMALL - 1)
    _dress(right, "channels of the group masked", "", "accuracy lost")
    right.tick_params(length=0)
    right.grid(visible=False)
    right.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=right, format=PercentFormatter(1, decimals=0), fraction=0.05, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL, length=0)
    return figure


def draw_attempts(ledger: Ledger, floor: float) -> Figure:
    """Draw the accuracy of every attempt against its MACs; rejected ones are crosses.

    Where weights are zero, the MACs are the effective ones: the others are the same for all attempts.

    Args:
        ledger: Of the run.
        floor: The lowest accuracy that was accepted.
    """
    figure = _figure(8, 4.6)
    axes = figure.subplots()
    baseline = ledger.baseline
    trail = [baseline, *(row.measured for row in ledger.accepted if row.measured)]
    axes.plot([_millions(m) for m in trail], [m.accuracy for m in trail], color=AFTER, linewidth=1.2, zorder=2)
    axes.scatter(_millions(baseline), baseline.accuracy, marker="s", s=52, color=INK, label="baseline", zorder=3)
    for accepted, marker, colour, label in ((True, "o", AFTER, "accepted"), (False, "X", REJECTED, "rejected")):
        rows = [row for row in ledger.rows if row.accepted is accepted and row.measured]
        macs = [_millions(row.measured) for row in rows if row.measured]
        accuracies = [row.measured.accuracy for row in rows if row.measured]
        if rows:
            axes.scatter(macs, accuracies, marker=marker, s=58, color=colour, label=label, zorder=4, linewidths=0)
        for row, x, y in zip(rows, macs, accuracies, strict=True):
            axes.annotate(
                str(row.attempt + 1), (x, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=SMALL
            )
    axes.axhline(floor, color=REJECTED, linewidth=0.9, linestyle="--", label="floor", zorder=1)
    sparse = any(measured.effective_macs is not None for measured in trail)
    _dress(
        axes,
        f"million {'effective ' if sparse else ''}MACs of one sample (fewer to the right)",
        "validation accuracy",
        "",
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.margins(x=0.06, y=0.16)
    axes.invert_xaxis()
    _legend_above(axes)
    return figure


def _millions(measured: Measured) -> float:
    return (measured.effective_macs or measured.macs) / 1e6


def draw_widths(widths: Sequence[tuple[str, int, int]]) -> Figure:
    """Draw the width of every layer before and after.

    Args:
        widths: (layer, channels before, channels after) in the order of the network.
    """
    figure = _figure(8, MARGIN_INCHES + 0.27 * max(len(widths), 4))
    axes = figure.subplots()
    rows = range(len(widths))
    axes.barh(rows, [before for _, before, _ in widths], color=BEFORE, height=0.72, label="before")
    axes.barh(rows, [after for _, _, after in widths], color=AFTER, height=0.44, label="after")
    for row, (_, before, after) in enumerate(widths):
        text = f"{before} → {after}" if after < before else str(before)
        axes.annotate(text, (before, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=SMALL - 1)
    axes.set_yticks(rows, [_short(name) for name, _, _ in widths], fontsize=SMALL - 1)
    axes.set_ylim(len(widths) - 0.4, -0.6)
    axes.margins(x=0.12)
    _dress(axes, "channels", "", "")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    _legend_above(axes)
    return figure


@dataclass(frozen=True)
class Mark:
    """A model on the plane of one cost and accuracy.

    Attributes:
        name: Beside it; short.
        cost: As a share of the baseline's.
        accuracy: On the test set.
        dominated: Whether another is better in one and as good in the other.
    """

    name: str
    cost: float
    accuracy: float
    dominated: bool


def draw_frontier(planes: Mapping[str, Sequence[Mark]], measure: str, baseline: str) -> Figure:
    """Draw accuracy against each cost, the models that none dominates joined by a line.

    Args:
        planes: By the name of the cost.
        measure: What the accuracy is called.
        baseline: The mark with this name is the baseline.
    """
    across = min(len(planes), PLANES_ACROSS)
    down = -(-len(planes) // across)
    figure = _figure(max(6.5, 4.6 * across), 4.4 * down)
    drawn = figure.subplots(down, across, sharey=True, squeeze=False).flatten().tolist()
    while len(drawn) > len(planes):
        drawn.pop().remove()
    for axes, (cost, marks) in zip(drawn, planes.items(), strict=True):
        front = sorted((mark for mark in marks if not mark.dominated), key=lambda mark: mark.cost)
        axes.plot([m.cost for m in front], [m.accuracy for m in front], color=AFTER, linewidth=1.2, zorder=2)
        kinds = (
            ([m for m in marks if m.name == baseline], "s", INK, "baseline"),
            ([m for m in marks if m.name != baseline and not m.dominated], "o", AFTER, "on the frontier"),
            ([m for m in marks if m.name != baseline and m.dominated], "X", REJECTED, "dominated"),
        )
        for some, marker, colour, label in kinds:
            if some:
                places = [m.cost for m in some], [m.accuracy for m in some]
                axes.scatter(*places, marker=marker, s=52, color=colour, label=label, zorder=3, linewidths=0)
        named = sorted((mark for mark in marks if mark.name != baseline), key=lambda mark: mark.cost)
        for place, mark in enumerate(named):  # above and below in turn, so that neighbours' names don't meet
            axes.annotate(
                mark.name,
                (mark.cost, mark.accuracy),
                xytext=(0, -14 if place % 2 else 7),
                textcoords="offset points",
                ha="center",
                fontsize=SMALL,
            )
        _dress(axes, f"{cost}, share of the baseline's", measure if axes.get_subplotspec().is_first_col() else "", "")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.margins(y=0.16)
        axes.set_xlim(0, 1.12 * max(mark.cost for mark in marks))
        _legend_above(axes)
    return figure


def as_png(figure: Figure) -> bytes:
    """Render a figure; the same figure gives the same bytes."""
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=130, metadata={"Software": None})
    return stream.getvalue()


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _dress(axes: Axes, across: str, up: str, title: str) -> None:
    axes.set_xlabel(across, fontsize=SMALL + 1)
    axes.set_ylabel(up, fontsize=SMALL + 1)
    axes.set_title(title, fontsize=SMALL + 2, loc="left", color=INK)
    axes.tick_params(labelsize=SMALL, colors=INK)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_above(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=SMALL, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.3)


def _short(name: str) -> str:
    """Keep the end of a long name: it is what tells layers apart."""
    return name if len(name) <= LONGEST_NAME else "…" + name[-LONGEST_NAME + 1 :]
