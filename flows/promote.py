"""Put the candidate into production if it deserves it: `python -m flows.promote`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from flows import command
from flows.prefect_adapter import ask_person, call_as_task, flow, is_deployed, publish_markdown, run_id
from pruning.errors import WorkspaceError
from tasks.config.schema import Settings, load
from tasks.registry import promote as promotion
from tasks.registry.promote import Case
from tasks.reporting.tables import WIDTH, as_sentence, markdown_table, text_table
from tasks.reporting.verdict import as_rows, summarise
from tasks.workspace import Workspace, deciding

log = logging.getLogger("secateur")

NAME = "promote"
SUMMARY = "Measure candidate and production side by side; put the candidate into production if it passes every gate."


@flow(name=NAME)
def promote(params: str = "params.yaml", workspace: str = "artifacts", approve: bool = False) -> bool:
    """Decide about the version that has the alias `candidate`.

    Args:
        params: The settings file.
        workspace: Looked into for the files of either version.
        approve: A person's yes, where the settings require one.

    Returns:
        Whether the candidate is in production now.

    Raises:
        WorkspaceError: There is no candidate, files are missing, or a person has to say yes first.
    """
    settings = load(Path(params))
    with deciding():
        case = promotion.waited_for(settings, run_id())
        if case is None:
            case = call_as_task(promotion.examine, "measure", settings, Workspace(Path(workspace)))
        if case is None:
            log.info("the candidate is in production already")
            return True
        _show(case)
        if case.reasons:
            promotion.refuse(settings, case)
            for reason in case.reasons:
                log.info("version %s stays out of production: %s", case.version, reason)
            return False
        return _put_forward(settings, case, approve)


def _table(case: Case) -> str:
    """Lay the gates out in Markdown."""
    head, *rows = as_rows(case.gates)
    return markdown_table(head, rows, numbers=(1, 2, 3))


def _put_forward(settings: Settings, case: Case, approve: bool) -> bool:
    """Promote what passed every gate, with a person's yes where one is required."""
    approved = "command line" if approve else None
    if settings.promote.require_approval and not approve:
        if not is_deployed():
            raise WorkspaceError(
                f"version {case.version} passes every gate, and promote.require_approval asks for a person's yes: look "
                "at the figures and run the same command with --approve"
            )
        promotion.keep_waiting(settings, case, str(run_id()))
        question = f"{_verdict(case)}\n\n{_title(case)}\n\n{_table(case)}"
        answer = ask_person(question, about=f"version-{case.version}")
        if not answer.yes:
            promotion.decline(settings, case, f"a person said no: {answer.comment or 'no comment'}")
            log.info("version %s stays out of production: a person said no", case.version)
            return False
        approved = answer.comment or "Prefect's page"
    promotion.promote(settings, case, approved)
    before = f"it was version {case.instead_of}" if case.instead_of else "the first one"
    log.info("version %s is in production; %s", case.version, before)
    return True


def _title(case: Case) -> str:
    other = f"version {case.instead_of}, in production" if case.instead_of else "its own baseline"
    return f"{case.version} (candidate) against {other} (reference)"


def _verdict(case: Case) -> str:
    """Print the verdict, then the figures."""
    sentence = f"Version {case.version} {summarise(case.gates)}."
    score = case.gates[0] if case.gates else None
    return f"{sentence} {as_sentence(score.name)}: {score.remark}." if score and score.remark else sentence


def _show(case: Case) -> None:
    if case.gates:
        publish_markdown("promotion", f"{_verdict(case)}\n\n{_table(case)}", _title(case))
        laid = [*wrap(_verdict(case), WIDTH), *wrap(f"Compared: version {_title(case)}.", WIDTH)]
        sys.stdout.write("\n{}\n\n{}\n\n".format("\n".join(laid), text_table(as_rows(case.gates))))
        sys.stdout.flush()


def main(arguments: Sequence[str] | None = None, name: str = NAME) -> None:
    """Run the flow from the command line, its messages signed with the name: 0 promoted, 1 refused, 2 a fault."""
    given = command.parser(NAME, SUMMARY)
    command.takes_workspace(given)
    given.add_argument("--approve", action="store_true", help="say yes, where promote.require_approval asks a person")
    options = given.parse_args(arguments)

    def checked() -> None:
        load(options.params)
        if not promote(str(options.params), str(options.workspace), options.approve):
            sys.exit(command.REFUSED)

    command.execute(name, options, checked)


if __name__ == "__main__":
    main()
