"""Numbers that a model's code works out: the narrowed module runs with the right ones in their place."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.io.onnx import export_onnx
from pruning.io.parity import check_parity
from pruning.plan.verification import outputs_of, relative_difference


class WindowAttention(nn.Module):
    """Works out the width of a head from the width of its input, as Swin, BEiT and CaiT do."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))
        return out


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 24)
        self.blocks = nn.ModuleList(WindowAttention() for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(2))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        out: Tensor = self.head(x.mean(1))
        return out


class ScaledBySize(nn.Module):
    """The size of a head serves its values' shape and the temperature, which must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_size = 2, 8
        self.q, self.k, self.v = (nn.Linear(12, 16) for _ in range(3))
        self.out = nn.Linear(16, 12)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.head_size).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        weights = (q @ k.transpose(-2, -1) / self.head_size**0.5).softmax(-1)
        out = (weights @ v).transpose(1, 2)
        result: Tensor = self.out(out.reshape(*x.shape[:2], self.heads * self.head_size))
        return result


class FourWays(nn.Module):
    """Splits at sizes that it keeps in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [6, 6, 6, 4]
        self.stem = nn.Linear(5, 22)
        self.ways = nn.ModuleList(nn.Linear(size, 3) for size in self.sizes)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.stem(x), self.sizes, dim=-1)
        return torch.cat([way(part) for way, part in zip(self.ways, parts, strict=True)], -1)


class Halves(nn.Module):
    """Slices at a border that it works out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(5, 20), nn.Linear(10, 4), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        border = x.shape[1] // 2
        return torch.cat([self.left(x[:, :border]), self.right(x.narrow(1, border, border))], 1)


class OneLineForTwoSizes(nn.Module):
    """Shuffles two tensors of different widths by one line of code, as the fuzzer's network 1282 does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def shuffle(self, x: Tensor, groups: int) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, -1, h, w)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shuffle(self.first(x), 2)
        out: Tensor = self.head(self.shuffle(self.second(x), 1))
        return out


