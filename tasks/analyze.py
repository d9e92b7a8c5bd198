"""Measure how much accuracy each channel group costs at each rate: everything else whole, the group masked."""

from __future__ import annotations

import csv
import io
import logging
import shutil
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

import pruning
from pruning.choosing.sensitivity import Curve, measure_curve
from pruning.criteria import find_criterion
from pruning.errors import WorkspaceError
from pruning.evaluation import evaluate
from pruning.gathering.statistics import collect
from tasks.data import read_description, read_split, spread
from tasks.fingerprints import fingerprint
from tasks.models import begin, chosen_criterion, example_inputs, load_model, loss_and_metric
from tasks.progress import shown
from tasks.settings import Settings
from tasks.stages import find_stage
from tasks.workspace import Workspace, replace_file, write_json, writing

FOLDER = "analysis"
CURVES = "curves.json"
TABLE = "curves.csv"
UNFINISHED = ".analysis.unfinished"

log = logging.getLogger("secateur")
_curves = TypeAdapter(tuple[Curve, ...])


def analyze(settings: Settings, workspace: Workspace) -> None:
    """Write the curves of all groups; what a killed run had measured is taken over.

    Raises:
        CriterionError: The criterion doesn't apply to one of the groups.
        CheckpointError: The baseline is damaged.
    """
    begin(settings)
    data = read_description(workspace)
    example = example_inputs(workspace, settings)
    model, _, _ = load_model(workspace.folder("baseline"), settings, data, example)
    groups = pruning.find_groups(model, example)
    loss, metric = loss_and_metric(settings)
    validation = read_split(workspace, "validation")
    samples = spread(validation, max(1, round(settings.analyze.fraction * len(validation))))
    criterion = chosen_criterion(settings.analyze.criterion)
    needs = find_criterion(criterion).needs
    seen = spread(read_split(workspace, "train"), settings.analyze.criterion_samples)
    with shown("analyze: statistics") as progress:
        statistics = collect(groups, needs, seen, loss, seed=settings.run.seed, progress=progress)
    batch_size = settings.training.batch_size
    whole = evaluate(model, samples, loss=loss, metric=metric, batch_size=batch_size)
    kept = workspace.root / UNFINISHED / fingerprint(find_stage("analyze"), settings, workspace)[:16]
    found: dict[str, Curve] = {}
    with shown("analyze: groups") as progress:
        for position, group in enumerate(groups):
            if not any(group.name in curve.measured_with for curve in found.values()):
                place = kept / f"{position:04d}.json"
                curve = _read_curve(place, group.name)
                if curve is None:
                    curve = measure_curve(
                        model,
                        groups,
                        group.name,
                        settings.analyze.rates,
                        criterion,
                        samples,
                        loss=loss,
                        metric=metric,
                        batch_size=batch_size,
                        statistics=statistics,
                        baseline=whole,
                    )
                    replace_file(place, curve.model_dump_json().encode())
                found[group.name] = curve
            progress(position + 1, len(groups))
    curves = tuple(found.values())
    with writing(workspace.folder(FOLDER)) as folder:
        write_json(folder / CURVES, [curve.model_dump(mode="json") for curve in curves])
        replace_file(folder / TABLE, _table(curves).encode())
    shutil.rmtree(workspace.root / UNFINISHED, ignore_errors=True)
    log.info(
        "analyze: %d groups at %d rates, on %d samples", len(groups), len(settings.analyze.rates), whole.num_samples
    )


def read_curves(workspace: Workspace) -> tuple[Curve, ...]:
    """Read the curves.

    Raises:
        WorkspaceError: They aren't there or are damaged.
    """
    try:
        return _curves.validate_python(workspace.read_json(FOLDER, CURVES, "analyze"))
    except ValidationError as error:
        path = workspace.folder(FOLDER) / CURVES
        raise WorkspaceError(
            f"{path} is damaged; delete {path.parent} and run `python -m flows.analyze` again"
        ) from error


def _read_curve(place: Path, group: str) -> Curve | None:
    try:
        curve = Curve.model_validate_json(place.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return curve if curve.group == group else None


def _table(curves: tuple[Curve, ...]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["group", "size", "rate", "removed", "accuracy", "loss"])
    for curve in curves:
        for point in curve.points:
            writer.writerow([curve.group, curve.size, point.rate, point.removed, point.accuracy, point.loss])
    return stream.getvalue()
