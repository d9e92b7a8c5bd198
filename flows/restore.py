"""Bring back the exact files of a registered version: `python -m flows.restore --version N --into DIR`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from flows import command
from flows.prefect_adapter import call_as_task, flow
from pruning.errors import SettingsError, unknown_name
from tasks.config.schema import load
from tasks.registry import mlflow_models
from tasks.registry import restore as restoring
from tasks.workspace import Workspace

log = logging.getLogger("secateur")

NAME = "restore"


@flow(name=NAME)
def restore(
    into: str,
    version: str | None = None,
    alias: str | None = None,
    without: Sequence[str] = (),
    params: str = "params.yaml",
    workspace: str = "artifacts",
) -> None:
    """Bring back params, plan, weights, ONNX file, data and code of a version, every hash compared.

    Args:
        into: A folder that doesn't exist yet, or is empty.
        version: A version's number.
        alias: An alias instead.
        without: What to leave out: code, data.
        params: Where the registry is.
        workspace: Looked into for files that have the right hash.

    Raises:
        WorkspaceError: Something is missing; all of it is named, and nothing is written.
    """
    if (version is None) == (alias is None):
        raise SettingsError("give a version's number or an alias, one of both")
    for part in without:
        if part not in restoring.PARTS:
            raise SettingsError(unknown_name("part", part, restoring.PARTS))
    settings = load(Path(params))
    found = mlflow_models.find(settings, alias=alias, number=version)
    place = Workspace(Path(workspace))
    back = call_as_task(restoring.restore, "restore", settings, found, Path(into), place, tuple(without))
    counts = Counter(back.sources.values())
    log.info("version %s is in %s; every hash is as recorded", found.number, into)
    log.info("files: %s", ", ".join(f"{count} from {name}" for name, count in counts.items()))
    log.info("code: %s", back.code)


def main(arguments: Sequence[str] | None = None, name: str = NAME) -> None:
    """Run the flow from the command line; its messages are signed with the name."""
    given = command.parser(NAME, "Bring back the exact files of a registered version, every hash compared.")
    command.takes_workspace(given)
    which = given.add_mutually_exclusive_group(required=True)
    which.add_argument("--version", metavar="N", help="a version's number")
    which.add_argument("--alias", metavar="NAME", help="candidate, production, previous")
    given.add_argument("--into", required=True, metavar="DIR", help="a folder that doesn't exist yet, or is empty")
    given.add_argument("--without", action="append", default=[], choices=restoring.PARTS, help="leave this out")
    options = given.parse_args(arguments)
    command.execute(
        name,
        options,
        lambda: restore(
            options.into,
            options.version,
            options.alias,
            options.without,
            str(options.params),
            str(options.workspace),
        ),
    )


if __name__ == "__main__":
    main()
