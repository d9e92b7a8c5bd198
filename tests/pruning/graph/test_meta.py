"""Passes on tensors without values: of models too large for the machine's memory, and of shapes known before."""

from __future__ import annotations

import resource
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.errors import ModelError
from pruning.graph import dispatch
from pruning.graph.dispatch import Listeners, watch
from pruning.graph.rules.call import tensors_in
from tests.pruning.graph.rules.samples import SAMPLES, Sample
from tests.pruning.graph.rules.test_laws import Operator
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


def seen(sample: Sample) -> list[Any]:
    """What a pass on tensors without values shows: what each operator gives, and how it lies in memory."""
    found: list[Any] = []

    def on_call(func: Any, args: Any, kwargs: Any, result: Any, _place: Any) -> None:
        memory = [tensor.untyped_storage()._cdata for tensor in tensors_in(args, kwargs)]
        lies = [
            (t.shape, t.stride(), t.dtype, t.device, t.untyped_storage()._cdata in memory) for t in tensors_in(result)
        ]
        found.append((func, type(result), lies))

    try:
        watch(Operator(sample), (), Listeners(on_call), "meta")
    except Exception as fault:  # noqa: BLE001 - some need values, or a type that samples don't have
        found.append(type(fault))
    return found


@pytest.mark.parametrize("sample", SAMPLES)
def test_shapes_worked_out_before_are_those_that_the_operator_gives(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(dispatch, "_called_once", lambda func, args, kwargs: func(*args, **kwargs))
        expected = seen(sample)
    assert seen(sample) == expected
    assert seen(sample) == expected  # by now each is known


def test_a_known_shape_is_found_again_only_for_the_same_numbers() -> None:
    x = torch.empty(3, 4, dtype=torch.int64, device="meta")
    add = torch.ops.aten.add.Tensor
    for number, dtype in ((2, torch.int64), (2.0, torch.float32), (True, torch.int64), (2, torch.int64)):
        assert dispatch._called_once(add, (x, number), {}).dtype == dtype
    for _ in range(2):  # it gives what it was given
        y = x.float()
        assert dispatch._called_once(torch.ops.aten.dropout.default, (y, 0.5, False), {}) is y
