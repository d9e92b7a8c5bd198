"""The loop: prune a step, fine-tune, judge, back off, until the target is reached or the attempts are used up.

`prune` is its one driver, the body of the stage: it opens the loop, makes one attempt after another, and closes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pruning.allocation.schedule import Attempt, ScheduleSettings, Stop
from pruning.errors import DataError, TargetError, WorkspaceError
from pruning.io.checkpoint import check_checkpoint, save_checkpoint
from pruning.metrics import Measure
from pruning.plan.masks import compose, find_groups_under
from pruning.plan.narrow import expand
from tasks.config.schema import Settings
from tasks.config.target_schema import Kind, worst_score
from tasks.data import read_description
from tasks.determinism import begin
from tasks.fan_out import FanOut
from tasks.fingerprint import trajectory
from tasks.loop.ledger import FILE, FOLDER, OUTCOME, Ledger, LoopOutcome, Row, forget_aside, open_ledger
from tasks.loop.measurements import baseline_ms, read_profile
from tasks.loop.methods import Step, take_step
from tasks.loop.recipes import train_all
from tasks.loop.step_context import WHOLE, Sharing, open_step
from tasks.loop.targets import (
    LATENCY,
    Goals,
    LatencyEstimate,
    clock_warning,
    estimate_latency,
    goals_of,
)
from tasks.models import (
    ModelMetrics,
    example_inputs,
    load_model,
    measure_of,
    measured_in,
    save_model,
)
from tasks.sanity_check import sanity_check
from tasks.terminal import command_line
from tasks.training_state import forget, unfinished
from tasks.workspace import Workspace, digest, write_json

_ROUNDING = 1e-9

log = logging.getLogger("secateur")


@dataclass(frozen=True)
class Loop:
    """A trajectory under way.

    Attributes:
        ledger: What was tried.
        goals: What the target comes to, against the baseline.
        schedule: What to try next, as a function of the ledger.
        floor: The worst score on the validation set that is accepted.
        kind: What kind of pruning it is.
        measure: What the score is.
    """

    ledger: Ledger
    goals: Goals
    schedule: ScheduleSettings
    floor: float
    kind: Kind
    measure: Measure

    def next(self) -> Attempt | Stop:
        """Derive what to do now."""
        return self.ledger.next(self.schedule)

    @property
    def progress(self) -> float:
        """The share of the target that is reached."""
        accepted = self.ledger.accepted
        return min(1.0, accepted[-1].reached / self.schedule.target) if accepted else 0.0


Call = Callable[..., Any]
"""(function, name, arguments) -> what it returns: as a task of Prefect's, or simply called."""

Watch = Callable[[Loop, Row | None], object]
"""Called with the loop when it is open, and after each attempt with its row in the ledger."""


def _call(function: Callable[..., Any], _name: str, *arguments: Any) -> Any:
    return function(*arguments)


def prune(
    settings: Settings,
    workspace: Workspace,
    *,
    fan_out: FanOut | None = None,
    call: Call = _call,
    watch: Watch = lambda _loop, _row: None,
) -> Loop:
    """Run the loop from where its ledger stands to its end.

    Args:
        settings: Of the run.
        workspace: The stages before have finished in it.
        fan_out: Where recipes and allocations of an attempt are computed side by side; all here if None.
        call: Opens the loop and makes each attempt.
        watch: Called with the progress. An exception from it ends the loop like a kill: the next call continues.

    Raises:
        SecateurError: As `open_loop` and `attempt` do.
    """
    loop: Loop = call(open_loop, "open", settings, workspace)
    watch(loop, None)
    while isinstance(step := loop.next(), Attempt):
        name = f"attempt-{step.number + 1}-to-{step.goal:.3f}"
        row: Row = call(attempt, name, settings, workspace, loop.ledger, loop.goals, step, loop.floor, fan_out)
        loop.ledger.record(row)
        log.info("%s", describe(row, loop.measure))
        watch(loop, row)
    close_loop(loop, step, workspace)
    return loop


