"""The engine's entries: every criterion by itself, the controls, and the default of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

import pruning
from benchmarks.contest.terms import Entry, Pruned, Terms, accuracy, macs
from benchmarks.evolved import evolved_plan
from pruning.allocation.budget import Budget, BudgetSolver
from pruning.allocation.selection import Scope, choose_by_trial, make_plan
from pruning.errors import TargetError
from pruning.evaluation import distillation_loss, evaluate
from pruning.importance import Ranking, criterion_names, find_criterion
from pruning.plan.constraints import Freedom, Limits, find_tied_groups
from pruning.plan.plan import Cost, Plan
from pruning.recovery.basis import in_principal_components
from pruning.recovery.calibrate import recalibrate
from pruning.recovery.fold import fold
from pruning.recovery.reconstruct import reconstruct
from pruning.statistics.collect import Statistics, collect
from pruning.training.recipe import Recipe
from tasks.config.prune_schema import Structured
from tasks.config.schema import load
from tasks.config.target_schema import Allocation
from tasks.environment import REPOSITORY
from tasks.loop.trial import within_better

TOOL = "secateur"
_GENERATIONS = 12
MAX_SPARSITY = 0.9  # of a group, where one threshold serves all


def entries() -> list[Entry]:
    """List the engine's entries; `random` is among the criteria."""
    criteria = [Entry(TOOL, name, partial(_by_criterion, name)) for name in criterion_names()]
    ways = [Entry(TOOL, name, partial(_default, change)) for name, change in _DEFAULT.items()]
    return [
        *ways,
        *criteria,
        Entry(TOOL, "uniform", _uniform),
        Entry(TOOL, "thin, from scratch, 3 × the epochs", _thin),
    ]


# The default of params.yaml, and what becomes of it without one of its parts.
_DEFAULT: dict[str, dict[str, Any]] = {
    "default": {},
    "default, the same share of every group": {"tried": ("local",)},
    "default, one threshold on the error per MAC": {"tried": ("macs",)},
    "default, allocation by trial": {"tried": Allocation().tried},
    "default, allocation by evolution": {"evolved": True},
    "default, batch norms recalibrated alone": {"reconstructed": False},
    "default, not distilled": {"distilled": False},
    "default, streams as they are": {"turned": False},
}


