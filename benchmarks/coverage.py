"""Try the engine on many architectures that it doesn't know, and print a table.

    python -m benchmarks.coverage --only 'timm/*' --markdown coverage.md --json coverage.json
    python -m benchmarks.coverage --peer torch-pruning          # the same for Torch-Pruning, in the same run
    python -m benchmarks.coverage --speed --peer torch-pruning  # large models: how long trace and plan take

Each architecture runs in a process of its own, with a time-out and a limit on memory. Needs the `bench` extra; what
isn't installed is left out, and said.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from tqdm import tqdm

from benchmarks.architectures import Architecture, find_architectures
from benchmarks.isolation import run_apart
from benchmarks.measure import Measurement, measure
from benchmarks.peer import measure_peer
from benchmarks.table import as_json, as_markdown

ENGINES: dict[str, Callable[[Architecture, bool], Measurement]] = {
    "secateur": measure,
    "secateur-streams": partial(measure, streams=True),
    "torch-pruning": measure_peer,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 where every architecture was measured."""
    options = _parser().parse_args(arguments)
    chosen = [one for pattern in options.only or ["*"] for one in find_architectures(pattern, large=options.speed)]
    chosen = list({one.name: one for one in chosen}.values())
    missing = sorted({one.package for one in chosen if not one.installed and one.package})
    if missing:
        print(f"left out, because they are not installed: {', '.join(missing)} (pip install -e '.[bench]')")
    names = [one.name for one in chosen if one.installed]
    if not names:
        print(f"no architecture matches {options.only}; see benchmarks/architectures/")
        return 1
    engines = ["secateur-streams" if options.streams else "secateur", *([options.peer] if options.peer else [])]
    rows: list[Measurement] = []
    for row in _measure_all(names, engines, options):
        rows.append(row)
        rows.sort(key=lambda r: (names.index(r.name), engines.index(r.engine)))
        # Written after every row, so that nothing is lost when the run is stopped.
        if options.json:
            options.json.write_text(as_json(rows))
        if options.markdown:
            options.markdown.write_text(as_markdown(rows))
    print(as_markdown(rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", metavar="PATTERN", help="names, parts of names or shell patterns of architectures"
    )
    parser.add_argument("--peer", choices=["torch-pruning"], help="try this tool too")
    parser.add_argument("--streams", action="store_true", help="offer residual streams behind norms, too")
    parser.add_argument("--speed", action="store_true", help="large models instead: time and memory of trace and plan")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was seen")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--jobs", type=int, default=1, help="architectures at the same time")
    parser.add_argument("--fast", action="store_true", help="trace once instead of twice")
    parser.add_argument("--time-out", type=float, default=180.0, metavar="SECONDS", help="for each architecture")
    parser.add_argument("--memory", type=float, default=12.0, metavar="GIB", help="for each architecture")
    return parser


def _measure_all(names: Sequence[str], engines: Sequence[str], options: argparse.Namespace) -> Iterator[Measurement]:
    pairs = [(name, engine) for name in names for engine in engines]
    with ThreadPoolExecutor(options.jobs) as pool, tqdm(total=len(pairs), unit="model") as bar:
        futures = [pool.submit(_measure_apart, *pair, options) for pair in pairs]
        for future in as_completed(futures):
            row = future.result()
            bar.update()
            if row.status != "exact":
                bar.write(f"{row.name} ({row.engine}): {row.status} {row.error[:160]}")
            yield row


def _measure_apart(name: str, engine: str, options: argparse.Namespace) -> Measurement:
    limits = {"timeout_s": options.time_out, "memory_gib": options.memory}
    try:
        row: Measurement = run_apart(measure_named, name, engine, options.speed, options.fast, **limits)
    except TimeoutError as fault:
        return Measurement(name, engine, "time-out", str(fault))
    except ChildProcessError as fault:
        return Measurement(name, engine, "killed", str(fault))
    return row


def measure_named(name: str, engine: str, large: bool, fast: bool) -> Measurement:
    """Measure one architecture in this process."""
    found = next(one for one in find_architectures(name, large=large) if one.name == name)
    return ENGINES[engine](found, fast)


if __name__ == "__main__":
    sys.exit(main())
