"""The pictures of a run: sensitivity of each group, attempts, widths of the layers.

Each is as wide as a telephone; on a wide page they are side by side. As SVG they use the page's colours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import PercentFormatter

from pruning.allocation.sensitivity import Curve
from pruning.metrics import ACCURACY, Measure
from tasks.loop.ledger import Ledger
from tasks.models import ModelMetrics

INK, QUIET, LINE = "#1f2933", "#6b7785", "#d5dbe1"
BEFORE, AFTER, REJECTED = "#cfd8e3", "#1f7a5c", "#c2410c"
PAGE_COLOURS = {
    INK: "--ink",
    QUIET: "--quiet",
    LINE: "--line",
    BEFORE: "--before",
    AFTER: "--good",
    REJECTED: "--bad",
    "#000000": "--ink",
}
"""Colours that the page has its own for, light and dark."""

FALLING = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of the curves that are named: colour-blind people tell them apart, on white and on black (Okabe and Ito, 2008)."""

LOSSES = [(0.75, 0.16, 0.02, (step + 1) / 12) for step in range(12)]
"""From no loss to the largest: one colour, ever less transparent, on white and on black."""

_NOT_IN_A_PAGE = re.compile(
    r'<metadata>.*?</metadata>|<style.*?</style>| xmlns(:\w+)?="[^"]*"| id="[\w.]+_\d+"', re.DOTALL
)
"""Whose file it is, and names of parts that would occur once in each picture."""

MARKERS = "osD^vP"
LONGEST_NAME = 26
SMALL = 9
WIDTH_INCHES = 4.4
PLANES_ACROSS = 2
MARGIN_INCHES = 1.3
FALLS = 0.25
"""Of the largest loss: a curve that loses more than this is named."""


def _scaled(axis: Axis, measure: Measure, decimals: int | None = None) -> None:
    """Write an axis of scores in percent where they are shares."""
    if measure.is_share:
        axis.set_major_formatter(PercentFormatter(1, decimals=decimals))


def _change(change: float, measure: Measure) -> str:
    return f"{100 * change:+.1f}" if measure.is_share else f"{change:+.3g}"


def draw_curves(curves: Sequence[Curve], baseline_score: float, measure: Measure = ACCURACY) -> Figure:
    """Draw the score against the share of channels set to zero, one curve per group; the steepest ones are named.

    Args:
        curves: In the order of the network.
        baseline_score: On the same samples, with all channels.
        measure: What the score is.
    """
    figure = _figure(WIDTH_INCHES, 4.2)
    named = _falling(curves, baseline_score, measure)
    axes = figure.subplots()
    for curve in sorted(curves, key=lambda one: one.group in named):
        shares = [0.0, *(point.removed / curve.size for point in curve.points)]
        scores = [baseline_score, *(point.score for point in curve.points)]
        worst = min(scores, key=lambda score: measure.gain(0.0, score))
        if curve.group in named:
            place = named.index(curve.group)
            axes.plot(
                shares,
                scores,
                color=FALLING[place],
                linewidth=1.6,
                marker=MARKERS[place],
                markersize=4,
                label=f"{_short(curve.group)} ({_change(worst - baseline_score, measure)})",
            )
        else:
            axes.plot(shares, scores, color=QUIET, linewidth=0.8, alpha=0.6)
    axes.axhline(baseline_score, color=QUIET, linewidth=0.8, linestyle=":")
    _dress(axes, "channels of one group set to zero", f"validation {measure.name}", "")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _scaled(axes.yaxis, measure)
    unit = "points" if measure.is_share else "change"
    if named:
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda index: [_short(name) in labels[index] for name in named][::-1])
        legend = figure.legend(
            [handles[index] for index in order],
            [labels[index] for index in order],
            title=f"{unit} at worst{'' if len(named) == len(curves) else '; the other groups are grey'}",
            title_fontsize=SMALL,
            fontsize=SMALL,
            frameon=False,
            loc="outside lower left",
            alignment="left",
            labelcolor=INK,
        )
        legend.get_title().set_color(INK)
    return figure


def _falling(curves: Sequence[Curve], baseline_score: float, measure: Measure) -> list[str]:
    """Return the groups whose curves fall most, the steepest first."""
    losses = {
        curve.group: max((measure.gain(point.score, baseline_score) for point in curve.points), default=0.0)
        for curve in curves
    }
    least = FALLS * max(losses.values(), default=0.0)
    falling = [group for group in losses if losses[group] > 0 and losses[group] >= least]
    return sorted(falling, key=lambda group: -losses[group])[: len(FALLING)]


