"""Each measurement has a process of its own, which may hang or die."""

from __future__ import annotations

import math
import os
import time

import pytest

from benchmarks.isolation import run_apart


def test_result_comes_back() -> None:
    assert run_apart(math.hypot, 3.0, 4.0, timeout_s=60, memory_gib=12) == 5.0


def test_hanging_call_is_stopped() -> None:
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="not done after 1 s"):
        run_apart(time.sleep, 300, timeout_s=1, memory_gib=12)
    assert time.monotonic() - begin < 250


def test_death_of_the_process_is_told() -> None:
    with pytest.raises(ChildProcessError, match="code 3"):
        run_apart(os._exit, 3, timeout_s=60, memory_gib=12)


def test_call_that_takes_too_much_memory_does_not_take_it() -> None:
    with pytest.raises(ChildProcessError):
        run_apart(bytes, 40 << 30, timeout_s=60, memory_gib=12)
