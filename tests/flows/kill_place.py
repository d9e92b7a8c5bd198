"""A project that is put back, run, killed and resumed at one place, by commands that need no time to start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.clone import MEASURED, Clone
from tests.flows.kill_points import STATES, Point

KILLER = Path(__file__).parent / "killing"
_HALF_WRITTEN = {
    "RWLock-file '.dvc/tmp/rwlock'. JSON structure is corrupted": ".dvc/tmp/rwlock",
    "'./dvc.lock' validation failed": "dvc.lock",
}
"""What `dvc repro` says of its own files that it was killed while it wrote, and which file it means."""


class Warm:
    """Starts commands as processes of their own, forked from one that has imported everything: see `killing/warm.py`.

    Attributes:
        log: What the last one printed.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self.log = log

    def run(self, command: str, environment: Mapping[str, str]) -> int:
        """Run `dvc repro` or a module to its end; return its code, or the negative number of the signal."""
        self.start(command, environment)
        return self.wait()

    def start(self, command: str, environment: Mapping[str, str]) -> int:
        """Start it, and return the number of its process and of the group that it leads."""
        assert self._process.stdin
        asked = {"run": command, "environment": dict(environment), "log": str(self.log)}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def wait(self) -> int:
        """Wait for the one that was started."""
        return int(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()


@contextmanager
def warm(clone: Clone, log: Path) -> Iterator[Warm]:
    """Give what starts commands in a clone."""
    process = subprocess.Popen(
        [sys.executable, str(KILLER / "warm.py")],
        cwd=clone.root,
        env=clone.environment
        | {
            "PYTHONPATH": f"{clone.root}{os.pathsep}{KILLER}",
            "KILL_ROOT": str(clone.root),
            "DVC_SITE_CACHE_DIR": str(log.parent / "dvc"),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    try:
        yield Warm(process, log)
    finally:
        process.kill()
        process.wait()


class Place:
    """One folder for every point, so that no address in MLflow's store differs: a project that can be put back."""

    def __init__(self, clone: Clone, states: Path, commands: Warm) -> None:
        self.clone = clone
        self._commands = commands
        self.trace = states / "trace"
        self._states = states
        self.num_events: dict[str, int] = {}
        self.num_steps: dict[str, int] = {}
        self.took_s: dict[str, float] = {}
        self.expected: dict[str, Any] = {}
        self._heard = {"KILL_TRACE": str(self.trace)}

    def make_states(self) -> None:
        """Run the pipeline undisturbed, stage by stage, and keep a copy of what there is before each."""
        for done, stage in zip(STATES, (*STATES[1:], "compress"), strict=True):
            self._restart(done, keep=True)
            began = time.monotonic()
            self.finish(f"flows.{stage}")
            self.took_s[done] = time.monotonic() - began
            self.num_events[done] = len(self.heard())
            self.num_steps[done] = self.heard().count("step training")
        self.expected = self.found()

    def put_back(self, state: str) -> None:
        """Make the folder what it was when a stage had finished."""
        shutil.rmtree(self.clone.root)
        shutil.copytree(self._states / state, self.clone.root, symlinks=True)
        self._restart(state)

    def _restart(self, state: str, *, keep: bool = False) -> None:
        self.trace.unlink(missing_ok=True)
        if keep:
            shutil.copytree(self.clone.root, self._states / state, symlinks=True)

    def heard(self) -> list[str]:
        """Return the events since the folder was put back."""
        return self.trace.read_text(encoding="utf-8").splitlines()

    def kill(self, point: Point, seed: int) -> str:
        """Run until the point and kill; return where that was."""
        command = "dvc repro" if point.killed == "repro" else "flows.compress"
        random = Random(seed)
        if "moment" in point.name:
            return self._kill_at(random.uniform(0.0, self.took_s[point.after]), command)
        at = point.at or f"{random.randrange(1, self.num_events[point.after])} any"
        more = {"KILL_POINT": at} | ({"KILL_ALONE": "1"} if point.alone else {})
        code = self._commands.run(command, self._heard | more)
        assert code == (255 if point.alone else -signal.SIGKILL), f"it ended by itself before {at!r}"
        return at.removesuffix(" any") + (f": {self.heard()[-1]}" if at.endswith("any") else "")

    def _kill_at(self, moment: float, command: str) -> str:
        number = self._commands.start(command, self._heard)
        time.sleep(moment)
        os.killpg(number, signal.SIGKILL)
        assert self._commands.wait() == -signal.SIGKILL, f"it had ended by itself after {moment:.1f} s"
        return f"{moment:.1f} s after the start"

    def finish(self, command: str) -> str:
        """Run a command to its end; return what it printed."""
        code = self._commands.run(command, self._heard)
        printed = self._commands.log.read_text(encoding="utf-8", errors="replace")
        assert code == 0, f"{command} ended with {code}\n{printed}"
        return printed

    def resume(self, entrance: str) -> None:
        """Finish through an entrance; after `dvc repro` the flow has only to register."""
        if entrance == "flow":
            self.finish("flows.compress")
            return
        if self._commands.run("dvc repro", self._heard) != 0:
            printed = self._commands.log.read_text(encoding="utf-8")
            (found,) = [name for fault, name in _HALF_WRITTEN.items() if fault in printed]
            (self.clone.root / found).unlink()  # as the guide says; a flow does it by itself
            self.finish("dvc repro")
        assert "every stage is current: nothing to run" in self.finish("flows.compress")

    def found(self) -> dict[str, Any]:
        """Return everything that is the same every time."""
        root, rows = self.clone.root, self.clone.recorded
        lock = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))
        for stage in ("benchmark", "report"):
            lock["stages"][stage].pop("outs")
        lock["stages"]["report"]["deps"] = [
            found for found in lock["stages"]["report"]["deps"] if found["path"] != "artifacts/latency"
        ]
        places = [path for folder in ("data", "artifacts") for path in (root / folder).rglob("*") if path.is_file()]
        places = [path for path in places if path.name != ".last_run.json"]  # times of files, to spare a look into them
        volatile = (*MEASURED, "artifacts/.lock")
        files = {path.relative_to(root).as_posix(): sha256(path.read_bytes()).hexdigest() for path in places}
        (record,) = (root / "mlartifacts").rglob("record.json")
        recorded = json.loads(record.read_text(encoding="utf-8"))
        for folder in ("artifacts/latency", "artifacts/report"):
            recorded["outputs"].pop(folder)
        del recorded["tree"], recorded["patch_sha256"]  # of dvc.lock too, which isn't committed
        (source,) = rows("select storage_location from model_versions")
        model = Path(source[0].removeprefix("file://")) / "model.onnx"
        return {
            "files": {name: "" if name.startswith(volatile) else found for name, found in files.items()},
            "dvc.lock": lock,
            "Git": self.clone.run("git", "status", "--porcelain"),
            "record": recorded,
            "registered file": sha256(model.read_bytes()).hexdigest(),
            "experiments": rows("select name, lifecycle_stage from experiments order by 1"),
            "runs": rows("select name, status, lifecycle_stage from runs"),
            "metrics": rows("select key, step, value, count(*) from metrics group by 1, 2, 3 order by 1, 2, 3"),
            "settings": rows("select key, value from params order by 1"),
            "versions": rows("select name, version, current_stage, status from model_versions"),
            "aliases": rows("select name, alias, version from registered_model_aliases"),
            "tags": rows(
                "select key, value from model_version_tags "
                "where key not in ('secateur.dvc_lock_sha256', 'secateur.record_sha256') order by 1"
            ),
        }
