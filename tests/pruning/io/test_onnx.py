from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from pruning.errors import ExportError
from pruning.io.onnx import export_onnx
from pruning.io.parity import check_parity


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(20, 3)
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    net = model()
    net.train()
    return export_onnx(net, torch.zeros(1, 1, 4, 4), tmp_path_factory.mktemp("a") / "deep" / "model.onnx"), net


def test_file_computes_the_model_at_any_batch_size(exported: tuple[Path, nn.Module]) -> None:
    path, net = exported
    parity = check_parity(path, net, torch.randn(20, 1, 4, 4), batch_size=8)
    assert 0 <= parity.max_relative_difference < 1e-5
    assert parity.max_abs_difference < 1e-5
    assert parity.top1_agreement == 1
    assert parity.num_samples == 20
    assert net.training


def test_parity_notices_another_model(exported: tuple[Path, nn.Module]) -> None:
    path, _net = exported
    other = model()
    nn.init.normal_(other[5].weight)  # type: ignore[arg-type]
    parity = check_parity(path, other, torch.randn(50, 1, 4, 4))
    assert parity.max_relative_difference > 0.1
    assert parity.top1_agreement is not None
    assert parity.top1_agreement < 1


def test_file_has_the_opset_and_names_no_paths(exported: tuple[Path, nn.Module]) -> None:
    path, _ = exported
    proto = onnx.load(path)
    assert [entry.version for entry in proto.opset_import if entry.domain == ""] == [20]
    content = path.read_bytes()
    assert str(Path.cwd()).encode() not in content
    assert b"test_export" not in content
    assert b"stack_trace" not in content
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [path.name for path in path.parent.iterdir()] == ["model.onnx"]


def test_bytes_are_the_same_in_another_folder(exported: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path, net = exported
    again = export_onnx(net, torch.randn(4, 1, 4, 4), tmp_path / "another.onnx")
    assert again.read_bytes() == path.read_bytes()


def test_exporter_reads_its_operators_once(exported: tuple[Path, nn.Module]) -> None:
    apis: Any = importlib.import_module("torch.onnx._internal._lazy_import").onnxscript_apis
    assert apis.get_torchlib_ops() is apis.get_torchlib_ops()


def test_exporter_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_onnx(model(), torch.zeros(1, 1, 4, 4), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")


def test_opset_that_the_exporter_does_not_give_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="asked for opset 13, the exporter gave 18"):
        export_onnx(model(), torch.zeros(1, 1, 4, 4), tmp_path / "model.onnx", opset=13)
    assert not list(tmp_path.iterdir())


def test_model_that_branches_on_data_is_an_error(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match="can't be exported"):
        export_onnx(Branching(), torch.zeros(1, 2), tmp_path / "model.onnx")


def test_missing_and_damaged_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no ONNX file"):
        check_parity(tmp_path / "none.onnx", model(), torch.zeros(1, 1, 4, 4))
    (tmp_path / "bad.onnx").write_bytes(b"not onnx")
    with pytest.raises(ExportError, match="is no ONNX file, or a damaged one"):
        check_parity(tmp_path / "bad.onnx", model(), torch.zeros(1, 1, 4, 4))
