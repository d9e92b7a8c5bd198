"""Whatever the engine narrows of a random network equals the masked network, and whatever it refuses has a reason."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.errors import VerificationError
from pruning.plan.verification import relative_difference
from tests.pruning.fuzz import LONGEST, RandomNetwork
from tests.pruning.networks import a_third

# The outputs of some networks depend on no channel that can go; they are compared on many inputs here all the same.
pytestmark = pytest.mark.filterwarnings("ignore::pruning.errors.UnprovenWarning")
EXAMPLE = (2, 5, 4)  # batch and extents
LARGER = (2, 9, 7)
OTHERS = [EXAMPLE, (1, 5, 4), (3, 9, 6), (1, 6, 7), (2, 4, 12), (2, LONGEST - 1, LONGEST - 1)]


def check(seed: int, num_steps: int = 10) -> Counter[str]:
    """Prune a third of every group; count the parameters that can be pruned, all of them, and what was refused.

    Half of the networks are traced on one example, the others on two that take all paths between them; those among them
    that no single example can tell of, too.
    """
    network = RandomNetwork(seed, num_steps)
    x = network.make_input(*EXAMPLE, seed=seed)
    examples = [(x, 0), (network.make_input(*LARGER, seed=seed), 1)] if seed % 4 < 2 or network.needs_all_paths else x
    program = network.program
    groups = pruning.find_groups(network, examples)
    assert not groups.unknown_operators, program
    report = groups.report()
    assert all(row.prunable or row.reasons for row in report), program
    plan = a_third(groups, seed)
    counted = Counter(prunable=sum(row.prunable for row in report), every=len(report))
    try:
        dense = pruning.narrow(network, plan, examples, groups=groups)
    except VerificationError:
        return counted + Counter(refused=1)
    assert pruning.count_parameters(groups, plan) == sum(p.numel() for p in dense.parameters()), program
    masked = pruning.apply_masks(network, plan, groups=groups).double()
    dense = dense.double()
    for number, sizes in enumerate(OTHERS):
        other = network.make_input(*sizes, seed=seed + 1 + number)
        for path in (0, 1):
            expected = outputs(network, masked, other, path)
            difference = relative_difference(expected, outputs(network, dense, other, path))
            where = f"seed {seed}, input {tuple(other.shape)}, path {path}"
            assert difference < 1e-9, f"{where}: differs by {difference}\n{program}\n{groups}"
    return counted


@torch.no_grad()
def outputs(network: RandomNetwork, model: nn.Module, x: Tensor, path: int) -> list[Tensor]:
    """Run a copy of a network in double precision and take what it gives out of its container."""
    return network.tensors_of(model(x.double() if x.is_floating_point() else x, path))


BLOCKS = [0, *(pytest.param(block, marks=pytest.mark.thorough) for block in range(1, 25))]


@pytest.mark.parametrize("block", BLOCKS)
def test_no_random_network_is_narrowed_wrongly(block: int) -> None:
    counted = sum((check(seed, 6) for seed in range(8 * block, 8 * (block + 1))), Counter[str]())
    assert counted["prunable"] > counted["every"] / 4  # an engine that refuses everything proves nothing
    assert counted["refused"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("block", range(18))
def test_no_further_random_network_is_narrowed_wrongly(block: int) -> None:
    for seed in range(200 + 100 * block, 300 + 100 * block):
        check(seed)
