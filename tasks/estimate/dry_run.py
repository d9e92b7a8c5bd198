"""What `secateur run` would do and cost: stages, attempts, epochs, evaluations, seconds, disk, memory.

Work is counted from the settings and the samples; seconds are put together from parts that are timed here on the user's
model and samples (`tasks.estimate.timings`). Nothing is written into the workspace.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter

import torch

from pruning.allocation.schedule import Outcome
from pruning.errors import SecateurError
from tasks.config.schema import Settings, load
from tasks.estimate.costs import Costs
from tasks.estimate.counts import NOTHING, Bounds, Work
from tasks.estimate.subject import Subject, UncountedError, open_subject
from tasks.estimate.timings import Bench, Clock
from tasks.fingerprint import trajectory
from tasks.frontier import SHARED
from tasks.last_run import State, states_of
from tasks.loop.ledger import FOLDER as LOOP
from tasks.loop.ledger import read_ledger
from tasks.loop.measurements import baseline_ms
from tasks.loop.targets import goals_of
from tasks.models import ModelMetrics, size_bytes
from tasks.sanity_check import sanity_check
from tasks.workspace import Json, Workspace, digest

SECONDS = 10.0
"""What the timing may take in all, about, beside what can't be cut short."""

_PARTS = 12  # that share it
_NOTHING_RUNS = "nothing would run: all that was asked for is current"
_NOT_TIMED = "not timed: imports, MLflow's record, DVC's commits, the pictures of the report"


@dataclass(frozen=True)
class StageEstimate:
    """What a stage would do.

    Attributes:
        stage: Its name.
        state: As `tasks.last_run.State` has it.
        reasons: Why it isn't current.
        runs: Whether it would run; of a stage that reads others that would, only if those come out otherwise.
        work: What it does that can be counted, if it runs.
        seconds: How long; None where that isn't known.
    """

    stage: str
    state: str
    reasons: tuple[str, ...]
    runs: bool
    work: Work
    seconds: Bounds | None


@dataclass(frozen=True)
class Estimate:
    """What a run would do and cost.

    Attributes:
        stages: In order.
        disk: What is kept -> bytes.
        memory_bytes: Peak of a run's process; None where nothing was tried.
        device_bytes: The same of the GPU; None without one.
        notes: What isn't in the figures, and what is worked out from little.
        parts: Seconds of what was timed, by name.
    """

    stages: tuple[StageEstimate, ...]
    disk: Mapping[str, Bounds]
    memory_bytes: int | None
    device_bytes: int | None
    notes: tuple[str, ...]
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> Bounds | None:
        """Of all stages that would run; None where that of one isn't known."""
        total = NOTHING
        for one in self.stages:
            if one.runs:
                if one.seconds is None:
                    return None
                total += one.seconds
        return total


def estimate(
    params: Path,
    workspace: Path,
    *,
    shared: Path | None = None,
    only: str | None = None,
    seconds: float = SECONDS,
    clock: Clock = perf_counter,
) -> Estimate:
    """Say what a run would do and cost.

    Args:
        params: The settings file.
        workspace: Of the run; it is only read.
        shared: The workspace that a trial takes data, baseline, analysis and profile over from, where they are current.
        only: The one stage that would run; None: all.
        seconds: What timing may take, about.
        clock: What parts are timed with, in seconds.

    Raises:
        SecateurError: A run would end with this fault before anything is trained.
    """
    settings = load(params)
    states, place, notes = states_of(params, workspace), Workspace(workspace), list[str]()
    if shared is not None:
        states, taken = _taken_over(states, states_of(params, shared))
        place = Workspace(shared) if "prepare" in taken else place
        if taken:
            notes.append(f"taken over from {shared}: {', '.join(taken)}")
    prepared = states[0].is_current
    if only is not None:
        states = [state for state in states if state.stage == only]
    if all(state.is_current for state in states):
        stages = (StageEstimate(s.stage, s.state, (), False, Work(), NOTHING) for s in states)
        return Estimate(tuple(stages), {}, None, None, (_NOTHING_RUNS,))
    began = clock()
    try:
        subject = open_subject(settings, place, prepared=prepared)
    except UncountedError as fault:
        return _uncounted(states, str(fault))
    opened = clock() - began
    history, continued = _history(settings, place)
    if continued:
        notes.append(f"the loop goes on after {len(history)} attempts that were made by the same settings")
    total, known = _total(settings, subject, place)
    if not known:
        notes.append(
            "the target is in milliseconds and there is no profile, so how far the baseline is from it isn't known: "
            "attempts are counted as for half of the baseline's latency"
        )
    schedule = settings.prune.schedule_for(total)
    bench = Bench(subject, seconds / _PARTS, clock)
    _check(settings, place, prepared, bench, notes)
    costs = Costs(bench, schedule, history, frozenset(s.stage for s in states if not s.is_current), opened, notes)
    costs.measure()
    if bench.cut:
        notes.append(f"timed on a part and worked out for the whole: {', '.join(dict.fromkeys(bench.cut))}")
    notes.append(_NOT_TIMED)
    device, work = settings.run.device, costs.work
    stages = (
        StageEstimate(s.stage, s.state, s.reasons, not s.is_current, work.get(s.stage, Work()), costs.seconds[s.stage])
        for s in states
    )
    return Estimate(
        stages=tuple(stages),
        disk=costs.disk(),
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        device_bytes=torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None,
        notes=tuple(notes),
        parts=dict(bench.parts),
    )