def open_loop(settings: Settings, workspace: Workspace) -> Loop:
    """Resume the loop, or begin it.

    Raises:
        DataError: The data are others than the baseline's.
        SettingsError: The target is no reduction of this baseline, or what the settings name can't be called.
        ModelError: Model, loss or metric fail on the first batch.
        WorkspaceError: The ledger is damaged.
        CheckpointError: The baseline or an accepted attempt is damaged.
    """
    sanity_check(settings, workspace)
    data = read_description(workspace)
    folder = workspace.folder("baseline")
    _, _, meta = load_model(folder, settings, data, example_inputs(workspace, settings))
    trains_on_others = bool(settings.prune.recipes) and meta["data_fingerprint"] != data.fingerprint
    if trains_on_others and not settings.prune.allow_other_data:
        raise DataError(
            f"the baseline learned from the data {meta['data_fingerprint'][:12]}…, the workspace holds "
            f"{data.fingerprint[:12]}…; fine-tuning has to see the same data. Run "
            f"{command_line('run baseline')} again, or set prune.allow_other_data if it is meant"
        )
    baseline = measured_in(meta, folder)
    goals = goals_of(settings.prune.target, baseline, baseline_ms(workspace))
    schedule = settings.prune.schedule_for(goals.total)
    shaped_by = trajectory(settings, workspace)
    ledger = open_ledger(workspace.folder(FOLDER), digest(shaped_by), baseline, schedule, shaped_by)
    _check(ledger)
    if (warning := clock_warning(settings.shaped_by_the_clock, read_profile(workspace))) is not None:
        log.warning("prune: %s", warning)
    if ledger.rows:
        log.info("prune: resuming after %d attempts, %d of them accepted", len(ledger.rows), len(ledger.accepted))
    measure, chosen = measure_of(settings, data), settings.prune
    floor = worst_score(baseline.score, measure, chosen.max_accuracy_drop, chosen.max_drop)
    return Loop(ledger, goals, schedule, floor, chosen.kind, measure)


def _check(ledger: Ledger) -> None:
    """Check that every accepted attempt is as it was written, because the folder's new record will vouch for it."""
    for row in ledger.accepted:
        place = ledger.root / str(row.checkpoint)
        if check_checkpoint(place) != row.weights_sha256:
            raise WorkspaceError(
                f"{place} holds other weights than {ledger.root / FILE} says; bring it back with "
                f"`dvc checkout {ledger.root}`, or delete {ledger.root} to start the loop over"
            )


