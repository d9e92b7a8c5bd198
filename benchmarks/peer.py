"""Torch-Pruning on one architecture, with its defaults, judged by the same measure.

What it is given beside the model and example inputs: the rate, the layers that make the model's outputs to be ignored
(by our trace), and the outputs as a plain list of tensors, since it can't read the classes in which some models wrap
them. Head counts are not told to it: this is what it does by itself.

What is compared: it prunes a model whose every value is replaced by its own position, so that the values that are left
say which ones it kept. They are then replaced by the original values at these positions, and the original model, with
zeros at all other positions of its parameters, is the masked one. Where a pruned tensor no longer holds positions, the
comparison is not made and the row says so.
"""

from __future__ import annotations

import time
from copy import deepcopy
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.architectures import Architecture
from benchmarks.measure import (
    RATE,
    TOLERANCE_FLOAT64,
    Measurement,
    in_float64,
    last_lines,
    peak_mb,
    reset_peak,
)
from pruning.containers import Inputs, find_tensors
from pruning.graph.axes import leaves
from pruning.graph.trace import trace
from pruning.plan.verification import TOLERANCE, outputs_of, relative_difference


def measure_peer(architecture: Architecture, fast: bool = False) -> Measurement:
    """Try Torch-Pruning on one architecture; a fast try builds its graph once instead of twice."""
    row = Measurement(architecture.name, "torch-pruning")
    step = "the model itself fails"
    try:
        model = architecture.make()
        example, fresh = architecture.make_inputs(1), architecture.make_inputs(2)
        row.parameters = sum(p.numel() for p in model.parameters())
        expected = outputs_of(model, fresh)
        ignored = _output_layers(model, example)
        step = "fails to build its graph or to prune"
        numbered = deepcopy(model)
        reset_peak()
        begin = time.perf_counter()
        pruner = _make_pruner(numbered, example, ignored)
        _number(numbered)
        row.num_groups = _prune(pruner)
        row.seconds_first, row.peak_mb = time.perf_counter() - begin, peak_mb()
        if not fast:
            again = deepcopy(model)
            begin = time.perf_counter()
            _prune(_make_pruner(again, example, ignored))
            row.seconds_second = time.perf_counter() - begin
        left = sum(p.numel() for p in numbered.parameters())
        row.parameters_removed = 1 - left / row.parameters
        if left == row.parameters:
            row.status = "nothing can be pruned"
            return row
        step = "can't be compared"
        masked, dense = _restore(model, numbered)
        of_masked = outputs_of(masked, fresh)
        row.effect = relative_difference(expected, of_masked)
        step = "the narrowed model fails"
        row.difference = relative_difference(of_masked, outputs_of(dense, fresh))
        if row.difference > TOLERANCE:  # as for our own: rounding vanishes in double precision
            row.difference_float64 = in_float64(masked, dense, fresh)
        same = row.difference <= TOLERANCE or row.difference_float64 <= TOLERANCE_FLOAT64
        row.status = "exact" if same else "differs"
        if same and row.effect < 10 * TOLERANCE:
            row.status = "can't tell, since what was removed changed nothing"
        row.macs_removed = 1 - _macs(dense, fresh) / max(1, _macs(model, fresh))
    except Exception as fault:  # noqa: BLE001 - whatever a model or the tool raises belongs in its row
        row.status = row.status or step
        row.error = last_lines(fault)
    return row


def _output_layers(model: nn.Module, example: Inputs) -> list[str]:
    """The modules that own a parameter along whose first axis an output of the model lies."""
    found: dict[str, None] = {}
    for name, axes in trace(model, example).parameters.items():
        if axes and any(str(atom.frozen).startswith("it is an output") for atom in leaves(axes[0])):
            found[name.rpartition(".")[0]] = None
    return [name for name in found if name]


def _make_pruner(model: nn.Module, example: Inputs, ignored: list[str]) -> Any:
    torch_pruning = import_module("torch_pruning")
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return torch_pruning.pruner.BasePruner(
        model,
        example,
        importance=torch_pruning.importance.RandomImportance(),
        pruning_ratio=RATE,
        ignored_layers=[model.get_submodule(name) for name in ignored],
        output_transform=_tensors,
    )


def _tensors(outputs: Any) -> list[Tensor]:
    return [t for t in find_tensors(outputs) if t.grad_fn is not None]


def _prune(pruner: Any) -> int:
    torch.manual_seed(0)
    count = 0
    for group in pruner.step(interactive=True):
        group.prune()
        count += 1
    return count


def _state(model: nn.Module) -> dict[str, Tensor]:
    """All tensors, tied ones under each of their names, since the tool unties them."""
    named = (
        partial(model.named_parameters, remove_duplicate=False),
        partial(model.named_buffers, remove_duplicate=False),
    )
    return {name: tensor for tensors in named for name, tensor in tensors()}


def _number(model: nn.Module) -> None:
    """Replace every value by its own position, which is exact up to 2**53."""
    for tensor in _state(model).values():
        tensor.data = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)


def _restore(model: nn.Module, numbered: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The original with zeros where a parameter lost values, and the pruned module with its values back."""
    masked = deepcopy(model)
    original, to_mask = _state(model), _state(masked)
    parameters = set(dict(model.named_parameters(remove_duplicate=False)))
    for name, tensor in _state(numbered).items():
        values = original[name].detach()
        positions = tensor.detach().flatten()
        whole = positions.round().long()
        if not torch.equal(whole.double(), positions.double()) or (whole.numel() and whole.max() >= values.numel()):
            raise ValueError(f"{name} no longer holds positions after pruning")
        tensor.data = values.flatten()[whole].reshape(tensor.shape).clone()
        if name in parameters:
            kept = torch.zeros(values.numel(), dtype=torch.bool)
            kept[whole] = True
            to_mask[name].data.mul_(kept.reshape(values.shape))
    return masked, numbered


def _macs(model: nn.Module, inputs: Inputs) -> int:
    with FlopCounterMode(display=False) as counter:
        outputs_of(model, inputs)
    return int(counter.get_total_flops()) // 2
