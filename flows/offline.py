"""When Prefect's server is unreachable: flows run without it, and it learns later how they ended.

    at a flow's start    unreachable: only its body runs, and it has no page
    at its end           unreachable: the outcome is kept in PREFECT_HOME/unreported/, under the run's id
    at the next start    reachable: everything that was kept is reported

If no server is named, a process starts its own (`flows.temporary_server`); what that one wasn't told is reported to the
next one with the same PREFECT_HOME.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar
from uuid import UUID

import httpx
import prefect
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from pydantic import BaseModel

from flows import signals, temporary_server
from pruning.errors import WorkspaceError
from tasks.workspace import write_json

P = ParamSpec("P")
R = TypeVar("R")

_PATIENCE_S = 5.0
_FIRST_FAULT_OF_A_SERVER = 500

log = logging.getLogger("secateur")

# Otherwise the worker would delay the end by 7 s for each event it holds while the server is unreachable.
EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=1)


@dataclass(frozen=True)
class _End(Generic[R]):
    """How a flow's body ended: with a result, or with an error."""

    result: R | None = None
    error: Exception | None = None

    def value(self) -> R:
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]  # None only where R is


class _Note(BaseModel):
    """How a run ended, to be reported to the server that started it."""

    server: str | None
    state: State


class Flow(prefect.Flow[P, R]):
    """A flow that runs its body with Prefect's server or without."""

    def __init__(self, body: Callable[P, R], *, name: str, typed: bool) -> None:
        """Take a function.

        Args:
            body: What the flow does.
            name: On Prefect's pages.
            typed: Whether Prefect checks the parameters against the annotations.
        """
        self.body = body
        self._ends: list[_End[R]] = []
        super().__init__(fn=self._watched(), name=name, validate_parameters=typed, persist_result=False)

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> R:  # type: ignore[override]  # no futures, no states
        """Run the flow, without the server if that is unreachable."""
        signals.end_if_asked()
        if _address() is None and not temporary_server.start():
            return self.body(*arguments, **named)
        if is_away():
            log.warning("Prefect's server %s doesn't answer: %s goes on without it", _address(), self.name)
            return self.body(*arguments, **named)
        self._ends.clear()
        try:
            found = super().__call__(*arguments, **named)
            signals.end_if_asked()  # the engine swallows an exception that comes after the body's end
            return found
        except Exception as error:
            signals.end_if_asked()  # the same signal may have ended the server: then it isn't lost
            if any(error is end.error for end in self._ends):
                raise
            if not isinstance(error, httpx.HTTPError) and not is_away():
                raise
            log.warning("Prefect's server %s %s: %s goes on without it", _address(), _what_happened(error), self.name)
        return self._ends[-1].value() if self._ends else self.body(*arguments, **named)

    def _watched(self) -> Callable[P, R]:
        """Return the body for Prefect's engine: first it reports what was kept, last it keeps what is left over."""

        @wraps(self.body)
        def body(*arguments: P.args, **named: P.kwargs) -> R:
            signals.set_deadline(self.name)
            signals.take_over()  # from the engine, whose handler would raise at every signal, in mid-ending too
            report()
            try:
                end = _End(self.body(*arguments, **named))
            except Exception as error:  # noqa: BLE001 - value() raises it again
                end = _End(error=error)
            self._ends.append(end)
            if is_away():
                _keep(end.error)
            return end.value()

        # Prefect would look for the names of the types in this module.
        body.__signature__ = signature(self.body, eval_str=True)  # type: ignore[attr-defined]
        return body


def is_away() -> bool:
    """Say whether the server to report to doesn't answer."""
    address = _address()
    if address is None:
        return False
    try:
        answer = httpx.get(f"{address}/health", timeout=_PATIENCE_S, verify=False)  # noqa: S501 - nothing is sent
    except httpx.TransportError:
        return True
    return answer.status_code >= _FIRST_FAULT_OF_A_SERVER


def reach_server(setting: str, *, lasting: bool = False) -> None:
    """See to it that Prefect's server answers: the one that is named, or one of this process's own.

    Args:
        setting: What needs it, for the message.
        lasting: Whether it has to be one that others know too.

    Raises:
        WorkspaceError: None answers.
    """
    address = _address()
    if address is None and lasting:
        raise WorkspaceError(
            f"{setting} needs a Prefect server that its workers know, and none is named; set PREFECT_API_URL "
            "(`secateur serve` and `prefect server start` show the address)"
        )
    if address is None and not temporary_server.start():
        raise WorkspaceError(
            f"{setting} needs a Prefect server, and the one of this process didn't come up; "
            f"{os.environ['PREFECT_HOME']}/logs says why, or name another by PREFECT_API_URL"
        )
    if is_away():
        raise WorkspaceError(
            f"{setting} needs Prefect's server, and {_address()} doesn't answer; start it, or correct PREFECT_API_URL"
        )


def tell(action: Callable[[], R]) -> R | None:
    """Show something on Prefect's pages, if there is a server and it answers."""
    signals.end_if_asked()
    if _address() is None or is_away():
        return None
    try:
        return action()
    except httpx.HTTPError as error:
        log.warning("Prefect's server %s did not take something for its pages: %s", _address(), error)
        return None


def report() -> None:
    """Tell the server how runs ended while it was unreachable."""
    for path in sorted(_kept().glob("*.json")):
        try:
            run, note = UUID(path.stem), _Note.model_validate_json(path.read_bytes())
        except FileNotFoundError:  # another flow has told it meanwhile
            continue
        except ValueError:
            log.warning("%s can't be read, so Prefect's page of that run stays as it is; delete the file", path)
            continue
        if note.server != _lasting():
            continue
        with get_client(sync_client=True) as client:
            try:
                found = client.read_flow_run(run)
                if found.state is None or found.state.type != note.state.type:
                    client.set_flow_run_state(found.id, note.state, force=True)
            except ObjectNotFound:
                log.warning("Prefect's server knows no run %s any more", run)
            except httpx.HTTPError:
                return
        path.unlink(missing_ok=True)


def _keep(error: Exception | None) -> None:
    message = "It ended while Prefect's server was unreachable." + (f" {error}" if error else "")
    state = {"type": "FAILED" if error else "COMPLETED", "message": message}
    write_json(_kept() / f"{flow_run.id}.json", {"server": _lasting(), "state": state})


def _kept() -> Path:
    return Path(os.environ["PREFECT_HOME"]) / "unreported"


def _what_happened(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.UNAUTHORIZED:
        return "asks for another password than PREFECT_API_AUTH_STRING holds"
    return "went away"


def _lasting() -> str | None:
    """Return the address of a server that outlives this process; None if each process starts its own."""
    return None if temporary_server.is_running() else _address()


def _address() -> str | None:
    return get_current_settings().api.url
