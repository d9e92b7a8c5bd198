"""What the outer tools add to the stages themselves stays within its bound."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.orchestration import NOTHING_CHANGED_S, SHARE, measure
from tests.clone import Clone

TOOLS_S = 9.0
"""What DVC's ten commits, MLflow's run and the registration may cost, of processor time: 4 to 6 s were measured."""


@pytest.mark.slow
def test_flow_takes_little_longer_than_its_stages_called_as_functions(new_clone: Callable[[], Clone]) -> None:
    """In processor time: by the clock it is as long as whatever else runs on the machine makes it."""
    plain, flow = new_clone(), new_clone()
    cost = measure(plain.root, flow.root, flow.environment)
    print(cost)
    assert plain.hashes() == flow.hashes()
    assert cost.flow.processor_s < cost.plain.processor_s * (1 + SHARE) + TOOLS_S
    assert cost.again.processor_s < NOTHING_CHANGED_S
    assert (flow.root / "mlflow.db").exists()
    assert not (plain.root / "mlflow.db").exists()
