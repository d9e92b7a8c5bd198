"""Other settings in workspaces of their own: a trial, and several targets side by side: `python -m flows.frontier`."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flows import command
from flows.fan_out import fan_out
from flows.pipeline import run_pipeline
from flows.prefect_adapter import flow, publish_markdown
from flows.stage_runner import Run
from flows.stages import run_as_flow
from pruning.errors import CheckpointError, TargetError
from pruning.io.files import replace_file
from tasks.config.overrides import write_trial
from tasks.config.schema import Settings, load
from tasks.data import read_description
from tasks.fan_out import Part, compute
from tasks.frontier import FRONTIER, SHARED, as_text, name_of, read_points, take_over, write_frontier, write_settings
from tasks.models import measure_of
from tasks.terminal import shown
from tasks.workspace import DEFAULT_ROOT, Workspace, locked

log = logging.getLogger("secateur")


def begin_trial(params: Path, changes: Sequence[str], workspace: Path) -> Path:
    """Write a trial's settings, and take over data, baseline, analysis and profile if they are current.

    Args:
        params: The settings that are changed.
        changes: Texts `path=value`.
        workspace: Of the trial.

    Returns:
        The trial's settings file.

    Raises:
        SettingsError: The settings don't accept a change.
        WorkspaceError: The workspace can't be used.
    """
    written = write_trial(params, changes, workspace)
    settings, own = load(written), Workspace(workspace)
    with locked(own):
        for stage in SHARED:
            try:
                take_over(stage, settings, Workspace(DEFAULT_ROOT), own)
            except CheckpointError as fault:
                log.warning("%s isn't taken over: %s", stage.name, fault)
    log.info("a trial, with settings of its own: %s", written)
    return written


NAME = "frontier"
PARTS = ".parts"
MAKING = ("measurements", "prune", "transform", "export")
"""The stages that make a target's model; those after them measure time, or show results."""


@flow(name=NAME)
def frontier(params: str = "params.yaml", workspace: str = "artifacts", into: str = str(FRONTIER)) -> None:
    """Run the pipeline for every target of `frontier.targets`, each in a workspace of its own, and compare.

    Args:
        params: The settings file.
        workspace: Data, baseline, analysis and profile are taken from here if they are current; it isn't changed.
        into: Receives a workspace for each target, one for what they share, and the comparison.

    Raises:
        TargetError: No attempt was accepted for any of the targets.
    """
    root, missed = Path(into), list[str]()
    with locked(Workspace(root)):
        shared_run = Run.begin(params, str(root / "shared"), commit=False)
        settings, shared = shared_run.settings, shared_run.workspace
        targets = {name_of(target): target for target in settings.frontier.targets}
        workspaces = {name: Workspace(root / name) for name in targets}
        files = {
            name: write_settings(Path(params), target, workspaces[name]) for name, target in targets.items()
        }  # all of them first: a fault in the last is reported before the first one runs
        for stage in SHARED:
            if take_over(stage, settings, Workspace(Path(workspace)), shared):
                log.info("%s: is current", stage.name)
            else:
                run_as_flow(shared_run, stage.name)
        for own in workspaces.values():
            for stage in SHARED:
                take_over(stage, settings, shared, own)
        _train_side_by_side(settings, shared, files, workspaces, root)
        for name, own in workspaces.items():
            log.info("%s: %s", NAME, name)
            try:
                run_pipeline(Run.begin(str(files[name]), str(own.root), commit=False))
            except TargetError as fault:  # the others may be met
                log.warning("%s: %s: %s", NAME, name, fault)
                missed.append(name)
        _conclude(settings, shared, workspaces, root)
    if len(missed) == len(workspaces):
        raise TargetError("no attempt was accepted for any of frontier.targets; nothing is registered")


def _train_side_by_side(
    settings: Settings, shared: Workspace, files: dict[str, Path], workspaces: dict[str, Workspace], root: Path
) -> None:
    """Have the models of all targets made side by side, where the settings ask for that.

    What comes after, in the targets' order and alone on the machine: latencies, reports, MLflow's records. A target
    whose loop measures latency isn't made here: the others would be in the measurement.
    """
    place = root / PARTS
    shutil.rmtree(place, ignore_errors=True)  # of a run that was killed: its stages say what is current
    parts = [
        Part(
            name,
            "flows.frontier:make_target",
            {"params": str(files[name]), "root": str(own.root)},
            (place / f"{name}.done",),
        )
        for name, own in workspaces.items()
        if not _measures_latency(files[name])
    ]
    with fan_out(settings) as elsewhere:
        if elsewhere is not None and len(parts) > 1:
            with shown("frontier: targets") as progress:
                compute(parts, elsewhere, settings, shared, "prune", place, progress)
    shutil.rmtree(place, ignore_errors=True)


def _measures_latency(params: Path) -> bool:
    chosen = load(params).prune
    return chosen.target.names_latency and chosen.measures_latency


def make_target(settings: Settings, workspace: Workspace, files: Sequence[Path], params: str, root: str) -> None:
    """Make the model of one target, a part for `tasks.fan_out`; stages that are current are left as they are.

    Args:
        settings: Of the run.
        workspace: With what all targets share.
        files: The one to write when it is made.
        params: The target's settings file.
        root: The target's workspace.
    """
    del workspace
    asked = Run.begin(params, root, commit=False)
    run = replace(asked, settings=asked.settings.model_copy(update={"machine": settings.machine}), tracked=False)
    for stage in MAKING:
        run_as_flow(run, stage)
    replace_file(files[0], b"")


def _conclude(settings: Settings, shared: Workspace, workspaces: dict[str, Workspace], root: Path) -> None:
    points = read_points(workspaces)
    title = f"{settings.subject}: the frontier"
    measure = measure_of(settings, read_description(shared))
    write_frontier(points, title, measure, root)
    publish_markdown("frontier", (root / "frontier.md").read_text(encoding="utf-8"), title)
    sys.stdout.write(f"\n{title}\n\n{as_text(points, measure)}\n\nall figures      {root / 'frontier.html'}\n")


def main(arguments: Sequence[str] | None = None, name: str = NAME) -> None:
    """Run the flow from the command line; its messages are signed with the name."""
    given = command.parser(NAME, "Run the pipeline for every target of frontier.targets, and compare.")
    command.takes_workspace(given)
    given.add_argument("--into", type=Path, default=FRONTIER, metavar="DIR", help="where it is written (%(default)s/)")
    options = given.parse_args(arguments)

    def checked() -> None:
        load(options.params)
        frontier(str(options.params), str(options.workspace), str(options.into))

    command.execute(name, options, checked)


if __name__ == "__main__":
    main()
