"""Every criterion at the same targets, from the same baselines, with the same fine-tuning: a table and a plot.

    python -m benchmarks.criteria --json criteria.json --markdown criteria.md --plot criteria.png
    python -m benchmarks.criteria --peer torch-pruning          # ten of its criteria, in the same run
    python -m benchmarks.criteria --only default l2_norm --seeds 0

    python -m benchmarks.criteria --networks vgg vit --data fashion_mnist --folder /usr/share/datasets/fashion-mnist

Eight kinds of networks (`benchmarks/contest/networks.py`), on rendered characters (62 classes, 32 × 32) or photographs
of clothes; the text transformer on pieces of source code. A result that the JSON file holds already is not measured
again, so a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.contest import ours, theirs
from benchmarks.contest.networks import NETWORKS, TEXTS
from benchmarks.contest.tables import as_json, as_markdown, draw
from benchmarks.contest.terms import Entry, Result, Terms, enter


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 where every entry came to a result."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    terms = {name: _terms(options, name) for name in options.networks}
    entries = {(one.tool, one.name): one for one in _entries(options.peer)}
    results = _known(options.json)
    done = {(one.network, one.dataset, one.tool, one.name, one.seed, one.target) for one in results}
    wanted = [
        (network, *key, seed, target)
        for network in options.networks
        for target in sorted(options.targets, reverse=True)  # the hardest first
        for seed in options.seeds
        for key in entries
        if (not options.only or key[1] in options.only)
        and (network, terms[network].dataset, *key, seed, target) not in done
    ]
    for network, seed in sorted({(task[0], task[3]) for task in wanted}):
        terms[network].baseline(seed)
    with (
        ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool,
        tqdm(total=len(wanted), unit="result") as bar,
    ):
        for future in as_completed([pool.submit(_measure, options.peer, terms[task[0]], *task[1:]) for task in wanted]):
            results.append(future.result())
            bar.update()
            if options.json:
                options.json.write_text(as_json(results), encoding="utf-8")
    table = as_markdown(results)
    print(table)
    if options.markdown:
        options.markdown.write_text(table, encoding="utf-8")
    networks = sorted({one.network for one in results})
    for network in networks if options.plot else ():
        name = options.plot.stem if len(networks) == 1 else f"{options.plot.stem}-{network}"
        draw([one for one in results if one.network == network], options.plot.with_stem(name))
    return int(any(result.fault for result in results))


def _entries(peer: str | None) -> list[Entry]:
    return [*ours.entries(), *(theirs.entries() if peer else [])]


def _measure(peer: str | None, terms: Terms, tool: str, name: str, seed: int, target: float) -> Result:
    torch.set_num_threads(1)
    entry = next(one for one in _entries(peer) if (one.tool, one.name) == (tool, name))
    return enter(entry, terms, seed, target)


def _known(path: Path | None) -> list[Result]:
    if path is None or not path.exists():
        return []
    return [Result(**row) for row in json.loads(path.read_text(encoding="utf-8"))["results"]]


def _terms(options: argparse.Namespace, network: str) -> Terms:
    return Terms(
        num_samples=options.samples,
        baseline_epochs=options.baseline_epochs,
        epochs=options.epochs,
        calibration=512,
        statistics=512,
        cache=options.cache,
        network=network,
        dataset=TEXTS if NETWORKS[network].reads_text else options.data,
        folder=options.folder,
        num_test=options.test,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.criteria", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", choices=[theirs.TOOL], help="try this tool's criteria too")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet20"], metavar="NETWORK")
    parser.add_argument("--data", choices=["glyphs", "fashion_mnist"], default="glyphs", help="of networks for images")
    parser.add_argument("--folder", type=Path, help="where the files of fashion_mnist lie")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these ways alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--targets", nargs="+", type=float, default=[0.5, 0.7, 0.85], help="shares of the MACs to go")
    parser.add_argument("--epochs", type=int, default=3, help="of fine-tuning; 0: none")
    parser.add_argument("--samples", type=int, default=3000, help="training images")
    parser.add_argument("--test", type=int, default=1240, help="test images")
    parser.add_argument("--baseline-epochs", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured; go on from it")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the plot")
    parser.add_argument("--cache", type=Path, default=Path(".benchmark"), metavar="FOLDER", help="of the baselines")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