def _default(change: dict[str, Any], terms: Terms, baseline: nn.Module, seed: int, reduction: float) -> Pruned:
    """What params.yaml says, in one step and with the contest's number of epochs."""
    settings = load(REPOSITORY / "params.yaml").prune
    assert isinstance(settings, Structured)
    example = terms.data.test.inputs[:1]

    @cache
    def offered(streams: bool) -> tuple[pruning.Groups, Statistics]:
        groups = pruning.find_groups(baseline, example, allow_mixed=streams)
        if streams and change.get("turned", True):
            turned = in_principal_components(groups, terms.unlabelled).model
            groups = pruning.find_groups(turned, example, allow_mixed=True)
        return groups, collect(groups, find_criterion(settings.criterion).needs, terms.seen, seed=seed)

    def chosen_within(freedom: Freedom) -> tuple[Plan, str]:
        groups, statistics = offered(freedom.streams)

        def plan_by(allocation: Allocation) -> Plan:
            assert allocation.strategy in ("local", "global")
            return make_plan(
                groups,
                settings.criterion,
                mac_reduction=reduction,
                scope=Scope(allocation.strategy, allocation.normalise),
                samples=statistics,
                limits=freedom.limits,
            )

        if change.get("evolved", False):
            return _evolved(terms, baseline, groups, statistics, freedom.limits, plan_by, seed, reduction), ""
        if "tried" not in change:
            return plan_by(settings.allocation), ""
        ways = Allocation(strategy="trial", tried=change["tried"]).candidates_tried()
        plans = {name: plan_by(one) for name, one in ways.items()}
        judges = [partial(_losses, terms, groups, share * len(terms.unlabelled) // 4) for share in (1, 4)]
        name = next(one.name for one in choose_by_trial(plans, judges) if one.chosen)
        return plans[name], name

    def loss(made: tuple[Plan, str], freedom: Freedom) -> float:
        return float(_losses(terms, offered(freedom.streams)[0], len(terms.unlabelled), made[0]).mean())

    def freedoms() -> Iterator[Freedom]:
        for one in settings.freedoms:
            if not one.streams or any(group.mixed for group in offered(True)[0]):
                yield one

    (plan, way), freedom = within_better(freedoms, chosen_within, loss)
    note = ", ".join(filter(None, (way, "" if freedom == settings.freedoms[0] else f"within {freedom}")))
    groups, _ = offered(freedom.streams)
    dense = pruning.narrow(groups.model, plan, example, groups=groups)
    narrowed = deepcopy(dense)
    if change.get("reconstructed", True):
        reconstruct(dense, groups.model, plan, groups, terms.unlabelled, ridge=settings.recover.ridge)
    else:
        recalibrate(dense, terms.seen, num_samples=len(terms.unlabelled))
    recipe = distilling(terms)
    if not change.get("distilled", True):
        recipe = recipe.model_copy(update={"distillation": 0.0})
    return Pruned(dense, narrowed, recipe=recipe, teacher=baseline if recipe.distillation else None, note=note)


def _evolved(
    terms: Terms,
    baseline: nn.Module,
    groups: pruning.Groups,
    statistics: Statistics,
    limits: Limits,
    plan_by: Callable[[Allocation], Plan],
    seed: int,
    reduction: float,
) -> Plan:
    """What `allocation.strategy: evolve` comes to, with fewer generations."""
    allocation, cost = Allocation(), Cost(groups)
    budget = Budget("MACs", cost.macs, (1 - reduction) * cost.macs({}))
    solver = BudgetSolver(find_tied_groups(groups, limits), budget)
    solver.lowest()
    return evolved_plan(
        solver,
        Ranking(groups, "structured_obs", statistics),
        statistics,
        [plan_by(one) for one in (allocation, *allocation.candidates_tried().values())],
        original=baseline,
        calibration=terms.unlabelled,
        num_samples=len(terms.unlabelled),
        judged_on=terms.data.validation.inputs,
        divergence=partial(distillation_loss, temperature=1.0),
        generations=_GENERATIONS,
        seed=seed,
    )


def _losses(terms: Terms, groups: pruning.Groups, num_samples: int, plan: Plan) -> Tensor:
    """The loss of each validation image in the model that a plan leaves, reconstructed and not trained."""
    dense = pruning.narrow(groups.model, plan, terms.data.test.inputs[:1], groups=groups)
    reconstruct(dense, groups.model, plan, groups, terms.unlabelled[:num_samples])
    losses = evaluate(dense, terms.data.validation, batch_size=256, each=True).losses
    assert losses is not None, "it was asked for"
    return losses


def distilling(terms: Terms) -> Recipe:
    """The recipe of params.yaml, with the contest's number of epochs."""
    settings = load(REPOSITORY / "params.yaml").prune
    assert isinstance(settings, Structured)
    return settings.recipes[0].model_copy(update={"epochs": terms.epochs})


def better(terms: Terms, first: Pruned | None, second: Pruned | None) -> Pruned:
    """Of two, the one that the validation split prefers: what every tool is granted."""
    found = [one for one in (first, second) if one is not None]
    return max(found, key=lambda one: accuracy(one.model, terms.data.validation))


def _by_criterion(name: str, terms: Terms, baseline: nn.Module, seed: int, reduction: float) -> Pruned:
    """One criterion, by the better of the same share in every group and one threshold for all."""
    groups = pruning.find_groups(baseline, terms.data.test.inputs[:1])
    found = find_criterion(name)
    statistics = collect(groups, found.needs, terms.seen, seed=seed)

    def outcome(scope: Literal["local", "global"]) -> Pruned | None:
        try:
            plan = make_plan(
                groups,
                name,
                mac_reduction=reduction,
                scope=scope,
                samples=statistics,
                limits=Limits(max_group_rate=MAX_SPARSITY if scope == "global" else 1.0),
            )
        except TargetError:
            return None
        dense = pruning.narrow(baseline, plan, terms.data.test.inputs[:1], groups=groups)
        narrowed = deepcopy(dense)
        if found.folding is not None:
            fold(dense, plan, groups, statistics, name)
        recalibrate(dense, terms.seen, num_samples=len(terms.unlabelled))
        return Pruned(dense, narrowed, note=scope + (", folded" if found.folding else ""))

    return better(terms, outcome("local"), outcome("global"))


def _uniform(terms: Terms, baseline: nn.Module, _seed: int, reduction: float) -> Pruned:
    """The same share of every group, the first channels."""
    groups = pruning.find_groups(baseline, terms.data.test.inputs[:1])
    plan = make_plan(groups, _first_channels, mac_reduction=reduction)
    dense = pruning.narrow(baseline, plan, terms.data.test.inputs[:1], groups=groups)
    narrowed = deepcopy(dense)
    recalibrate(dense, terms.seen, num_samples=len(terms.unlabelled))
    return Pruned(dense, narrowed)


def _first_channels(group: pruning.Group, _statistics: object) -> torch.Tensor:
    return torch.arange(group.size, dtype=torch.float64)


def _thin(terms: Terms, baseline: nn.Module, seed: int, reduction: float) -> Pruned:
    """The same share of every group, and fresh weights: what the widths alone are worth."""
    groups = pruning.find_groups(baseline, terms.data.test.inputs[:1])
    plan: Plan = make_plan(groups, _first_channels, mac_reduction=reduction)
    torch.manual_seed(seed)
    dense = pruning.narrow(terms.make_model(), plan, terms.data.test.inputs[:1])
    assert abs(1 - macs(dense, terms) / macs(baseline, terms) - reduction) < 0.02
    return Pruned(dense, deepcopy(dense), recipe=terms.kind.recipe(3 * terms.epochs))