def _taken_over(states: Sequence[State], elsewhere: Sequence[State]) -> tuple[list[State], list[str]]:
    """Return how stages stand once those that no target shapes are taken over, and which are."""
    known = {stage.name for stage in SHARED}
    pairs = list(zip(states, elsewhere, strict=True))
    taken = [other.stage for one, other in pairs if other.stage in known and other.is_current and not one.is_current]
    return [other if other.stage in taken else one for one, other in pairs], taken


def _uncounted(states: Sequence[State], fault: str) -> Estimate:
    """Say what is known of a run on streams that `prepare` hasn't counted."""
    stages = (StageEstimate(s.stage, s.state, s.reasons, not s.is_current, Work(), None) for s in states)
    note = f"{fault} once `secateur run prepare` has read it; run that, then ask again"
    return Estimate(tuple(stages), {}, None, None, (note,))


def _history(settings: Settings, workspace: Workspace) -> tuple[Sequence[Outcome], bool]:
    """Return the attempts that the loop would go on from."""
    with suppress(SecateurError, OSError):
        ledger = read_ledger(workspace.folder(LOOP))
        if ledger.rows and ledger.fingerprint == digest(trajectory(settings, workspace)):
            return [row.outcome for row in ledger.rows], True
    return (), False


def _total(settings: Settings, subject: Subject, workspace: Workspace) -> tuple[float, bool]:
    """Return the reduction that the loop ends at, and whether it is known."""
    target, predicted = settings.prune.target, None
    with suppress(SecateurError, OSError):
        predicted = baseline_ms(workspace, "profile")
    whole = ModelMetrics(score=0.0, loss=0.0, macs=1, parameters=1, size_bytes=size_bytes(subject.model))
    if target.names_latency and predicted is None:
        shares = target.shares.values()
        return (max(shares), True) if len(target.kinds) == len(target.shares) else (max([0.5, *shares]), False)
    return goals_of(target, whole, predicted).total, True


def _check(settings: Settings, workspace: Workspace, prepared: bool, bench: Bench, notes: list[str]) -> None:
    """Try what the run itself tries before it trains, and time it."""

    def check(place: Workspace) -> None:
        bench.once("check before training", lambda: sanity_check(settings, place))

    if prepared:
        check(workspace)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            few = bench.subject.as_workspace(Path(folder) / "artifacts")
        except (ValueError, TypeError, AttributeError):  # targets that no file of tensors holds
            notes.append("what training calls isn't tried on a batch: such targets can't be written before `prepare`")
            bench.parts["check before training"] = 0.0
            return
        check(few)


def as_json(found: Estimate) -> Json:
    """Return an estimate for programs: numbers within bounds are mappings of least, expected and most."""
    return {
        "stages": [
            {
                "stage": one.stage,
                "state": one.state,
                "reasons": list(one.reasons),
                "runs": one.runs,
                "attempts": _bounds(one.work.attempts if one.runs else None),
                "epochs": _bounds(one.work.epochs if one.runs else NOTHING),
                "evaluations": _bounds(one.work.evaluations if one.runs else NOTHING),
                "seconds": _bounds(one.seconds),
            }
            for one in found.stages
        ],
        "seconds": _bounds(found.seconds),
        "disk_bytes": {name: _bounds(one) for name, one in found.disk.items()},
        "memory_bytes": found.memory_bytes,
        "device_memory_bytes": found.device_bytes,
        "timed_seconds": dict(found.parts),
        "notes": list(found.notes),
    }


def _bounds(found: Bounds | None) -> Json:
    return None if found is None else asdict(found)


def rows(found: Estimate) -> list[tuple[str, ...]]:
    """Return a table for people: stage, state, attempts, epochs, evaluations, time, why."""
    made = []
    for one in found.stages:
        shown = [_count(one.work.attempts), _count(one.work.epochs), _count(one.work.evaluations), _time(one.seconds)]
        why = one.reasons[0] if one.reasons else ""
        made.append((one.stage, one.state, *(shown if one.runs else [""] * 4), why))
    total = [sum((one.work.epochs for one in found.stages if one.runs), NOTHING)]
    total.append(sum((one.work.evaluations for one in found.stages if one.runs), NOTHING))
    made.append(("all", "", "", *map(_count, total), _time(found.seconds), ""))
    return made


HEAD = ("stage", "state", "attempts", "epochs", "evaluations", "time", "why")


def lines(found: Estimate) -> list[str]:
    """Return what stands below the table."""
    said = []
    if found.disk:
        said.append(f"disk: {_size(sum(found.disk.values(), NOTHING))}")
        said += [f"  {name}: {_size(one)}" for name, one in found.disk.items()]
    if found.memory_bytes is not None:
        said.append(f"memory: {_bytes(found.memory_bytes)} at the peak, {_HOW}")
    if found.device_bytes is not None:
        said.append(f"memory of the GPU: {_bytes(found.device_bytes)} of tensors at the peak, likewise")
    return [*said, *(f"note: {note}" for note in found.notes)]


_HOW = (
    "that of this process, in which the model was trained, evaluated, scored, narrowed and recovered with the batch "
    "sizes of the settings, each of it for a moment"
)


def _count(found: Bounds | None) -> str:
    if found is None or found.most == 0:
        return ""
    return _spread(found, lambda number: f"{number:.4g}")


def _time(found: Bounds | None) -> str:
    return "unknown" if found is None else _spread(found, _duration)


def _size(found: Bounds) -> str:
    return _spread(found, _bytes)


def _spread(found: Bounds, show: Callable[[float], str]) -> str:
    least, expected, most = (show(number) for number in (found.least, found.expected, found.most))
    return expected if least == most else f"{expected} ({least} to {most})"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.2g} min" if seconds < 600 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.3g} h"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
