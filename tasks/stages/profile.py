"""Measure how long each layer takes at several widths, or take over a profile that was measured elsewhere."""

from __future__ import annotations

import logging
from hashlib import sha256
from pathlib import Path

import pruning
from pruning.errors import ProfileError
from pruning.io.files import replace_file
from pruning.latency.measure import answer, runtime_here
from pruning.latency.microbenchmarks import ask
from pruning.latency.profile import LatencyCost, Profiles, read_profiles
from pruning.latency.runner import MANIFEST, PROFILE
from tasks.config.schema import Settings
from tasks.data import read_description
from tasks.determinism import begin
from tasks.loop.measurements import NOTHING_PROFILED
from tasks.models import example_inputs, make_factory, on
from tasks.terminal import shown
from tasks.workspace import Workspace, writing

FOLDER = "profile"
QUESTIONS = "questions"

log = logging.getLogger("secateur")


def profile(settings: Settings, workspace: Workspace) -> None:
    """Write `profile.json`, and `questions/`, a folder with which any machine can be measured by its own script.

    An earlier measurement is kept if questions, machine and runtime are the same: nothing is measured again unless
    what it depends on has changed, or its folder was deleted.

    Raises:
        ProfileError: The given profile is damaged or of another network, or this machine can't measure.
    """
    begin(settings)
    chosen = settings.profile
    model = make_factory(settings, read_description(workspace))()
    example = on("cpu", example_inputs(workspace, settings))
    groups = pruning.find_groups(model, example, allow_mixed=settings.profiles_streams)
    place = workspace.folder(FOLDER)
    with writing(place) as folder:
        if chosen.path is None and not chosen.batch_sizes:
            NOTHING_PROFILED.write(folder / PROFILE)
            log.info("profile: nothing is measured, since profile.batch_sizes is empty")
            return
        try:
            ask(
                groups,
                folder / QUESTIONS,
                provider=chosen.provider,
                threads=chosen.threads,
                batch_sizes=chosen.batch_sizes or (1,),
            )
        except ProfileError as fault:
            if chosen.path is not None:
                raise
            NOTHING_PROFILED.write(folder / PROFILE)
            log.warning("profile: no latency can be predicted: %s", fault)
            return
        if chosen.path is not None:
            found = _brought_along(chosen.path, groups)
            replace_file(folder / PROFILE, chosen.path.read_bytes())
        elif (kept := _measured_before(place, folder / QUESTIONS, settings)) is not None:
            found = kept
            replace_file(folder / PROFILE, (place / PROFILE).read_bytes())
        else:
            with shown("profile: files") as progress:
                found = answer(folder / QUESTIONS, progress)
            (folder / QUESTIONS / PROFILE).replace(folder / PROFILE)
    first = found.profiles[0]
    log.info("profile: the baseline takes %.3f ms; %s", first.whole_ms, first.runtime.described)


def _brought_along(path: Path, groups: pruning.Groups) -> Profiles:
    found = read_profiles(path)
    if not found.profiles:
        raise ProfileError(f"{path} holds no profile; make one by {QUESTIONS}/measure.py")
    for one in found.profiles:
        LatencyCost(groups, one)
    return found


def _measured_before(place: Path, questions: Path, settings: Settings) -> Profiles | None:
    """Return the existing profile if it answers the same questions and was measured on this machine."""
    try:
        found = read_profiles(place / PROFILE)
    except ProfileError:
        return None
    asked = sha256((questions / MANIFEST).read_bytes()).hexdigest()
    cases = dict.fromkeys(
        runtime_here(provider=settings.profile.provider, num_threads=threads, batch_size=batch_size)
        for threads in settings.profile.threads
        for batch_size in settings.profile.batch_sizes
    )
    same = found.questions == asked and tuple(cases) == tuple(one.runtime for one in found.profiles)
    return found if same else None
