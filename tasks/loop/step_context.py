"""Where an attempt starts: the same in the process that makes it and in those that compute parts of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pruning.containers import Inputs
from pruning.plan.plan import Plan
from tasks.config.schema import Settings
from tasks.data import Description, read_description
from tasks.determinism import begin
from tasks.fan_out import FanOut, Part, compute
from tasks.loop.ledger import FOLDER, Ledger, read_ledger
from tasks.models import example_inputs, load_model, make_factory
from tasks.passes import Passes
from tasks.training_state import epoch_folder
from tasks.workspace import Json, Workspace

WHOLE = "whole"
"""Folder below a checkpoint: the model of the original's shape, where channels may come back."""


@dataclass(frozen=True)
class Sharing:
    """How parts of an attempt are computed side by side.

    Attributes:
        fan_out: Where.
        number: Of the attempt.
        goal: Of the attempt.
        reductions: The same for each kind of target.
        place: The folder of what it has under way; it identifies all that shapes the attempt.
    """

    fan_out: FanOut
    number: int
    goal: float
    reductions: Mapping[str, float]
    place: Path

    @property
    def attempt(self) -> dict[str, Json]:
        """What a part needs to open the context again, see `open_again`."""
        return {"number": self.number, "goal": self.goal, "reductions": dict(self.reductions)}

    def compute(self, parts: list[Part], settings: Settings, workspace: Workspace) -> None:
        """Have parts computed, see `tasks.fan_out.compute`."""
        compute(parts, self.fan_out, settings, workspace, "prune", self.place / "parts")


@dataclass(frozen=True)
class StepContext:
    """Where an attempt starts.

    Attributes:
        settings: Of the run.
        workspace: Data and curves lie in it.
        ledger: What came before.
        goal: The reduction to reach, against the baseline.
        reductions: The same for each kind of target.
        model: The last accepted one, or one of the original's shape where channels may come back; it is left as it is.
        plan: From the original to it.
        example: One sample [1, ...].
        reference: A model of the shape of `model` whose layers' outputs are to be kept: itself, or the baseline if
            channels may come back that weren't trained in the meantime.
        baseline: The model before pruning.
        sharing: How parts of the attempt are computed side by side; None if all is computed here.
        blocks: Those that this step has taken from `model`, which `reference` still has; `plan` removes them too.
        place: The folder of what the attempt has under way, which identifies all that shapes it; None in processes that
            compute parts of it.
        start: A model of the original shape whose weights the next training begins with; None keeps the present ones.
    """

    settings: Settings
    workspace: Workspace
    ledger: Ledger
    goal: float
    reductions: Mapping[str, float]
    model: nn.Module
    plan: Plan
    example: Inputs
    reference: nn.Module
    baseline: nn.Module
    start: nn.Module | None = None
    sharing: Sharing | None = None
    blocks: tuple[str, ...] = ()
    place: Path | None = None

    @property
    def passes(self) -> Passes:
        """Passes over the samples."""
        return Passes("prune", self.settings, self.workspace)

    @property
    def removed_blocks(self) -> Plan:
        """A plan of the blocks alone."""
        return Plan(removed={}, sizes={}, blocks=self.blocks)


def open_step(
    settings: Settings,
    workspace: Workspace,
    ledger: Ledger,
    goal: float,
    reductions: Mapping[str, float],
    sharing: Sharing | None = None,
    place: Path | None = None,
) -> StepContext:
    """Load what an attempt starts from.

    Args:
        settings: Of the run.
        workspace: Of the run.
        ledger: What came before.
        goal: Of the attempt.
        reductions: The same for each kind of target.
        sharing: How its parts are computed.
        place: The folder of what it has under way.
    """
    data, example = read_description(workspace), example_inputs(workspace, settings)
    baseline_folder, iterations = workspace.folder("baseline"), workspace.folder(FOLDER)
    last = ledger.accepted[-1] if ledger.accepted else None
    parent = iterations / last.checkpoint if last and last.checkpoint else baseline_folder
    if settings.prune.channels_may_return and last:
        parent = parent / WHOLE
    model, plan, _ = load_model(parent, settings, data, example)
    teacher, _, _ = load_model(baseline_folder, settings, data, example)
    start = _start(settings, workspace, data, example)
    reference = teacher if settings.prune.channels_may_return else model
    return StepContext(
        settings,
        workspace,
        ledger,
        goal,
        reductions,
        model,
        plan,
        example,
        reference,
        teacher,
        start,
        sharing,
        place=place,
    )


def open_again(settings: Settings, workspace: Workspace, attempt: Mapping[str, Json]) -> StepContext:
    """Load the same in another process, while the attempt is under way.

    Args:
        settings: Of the run.
        workspace: Of the run.
        attempt: Which, see `Sharing.attempt`.
    """
    begin(settings, offset=1 + attempt["number"])
    ledger = read_ledger(workspace.folder(FOLDER))
    return open_step(settings, workspace, ledger, attempt["goal"], attempt["reductions"])


def _start(settings: Settings, workspace: Workspace, data: Description, example: Inputs) -> nn.Module | None:
    """Return the model whose weights training begins with; None keeps the last ones."""
    start = settings.prune.begins_with
    if start.weights == "keep":
        return None
    if start.epoch is not None:
        model, _, _ = load_model(epoch_folder(workspace, start.epoch), settings, data, example)
        return model
    return make_factory(settings, data)().to(settings.run.device)
