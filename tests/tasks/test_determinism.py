"""What a process keeps of the memory that its tensors freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_PAGES = """
import resource, sys
import torch
from tasks.determinism import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
for _ in range(20):  # until malloc has found where everything fits
    torch.ones(10 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(10 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is told to keep memory")
def test_memory_that_was_freed_is_not_asked_for_anew() -> None:
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", _PAGES, mode], check=True, capture_output=True).stdout)
        for mode in ("keep", "return")
    )
    assert kept < returned / 5
