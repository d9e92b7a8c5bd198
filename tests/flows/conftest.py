"""Flows as plain functions, as DVC runs them: what is tested here is ours, not the engine's start."""

from __future__ import annotations

import os

os.environ["DVC_STAGE"] = "tests"
import flows.compress
import flows.frontier
import flows.promote
import flows.prune
import flows.restore
import flows.rollback  # noqa: F401

del os.environ["DVC_STAGE"]
