"""Widths by a profile at shares of the MACs, and predictions on the networks of the zoo: time needs no training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

import pruning
from benchmarks.speed.race import Time, profiled, race
from pruning.allocation.budget import Budget, BudgetSolver
from pruning.allocation.selection import Scope
from pruning.errors import TargetError
from pruning.evaluation import TensorSamples
from pruning.importance import find_criterion
from pruning.latency.profile import LatencyCost
from pruning.plan.constraints import Limits, find_tied_groups
from pruning.plan.plan import Cost
from pruning.statistics.collect import collect
from tasks.config.prune_schema import Structured
from tasks.config.schema import load
from tasks.environment import REPOSITORY
from zoo.models import densenet, mobilenet, resnet20, vgg11

REDUCTIONS = (0.5, 0.7, 0.85)
_RESTARTS, _STEPS = 8, 600

ZOO: dict[str, Callable[..., nn.Module]] = {
    "resnet20, width 32": lambda **given: resnet20(width=32, **given),
    "vgg11": vgg11,
    "mobilenet": mobilenet,
    "densenet": densenet,
}


def default_at_shares(
    widths: Sequence[int], seen: TensorSamples, num_classes: int, batch_sizes: Sequence[int]
) -> list[Time]:
    """Measure ResNet-20 at shares of the MACs, its widths rounded by its own profile.

    Args:
        widths: Of the first stage; each is a network, with the weights that it was made with.
        seen: What the criterion looks at.
        num_classes: Of the data.
        batch_sizes: Samples per pass; the default rounds by the first.
    """
    settings = load(REPOSITORY / "params.yaml").prune
    assert isinstance(settings, Structured)
    times = []
    for width in widths:
        torch.manual_seed(0)
        example = seen.inputs[:1]
        channels, height, breadth = example.shape[1:]
        model = resnet20(input_shape=(channels, height, breadth), num_classes=num_classes, width=width).eval()
        groups = pruning.find_groups(model, example)
        profiles = profiled(groups, batch_sizes)
        statistics = collect(groups, find_criterion(settings.criterion).needs, seen)
        networks = {}
        for reduction in REDUCTIONS:
            try:
                plan = pruning.make_plan(
                    groups,
                    settings.criterion,
                    mac_reduction=reduction,
                    scope=Scope("global", settings.allocation.normalise),
                    round_to=profiles.profiles[0],
                    limits=Limits(settings.min_channels, settings.max_group_rate),
                    samples=statistics,
                )
            except TargetError as fault:
                print(f"width {width}, {reduction:.0%}: {fault}")
                continue
            networks[f"width {width}, {reduction:.0%} of MACs asked"] = pruning.narrow(
                model, plan, example, verify=False
            )
        costs = {one.runtime.batch_size: LatencyCost(groups, one) for one in profiles.profiles}
        times += [
            replace(one, least=fastest(groups, costs[one.batch_size], one.macs_share, settings.max_group_rate))
            for one in race(model, networks, example, profiles)
        ]
    return times


def fastest(groups: pruning.Groups, cost: LatencyCost, macs_share: float, max_rate: float) -> float:
    """Look for the widths of so many MACs that are predicted to be fastest, whatever they do to accuracy.

    A random walk over multiples of the profile's granule, from the narrowest, with restarts: it says how much of the
    distance between latency and MACs is the runtime's.

    Returns:
        The predicted share of the whole model's latency.
    """
    random, whole = np.random.default_rng(0), pruning.count_macs(groups)
    bundles = find_tied_groups(groups, Limits(max_group_rate=max_rate), round_to=cost.profile.granule)
    by_macs = BudgetSolver(bundles, Budget("MACs", Cost(groups).macs, macs_share * whole))
    by_time = BudgetSolver(bundles, Budget("latency", cost.predict, 0.0))
    whole_ms = cost.predict({})

    def judge(levels: Sequence[int]) -> tuple[float, float]:
        """Return the share of the latency, and by how much the share of the MACs is outside of what was asked."""
        share = by_macs.cost(levels) / whole
        return by_time.cost(levels) / whole_ms, max(share - macs_share, 0.97 * macs_share - share, 0.0)

    least = float("inf")
    for _ in range(_RESTARTS):
        levels = by_macs.highest
        at = judge(levels)
        for _ in range(_STEPS):
            other = list(levels)
            for index in random.integers(len(levels), size=2):  # what one gives, the other can take
                other[index] = int(random.integers(len(bundles[index].counts)))
            found = judge(other)
            if (found[1], found[0]) <= (at[1], at[0]):
                levels, at = other, found
        if at[1] == 0:
            least = min(least, at[0])
    return least


def predictions(batch_sizes: Sequence[int], reduction: float = 0.5) -> list[Time]:
    """Measure four networks with the same share of every group gone, and compare with what the profile says.

    Args:
        batch_sizes: Samples per pass.
        reduction: Share of the MACs that go.
    """
    times = []
    for name, make in ZOO.items():
        torch.manual_seed(0)
        example = torch.randn(1, 3, 32, 32)
        model = make(input_shape=(3, 32, 32), num_classes=10).eval()
        groups = pruning.find_groups(model, example)
        profiles = profiled(groups, batch_sizes)
        networks = {}
        for kind, round_to in (("rounded", profiles.profiles[0]), ("multiples of 8", 8)):
            plan = pruning.make_plan(groups, mac_reduction=reduction, round_to=round_to)
            networks[f"{name}, {kind}"] = pruning.narrow(model, plan, example, verify=False)
        times += race(model, networks, example, profiles)
    return times
