"""What has changed since a stage ran is told in the words of the settings file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pruning.errors import unknown_name
from tasks.fingerprint import _hash_of, files_of, list_changes


def origin_with(**facts: Any) -> dict[str, Any]:
    return {"settings": {}, "facts": facts, "modules": {}, "versions": {}, "files": {}, "reads": {}}


def test_setting_unlike_its_default_is_told_by_its_path() -> None:
    before = origin_with(goes_by="mac_reduction", unlike_default={"prune": {"iterations": 3, "seed": 1}})
    now = origin_with(goes_by="latency", unlike_default={"prune": {"iterations": 5}})
    assert list_changes(before, now) == [
        "prune.iterations 3 → 5",
        "prune.seed 1 → its default",
        'goes_by "mac_reduction" → "latency"',
    ]


def test_first_setting_unlike_its_default_is_told_by_its_path() -> None:
    now = origin_with(unlike_default={"prune": {"iterations": 5}})
    assert list_changes(origin_with(unlike_default={}), now) == ["prune.iterations its default → 5"]


def test_unknown_name_without_a_near_one_is_a_sentence() -> None:
    assert unknown_name("stage", "xyz", ["prune", "report"]) == "unknown stage 'xyz'. Known: prune, report"
    assert unknown_name("stage", "prun", ["prune"]) == "unknown stage 'prun'; did you mean 'prune'? Known: prune"


def test_weights_in_several_files_are_all_that_an_index_names(tmp_path: Path) -> None:
    index, shards = tmp_path / "model.index.json", [tmp_path / "a.bin", tmp_path / "b.bin"]
    index.write_text(json.dumps({"weight_map": {"x": "b.bin", "y": "a.bin", "z": "b.bin"}}))
    for shard in shards:
        shard.write_bytes(shard.name.encode())
    assert files_of(index) == [index, *shards]
    before = _hash_of(index)
    shards[1].write_bytes(b"other")
    assert _hash_of(index) != before, "the index is the same, its weights are not"
    shards[1].unlink()
    assert files_of(index) == [index, shards[0]]
    assert files_of(shards[0]) == shards[:1]
