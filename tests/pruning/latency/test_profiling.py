from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pruning import Plan, find_groups, make_plan, narrow
from pruning.errors import ProfileError
from pruning.io.onnx import export_onnx
from pruning.latency import runner
from pruning.latency.measure import measure_latency, profile, runtime_here
from pruning.latency.microbenchmarks import SCRIPT, ask, made_widths, summed_widths
from pruning.latency.profile import LatencyCost, read_profiles
from pruning.latency.runner import MANIFEST, PROFILE

FACTOR = 2.0  # docs/log.md says what was measured; tests run beside other programs


def block(channels: int, out: int, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, padding=1, groups=groups), nn.ReLU()]


def test_widths_are_one_pattern_at_either_end_and_few_beside() -> None:
    assert made_widths(range(1, 41)) == (1, 7, 8, 9, 16, 23, 24, 25, 32, 39, 40)
    long = made_widths(range(1, 513))
    assert [one for one in long if one % 8 == 0] == [*range(8, 65, 8), *range(456, 513, 8)]
    assert {1, 7, 9, 511} <= set(long)
    assert summed_widths(range(1, 65)) == (1, 7, 8, 9, 39, 40, 41, 63, 64)
    for choose in (made_widths, summed_widths):
        assert choose([10]) == (10,)
        assert choose(range(4, 21, 4)) == (4, 8, 12, 16, 20)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*block(3, 16), *block(16, 8), nn.Conv2d(8, 2, 1)).eval()


def test_questions_are_the_same_bytes_each_time_and_small(tmp_path: Path) -> None:
    groups = find_groups(small(), torch.zeros(1, 3, 8, 8))
    for name in ("one", "two"):
        ask(groups, tmp_path / name, batch_sizes=[1, 4])
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {SCRIPT, MANIFEST, "whole.onnx"} <= set(files)
    for name in files:
        written = (tmp_path / "one" / name).read_bytes()
        assert written == (tmp_path / "two" / name).read_bytes()
        assert len(written) < 30_000, name


def test_script_answers_the_questions_without_the_library(tmp_path: Path) -> None:
    groups = find_groups(small(), torch.zeros(1, 3, 8, 8))
    ask(groups, tmp_path, batch_sizes=[1, 2], threads=[1, 2], shortest_ms=0.05)
    blocked = "import sys; sys.modules.update(torch=None, onnx=None, pruning=None, pydantic=None); "
    run = f"import runpy; runpy.run_path({SCRIPT!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", blocked + run], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "profile.path" in done.stderr
    found = read_profiles(tmp_path / PROFILE)
    assert [(one.runtime.num_threads, one.runtime.batch_size) for one in found.profiles] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    ]
    assert found.profiles[0].runtime == runtime_here()
    assert LatencyCost(groups, found.profiles[3]).predict({}) == pytest.approx(found.profiles[3].whole_ms)
    assert not list(tmp_path.glob("*.bin"))


def test_what_the_runtimes_notes_take_is_not_counted(tmp_path: Path) -> None:
    ask(find_groups(small(), torch.zeros(1, 3, 8, 8)), tmp_path, shortest_ms=0.05)
    runtime: Any = {"threads": 1, "provider": "CPUExecutionProvider"}
    path, feeds = tmp_path / "clock.onnx", {"x": np.ones((1, 1, 1, 1), np.float32)}

    def holds() -> bool:
        clock_ms = runner.clock_cost_ms(path, feeds, **runtime)
        assert 0 <= clock_ms < 0.05
        noted = runner.operator_times(path, feeds, shortest_ms=20, **runtime)
        corrected = runner.operator_times(path, feeds, shortest_ms=20, clock_ms=clock_ms, **runtime)
        del noted[""], corrected[""]
        return sum(corrected.values()) < 0.5 * sum(noted.values())

    assert any(holds() for _ in range(5))  # a program beside the tests may hold up all turns of one measurement


