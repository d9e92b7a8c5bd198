"""The contest's table, its plot and its JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, quantiles, stdev

from benchmarks.contest.terms import Result

_HEAD = (
    "tool", "way", "seeds", "MACs removed", "as narrowed", "recovered, no training", "after fine-tuning",
    "epochs to recover", "s to choose", "s to tune", "",
)  # fmt: skip
OURS = "secateur"
_WITHIN = 0.005  # of the baseline's accuracy: where recovery counts as reached


def as_markdown(results: Sequence[Result]) -> str:
    """Write a table for each network and target, the most accurate first: means over the seeds, ± standard deviation.

    In front of them all: our default beside the best that the other tools reached.
    """
    kinds = sorted({(result.network, result.dataset) for result in results})
    parts = [
        f"## {network} on {dataset.replace('_', '-')}\n\n"
        + _of_network([one for one in results if (one.network, one.dataset) == (network, dataset)])
        for network, dataset in kinds
    ]
    return "\n".join([_in_short(results), *parts])


def _in_short(results: Sequence[Result]) -> str:
    """Write a row for each network and target: the default, the best of others with and without distillation."""
    lines = [
        "| network | data | MACs removed | baseline | default | best peer, distilled | best peer, plain | thin |",
        "|---|---|--:|--:|--:|---|---|--:|",
    ]
    for network, dataset, target in sorted({(one.network, one.dataset, one.target) for one in results}):
        here = [one for one in results if (one.network, one.dataset, one.target) == (network, dataset, target)]
        rows = {key: [one.tuned for one in row if not one.fault] for key, row in _by_entry(here).items()}
        theirs = {key[1]: row for key, row in rows.items() if key[0] != OURS and row}
        cells = [
            _spread(rows.get((OURS, "default"), [])),
            _best({name: row for name, row in theirs.items() if "distilled" in name}),
            _best({name: row for name, row in theirs.items() if "distilled" not in name}),
            _spread(next((row for key, row in rows.items() if "from scratch" in key[1]), [])),
        ]
        baseline = _spread([one.baseline for one in {one.seed: one for one in here}.values()])
        lines.append(f"| {network} | {dataset} | {target:.0%} | {baseline} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _best(rows: Mapping[str, list[float]]) -> str:
    """Name the way of the highest mean, with it."""
    if not rows:
        return ""
    name = max(rows, key=lambda one: fmean(rows[one]))
    return f"{_spread(rows[name])} ({name.removesuffix(', distilled')})"


def _of_network(results: Sequence[Result]) -> str:
    lines = []
    for target in sorted({result.target for result in results}):
        rows = _by_entry([result for result in results if result.target == target])
        lines += [
            f"\n{target:.0%} of the MACs removed. Accuracy on the test split in %.\n",
            f"| {' | '.join(_HEAD)} |",
            "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
        ]
        finished = {key: [one for one in row if not one.fault] for key, row in rows.items()}
        order = sorted(rows, key=lambda key: -fmean([one.tuned for one in finished[key]] or [-1.0]))
        for key in order:
            tool, name = key
            row = finished[key]
            if not row:
                lines.append(f"| {tool} | {name} | 0 | | | | | | | | {rows[key][0].fault} |")
                continue
            lines.append(
                f"| {tool} | {name} | {len(row)} | {fmean(one.macs_removed for one in row):.1%} "
                f"| {_spread([one.narrowed for one in row])} | {_spread([one.recovered for one in row])} "
                f"| {_spread([one.tuned for one in row])} | {_epochs(row)} "
                f"| {fmean(one.seconds_choose for one in row):.1f} | {fmean(one.seconds_tune for one in row):.0f} "
                f"| {'; '.join(sorted({one.note for one in row if one.note}))} |"
            )
    baselines = [result.baseline for result in {result.seed: result for result in results}.values()]
    return f"Baselines: {_spread(baselines)} %, {len(baselines)} seeds.\n" + "\n".join(lines) + "\n"


def as_json(results: Sequence[Result]) -> str:
    """Write all that was measured."""
    body = {"python": platform.python_version(), "results": [result.as_dict() for result in results]}
    return json.dumps(body, indent=1) + "\n"


def epochs_to_recover(result: Result) -> int | None:
    """Count the epochs until the accuracy on validation is within half a point of the baseline's; None if never."""
    enough = result.baseline_validation - _WITHIN
    return next((epoch for epoch, found in enumerate(result.curve) if found >= enough), None)


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw every way's accuracy before and after fine-tuning, one panel a target."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    targets = sorted({result.target for result in results})
    rows = _by_entry([result for result in results if not result.fault])
    order = sorted(rows, key=lambda key: fmean(one.tuned for one in rows[key] if one.target == max(targets)))
    figure, panels = pyplot.subplots(
        1, len(targets), figsize=(3.2 + 3.4 * len(targets), 1.4 + 0.24 * len(order)), sharey=True, squeeze=False
    )
    for panel, target in zip(panels[0], targets, strict=True):
        for place, key in enumerate(order):
            row = [one for one in rows[key] if one.target == target]
            if not row:
                continue
            color = "#1f6f8b" if key[0] == OURS else "#c8553d"
            tuned = [100 * one.tuned for one in row]
            panel.errorbar(
                fmean(tuned), place, xerr=stdev(tuned) if len(tuned) > 1 else 0, fmt="o", color=color, markersize=5
            )
            panel.plot(fmean(100 * one.recovered for one in row), place, "|", color=color, markersize=8, alpha=0.7)
        line = 100 * fmean(one.baseline for one in results)
        panel.axvline(line, color="#999999", linewidth=0.8, linestyle="--")
        reached = {key: [100 * one.tuned for one in row if one.target == target] for key, row in rows.items()}
        means = {key: fmean(values) for key, values in reached.items() if values}
        left = _left_end(list(means.values()))
        right = max(line, *(means[key] + (stdev(reached[key]) if len(reached[key]) > 1 else 0) for key in means))
        panel.set_xlim(left, right + 0.03 * (right - left))
        for place, key in enumerate(order):
            if means.get(key, line) < left:
                panel.annotate(f"◂ {means[key]:.1f}", (left, place), fontsize=7, va="center", color="#555555")
        panel.set_title(f"{target:.0%} of MACs removed", fontsize=10)
        panel.set_xlabel("test accuracy, %")
        panel.grid(axis="x", alpha=0.25)
    panels[0][0].set_yticks(range(len(order)), [f"{name} · {tool}" for tool, name in order], fontsize=8)
    figure.text(
        0.01,
        0.005,
        "dot: after fine-tuning, with standard deviation over seeds · tick: before it, where it is that high "
        "· ◂ lower still · dashed: baseline",
        fontsize=8,
        color="#555555",
    )
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _left_end(means: Sequence[float]) -> float:
    """Return where an axis may begin without what lies far off the others (by Tukey's rule) pressing them together."""
    first, _, third = quantiles(means, n=4) if len(means) > 1 else (means[0],) * 3
    fence = first - 1.5 * (third - first)
    return min(one for one in means if one >= fence) - 0.15 * (max(means) - fence) - 0.2


def _by_entry(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    rows: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        rows.setdefault((result.tool, result.name), []).append(result)
    return rows


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.2f}{deviation}"


def _epochs(row: Sequence[Result]) -> str:
    found = [epochs_to_recover(one) for one in row]
    return ", ".join("never" if one is None else str(one) for one in found)
