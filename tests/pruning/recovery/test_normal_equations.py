"""Normal equations lie where the layer lies: the meta device stands for a GPU, and is not to be mixed with the CPU."""

from __future__ import annotations

import pytest
import torch

from pruning.recovery.normal_equations import Equations


def test_sums_stay_on_the_device_of_the_rows_in_float64() -> None:
    device = torch.device("meta")
    columns, outputs = torch.empty(40, 2, 6, device=device), torch.empty(40, 2, 3, device=device)
    equations = Equations.none(2, 6, 3, device).plus(columns, outputs, outputs)
    equations = equations.joined(equations)
    moments = equations.moments
    found = [moments.gram, moments.total, moments.mean(), equations.second, equations.covariance, equations.cross]
    found += [equations.residual, equations.target_squared, *equations.nothing()]
    assert {one.device for one in found} == {device}
    assert {one.dtype for one in found} == {torch.float64}
    with pytest.raises(RuntimeError, match="device"):
        Equations.none(2, 6, 3).plus(columns, outputs, outputs)
