"""The whole pipeline, from the data to the report: `python -m flows.compress`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from flows import command
from flows.analyze import analyze
from flows.baseline import baseline
from flows.benchmark import benchmark
from flows.engine import ProgressBar, call_as_task, flow, publish_markdown
from flows.export import export
from flows.prepare import prepare
from flows.prune import prune
from flows.report import report
from flows.stage import Run
from flows.transform import transform
from tasks.comparison import as_markdown, as_text, compare, compare_latency
from tasks.fingerprints import fingerprint
from tasks.lock import locked
from tasks.stages import STAGES, Stage
from tasks.workspace import is_current

log = logging.getLogger("secateur")

FLOWS: dict[str, Callable[[str, str, bool], None]] = {
    "prepare": prepare,
    "baseline": baseline,
    "analyze": analyze,
    "prune": prune,
    "transform": transform,
    "export": export,
    "benchmark": benchmark,
    "report": report,
}


@flow(name="compress")
def compress(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
    """Run every stage that isn't current, record the result in MLflow, show it."""
    run = Run.begin(params, workspace, commit)
    with locked(run.workspace):
        bar = ProgressBar("compress-progress", "stages that are done")
        changed = run.versions.changed() if run.versions else frozenset()
        for position, stage in enumerate(STAGES):
            bar.update(position / len(STAGES))
            if _is_done(run, stage, changed):
                log.info("%s: is current", stage.name)
                continue
            FLOWS[stage.name](params, workspace, commit)
            if run.versions is not None:
                changed = run.versions.changed()
        bar.update(1.0)
        _show(run, call_as_task(_record, "record", run))


def _is_done(run: Run, stage: Stage, changed: frozenset[str]) -> bool:
    """Say whether a stage can be skipped: DVC decides where it versions the workspace, else the stage's own record."""
    if run.versions is not None:
        return stage.name not in changed
    return is_current(run.workspace.folder(stage.folder), fingerprint(stage, run.settings, run.workspace))


def _record(run: Run) -> str:
    from tasks import tracking

    return tracking.register(run.settings, run.workspace)


def _show(run: Run, version: str) -> None:
    summary = run.workspace.read_json("report", "summary.json", "report")
    lines = [*compare(summary), *compare_latency(run.workspace)]
    publish_markdown("compress-result", as_markdown(lines), "baseline against dense model")
    sys.stdout.write(f"\n{as_text(lines)}\n\n")
    for what, place in (
        ("stopped because", summary["stopped_because"]),
        ("dense model", run.workspace.folder("dense")),
        ("ONNX file", run.workspace.folder("onnx") / "model.onnx"),
        ("report", run.workspace.folder("report") / "report.html"),
        ("registered", f"{run.settings.tracking.model_name}, version {version}, alias candidate"),
    ):
        sys.stdout.write(f"{what:<16} {place}\n")


if __name__ == "__main__":
    command.main("compress", compress, "Run the whole pipeline, from the data to the report.")
