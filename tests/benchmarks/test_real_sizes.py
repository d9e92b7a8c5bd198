from __future__ import annotations

import torch

from benchmarks.speed.real_sizes import measure


def test_every_stage_is_measured() -> None:
    found = measure("zoo:8", images=20, pixels=8, threads=torch.get_num_threads(), share=0.3, batch_size=8)
    assert [one.stage for one in found] == ["groups", "statistics", "plan", "narrow", "reconstruct"]
    assert all(one.cpu_seconds > 0 and 0.05 < one.peak_gib < 64 for one in found)
