"""What a search for groups leaves as it was."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

import pruning


@lru_cache
def somebodys_own(number: int) -> list[int]:
    return [number]


class Cached(nn.Module):
    """Keeps a tensor of its pass in a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(keep(self.first(x)))
        return found


@lru_cache
def keep(x: Tensor) -> Tensor:
    return x


def test_only_a_cache_that_kept_a_tensor_of_the_search_is_emptied() -> None:
    mine = somebodys_own(1)
    assert len(list(pruning.find_groups(Cached(), torch.randn(1, 4)))) > 0
    assert keep.cache_info().currsize == 0
    assert somebodys_own(1) is mine