def attempt(
    settings: Settings,
    workspace: Workspace,
    ledger: Ledger,
    goals: Goals,
    step: Attempt,
    floor: float,
    fan_out: FanOut | None = None,
) -> Row:
    """Go from the last accepted model to the step's goal, and judge.

    Args:
        settings: Of the run.
        workspace: An accepted attempt's checkpoint is written into it.
        ledger: What came before; not changed.
        goals: What the target comes to.
        step: Number and goal of this attempt.
        floor: The worst score on the validation set that is accepted.
        fan_out: Where its recipes and allocations are computed side by side; all here if None.

    Returns:
        The ledger's new row.
    """
    begin(settings, offset=1 + step.number)
    under_way = unfinished(workspace, f"{ledger.fingerprint[:16]}-{step.number}")
    asked = goals.at(step.goal)
    sharing = None if fan_out is None else Sharing(fan_out, step.number, step.goal, asked, under_way)
    context = open_step(settings, workspace, ledger, step.goal, asked, sharing, under_way)
    last = ledger.accepted[-1] if ledger.accepted else None
    try:
        taken = take_step(context)
    except TargetError as error:
        reached = last.reached if last else 0.0
        return Row(attempt=step.number, goal=step.goal, reached=reached, accepted=False, refused=str(error))
    candidates, failed = train_all(context, taken, step.number, under_way)
    if not candidates:
        reached = last.reached if last else 0.0
        return Row(attempt=step.number, goal=step.goal, reached=reached, accepted=False, failed=failed)
    data, example, teacher = read_description(workspace), context.example, context.baseline
    measure = measure_of(settings, data)
    best = max(candidates, key=lambda one: (measure.gain(0.0, one.measured.score), -one.measured.loss))
    accepted = measure.gain(floor, best.measured.score) >= -_ROUNDING
    latency = None
    if goals.name_latency:
        measured = accepted and settings.prune.measures_latency
        latency = estimate_latency(best.model, teacher, settings, workspace, example, measured=measured)
    row = Row(
        attempt=step.number,
        goal=step.goal,
        reached=_reached(taken, best.measured, latency, step, ledger, goals),
        accepted=accepted,
        measured=best.measured,
        recipe=best.recipe,
        recipes={one.recipe: one.measured.score for one in candidates},
        kept_epochs={one.recipe: one.kept_epoch for one in candidates if one.kept_epoch is not None},
        failed=failed,
        unrounded=dict(taken.unrounded) if taken.unrounded else None,
        relaxed=taken.relaxed,
        streams=taken.streams,
        tried=taken.tried,
        blocks=taken.plan.blocks,
        predicted_ms=latency.predicted_ms if latency else None,
        latency_ratio=latency.ratio if latency else None,
    )
    if not accepted:
        return row
    name = f"{len(ledger.accepted) + 1:02d}"
    both = compose(context.plan, taken.plan, teacher, example)
    folder = workspace.folder(FOLDER) / name
    digest = save_model(folder, best.model, both, best.measured, data.fingerprint)
    if settings.prune.channels_may_return:
        whole = expand(best.model, taken.plan, find_groups_under(taken.plan, context.model, example), context.model)
        save_checkpoint(folder / WHOLE, whole, context.plan)
    return row.model_copy(update={"checkpoint": name, "weights_sha256": digest})


def _reached(
    taken: Step,
    measured: ModelMetrics,
    latency: LatencyEstimate | None,
    step: Attempt,
    ledger: Ledger,
    goals: Goals,
) -> float:
    if taken.reached is not None:
        return taken.reached
    reductions = measured.reduction_from(ledger.baseline)
    if latency is not None:
        asked = goals.at(step.goal)
        reductions |= {kind: latency.reduction(asked[kind]) for kind in LATENCY if kind in asked}
    return goals.reached(reductions)


def close_loop(loop: Loop, stop: Stop, workspace: Workspace) -> None:
    """Write how the loop ended."""
    accepted = loop.ledger.accepted
    outcome: LoopOutcome = {
        "kind": loop.kind,
        "stopped_because": stop.reason,
        "floor": loop.floor,
        "checkpoint": accepted[-1].checkpoint if accepted else None,
    }
    write_json(loop.ledger.root / OUTCOME, outcome)
    forget(workspace)
    if accepted:
        forget_aside(loop.ledger.root)
    log.info("prune: %s; %d attempts, %d accepted", stop.reason, len(loop.ledger.rows), len(accepted))


def describe(row: Row, measure: Measure) -> str:
    """Say in one line what became of an attempt."""
    what = f"attempt {row.attempt + 1}: goal {row.goal:.1%}"
    if row.measured is None:
        why = row.refused or "; ".join(f"{recipe}: {fault}" for recipe, fault in row.failed.items())
        return f"{what}, {row.verdict}: {why}"
    streams = f", residual streams narrowed ({', '.join(row.streams)})" if row.streams else ""
    blocks = f", blocks gone ({', '.join(row.blocks)})" if row.blocks else ""
    found = f"reached {row.reached:.1%}, {measure.name} {measure.show(row.measured.score)} by {row.recipe}"
    taken = next((f", allocated by {one.name}" for one in row.tried if one.chosen), "")
    return f"{what}, {found}{taken}{streams}{blocks}: {row.verdict}"
