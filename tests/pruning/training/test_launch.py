"""Several processes train one model: the same bytes as one, whatever happens to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pruning.errors import DataError, LaunchError, SettingsError
from pruning.training.launch import launch
from pruning.world import World
from tests.pruning.training import together

pytestmark = pytest.mark.slow

SHARDS = 4


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return together.work(World(SHARDS))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_give_the_bytes_of_one_process(ranks: int, alone: dict[str, Any]) -> None:
    told: list[tuple[int, int]] = []
    found = launch(together.work, ranks=ranks, shards=SHARDS, progress=lambda *done: told.append(done))
    assert found == alone
    assert told == [(1, 1)]
    assert alone["mean"][2] == 509  # each sample once
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_rank_that_is_killed_inside_an_epoch_costs_nothing(alone: dict[str, Any], tmp_path: Path) -> None:
    kept = tmp_path / "kept.safetensors"
    with pytest.raises(LaunchError, match=r"^2 ranks: rank 1 was ended by SIGKILL.*run the same command again"):
        launch(together.go_on, together.Killing(kept, rank=1, step=5), ranks=2, shards=SHARDS)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(kept.read_bytes())
    seen: list[int] = []
    nobody = {"rank": -1, "step": -1}
    assert together.train(World(SHARDS), together.PLAIN, together.Killing(copy, **nobody), seen) == alone["plain"]
    assert seen[0] in (5, 6), "it goes on within the epoch of 11 steps"
    assert launch(together.go_on, together.Killing(kept, **nobody), ranks=4, shards=SHARDS) == alone["plain"]


def test_fault_of_one_rank_is_told_by_the_process_that_started_it() -> None:
    with pytest.raises(DataError, match=r"^sample 7 can't be read$"):
        launch(together.fail_on_last, ranks=2, shards=2)
    with pytest.raises(LaunchError, match=r"^2 ranks: rank 1 raised ValueError: sample 7: no image\. What was kept"):
        launch(together.fail_on_last, "sample 7:\n  no image", ranks=2, shards=2)


def test_ranks_of_two_versions_and_models_that_drift_apart_are_refused() -> None:
    versions, drift = launch(together.disagree, ranks=2, shards=2)
    assert versions.startswith(f"LaunchError: rank 1 has torch 2.12.0, rank 0 has {torch.__version__}; install")
    assert drift.startswith("ModelError: after epoch 1, 0.weight")
    assert "of rank 1 has other values than that of rank 0" in drift


def test_two_ranks_take_half_of_the_time_of_one_process_each() -> None:
    """Seconds of a processor, which other programs on the machine change too: docs/scale.md has a quiet one's 0.54."""
    one, (seconds,) = together.epoch(World(2), None, 2_000)
    two, each = launch(together.epoch, 2_000, ranks=2, shards=2)
    assert two == one
    assert max(each) < 0.6 * seconds


def test_too_many_ranks_start_nothing() -> None:
    with pytest.raises(SettingsError, match="4 ranks for 2 shards"):
        launch(together.work, ranks=4, shards=2)
