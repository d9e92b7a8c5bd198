"""Where a clock shapes the result, say so: the same settings may come to another model elsewhere, or another time."""

from __future__ import annotations

from collections.abc import Sequence

from pruning.timing.profiles import Profiles

_HOW = {
    "profile.path": "the profile that widths are chosen by was measured by this run itself{place}",
    "prune.measure_latency": "steps that are accepted correct the next ones by their measured latency, where the "
    "profile is of the machine that runs them",
}
_INSTEAD = {
    "profile.path": "commit the profile that was measured (profile/profile.json in the workspace) and name it under "
    "profile.path",
    "prune.measure_latency": "set prune.measure_latency to false",
}


def clock_warning(shaped_by: Sequence[str], profiles: Profiles) -> str | None:
    """Say how a clock shapes the result, and what to do for the same bytes every time; None where none does.

    Args:
        shaped_by: The settings that let it, see `Settings.shaped_by_the_clock`.
        profiles: What the loop goes by.
    """
    if not shaped_by:
        return None
    place = f" ({profiles.profiles[0].runtime.described})" if profiles.profiles else ""
    how = "; ".join(_HOW[name].format(place=place) for name in shaped_by)
    return (
        f"The result depends on this machine's clock: {how}. For the same bytes every time, "
        f"{', and '.join(_INSTEAD[name] for name in shaped_by)}."
    )
