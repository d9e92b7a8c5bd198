"""Measure how much accuracy each channel group costs: mask that group alone, leave the rest whole.

Each curve is written to its own file as soon as it is measured: processes share the work, a killed run loses little.
"""

from __future__ import annotations

import csv
import io
import logging
import shutil
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from math import ceil
from pathlib import Path

import pruning
from pruning.allocation.sensitivity import Curve, Sensitivity
from pruning.batches import Batches, checked_batches
from pruning.errors import WorkspaceError
from pruning.importance import Ranking, needs_of
from pruning.io.files import read_json, replace_file
from tasks.config.schema import Settings
from tasks.data import read_description, read_split
from tasks.determinism import begin
from tasks.fan_out import FanOut, Part, compute
from tasks.fingerprint import fingerprint
from tasks.loop.measurements import CURVES
from tasks.models import chosen_criterion, example_inputs, load_model, loss_and_metric
from tasks.passes import Passes, SamplesOf
from tasks.stage_table import find_stage
from tasks.statistics import collect
from tasks.terminal import command_line, shown
from tasks.workspace import Workspace, write_json, writing

FOLDER = "analysis"
TABLE = "curves.csv"
UNFINISHED = ".analysis.unfinished"
ORDERS = "orders.json"
PARTS = "parts"
PARTS_PER_PROCESS = 8  # small parts, so that no process waits long for the others at the end

_FIGURES = ("rate", "removed", "score", "loss", "margin")

log = logging.getLogger("secateur")


def analyze(settings: Settings, workspace: Workspace, fan_out: FanOut | None = None) -> None:
    """Write the curves of all groups, if anything asks for them; curves that a killed run had measured are kept.

    Args:
        settings: Of the run.
        workspace: Of the run.
        fan_out: Where groups are measured side by side, some in each part; all here if None.

    Raises:
        CriterionError: A criterion breaks its contract.
        CheckpointError: The baseline is damaged.
        WorkspaceError: There is no cluster to measure on, or it has other code.
    """
    if not settings.measures_curves:
        _write((), workspace)
        why = "neither prune.allocation nor analyze.for_report asks for them"
        log.info("analyze: no curves are measured: %s", why if settings.analyze.rates else "analyze.rates is empty")
        return
    bench = _Bench(settings, workspace)
    wanted = [name for name in bench.sensitivity.in_order() if not bench.is_measured(name)]
    if wanted and fan_out is not None:
        write_json(bench.place / ORDERS, bench.orders)
        _benches[:] = [bench]
        parts = bench.parts(wanted, settings.machine.processes * (PARTS_PER_PROCESS if fan_out.loads_once else 1))
        with shown("analyze: parts") as progress:
            compute(parts, fan_out, settings, workspace, "analyze", bench.place / PARTS, progress)
    else:
        with shown("analyze: groups") as progress:
            for done, name in enumerate(wanted):
                bench.measure(name)
                progress(done + 1, len(wanted))
    curves = tuple(bench.curve(name) for name in sorted(bench.sensitivity.in_order(), key=bench.position))
    _write(curves, workspace)
    shutil.rmtree(workspace.root / UNFINISHED, ignore_errors=True)
    log.info(
        "analyze: %d groups, %d evaluations on %d samples",
        len(bench.groups),
        sum(len(curve.points) for curve in curves),
        len(checked_batches(bench.samples)),
    )


def _write(curves: Sequence[Curve], workspace: Workspace) -> None:
    with writing(workspace.folder(FOLDER)) as folder:
        write_json(folder / CURVES, [curve.model_dump(mode="json") for curve in curves])
        replace_file(folder / TABLE, _table(curves).encode())


def measure_part(settings: Settings, workspace: Workspace, files: Sequence[Path], names: Sequence[str]) -> None:
    """Write the curves of some groups, in a process that may be given more later.

    Args:
        settings: Of the run.
        workspace: Of the run.
        files: Of the curves, all in one folder.
        names: Of the groups.
    """
    place = files[0].parent
    if not _benches or _benches[-1].place != place:
        _benches[:] = [_Bench(settings, workspace, place)]
    for name in names:
        if not _benches[0].is_measured(name):
            _benches[0].measure(name)


