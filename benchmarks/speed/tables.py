"""What was measured of latencies and of the analysis, as tables and as a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tasks.reporting.tables import markdown_table

Rows = Sequence[Mapping[str, Any]]
Parts = Mapping[str, Mapping[str, Any]]
"""Name of a part -> its "rows", when they were "measured", and "on" what."""

_MARKERS = "os^Dv"
_COLORS = {1: "#1f6f8b", 32: "#c8553d"}
"""By batch size."""


def as_markdown(parts: Parts) -> str:
    """Write the parts that were measured as tables."""
    lines = ["# Latency, measured", "", "Written by `python -m benchmarks.latency` on an otherwise idle machine.", ""]
    for name, title, table in (
        ("shares", "Widths by the network's profile, at shares of the MACs. One thread.", _times),
        ("predictions", "Predictions, half the MACs gone from each network of the zoo. One thread.", _times),
        ("duel", "Half the latency at batch 1, one thread: ResNet-20 on glyphs.", _duellists),
        ("sweeps", "The cheap analysis beside the full sweep: plans for half the MACs by either's curves.", _sweeps),
        ("walls", "The stage `analyze`, full sweep of ResNet-20 on 1,500 images, one thread each.", _walls),
    ):
        if name in parts:
            part = parts[name]
            lines += [f"{title} {part['measured']}, {part['on']}.", "", *table(part["rows"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def draw(parts: Parts, path: Path) -> None:
    """Draw measured against predicted shares, and time against MACs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.6))
    for panel, part, across, label in (
        (left, "shares", "macs_share", "share of the MACs"),
        (right, "predictions", "predicted", "predicted share of the latency"),
    ):
        measured = parts.get(part, {"rows": []})["rows"]
        whose = list(dict.fromkeys(_family(row) for row in measured))
        for (name, marker), (size, color) in product(zip(whose, _MARKERS, strict=False), _COLORS.items()):
            rows = [row for row in measured if row["batch_size"] == size and _family(row) == name]
            panel.errorbar(
                [row[across] for row in rows],
                [row["share"] for row in rows],
                yerr=[row["spread"] * row["share"] for row in rows],
                fmt=marker,
                color=color,
                markersize=5,
                label=f"{name}, batch {size}",
            )
        panel.plot([0, 1], [0, 1.15], color="#999999", linewidth=0.8, linestyle="--", label="15 % longer")
        panel.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
        end = max([0.8, *(row["share"] + 0.05 for row in measured)])
        panel.set(xlim=(0, end), ylim=(0, end), xlabel=label, ylabel="measured share of the latency")
        panel.grid(alpha=0.25)
    left.set_title("the default at 50, 70, 85 % of MACs removed", fontsize=10)
    right.set_title("predictions on the zoo", fontsize=10)
    for panel in (left, right):
        panel.legend(fontsize=7, frameon=False, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _family(row: Mapping[str, Any]) -> str:
    """Return the network that a row's was narrowed from: its name up to how."""
    name: str = row["network"]
    return name.rpartition(", ")[0] or name


def _times(rows: Rows) -> list[str]:
    looked_for = any(row["least"] is not None for row in rows)
    head = ["network", "batch", "MACs", "latency", "predicted", "latency / MACs", "latency / predicted", "spread"]
    cells = [
        [
            row["network"],
            str(row["batch_size"]),
            *(f"{row[key]:.3f}" for key in ("macs_share", "share", "predicted")),
            f"{row['share'] / row['macs_share']:.2f}",
            f"{row['share'] / row['predicted']:.2f}",
            f"{row['spread']:.0%}",
            *([f"{row['least'] / row['macs_share']:.2f}"] if looked_for else []),
        ]
        for row in rows
    ]
    if not looked_for:
        return _table(head, 1, cells)
    said = "*fastest*: latency / MACs of the fastest widths, as predicted, whatever they do to accuracy."
    return [*_table([*head, "fastest"], 1, cells), "", said]


def _duellists(rows: Rows) -> list[str]:
    """Write one line for each way, of means and standard deviations over the seeds."""
    head = ["way", "seeds", "latency", "predicted", "MACs", "least kept", "no training", "fine-tuned", "baseline"]
    cells = []
    for name in dict.fromkeys(row["name"] for row in rows):
        of_it = [row for row in rows if row["name"] == name]
        spread = _over(of_it)
        cells.append(
            [
                name,
                str(len(of_it)),
                *(spread(key, ".3f") for key in ("share", "predicted", "macs_share")),
                f"{min(row['least_kept'] for row in of_it):.0%}",
                *(spread(key, ".2%") for key in ("recovered", "tuned", "baseline")),
            ]
        )
    return _table(head, 1, cells)


def _over(rows: Rows) -> Callable[[str, str], str]:
    def spread(key: str, form: str) -> str:
        values = [row[key] for row in rows]
        around = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
        return f"{fmean(values):{form}}{around}"

    return spread


def _sweeps(rows: Rows) -> list[str]:
    head = ["network", "sweep", "groups", "evaluations", "processor time", "MACs left", "refitted", "fine-tuned"]
    cells = [
        [
            row["network"],
            row["sweep"],
            str(row["groups"]),
            str(row["evaluations"]),
            f"{row['seconds']:.1f} s",
            *(f"{row[key]:.2%}" for key in ("macs", "refitted", "tuned", "baseline")),
        ]
        for row in rows
    ]
    return _table([*head, "baseline"], 2, cells)


def _walls(rows: Rows) -> list[str]:
    alone = rows[0]["seconds"]
    cells = [[str(row["processes"]), f"{row['seconds']:.1f} s", f"{row['seconds'] / alone:.2f}"] for row in rows]
    return _table(["processes", "time", "of one process's"], 0, cells)


def _table(head: Sequence[str], texts: int, rows: Iterable[Sequence[str]]) -> list[str]:
    """Write a table whose first columns hold texts, and the others numbers."""
    return [markdown_table(head, rows, numbers=range(texts, len(head)))]
