"""Pick out what the loop uses of analysis and profile: nothing, unless its allocation or target needs them.

This is a stage of its own, so that measurements for the report alone never make the loop start over.
"""

from __future__ import annotations

import logging

from pruning.allocation.sensitivity import Curve
from pruning.graph.groups import Groups
from pruning.latency.profile import LatencyCost, Profiles, read_profiles
from pruning.latency.runner import PROFILE
from tasks.config.schema import Settings
from tasks.workspace import Workspace, write_json, writing

FOLDER = NAME = "measurements"
CURVES = "curves.json"
_FOLDERS = {NAME: FOLDER, "analyze": "analysis", "profile": "profile"}

NOTHING_PROFILED = Profiles(questions="", profiles=())

log = logging.getLogger("secateur")


def measurements(settings: Settings, workspace: Workspace) -> None:
    """Write `curves.json` and `profile.json`, each empty if the loop doesn't use it.

    Raises:
        WorkspaceError: The curves aren't there or are damaged.
        ProfileError: The same of the profile.
    """
    curves = read_curves(workspace, "analyze") if "curves" in settings.goes_by else ()
    profiles = read_profile(workspace, "profile") if "profile" in settings.goes_by else NOTHING_PROFILED
    with writing(workspace.folder(FOLDER)) as folder:
        write_json(folder / CURVES, [curve.model_dump(mode="json") for curve in curves])
        profiles.write(folder / PROFILE)
    log.info("measurements: the loop uses %s", " and ".join(settings.goes_by) or "none")


def read_curves(workspace: Workspace, stage: str = NAME) -> tuple[Curve, ...]:
    """Read the curves that the loop uses, or those in another stage's folder.

    Raises:
        WorkspaceError: They aren't there or are damaged.
    """
    return workspace.read_json(_FOLDERS[stage], CURVES, stage, tuple[Curve, ...])


def read_profile(workspace: Workspace, stage: str = NAME) -> Profiles:
    """Read the profiles that the loop uses, or those in another stage's folder; there may be none.

    Raises:
        ProfileError: They aren't there or are damaged.
    """
    return read_profiles(workspace.folder(_FOLDERS[stage]) / PROFILE)


def latency_cost(workspace: Workspace, groups: Groups, stage: str = NAME) -> LatencyCost | None:
    """Return the latency model that decides plans; None if there is no profile or the loop doesn't use one.

    Raises:
        ProfileError: The profile is damaged, or of another network.
    """
    found = read_profile(workspace, stage).profiles
    return LatencyCost(groups, found[0]) if found else None


def baseline_ms(workspace: Workspace, stage: str = NAME) -> float | None:
    """Return the predicted latency of the baseline; None if there is no profile or the loop doesn't use one."""
    found = read_profile(workspace, stage).profiles
    return found[0].whole_ms if found else None
