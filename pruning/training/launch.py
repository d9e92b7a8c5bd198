"""Start the processes that train one model together, and hear of them: by torch's own elastic launcher.

    this process ── elastic_launch ──► rank 0 … rank R − 1, each with torch's default process group
         ▲                                 │
         └─ progress, log, faults ─────────┘   one pipe for each rank

Each launch starts fresh processes and a fresh group, so that a model of another shape is no question. None is restarted
within a launch: whoever calls goes on from what was kept.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from pruning.errors import LaunchError, SecateurError
from pruning.evaluation import Progress
from pruning.world import Parallel, World, check_shards

T = TypeVar("T")

Started = Callable[..., T]
"""(world, report, *arguments) -> anything that can be pickled: what each rank does. A function of a module."""

_log = logging.getLogger(__name__)

_QUIET = "torch.distributed.elastic", "torch.multiprocessing"
_PATIENCE_S = 5  # that a rank has to end by itself, once it is asked to
_STEP_ASIDE_S = 3.0  # so that the launcher first sees the rank that was ended, and not those that miss it
_PR_SET_PDEATHSIG = 1
_SILENCE = timedelta(hours=2)
"""How long a rank waits for another one that lives, such as for rank 0 that writes a checkpoint."""


def launch(
    function: Started[T],
    *arguments: Any,
    ranks: int,
    shards: int,
    device: str = "cpu",
    parallel: Parallel = "ddp",
    progress: Progress | None = None,
) -> T:
    """Let several processes of this machine do something together, and return what the first one returns.

    Args:
        function: See `Started`; progress that it reports comes here, and so do its log records.
        arguments: For it; they have to be picklable.
        ranks: How many processes.
        shards: Into how many parts they divide each batch.
        device: "cpu", or "cuda": rank r computes on `cuda:r` then.
        parallel: Whether each trains the whole model, or a part of every weight.
        progress: Told what the first process reports.

    Raises:
        LaunchError: A process was ended, or couldn't start.
        SettingsError: Shards can't be shared out among the ranks.
        SecateurError: What one of them raised.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    check_shards(shards, ranks)
    check_devices(device, ranks)
    pipes = [get_context("spawn").Pipe(duplex=False) for _ in range(ranks)]
    ear = _Ear([reader for reader, _ in pipes], progress)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=f"{os.getpid()}-{time.monotonic_ns()}",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,  # gloo finds the ports of the dead generation: pytorch#135712
        signals_to_handle="SIGUSR2",  # those that end this process unwind it, and end the ranks on the way
        shutdown_timeout=_PATIENCE_S,
    )
    failed: tuple[int, int] | None = None
    returned: dict[int, Any] = {}
    with ear.listening(), _quiet_launcher():
        try:
            begin = partial(joined, device, shards, parallel=parallel)
            returned = elastic_launch(config, _be_a_rank)(function, arguments, begin, [w for _, w in pipes])
        except ChildFailedError as fault:
            failed = next((rank, one.exitcode) for rank, one in fault.failures.items())
        finally:
            for _, writer in pipes:
                writer.close()
    if failed is not None:
        raise ear.reason(ranks, *failed, parallel=parallel)
    made: T = returned[0]
    return made


def check_devices(device: str, ranks: int) -> None:
    """See that each rank has a device.

    Raises:
        LaunchError: There are fewer GPUs than ranks, or one is named.
    """
    if device == "cpu" or ranks == 1:
        return
    if device != "cuda":
        raise LaunchError(
            f"the device is {device!r} for {ranks} ranks; name it cuda, so that rank r computes on cuda:r"
        )
    if (found := torch.cuda.device_count()) < ranks:
        raise LaunchError(f"{ranks} ranks need {ranks} GPUs on this machine, which has {found}; start {found or 1}")


