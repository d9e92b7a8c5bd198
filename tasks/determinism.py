"""Bring torch and its memory to a known state, so that the same input gives the same bytes.

Every operator allocates megabytes and frees them. Memory that malloc returns to the system comes back page by page,
zeroed, which costs a fifth of the time of evaluating ResNet-20 (docs/log.md).
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
    """Limit this process, within a block, to the memory that is free now; more raises a MemoryError.

    Without the limit the system would kill this process or another one. The limit counts address space, of which GPUs
    reserve far more than they use, so it isn't set for them.
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
    """Make malloc keep up to 1 GiB that tensors below 128 MiB have freed; does nothing if malloc isn't glibc's."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _OF_ITS_OWN)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)


def begin(settings: Settings, offset: int = 0) -> None:
    """Bring torch to a known state: seed, threads, deterministic algorithms, memory. Every step calls this first.

    On a GPU, float32 is computed as such: TensorFloat-32, which torch takes for convolutions unless told otherwise,
    keeps 10 bits of the mantissa, and what is proven here to 1e-4 would not hold. An operator for which there is no
    deterministic kernel is run all the same, and torch's warning names it.

    Args:
        settings: Of the run.
        offset: Added to the seed: a number of the step's own.
    """
    keep_freed_memory()
    torch.set_num_threads(settings.run.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(settings.run.seed + offset)
