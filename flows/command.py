"""The command line of every flow: `python -m flows.<name>` with its options, and one message for a fault."""

from __future__ import annotations

import argparse
import atexit
import gc
import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from flows import signals
from flows.prefect_adapter import use_prefect
from pruning.errors import SecateurError, TargetError
from tasks.file_cache import holding
from tasks.registry.dvc_repo import inside_dvc
from tasks.workspace import DEFAULT_PARAMS, DEFAULT_ROOT

REFUSED = 1
FAULT = 2
CLOSED_PIPE = 128 + signal.SIGPIPE

FlowFunction = Callable[[str, str, bool], object]

log = logging.getLogger("secateur")


def main(name: str, run: FlowFunction, summary: str, arguments: Sequence[str] | None = None) -> None:
    """Run a stage's flow from the command line and end the process."""
    given = parser(name, summary)
    takes_workspace(given)
    given.add_argument("--no-commit", action="store_true", help="leave DVC alone")
    options = given.parse_args(arguments)
    execute(name, options, lambda: run_flow(run, options))


def run_flow(run: FlowFunction, options: argparse.Namespace) -> None:
    """Run a stage's flow or the whole pipeline; settings and workspace are checked before the engine starts.

    Args:
        run: The flow.
        options: Of the command line: params, workspace, no_commit.

    Raises:
        SettingsError: The settings are wrong.
        WorkspaceError: The workspace can't be written.
    """
    run(str(options.params), str(options.workspace), _commits(options))


def execute(name: str, options: argparse.Namespace, action: Callable[[], object]) -> None:
    """Do what a command line asks for, and end the process if that fails.

    A fault of the user's is one message and exit code 2; a target that no model meets is one message and exit code 1.
    Only --debug shows the traceback. A signal that ends the process is one message and exit code 128 + its number,
    whatever else it causes to fail.
    """
    atexit.register(gc.freeze)  # or Python looks through all modules for garbage as it ends: 2 s with torch and MLflow
    _say_on_terminal()
    signals.watch(name)
    if getattr(options, "prefect", False):
        use_prefect()
    try:
        with holding():
            _act(action)
        sys.stdout.flush()
    except (SecateurError, OSError) as fault:
        if isinstance(fault, BrokenPipeError) and _reader_has_enough():
            sys.exit(CLOSED_PIPE)
        if options.debug:
            traceback.print_exc()
        if not signals.asked():
            sys.stderr.write(f"{name}: {_message(fault, getattr(options, 'workspace', None))}\n")
            sys.exit(REFUSED if isinstance(fault, TargetError) else FAULT)
    except BaseException:
        if not signals.asked():
            raise
    signals.end_if_asked()


def _act(action: Callable[[], object]) -> None:
    """Do what a command asks for; of several processes that `torchrun` has started, the first one alone does.

    The others take part in its training, see `tasks.ranks`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        action()
        return
    from tasks import ranks  # imports torch

    if not ranks.enter_group():
        ranks.follow()
        return
    try:
        action()
    finally:
        ranks.dismiss()


def parser(name: str, summary: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every command that reads settings."""
    given = bare_parser(name, summary)
    given.add_argument("--params", type=Path, default=DEFAULT_PARAMS, metavar="FILE", help="settings (%(default)s)")
    given.add_argument("--prefect", action="store_true", help="run in Prefect's engine, for its pages")
    return given


def bare_parser(name: str, summary: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every command."""
    given = argparse.ArgumentParser(prog=f"python -m flows.{name}", description=summary)
    given.add_argument("--debug", action="store_true", help="show the traceback of a fault")
    return given


def takes_workspace(given: argparse.ArgumentParser) -> None:
    """Add the option of every command that works in a workspace."""
    given.add_argument(
        "--workspace", type=Path, default=DEFAULT_ROOT, metavar="DIR", help="where everything is written (%(default)s/)"
    )


def _commits(options: argparse.Namespace) -> bool:
    """Say whether finished stages are committed to DVC; if not, though --no-commit wasn't given, tell the user why."""
    if options.no_commit or inside_dvc():
        return False
    if options.workspace == DEFAULT_ROOT and options.params == DEFAULT_PARAMS:
        return True
    log.info("this run is not committed: DVC versions only what %s asks for, in %s/", DEFAULT_PARAMS, DEFAULT_ROOT)
    return False


def _reader_has_enough() -> bool:
    """Say whether standard output is a pipe that nobody reads any more, as in `secateur params | head`; end it then."""
    output = sys.stdout.fileno()
    poller = select.poll()
    poller.register(output, 0)
    if not any(event & select.POLLERR for _, event in poller.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # for what Python writes at its end
    return True


def _message(fault: SecateurError | OSError, workspace: Path | None) -> str:
    if isinstance(fault, SecateurError):
        return str(fault)
    place = fault.filename or (f"workspace {workspace}" if workspace else f"folder {Path.cwd()}")
    return (
        f"the system refused a file operation: {place}: {fault.strerror or fault}. What was finished before is kept; "
        "fix the permissions or free some disk space, then run the same command again"
    )


class _Terminal(logging.Handler):
    """Writes messages to the standard error of the moment, which tests and Prefect replace.

    A warning of the library is written once: the loop plans anew at each attempt, and the library warns each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.warned = set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.name.startswith("pruning."):
            if text in self.warned:
                return
            self.warned.add(text)
        try:
            sys.stderr.write(f"{text}\n")
        except OSError:
            self.handleError(record)


_TERMINAL = _Terminal()


def _say_on_terminal() -> None:
    _TERMINAL.warned.clear()
    for logger, level in ((log, logging.INFO), (logging.getLogger("pruning"), logging.WARNING)):
        logger.addHandler(_TERMINAL)  # a handler that is there already isn't added again
        logger.setLevel(level)
        logger.propagate = False
