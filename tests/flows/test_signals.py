"""A signal that asks for the end: one message, in seconds, whatever the main thread does and whoever catches it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tasks.environment import REPOSITORY

BEGIN = """
import hashlib, os, signal, subprocess, sys, threading, time
from flows import signals
signals.watch("stage", patience_s=1.5)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
def ready():
    print(child.pid, flush=True)
"""
POLITE = """
try:
    ready()
    time.sleep(60)
finally:
    child.kill(); child.wait()
    os.kill(os.getpid(), signal.SIGTERM)  # a second signal doesn't disturb what is done about the first
    time.sleep(0.2)
    print("unwound", flush=True)
"""
SWALLOWED = """
try:
    ready()  # inside the block: the signal comes as soon as it is said
    time.sleep(60)
except BaseException:
    pass
time.sleep(60)
"""
ASKED_AGAIN = """
try:
    ready()
    time.sleep(60)
except BaseException:
    pass
child.kill(); child.wait()
signals.end_if_asked()
time.sleep(60)
"""
IN_A_CALLBACK = """
import weakref
def callback(_):
    ready()
    time.sleep(60)
module = nothing = type("Module", (), {})()
kept = weakref.ref(module, callback)
del module, nothing  # Python prints and drops what a callback raises
child.kill(); child.wait()
signals.end_if_asked()
time.sleep(60)
"""
NATIVE = """
threading.Timer(0.5, ready).start()  # by then the main thread is in native code
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
HANDLER_OF_ANOTHER = """
def handler(number, frame):
    raise RuntimeError("another's")
for number in signals.ASKING:
    signal.signal(number, handler)
try:
    ready()
    time.sleep(60)
except RuntimeError:
    pass
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("work", "forced"),
    [
        (POLITE, False),
        (ASKED_AGAIN, False),
        (IN_A_CALLBACK, False),
        (SWALLOWED, True),
        (NATIVE, True),
        (HANDLER_OF_ANOTHER, True),
    ],
    ids=["polite", "asked again", "in a callback", "swallowed", "native", "handler of another"],
)
def test_process_ends_with_one_message_and_leaves_none_behind(work: str, forced: bool, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + work],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    child = int(process.stdout.readline())
    began = time.monotonic()
    os.killpg(process.pid, number)
    printed, said = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert said == f"\nstage: ended by {number.name}; run the same command again to continue\n"
    assert (printed == "unwound\n") == (work is POLITE)
    assert not psutil.pid_exists(child)
    assert (time.monotonic() - began > 1.4) == forced


NOHUP = """
import os, signal
from flows import signals
signals.watch("stage")
for number in signals.ASKING[::2]:  # the second one, SIGTERM, ends it
    os.kill(os.getpid(), number)
print("goes on", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
signal.pause()
"""


def test_signals_that_were_ignored_at_the_start_stay_so() -> None:
    ignored = [sys.executable, "-c", "import os, signal, sys\nfor number in (1, 2): signal.signal(number, 1)\n"]
    ignored[-1] += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"  # as `nohup COMMAND &` in a script
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*ignored, "-c", NOHUP], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "goes on\n"), done.stderr
    assert done.stderr == "\nstage: ended by SIGTERM; run the same command again to continue\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_that_is_still_being_imported_ends_at_once(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "flows.prepare"],  # says on stderr when it has imported what
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    for line in process.stderr:
        if line.rstrip().endswith("| flows"):
            break
    process.send_signal(number)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    assert said.count(f"prepare: ended by {number.name}; run the same command again to continue") == 1
    assert list(tmp_path.iterdir()) == []
