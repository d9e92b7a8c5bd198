"""By what a stage's output was made: settings, code, and the hashes of everything it reads."""

from __future__ import annotations

from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pruning.timing.measuring import cpu_name
from tasks import imports
from tasks.environment import REPOSITORY
from tasks.params.settings import Settings
from tasks.stages import STOP_ONLY, Stage, find_stage
from tasks.workspace import Workspace, contents, digest


def fingerprint(stage: Stage, settings: Settings, workspace: Workspace) -> str:
    """Hash all that shapes a stage's output; the same hash, the same bytes.

    Raises:
        WorkspaceError: A stage that it reads from hasn't finished.
    """
    return _fingerprint(stage, settings, workspace, frozenset())


def trajectory_fingerprint(settings: Settings, workspace: Workspace) -> str:
    """Hash all that shapes the trajectory of the loop; what only says when to stop is left out."""
    return _fingerprint(find_stage("prune"), settings, workspace, frozenset(STOP_ONLY))


def _fingerprint(stage: Stage, settings: Settings, workspace: Workspace, spared: frozenset[str]) -> str:
    dumped = settings.model_dump(mode="json", include=set(stage.sections))
    for section in dumped.values():
        for name in spared & section.keys():
            del section[name]
    body = {
        "stage": stage.name,
        "settings": dumped,
        "code": _code_digest(stage.code),
        "own_code": _own_code(settings, stage.sections),
        "reads": {
            need: dict(contents(workspace.folder(find_stage(need).folder), need)) for need in _needs(stage, settings)
        },
    }
    return digest(body)


def _needs(stage: Stage, settings: Settings) -> list[str]:
    """Return the stages that a stage reads with these settings: a loop that looks at no latency reads no profile."""
    spared = {} if settings.prune.reads_profile else {"prune": "profile", "report": "profile"}
    return [need for need in stage.needs if need != spared.get(stage.name)]


def _code_digest(places: tuple[str, ...]) -> str:
    """Hash the source files of the repository that a stage's output depends on."""
    files = sorted({file for place in places for file in _sources(REPOSITORY / place)})
    return digest({str(file.relative_to(REPOSITORY)): sha256(file.read_bytes()).hexdigest() for file in files})


def _sources(place: Path) -> list[Path]:
    return [place] if place.is_file() else list(place.rglob("*.py"))


def _own_code(settings: Settings, sections: tuple[str, ...]) -> dict[str, str]:
    """Hash what the settings name outside themselves: the files of import strings, and the weights brought along."""
    named: dict[str, Any] = {
        "data": [settings.data.factory],
        "model": [settings.model.factory],
        "training": [settings.training.loss, settings.training.metric],
        "analyze": [settings.analyze.criterion],
        "prune": [settings.prune.criterion],
    }
    if settings.training.augment is not None:
        named["training"].append(settings.training.augment.function)
    references = [reference for section in sections for reference in named.get(section, []) if ":" in reference]
    found = {reference: imports.source_digest(reference) for reference in references}
    if "model" in sections and settings.model.weights is not None:
        found["weights"] = sha256(settings.model.weights.read_bytes()).hexdigest()
    if "profile" in sections:
        path = settings.profile.path
        found["profile"] = sha256(path.read_bytes()).hexdigest() if path else f"{cpu_name()} {version('onnxruntime')}"
    return found
