"""What a process keeps of the memory that its tensors freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_PAGES = """
import os, resource
import torch
from tasks.determinism import keep_freed_memory
first = os.fork()
if first == 0:
    keep_freed_memory()
else:
    os.waitpid(first, 0)
for _ in range(10):  # until malloc has found where everything fits
    torch.ones(10 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(10 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is told to keep memory")
def test_memory_that_was_freed_is_not_asked_for_anew() -> None:
    done = subprocess.run([sys.executable, "-c", _PAGES], check=True, capture_output=True)
    kept, returned = map(int, done.stdout.split())
    assert kept < returned / 5