class _Bench:
    """Everything that curves are measured with, and where each is written.

    Attributes:
        place: The folder of the curves that are finished.
        groups: Of the baseline.
    """

    def __init__(self, settings: Settings, workspace: Workspace, place: Path | None = None) -> None:
        begin(settings)
        self._settings, self._workspace = settings, workspace
        example = example_inputs(workspace, settings)
        folder, data = workspace.folder("baseline"), read_description(workspace)
        self._model, _, _ = load_model(folder, settings, data, example)
        self.groups = pruning.find_groups(self._model, example, allow_mixed=settings.offers_streams)
        self._positions = {group.name: position for position, group in enumerate(self.groups)}
        if place is None:
            place = workspace.root / UNFINISHED / fingerprint(find_stage("analyze"), settings, workspace)[:16]
        self.place = place

    @cached_property
    def orders(self) -> dict[str, list[int]]:
        """The channels of each group, the first to go first; read from a file if another process has found them."""
        try:
            return read_json(self.place / ORDERS, dict[str, list[int]], error=WorkspaceError, mend=self._mend)
        except FileNotFoundError:
            pass
        chosen = self._settings.analyze
        criteria = [chosen_criterion(name) for name in (chosen.criterion, chosen.fallback)]
        seen, passes = SamplesOf("train", chosen.criterion_samples), Passes("analyze", self._settings, self._workspace)
        statistics = collect(passes, self.groups, needs_of(criteria), seen, "analyze: statistics")
        ranking = Ranking(self.groups, criteria, statistics)
        return {name: list(order) for name, order in ranking.orders(group.name for group in self.groups).items()}

    @cached_property
    def samples(self) -> Batches:
        """The samples to evaluate on: the share of the validation set that the settings ask for."""
        validation = read_split(self._settings, self._workspace, "validation")
        share = Fraction(str(self._settings.analyze.sample_fraction))  # never less than was asked for
        return validation.spread(ceil(share * len(validation)))

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """The object that measures the curves."""
        settings = self._settings
        loss, metric = loss_and_metric(settings)
        return Sensitivity(
            self._model,
            self.groups,
            self.orders,
            settings.analyze.rates,
            self.samples,
            sweep=settings.analyze.sweep,
            loss=loss,
            metric=metric,
            batch_size=settings.training.batch_size,
        )

    def position(self, name: str) -> int:
        """Return a group's place in the network."""
        return self._positions[name]

    def parts(self, names: Sequence[str], number: int) -> list[Part]:
        """Divide groups among parts: each goes through the network once, and all take about as long."""
        shares = [names[first::number] for first in range(min(number, len(names)))]
        return [
            Part(
                f"groups-{self.position(share[0]):04d}-of-{len(names)}-in-{number}",
                "tasks.stages.analyze:measure_part",
                {"names": list(share)},
                tuple(self._file(name) for name in share),
            )
            for share in shares
        ]

    def is_measured(self, name: str) -> bool:
        """Say whether a group's curve is there, whole."""
        try:
            return self.curve(name).group == name
        except FileNotFoundError:
            return False

    def measure(self, name: str) -> None:
        """Write a group's curve."""
        replace_file(self._file(name), self.sensitivity.curve(name).model_dump_json().encode())

    def curve(self, name: str) -> Curve:
        """Read a group's curve."""
        return read_json(self._file(name), Curve, error=WorkspaceError, mend=self._mend)

    def _file(self, name: str) -> Path:
        return self.place / f"{self.position(name):04d}.json"

    @property
    def _mend(self) -> str:
        return f"delete {self.place.parent} and run {command_line('run analyze')} again"


_benches: list[_Bench] = []  # at most one: what this process has loaded for the parts that it is given


def _as_text(name: str) -> str:
    """Return a name that no spreadsheet mistakes for a formula."""
    text = "".join(sign if sign.isprintable() else "_" for sign in name)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def _table(curves: Sequence[Curve]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["group", "size", *_FIGURES])
    for curve in curves:
        for point in curve.points:
            figures = point.model_dump(include=set(_FIGURES))
            writer.writerow([_as_text(curve.group), curve.size, *(figures[name] for name in _FIGURES)])
    return stream.getvalue()
