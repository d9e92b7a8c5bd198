"""Bundles: groups that must lose equal numbers of channels, and the numbers that they may lose."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from pruning.errors import OutOfReachError, SettingsError, unknown_name
from pruning.graph.dispatch import state_of
from pruning.graph.groups import CommonSize, Group, Groups
from pruning.graph.module_copy import removed_tensors

Entry = str | nn.Module  # a name, a prefix or a shell pattern of modules or parameters, or a module

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What no plan may break.

    Attributes:
        min_channels: channels that each group keeps.
        max_group_rate: largest share of its original channels that a group may lose in all, so that no layer collapses.

    Raises:
        SettingsError: one of them is out of bounds.
    """

    min_channels: int = 1
    max_group_rate: float = 0.75

    def __post_init__(self) -> None:
        if self.min_channels < 1:
            raise SettingsError(f"min_channels is {self.min_channels}; expected 1 or more: no group is ever emptied")
        if not 0 < self.max_group_rate <= 1:
            raise SettingsError(
                f"max_group_rate, the largest share of a group's channels to remove, is {self.max_group_rate}; "
                "expected (0, 1]"
            )

    def __str__(self) -> str:
        return f"max_group_rate {self.max_group_rate:g} and min_channels {self.min_channels}"


@dataclass(frozen=True)
class Freedom:
    """What a plan may do.

    Attributes:
        limits: what it may not break.
        streams: whether channels of residual streams may go too (`find_groups(..., allow_mixed=True)`).
    """

    limits: Limits
    streams: bool = False

    def __str__(self) -> str:
        return f"{self.limits}{', residual streams included' if self.streams else ''}"


Allowed = TypeVar("Allowed", Limits, Freedom)
Made = TypeVar("Made")


def within_first(freedoms: Iterable[Allowed], make: Callable[[Allowed], Made]) -> tuple[Made, Allowed]:
    """Make something within the first limits, or the first freedom, that let its target be met.

    Args:
        freedoms: one at least; each is tried where the target is out of reach of those before it.
        make: within one of them.

    Returns:
        What was made, and within which; where it isn't the first, a warning says so.

    Raises:
        OutOfReachError: the target is out of reach of all; the text says how far each of them gets.
    """
    failed: list[str] = []
    for tried in freedoms:
        try:
            made = make(tried)
        except OutOfReachError as fault:
            failed.append(f"{fault.least} within {tried}")
            last = fault
        else:
            if failed:
                _log.warning("the target is out of reach: %s; planned within %s", "; ".join(failed), tried)
            return made, tried
    if len(failed) == 1:
        raise last
    raise OutOfReachError(f"{last}. Nothing that is allowed was enough: {'; '.join(failed)}", last.least)