def draw_sensitivity(curves: Sequence[Curve], baseline_score: float, measure: Measure = ACCURACY) -> Figure:
    """Draw what each group's channels cost as a table of colours; what wasn't measured is hatched.

    Args:
        curves: In the order of the network.
        baseline_score: On the same samples, with all channels.
        measure: What the score is.
    """
    rates = sorted({point.rate for curve in curves for point in curve.points})
    figure = _figure(WIDTH_INCHES, max(2.6, MARGIN_INCHES + 0.2 * len(curves)))
    if not rates:
        figure.text(0.5, 0.5, "no group was measured", ha="center", color=QUIET)
        return figure
    axes = figure.subplots()
    drops = np.full((len(curves), len(rates)), np.nan)
    for row, curve in enumerate(curves):
        for point in curve.points:
            drops[row, rates.index(point.rate)] = measure.gain(point.score, baseline_score)
    for (row, column), drop in np.ndenumerate(drops):
        hatch = "///" if np.isnan(drop) else None
        axes.add_patch(Rectangle((column, row), 1, 1, hatch=hatch, facecolor="none", edgecolor=LINE, linewidth=0.8))
    largest = max(0.01 if measure.is_share else 1e-12, float(np.nanmax(drops, initial=0)))
    cells = axes.pcolormesh(np.ma.masked_invalid(drops), cmap=ListedColormap(LOSSES), vmin=0, vmax=largest)
    axes.set_ylim(len(curves), 0)
    axes.set_yticks(np.arange(len(curves)) + 0.5, [_short(curve.group) for curve in curves], fontsize=SMALL - 1)
    axes.set_xticks(np.arange(len(rates)) + 0.5, [f"{100 * rate:.0f}" for rate in rates], fontsize=SMALL - 1)
    _dress(axes, "% of the group's channels set to zero", "", "")
    axes.tick_params(length=0, labelsize=SMALL - 1)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(cells, ax=axes, fraction=0.05, pad=0.03)
    _scaled(bar.ax.yaxis, measure, 0)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL - 1, length=0, colors=INK)
    if np.isnan(drops).any():
        missing = Patch(hatch="///", facecolor="none", edgecolor=LINE, linewidth=0, label="not measured")
        axes.legend(
            handles=[missing], frameon=False, fontsize=SMALL, loc="lower left", bbox_to_anchor=(0, 1), labelcolor=INK
        )
    return figure


def draw_attempts(ledger: Ledger, floor: float, measure: Measure = ACCURACY) -> Figure:
    """Draw the score of every attempt against its MACs; rejected attempts are crosses.

    With zero weights the effective MACs are shown, since the nominal ones are the same for all attempts.

    Args:
        ledger: Of the run.
        floor: The worst score that was accepted.
        measure: What the score is.
    """
    figure = _figure(WIDTH_INCHES, 3.8)
    axes = figure.subplots()
    baseline = ledger.baseline
    trail = [baseline, *(row.measured for row in ledger.accepted if row.measured)]
    axes.plot([_millions(m) for m in trail], [m.score for m in trail], color=AFTER, linewidth=1.2, zorder=2)
    axes.scatter(_millions(baseline), baseline.score, marker="s", s=52, color=INK, label="baseline", zorder=3)
    for accepted, marker, colour, label in ((True, "o", AFTER, "accepted"), (False, "X", REJECTED, "rejected")):
        rows = [row for row in ledger.rows if row.accepted is accepted and row.measured]
        macs = [_millions(row.measured) for row in rows if row.measured]
        scores = [row.measured.score for row in rows if row.measured]
        if rows:
            axes.scatter(macs, scores, marker=marker, s=58, color=colour, label=label, zorder=4, linewidths=0)
        for row, x, y in zip(rows, macs, scores, strict=True):
            axes.annotate(
                str(row.attempt + 1),
                (x, y),
                xytext=(0, 8 if accepted else -8),  # above and below, as they are often close together
                textcoords="offset points",
                ha="center",
                va="bottom" if accepted else "top",
                fontsize=SMALL,
                color=INK,
            )
    axes.axhline(floor, color=REJECTED, linewidth=0.9, linestyle="--", label="floor", zorder=1)
    sparse = any(measured.effective_macs is not None for measured in trail)
    _dress(
        axes,
        f"million {'effective ' if sparse else ''}MACs of one sample",
        f"validation {measure.name}",
        "",
    )
    _scaled(axes.yaxis, measure)
    axes.margins(x=0.06, y=0.16)
    axes.invert_xaxis()
    _legend_above(axes)
    return figure


def _millions(measured: ModelMetrics) -> float:
    return (measured.effective_macs or measured.macs) / 1e6


