"""Whatever the engine narrows of a random network equals the masked network, and whatever it refuses has a reason."""

from __future__ import annotations

import pytest
import torch

import pruning
from pruning.structure.verification import outputs_of, relative_difference
from tests.pruning.fuzz import RandomNetwork


def check(seed: int) -> tuple[int, int]:
    """Prune a third of every group; return how many parameters can be pruned, and how many there are."""
    network = RandomNetwork(seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 5, 4, generator=generator)
    program = "\n".join(network.listing)
    groups = pruning.find_groups(network, x)
    assert not groups.unknown_operators, program
    report = groups.report()
    assert all(row.prunable or row.reasons for row in report), program
    removed: dict[str, list[int]] = {}
    for group in groups:
        tied = next((len(removed[other]) for other in group.ties if other in removed), None)
        count = tied if tied is not None else max(1, group.size // 3)
        removed[group.name] = torch.randperm(group.size, generator=generator)[:count].tolist()
    plan = pruning.Plan.of(groups, removed)
    dense = pruning.narrow(network, plan, x, groups=groups, verify=False)
    masked = pruning.apply_masks(network, plan, groups=groups)
    fresh = torch.randn(2, 3, 5, 4, generator=generator)
    difference = relative_difference(
        outputs_of(masked.double(), fresh.double()), outputs_of(dense.double(), fresh.double())
    )
    assert difference < 1e-9, f"seed {seed} differs by {difference}\n{program}\n{groups}"
    assert pruning.count_parameters(groups, plan) == sum(p.numel() for p in dense.parameters()), program
    return sum(row.prunable for row in report), len(report)


@pytest.mark.parametrize("block", range(8))
def test_no_random_network_is_narrowed_wrongly(block: int) -> None:
    counts = [check(seed) for seed in range(25 * block, 25 * (block + 1))]
    prunable, every = map(sum, zip(*counts, strict=True))
    assert prunable > every / 4  # an engine that refuses everything proves nothing


@pytest.mark.slow
@pytest.mark.parametrize("block", range(18))
def test_no_further_random_network_is_narrowed_wrongly(block: int) -> None:
    for seed in range(200 + 100 * block, 300 + 100 * block):
        check(seed)
