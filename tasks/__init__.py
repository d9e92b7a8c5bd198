"""The steps of the pipeline: load, one call into `pruning`, save, record."""

import tasks.environment  # noqa: F401  # before any outer tool is imported: it switches their telemetry off
