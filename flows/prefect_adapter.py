"""Flow and task: Prefect's if its engine is asked for, plain Python otherwise.

A run from a terminal, or a stage run by DVC, starts no engine and no server and imports nothing from Prefect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, wraps
from typing import Any, TypeVar
from uuid import UUID

import tasks  # noqa: F401  # sets the environment before Prefect is imported
from flows import signals
from tasks.registry.dvc_repo import inside_dvc

Function = TypeVar("Function", bound=Callable[..., Any])

BY_DVC = inside_dvc()
"""Whether DVC runs this process as one of its stages; neither Prefect nor MLflow is told about those."""

_PAGE = 100


class _Engine:
    """Prefect's engine, as far as this process uses it."""

    wanted = False


def use_prefect() -> None:
    """Have flows run in Prefect's engine from now on."""
    _Engine.wanted = True


def uses_prefect() -> bool:
    """Say whether flows run in Prefect's engine."""
    return _Engine.wanted and not BY_DVC


def flow(name: str, *, typed: bool = False) -> Callable[[Function], Function]:
    """Make a function a flow; its parameters are names and flags, never models.

    Args:
        name: On Prefect's pages.
        typed: Whether a deployment starts it: Prefect then gets a flow of its own and checks the parameters against the
            annotations.
    """

    def make(function: Function) -> Function:
        if BY_DVC:
            return function

        @cache
        def in_prefect() -> Callable[..., Any]:
            from flows.offline import Flow

            return Flow(_deployed(function) if typed else function, name=name, typed=typed)

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            signals.end_if_asked()
            return (in_prefect() if uses_prefect() else function)(*arguments, **named)

        return in_prefect() if typed else call  # type: ignore[return-value]  # is called like it

    return make


def _deployed(function: Function) -> Function:
    """Have everything that a deployment's flow calls run in Prefect's engine too, however Prefect has loaded it."""

    @wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        use_prefect()
        return function(*arguments, **named)

    return run  # type: ignore[return-value]  # is called like it


def body_of(function: Function) -> Function:
    """Return a flow's body, to be called inside the run of another flow."""
    return getattr(function, "body", getattr(function, "__wrapped__", function))


def call_as_flow(
    action: Callable[[], object], name: str, summary: str, params: str, workspace: str, commit: bool
) -> None:
    """Do something as a run of a flow, if Prefect's engine is used; values that are no names and flags stay here.

    Args:
        action: What to do.
        name: On Prefect's pages.
        summary: There too, as the three that follow are: they say what the action works on.
        params: The settings file.
        workspace: The workspace's folder.
        commit: Whether finished stages go to DVC.
    """
    signals.end_if_asked()
    if not uses_prefect():
        action()
        return
    from flows.offline import Flow

    def body(params: str, workspace: str, commit: bool) -> None:
        del params, workspace, commit
        action()

    body.__doc__ = summary
    Flow(body, name=name, typed=False)(params, workspace, commit)


def send_event(name: str, resource: str, payload: dict[str, Any]) -> None:
    """Tell Prefect's server what happened, for the triggers of deployments."""
    if uses_prefect():
        from prefect.events import emit_event

        emit_event(name, resource={"prefect.resource.id": resource}, payload=payload)


def call_as_task(function: Callable[..., Any], name: str, *arguments: Any) -> Any:
    """Call a function as a task of the flow's run, without cache or stored result: the workspace is the only truth."""
    signals.end_if_asked()
    if run_id() is None:
        return function(*arguments)
    import prefect
    from prefect.cache_policies import NO_CACHE

    task = prefect.task(name=name, task_run_name=name, cache_policy=NO_CACHE, persist_result=False)(function)
    return task(*arguments)


def _show(make: str, **given: Any) -> Any:
    """Call one of Prefect's functions that create or change an artifact; without the engine, do nothing."""
    if not uses_prefect():
        return None
    from prefect import artifacts

    from flows.offline import tell

    return tell(lambda: getattr(artifacts, make)(**given))


class ProgressBar:
    """A progress artifact on Prefect's pages."""

    def __init__(self, key: str, description: str) -> None:
        self._artifact: UUID | None = _show("create_progress_artifact", progress=0.0, key=key, description=description)

    def update(self, share: float) -> None:
        """Show a share in [0, 1]."""
        if self._artifact is not None:
            _show("update_progress_artifact", artifact_id=self._artifact, progress=100 * share)


def publish_table(key: str, rows: Sequence[Mapping[str, Any]], description: str) -> None:
    """Show a table on Prefect's pages."""
    _show("create_table_artifact", table=[dict(row) for row in rows], key=key, description=description)


def publish_markdown(key: str, text: str, description: str) -> None:
    """Show a text on Prefect's pages."""
    _show("create_markdown_artifact", markdown=text, key=key, description=description)


@dataclass(frozen=True)
class Answer:
    """What a person said on Prefect's pages."""

    yes: bool
    comment: str


def run_id() -> str | None:
    """Return the id of the flow run; a run that was suspended keeps it. None outside the engine."""
    if not uses_prefect():
        return None
    from prefect.runtime import flow_run

    return str(flow_run.id) if flow_run.id else None


def is_deployed() -> bool:
    """Say whether a worker runs this flow, so that it can be suspended until a person has answered."""
    if not uses_prefect():
        return False
    from prefect.runtime import deployment

    return deployment.id is not None


def ask_person(question: str, about: str) -> Answer:
    """Suspend the run until a person has answered on its page. The process ends; another one starts from the top.

    Args:
        question: Markdown, shown above the form.
        about: What the answer refers to; it is never taken as the answer to anything else.
    """
    import prefect
    from prefect.input import RunInput
    from pydantic import Field

    class Approval(RunInput):
        approve: bool = Field(default=False, description="Put this version into production.")
        comment: str = Field(default="", max_length=500, description="Kept with the decision: who, and why.")

    given = prefect.suspend_flow_run(wait_for_input=Approval.with_initial_data(description=question), key=about)
    return Answer(given.approve, given.comment)


def remove_flow_runs(before: datetime, *, dry_run: bool) -> int | None:
    """Remove runs that finished before a time, and return their number; None if no server is named."""
    from prefect.settings import get_current_settings

    if get_current_settings().api.url is None:
        return None
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    ended = FlowRunFilter.model_validate({"end_time": {"before_": before}})
    removed = 0
    with get_client(sync_client=True) as client:
        while page := client.read_flow_runs(flow_run_filter=ended, limit=_PAGE, offset=removed if dry_run else 0):
            for run in page:
                if not dry_run:
                    client.delete_flow_run(run.id)
            removed += len(page)
    return removed
