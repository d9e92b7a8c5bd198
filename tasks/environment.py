"""Set the environment variables of the outer tools, in this one place: no telemetry, few messages, one home folder.

Imported by `tasks/__init__.py`, so that it runs before Prefect, MLflow or DVC is imported anywhere. A variable that is
already set stays as it is.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from urllib.parse import urlsplit

REPOSITORY = Path(__file__).resolve().parent.parent
"""Where this code lies: a clone, or the environment's site-packages. The project is the current folder."""

THIS_MACHINE = ("127.0.0.1", "localhost", "::1")

DEFAULTS = {
    # Telemetry: Prefect takes 1/true/yes for DO_NOT_TRACK, MLflow only the word true.
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    # Prefect: its own home, time enough to start on a busy machine, and our lines alone on the terminal.
    "PREFECT_HOME": str(Path.cwd() / ".prefect"),
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "secateur,pruning",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",  # what is older than 90 days goes by itself
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # each event that doesn't reach a server would be a line
    "PREFECT_CLIENT_MAX_RETRIES": "3",  # 14 s and not a minute for each request to a server that went away
    # MLflow: no advice, no progress bars of its own, and no long waits for a server that is away.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",  # with the factor: 14 s and not 4 minutes for each request
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes for evaluations that nothing here asks for
    "GIT_PYTHON_REFRESH": "quiet",
    # cuBLAS: a workspace of its own for each stream, or sums come in another order in each run; read as CUDA begins.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}

for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)


def is_installed() -> bool:
    """Say whether this code is installed, and not a clone."""
    return str(REPOSITORY) in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))


def password_file() -> Path:
    """Return the file with the password of this machine's Prefect server, written when that first starts."""
    return Path(os.environ["PREFECT_HOME"]) / "password"


def _tell_password() -> None:
    """Let this process send the password to servers on this machine, and to no others."""
    host = urlsplit(os.environ.get("PREFECT_API_URL", "")).hostname
    if host in THIS_MACHINE and os.access(password_file(), os.R_OK):
        found = password_file().read_text(encoding="utf-8", errors="replace").strip()
        os.environ.setdefault("PREFECT_API_AUTH_STRING", found)


_tell_password()
