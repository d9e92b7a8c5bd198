"""Tensors of types that PyTorch computes little with: float8 and complex."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pruning


class FewBits(nn.Module):
    """Weights of eight bits, widened where they are used."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(32, 16).to(dtype), requires_grad=False)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(torch.relu(F.linear(x, self.w.to(x.dtype))))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_weights_of_few_bits_are_masked_and_narrowed(dtype: torch.dtype) -> None:
    model, x = FewBits(dtype), torch.randn(4, 16)
    groups = pruning.find_groups(model, x)
    dense = pruning.narrow(model, pruning.make_plan(groups, "l1_norm", channel_sparsity=0.3), x, groups=groups)
    assert dense.get_parameter("w").shape[0] < 32
    assert dense.get_parameter("w").dtype == dtype


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Parameter(torch.randn(12, 8, dtype=torch.complex64))
        self.b = nn.Parameter(torch.randn(5, 12, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x.to(torch.complex64), self.a), self.b).abs()


@pytest.mark.filterwarnings("error:Casting complex")
def test_complex_weights_are_scored_by_both_their_parts() -> None:
    model, x = Complex(), torch.randn(4, 8)
    with torch.no_grad():
        model.a[3] = 1e-3
        model.a[7] = torch.complex(torch.tensor(1e-3), torch.tensor(9.0))
    groups = pruning.find_groups(model, x)
    plan = pruning.make_plan(groups, "l1_norm", channel_sparsity=0.3)
    [removed] = plan.removed.values()
    assert 3 in removed
    assert 7 not in removed
    pruning.narrow(model, plan, x, groups=groups)


class Rotary(nn.Module):
    """Llama's reference: positions as a table of complex numbers, longer than the example."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.e, self.fc = nn.Embedding(40, 24), nn.Linear(24, 5)
        self.table: Tensor
        self.register_buffer("table", torch.polar(torch.ones(16, 12), torch.randn(16, 12)))

    def forward(self, i: Tensor) -> Any:
        x, length = self.e(i), i.shape[1]
        x = torch.view_as_complex(x.reshape(*x.shape[:2], 12, 2)) * self.table[:length].view(1, length, -1)
        return self.fc(torch.view_as_real(x).flatten(2))


def test_a_table_of_complex_numbers_is_no_group() -> None:
    assert not len(pruning.find_groups(Rotary(), torch.randint(0, 40, (2, 10))))
