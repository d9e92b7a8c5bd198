"""The stages of the pipeline in order: what each reads, writes, and is shaped by.

`dvc.yaml` says the same to DVC; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pruning.errors import SettingsError, unknown_name

STOP_ONLY = ("max_attempts", "smallest_step")
"""Settings of `prune` that only say when the loop stops: another value continues a trajectory that is there."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: The same in `dvc.yaml`, `flows/`, `tasks/` and on the command line.
        folder: What it writes, below the workspace.
        needs: The stages whose folders it reads.
        sections: The sections of the settings that shape its output.
        module: Holds its body, the function of its name; what makes its output is found from the import statements.
        facts: Properties of the settings that shape it, where the rest of the sections that they follow from doesn't.
        files: Of its folder, where the stages that read it depend on these alone in DVC: the folder's record changes
            with whatever the stage itself reads.
        persist: Whether the folder stays where it is when the stage runs again: the stage decides what is resumed.
    """

    name: str
    folder: str
    needs: tuple[str, ...]
    sections: tuple[str, ...]
    module: str
    facts: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    persist: bool = False


STAGES = (
    Stage("prepare", "data", (), ("run", "data"), "tasks.stages.prepare"),
    Stage("baseline", "baseline", ("prepare",), ("run", "model", "training", "baseline"), "tasks.stages.baseline"),
    Stage(
        "analyze",
        "analysis",
        ("prepare", "baseline"),
        ("run", "model", "training", "analyze"),
        "tasks.stages.analyze",
        ("measures_curves",),
    ),
    Stage("profile", "profile", ("prepare",), ("run", "model", "profile"), "tasks.stages.profile", persist=True),
    Stage(
        "measurements",
        "measurements",
        ("analyze", "profile"),
        (),
        "tasks.loop.measurements",
        ("goes_by",),
        ("curves.json", "profile.json"),
    ),
    Stage(
        "prune",
        "iterations",
        ("prepare", "baseline", "measurements"),
        ("run", "model", "training", "prune"),
        "tasks.loop.loop",
        persist=True,
    ),
    Stage(
        "transform",
        "dense",
        ("prepare", "baseline", "prune"),
        ("run", "model", "training"),
        "tasks.stages.transform",
    ),
    Stage("export", "onnx", ("prepare", "baseline", "transform"), ("run", "model", "export"), "tasks.stages.export"),
    Stage(
        "benchmark",
        "latency",
        ("prepare", "baseline", "profile", "transform", "export"),
        ("run", "model", "benchmark"),
        "tasks.stages.benchmark",
    ),
    Stage(
        "report",
        "report",
        ("prepare", "baseline", "analyze", "profile", "prune", "transform", "export", "benchmark"),
        ("run", "model", "training", "promote"),
        "tasks.reporting.report",
        ("shaped_by_the_clock", "unlike_default"),
    ),
)

NAMES = tuple(stage.name for stage in STAGES)


def body_of(name: str) -> Callable[..., Any]:
    """Import what makes a stage's folder, a function of settings and workspace; a stage waits for no other's imports.

    Raises:
        SettingsError: There is no such stage.
    """
    body: Callable[..., Any] = getattr(import_module(find_stage(name).module), name)
    return body


def find_stage(name: str) -> Stage:
    """Return the stage of a name.

    Raises:
        SettingsError: There is none.
    """
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise SettingsError(unknown_name("stage", name, NAMES))
