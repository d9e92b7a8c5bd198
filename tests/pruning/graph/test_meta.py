"""A model too large for the machine's memory is analysed from its configuration alone."""

from __future__ import annotations

import resource

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.errors import ModelError
from tests.pruning.graph.test_computed_sizes import layers_with_groups, plan_of


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.second = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (
            layer(self.norm(x)).view(b, n, self.heads, c // self.heads).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(out.transpose(1, 2).reshape(b, n, c))
        y = self.second(x)
        result: Tensor = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        return result


def test_eight_billion_parameters_are_analysed_on_the_meta_device_in_little_memory() -> None:
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Embedding(128_256, 4096),
            *(Block(4096, 32, 14_336) for _ in range(29)),
            nn.RMSNorm(4096),
            nn.Linear(4096, 128_256, bias=False),
        )
        tokens = torch.zeros(1, 16, dtype=torch.long)
    assert sum(parameter.numel() for parameter in model.parameters()) > 8e9
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    groups = pruning.find_groups(model, tokens)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # KiB
    assert {"1.q.weight", "29.v.weight", "15.gate.weight"} <= layers_with_groups(groups)
    plan = plan_of(groups, 0.5)
    dense = pruning.narrow(model, plan, tokens, groups=groups, verify=False)
    assert sum(p.numel() for p in dense.parameters()) == pruning.count_parameters(groups, plan) < 6e9
    with pytest.raises(ModelError, match=r"meta device.*verify=False"):
        pruning.narrow(model, plan, tokens, groups=groups)
