"""The worker of `secateur serve`: Prefect's worker, except that its runs end cleanly with it.

When Prefect's own command is told to end, it kills the runs it started, or leaves them behind. Here each run is
signalled first, as by *Cancel*: it unwinds, tells MLflow and ends its own children. Then the worker tells Prefect's
server how the run ended, and stops.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import psutil

from flows import signals
from flows.command import FAULT, bare_parser

POOL = "secateur"
_RUNS_MAY_TAKE_S = signals.PATIENCE_S + 2.0  # their own deadline, and the time to end them by force
_PATIENCE_S = _RUNS_MAY_TAKE_S + 1.5
_POLL_S = 0.1


async def work() -> None:
    """Ask Prefect's server for runs and start them, until a signal asks for the end."""
    from prefect.workers.process import ProcessWorker

    working = asyncio.create_task(ProcessWorker(work_pool_name=POOL).start())
    while not signals.asked() and not working.done():
        await asyncio.sleep(_POLL_S)
    if signals.asked():
        await _end_runs()
        working.cancel()
    try:
        await working
    except asyncio.CancelledError:
        signals.end_if_asked()


async def _end_runs() -> None:
    """End all runs, also those started in the meantime: first by a signal, then by force."""
    told, deadline = set[int](), time.monotonic() + _RUNS_MAY_TAKE_S
    while (runs := psutil.Process().children()) and time.monotonic() < deadline:
        for run in runs:
            if run.pid not in told:
                told.add(run.pid)
                _tell(run)
        await asyncio.sleep(_POLL_S)
    if runs:
        signals.end_children()


def _tell(run: psutil.Process) -> None:
    """Signal a run's whole process group, as *Cancel* does."""
    try:
        if os.getpgid(run.pid) == run.pid:
            os.killpg(run.pid, signal.SIGTERM)
        else:
            run.terminate()
    except (ProcessLookupError, psutil.NoSuchProcess):
        return


def main() -> None:
    """Run the worker until a signal ends it."""
    bare_parser("worker", "Run what the work pool asks for, until Ctrl-C.").parse_args()
    signals.watch("worker", patience_s=_PATIENCE_S, unwinds=False)
    asyncio.run(work())
    signals.end_if_asked()
    sys.exit(FAULT)  # it ended by itself


if __name__ == "__main__":
    main()
