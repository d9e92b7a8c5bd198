"""The default at shares of the MACs, and predictions on the networks of the zoo: time needs no training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

import pruning
from benchmarks.speed.race import Time, profiled, race
from pruning.errors import TargetError
from pruning.evaluation import Samples
from tasks.environment import REPOSITORY
from tasks.settings import load
from zoo.models import densenet, mobilenet, resnet20, vgg11

REDUCTIONS = (0.5, 0.7, 0.85)

ZOO: dict[str, Callable[..., nn.Module]] = {
    "resnet20, width 32": lambda **given: resnet20(width=32, **given),
    "vgg11": vgg11,
    "mobilenet": mobilenet,
    "densenet": densenet,
}


def default_at_shares(widths: Sequence[int], seen: Samples, num_classes: int, batch_sizes: Sequence[int]) -> list[Time]:
    """Measure what the default of params.yaml makes of ResNet-20 at shares of the MACs.

    Args:
        widths: Of the first stage; each is a network, with the weights that it was made with.
        seen: What the criterion looks at.
        num_classes: Of the data.
        batch_sizes: Samples per pass; the default rounds by the first.
    """
    settings = load(REPOSITORY / "params.yaml").prune
    times = []
    for width in widths:
        torch.manual_seed(0)
        example = seen.inputs[:1]
        channels, height, breadth = example.shape[1:]
        model = resnet20(input_shape=(channels, height, breadth), num_classes=num_classes, width=width).eval()
        groups = pruning.find_groups(model, example)
        profiles = profiled(groups, batch_sizes)
        networks = {}
        for reduction in REDUCTIONS:
            try:
                plan = pruning.make_plan(
                    groups,
                    settings.criterion,
                    mac_reduction=reduction,
                    scope="global",
                    normalise=settings.allocation.normalise,
                    round_to="auto",
                    profile=profiles.profiles[0],
                    keep_at_least=settings.keep_at_least,
                    max_sparsity=settings.max_group_rate,
                    samples=seen,
                )
            except TargetError as fault:
                print(f"width {width}, {reduction:.0%}: {fault}")
                continue
            networks[f"width {width}, {reduction:.0%} of MACs asked"] = pruning.narrow(
                model, plan, example, verify=False
            )
        times += race(model, networks, example, profiles)
    return times


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
        for kind, round_to in (("rounded", "auto"), ("multiples of 8", 8)):
            plan = pruning.make_plan(
                groups,
                mac_reduction=reduction,
                round_to=round_to,  # type: ignore[arg-type]
                profile=profiles.profiles[0] if round_to == "auto" else None,
            )
            networks[f"{name}, {kind}"] = pruning.narrow(model, plan, example, verify=False)
        times += race(model, networks, example, profiles)
    return times
