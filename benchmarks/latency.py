"""Milliseconds: what the default's MACs give back, half the latency, predictions. A table and a plot.

    python -m benchmarks.latency --json latency.json --markdown docs/latency-results.md --plot docs/latency-results.png
    python -m benchmarks.latency --only shares predictions
    python -m benchmarks.latency --peer torch-pruning        # Torch-Pruning at the same measured latency

What the JSON file holds already, each part and each seed of the duel, is not measured again. Times are shares of the
baseline's, measured in turns; on a machine that others use too the spread says how far to trust them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import onnxruntime
import torch

from benchmarks.contest.terms import Terms
from benchmarks.speed.duel import half_the_latency
from benchmarks.speed.race import BATCHES
from benchmarks.speed.shares import default_at_shares, predictions
from pruning.timing.measuring import cpu_name

PARTS = ("shares", "duel", "predictions")
_MARKERS = "os^Dv"
_COLORS = {1: "#1f6f8b", 32: "#c8553d"}
"""By batch size."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    terms = Terms(3000, 8, options.epochs, 512, 1024, options.cache)
    found = json.loads(options.json.read_text(encoding="utf-8")) if options.json and options.json.exists() else {}
    seen = terms.data.train.take(torch.arange(options.seen))
    duelled = {row["seed"] for row in found.get("duel", {"rows": []})["rows"]}
    jobs: list[tuple[str, Callable[[], Sequence[Any]]]] = [
        ("shares", lambda: default_at_shares(options.widths, seen, terms.data.num_classes, options.batch_sizes)),
        ("predictions", lambda: predictions(options.batch_sizes)),
    ]
    jobs = [job for job in jobs if job[0] not in found]
    for seed in sorted(set(options.seeds) - duelled):
        jobs.append(("duel", partial(half_the_latency, terms, seed, peer=bool(options.peer))))
    for part, measure in jobs:
        if part in options.only:
            rows = [*found.get(part, {"rows": []})["rows"], *(one.as_dict() for one in measure())]
            found[part] = {"rows": rows, "measured": datetime.now(UTC).date().isoformat(), "on": _machine()}
            if options.json:
                options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    table = as_markdown(found)
    print(table)
    if options.markdown:
        options.markdown.write_text(table, encoding="utf-8")
    if options.plot:
        draw(found, options.plot)
    return 0


def as_markdown(found: dict[str, Any]) -> str:
    """Write the parts that were measured as tables."""
    lines = ["# Latency, measured", ""]
    for part, title in (
        ("shares", "The default of params.yaml at shares of the MACs. One thread."),
        ("predictions", "Predictions, half the MACs gone from each network of the zoo. One thread."),
    ):
        if part in found:
            lines += [f"{title} {_when(found[part])}", "", *_times(found[part]["rows"]), ""]
    if "shares" in found:
        lines += [
            "*fastest*: latency / MACs of the fastest widths, as predicted, whatever they do to accuracy.",
            "",
        ]
    if "duel" in found:
        lines += [
            f"Half the latency at batch 1, one thread: ResNet-20 on glyphs. {_when(found['duel'])}",
            "",
            "| way | seeds | latency | predicted | MACs | least kept | no training | fine-tuned | baseline |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
            *_duellists(found["duel"]["rows"]),
        ]
    return "\n".join(lines).rstrip() + "\n"


def _duellists(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Write one line for each way, of means and standard deviations over the seeds."""
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        of_it = [row for row in rows if row["name"] == name]

        def mean(key: str, form: str, of_it: Sequence[dict[str, Any]] = of_it) -> str:
            values = [row[key] for row in of_it]
            spread = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
            return f"{fmean(values):{form}}{spread}"

        cells = [name, str(len(of_it)), *(mean(key, ".3f") for key in ("share", "predicted", "macs_share"))]
        cells += [f"{min(row['least_kept'] for row in of_it):.0%}"]
        cells += [mean(key, ".2%") for key in ("recovered", "tuned", "baseline")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw measured against predicted shares, and time against MACs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.6))
    for panel, part, across, label in (
        (left, "shares", "macs_share", "share of the MACs"),
        (right, "predictions", "predicted", "predicted share of the latency"),
    ):
        measured = found.get(part, {"rows": []})["rows"]
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


def _family(row: dict[str, Any]) -> str:
    """Return the network that a row's was narrowed from: its name up to how."""
    name: str = row["network"]
    return name.rpartition(", ")[0] or name


def _times(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| network | batch | MACs | latency | predicted | latency / MACs | latency / predicted | spread | fastest |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['network']} | {row['batch_size']} | {row['macs_share']:.3f} | {row['share']:.3f} "
        f"| {row['predicted']:.3f} | {row['share'] / row['macs_share']:.2f} "
        f"| {row['share'] / row['predicted']:.2f} | {row['spread']:.0%} "
        f"| {'–' if row['least'] is None else format(row['least'] / row['macs_share'], '.2f')} |"
        for row in rows
    ]
    return lines


def _when(part: dict[str, Any]) -> str:
    return f"{part['measured']}, {part['on']}."


def _machine() -> str:
    return f"ONNX Runtime {onnxruntime.__version__} on {cpu_name()}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 64], help="of ResNet-20's first stage")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--seen", type=int, default=256, help="images that the criterion looks at")
    parser.add_argument("--epochs", type=int, default=6, help="of fine-tuning, as in params.yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the duel")
    parser.add_argument("--peer", choices=["torch-pruning"])
    parser.add_argument("--cache", type=Path, default=Path(".benchmark"), help="folder of the baselines")
    parser.add_argument("--json", type=Path, help="what was measured; goes on from it")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
