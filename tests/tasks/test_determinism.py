"""What a process keeps of the memory that its tensors freed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from tasks.config.schema import Settings
from tasks.determinism import begin

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


def test_float32_is_computed_as_such_whatever_was_allowed_before() -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    settings = Settings.model_validate(
        {
            "data": {"factory": "zoo.datasets:digits"},
            "model": {"factory": "zoo.models:resnet20"},
            "baseline": {"recipe": {}},
            "prune": {"target": {"mac_reduction": 0.5}},
        }
    )
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = True
        begin(settings)
        assert (cudnn.allow_tf32, matmul.allow_tf32) == (False, False)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
        torch.use_deterministic_algorithms(False)


def test_cublas_is_told_to_sum_in_one_order_unless_the_user_says_otherwise() -> None:
    code = "import os, tasks; print(os.environ['CUBLAS_WORKSPACE_CONFIG'])"
    for given, expected in (({}, ":4096:8"), ({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, ":16:8")):
        others = {name: one for name, one in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=others | given, check=True, capture_output=True, text=True
        )
        assert done.stdout.strip() == expected
