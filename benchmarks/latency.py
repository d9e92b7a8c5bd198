"""Milliseconds: what the default's MACs give back, half the latency, predictions, the analysis. Tables and a plot.

    python -m benchmarks.latency --json latency.json --markdown docs/latency-results.md --plot docs/latency-results.png
    python -m benchmarks.latency --only shares predictions
    python -m benchmarks.latency --peer torch-pruning        # Torch-Pruning at the same measured latency

What the JSON file holds already, each part, each seed of the duel, each network of the sweeps, is not measured again.
Times are shares of the baseline's, measured in turns; on a machine that others use too the spread says how far to trust
them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from benchmarks.contest.terms import Terms
from benchmarks.speed.duel import half_the_latency
from benchmarks.speed.race import BATCHES
from benchmarks.speed.shares import default_at_shares, predictions
from benchmarks.speed.sweeps import NETWORKS, compare, measure_walls
from benchmarks.speed.tables import as_markdown, draw
from pruning.latency.runner import cpu_name
from tasks.determinism import keep_freed_memory

PARTS = ("shares", "predictions", "duel", "sweeps", "walls")

Measurement = Callable[[], Sequence[Any]]
"""Returns rows, each a dataclass."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0."""
    options = _parser().parse_args(arguments)
    keep_freed_memory()
    torch.set_num_threads(1)
    found = json.loads(options.json.read_text(encoding="utf-8")) if options.json and options.json.exists() else {}
    for part, measure in _missing(options, found):
        rows = [*found.get(part, {"rows": []})["rows"], *map(asdict, measure())]
        found[part] = {"rows": rows, "measured": datetime.now(UTC).date().isoformat(), "on": _machine()}
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    table = as_markdown(found)
    print(table)
    if options.plot:
        draw(found, options.plot)
        table += f"\n![time against MACs, measured against predicted]({options.plot.name})\n"
    if options.markdown:
        options.markdown.write_text(table, encoding="utf-8")
    return 0


def _missing(options: argparse.Namespace, found: Mapping[str, Any]) -> Iterator[tuple[str, Measurement]]:
    """Say what was asked for and isn't measured yet: (part, what measures some of its rows)."""
    terms = Terms(3000, 8, options.epochs, 512, 1024, options.cache, num_test=12_400)

    def there(part: str, key: str) -> set[Any]:
        return {row[key] for row in found.get(part, {"rows": []})["rows"]}

    def shares() -> Sequence[Any]:
        seen = terms.data.train.take(torch.arange(options.seen))
        return default_at_shares(options.widths, seen, terms.data.num_classes, options.batch_sizes)

    jobs: list[tuple[str, Measurement]] = [
        ("shares", shares),
        ("predictions", partial(predictions, options.batch_sizes)),
        ("walls", measure_walls),
    ]
    jobs = [job for job in jobs if job[0] not in found]
    for seed in sorted(set(options.seeds) - there("duel", "seed")):
        jobs.append(("duel", partial(half_the_latency, terms, seed, peer=bool(options.peer))))
    for network in NETWORKS:
        if network not in there("sweeps", "network"):
            jobs.append(("sweeps", partial(compare, network, options.cache, options.epochs)))
    yield from (job for job in jobs if job[0] in options.only)


def _machine() -> str:
    return f"ONNX Runtime {onnxruntime.__version__} on {cpu_name()}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 32, 64], help="of ResNet-20's first stage")
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
