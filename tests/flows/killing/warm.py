"""Runs commands as processes of their own without the seconds that imports take: forked from one that has them all.

Each line of the input asks for one, as JSON: `{"run": "flows.compress" or "dvc repro", "environment": {...}, "log":
PATH}`. The answer is two lines: the number of the process, which leads a group of its own, and how it ended.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
from typing import Any, NoReturn

MODULES = (
    *("torch", "onnx", "onnxruntime", "onnxscript", "matplotlib.pyplot", "sqlalchemy", "alembic.command"),
    *("mlflow", "mlflow.onnx", "mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store"),
    *("dvc.repo", "dvc.cli", "dvc.commands.repro", "dvc.stage.run", "dvc_data.index"),
    *("flows.compress", "tasks.registry.register"),
)


def _become(asked: dict[str, Any]) -> NoReturn:
    """Be the command that was asked for."""
    os.setsid()
    out = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, to in ((0, nothing), (1, out), (2, out)):
        os.dup2(to, number)
    os.chdir(os.environ["KILL_ROOT"])  # the folder may be another one by now, of the same name
    os.environ.update(asked["environment"])
    if trace := asked["environment"].get("KILL_TRACE"):
        importlib.import_module("sitecustomize").watch(trace, asked["environment"].get("KILL_POINT", ""))
    code: object = 0
    try:
        if asked["run"] == "dvc repro":
            sys.argv = ["dvc", "repro"]
            code = importlib.import_module("dvc.cli").main(["repro"])
        else:
            sys.argv = [asked["run"]]
            sys.modules.pop(asked["run"], None)
            runpy.run_module(asked["run"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does at its end, which a fork never sees
    atexit._run_exitfuncs()
    os._exit(code if isinstance(code, int) else 1)


def main() -> None:
    """Import everything, then fork for each line."""
    for name in MODULES:
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        number = os.fork()
        if number == 0:
            _become(asked)
        print(number, flush=True)
        _, status = os.waitpid(number, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
