"""Sums of shards follow one tree, and shards hold every sample once."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.errors import SettingsError
from pruning.world import TreeSum, World, check_shards, split


def tree(terms: list[torch.Tensor]) -> torch.Tensor:
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return tree(terms[:middle]) + tree(terms[middle:])


@pytest.mark.parametrize("shards", [1, 2, 4, 8, 64])
def test_sum_follows_the_tree(shards: int) -> None:
    terms = [torch.randn(100, generator=torch.Generator().manual_seed(number)) for number in range(shards)]
    sums = TreeSum()
    for term in terms:
        sums.add([term.clone()])
    assert torch.equal(sums.result()[0], tree(terms))
    if shards == 64:
        assert not torch.equal(torch.stack(terms).sum(0), tree(terms)), "else the order would not be shown to matter"


@given(size=st.integers(1, 70), height=st.integers(0, 5))
def test_shards_hold_each_sample_once_and_none_is_alone(size: int, height: int) -> None:
    shards = split(torch.arange(size), 2**height)
    assert len(shards) == 2**height
    assert torch.cat(shards).tolist() == list(range(size))
    sizes = [len(one) for one in shards if len(one)]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 1 or len(sizes) == 1
    assert not [len(one) for one in shards[len(sizes) :] if len(one)], "the first ones are filled"


def test_ranks_hold_neighbouring_shards() -> None:
    assert [list(World(8, rank, 4).here) for rank in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("shards", "ranks", "said"),
    [(3, 1, "shards is 3; expected a power of two"), (4, 3, "ranks is 3; expected"), (2, 4, "4 ranks for 2 shards")],
)
def test_numbers_that_make_no_tree_are_refused(shards: int, ranks: int, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        check_shards(shards, ranks)


@pytest.mark.slow
def test_library_starts_without_the_launcher() -> None:
    code = "import sys, pruning, pruning.training.trainer, secateur; print([m for m in sys.modules if 'elastic' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
