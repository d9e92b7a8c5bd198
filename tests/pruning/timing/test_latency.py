from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pruning.errors import ExportError
from pruning.files.export import export_onnx
from pruning.timing.latency import measure_latency


def test_smaller_model_is_faster_and_quartiles_enclose_the_median(tmp_path: Path) -> None:
    def mlp(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    paths = {
        name: export_onnx(mlp(width), torch.zeros(1, 8), tmp_path / f"{name}.onnx")
        for name, width in (("baseline", 1024), ("dense", 64))
    }
    heard: list[tuple[int, int]] = []
    found = measure_latency(
        paths, batch_sizes=(1, 32), rounds=9, progress=lambda done, total: heard.append((done, total))
    )
    assert [(entry.model, entry.batch_size) for entry in found] == [
        ("baseline", 1),
        ("dense", 1),
        ("baseline", 32),
        ("dense", 32),
    ]
    for entry in found:
        assert 0 < entry.lower_quartile_ms <= entry.median_ms <= entry.upper_quartile_ms
        assert entry.num_rounds == 9
    assert found[1].median_ms < found[0].median_ms
    assert found[3].median_ms < found[2].median_ms
    assert heard[-1] == (18, 18)
    assert len(heard) == 18


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no ONNX file"):
        measure_latency({"baseline": tmp_path / "none.onnx"})
