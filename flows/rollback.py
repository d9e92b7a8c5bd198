"""Put back what was in production before: `python -m flows.rollback`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from flows import command
from flows.prefect_adapter import flow
from tasks.config.schema import load
from tasks.registry import promote
from tasks.workspace import deciding

log = logging.getLogger("secateur")

NAME = "rollback"


@flow(name=NAME)
def rollback(params: str = "params.yaml", version: str | None = None) -> None:
    """Put the version with the alias `previous`, or the one that is named, into production."""
    put_back(params, version)


def put_back(params: str, version: str | None = None) -> None:
    """Do what the flow does without Prefect's engine, because a rollback by hand is urgent.

    Args:
        params: The settings file.
        version: A version's number.

    Raises:
        WorkspaceError: There is nothing to go back to.
    """
    settings = load(Path(params))
    with deciding():
        decision = promote.roll_back(settings, version)
    log.info("version %s is in production again; version %s is not", decision.version, decision.instead_of)


def main(arguments: Sequence[str] | None = None, name: str = NAME) -> None:
    """Run the flow from the command line; its messages are signed with the name."""
    given = command.parser(NAME, "Put back what was in production before.")
    given.add_argument("--version", metavar="N", help="this version instead of `previous`")
    options = given.parse_args(arguments)
    command.execute(name, options, lambda: put_back(str(options.params), options.version))


if __name__ == "__main__":
    main()
