"""A network that reads token ids goes through every stage: latencies too are measured on what it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.data import read_description, read_inputs
from tasks.stage_table import NAMES
from tests.tasks.test_pipeline import made

CODE = '''
import torch
from torch import nn
from zoo.datasets.splits import Samples, Splits


def tokens():
    """The class is the token that occurs most often."""
    generator = torch.Generator().manual_seed(0)

    def part(count):
        ids = torch.randint(20, (count, 12), generator=generator)
        targets = torch.randint(4, (count,), generator=generator)
        ids[:, :8] = 30 + targets[:, None]
        return Samples(ids, targets)

    return Splits(part(240), part(80), part(80), classes=("a", "b", "c", "d"))


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(34, 16)
        self.hidden, self.out = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, ids):
        return self.out(torch.relu(self.hidden(self.table(ids).mean(1))))
'''


@pytest.mark.thorough
def test_token_ids_go_through_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Callable[..., Path]
) -> None:
    def change(settings: dict[str, Any]) -> None:
        settings["data"]["factory"], settings["model"]["factory"] = "token_project:tokens", "token_project:Bag"
        settings["baseline"]["recipe"].update(epochs=4)
        settings["prune"].update(iterations=1, recipes=settings["prune"]["recipes"][1:])
        settings["prune"]["target"] = {"mac_reduction": 0.3}

    (tmp_path / "token_project.py").write_text(CODE, encoding="utf-8")
    project = made(tmp_path, project_writer, NAMES, change)
    monkeypatch.chdir(tmp_path)
    assert read_inputs(project.settings, project.workspace, "validation").loaded().inputs.numpy().dtype == np.int64
    assert read_description(project.workspace).input_shape == (12,)
    assert all(row["median_ms"] > 0 for row in project.json("latency", "latency.json")["latencies"])
    assert project.json("report", "summary.json")["mac_reduction"] >= 0.3