@dataclass(frozen=True)
class TiedGroups:
    """One or more groups that lose channels in step: by default the same number each.

    Attributes:
        names: the groups.
        sizes: their channels.
        counts: the numbers of steps that they may take, rising from 0.
        obstacle: why they can't lose more than by the last of `counts`.
        ignored: whether that is because the limits say to ignore one of them.
        units: channels that each group loses in one step; one of each, if not given.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    obstacle: str
    ignored: bool = False
    units: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", self.units or (1,) * len(self.names))

    @property
    def num_steps(self) -> int:
        """After how many steps the first group would be empty."""
        return min(size // unit for size, unit in zip(self.sizes, self.units, strict=True))

    def removed(self, count: int) -> dict[str, int]:
        """Return how many channels each group loses in so many steps."""
        return {name: count * unit for name, unit in zip(self.names, self.units, strict=True)}

    def kept(self, count: int) -> dict[str, int]:
        """Return how many channels each group keeps after so many steps."""
        zipped = zip(self.names, self.sizes, self.units, strict=True)
        return {name: size - count * unit for name, size, unit in zipped}

    def nearest_level(self, removed: float) -> int:
        """Return the index in `counts` nearest to a number; of two equally near, the one that keeps more."""
        return min(range(len(self.counts)), key=lambda level: (abs(self.counts[level] - removed), level))


def find_tied_groups(
    groups: Groups,
    limits: Limits,
    *,
    ignore: Sequence[Entry] = (),
    round_to: int = 1,
    original_sizes: Mapping[str, int] | None = None,
) -> tuple[TiedGroups, ...]:
    """Return the bundles of all prunable groups, in the groups' order, with the counts that the limits leave.

    Args:
        groups: found on the model at hand.
        limits: what to keep.
        ignore: names, prefixes or shell patterns of modules or parameters, or modules; a group with a producer there
            stays whole.
        round_to: kept counts are multiples of this, or the whole group.
        original_sizes: channels of each group in the original model, where the one at hand is narrower already.

    Raises:
        SettingsError: an entry of `ignore` matches nothing in the model, or `round_to` is below 1.
    """
    if round_to < 1:
        raise SettingsError(f"round_to is {round_to}; expected 1 or more")
    ignored = groups_in(groups, ignore, "ignore")
    tied = [(dict.fromkeys(names, 1), whole) for names, whole in _tied(groups)]
    if groups.common_sizes is not None:
        tied = _with_common_sizes(groups, groups.common_sizes)
    return tuple(
        _bundle([groups[name] for name in units], units, whole, ignored, limits, round_to, original_sizes or {})
        for units, whole in tied
    )


def _with_common_sizes(groups: Groups, common_sizes: Sequence[CommonSize]) -> list[tuple[dict[str, int], str | None]]:
    """Join the groups that one number sets; say where one is lacking among those that can be pruned."""
    found: dict[str, tuple[dict[str, int], str | None]] = {}
    for common in common_sizes:
        outside = next((f"tied to {name}, which can't be pruned" for name in common.units if name not in groups), None)
        units = {group.name: common.units[group.name] for group in groups if group.name in common.units}
        if units:
            found[next(iter(units))] = (units, outside)
    set_by_one = {name for units, _ in found.values() for name in units}
    free = [group.name for group in groups if group.name not in set_by_one]
    found |= {name: ({name: 1}, "no number of the configuration sets its size alone") for name in free}
    return [found[group.name] for group in groups if group.name in found]


def tied_names(groups: Groups, name: str) -> tuple[str, ...]:
    """Return the names of the groups that lose equal counts with one group, its own included.

    Raises:
        SettingsError: there is no such group.
    """
    for names, _ in _tied(groups):
        if name in names:
            return names
    raise SettingsError(unknown_name("group", name, (group.name for group in groups)))


def _tied(groups: Groups) -> list[tuple[tuple[str, ...], str | None]]:
    """Join groups that are tied; say where one is tied to something that can't be pruned."""
    members = {group.name: {group.name} for group in groups}
    foreign: dict[str, str] = {}
    for group in groups:
        for other in group.ties:
            if other not in members:
                foreign[group.name] = other
            elif members[other] is not members[group.name]:
                joined = members[other] | members[group.name]
                for name in joined:
                    members[name] = joined
    found: dict[int, tuple[tuple[str, ...], str | None]] = {}
    for group in groups:
        names = members[group.name]
        ordered = tuple(one.name for one in groups if one.name in names) if len(names) > 1 else (group.name,)
        outside = next((f"tied to {foreign[name]}, which can't be pruned" for name in ordered if name in foreign), None)
        found.setdefault(id(names), (ordered, outside))
    return list(found.values())


def _bundle(
    members: Sequence[Group],
    units: Mapping[str, int],
    outside: str | None,
    ignored: Mapping[str, str],
    limits: Limits,
    round_to: int,
    original_sizes: Mapping[str, int],
) -> TiedGroups:
    names, sizes = tuple(group.name for group in members), tuple(group.size for group in members)
    entry = next((ignored[name] for name in names if name in ignored), None)
    if outside is not None:
        return TiedGroups(names, sizes, (0,), outside)
    if entry is not None:
        return TiedGroups(names, sizes, (0,), f"ignored by {entry!r}", ignored=True)
    allowed = set.intersection(
        *(
            {
                count // units[group.name]
                for count in _counts(group, original_sizes.get(group.name, group.size), limits, round_to)
                if count % units[group.name] == 0
            }
            for group in members
        )
    )
    counts = tuple(sorted(allowed))
    obstacle = _obstacle(min(sizes), limits, round_to, max(group.multiple for group in members))
    if len(counts) == 1 and all(original_sizes.get(group.name, group.size) == group.size for group in members):
        _log.warning("group %s (%d channels) stays whole: %s", names[0], sizes[0], obstacle)
    return TiedGroups(names, sizes, counts, obstacle, units=tuple(units[name] for name in names))


