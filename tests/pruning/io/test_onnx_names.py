"""ONNX files of several inputs and outputs: names, dynamic axes, parity of every output, what sessions are fed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
import torch
from torch import Tensor, nn

from pruning.containers import named_inputs, named_outputs
from pruning.errors import ExportError, ModelError
from pruning.io.onnx import dynamic_axes, export_onnx, feeds_of, open_session
from pruning.io.parity import check_parity
from pruning.latency.measure import measure_latency


class Tagged(nn.Module):
    """Words with a mask: a class for each sample, a state for each word, and what is left out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head, self.tail = nn.Embedding(20, 8), nn.Linear(8, 3), nn.Linear(8, 5)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor | tuple[Tensor, ...] | None]:
        states = self.words(ids) * mask[..., None]
        pooled = states.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return {"logits": self.head(pooled), "ids": self.tail(states), "loss": None, "more": (pooled, mask > 0)}


def batch(count: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(count)
    mask = torch.ones(count, length, dtype=torch.int64)
    mask[:, length // 2 :] = torch.randint(2, (count, length - length // 2), generator=generator)
    return {"mask": mask, "ids": torch.randint(20, (count, length), generator=generator)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tagged]:
    model, path = Tagged().eval(), tmp_path_factory.mktemp("names") / "model.onnx"
    return export_onnx(model, batch(1, 6), path, axes=dynamic_axes(batch(2, 6), batch(2, 4))), model


@pytest.mark.thorough
def test_inputs_and_outputs_have_the_models_names_and_axes(exported: tuple[Path, Tagged]) -> None:
    graph = onnx.load(exported[0]).graph
    found = {
        one.name: [dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in graph.input
    }
    assert found == {"ids": ["batch", "sequence"], "mask": ["batch", "sequence"]}
    assert list(found) == ["ids", "mask"], "in the order of forward"
    assert [one.name for one in graph.output] == ["logits", "ids_out", "more.0", "more.1"]


@pytest.mark.thorough
def test_every_output_is_compared_at_any_size(exported: tuple[Path, Tagged]) -> None:
    path, model = exported
    for length in (2, 6, 9):
        parity = check_parity(path, model, batch(11, length), batch_size=4)
        assert parity.outputs is not None
        assert parity.outputs.keys() == {"logits", "ids", "more.0", "more.1"}
        assert parity.max_relative_difference < 1e-5
        assert (parity.close, parity.top1_agreement, parity.num_samples) == (1.0, 1.0, 11)
    other = Tagged().eval()
    with torch.no_grad():
        other.tail.bias[2] += 1.0
    parity = check_parity(path, other, batch(11, 6))
    assert parity.outputs is not None
    assert parity.outputs["logits"] < 1e-5 < 0.1 < parity.outputs["ids"] == parity.max_relative_difference
    assert (parity.close, parity.top1_agreement) == (0.0, 1.0)


@pytest.mark.thorough
def test_sessions_are_fed_by_name_or_position_and_lacking_inputs_are_named(exported: tuple[Path, Tagged]) -> None:
    path, _ = exported
    session, one = open_session(path), batch(3, 5)
    for given in (one, (one["ids"], one["mask"])):
        fed = feeds_of(session, given)
        assert [list(fed), fed["ids"].tolist()] == [["ids", "mask"], one["ids"].tolist()]
    with pytest.raises(ExportError, match="the file's inputs are ids, mask, the samples' mask; give each of them"):
        feeds_of(session, {"mask": one["mask"]})
    with pytest.raises(ExportError, match=r"the file's inputs are ids, mask, the samples' input_0, input_1, input_2"):
        feeds_of(session, (one["ids"],) * 3)
    (latency,) = measure_latency({"model": path}, inputs=one, batch_sizes=[4], rounds=2)
    assert latency.median_ms > 0
    with pytest.raises(ExportError, match="dynamic axis in the first place only, or samples to measure it on"):
        measure_latency({"model": path}, rounds=1)


def test_axes_on_which_batches_differ_are_dynamic_and_share_names() -> None:
    one, other = batch(2, 6), batch(5, 4)
    assert dynamic_axes(one, other) == {"ids": {1: "sequence"}, "mask": {1: "sequence"}}
    assert dynamic_axes(one, batch(7, 6)) == {}
    tall, wide = (torch.zeros(2, 3, *size) for size in ((8, 8), (4, 4)))
    assert dynamic_axes(tall, wide) == {"input": {2: "height", 3: "width"}}
    mixed = [(torch.zeros(2, n), torch.zeros(2, 1, n, n), torch.zeros(2, n + 1, 7)) for n in (6, 4)]
    assert dynamic_axes(mixed[0], mixed[1]) == {
        "input_0": {1: "sequence"},
        "input_1": {2: "sequence", 3: "sequence"},
        "input_2": {1: "input_2_1"},
    }
    with pytest.raises(ExportError, match=r"one batch has \[2, 3, 8, 8\] .*, another mask .*; expected the same"):
        dynamic_axes(tall, one)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None


def test_tensors_have_the_names_that_their_containers_give() -> None:
    t = torch.zeros(2)
    assert list(named_outputs(t)[0]) == list(named_outputs((t,))[0]) == ["output"]
    assert list(named_outputs((t, [t + 1, t + 2]))[0]) == ["output_0", "output_1.0", "output_1.1"]
    assert list(named_outputs(Pair(t, None))[0]) == ["first"]
    tensors, others = named_outputs({"a": t, "cache": object(), "b": None})
    assert (list(tensors), others) == (["a"], {"cache": "object"})
    for wrong, fault in (
        ({"a": t, "n": 3}, "output 'n' is a value of type int; expected tensors"),
        ("text", "what the model gave is a value of type str"),
        ({"a": None}, "in which there is no tensor"),
    ):
        with pytest.raises(ModelError, match=fault):
            named_outputs(wrong)
    assert list(named_inputs((t, t), Tagged())) == ["ids", "mask"]
    assert list(named_inputs({"mask": t, "ids": t}, Tagged())) == ["ids", "mask"]
    assert list(named_inputs((t, t))) == ["input_0", "input_1"]
    with pytest.raises(ModelError, match="input 'b' is a value of type list; expected a tensor"):
        named_inputs({"a": t, "b": [t]})


@pytest.mark.thorough
def test_an_axis_that_the_model_fixes_is_refused(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.layer = nn.Linear(inputs, outputs)

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            found: Tensor = self.layer(first + second)
            return found

    given = (torch.zeros(2, 6), torch.zeros(2, 6))
    with pytest.raises(ExportError, match=r"can't be exported|fixed axis 1 \(sequence\)"):
        export_onnx(Fixed(6, 2), given, tmp_path / "m.onnx", axes={"first": {1: "sequence"}, "second": {1: "sequence"}})
    with pytest.raises(ExportError, match="input with dynamic axes 'third'"):
        export_onnx(Fixed(6, 2), given, tmp_path / "m.onnx", axes={"third": {1: "sequence"}})
