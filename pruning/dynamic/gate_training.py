"""Train gates towards a number of MACs, measure what they choose, and calibrate them to hit it."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan

import torch
from torch import Tensor

from pruning.dynamic.gates import GatedModel, open_counts
from pruning.errors import TargetError
from pruning.evaluation import device_of, restored_modes
from pruning.structure.cost import Cost

TOLERANCE = 0.02
_CLOSE = 0.004  # calibration goes on until it is below the target by no more
_PASSES = 24
_WIDEST = 64.0  # the largest shift tried; logits lie within a few units of zero


class GateTraining:
    """The penalty on what the gates let through: give `penalty` and `after_step` to `finetune`, and itself as `memory`.

    penalty = weight · (mean MACs of the batch / MACs of the whole − goal)²

    MACs are those of the open channels, and of the gates. The goal goes from where the gates stand to the target over
    the first part of the run (`ramp`).
    """

    def __init__(self, gated: GatedModel, cost: Cost, macs: float, *, weight: float = 100.0, ramp: float = 0.5) -> None:
        self._gated, self._cost = gated, cost
        self._whole = float(cost.macs({}))
        self._target, self._weight, self._ramp = macs / self._whole, weight, ramp
        self._start: float | None = None
        self._passed = 0.0

    def penalty(self) -> Tensor:
        """Return the penalty of the pass that has just run."""
        choices, self._gated.last_choices = self._gated.last_choices, {}
        share = _macs(self._gated, self._cost, choices).mean() / self._whole
        if self._start is None:
            self._start = float(share.detach())
        goal = self._start + (self._target - self._start) * self._passed
        return self._weight * (share - goal).square()

    def after_step(self, step: int, num_steps: int, _rate: float) -> None:
        """Move the goal."""
        self._passed = min(1.0, step / max(1.0, self._ramp * num_steps))

    def state_dict(self) -> dict[str, Tensor]:
        """Return where the gates stood at first, and how far the goal has moved."""
        start = float("nan") if self._start is None else self._start
        return {"progress": torch.tensor([start, self._passed], dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        start, self._passed = state["progress"].tolist()
        self._start = None if isnan(start) else start


@torch.no_grad()
def macs_of_samples(gated: GatedModel, cost: Cost, inputs: Tensor, *, batch_size: int = 256) -> Tensor:
    """Return the MACs of each sample: those of its open channels and of the gates, [N] float64 on the CPU.

    Args:
        gated: run in evaluation mode.
        cost: of the groups of its model.
        inputs: [N, ...].
        batch_size: samples per pass.
    """
    device = device_of(gated)
    with restored_modes(gated):
        gated.eval()
        found = [
            _macs(gated, cost, gated.choose(batch.to(device))[1]).cpu() for batch in torch.split(inputs, batch_size)
        ]
    return torch.cat(found)


def calibrate_gates(gated: GatedModel, cost: Cost, inputs: Tensor, macs: float, *, batch_size: int = 256) -> float:
    """Set the shift of all logits so that the mean MACs over some inputs are at most what is asked for, and near it.

    By bisection; no labels are needed, no weight is changed.

    Args:
        gated: changed in place.
        cost: of the groups of its model.
        inputs: [N, ...].
        macs: mean MACs of a sample.
        batch_size: samples per pass.

    Returns:
        The mean MACs: at most what was asked for, and within 2 % of it.

    Raises:
        TargetError: they can't be met.
    """

    def at(shift: float) -> float:
        gated.shift.fill_(shift)
        return float(macs_of_samples(gated, cost, inputs, batch_size=batch_size).mean())

    tried: dict[float, float] = {}
    low, high, shift = -_WIDEST, _WIDEST, float(gated.shift)
    for _ in range(_PASSES):
        tried[shift] = at(shift)
        if (1 - _CLOSE) * macs <= tried[shift] <= macs:
            break
        if tried[shift] > macs:
            high = shift
        else:
            low = shift
        shift = _between(low, high, shift)
    best = min(tried, key=lambda one: (tried[one] > macs, abs(tried[one] - macs), one))
    gated.shift.fill_(best)
    if not (1 - TOLERANCE) * macs <= tried[best] <= macs:
        raise TargetError(
            f"gates can't bring the mean to {macs:,.0f} MACs: the nearest is {tried[best]:,.0f}. What no gate closes "
            "is computed for every input; ask for more MACs, or let more groups be gated"
        )
    return tried[best]


def _macs(gated: GatedModel, cost: Cost, choices: dict[str, Tensor]) -> Tensor:
    return cost.macs_per_sample(open_counts(choices)) + gated.own_macs


def _between(low: float, high: float, last: float) -> float:
    """Halve the interval; while one end of it is the widest shift, step away from the last, further each time."""
    if low == -_WIDEST or high == _WIDEST:
        step = max(1.0, abs(last))
        return max(low, last - step) if last == high else min(high, last + step)
    return (low + high) / 2