@dataclass
class _Ear:
    """What the ranks say."""

    pipes: list[Connection]
    progress: Progress | None
    faults: dict[int, tuple[SecateurError | None, str]] = field(default_factory=dict)
    """Of a rank: what it raised, if that is meant for the user, and the traceback."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen until the end of the block, and then to what is left."""
        over = threading.Event()
        thread = threading.Thread(target=self._listen, args=(over,), name="ranks", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _listen(self, over: threading.Event) -> None:
        left = {id(pipe): pipe for pipe in self.pipes}
        while left:
            ready = wait(list(left.values()), timeout=0.2)
            for pipe in ready:
                assert isinstance(pipe, Connection)
                try:
                    self._hear(self.pipes.index(pipe), *pipe.recv())
                except (EOFError, OSError):
                    del left[id(pipe)]
            if over.is_set() and not ready:
                return

    def _hear(self, rank: int, what: str, said: Any) -> None:
        if what == "progress" and self.progress is not None:
            self.progress(*said)
        elif what == "log":
            name, level, text = said
            logging.getLogger(name).log(level, "%s", text)
        elif what == "fault":
            kind, text, told = said
            self.faults.setdefault(rank, (_again(kind, text), told))

    def reason(self, ranks: int, rank: int, exit_code: int, *, parallel: Parallel = "ddp") -> SecateurError:
        """Say why a launch failed: what a rank raised for the user, or which one was ended.

        Args:
            ranks: How many there were.
            rank: The one that the launcher saw first.
            exit_code: Of it; a negative one is a signal's number.
            parallel: What each rank held.
        """
        meant = [fault for _, (fault, _) in sorted(self.faults.items()) if fault is not None]
        if meant:
            return meant[0]
        if exit_code < 0:
            what = f"was ended by {signal.Signals(-exit_code).name}"
            why = ", most often because memory ran out" if exit_code == -signal.SIGKILL else ""
        else:
            what, why = f"ended with exit code {exit_code}", ""
            rank = next(iter(self.faults), rank)  # heard first: those of the others follow from it
            if rank in self.faults:
                what = f"raised {_last_raised(self.faults[rank][1])}"
                if parallel == "fsdp":
                    why = " (where one process trains this model, torch can't divide it: set parallel to ddp)"
                _log.debug("rank %d: %s", rank, self.faults[rank][1])
        return LaunchError(
            f"{ranks} ranks: rank {rank} {what}{why}. What was kept before is there: run the same command again to go "
            "on from it, with as many ranks as you like"
        )


def _again(kind: type[BaseException], text: str) -> SecateurError | None:
    """Make a fault that is meant for the user again; None of any other."""
    if not issubclass(kind, SecateurError):
        return None
    try:
        return kind(text)
    except TypeError:  # it takes more than its text
        return SecateurError(text)


def _last_raised(told: str) -> str:
    """Return type and text, in one line, of the fault that a traceback ends with; code stands indented in it."""
    lines = told.strip().splitlines()
    last = max((number for number, line in enumerate(lines) if line.startswith("  File ")), default=-1)
    found = next((n for n in range(last + 1, len(lines)) if not lines[n].startswith(" ")), len(lines) - 1)
    return " ".join(" ".join(lines[found:]).split())


@contextmanager
def _quiet_launcher() -> Iterator[None]:
    """Leave it to us to say what happened: torch's launcher logs tracebacks, and a report of its own."""
    before, handler = os.environ.get("TORCHELASTIC_SIGNALS_TO_HANDLE"), signal.getsignal(signal.SIGUSR2)
    known = {*_QUIET, *(name for name in logging.root.manager.loggerDict if name.startswith(_QUIET))}
    levels = {name: logging.getLogger(name).level for name in known}
    for name in known:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if before is None:
            os.environ.pop("TORCHELASTIC_SIGNALS_TO_HANDLE", None)
        else:
            os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = before
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGUSR2, handler)


class Report:
    """What a rank tells the process that started it."""

    def __init__(self, pipe: Connection | None) -> None:
        """Take the pipe to it; None where nobody listens."""
        self._pipe = pipe

    def progress(self, done: int, total: int) -> None:
        """Say how far it has got."""
        self._send("progress", (done, total))

    def fault(self, fault: BaseException) -> None:
        """Say what went wrong."""
        self._send("fault", (type(fault), str(fault), "".join(traceback.format_exception(fault))))

    def log(self, record: logging.LogRecord) -> None:
        """Pass on a record of the log."""
        self._send("log", (record.name, record.levelno, record.getMessage()))

    def _send(self, what: str, said: Any) -> None:
        if self._pipe is not None:
            self._pipe.send((what, said))


class _Log(logging.Handler):
    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report.log(record)


def _be_a_rank(
    function: Started[T],
    arguments: tuple[Any, ...],
    begin: Callable[[], AbstractContextManager[World]],
    pipes: list[Connection],
) -> T | None:
    """Be one of the processes of a launch."""
    _belong_to_the_parent()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    rank = int(os.environ["RANK"])
    report = Report(pipes[rank])
    if rank == 0:
        logging.root.handlers[:] = [_Log(report)]
        logging.root.setLevel(logging.INFO)
    try:
        with begin() as world:
            try:
                made = function(world, report, *arguments)
            except BaseException as fault:
                report.fault(fault)  # before the group ends, which the other ranks meet as a fault of their own
                raise
        return made if rank == 0 else None
    except BaseException as fault:  # noqa: BLE001 - whatever it is, the parent says it
        report.fault(fault)
        if not isinstance(fault, SecateurError):
            time.sleep(_STEP_ASIDE_S)
        sys.stdout.flush()
        os._exit(1)  # the group's end waits for ranks that are not there any more


def _belong_to_the_parent() -> None:
    """Leave signals of the terminal to the parent process, and end when it ends, however that happens."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(frozen=True)
class Member:
    """A process's place among the ranks.

    Attributes:
        rank: Its number.
        ranks: How many there are.
        local_rank: Its number on its machine.
    """

    rank: int
    ranks: int
    local_rank: int

    @classmethod
    def from_environment(cls) -> Member:
        """Read it as torch's launchers set it."""
        return cls(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


@contextmanager
def joined(
    device: str, shards: int, member: Member | None = None, store: Any = None, *, parallel: Parallel = "ddp"
) -> Iterator[World]:
    """Be, within the block, a rank of torch's default process group.

    Args:
        device: "cpu", or "cuda", where values on GPUs go by nccl.
        shards: Into how many parts a batch is divided.
        member: Which rank; None: as the environment says.
        store: Of torch, by which the ranks find each other; None: at MASTER_ADDR and MASTER_PORT.
        parallel: Whether each trains the whole model, or a part of every weight.
    """
    from torch import distributed

    found = Member.from_environment() if member is None else member
    is_gpu = device.startswith("cuda")
    world = World(shards, found.rank, found.ranks, parallel=parallel, device="cuda" if is_gpu else "cpu")
    if is_gpu:
        torch.cuda.set_device(found.local_rank)
    given: dict[str, Any] = {} if store is None else {"store": store, "rank": found.rank, "world_size": found.ranks}
    distributed.init_process_group("cpu:gloo,cuda:nccl" if is_gpu else "gloo", timeout=_SILENCE, **given)
    try:
        yield world
    finally:
        distributed.destroy_process_group()
