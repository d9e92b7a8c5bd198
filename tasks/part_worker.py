"""A worker of parts: a process of its own that computes one request after another, `python -m tasks.part_worker`.

    thread, Dask worker, Ray worker: in_child ─── a line: the request's path ──► this program ─► tasks.fan_out.do
                                              ◄── a line: how it ended ─────────┘

It begins with nothing loaded, so that no module is older than its file, and what it computes can't depend on what else
its caller does: threads, seeds and the current folder are its own. It is used again for requests of the same code and
settings, ends when its caller ends, however that happens, and by itself when nothing was asked for a while.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from tasks.environment import REPOSITORY, is_installed

IDLE_S = 60.0
_NO_OUTPUT = "no output"
_LONGEST = 400


class PartWorker:
    """The program, as its caller sees it."""

    def __init__(self, project: Path) -> None:
        """Start it.

        Args:
            project: Its current folder.
        """
        environment = dict(os.environ)
        if not is_installed():
            environment["PYTHONPATH"] = os.pathsep.join(
                [str(REPOSITORY), *filter(None, [environment.get("PYTHONPATH")])]
            )
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tasks.part_worker"],
            cwd=project,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,  # Ctrl-C is its caller's business, which ends it
        )

    @property
    def is_running(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, request: str) -> str:
        """Have it compute a part, and wait; return "" or what failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{json.dumps(request)}\n".encode())
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError:
            answer = b""
        if answer:
            return str(json.loads(answer))
        code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        last = lines[-1][:_LONGEST] if lines else _NO_OUTPUT
        if code < 0:
            return f"its process was killed by signal {-code}, most often because memory ran out"
        return f"its process ended with exit code {code}: {last}"

    def end(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


class _Idle:
    """The workers of this process that wait, by what they have loaded."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.workers: list[tuple[str, PartWorker]] = []
        self.all: list[PartWorker] = []
        self.closed = False

    def take(self, program: str, project: Path) -> PartWorker | None:
        with self.lock:
            if self.closed:
                return None
            fit = [worker for known, worker in self.workers if known == program and worker.is_running]
            for _, worker in self.workers:
                if worker not in fit:
                    self._forget(worker)
            found = fit.pop(0) if fit else PartWorker(project)
            self.workers = [(program, worker) for worker in fit]
            if found not in self.all:
                self.all.append(found)
        return found

    def give_back(self, program: str, worker: PartWorker) -> None:
        with self.lock:
            if worker.is_running and worker in self.all:
                self.workers.append((program, worker))
            else:
                self._forget(worker)

    def _forget(self, worker: PartWorker) -> None:
        worker.end()
        if worker in self.all:
            self.all.remove(worker)

    def end(self) -> None:
        with self.lock:
            self.closed = True
            self.workers.clear()
            while self.all:
                self.all.pop().end()


_idle = _Idle()


def in_child(request: str) -> str:
    """Compute a part in a worker of this process's own, and wait; return "" or what failed.

    Args:
        request: The path of its file.
    """
    path = Path(request)
    try:
        asked = json.loads(path.read_bytes())
    except FileNotFoundError:
        return f"{path} isn't there: a worker has to see the project's folder, with the workspace, under the same path"
    told = [asked[name] for name in ("project", "stage", "settings", "executed")]
    program = sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    worker = _idle.take(program, Path(asked["project"]))
    if worker is None:
        return "nobody waits for it any more"
    found = worker.ask(request)
    _idle.give_back(program, worker)
    return found


@contextmanager
def children() -> Iterator[None]:
    """End all workers that this process has started when the block is left, and start none after that."""
    _idle.closed = False
    try:
        yield
    finally:
        _idle.end()


def answer(request: Path) -> str:
    """Compute a part in this process; return "" or what failed. A refusal is a file beside the request."""
    take_gpu(request)
    from pruning.errors import SecateurError
    from tasks.fan_out import WrongWorkerError, do

    try:
        do(request)
    except WrongWorkerError as refusal:
        request.with_suffix(".refused").write_text(str(refusal), encoding="utf-8")
        return str(refusal)
    except SecateurError as fault:
        return str(fault)
    except Exception as fault:  # noqa: BLE001 - whatever a user's code raises, the one who asks meets it again
        return f"{type(fault).__name__}: {fault}"
    return ""


def begin() -> None:
    """Begin a process that computes parts: others may write the same files at the same time."""
    from pruning.io.files import name_writer

    name_writer(f"{os.uname().nodename}-{os.getpid()}")


_gpu: list[FileLock] = []
"""The lock of the GPU that this process has."""


def take_gpu(request: Path) -> None:
    """Let this process see one GPU that no other worker of this machine has, where the run's device is `cuda`.

    Before CUDA begins: what it sees then can't be changed. With more workers than GPUs they are shared in turn.
    """
    if _gpu or json.loads(request.read_bytes())["settings"]["run"]["device"] != "cuda":
        return
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    import torch

    gpus = [name for name in given.split(",") if name] if given is not None else None
    gpus = [str(number) for number in range(torch.cuda.device_count())] if gpus is None else gpus
    folder = Path(tempfile.gettempdir()) / f"secateur-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for gpu in gpus:
        lock = FileLock(folder / f"{gpu.replace(os.sep, '_')}.lock")
        with suppress(Timeout):
            lock.acquire(blocking=False)
            _gpu.append(lock)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            return
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[os.getpid() % len(gpus)]


def main() -> None:
    """Answer requests from standard input until it closes."""
    requests: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            requests.put(json.loads(line))
        os._exit(1)  # whoever has asked is gone, and with it the reason to go on

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a user's `print` is no answer
    threading.Thread(target=read, daemon=True).start()
    begin()
    while True:
        try:
            asked: Any = requests.get(timeout=IDLE_S)
        except queue.Empty:
            os._exit(0)
        answers.write(f"{json.dumps(answer(Path(asked)))}\n")
        answers.flush()


if __name__ == "__main__":
    main()
