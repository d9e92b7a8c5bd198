"""The calculation of docs/scaling.md: its laws, its figures beside published ones; the page is what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import scaling
from benchmarks.scaling import LLAMA, PUBLISHED_EIGHT, RESNET, Measured, Network, epoch_hours, saturation, step
from tasks.environment import REPOSITORY

RESULTS = REPOSITORY / "docs/scaling-results.json"


def test_one_device_sends_nothing_and_many_send_what_a_ring_does() -> None:
    assert step(RESNET, 1).bytes_sent == 0
    assert step(RESNET, 1).efficiency == 1
    assert step(RESNET, 8).bytes_sent == pytest.approx(2 * 4 * 25_557_032 * 7 / 8)
    assert step(LLAMA, 10**9).bytes_sent == pytest.approx(3 * 2 * LLAMA.parameters)


@pytest.mark.parametrize("network", [RESNET, LLAMA])
def test_more_devices_are_faster_and_less_efficient(network: Network) -> None:
    counts = [2**power for power in range(10)]
    efficiencies = [step(network, count).efficiency for count in counts]
    assert efficiencies == sorted(efficiencies, reverse=True)
    hours = [epoch_hours(network, count) for count in counts if count <= 8]
    assert hours == sorted(hours, reverse=True)
    limit = saturation(network)
    assert step(network, limit).efficiency >= 0.5
    assert step(network, 2 * limit).efficiency < 0.5 or 2 * limit > network.batch


def test_the_parameters_are_those_of_the_models_cards() -> None:
    assert LLAMA.parameters == 8_030_261_248
    assert RESNET.parameters == 25_557_032


def test_eight_gpus_come_near_what_was_published() -> None:
    predicted = RESNET.batch / step(RESNET, 8).seconds
    assert 1 <= predicted / PUBLISHED_EIGHT < 1.25  # loading data and waiting for each other is in theirs alone


def test_the_page_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main([str(RESULTS)])
    printed = capsys.readouterr().out
    assert printed in (REPOSITORY / "docs/scaling.md").read_text(encoding="utf-8")


def test_every_row_says_where_it_is_from() -> None:
    printed = scaling.tables(Measured(**json.loads(RESULTS.read_text(encoding="utf-8"))))
    sources = {line.split(" | ")[-1].removesuffix(" |") for line in printed.splitlines() if line.count(" | ") == 2}
    assert sources - {"from", "---"} <= {
        *("measured", "calculated", "assumed", "extrapolated", "published, NVIDIA", "published, torchtitan"),
    }


def test_measuring_counts_images_of_both_ways_of_training() -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3)
    model = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    before = first.weight.detach().clone()
    forward, plain, own = scaling.measure(model, torch.randn(16, 3, 48, 48), steps=4)
    assert min(forward, plain, own) > 0
    assert not torch.equal(before, first.weight)  # it really trained


def test_nothing_is_measured_unless_asked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        scaling.main([str(tmp_path / "missing.json")])
