"""The ranks of a command: this process is the first, and the others follow it from job to job.

    this process: lead ──── a line in torch's store ────► the others: follow
          └──────── a process group for each job ────────────┘
             function(world, progress, *arguments) in each

`torchrun` has started them, on any number of hosts, or `followers` does, for as long as a stage runs. A job is a
function of a module and its arguments, which are sent: models and groups too.
"""

from __future__ import annotations

import io
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import IO, Any, TypeVar

import torch

from pruning.errors import LaunchError, SecateurError
from pruning.evaluation import Progress
from pruning.training.launch import Member, joined
from pruning.world import Parallel, World
from tasks.config.schema import Settings
from tasks.data import read_description
from tasks.environment import REPOSITORY, is_installed
from tasks.fingerprint import executed
from tasks.stage_table import find_stage
from tasks.workspace import Workspace, digest

_WAIT = timedelta(minutes=1)
_HERE = "127.0.0.1"
_READY, _PROGRAM = "ready", "tasks.rank_follower"
_SOON_S = 0.005
_END_S = 2.0  # in which the system tells that a process has ended
_MEND = "install the same versions and the same code on all hosts, and let them share one workspace"

T = TypeVar("T")

log = logging.getLogger("secateur")


class LostRankError(LaunchError):
    """Another rank can't be reached any more."""


class CantBeSentError(LaunchError):
    """A job holds something that can't be sent to another process of this program."""


class RankGroup:
    """The ranks, of which this process is one; nothing else that it starts is."""

    def __init__(self) -> None:
        self._member: Member | None = None
        self._store: Any = None
        self._jobs = 0
        self._started: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
        self._is_ready = False

    @property
    def is_of_torchrun(self) -> bool:
        """Whether `torchrun` has started this process, and others, as ranks."""
        return self._member is not None and not self._started

    @property
    def ranks(self) -> int:
        """How many there are."""
        return 1 if self._member is None else self._member.ranks

    def enter(self) -> bool:
        """Take this process's place from the environment; return whether it is to run the command."""
        from torch.distributed.rendezvous import rendezvous

        if self._member is None:
            self._store, rank, ranks = next(rendezvous("env://"))
            self._member = Member(rank, ranks, int(os.environ.get("LOCAL_RANK", "0")))
            self._is_ready = True
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
                os.environ.pop(name, None)
        return self._member.rank == 0

    def start(self, ranks: int) -> None:
        """Start the others, on this machine; it takes seconds until they are ready, which nobody waits for."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self._store = TCPStore(_HERE, 0, is_master=True, wait_for_workers=False)
        self._member = Member(0, ranks, 0)
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
        if not is_installed():
            paths = [str(REPOSITORY), os.environ.get("PYTHONPATH")]
            environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        for rank in range(1, ranks):
            said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", _PROGRAM, str(self._store.port), str(rank), str(ranks)],
                env=environment,
                stdin=subprocess.PIPE,  # by whose end it sees that of this process
                stdout=said,
                stderr=said,
                start_new_session=True,  # Ctrl-C is this process's business, which ends it
            )
            self._started.append((process, said))

    def end(self) -> None:
        """End those that were started."""
        for process, said in self._started:
            process.kill()
            process.wait()
            for stream in (process.stdin, said):
                if stream is not None:
                    stream.close()
        vars(self).update(vars(RankGroup()))

    @property
    def is_ready(self) -> bool:
        """Whether all others wait for jobs now."""
        if any(process.poll() is not None for process, _ in self._started):
            return False
        if self._started and not self._is_ready:
            self._is_ready = self._store.add(_READY, 0) == len(self._started)
        return self._is_ready

    def why_lost(self) -> str:
        """Say what became of a rank that was started and has ended; "" if none has."""
        end = time.monotonic() + _END_S
        while time.monotonic() < end:
            for rank, (process, said) in enumerate(self._started, start=1):
                if (code := process.poll()) is not None:
                    if code < 0:
                        return f"rank {rank} was ended by {signal.Signals(-code).name}"
                    said.seek(0)
                    lines = said.read().decode(errors="replace").strip().splitlines()
                    return f"rank {rank} ended with exit code {code}: {lines[-1] if lines else 'it said nothing'}"
            time.sleep(0.05)
        return ""

    def join_as(self, port: int, rank: int, ranks: int) -> None:
        """Be one of those that were started, and do jobs until the process that leads has ended."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self._store, self._member = TCPStore(_HERE, port, is_master=False), Member(rank, ranks, rank)
        self._store.add(_READY, 1)
        self.follow(ends_by_fault=True)

    def lead(
        self,
        function: Callable[..., T],
        arguments: tuple[Any, ...],
        *,
        shards: int,
        device: str,
        parallel: Parallel = "ddp",
        progress: Progress | None = None,
    ) -> T:
        """Do a job as rank 0, together with those who follow, and return what it returns here.

        Args:
            function: (world, progress, *arguments), of a module; the others have no progress.
            arguments: The others get copies.
            shards: Into how many parts the work is divided.
            device: "cpu", or "cuda": rank r has the GPU of its number on its machine then.
            parallel: See `pruning.world.World`.
            progress: Told how far it has got.

        Raises:
            LostRankError: Another rank can't be reached any more.
            CantBeSentError: The arguments can't be, such as a model of a class that is made within a function.
        """
        _check_sendable((function, arguments))
        asked = {"device": device, "shards": shards, "parallel": parallel}
        self._store.set(self._name(), json.dumps(asked))
        self._wait_for_all()
        return self._join(asked, (function, arguments), lambda world: function(world, progress, *arguments))

    def follow(self, *, ends_by_fault: bool = False) -> None:
        """Do jobs until the last one is done.

        Args:
            ends_by_fault: Whether a fault in the user's code ends this process, so that rank 0 can say why. One that
                `torchrun` has started goes on: by its end all would be ended, before rank 0 can meet the fault as well.
        """
        from torch import distributed

        while True:
            try:
                self._store.wait([self._name()], _WAIT)
            except distributed.DistStoreError:  # none within that time
                continue
            asked = json.loads(self._store.get(self._name()))
            if not asked:
                return
            self._store.add(f"{self._name()} {_READY}", 1)
            try:
                self._join(asked)
            except SecateurError as fault:
                log.info("%s", fault)  # rank 0 has met it as well, and decides what comes next
            except Exception as fault:
                if ends_by_fault:
                    raise
                log.warning("%s: %s", type(fault).__name__, fault)

    def dismiss(self) -> None:
        """Let those who follow end."""
        if self._member is not None:
            self._store.set(self._name(), "{}")

    def _wait_for_all(self) -> None:
        """Wait until those that were started have heard of the job, since nothing ends the wait for one that is gone.

        Raises:
            LostRankError: One of them has ended.
        """
        while self._started and self._store.add(f"{self._name()} {_READY}", 0) < len(self._started):
            if not self.is_ready:
                self._jobs += 1
                raise LostRankError(self.why_lost())
            time.sleep(_SOON_S)

    def _name(self) -> str:
        return f"secateur job {self._jobs}"

    def _join(self, asked: dict[str, Any], given: Any = None, work: Callable[[World], T] | None = None) -> T:
        """Be a rank of a group that does one job, which rank 0 knows."""
        from torch import distributed

        store = distributed.PrefixStore(f"group {self._jobs}", self._store)  # type: ignore[attr-defined]
        self._jobs += 1
        try:
            parallel = asked["parallel"]
            with joined(asked["device"], asked["shards"], self._member, store, parallel=parallel) as world:
                sent = world.from_first(lambda: given)
                if work is None:
                    function, arguments = sent
                    found: T = function(world, None, *arguments)
                    return found
                return work(world)
        except distributed.DistError as fault:
            raise _lost(fault) from fault
        except RuntimeError as fault:
            if not _is_of_gloo(fault):
                raise
            raise _lost(fault) from fault


