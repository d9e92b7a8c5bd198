"""The contest of criteria: its figures and tables, and a small one from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import criteria
from benchmarks.contest.networks import NETWORKS, data_of, source_code
from benchmarks.contest.tables import as_markdown, draw, epochs_to_recover
from benchmarks.contest.terms import Result
from pruning import find_groups


def _result(name: str, seed: int, tuned: float, curve: list[float] | None = None, fault: str = "") -> Result:
    return Result(
        tool="secateur",
        name=name,
        seed=seed,
        target=0.5,
        macs_removed=0.5,
        baseline=0.98,
        narrowed=0.02,
        recovered=0.9,
        tuned=tuned,
        curve=curve or [0.9, 0.95, tuned],
        baseline_validation=0.97,
        seconds_choose=1.0,
        seconds_tune=2.0,
        fault=fault,
    )


@pytest.mark.parametrize(("curve", "expected"), [([0.97, 0.5], 0), ([0.9, 0.96, 0.966], 2), ([0.9, 0.96], None)])
def test_recovery_counts_from_before_the_first_epoch(curve: list[float], expected: int | None) -> None:
    assert epochs_to_recover(_result("any", 0, 0.97, curve)) == expected


def test_the_table_names_the_most_accurate_first_and_faults_last() -> None:
    rows = [_result("worse", 0, 0.90), _result("better", 0, 0.96), _result("better", 1, 0.94)]
    table = as_markdown([*rows, _result("broken", 0, float("nan"), fault="ValueError: too few")])
    lines = [line for line in table.splitlines() if "secateur" in line]
    assert [line.split("|")[2].strip() for line in lines] == ["better", "worse", "broken"]
    assert "95.00 ± 1.41" in lines[0]
    assert "ValueError: too few" in lines[2]


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    draw([_result("one", 0, 0.9), _result("one", 1, 0.92), _result("two", 0, 0.95)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_small_contest_runs_and_goes_on_where_it_was(tmp_path: Path) -> None:
    arguments = [
        *("--samples", "128", "--baseline-epochs", "1", "--epochs", "1", "--seeds", "0", "--targets", "0.5"),
        *("--only", "random", "default", "--cache", str(tmp_path / "cache")),
        *("--json", str(tmp_path / "found.json"), "--markdown", str(tmp_path / "found.md")),
    ]
    assert criteria.main(arguments) == 0
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["results"]
    assert {one["name"] for one in found} == {"random", "default"}
    assert all(abs(one["macs_removed"] - 0.5) < 0.03 for one in found)
    written = (tmp_path / "found.json").read_bytes()
    assert criteria.main(arguments) == 0
    assert (tmp_path / "found.json").read_bytes() == written


def test_the_table_begins_with_the_default_beside_the_best_of_others() -> None:
    theirs = [_result(name, 0, tuned) for name, tuned in (("l1", 0.9), ("l2", 0.92), ("l1, distilled", 0.93))]
    for one in theirs:
        one.tool = "torch-pruning"
    ours, thin = _result("default", 0, 0.95), _result("thin, from scratch, 3 × the epochs", 0, 0.88)
    row = as_markdown([ours, thin, *theirs]).splitlines()[2]
    assert row == "| resnet20 | glyphs | 50% | 98.00 | 95.00 | 93.00 (l1) | 92.00 (l2) | 88.00 |"


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_classify_their_data_and_can_be_pruned(name: str) -> None:
    network = NETWORKS[name]
    data = source_code(18, 9, 9) if network.reads_text else data_of("glyphs", 62, 62, 62)
    model = network.make(data.input_shape, data.num_classes).eval()
    assert model(data.test.inputs[:2]).shape == (2, data.num_classes)
    groups = find_groups(model, data.test.inputs[:1])
    assert sum(group.size for group in groups) > 0


def test_texts_of_two_splits_are_from_different_files_and_the_same_twice() -> None:
    first, second = source_code(90, 45, 45), source_code(90, 45, 45)
    assert first.fingerprint() == second.fingerprint()
    pieces = {name: {bytes(row.tolist()) for row in samples.inputs} for name, samples in first.named()}
    assert not pieces["train"] & pieces["test"]
    assert not pieces["train"] & pieces["validation"]
    assert torch.equal(first.test.targets.bincount(), torch.full((first.num_classes,), 5))
