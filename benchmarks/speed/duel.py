"""Half the latency: Secateur by a profile, Torch-Pruning by rounding to 8 at the same measured latency."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from operator import itemgetter
from typing import Any

from torch import nn

import pruning
from benchmarks.contest.terms import Terms, accuracy
from benchmarks.speed.race import Time, profiled, race
from pruning.allocation.budget import LatencyReduction
from pruning.allocation.selection import Scope
from pruning.importance import find_criterion
from pruning.latency.profile import Profiles
from pruning.plan.constraints import Limits
from pruning.recovery.calibrate import recalibrate
from pruning.recovery.reconstruct import reconstruct
from pruning.statistics.collect import collect
from pruning.training.recipe import Recipe
from pruning.training.trainer import finetune
from tasks.config.prune_schema import Structured
from tasks.config.schema import load
from tasks.environment import REPOSITORY

_BISECTIONS = 6
_WITHIN = 0.02  # of what was asked: where the loop's correction ends too
_ROUND_TO = 8


@dataclass(frozen=True)
class Outcome:
    """What a way came to.

    Attributes:
        name: Whose, and which.
        seed: Of baseline and training.
        share: Measured latency over the baseline's, batch 1, one thread.
        predicted: The same by the profile.
        macs_share: MACs over the baseline's.
        recovered: Accuracy on the test split before training.
        tuned: After fine-tuning, the same number of epochs for all.
        baseline: Accuracy of the baseline.
        least_kept: The least share of its channels that a layer kept.
    """

    name: str
    seed: int
    share: float
    predicted: float
    macs_share: float
    recovered: float
    tuned: float
    baseline: float
    least_kept: float


def half_the_latency(terms: Terms, seed: int, *, peer: bool, share: float = 0.5) -> list[Outcome]:
    """Come down to a share of the baseline's latency, and fine-tune.

    Torch-Pruning gets the largest networks of its that take at most as long as ours, measured; with widths in steps of
    8 they may be a good deal faster, so ours is made again at the latency of the slower one.

    Args:
        terms: Data, baselines, number of epochs.
        seed: Of baseline and training.
        peer: Whether Torch-Pruning takes part; it has to be installed.
        share: Of the baseline's latency, batch 1, one thread.
    """
    baseline, example = terms.baseline(seed), terms.data.test.inputs[:1]
    groups = pruning.find_groups(baseline, example)
    profiles = profiled(groups, [1])
    settings = load(REPOSITORY / "params.yaml").prune
    assert isinstance(settings, Structured)
    statistics = collect(groups, find_criterion(settings.criterion).needs, terms.seen, seed=seed)

    def ours(asked: float) -> nn.Module:
        plan = pruning.make_plan(
            groups,
            settings.criterion,
            LatencyReduction(1 - asked, profiles.profiles[0]),
            scope=Scope("global", settings.allocation.normalise),
            samples=statistics,
            limits=Limits(settings.min_channels, settings.max_group_rate),
        )
        dense = pruning.narrow(baseline, plan, example, groups=groups)
        reconstruct(dense, baseline, plan, groups, terms.unlabelled, ridge=settings.recover.ridge)
        return dense

    def ours_as_measured(wanted: float) -> nn.Module:
        dense, asked = ours(wanted), wanted
        for _ in range(2):  # the loop corrects its goal by what it measured, see tasks/loop/targets.py
            found = _time(baseline, dense, terms, profiles)
            if abs(found.share / wanted - 1) <= _WITHIN:
                break
            asked *= wanted / found.share
            dense = ours(asked)
        return dense

    whole = accuracy(baseline, terms.data.test)
    judge = partial(_outcome, baseline=baseline, whole=whole, terms=terms, profiles=profiles, seed=seed)
    recipe = settings.recipes[0].model_copy(update={"epochs": terms.epochs})
    outcomes = [judge(f"secateur, latency {share:g}", ours_as_measured(share), recipe=recipe)]
    if peer:
        for name, everywhere in (("magnitude, local", False), ("magnitude, global", True)):
            model = _to_share(terms, baseline, profiles, outcomes[0].share, everywhere)
            recalibrate(model, terms.seen, num_samples=len(terms.unlabelled))
            outcomes.append(judge(f"torch-pruning, {name}, round_to={_ROUND_TO}", model, recipe=terms.recipe))
        theirs = max(one.share for one in outcomes[1:])
        outcomes.append(
            judge("secateur, latency of Torch-Pruning's slower one", ours_as_measured(theirs), recipe=recipe)
        )
    return outcomes


def _time(baseline: nn.Module, model: nn.Module, terms: Terms, profiles: Profiles) -> Time:
    (found,) = race(baseline, {"model": model}, terms.data.test.inputs[:1], profiles)
    return found


def _outcome(
    name: str,
    model: nn.Module,
    *,
    baseline: nn.Module,
    whole: float,
    terms: Terms,
    profiles: Profiles,
    recipe: Recipe,
    seed: int,
) -> Outcome:
    time, recovered = _time(baseline, model, terms, profiles), accuracy(model, terms.data.test)
    finetune(model, terms.data.train, recipe, seed=seed, teacher=baseline if recipe.distillation else None)
    kept = [
        len(after) / len(before)
        for before, after in zip(baseline.parameters(), model.parameters(), strict=True)
        if before.ndim == 4
    ]
    return Outcome(
        name,
        seed,
        time.share,
        time.predicted,
        time.macs_share,
        recovered,
        accuracy(model, terms.data.test),
        whole,
        min(kept),
    )


def _to_share(terms: Terms, baseline: nn.Module, profiles: Profiles, share: float, everywhere: bool) -> nn.Module:
    """Bisect Torch-Pruning's ratio for the largest network whose measured latency is at most a share.

    Where none of them is, the fastest: its row shows by how much.
    """
    low, high = 0.0, 1.0
    tried: list[tuple[float, nn.Module]] = []
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        model = _theirs(terms, baseline, middle, everywhere)
        found = _time(baseline, model, terms, profiles)
        tried.append((found.share, model))
        if found.share <= share * (1 + _WITHIN):
            high = middle
        else:
            low = middle
    fast_enough = [one for one in tried if one[0] <= share * (1 + _WITHIN)]
    best = max(fast_enough, key=itemgetter(0)) if fast_enough else min(tried, key=itemgetter(0))
    return best[1]


def _theirs(terms: Terms, baseline: nn.Module, ratio: float, everywhere: bool) -> nn.Module:
    torch_pruning = import_module("torch_pruning")
    model = deepcopy(baseline)
    importance: Callable[..., Any] = torch_pruning.importance.MagnitudeImportance(p=2)
    pruner = torch_pruning.pruner.BasePruner(
        model,
        terms.data.test.inputs[:1],
        importance=importance,
        global_pruning=everywhere,
        pruning_ratio=ratio,
        max_pruning_ratio=0.9 if everywhere else 1.0,
        round_to=_ROUND_TO,
        ignored_layers=[layer for layer in model.modules() if isinstance(layer, nn.Linear)],
    )
    pruner.step()
    return model
