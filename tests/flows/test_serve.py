"""One `serve` at a time."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from flows.serve import stay_alone
from flows.servers import Programs, ServiceError


def test_second_one_is_refused_until_the_first_has_stopped(tmp_path: Path) -> None:
    first, second = Programs(tmp_path), Programs(tmp_path)
    stay_alone(first)
    gc.collect()
    with pytest.raises(ServiceError, match=r"another `secateur serve` holds"):
        stay_alone(second)
    first.stop()
    stay_alone(second)
    second.stop()
