"""The stages of the pipeline in order: what each reads, writes, and is shaped by.

`dvc.yaml` is made from it: `python -m tasks.registry.dvc_repo > dvc.yaml`. It imports nothing of the pipeline, so that
commands which only list the stages are quick.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

CODE = "code"
"""What tells DVC what the others execute: a stage to DVC alone. It runs each time, since DVC can't see if it has to."""

STOP_ONLY = ("max_attempts", "smallest_step")
"""Settings of `prune` that only say when the loop stops: another value continues a trajectory that is there."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: The same in `dvc.yaml`, `flows/`, `tasks/` and on the command line.
        summary: What it does, for its help.
        module: Holds its body, the function of its name; what makes its output is found from the import statements.
        folder: What it writes, below the workspace.
        needs: The stages whose folders it reads.
        sections: The sections of the settings that shape its output.
        facts: Properties of the settings that shape it, where the rest of the sections that they follow from doesn't.
        files: Of its folder, where the stages that read it depend on these alone in DVC: the folder's record changes
            with whatever the stage itself reads.
        persist: Whether the folder stays where it is when the stage runs again: the stage decides what is resumed.
        has_passes: Whether it passes samples through models so long that ranks share it, see `tasks.passes`.
    """

    name: str
    summary: str
    module: str
    folder: str
    needs: tuple[str, ...]
    sections: tuple[str, ...]
    facts: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    persist: bool = False
    has_passes: bool = False


STAGES = (
    Stage(
        "prepare",
        "Bring the data set into the workspace.",
        module="tasks.stages.prepare",
        folder="data",
        needs=(),
        sections=("run", "data", "task"),
    ),
    Stage(
        "baseline",
        "Train the baseline, or take the one brought along.",
        module="tasks.stages.baseline",
        folder="baseline",
        needs=("prepare",),
        sections=("run", "model", "task", "training", "baseline"),
        has_passes=True,
    ),
    Stage(
        "analyze",
        "Measure how much each channel group costs.",
        module="tasks.stages.analyze",
        folder="analysis",
        needs=("prepare", "baseline"),
        sections=("run", "model", "task", "training", "analyze"),
        facts=("measures_curves", "offers_streams"),
        has_passes=True,
    ),
    Stage(
        "profile",
        "Measure how long each layer takes by its widths.",
        module="tasks.stages.profile",
        folder="profile",
        needs=("prepare",),
        sections=("run", "model", "profile"),
        facts=("profiles_streams",),
        persist=True,
    ),
    Stage(
        "measurements",
        "Pick out the measurements that the loop goes by.",
        module="tasks.loop.measurements",
        folder="measurements",
        needs=("analyze", "profile"),
        sections=(),
        facts=("goes_by",),
        files=("curves.json", "profile.json"),
    ),
    Stage(
        "prune",
        "Prune, fine-tune, judge, back off, until the target or the end of patience.",
        module="tasks.loop.loop",
        folder="iterations",
        needs=("prepare", "baseline", "measurements"),
        sections=("run", "model", "task", "training", "prune"),
        persist=True,
        has_passes=True,
    ),
    Stage(
        "transform",
        "Make the final dense model and prove that it equals the masked one.",
        module="tasks.stages.transform",
        folder="dense",
        needs=("prepare", "baseline", "prune"),
        sections=("run", "model", "task", "training"),
        has_passes=True,
    ),
    Stage(
        "export",
        "Write the ONNX files and prove that they compute the same.",
        module="tasks.stages.export",
        folder="onnx",
        needs=("prepare", "baseline", "transform"),
        sections=("run", "model", "task", "export"),
    ),
    Stage(
        "quantize",
        "Write a quantised ONNX file too, if asked for, and compare it with the float one.",
        module="tasks.stages.quantize",
        folder="quantized",
        needs=("prepare", "baseline", "transform", "export"),
        sections=("run", "model", "task", "training", "quantize"),
    ),
    Stage(
        "benchmark",
        "Measure the latency of baseline, dense and quantised model.",
        module="tasks.stages.benchmark",
        folder="latency",
        needs=("prepare", "baseline", "profile", "transform", "export", "quantize"),
        sections=("run", "model", "benchmark"),
    ),
    Stage(
        "report",
        "Read the test set, for the first time, and write the report.",
        module="tasks.reporting.report",
        folder="report",
        needs=("prepare", "baseline", "analyze", "profile", "prune", "transform", "export", "quantize", "benchmark"),
        sections=("run", "model", "task", "training", "promote"),
        facts=("shaped_by_the_clock", "unlike_default"),
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
    from pruning.errors import SettingsError, unknown_name

    raise SettingsError(unknown_name("stage", name, NAMES))