def _check_sendable(value: Any) -> None:
    """See that a value can be sent to another process of this program, before any waits for it.

    Raises:
        CantBeSentError: It can't.
    """
    try:
        torch.save(value, io.BytesIO())
    except Exception as fault:  # pickle and what it calls raise what they like
        raise CantBeSentError(f"{type(fault).__name__}: {fault}") from fault


def _is_of_gloo(fault: Exception) -> bool:
    return "gloo" in str(fault).lower()


def _lost(fault: Exception) -> LostRankError:
    return LostRankError(
        f"another rank can't be reached any more ({str(fault).strip().splitlines()[0]}); its own message says why. "
        "What was kept before is there: start all ranks again to go on from it"
    )


group = RankGroup()
"""Of this process."""


@contextmanager
def followers(settings: Settings) -> Iterator[None]:
    """Have `machine.ranks` processes share passes over samples while a block runs; see `tasks.passes`.

    Args:
        settings: Of the run.
    """
    if settings.machine.ranks == 1 or group.ranks > 1 or settings.run.device != "cpu":
        yield
        return
    try:
        group.start(settings.machine.ranks)
        yield
    finally:
        group.end()


def on_own_device(settings: Settings) -> Settings:
    """Return settings for this rank: on the GPU of its number, where the run is on GPUs."""
    return settings if settings.run.device != "cuda" else on(settings, f"cuda:{torch.cuda.current_device()}")


def on(settings: Settings, device: str) -> Settings:
    """Return the settings of a run on another device."""
    return settings.model_copy(update={"run": settings.run.model_copy(update={"device": device})})


def agree(world: World, stage: str, settings: Settings, workspace: Workspace, **others: str) -> None:
    """See that all ranks have what makes the same bytes: versions, code, data, kind of device.

    Args:
        world: The ranks.
        stage: Whose code they execute.
        settings: Of the run, for this rank.
        workspace: Holds the data.
        others: More of what has to be the same, by name.

    Raises:
        LaunchError: They haven't; in all of them, with the same text.
    """
    device, ran = torch.device(settings.run.device), executed(find_stage(stage), settings)
    is_gpu = device.type == "cuda"
    facts = {
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "packages": digest(ran["versions"])[:12],
        "code": digest(ran["modules"])[:12],
        "data": read_description(workspace).fingerprint[:12],
        **others,
        "the device": torch.cuda.get_device_name(device) if is_gpu else torch.backends.cpu.get_cpu_capability(),
    }
    world.agree(facts, _MEND)
