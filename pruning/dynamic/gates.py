"""Dynamic pruning: for each input, a gate per group chooses which of its channels count; how gates are trained.

    what the group's first layer reads ─► global average pool ─► linear ─► > 0 ─► 1 or 0 per channel
                                                                                     │
    what each consumer of the group reads ───────────────────────────────────────────×

A closed channel is zero for every layer that reads it, so that the output is that of the model with the channel
removed. A gate serves all producers of its group. The gates start open, and learn by straight-through gradients.

What runs on a dense runtime computes closed channels all the same: MACs are saved where the runtime skips them.

Sources: Gao et al. 2018, arXiv 1810.05331 (channels chosen from the pooled input; theirs keeps a fixed number and
scales, ours opens any number); Veit & Belongie 2018, arXiv 1711.11503, and Bejnordi et al. 2020, arXiv 1907.06627
(hard gates, with a target on their mean); Bengio et al. 2013, arXiv 1308.3432 (straight-through).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import isnan
from typing import Any

import torch
from torch import Tensor, nn

from pruning.batches import Batches, Samples, as_batches
from pruning.dynamic.routing import Route, find_routes
from pruning.errors import ModelError, TargetError
from pruning.evaluation import device_of, restored_modes
from pruning.graph.groups import Groups
from pruning.graph.module_copy import copy_whole
from pruning.importance import score_channels
from pruning.plan.constraints import Entry
from pruning.plan.masks import masks_of
from pruning.plan.plan import Cost
from pruning.statistics.collect import collect

_SPREAD = 2.0  # of the first logits over a group's channels
_LEAST = 0.1  # the first logit of the least important channel


class Gate(nn.Module):
    """Choose channels from a layer's input."""

    def __init__(self, num_inputs: int, importance: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(num_inputs, len(importance))
        ranks = torch.argsort(torch.argsort(importance, stable=True)).to(torch.float32)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.copy_(_LEAST + _SPREAD * ranks / len(ranks))

    def forward(self, pooled: Tensor, shift: Tensor) -> Tensor:
        """Return 1 for each open channel and 0 for each closed one, [N, channels].

        While training, the gradient is that of the sigmoid.
        """
        logits: Tensor = self.linear(pooled) + shift
        hard = (logits > 0).to(logits.dtype)
        if not self.training:
            return hard
        soft = torch.sigmoid(logits)
        return soft + (hard - soft).detach()


class GatedModel(nn.Module):
    """A model with a gate on some of its groups; it takes one tensor of inputs.

    Attributes:
        model: the model itself, which knows nothing of its gates.
        gates: one for each of `names`.
        names: the groups that have a gate.
        shift: added to every logit; `calibrate_gates` sets it.
        last_choices: in training mode, what the last pass chose.
    """

    def __init__(self, groups: Groups, routes: Sequence[Route]) -> None:
        super().__init__()
        self.model = copy_whole(groups.model)
        self.names = tuple(route.group for route in routes)
        self._routes = tuple(routes)
        known = collect(groups, {"weights"})
        scores = (score_channels("l2_norm", groups[name], known) for name in self.names)
        self.gates = nn.ModuleList(Gate(route.num_inputs, score) for route, score in zip(routes, scores, strict=True))
        self.shift: Tensor
        self.register_buffer("shift", torch.zeros(()))
        for position, route in enumerate(routes):
            for number, reader in enumerate(route.readers):
                if reader.channels is not None:
                    self.register_buffer(f"_at_{position}_{number}", reader.channels, persistent=False)
        self.last_choices: dict[str, Tensor] = {}

    def forward(self, inputs: Tensor) -> Any:
        """Run the model with its gates."""
        outputs, choices = self.choose(inputs)
        if self.training:
            self.last_choices = choices
        return outputs

    def choose(self, inputs: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """Run the model, and say what the gates chose: for each group [N, channels] of ones and zeros."""
        choices: dict[str, Tensor] = {}
        with self._gated(choices):
            outputs = self.model(inputs)
        return outputs, choices

    @property
    def own_macs(self) -> int:
        """MACs of the gates themselves, per sample."""
        return sum(gate.linear.weight.numel() for gate in self.gates if isinstance(gate, Gate))

    @contextmanager
    def _gated(self, choices: dict[str, Tensor]) -> Iterator[None]:
        handles = []
        for position, route in enumerate(self._routes):
            for number, reader in enumerate(route.readers):
                module = self.model.get_submodule(reader.module)
                handles.append(module.register_forward_pre_hook(partial(self._close, choices, position, number)))
        # Hooks run in this order, so that no choice is made from a channel that another gate has closed.
        for position, route in enumerate(self._routes):
            source = self.model.get_submodule(route.source)
            handles.append(source.register_forward_pre_hook(partial(self._open, choices, position)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _open(self, choices: dict[str, Tensor], position: int, _module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs, route = args[0], self._routes[position]
        extents = [axis for axis in range(1, inputs.ndim) if axis != route.axis]
        pooled = inputs.mean(dim=extents) if extents else inputs
        choices[route.group] = self.gates[position](pooled, self.shift)

    def _close(
        self, choices: dict[str, Tensor], position: int, number: int, _module: nn.Module, args: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        route = self._routes[position]
        reader, chosen = route.readers[number], choices[route.group]
        if reader.channels is not None:
            at = getattr(self, f"_at_{position}_{number}")
            chosen = torch.where(at < 0, torch.ones_like(chosen[:, :1]), chosen[:, at.clamp(min=0)])
        shape = [-1 if axis in (0, reader.axis) else 1 for axis in range(args[0].ndim)]
        shape[reader.axis] = chosen.shape[1]
        return (args[0] * chosen.reshape(shape), *args[1:])


def add_gates(
    groups: Groups, *, names: Sequence[str] | None = None, ignore: Sequence[Entry] = ()
) -> tuple[GatedModel, dict[str, str]]:
    """Put a gate on every group that can have one.

    Args:
        groups: found on the model, which is copied.
        names: the groups to gate; by default all that can be.
        ignore: names, prefixes or patterns of modules or parameters whose groups get no gate.

    Returns:
        The gated model, which computes what the model computes as long as all gates are open; and for each group that
        has no gate the reason.

    Raises:
        ModelError: no group can have a gate, or one of `names` can't.
        SettingsError: an entry of `ignore` matches nothing.
    """
    routes, reasons = find_routes(groups, ignore)
    if names is not None:
        missing = [
            f"{name}: {reasons.get(name, 'the model has no such group')}" for name in names if name not in routes
        ]
        if missing:
            raise ModelError(f"these groups can't have a gate: {'; '.join(missing)}")
        routes = {name: routes[name] for name in names}
    if not routes:
        told = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:6]) or "there is no group"
        raise ModelError(f"no group of {type(groups.model).__name__} can have a gate ({told})")
    gated = GatedModel(groups, tuple(routes.values()))
    device = next(groups.model.parameters()).device
    return gated.to(device).train(groups.model.training), reasons


@torch.no_grad()
def run_masked(gated: GatedModel, groups: Groups, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Run a gated model, and for each sample its model with the channels masked that the gates close for that sample.

    Args:
        gated: in evaluation mode.
        groups: found on its model.
        inputs: [N, ...], few: each sample takes a masked copy of the model.

    Returns:
        The outputs of both, [N, ...]. They agree, so that what `Cost` says of the open channels is what removing the
        others would leave.
    """
    outputs, choices = gated.choose(inputs)
    alone = []
    for index in range(len(inputs)):
        kept = {groups.atom(name): chosen[index].cpu() > 0 for name, chosen in choices.items()}
        masked = copy_whole(gated.model)
        for name, mask in masks_of(groups, kept).items():
            masked.get_parameter(name).mul_(mask.to(inputs.device))
        alone.append(masked(inputs[index : index + 1]))
    return outputs, torch.cat(alone)


def open_counts(choices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return how many channels of each group each sample opens, [N] float64."""
    return {name: chosen.sum(dim=1, dtype=torch.float64) for name, chosen in choices.items()}


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
def macs_of_samples(
    gated: GatedModel, cost: Cost, inputs: Batches | Samples | Tensor, *, batch_size: int = 256
) -> Tensor:
    """Return the MACs of each sample: those of its open channels and of the gates, [N] float64 on the CPU.

    Args:
        gated: run in evaluation mode.
        cost: of the groups of its model.
        inputs: samples, or a tensor [N, ...].
        batch_size: samples per pass.
    """
    device = device_of(gated)
    with restored_modes(gated):
        gated.eval()
        found = [
            _macs(gated, cost, gated.choose(batch.to(device).inputs)[1]).cpu()
            for batch in as_batches(inputs).ordered(batch_size)
        ]
    return torch.cat(found)


def calibrate_gates(
    gated: GatedModel, cost: Cost, inputs: Batches | Samples | Tensor, macs: float, *, batch_size: int = 256
) -> float:
    """Set the shift of all logits so that the mean MACs over some inputs are at most what is asked for, and near it.

    By bisection; no labels are needed, no weight is changed.

    Args:
        gated: changed in place.
        cost: of the groups of its model.
        inputs: samples, or a tensor [N, ...].
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