def test_turn_that_another_program_held_up_does_not_hide_what_the_notes_take(monkeypatch: pytest.MonkeyPatch) -> None:
    bare, noted = iter([4.0, 1.0, 1.1]), iter([3.0, 9.0, 3.1])

    def operator_times(*_: Any, **__: Any) -> dict[str, float]:
        whole = next(noted)
        return {"": 7.0, "first": whole / 2, "second": whole / 2}

    monkeypatch.setattr(runner, "_pass_ms", lambda *_, **__: next(bare))
    monkeypatch.setattr(runner, "operator_times", operator_times)
    assert runner.clock_cost_ms(Path(), {}, 1, "") == (3.0 - 1.0) / 2


def test_profile_holds_every_kind_of_layer_and_predicts_a_narrowed_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *block(3, 16), *block(16, 16, groups=16), *block(16, 16, groups=2), nn.ConvTranspose2d(16, 8, 2, stride=2),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 4),
    ).eval()  # fmt: skip
    inputs = torch.randn(1, 3, 8, 8)
    groups = find_groups(model, inputs)
    found = profile(groups, batch_size=2, shortest_ms=0.1)
    assert found.runtime == runtime_here(batch_size=2)
    assert [layer.weight for layer in found.layers] == [f"{i}.weight" for i in (0, 2, 4, 6, 9, 11)]
    depthwise, grouped, transposed = (found.surfaces[found.layers[i].surface] for i in (1, 2, 3))
    assert depthwise.inputs == (1,)
    assert depthwise.outputs[-1] == 16
    assert grouped.inputs[-1] == 8
    assert transposed.inputs[-1] == 16
    cost = LatencyCost(groups, found)
    assert cost.predict({}) == pytest.approx(found.whole_ms)
    plan = Plan.of(groups, {group.name: range(group.size // 2) for group in groups if not group.ties})
    narrowed = find_groups(narrow(model, plan, inputs, groups=groups), inputs)
    assert LatencyCost(narrowed, found).predict({}) == pytest.approx(cost.predict(plan.kept_sizes(groups)))


def test_wider_layers_take_longer() -> None:
    model = nn.Sequential(*block(3, 64), *block(64, 64), nn.Conv2d(64, 2, 1)).eval()
    groups = find_groups(model, torch.zeros(1, 3, 16, 16))
    found = profile(groups)
    second = found.surfaces[found.layers[1].surface]
    assert second.ms[-1][-1] > 2 * second.ms[second.inputs.index(8)][second.outputs.index(16)]
    cost = LatencyCost(groups, found)
    assert cost({group.name: 16 for group in groups}) < 0.5 * cost({})


def test_what_cannot_be_profiled_is_refused(tmp_path: Path) -> None:
    linear = find_groups(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 4))
    with pytest.raises(ProfileError, match="CUDAExecutionProvider can't be profiled"):
        profile(linear, provider="CUDAExecutionProvider")
    with pytest.raises(ProfileError, match="this ONNX Runtime has no DnnlExecutionProvider; it has"):
        profile(linear, provider="DnnlExecutionProvider")
    with pytest.raises(ProfileError, match="no convolution and no linear layer"):
        profile(find_groups(nn.ReLU(), torch.zeros(1, 4)))
    double = nn.Linear(4, 4).double()
    with pytest.raises(ProfileError, match="32-bit"):
        profile(find_groups(double, torch.zeros(1, 4, dtype=torch.float64)))


@pytest.mark.slow
def test_prediction_is_near_what_the_narrowed_networks_take(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*block(3, 32), *block(32, 64), *block(64, 64), nn.Conv2d(64, 2, 1)).eval()
    inputs = torch.randn(1, 3, 32, 32)
    groups = find_groups(model, inputs)
    cost = LatencyCost(groups, profile(groups))
    plans = {f"{rate}": make_plan(groups, channel_sparsity=rate) for rate in (0.25, 0.5, 0.6)}
    files = {
        name: export_onnx(narrow(model, plan, inputs, groups=groups), inputs, tmp_path / f"{name}.onnx")
        for name, plan in plans.items()
    }
    for found in measure_latency(files, batch_sizes=[1], rounds=15):
        ratio = cost.predict(plans[found.model].kept_sizes(groups)) / found.lower_quartile_ms
        assert 1 / FACTOR < ratio < FACTOR, (found, ratio)
