"""The table of a run, for people (Markdown) and for programs (JSON)."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.measure import Measurement

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "torch-pruning")
_HEAD = (
    "architecture", "tool", "result", "groups", "layers prunable", "the same, aside", "parameters removed",
    "MACs removed", "difference", "other inputs", "no rule for", "first, s", "again, s", "peak, MB",
)  # fmt: skip


def as_json(rows: Sequence[Measurement]) -> str:
    """Write all that was seen: versions, a summary for each tool, one object a row."""
    versions = {name: found for name in _PACKAGES if (found := _version(name))}
    content = {
        "versions": {"python": platform.python_version(), **versions},
        "summary": {engine: summary(rows, engine) for engine in _engines(rows)},
        "rows": [row.as_dict() for row in rows],
    }
    return json.dumps(_finite(content), indent=1) + "\n"


def as_markdown(rows: Sequence[Measurement]) -> str:
    """Write the table with its summary first."""
    lines = [_sentence(engine, summary(rows, engine)) for engine in _engines(rows)]
    lines += ["", f"| {' | '.join(_HEAD)} |", f"|{'|'.join(['---'] * 3 + ['--:'] * 7 + ['---'] + ['--:'] * 3)}|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def summary(rows: Sequence[Measurement], engine: str) -> dict[str, Any]:
    """Count the results of one tool; averages are over the exact ones."""
    mine = [row for row in rows if row.engine == engine]
    exact = [row for row in mine if row.status == "exact"]
    aside = [row.layer_share_aside for row in exact if not math.isnan(row.layer_share_aside)]
    shares = [row.layer_share for row in mine if not math.isnan(row.layer_share)]
    results: dict[str, int] = {}
    for row in mine:
        results[row.status] = results.get(row.status, 0) + 1
    return {
        "architectures": len(mine),
        "exact": len(exact),
        "traced": sum(not math.isnan(row.seconds_first) for row in mine),
        "mean_layer_share": _mean(shares),
        "mean_layer_share_aside": _mean(aside),
        "at_least_90_percent_of_layers_prunable": sum(share >= 0.9 for share in aside),
        "mean_parameters_removed": _mean([row.parameters_removed for row in exact]),
        "mean_macs_removed": _mean([row.macs_removed for row in exact]),
        "results": dict(sorted(results.items(), key=lambda item: -item[1])),
    }


def _sentence(engine: str, counted: dict[str, Any]) -> str:
    results = ", ".join(f"{count} {status}" for status, count in counted["results"].items())
    text = f"**{engine}**: {counted['exact']} of {counted['architectures']} exact ({results}); "
    text += f"{counted['mean_macs_removed']:.0%} of MACs removed on average"
    if engine == "secateur":
        text += f"; in {counted['at_least_90_percent_of_layers_prunable']} at least 90 % of layers' parameters prunable"
    if engine == "secateur-streams":
        text += f"; {counted['mean_layer_share']:.1%} of layers' parameters prunable, on average over all"
        text += f" ({counted['mean_layer_share_aside']:.1%} where some axis is neither an input nor an output)"
    return text + ".\n"


def _cells(row: Measurement) -> list[str]:
    return [
        row.name,
        row.engine,
        row.status,
        str(row.num_groups),
        _percent(row.layer_share),
        _percent(row.layer_share_aside),
        _percent(row.parameters_removed),
        _percent(row.macs_removed),
        f"{row.difference:.0e}" if not math.isnan(row.difference) else "",
        str(row.others) if row.others else "",
        ", ".join(row.unknown_operators),
        *(f"{value:.{digits}f}" if not math.isnan(value) else "" for value, digits in (
            (row.seconds_first, 2), (row.seconds_second, 2), (row.peak_mb, 0),
        )),
    ]  # fmt: skip


def _engines(rows: Sequence[Measurement]) -> list[str]:
    return list(dict.fromkeys(row.engine for row in rows))


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f} %"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: None and a text stand for them."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "infinite"
    return value
