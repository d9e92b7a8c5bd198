from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pruning import find_groups
from pruning.errors import SettingsError
from pruning.graph.groups import Groups
from pruning.plan.constraints import Limits, TiedGroups, find_tied_groups, tied_names
from tests.pruning.networks import Halves


def mlp(*widths: int) -> Groups:
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))
    return find_groups(model, torch.zeros(1, widths[0]))


def test_every_count_that_leaves_one_channel_is_allowed_by_default() -> None:
    (bundle,) = find_tied_groups(mlp(2, 5, 3), Limits(max_group_rate=1.0))
    assert bundle == TiedGroups(("0.weight:0",), (5,), (0, 1, 2, 3, 4), "min_channels = 1")


@pytest.mark.parametrize(
    ("size", "limits", "round_to", "kept"),
    [
        (12, Limits(), 8, [12, 8]),
        (24, Limits(), 8, [24, 16, 8]),
        (6, Limits(min_channels=4), 1, [6, 5, 4]),
        (10, Limits(max_group_rate=0.3), 1, [10, 9, 8, 7]),
        (20, Limits(6, 0.5), 4, [20, 16, 12]),
    ],
)
def test_limits_leave_only_these_widths(size: int, limits: Limits, round_to: int, kept: list[int]) -> None:
    (bundle,) = find_tied_groups(mlp(2, size, 3), limits, round_to=round_to)
    assert [size - count for count in bundle.counts] == kept


def test_rate_counts_from_the_original_size() -> None:
    (bundle,) = find_tied_groups(mlp(2, 10, 3), Limits(max_group_rate=0.5), original_sizes={"0.weight:0": 16})
    assert bundle.counts == (0, 1, 2)


def test_group_below_the_multiple_stays_whole_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    (bundle,) = find_tied_groups(mlp(2, 6, 3), Limits(), round_to=8)
    assert bundle.counts == (0,)
    assert bundle.obstacle == "not above round_to = 8"
    assert "0.weight:0 (6 channels) stays whole: not above round_to = 8" in caplog.text


def test_group_that_has_lost_channels_already_does_not_stay_whole(caplog: pytest.LogCaptureFixture) -> None:
    (bundle,) = find_tied_groups(mlp(2, 6, 3), Limits(min_channels=6), original_sizes={"0.weight:0": 16})
    assert bundle.counts == (0,)
    assert caplog.text == ""


@pytest.mark.parametrize("entry", ["0", "0.weight", "0*", "[01].weight"])
def test_names_prefixes_and_patterns_are_ignored(entry: str) -> None:
    first, second = find_tied_groups(mlp(2, 5, 4, 3), Limits(max_group_rate=1.0), ignore=(entry,))
    assert first.counts == (0,)
    assert (first.obstacle, first.ignored) == (f"ignored by {entry!r}", True)
    assert (len(second.counts) == 1) == (entry == "[01].weight")


def test_ignored_consumer_does_not_hold_its_producer() -> None:
    (bundle,) = find_tied_groups(mlp(2, 5, 3), Limits(max_group_rate=1.0), ignore=("1",))
    assert len(bundle.counts) == 5


def test_entry_that_matches_nothing_is_met_with_the_nearest_name() -> None:
    groups = find_groups(Halves(), torch.zeros(1, 4))
    with pytest.raises(SettingsError, match="ignore: unknown module or parameter 'lefft'; did you mean 'left'"):
        find_tied_groups(groups, Limits(), ignore=("lefft",))


def test_tied_groups_form_one_bundle() -> None:
    groups = find_groups(Halves(), torch.zeros(1, 4))
    tied = [bundle for bundle in find_tied_groups(groups, Limits()) if len(bundle.names) == 2]
    assert [bundle.sizes for bundle in tied] == [(8, 8)]
    assert tied_names(groups, tied[0].names[1]) == tied[0].names
    with pytest.raises(SettingsError, match="unknown group 'x'"):
        tied_names(groups, "x")


def test_ignoring_one_of_two_tied_groups_holds_both() -> None:
    groups = find_groups(Halves(), torch.zeros(1, 4))
    held = [bundle for bundle in find_tied_groups(groups, Limits(), ignore=("split",)) if len(bundle.names) == 2]
    assert [bundle.counts for bundle in held] == [(0,)]


def test_nearest_level_keeps_more_where_two_are_equally_near() -> None:
    bundle = TiedGroups(("a",), (24,), (0, 8, 16), "")
    assert [bundle.nearest_level(count) for count in (0, 3, 4, 5, 12, 13, 99)] == [0, 0, 0, 1, 1, 2, 2]
    assert replace(bundle, counts=(0,)).nearest_level(9) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"round_to": 0}, "round_to is 0; expected 1 or more"),
        ({"min_channels": 0}, "min_channels is 0; expected 1 or more"),
        ({"max_group_rate": 0.0}, "max_group_rate.* is 0.0; expected"),
        ({"max_group_rate": 1.5}, "max_group_rate.* is 1.5; expected"),
        ({"ignore": "fc"}, r"ignore is the text 'fc'; expected a list: \['fc'\]"),
    ],
)
def test_limits_out_of_bounds_are_refused(wrong: dict[str, Any], message: str) -> None:
    limits = {name: wrong[name] for name in wrong if name.startswith("m")}
    with pytest.raises(SettingsError, match=message):
        find_tied_groups(mlp(2, 5, 3), Limits(**limits), **{name: wrong[name] for name in wrong if name not in limits})
