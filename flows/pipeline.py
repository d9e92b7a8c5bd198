"""The whole pipeline: every stage that isn't current, MLflow's record of what came out, the result in words."""

from __future__ import annotations

import logging
import sys
from textwrap import wrap

from flows.prefect_adapter import ProgressBar, call_as_flow, call_as_task, publish_markdown
from flows.stage_runner import Run, planned, recorded_end
from flows.stages import run_as_flow
from pruning.errors import TargetError
from tasks import last_run, quantization
from tasks.config.schema import Settings
from tasks.file_cache import edited
from tasks.loop.measurements import baseline_ms
from tasks.loop.targets import check_latency
from tasks.registry.git_snapshot import Source, snapshot
from tasks.registry.mlflow_client import hash_of_content
from tasks.registry.served import why_not_quantized
from tasks.reporting.quantized import quantized_part
from tasks.reporting.tables import (
    WIDTH,
    Line,
    Summary,
    as_markdown,
    as_text,
    compare,
    compare_latency,
    nothing_accepted,
)
from tasks.reporting.verdict import as_text as as_words
from tasks.reporting.verdict import decide
from tasks.sanity_check import sanity_check
from tasks.stage_table import STAGES, Stage
from tasks.stages.benchmark import read_latencies
from tasks.workspace import digest, locked

log = logging.getLogger("secateur")

PROFILE = "profile"
_TRIES = 2


def run_pipeline_as_flow(run: Run, name: str, summary: str) -> None:
    """Run every stage that isn't current, record the result in MLflow, show it: a flow, unless there is nothing to run.

    Args:
        run: What was asked for.
        name: Of the flow, on Prefect's pages.
        summary: There too.

    Raises:
        TargetError: No attempt was accepted.
    """
    if not _nothing_to_run(run):
        shown = str(run.params), str(run.workspace.root), run.versions is not None
        call_as_flow(lambda: _run_all(run), name, summary, *shown)


def run_pipeline(run: Run) -> None:
    """Do the same inside the run of another flow.

    Raises:
        TargetError: No attempt was accepted.
    """
    if not _nothing_to_run(run):
        _run_all(run)


def _run_all(run: Run) -> None:
    begun_with, program = snapshot(), last_run.program_now()
    with locked(run.workspace):
        with recorded_end(run):
            _run_stages(run)
            _show(_result(run))
            version, content = call_as_task(_record, "record", run, begun_with)
        _conclude(run, program, version, content)


def _run_stages(run: Run) -> None:
    """Run what isn't current; what training will call is tried before the first stage that reads data."""
    bar = ProgressBar("compress-progress", "stages that are done")
    changed = run.changed()
    checked = _is_done(run, STAGES[0], changed)  # where the data were there, `_nothing_to_run` has tried it
    for position, stage in enumerate(_in_order(run.settings)):
        bar.update(position / len(STAGES))
        if _is_done(run, stage, changed):
            log.info("%s: is current", stage.name)
        else:
            if not checked and "prepare" in stage.needs:
                call_as_task(sanity_check, "sanity-check", run.settings, run.workspace)
                checked = True
            run_as_flow(run, stage.name)  # what this changes for later stages, their own records show
        if stage.name == PROFILE:
            check_latency(run.settings.prune.target, baseline_ms(run.workspace, PROFILE))
    bar.update(1.0)
    publish_markdown("compress-result", as_markdown(_lines(run)), "baseline against pruned model")


def _in_order(settings: Settings) -> list[Stage]:
    """Return the stages in order; for a latency, the profile before the training, which may be for nothing."""
    early = (STAGES[0].name, PROFILE) if settings.prune.target.names_latency else ()
    return sorted(STAGES, key=lambda stage: stage.name not in early)


