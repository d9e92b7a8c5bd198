"""Where the kill matrix kills: at every boundary, at random events, at random moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tasks.stage_table import NAMES

STATES = ("nothing", *NAMES)
"""A project in which the stages up to this one have finished: what the killed command begins with."""

_UNFINISHED = "artifacts/.training.unfinished"
_LOOP, _DENSE, _ONNX = "artifacts/iterations", "artifacts/dense", "artifacts/.onnx.partial"
_QUANTIZED = "artifacts/.quantized.partial"
_CURVES, _REPORT = "artifacts/.analysis.unfinished/#", "artifacts/.report.partial"
_RUN = "mlartifacts/tests/#/artifacts"
_MODEL = "logged_model_params logged_model_tags logged_models"
_VERSION = "model_version_tags model_versions registered_models"


@dataclass(frozen=True)
class Point:
    """One kill.

    Attributes:
        name: What is cut off.
        after: The last stage that had finished when the command was started.
        at: As `KILL_POINT` has it, see `killing/sitecustomize.py`; None for a random one.
        killed: The command that is killed: "flow" or "repro".
        alone: Only the process at the point is killed, not the others of its command.
        recomputed: DVC knows nothing of a stage that had finished: `dvc repro` removes its output and trains again.
    """

    name: str
    after: str
    at: str | None = None
    killed: str = "flow"
    alone: bool = False
    recomputed: bool = False


BOUNDARIES = (
    Point("what is executed written for some stages", "nothing", "1 before rename artifacts/code/analyze.json"),
    Point("the same, by DVC", "nothing", "1 after rename artifacts/code/prepare.json", killed="repro"),
    Point("data written, not in their place", "nothing", "1 before rename data"),
    Point("data in their place, not sealed", "nothing", "1 after rename data"),
    Point("data sealed, not committed", "nothing", "1 after rename data/stage.json"),
    Point("DVC's lock on what it reads and writes, half-written", "nothing", "25 after write .dvc/tmp/rwlock"),
    Point("second epoch of the baseline", "prepare", "14 before step training"),
    Point("second epoch done, not kept", "prepare", f"2 before rename {_UNFINISHED}/baseline-#/training.safetensors"),
    Point("second epoch kept", "prepare", f"2 after rename {_UNFINISHED}/baseline-#/training.safetensors"),
    Point("baseline trained, not in its place", "prepare", "1 before rename artifacts/baseline"),
    Point("baseline sealed, not committed", "prepare", "1 after rename artifacts/baseline/stage.json", recomputed=True),
    Point("baseline half in DVC's cache", "prepare", "6 after write .dvc/cache/", recomputed=True),
    Point("dvc.lock emptied to be written anew", "baseline", "1 after write dvc.lock"),
    Point("sensitivities half measured", "baseline", f"1 after rename {_CURVES}/0000.json"),
    Point("curves written, not in their place", "baseline", "1 before rename artifacts/analysis"),
    Point("what the loop goes by written, not in its place", "profile", "1 before rename artifacts/measurements"),
    Point("the same, not sealed", "profile", "1 after rename artifacts/measurements"),
    Point("the same, not sealed, by DVC", "profile", "1 after rename artifacts/measurements", killed="repro"),
    Point("first epoch of attempt 1", "measurements", "5 before step training"),
    Point("first epoch of attempt 1, by DVC", "measurements", "5 before step training", killed="repro"),
    Point(
        "attempt 1, the stage alone under DVC", "measurements", "12 before step training", killed="repro", alone=True
    ),
    Point("checkpoint of attempt 1 half-written", "measurements", f"1 after write {_LOOP}/.01.partial/meta.json"),
    Point("attempt 1 accepted, no line in the ledger", "measurements", f"2 before rename {_LOOP}/ledger.json"),
    Point("line in the ledger, nothing in MLflow", "measurements", f"2 after rename {_LOOP}/ledger.json"),
    Point("MLflow's tables half made", "measurements", "20 before sql UPDATE alembic_version"),
    Point("MLflow's run made, no settings", "measurements", "1 after commit runs tags"),
    Point("attempt 1 half logged", "measurements", "1 before sql INSERT latest_metrics"),
    Point("attempt 2 half logged", "measurements", "2 before commit latest_metrics metrics"),
    Point("loop ended, outcome not written", "measurements", "1 before rename artifacts/iterations/outcome.json"),
    Point("loop sealed, not committed", "measurements", "1 after rename artifacts/iterations/stage.json"),
    Point("dense model in its place, no proof", "prune", f"1 before rename {_DENSE}/equivalence.json"),
    Point("dense model written, by DVC", "prune", "1 before rename artifacts/dense", killed="repro"),
    Point("ONNX file half-written", "transform", f"1 after write {_ONNX}/.model.onnx.partial"),
    Point("ONNX files written, not in their place", "transform", "1 before rename artifacts/onnx"),
    Point("quantised file half-written", "export", f"1 after write {_QUANTIZED}/.quantized.onnx.partial"),
    Point("quantised file written, not in its place", "export", "1 before rename artifacts/quantized"),
    Point("latency measured, not in its place", "quantize", "1 before rename artifacts/latency"),
    Point("page of the report half-written", "benchmark", f"1 after write {_REPORT}/.report.html.partial"),
    Point("report in its place, not sealed, by DVC", "benchmark", "1 after rename artifacts/report", killed="repro"),
    Point("dvc.lock emptied, by DVC", "benchmark", "1 after write dvc.lock", killed="repro", recomputed=True),
    Point("pictures half logged", "report", f"1 before rename {_RUN}/widths.png"),
    Point("record of the version half-written", "report", f"1 after write {_RUN}/versions/#/record.json"),
    Point("registered model half logged", "report", f"1 after commit {_MODEL}"),
    Point("model logged, no version", "report", "1 after commit registered_models"),
    Point("version made, no alias", "report", f"1 after commit {_VERSION}"),
    Point("alias given, nothing shown", "report", "1 after commit registered_model_aliases"),
)


def random_points(seed: int, num_events: int, num_moments: int) -> Sequence[Point]:
    """Choose what has finished before; which event or moment is drawn when it is known how many there are."""
    random = Random(seed)
    drawn = []
    for kind, count in (("event", num_events), ("moment", num_moments)):
        for number in range(count):
            after = random.choice(STATES)
            killed = "flow" if after == STATES[-1] else random.choice(["flow", "repro"])  # DVC doesn't register
            drawn.append(Point(f"random {kind} {number + 1}", after, killed=killed, recomputed=True))
    return drawn
