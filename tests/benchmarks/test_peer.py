"""The peer is judged by what it did, not by what it said."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.architectures import find_architectures
from benchmarks.peer import _number, _restore, measure_peer
from pruning.plan.verification import outputs_of, relative_difference


def test_positions_tell_which_values_were_kept() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    cut = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    _number(cut)
    stay = torch.tensor([0, 2, 3, 5])
    first, last = cut[0], cut[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    first.weight, first.bias = nn.Parameter(first.weight[stay]), nn.Parameter(first.bias[stay])
    last.weight = nn.Parameter(last.weight[:, stay])
    masked, dense = _restore(model, cut)
    x = torch.randn(5, 4)
    assert relative_difference(outputs_of(masked, x), outputs_of(dense, x)) < 1e-6
    assert relative_difference(outputs_of(model, x), outputs_of(dense, x)) > 1e-3


def test_peer_is_exact_where_it_is() -> None:
    pytest.importorskip("torch_pruning")
    row = measure_peer(find_architectures("own/mobilenet-v1")[0], fast=True)
    assert row.status == "exact"
    assert row.parameters_removed > 0.2


def test_wrongly_restored_values_are_refused() -> None:
    model, cut = nn.Linear(4, 6), nn.Linear(4, 6)
    _number(cut)
    cut.weight.data += 0.5
    with pytest.raises(ValueError, match="no longer holds positions"):
        _restore(model, cut)
