"""The language model of `examples/language_model` without training, by several methods at the same parameters.

    python -m benchmarks.language_model --seeds 0 1 2 --json language-model.json

Each seed has a baseline of its own. All methods see the same texts of the training split; `evolve` compares models on
texts of the validation split, without a label. A baseline that was trained, and a result that the JSON file holds, are
not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from math import exp
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import pruning
from benchmarks.evolved import evolved_plan
from pruning.allocation.budget import Budget, BudgetSolver
from pruning.allocation.depth import score_blocks
from pruning.allocation.selection import Scope, choose
from pruning.batches import Samples
from pruning.evaluation import evaluate
from pruning.importance import Ranking, needs_of
from pruning.plan.blocks import find_blocks
from pruning.plan.constraints import Limits, find_tied_groups
from pruning.plan.plan import Cost, Plan
from pruning.recovery.normal_equations import MEAN_ALONE
from pruning.recovery.reconstruct import RIDGE, reconstruct
from pruning.statistics.collect import collect
from pruning.task import CausalLM
from pruning.training.recipe import Recipe
from pruning.training.trainer import finetune
from tasks.config.yaml_io import read_mapping
from zoo.datasets.splits import Splits

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "language_model"
TASK = CausalLM()
LIMITS = Limits(min_channels=1, max_group_rate=0.95)
CALIBRATION, GENERATIONS = 256, 20


@dataclass(frozen=True)
class Setting:
    """What all methods are given.

    Attributes:
        model: The baseline.
        data: Its texts.
        reduction: Share of the parameters to go.
        seed: Of what draws.
    """

    model: nn.Module
    data: Splits
    reduction: float
    seed: int

    @property
    def texts(self) -> Tensor:
        """What recovery and criteria see."""
        found: Tensor = self.data.train.inputs[:CALIBRATION]
        return found


def by_channels(criterion: str, scopes: Sequence[Scope], ridge: float, setting: Setting, *, search: bool) -> nn.Module:
    """Remove channels; recover the model by least squares, or its means alone.

    Args:
        criterion: Which go first.
        scopes: How the target is divided; the first, or where a search starts.
        ridge: For `reconstruct`.
        setting: What all methods are given.
        search: Whether to search by evolution.
    """
    model, texts, seed = setting.model, setting.texts, setting.seed
    groups = pruning.find_groups(model, texts[:1])
    statistics = collect(groups, needs_of(criterion) | {"moments"}, texts, TASK, seed=seed)
    ranking, cost = Ranking(groups, criterion, statistics), Cost(groups)
    budget = Budget("parameters", cost.parameters, (1 - setting.reduction) * cost.parameters({}))
    solver = BudgetSolver(find_tied_groups(groups, LIMITS), budget)
    plans = [choose(ranking, solver, one) for one in scopes]
    plan = plans[0]
    if search:
        plan = evolved_plan(
            solver,
            ranking,
            statistics,
            plans,
            original=model,
            calibration=texts,
            num_samples=len(texts),
            judged_on=setting.data.validation.inputs[:CALIBRATION],
            divergence=partial(TASK.distillation, temperature=1.0),
            generations=GENERATIONS,
            seed=seed,
        )
    dense = pruning.narrow(model, plan, texts[:1], groups=groups)
    reconstruct(dense, model, plan, groups, texts, ridge=ridge)
    return dense


def by_depth(setting: Setting) -> nn.Module:
    """Remove residual branches (attention and MLPs apart), the least influence first, until the target is met."""
    model, texts = setting.model, setting.texts
    blocks = find_blocks(model, texts[:1])
    scores = score_blocks(blocks, texts, "block_influence")
    target = (1 - setting.reduction) * _parameters(model)
    gone: list[str] = []
    for name in sorted(scores, key=lambda one: scores[one]):
        gone.append(name)
        dense = pruning.narrow(model, Plan(removed={}, sizes={}, blocks=tuple(gone)), texts[:1])
        if _parameters(dense) <= target:
            return dense
    raise ValueError(f"all branches together are fewer than {setting.reduction:.0%} of the parameters")


ALL = [Scope("global", one) for one in ("mean", "macs", "none", "lamp")] + [Scope("local")]
METHODS: dict[str, Callable[[Setting], nn.Module]] = {
    "evolve": partial(by_channels, "structured_obs", ALL, RIDGE, search=True),
    "structured OBS, global": partial(by_channels, "structured_obs", ALL[:1], RIDGE, search=False),
    "FLAP": partial(by_channels, "flap", [Scope("global", "standard")], MEAN_ALONE, search=False),
    "Wanda-sp": partial(by_channels, "wanda", [Scope("local")], MEAN_ALONE, search=False),
    "Minitron's activations": partial(by_channels, "minitron", [Scope("local")], MEAN_ALONE, search=False),
    "block influence": by_depth,
    "random, reconstructed": partial(by_channels, "random", [Scope("local")], RIDGE, search=False),
    "random": partial(by_channels, "random", [Scope("local")], MEAN_ALONE, search=False),
}


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _nothing(_outputs: Any, targets: Tensor) -> Tensor:
    return torch.zeros(len(targets))


def perplexity(model: nn.Module, samples: Samples) -> float:
    """Return exp of the mean cross entropy of a byte."""
    return exp(evaluate(model, samples, loss=TASK, metric=_nothing).loss)


def baseline(make: Callable[[], nn.Module], data: Splits, seed: int, cache: Path) -> nn.Module:
    """Train the baseline as the example's settings say, or load what was trained."""
    torch.manual_seed(seed)
    model, place = make(), cache / f"language-model-{len(data.train.inputs)}-{seed}.safetensors"
    if place.exists():
        model.load_state_dict(load_file(place))
        return model.eval()
    recipe = Recipe(name="baseline", **read_mapping(EXAMPLE / "params.yaml")["baseline"]["recipe"])
    finetune(model, data.train, recipe, loss=TASK, seed=seed)
    cache.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), place)
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.language_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--reductions", nargs="+", type=float, default=[0.25, 0.4])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--json", type=Path, default=Path("language-model.json"), metavar="FILE")
    parser.add_argument("--cache", type=Path, default=Path(".benchmark"), metavar="FOLDER", help="of the baselines")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sys.path.insert(0, str(EXAMPLE))
    make_model, data = import_module("net").make_model, import_module("data").load()  # the example's own
    found: list[dict[str, Any]] = json.loads(options.json.read_text()) if options.json.exists() else []
    for seed in options.seeds:
        model = baseline(make_model, data, seed, options.cache)
        whole = perplexity(model, data.test)
        for reduction in options.reductions:
            for name in options.only:
                key = {"seed": seed, "reduction": reduction, "method": name}
                if any(row.items() >= key.items() for row in found):
                    continue
                start = time.process_time()
                dense = METHODS[name](Setting(model, data, reduction, seed))
                row = {
                    **key,
                    "parameters": _parameters(dense) / _parameters(model),
                    "baseline": whole,
                    "perplexity": perplexity(dense, data.test),
                    "cpu_seconds": time.process_time() - start,
                }
                found.append(row)
                options.json.write_text(json.dumps(found, indent=1))
                print(
                    f"seed {seed}  −{reduction:.0%}  {name:24}  {row['perplexity'] / whole:6.3f} × {whole:.3f}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
