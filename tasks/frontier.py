"""Several targets side by side: a workspace for each, the stages they share, and the comparison."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from itertools import chain
from pathlib import Path
from textwrap import wrap

from pruning.errors import WorkspaceError
from pruning.io.files import replace_file
from pruning.metrics import ACCURACY, Measure
from tasks.config.schema import Settings, load
from tasks.config.target_schema import Target
from tasks.config.yaml_io import read_mapping, write_mapping
from tasks.fingerprint import fingerprint
from tasks.intervals import Interval
from tasks.reporting import report
from tasks.reporting.html import document, plots, table
from tasks.reporting.plots import Mark, as_png, as_svg, draw_frontier
from tasks.reporting.tables import (
    WIDTH,
    Summary,
    as_ms,
    as_sentence,
    ended_because,
    latency_name,
    markdown_table,
    measure_in,
    text_table,
)
from tasks.source_files import reads_others
from tasks.stage_table import STAGES, Stage
from tasks.stages import benchmark
from tasks.workspace import DEFAULT_PARAMS, Workspace, is_current, write_json, writing

FRONTIER = Path("frontier")
SHARED = tuple(stage for stage in STAGES if stage.name in ("prepare", "baseline", "analyze", "profile"))
"""The stages that no target shapes."""

BASELINE = "baseline"
MACS = "MACs"
_GLUE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Point:
    """A model's score and costs: one point of the plot.

    Attributes:
        name: Of its target and workspace; the baseline's for the baseline.
        score: On the test set.
        costs: Name of the cost (MACs, latency at each batch size) -> its share of the baseline's.
        macs: Of one sample.
        latency_ms: By batch size: median, lower and upper quartile.
        dominated: For each cost, whether another model is at least as good at no higher cost, and better in one.
        stopped_because: How its loop ended.
        score_interval: Of the score, 95 %; None where it is no mean over samples.
    """

    name: str
    score: float
    costs: Mapping[str, float]
    macs: int
    latency_ms: Mapping[str, tuple[float, float, float]]
    dominated: Mapping[str, bool]
    stopped_because: str
    score_interval: Interval | None = None


def name_of(target: Target) -> str:
    """Return the name of a target, of its workspace too: `mac_reduction-0.5`."""
    return "+".join(f"{name}-{value}".replace(":", "-") for name, value in _plain(target).items())


def write_settings(params: Path, target: Target, workspace: Workspace) -> Path:
    """Write the settings of one target into its workspace; its model is registered beside the one that is in use.

    Returns:
        The file.

    Raises:
        SettingsError: The rest of the settings doesn't suit the target.
    """
    settings, changed = load(params), read_mapping(params)
    changed["prune"] = {**changed["prune"], "target": _plain(target)}
    name = f"{settings.tracking.model_name}-frontier"
    changed["tracking"] = {**changed.get("tracking", {}), "model_name": name}
    workspace.refuse_links()
    written = workspace.root / DEFAULT_PARAMS
    write_mapping(written, changed)
    load(written)
    return written


def take_over(stage: Stage, settings: Settings, source: Workspace, into: Workspace) -> bool:
    """Take over a stage's folder from another workspace if it is current there; return whether it is here now.

    Files are linked, not copied, if the disk allows it: no stage writes into an existing file.
    """
    place, folder = into.folder(stage.folder), source.folder(stage.folder)
    try:
        made_by = fingerprint(stage, settings, into)
    except WorkspaceError:  # its inputs aren't there
        return False
    if reads_others(stage, source):
        return False
    if is_current(place, made_by):
        return True
    if not is_current(folder, made_by):
        return False
    with writing(place) as beside:
        shutil.copytree(folder, beside, copy_function=_link, dirs_exist_ok=True)
    return True


def read_points(workspaces: Mapping[str, Workspace]) -> list[Point]:
    """Read the result of every target, with the baseline first.

    Latencies are compared with the baseline's that was measured in turns with them.

    Raises:
        WorkspaceError: A target hasn't finished.
    """
    points: list[Point] = []
    measure = ACCURACY
    for name, workspace in workspaces.items():
        summary = workspace.read_json(report.FOLDER, report.SUMMARY, "report", Summary)
        taken: dict[str, dict[str, tuple[float, float, float]]] = {}
        for row in chain.from_iterable(benchmark.read_latencies(workspace)):
            times = (row["median_ms"], row["lower_quartile_ms"], row["upper_quartile_ms"])
            taken.setdefault(row["model"], {})[latency_name(row["batch_size"], row["threads"])] = times
        figures = {"baseline": summary["baseline"], "dense": summary["dense"]}
        for point, model in ((name, "dense"),) if points else ((BASELINE, "baseline"), (name, "dense")):
            costs = {MACS: figures[model]["macs"] / figures["baseline"]["macs"]}
            costs |= {cost: times[0] / taken["baseline"][cost][0] for cost, times in taken[model].items()}
            points.append(
                Point(
                    name=point,
                    score=figures[model]["score"],
                    costs=costs,
                    macs=figures[model]["macs"],
                    latency_ms=taken[model],
                    dominated={},
                    stopped_because="" if model == "baseline" else ended_because(summary),
                    score_interval=figures[model].get("score_interval"),
                )
            )
            measure = measure_in(summary)
    return mark_dominated(points, measure)


def mark_dominated(points: Sequence[Point], measure: Measure = ACCURACY) -> list[Point]:
    """Mark for each cost which points are dominated."""

    def beaten(point: Point, cost: str) -> bool:
        return any(
            measure.gain(point.score, other.score) >= 0
            and other.costs[cost] <= point.costs[cost]
            and (measure.gain(point.score, other.score) > 0 or other.costs[cost] < point.costs[cost])
            for other in points
        )

    return [replace(point, dominated={cost: beaten(point, cost) for cost in point.costs}) for point in points]


def write_frontier(points: Sequence[Point], title: str, measure: Measure, folder: Path) -> None:
    """Write `frontier.json`, `frontier.png`, `frontier.md` and `frontier.html`.

    Args:
        points: Of all targets, the baseline first.
        title: What was pruned.
        measure: What the score is.
        folder: Where to write them.
    """
    numbers = [BASELINE, *map(str, range(1, len(points)))]
    marks = {
        cost: [
            Mark(number, one.costs[cost], one.score, one.dominated[cost])
            for number, one in zip(numbers, points, strict=True)
        ]
        for cost in points[0].costs
    }
    up = replace(measure, name=f"{measure.name} (test)")
    head, rows = _cells(points, measure)
    remark = (
        "Numbers are those of the plot. Costs are shares of the baseline's; a star marks a model that is dominated: "
        "another is at least as good at no higher cost, and better in one of the two. Times are medians with "
        "their quartiles, scores have their 95 % interval."
    )
    write_json(folder / "frontier.json", {"measure": measure.name, "points": [asdict(point) for point in points]})
    replace_file(folder / "frontier.png", as_png(draw_frontier(marks, up, BASELINE)))
    replace_file(folder / "frontier.md", (f"# {title}\n\n{remark}\n\n{markdown_table(head, rows)}\n").encode())
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{escape(remark)}</p>',
        plots(
            {
                f"{as_sentence(measure.name)} against {cost}": as_svg(draw_frontier({cost: some}, up, BASELINE))
                for cost, some in marks.items()
            }
        ),
        "<h2>All targets</h2>",
        table(head, rows),
    ]
    replace_file(folder / "frontier.html", document(title, parts).encode())


def as_text(points: Sequence[Point], measure: Measure) -> str:
    """Lay the targets out for a terminal: MACs and the first latency; the files have all of them.

    Args:
        points: Of all targets, the baseline first.
        measure: What the score is.
    """
    costs = list(points[0].costs)[:2]
    rows = [("", measure.name, *costs, "ended because")]
    for one in points:
        shares = (f"{one.costs[cost]:.1%}{' *' if one.dominated[cost] else ''}" for cost in costs)
        rows.append((one.name, measure.show(one.score), *shares, one.stopped_because))
    remark = "Costs are shares of the baseline's. *: another is at least as good at no higher cost."
    return "\n".join([text_table(rows), "", *wrap(remark, WIDTH)])


def _cells(points: Sequence[Point], measure: Measure) -> tuple[list[str], list[list[str]]]:
    def cell(point: Point, cost: str) -> str:
        star = f"{_GLUE}*" if point.dominated[cost] else ""
        ms = f", {as_ms(*point.latency_ms[cost])}".replace(" ms", f"{_GLUE}ms") if cost in point.latency_ms else ""
        return f"{point.costs[cost]:.1%}{star}{ms}"

    head = ["no.", "target", measure.name, *points[0].costs, "ended because"]
    rows = [
        [
            str(number or "–"),
            one.name,
            " ".join(
                [measure.show(one.score), *([measure.show_interval(*found)] if (found := one.score_interval) else [])]
            ),
            *(cell(one, cost) for cost in one.costs),
            one.stopped_because or "–",
        ]
        for number, one in enumerate(points)
    ]
    return head, rows


def _plain(target: Target) -> dict[str, object]:
    """Return a target as the settings file says it."""
    given = {name: value for name, value in target if value is not None}
    return {name: "{}:{}".format(*value) if name == "pattern" else value for name, value in given.items()}


def _link(source: str, place: str) -> str:
    try:
        os.link(source, place)
    except OSError:  # another disk
        shutil.copy2(source, place)
    return place
