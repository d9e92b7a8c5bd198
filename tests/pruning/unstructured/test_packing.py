from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pruning.errors import CheckpointError
from pruning.io.checkpoint import load_checkpoint, save_checkpoint
from pruning.plan.plan import Plan
from pruning.unstructured.masks import BITMAP, pack, packed_bytes, unpack


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def half_zero(dtype: torch.dtype = torch.float32) -> Tensor:
    tensor = torch.randn(6, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor[:, ::2] = 0
    tensor[0, 0] = -0.0
    tensor[1, 0] = float("nan")
    return tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_unpacked_is_what_was_packed_bit_for_bit(dtype: torch.dtype) -> None:
    state = {"weight": half_zero(dtype), "bias": torch.zeros(6), "count": torch.zeros(3, 3, dtype=torch.int64)}
    stored, shapes = pack(state)
    assert list(shapes) == ["weight"]
    found = unpack(stored, shapes)
    assert {name: tensor.dtype for name, tensor in found.items()} == {n: t.dtype for n, t in state.items()}
    assert all(torch.equal(bits(found[name]), bits(tensor)) for name, tensor in state.items())


def test_packed_tensor_takes_its_values_and_a_bit_each() -> None:
    tensor = half_zero()
    stored, _ = pack({"weight": tensor})
    kept = int((bits(tensor).reshape(42, 4) != 0).any(1).sum())
    assert kept == 6 * 3 + 2  # three columns of seven, a negative zero, a nan
    assert packed_bytes(tensor) == 4 * kept + 6
    assert sum(t.numel() * t.element_size() for t in stored.values()) == packed_bytes(tensor)


def test_tensor_that_would_not_get_shorter_is_stored_as_it_is() -> None:
    tensor = torch.ones(8, 8)
    assert pack({"weight": tensor})[1] == {}
    assert packed_bytes(tensor) == 256


def test_bitmap_that_does_not_fit_is_refused() -> None:
    stored, shapes = pack({"weight": half_zero()})
    with pytest.raises(CheckpointError, match="marks"):
        unpack(stored | {"weight": stored["weight"][1:]}, shapes)
    with pytest.raises(CheckpointError, match="missing"):
        unpack({name: t for name, t in stored.items() if name != "weight" + BITMAP}, shapes)


def factory() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))


def test_checkpoint_of_sparse_weights_is_smaller_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = factory()
    nothing = Plan(removed={}, sizes={})
    save_checkpoint(tmp_path / "whole", model, nothing)
    with torch.no_grad():
        model[0].weight[:, 1::2] = 0  # type: ignore[index]
    save_checkpoint(tmp_path / "sparse", model, nothing)
    sizes = [(tmp_path / name / "weights.safetensors").stat().st_size for name in ("whole", "sparse")]
    assert sizes[0] - sizes[1] > 0.9 * (64 * 32 * 4 - 64 * 64 / 8)
    loaded, _, _ = load_checkpoint(tmp_path / "sparse", factory, torch.zeros(1, 64))
    for name, tensor in model.state_dict().items():
        assert torch.equal(bits(loaded.state_dict()[name]), bits(tensor)), name