def _nothing_to_run(run: Run) -> bool:
    """Where every stage is current, see that the result is recorded, show it, and return True.

    Else, where the data are there, faults that the first batch shows are told now: before the engine has started.

    Raises:
        TargetError: No attempt was accepted.
    """
    begun_with, program = snapshot(), last_run.program_now()
    with locked(run.workspace):
        changed = run.changed()
        if not all(_is_done(run, stage, changed) for stage in STAGES):
            if _is_done(run, STAGES[0], changed):
                sanity_check(run.settings, run.workspace)
            return False
        log.info("every stage is current: nothing to run")
        _show(_result(run))
        _conclude(run, program, *_record(run, begun_with))
    return True


def _is_done(run: Run, stage: Stage, changed: frozenset[str]) -> bool:
    """Say whether a stage can be skipped: neither DVC nor the record beside its output calls it changed."""
    return stage.name not in changed and planned(run, stage).is_done


def _lines(run: Run) -> list[Line]:
    return [*compare(_summary(run)), *compare_latency(run.workspace)]


def _summary(run: Run) -> Summary:
    return run.workspace.read_json("report", "summary.json", "report", Summary)


def _record(run: Run, begun_with: Source | None) -> tuple[str | None, str | None]:
    """Record what came out, with the code that made it: that of the beginning, where it was edited meanwhile.

    Returns:
        The version; and the hash of what MLflow's store holds, by which the next run sees that registering again would
        change nothing in it: None where that can't be told.
    """
    from tasks.registry.register import register

    store, code = run.settings.tracking.uri, lambda: begun_with if edited() else snapshot()
    for _ in range(_TRIES):
        before = hash_of_content(store)
        version = register(run.settings, run.workspace, run.params, run.content, code)
        if before is None or hash_of_content(store) == before:
            return version, before
    return version, None


def _result(run: Run) -> str:
    """Return the result as text, the verdict first."""
    summary = _summary(run)
    verdict = decide(summary, read_latencies(run.workspace), run.settings.promote)
    lines = (
        ("stopped because", summary["stopped_because"]),
        ("pruned model", run.workspace.folder("dense")),
        ("ONNX file", run.workspace.folder("onnx") / "model.onnx"),
        *_quantized(run),
        ("report", run.workspace.folder("report") / "report.html"),
    )
    said = "".join(_line(what, place) for what, place in lines)
    return f"{as_words(verdict)}\n\n{as_text(_lines(run))}\n\n{said}"


def _quantized(run: Run) -> list[tuple[str, object]]:
    """Return the lines about the quantised file, if there is one."""
    part = quantized_part(run.workspace, _summary(run))
    place = run.workspace.folder(quantization.FOLDER) / quantization.ONNX
    said = [] if part is None else wrap(f"{part.sentence}.", WIDTH - len(_line("", "")) + 1)
    return [] if part is None else [("quantised file", place), *(("", line) for line in said)]


def _served(run: Run) -> str:
    """Say which file the version serves, and why, where the settings ask for the quantised one."""
    if not run.settings.promote.serve_quantized:
        return ""
    if (reason := why_not_quantized(run.settings, run.workspace)) is None:
        return _line("serves", "the quantised file")
    lines = wrap(f"the float file. {reason}.", WIDTH - len(_line("", "")) + 1)
    return "".join(_line("" if place else "serves", line) for place, line in enumerate(lines))


def _conclude(run: Run, program: str, version: str | None, store_content: str | None) -> None:
    """Say what was registered, and keep it all for the next run.

    Raises:
        TargetError: No attempt was accepted, so that there is no version.
    """
    refusal = None if version is not None else f"{nothing_accepted(_summary(run))}; nothing is registered"
    registered = ""
    if version is not None:
        registered = _line("registered", f"{run.settings.tracking.model_name}, version {version}, alias candidate")
        registered += _served(run)
        _show(registered)
    if store_content is not None:
        answer = last_run.Answer(
            text=_result(run) + registered,
            refusal=refusal,
            store=run.settings.tracking.uri,
            store_content=store_content,
        )
        stages = {stage.name: digest(planned(run, stage).origin) for stage in STAGES}
        last_run.keep(program, run.content, run.workspace, stages, answer)
    if refusal is not None:
        raise TargetError(refusal)


def _line(what: str, found: object) -> str:
    return f"{what:<16} {found}\n"


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
