"""Keep the memory that tensors leave behind.

Every operator asks for megabytes and frees them. What malloc returns to the system comes back page by page, zeroed: a
fifth of the time of evaluating ResNet-20 (docs/log.md).
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of mallopt(3)
_KEPT = 2**30  # bytes at the end of the heap
_OF_ITS_OWN = 2**27  # bytes of a tensor that gets memory of its own, and gives all of it back


def keep_freed_memory() -> None:
    """Have malloc keep what tensors below 128 MiB free, 1 GiB of it; does nothing where malloc isn't glibc's."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _OF_ITS_OWN)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