def draw_widths(widths: Sequence[tuple[str, int, int]]) -> Figure:
    """Draw the width of every layer before and after.

    Args:
        widths: (layer, channels before, channels after) in the order of the network.
    """
    figure = _figure(WIDTH_INCHES, MARGIN_INCHES + 0.21 * max(len(widths), 4))
    axes = figure.subplots()
    rows = range(len(widths))
    axes.barh(rows, [before for _, before, _ in widths], color=BEFORE, height=0.72, label="before")
    axes.barh(rows, [after for _, _, after in widths], color=AFTER, height=0.44, label="after")
    for row, (_, before, after) in enumerate(widths):
        text = f"{before} → {after}" if after < before else str(before)
        axes.annotate(
            text, (before, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=SMALL - 1, color=INK
        )
    axes.set_yticks(rows, [_short(name) for name, _, _ in widths], fontsize=SMALL - 1)
    axes.set_ylim(len(widths) - 0.4, -0.6)
    axes.margins(x=0.2)
    _dress(axes, "channels", "", "")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    _legend_above(axes)
    return figure


@dataclass(frozen=True)
class Mark:
    """A model's cost and score: one point of a plot.

    Attributes:
        name: A short label.
        cost: As a share of the baseline's.
        score: On the test set.
        dominated: Whether another model is better in one and at least as good in the other.
    """

    name: str
    cost: float
    score: float
    dominated: bool


def draw_frontier(planes: Mapping[str, Sequence[Mark]], measure: Measure, baseline: str) -> Figure:
    """Draw the score against each cost; a line joins the models that no other dominates.

    Args:
        planes: By the name of the cost.
        measure: What the score is.
        baseline: The mark with this name is the baseline.
    """
    across = min(len(planes), PLANES_ACROSS)
    down = -(-len(planes) // across)
    figure = _figure(WIDTH_INCHES * across, 4.2 * down)
    drawn = figure.subplots(down, across, sharey=True, squeeze=False).flatten().tolist()
    while len(drawn) > len(planes):
        drawn.pop().remove()
    for axes, (cost, marks) in zip(drawn, planes.items(), strict=True):
        front = sorted((mark for mark in marks if not mark.dominated), key=lambda mark: mark.cost)
        axes.plot([m.cost for m in front], [m.score for m in front], color=AFTER, linewidth=1.2, zorder=2)
        kinds = (
            ([m for m in marks if m.name == baseline], "s", INK, "baseline"),
            ([m for m in marks if m.name != baseline and not m.dominated], "o", AFTER, "on the frontier"),
            ([m for m in marks if m.name != baseline and m.dominated], "X", REJECTED, "dominated"),
        )
        for some, marker, colour, label in kinds:
            if some:
                places = [m.cost for m in some], [m.score for m in some]
                axes.scatter(*places, marker=marker, s=52, color=colour, label=label, zorder=3, linewidths=0)
        for mark in marks:
            if mark.name != baseline:  # below to the right: the line, which rises, is above or to the left
                place = (mark.cost, mark.score)
                axes.annotate(mark.name, place, xytext=(5, -11), textcoords="offset points", fontsize=SMALL, color=INK)
        _dress(
            axes, f"{cost}, share of the baseline's", measure.name if axes.get_subplotspec().is_first_col() else "", ""
        )
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _scaled(axes.yaxis, measure)
        axes.margins(y=0.16)
        axes.set_xlim(0, 1.12 * max(mark.cost for mark in marks))
        _legend_above(axes)
    return figure


def as_png(figure: Figure) -> bytes:
    """Render a figure; the same figure gives the same bytes."""
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=200, metadata={"Software": None})
    return stream.getvalue()


def as_svg(figure: Figure) -> str:
    """Render a figure as an element of a page, in the page's colours; the same figure gives the same text."""
    stream = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "secateur"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = stream.getvalue()
    drawn = _NOT_IN_A_PAGE.sub("", drawn[drawn.index("<svg") :])
    for colour, name in PAGE_COLOURS.items():
        drawn = drawn.replace(colour, f"var({name})")
    return drawn


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _dress(axes: Axes, across: str, up: str, title: str) -> None:
    axes.set_xlabel(across, fontsize=SMALL + 1, color=INK)
    axes.set_ylabel(up, fontsize=SMALL + 1, color=INK)
    axes.set_title(title, fontsize=SMALL + 2, loc="left", color=INK)
    axes.tick_params(labelsize=SMALL, colors=INK)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_above(axes: Axes) -> None:
    axes.legend(
        frameon=False,
        fontsize=SMALL,
        loc="lower right",  # to the left there is the room of the axis' numbers too
        bbox_to_anchor=(1, 1),
        ncols=4,
        borderaxespad=0.3,
        columnspacing=1.0,
        handletextpad=0.3,
        labelcolor=INK,
    )


def _short(name: str) -> str:
    """Shorten a long name from the front: its end tells layers apart."""
    return name if len(name) <= LONGEST_NAME else "…" + name[-LONGEST_NAME + 1 :]