class StartFromTensor(nn.Module):
    """Slices where a value of a tensor says, which the pass has to leave as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        start = (x[:, :, 0] > -9).long().sum(1).max() - 1
        rest = self.stem(x).narrow(1, start, x.shape[1] - start)
        out: Tensor = self.head(rest)[:, : 6 - int(start)]
        return out


class Literal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x).reshape(x.shape[0], 32))
        return out


def plan_of(groups: pruning.Groups, share: float = 0.4) -> pruning.Plan:
    generator = torch.Generator().manual_seed(0)
    removed = {}
    for group in groups:
        count = max(1, int(share * min(groups[name].size for name in (group.name, *group.ties))))
        removed[group.name] = torch.randperm(group.size, generator=generator)[:count].tolist()
    return pruning.Plan.of(groups, removed)


def layers_with_groups(groups: pruning.Groups) -> set[str]:
    return {slice_.parameter for group in groups for slice_ in group.slices}


@pytest.mark.parametrize(
    ("factory", "shape", "reached"),
    [
        (Net, (2, 7, 6), {"blocks.0.qkv.weight", "blocks.1.proj.weight"}),
        (ScaledBySize, (2, 7, 12), {"v.weight", "q.weight", "out.weight"}),
        (FourWays, (2, 5), {"stem.weight", "ways.0.weight", "ways.3.weight"}),
        (Halves, (2, 5), {"stem.weight", "left.weight", "right.weight"}),
        (OneLineForTwoSizes, (2, 3, 4, 4), {"second.weight", "head.weight"}),
        (StartFromTensor, (2, 6, 5), {"stem.weight"}),
    ],
)
def test_a_number_that_code_works_out_follows_the_plan(
    factory: type[nn.Module], shape: tuple[int, ...], reached: set[str]
) -> None:
    torch.manual_seed(0)
    model, x = factory(), torch.randn(shape)
    groups = pruning.find_groups(model, x)
    assert reached <= layers_with_groups(groups)
    plan = plan_of(groups)
    masked = pruning.apply_masks(model, plan, groups=groups)
    dense = pruning.narrow(model, plan, x, groups=groups)
    other = torch.randn(3, *shape[1:])
    assert relative_difference(outputs_of(masked, other), outputs_of(dense, other)) < 1e-5
    assert type(model) is factory


def test_a_narrowed_model_is_narrowed_again() -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(2, 7, 6)
    first = pruning.narrow(model, plan_of(pruning.find_groups(model, x), 0.25), x)
    groups = pruning.find_groups(first, x)
    assert "blocks.0.qkv.weight" in layers_with_groups(groups)
    plan = plan_of(groups, 0.3)
    second = pruning.narrow(first, plan, x, groups=groups)
    masked = pruning.apply_masks(first, plan, groups=groups)
    assert relative_difference(outputs_of(masked, x), outputs_of(second, x)) < 1e-5


def test_the_narrowed_model_trains_and_keeps_its_class_and_state() -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(2, 7, 6)
    dense = pruning.narrow(model, plan_of(pruning.find_groups(model, x)), x)
    assert isinstance(dense.get_submodule("blocks.0"), WindowAttention)
    assert dense.state_dict().keys() == model.state_dict().keys()
    dense.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in dense.parameters())


def test_the_narrowed_model_exports_to_onnx(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(4, 7, 6)
    dense = pruning.narrow(model, plan_of(pruning.find_groups(model, x)), x)
    path = export_onnx(dense, x, tmp_path / "model.onnx")
    assert check_parity(path, dense, x).max_relative_difference < 1e-4


class Rooted(nn.Module):
    """The root module itself works numbers out; its signature has names, defaults and a hint."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.stem, self.body, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        b, _, h, w = x.shape
        y = self.stem(x)
        c = y.shape[1]
        y = (self.body(y) * scale).view(b, self.heads, c // self.heads, h * w).softmax(2)
        out: Tensor = self.last(y.reshape(b, c, h, w))
        return out


def test_a_narrowed_root_passes_for_a_module_of_its_class(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Rooted().eval(), torch.randn(6, 3, 8, 8)
    groups = pruning.find_groups(model, x[:1])
    dense = pruning.narrow(model, pruning.Plan.of(groups, {group.name: [1] for group in groups}), x[:1])
    assert type(dense) is not Rooted  # its numbers were replaced
    assert isinstance(dense, Rooted)
    assert Rooted in type(dense).__mro__
    assert inspect.signature(dense.forward) == inspect.signature(model.forward)
    assert get_type_hints(type(dense).forward) == get_type_hints(Rooted.forward)
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(type(dense), attribute) == getattr(Rooted, attribute)
    assert repr(dense).splitlines()[0] == repr(model).splitlines()[0] == "Rooted("
    expected = dense(x)

    seen: list[str] = []
    dense.register_forward_pre_hook(lambda *_: seen.append("before"))
    handle = dense.register_forward_hook(lambda _module, _args, out: out + 1)
    assert torch.equal(dense(x), expected + 1)
    assert seen == ["before"]
    handle.remove()
    dense._forward_pre_hooks.clear()

    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(dense, protocol))
        assert type(again) is type(dense)
        assert torch.equal(again(x), expected)
    torch.save(dense, tmp_path / "whole.pt")
    assert torch.equal(torch.load(tmp_path / "whole.pt", weights_only=False)(x), expected)
    assert torch.equal(copy.deepcopy(dense)(x), expected)

    batch = torch.export.Dim("batch")
    for shapes in ({"x": {0: batch}}, ({0: batch},)):
        program = torch.export.export(dense, (x,), dynamic_shapes=shapes)
        assert torch.allclose(program.module()(x[:3]), expected[:3], atol=1e-6)
    path = export_onnx(dense, x, tmp_path / "model.onnx")
    assert check_parity(path, dense, x).max_relative_difference < 1e-4


def test_a_number_that_stands_in_the_code_is_its_authors() -> None:
    groups = pruning.find_groups(Literal(), torch.randn(2, 3, 4, 4))
    assert "conv.weight" not in layers_with_groups(groups)
    reasons = " ".join(groups.report()["conv.weight"].reasons)
    assert "test_computed_sizes.py:" in reasons


class _LongerInputs(nn.Module):
    """Runs code for inputs longer than a window that shorter ones don't reach, as Swin shifts its windows."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = q @ k.transpose(-2, -1)
        if length > 4:
            weights = weights.view(n, self.heads, length, length) + torch.ones(length, length).tril(-4) * -100
        out: Tensor = self.proj((weights.softmax(-1) @ v).transpose(1, 2).reshape(n, length, -1))
        return out


@torch.no_grad()
def test_number_that_is_read_where_no_example_leads_stays_until_one_does() -> None:
    torch.manual_seed(0)
    model, short, long = _LongerInputs().eval(), torch.randn(2, 4, 12), torch.randn(2, 8, 12)
    groups = pruning.find_groups(model, short)
    assert {group.name: group.size for group in groups} == {"qkv.weight:0.2": 4}  # the width of a head
    everything = pruning.find_groups(model, [short, long])
    assert {group.name: group.size for group in everything} == {"qkv.weight:0.1": 3, "qkv.weight:0.2": 4}
    for found, example in ((groups, short), (everything, [short, long])):
        plan = pruning.Plan.of(found, {group.name: [0] for group in found})
        dense, masked = pruning.narrow(model, plan, example, groups=found), pruning.apply_masks(model, plan)
        for inputs in (short, long):
            assert relative_difference([masked(inputs)], [dense(inputs)]) < 1e-5
