"""A known state of torch and of its memory to begin with, so that the same input gives the same bytes.

Every operator asks for megabytes and frees them. What malloc returns to the system comes back page by page, zeroed: a
fifth of the time of evaluating ResNet-20 (docs/log.md).
"""

from __future__ import annotations

import ctypes
import platform
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from tasks.config.schema import Settings

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of mallopt(3)
_KEPT = 2**30  # bytes at the end of the heap
_OF_ITS_OWN = 2**27  # bytes of a tensor that gets memory of its own, and gives all of it back


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Let this process take, for the length of a block, no more memory than is free now: more is a MemoryError.

    Without it the system would end the process, or another one. It counts addresses, of which GPUs take far more than
    memory: not for them.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    largest = psutil.Process().memory_info().vms + psutil.virtual_memory().available
    if before[1] != resource.RLIM_INFINITY:
        largest = min(largest, before[1])
    resource.setrlimit(resource.RLIMIT_AS, (largest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def keep_freed_memory() -> None:
    """Have malloc keep what tensors below 128 MiB free, 1 GiB of it; does nothing where malloc isn't glibc's."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _OF_ITS_OWN)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)


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
