from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pruning.errors import ExportError
from pruning.io.onnx import export_onnx
from pruning.latency import measure
from pruning.latency.measure import measure_latency


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


def test_a_model_that_was_interrupted_in_its_warmup_is_repeated_as_often_as_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export_onnx(nn.Linear(8, 2), torch.zeros(1, 8), tmp_path / "model.onnx")
    asked: list[int] = []
    times = iter([*[0.1] * 4, 5.0, *[0.1] * 100])  # the last pass of the first model's warm-up takes long

    def measured(_session: object, _feed: object, repeats: int) -> float:
        asked.append(repeats)
        return next(times)

    monkeypatch.setattr(measure, "_time_ms", measured)
    measure_latency({"one": path, "same": path}, batch_sizes=[1], rounds=1)
    assert asked[-2:] == [10, 10]


def test_batches_are_made_of_the_samples_that_are_given(tmp_path: Path) -> None:
    ids = torch.arange(6).reshape(3, 2)
    path = export_onnx(torch.nn.Sequential(torch.nn.Embedding(6, 4), torch.nn.Flatten()), ids, tmp_path / "ids.onnx")
    (found,) = measure_latency({"ids": path}, inputs=ids, batch_sizes=[5], rounds=2)
    assert found.median_ms > 0
    with pytest.raises(ExportError, match="give samples to measure it on"):
        measure_latency({"ids": path}, rounds=1)
    with pytest.raises(ExportError, match=r"the samples are \[3\] each"):
        measure_latency({"ids": path}, inputs=torch.zeros(2, 3, dtype=torch.int64), rounds=1)
