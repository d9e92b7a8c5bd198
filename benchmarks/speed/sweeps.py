"""What the cheap analysis costs and what it is worth: beside the full sweep, and in two processes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

import pruning
from flows.fan_out import fan_out
from pruning.allocation.budget import Budget, BudgetSolver
from pruning.allocation.knapsack import allocate
from pruning.allocation.sensitivity import Sensitivity, Sweep
from pruning.evaluation import evaluate
from pruning.importance import find_criterion, order_channels
from pruning.plan.constraints import Limits, find_tied_groups
from pruning.plan.plan import Cost
from pruning.recovery.reconstruct import reconstruct
from pruning.statistics.collect import collect
from pruning.training.recipe import Recipe
from pruning.training.trainer import finetune
from tasks.config.prune_schema import Structured
from tasks.config.schema import load
from tasks.environment import REPOSITORY
from tasks.fingerprint import fingerprint
from tasks.stage_table import find_stage
from tasks.stages import analyze, baseline, prepare
from tasks.workspace import Workspace, seal
from zoo.datasets import digits, glyphs
from zoo.datasets.splits import Splits
from zoo.models import densenet, resnet20, vgg11

RATES = tuple(rate / 10 for rate in range(1, 10))
TARGET = 0.5
_SEEDS = 3
_SWEEPS: tuple[tuple[Sweep, bool], ...] = (("full", False), ("knee", True))
GLYPHS = {"num_samples": 3000, "num_validation": 620, "num_test": 6200}


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
        network: Whose curves were measured.
        sweep: At which rates.
        groups: The network has so many.
        evaluations: Of masked models.
        seconds: Of processor time.
        baseline: Accuracy of the network on the test split.
        macs: Share of the MACs that the plan leaves.
        refitted: Accuracy of the narrowed network without training.
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


def compare(name: str, cache: Path, epochs: int) -> list[Found]:
    """Measure one network by both sweeps: the full one in whole passes, the cheap one as the pipeline does it.

    Each plan for half the MACs is refitted and fine-tuned with every seed.

    Args:
        name: One of `NETWORKS`.
        cache: Folder of the baselines.
        epochs: Of fine-tuning.
    """
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
    assert isinstance(guard, Structured)
    target = Budget("MACs", cost.macs, (1 - TARGET) * whole)
    solver = BudgetSolver(find_tied_groups(groups, Limits(guard.min_channels, guard.max_group_rate)), target)
    found = []
    for sweep, share in _SWEEPS:
        begin = time.process_time()
        measuring = Sensitivity(model, groups, orders, RATES, data.validation, sweep=sweep, share=share)
        curves = [measuring.curve(group) for group in measuring.in_order()]
        seconds = time.process_time() - begin
        plan = allocate(groups, solver, curves, orders)
        dense = pruning.narrow(model, plan, example, groups=groups)
        reconstruct(dense, model, plan, groups, seen.inputs)
        refitted = evaluate(dense, data.test).score
        recipe = Recipe(
            name="distil", epochs=epochs, learning_rate=0.02, batch_size=64, distillation=0.7, temperature=4
        )
        tuned = []
        for seed in range(_SEEDS):
            finetune(trained := deepcopy(dense), data.train, recipe, seed=seed, teacher=model)
            tuned.append(evaluate(trained, data.test).score)
        found.append(
            Found(
                name,
                sweep,
                len(groups),
                measuring.num_evaluations,
                seconds,
                evaluate(model, data.test).score,
                pruning.count_macs(groups, plan) / whole,
                refitted,
                fmean(tuned),
            )
        )
    return found


@dataclass(frozen=True)
class Wall:
    """How long the stage `analyze` took.

    Attributes:
        processes: That measured side by side.
        seconds: By the clock.
    """

    processes: int
    seconds: float


def measure_walls() -> list[Wall]:
    """Time the stage on ResNet-20 with fresh weights, in one process and in two.

    The full sweep on 1,500 images: minutes, since each process takes seconds to start.
    """
    walls = []
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
            with fan_out(settings) as parts:
                analyze.analyze(settings, workspace, parts)
            walls.append(Wall(processes, time.perf_counter() - begin))
    return walls


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
        "data": {"factory": "zoo.datasets:glyphs", "kwargs": {**GLYPHS, "num_validation": 1500}},
        "model": {"factory": "zoo.models:resnet20", "weights": "weights.safetensors"},
        "baseline": {"recipe": None},
        "analyze": {"sweep": "full"},
        "machine": {"processes": processes},
        "prune": {"target": {"mac_reduction": TARGET}, "recipes": []},
    }
