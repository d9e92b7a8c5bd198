"""What of a version's settings is used when it is measured, and which functions they may name.

Whoever can write to the registry can write a version's settings. A function that they name is called only if it is

    built in                a loss or metric by its short name, or something of `zoo`
    named by us too         in the settings that the command was given
    committed               its module is a file of this repository, and a settings file names it: Git tracks both at
                            the commit that the version was made from

All other settings, of data, paths, machines and stores among them, are those that the command was given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pruning.errors import WorkspaceError
from tasks.params.faults import describe
from tasks.params.names import LOSSES, METRICS
from tasks.params.settings import Model, Settings, Training
from tasks.params.yaml_file import read_mapping
from tasks.production import source

_REFERENCE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*")
_ZOO = re.compile(r"zoo(\.\w+)*:\w+")


def settings_to_measure_by(own: Settings, params: Path, commit: str | None) -> Settings:
    """Return the settings of the command with the model, loss and metric of a version.

    Args:
        own: Of the command.
        params: The version's settings file.
        commit: What the version was made from; None outside Git.

    Raises:
        WorkspaceError: They name a function that isn't known here. None was imported.
        SettingsError: The file is malformed.
    """
    found = read_mapping(params)
    model, training = _section(found, "model"), _section(found, "training")
    chosen = {"factory": model.get("factory"), "arguments": model.get("arguments", {})}
    judged = {name: training.get(name, Training.model_fields[name].default) for name in ("loss", "metric")}
    known = {own.model.factory, own.training.loss, own.training.metric}
    known |= {*LOSSES, *LOSSES.values(), *METRICS, *METRICS.values()}
    for place, reference in (("model.factory", chosen["factory"]), *((f"training.{k}", v) for k, v in judged.items())):
        if reference not in known:
            _refuse_foreign(place, reference, commit)
    try:
        return own.model_copy(
            update={
                "model": Model.model_validate(chosen),
                "training": Training.model_validate({**judged, "batch_size": own.training.batch_size}),
            }
        )
    except ValidationError as error:
        raise WorkspaceError(f"the version's settings can't be used: {'; '.join(describe(error, Settings))}") from error


def _section(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = found.get(name, {})
    if not isinstance(section, dict):
        raise WorkspaceError(f"the version's settings can't be used: {name} is a {type(section).__name__}, no mapping")
    return section


def _refuse_foreign(place: str, reference: Any, commit: str | None) -> None:
    """Refuse a function that is neither built in nor committed."""
    if isinstance(reference, str) and _ZOO.fullmatch(reference):
        return
    refusal = f"the version's settings name {str(reference)[:100]!r} for {place}, which was not imported: "
    remedy = "; if you trust it, give settings that name it too with --params FILE, or delete that version"
    if not isinstance(reference, str) or not _REFERENCE.fullmatch(reference):
        raise WorkspaceError(f"{refusal}it is no import string{remedy}")
    if commit is None:
        raise WorkspaceError(f"{refusal}the version was made outside Git, so that nothing vouches for it{remedy}")
    module = reference.partition(":")[0].replace(".", "/")
    if not source.tracks(commit, f"{module}.py", f"{module}/__init__.py"):
        raise WorkspaceError(f"{refusal}Git tracks no such module at the version's commit {commit[:12]} here{remedy}")
    if not source.mentions(commit, reference, "*.yaml", "*.yml"):
        raise WorkspaceError(
            f"{refusal}no settings file that Git tracks at the version's commit {commit[:12]} names it{remedy}"
        )