def _counts(group: Group, original: int, limits: Limits, round_to: int) -> set[int]:
    """Return the numbers of channels that a group may lose."""
    size, step = group.size, group.multiple
    gone = original - size
    largest = min(size - limits.min_channels, int(limits.max_group_rate * original + 1e-9) - gone)
    return {0} | {count for count in range(step, largest + 1, step) if (size - count) % round_to == 0}


def _obstacle(size: int, limits: Limits, round_to: int, multiple: int) -> str:
    if size <= round_to and round_to > 1:
        return f"not above round_to = {round_to}"
    reasons = [f"min_channels = {limits.min_channels}"]
    if round_to > 1:
        reasons.append(f"round_to = {round_to}")
    if multiple > 1:
        reasons.append(f"an operator that takes multiples of {multiple} alone")
    if limits.max_group_rate < 1:
        reasons.append(f"at most {limits.max_group_rate:.0%} of a group")
    return ", ".join(reasons)


def groups_in(groups: Groups, entries: Iterable[Entry], setting: str) -> dict[str, str]:
    """Map each group that is produced where an entry points to, to that entry.

    Args:
        groups: of the model.
        entries: names, prefixes or shell patterns of modules or parameters, or modules themselves.
        setting: what messages call the entries.

    Raises:
        SettingsError: an entry matches nothing in the model.
    """
    named = parameters_in(groups.model, entries, setting)
    found: dict[str, str] = {}
    for group in groups:
        made = [piece for piece in group.slices if piece.role == "producer"] or list(group.slices)
        entry = next((named[piece.parameter] for piece in made if piece.parameter in named), None)
        if entry is not None:
            found[group.name] = entry
    return found


def parameters_in(model: nn.Module, entries: Iterable[Entry], setting: str) -> dict[str, str]:
    """Map each parameter and buffer that an entry points to, to the first such entry.

    Args:
        model: whose parameters they are.
        entries: names, prefixes or shell patterns of modules or parameters, or modules themselves.
        setting: what messages call the entries.

    Raises:
        SettingsError: an entry matches nothing in the model.
    """
    if isinstance(entries, str):
        raise SettingsError(f"{setting} is the text {entries!r}; expected a list: [{entries!r}]")
    places = _places(model)
    found: dict[str, str] = {}
    for entry in (_name_of(entry, model, setting) for entry in entries):
        if not any(fnmatchcase(place, entry) for place in places):
            near = get_close_matches(entry, places, n=3, cutoff=0.5)
            top = {name for name, _ in model.named_children()}
            raise SettingsError(f"{setting}: {unknown_name('module or parameter', entry, top.union(near))}")
        for name in state_of(model):
            if any(fnmatchcase(place, entry) for place in _prefixes(name)):
                found.setdefault(name, entry)
    return found


def _name_of(entry: Entry, model: nn.Module, setting: str) -> str:
    if isinstance(entry, str):
        return entry
    name = next((name for name, module in model.named_modules() if module is entry), None)
    if name is None:
        raise SettingsError(
            f"{setting}: a {type(entry).__name__} was given that is no module of this {type(model).__name__}; "
            "give a module of the model itself, or its name"
        )
    return name or "*"


def _places(model: nn.Module) -> list[str]:
    """Return every name that an entry may match: modules, parameters, buffers, those of blocks that are gone too."""
    return [*(name for name, _ in model.named_modules() if name), *state_of(model), *sorted(removed_tensors(model))]


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: index + 1]) for index in range(len(parts))]
