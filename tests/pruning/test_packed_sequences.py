"""Packing permutes rows and never features: the groups of a model over packed sequences are those over padded ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pruning
from pruning.plan.other_sizes import difference_elsewhere
from pruning.plan.verification import outputs_of, relative_difference


class Speech(nn.Module):
    """Convolutions over time, a recurrent layer over sequences of given lengths, a layer for each step."""

    def __init__(self, kind: Callable[..., nn.Module], packed: bool, enforce_sorted: bool, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Conv1d(8, 16, 3, padding=1)
        self.body = kind(16, 24, batch_first=True, **options)
        out = options.get("proj_size", 24) * (2 if options.get("bidirectional") else 1)
        self.out, self.packed, self.enforce_sorted = nn.Linear(out, 5), packed, enforce_sorted

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        x = self.front(x).relu().transpose(1, 2)
        if not self.packed:
            return self.out(self.body(x)[0])
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=self.enforce_sorted)
        return self.out(pad_packed_sequence(self.body(packed)[0], batch_first=True)[0])


KINDS: list[tuple[Callable[..., nn.Module], dict[str, Any]]] = [
    (nn.GRU, {}),
    (nn.RNN, {"num_layers": 2}),
    (nn.LSTM, {"bidirectional": True, "num_layers": 2}),
    (nn.LSTM, {"proj_size": 10}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_the_groups_of_packed_sequences_are_those_of_padded_ones(
    kind: Callable[..., nn.Module], options: dict[str, Any], enforce_sorted: bool
) -> None:
    lengths = torch.tensor([12, 7, 3] if enforce_sorted else [7, 12, 3])
    inputs = (torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0)), lengths)
    padded = pruning.find_groups(Speech(kind, False, enforce_sorted, **options).eval(), inputs)
    model = Speech(kind, True, enforce_sorted, **options).eval()
    groups = pruning.find_groups(model, inputs)
    assert [str(group) for group in groups] == [str(group) for group in padded]
    assert "front.weight:0" in groups
    assert not groups.unknown_operators
    plan = pruning.make_plan(groups, "l1_norm", channel_sparsity=0.3)
    dense, masked = pruning.narrow(model, plan, inputs), pruning.apply_masks(model, plan)
    assert relative_difference(outputs_of(masked, inputs), outputs_of(dense, inputs)) < 1e-5
    assert difference_elsewhere(masked, dense, inputs)[0] < 1e-5
