"""A file that answers in the container of the model it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pruning.containers import find_tensors
from pruning.errors import ExportError
from pruning.evaluation import evaluate
from pruning.io.onnx import export_onnx
from pruning.io.onnx_module import OnnxModule, example_outputs
from zoo.datasets.splits import Samples


class Pair(NamedTuple):
    logits: Tensor
    hidden: Tensor


@dataclass
class Record:
    logits: Tensor
    hidden: Tensor
    cache: None = None


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a tensor": lambda one, _: one,
    "a tuple": lambda one, two: (one, two),
    "a dict": lambda one, two: {"logits": one, "hidden": two},
    "one within another": lambda one, two: {"main": one, "others": [two, two + 1]},
    "a namedtuple": Pair,
    "a dataclass": Record,
}


class Net(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.one, self.two, self.form = nn.Linear(6, 5), nn.Linear(5, 3), form

    def forward(self, x: Tensor) -> Any:
        hidden = self.one(x).relu()
        return FORMS[self.form](self.two(hidden), hidden)


@pytest.mark.parametrize("form", FORMS)
def test_outputs_come_in_the_models_container(form: str, tmp_path: Path) -> None:
    model = Net(form).eval()
    file = export_onnx(model, torch.randn(2, 6), tmp_path / "net.onnx")
    module, batch = OnnxModule(file, example_outputs(model, torch.randn(1, 6))), torch.randn(7, 6)
    found, expected = module(batch), model(batch)
    assert type(found) is type(expected)
    for one, other in zip(find_tensors(found), find_tensors(expected), strict=True):
        torch.testing.assert_close(one, other)


def test_inputs_by_name_and_by_position(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return first - 2 * second

    one, two = torch.randn(3, 4), torch.randn(3, 4)
    for given in ((one, two), {"second": two, "first": one}):
        file = export_onnx(Two(), given, tmp_path / "two.onnx")
        module = OnnxModule(file, example_outputs(Two(), given))
        found = module(**given) if isinstance(given, dict) else module(*given)
        torch.testing.assert_close(found, one - 2 * two)


def test_it_is_evaluated_as_its_model_is(tmp_path: Path) -> None:
    model = Net("a tensor")
    samples = Samples(torch.randn(40, 6), torch.randint(0, 3, (40,)))
    file = export_onnx(model, samples.inputs, tmp_path / "net.onnx")
    module = OnnxModule(file, example_outputs(model, samples.inputs[:1]))
    found, expected = evaluate(module, samples, batch_size=16), evaluate(model, samples, batch_size=16)
    assert found.score == expected.score
    assert found.loss == pytest.approx(expected.loss, abs=1e-6)


def test_inputs_that_the_file_doesnt_take_are_refused(tmp_path: Path) -> None:
    model = Net("a tensor")
    file = export_onnx(model, torch.randn(2, 6), tmp_path / "net.onnx")
    module = OnnxModule(file, example_outputs(model, torch.randn(1, 6)))
    with pytest.raises(ExportError, match=r"net\.onnx can't be run"):
        module(torch.randn(2, 7))


def test_a_file_with_other_outputs_is_refused(tmp_path: Path) -> None:
    model, other = Net("a tuple"), Net("a tensor")
    file = export_onnx(model, torch.randn(2, 6), tmp_path / "net.onnx")
    module = OnnxModule(file, example_outputs(other, torch.randn(1, 6)))
    with pytest.raises(ExportError, match="2 outputs; the model's are output"):
        module(torch.randn(2, 6))
