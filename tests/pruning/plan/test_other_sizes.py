"""Inputs of other sizes: which ones a model takes is found by running it, and what differs there alone is found."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from pruning.containers import Inputs
from pruning.plan.other_sizes import difference_elsewhere, other_inputs


class Positions(nn.Module):
    """A table of positions that is longer than most inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Embedding(40, 8), nn.Linear(8, 3)
        self.register_buffer("table", torch.randn(1, 16, 8))

    def forward(self, tokens: Tensor) -> Any:
        return self.last(torch.relu(self.embed(tokens) + self.get_buffer("table")[:, : tokens.size(1)]))


class Padded(nn.Module):
    """A recurrent layer over sequences of given lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.GRU(3, 5, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.body(packed)[0], batch_first=True)[0]


TOKENS = torch.randint(0, 40, (2, 6))


@pytest.mark.parametrize(
    ("model", "example", "expected"),
    [
        (Positions(), TOKENS, {(4, 6), (1, 6), (2, 12), (2, 3), (2, 7)}),
        (Positions(), torch.randint(0, 40, (9, 12)), {(4, 12), (1, 12), (2, 13), (2, 6)}),
        (
            nn.Conv2d(3, 4, 3),
            torch.randn(1, 3, 8, 8),
            {(2, 3, 8, 8), (1, 3, 16, 16), (1, 3, 4, 4), (1, 3, 9, 8), (1, 3, 8, 9)},
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.randn(2, 3, 4), {(4, 3, 4), (1, 3, 4)}),
        (nn.Linear(3, 2), torch.randn(1, 400_000, 3), {(1, 200_000, 3)}),
        (
            Padded(),
            (torch.randn(2, 7, 3), torch.tensor([7, 4])),
            {(4, 7, 3), (1, 7, 3), (2, 14, 3), (2, 3, 3), (2, 8, 3)},
        ),
    ],
    ids=["tokens", "a table that ends", "images", "flattened images", "many values", "lengths"],
)
def test_the_sizes_that_a_model_takes(model: nn.Module, example: Inputs, expected: set[tuple[int, ...]]) -> None:
    found = list(other_inputs(model.eval(), example))
    assert {tuple(tree_flatten(inputs)[0][0].shape) for inputs, _ in found} == expected
    again = list(other_inputs(model, example))
    for one, other in zip(found, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tree_flatten(one)[0], tree_flatten(other)[0], strict=True))


def test_rows_that_count_go_on_and_numbers_are_not_repeated() -> None:
    inputs = [i for i, _ in other_inputs(Twice(), {"x": torch.rand(1, 4, 3), "at": torch.arange(4)})]
    longer = next(i for i in inputs if isinstance(i, dict) and len(i["at"]) == 8)
    assert longer["at"].tolist() == list(range(8))
    assert longer["x"][0].unique(dim=0).shape == (8, 3)
    assert float(longer["x"].min()) >= 0
    assert float(longer["x"].max()) <= 1


class Twice(nn.Module):
    def forward(self, x: Tensor, at: Tensor) -> Any:
        return x * at[:, None]


def test_what_is_wrong_at_another_length_alone_is_found() -> None:
    model = Positions().eval()
    cut = deepcopy(model)
    cut.table = torch.cat([model.get_buffer("table")[:, :6], model.get_buffer("table")[:, 9:]], 1)
    assert difference_elsewhere(model, deepcopy(model), TOKENS) == (0.0, "", 5)
    difference, shapes, _ = difference_elsewhere(model, cut, TOKENS)
    assert difference > 0.1
    assert shapes in {"(2, 7)", "(2, 12)"}
    cut.table = model.get_buffer("table")[:, :7]
    assert difference_elsewhere(model, cut, TOKENS)[0] == float("inf")
