"""A known state of torch to begin with, so that the same input gives the same bytes."""

from __future__ import annotations

import torch

from tasks.memory import keep_freed_memory
from tasks.params.settings import Settings


def begin(settings: Settings, offset: int = 0) -> None:
    """Bring torch to a known state: seed, threads, deterministic algorithms, memory. The first line of every step.

    Args:
        settings: Of the run.
        offset: Added to the seed: a number of the step's own.
    """
    keep_freed_memory()
    torch.set_num_threads(settings.run.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(settings.run.seed + offset)
