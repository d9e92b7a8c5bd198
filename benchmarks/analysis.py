"""What the cheap analysis costs and what it is worth: beside the full sweep, and in two processes.

    python -m benchmarks.analysis --markdown docs/analysis.md --json analysis.json
    python -m benchmarks.analysis --only vgg11 --no-wall

For each network: evaluations and processor time of both sweeps, and the plans that are made from their curves at half
the MACs, each refitted and fine-tuned alike, with three seeds. Then the stage itself in one process and in two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import chdir
from copy import deepcopy
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

import pruning
from flows.fan_out import in_processes
from pruning.choosing.allocation import allocate
from pruning.choosing.landing import Landing, Target
from pruning.choosing.sensitivity import Sensitivity, Sweep
from pruning.criteria import find_criterion, order_channels
from pruning.evaluation import evaluate
from pruning.gathering.statistics import collect
from pruning.recovery.reconstruction import reconstruct
from pruning.structure.bundles import Limits, find_bundles
from pruning.structure.cost import Cost
from pruning.training.epochs import finetune
from pruning.training.recipe import Recipe
from tasks import analyze, baseline, prepare
from tasks.environment import REPOSITORY
from tasks.fingerprints import fingerprint
from tasks.params.settings import load
from tasks.stages import find_stage
from tasks.workspace import Workspace, seal
from zoo.datasets import digits, glyphs
from zoo.datasets.splits import Splits
from zoo.models import densenet, resnet20, vgg11

RATES = tuple(rate / 10 for rate in range(1, 10))
TARGET = 0.5
_SEEDS = 3
GLYPHS = {"num_samples": 3000, "num_validation": 620, "num_test": 1240}


@dataclass(frozen=True)
class Network:
    """A network of the zoo and its data."""

    data: Callable[[], Splits]
    make: Callable[[Splits], nn.Module]


NETWORKS = {
    "vgg11": Network(lambda: glyphs(**GLYPHS), lambda data: vgg11((1, 32, 32), data.num_classes, width=16)),
    "densenet": Network(digits, lambda data: densenet((1, 8, 8), data.num_classes, depth=22)),
    "resnet20": Network(lambda: glyphs(**GLYPHS), lambda data: resnet20((1, 32, 32), data.num_classes)),
}


@dataclass(frozen=True)
class Found:
    """What one sweep of one network cost, and what came of its plan.

    Attributes:
        evaluations: Of masked models.
        seconds: Of processor time.
        macs: Share of the MACs that the plan leaves.
        refitted: Accuracy on the test split without training.
        tuned: And after fine-tuning, the mean over its seeds.
    """

    network: str
    sweep: Sweep
    groups: int
    evaluations: int
    seconds: float
    baseline: float
    macs: float
    refitted: float
    tuned: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    found = [one for name in options.only or () for one in compare(name, options.cache, options.epochs)]
    walls = {} if options.no_wall else measure_walls()
    text = as_markdown(found, walls)
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps({"sweeps": [asdict(one) for one in found], "wall_s": walls}, indent=2))
    return 0


def compare(name: str, cache: Path, epochs: int) -> list[Found]:
    """Measure one network by both sweeps: the full one in whole passes, the cheap one as the pipeline does it."""
    network = NETWORKS[name]
    data = network.data()
    model = _trained(name, network, data, cache)
    example = data.test.inputs[:1]
    groups = pruning.find_groups(model, example)
    seen = data.train.take(torch.arange(512))
    statistics = collect(groups, find_criterion("l2_norm").needs, seen)
    orders = {group.name: order_channels("l2_norm", group, statistics) for group in groups}
    cost, whole = Cost(groups), pruning.count_macs(groups)
    guard = load(REPOSITORY / "params.yaml").prune
    target = Target("MACs", cost.macs, (1 - TARGET) * whole)
    landing = Landing(
        find_bundles(groups, Limits(keep_at_least=guard.keep_at_least, max_rate=guard.max_group_rate)), target
    )
    found = []
    for sweep, share in (("full", False), ("knee", True)):
        begin = time.process_time()
        measuring = Sensitivity(model, groups, orders, RATES, data.validation, sweep=sweep, share=share)  # type: ignore[arg-type]
        curves = [measuring.curve(group) for group in measuring.in_order()]
        seconds = time.process_time() - begin
        plan = allocate(groups, landing, curves, orders)
        dense = pruning.narrow(model, plan, example, groups=groups)
        reconstruct(dense, model, plan, groups, seen.inputs)
        refitted = evaluate(dense, data.test).accuracy
        recipe = Recipe(
            name="distil", epochs=epochs, learning_rate=0.02, batch_size=64, distillation=0.7, temperature=4
        )
        tuned = []
        for seed in range(_SEEDS):
            finetune(trained := deepcopy(dense), data.train, recipe, seed=seed, teacher=model)
            tuned.append(evaluate(trained, data.test).accuracy)
        found.append(
            Found(
                name,
                sweep,  # type: ignore[arg-type]
                len(groups),
                measuring.num_evaluations,
                seconds,
                evaluate(model, data.test).accuracy,
                pruning.count_macs(groups, plan) / whole,
                refitted,
                fmean(tuned),
            )
        )
    return found


def measure_walls() -> dict[int, float]:
    """Time the stage on ResNet-20 with fresh weights, in one process and in two: number of processes -> seconds.

    The full sweep on 1,500 images: minutes, since each process takes seconds to start.
    """
    walls = {}
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        save_file(resnet20((1, 32, 32), 62).state_dict(), "weights.safetensors")
        for processes in (1, 2):
            Path("params.yaml").write_text(yaml.safe_dump(_project(processes)), encoding="utf-8")
            settings, workspace = load(Path("params.yaml")), Workspace(Path("artifacts"))
            for name, body in (("prepare", prepare.prepare), ("baseline", baseline.baseline)):
                stage = find_stage(name)
                body(settings, workspace)
                seal(workspace.folder(stage.folder), fingerprint(stage, settings, workspace))
            begin = time.perf_counter()
            analyze.analyze(settings, workspace, in_processes)
            walls[processes] = time.perf_counter() - begin
    return walls


def as_markdown(found: Sequence[Found], walls: dict[int, float]) -> str:
    """Return the tables, with date and hardware."""
    date = datetime.now(UTC).date().isoformat()
    cores, load_average = os.cpu_count(), os.getloadavg()[0]
    lines = [
        f"Measured on {date} by `python -m benchmarks.analysis` on {cores} cores ({platform.machine()}) at a load of "
        f"{load_average:.1f}.",
        "",
        "| network | sweep | groups | evaluations | processor time | MACs left | refitted | fine-tuned | baseline |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {one.network} | {one.sweep} | {one.groups} | {one.evaluations} | {one.seconds:.1f} s "
            f"| {one.macs:.2%} | {one.refitted:.2%} | {one.tuned:.2%} | {one.baseline:.2%} |"
            for one in found
        ),
    ]
    if walls:
        lines += [
            "",
            f"The stage: {walls[1]:.1f} s in one process, {walls[2]:.1f} s in two ({walls[2] / walls[1]:.2f}).",
        ]
    return "\n".join(lines) + "\n"


def _trained(name: str, network: Network, data: Splits, cache: Path) -> nn.Module:
    torch.manual_seed(0)
    model = network.make(data)
    place = cache / f"analysis-{name}.safetensors"
    if place.exists():
        model.load_state_dict(load_file(place))
    else:
        finetune(model, data.train, Recipe(epochs=8, learning_rate=0.1, schedule="one_cycle", batch_size=64), seed=0)
        cache.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), place)
    return model.eval()


def _project(processes: int) -> dict[str, object]:
    return {
        "data": {"factory": "zoo.datasets:glyphs", "arguments": {**GLYPHS, "num_validation": 1500}},
        "model": {"factory": "zoo.models:resnet20", "weights": "weights.safetensors"},
        "baseline": {"recipe": None},
        "analyze": {"sweep": "full"},
        "machine": {"processes": processes},
        "prune": {"target": {"mac_reduction": TARGET}, "recipes": []},
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=NETWORKS, default=list(NETWORKS), help="these networks alone")
    parser.add_argument("--epochs", type=int, default=6, help="of fine-tuning, as in params.yaml")
    parser.add_argument("--no-wall", action="store_true", help="don't time the stage in one process and in two")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--cache", type=Path, default=Path(".benchmark"), metavar="FOLDER", help="of the baselines")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
