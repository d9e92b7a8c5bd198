"""Try one architecture in this process: find its groups, remove 30 % of each, compare narrowed with masked."""

from __future__ import annotations

import re
import resource
import time
import traceback
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pruning
from benchmarks.architectures import Architecture
from pruning.containers import Inputs, with_tensors
from pruning.errors import VerificationError
from pruning.graph.axes import SINGLE, leaves
from pruning.graph.equation import EXTENT
from pruning.plan.other_sizes import difference_elsewhere
from pruning.plan.verification import TOLERANCE, outputs_of, relative_difference

RATE = 0.3
TOLERANCE_FLOAT64 = 1e-8
_ENDS = ("it is an input", "it is an output")
_NORMS = re.compile(r"norm|mean|var|std")


@dataclass
class Measurement:
    """What was seen of one architecture; `status` is "exact" or says what went wrong."""

    name: str
    engine: str = "secateur"
    status: str = ""
    error: str = ""
    parameters: int = 0
    num_groups: int = 0
    layer_share: float = float("nan")
    layer_share_aside: float = float("nan")  # streams aside; with streams, what lies between inputs and outputs
    parameters_removed: float = float("nan")
    macs_removed: float = float("nan")
    difference: float = float("nan")
    difference_float64: float = float("nan")
    difference_elsewhere: float = float("nan")
    elsewhere: str = ""
    others: int = 0  # inputs of other sizes that the model takes
    effect: float = float("nan")
    seconds_first: float = float("nan")
    seconds_second: float = float("nan")
    peak_mb: float = float("nan")
    unknown_operators: dict[str, list[str]] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return asdict(self)


def measure(architecture: Architecture, fast: bool = False, streams: bool = False) -> Measurement:
    """Try the engine on one architecture.

    Args:
        architecture: Which.
        fast: Whether to trace it once instead of twice.
        streams: Whether residual streams are offered too.
    """
    row = Measurement(architecture.name, "secateur-streams" if streams else "secateur")
    step = "the model itself fails"
    try:
        model = architecture.make()
        example, fresh = architecture.make_inputs(1), architecture.make_inputs(2)
        row.parameters = sum(p.numel() for p in model.parameters())
        expected = outputs_of(model, fresh)
        if not all(bool(torch.isfinite(t).all()) for t in expected if t.is_floating_point()):
            row.error = "its outputs are not finite"
            row.status = step
            return row
        step = "find_groups raised"
        reset_peak()
        begin = time.perf_counter()
        groups = pruning.find_groups(model, example, allow_mixed=streams)
        plan = random_plan(groups)
        row.seconds_first = time.perf_counter() - begin
        row.peak_mb = peak_mb()
        if not fast:
            begin = time.perf_counter()
            random_plan(pruning.find_groups(model, example, allow_mixed=streams))
            row.seconds_second = time.perf_counter() - begin
        _describe(row, model, groups)
        if not len(groups):
            row.status = "nothing can be pruned"
            return row
        step = "cost raised"
        row.parameters_removed = 1 - pruning.count_parameters(groups, plan) / pruning.count_parameters(groups)
        row.macs_removed = 1 - pruning.count_macs(groups, plan) / max(1, pruning.count_macs(groups))
        step = "apply_masks raised"
        masked = pruning.apply_masks(model, plan, groups=groups)
        of_masked = outputs_of(masked, fresh)
        row.effect = relative_difference(expected, of_masked)
        step = "narrow raised"
        dense = pruning.narrow(model, plan, example, groups=groups, verify=False)
        step = "the narrowed model fails"
        row.difference = relative_difference(of_masked, outputs_of(dense, fresh))
        if row.difference > TOLERANCE:  # rounding vanishes in double precision, a fault doesn't
            row.difference_float64 = in_float64(masked, dense, fresh)
        same = row.difference <= TOLERANCE or row.difference_float64 <= TOLERANCE_FLOAT64
        step = "inputs of another size raised"
        row.difference_elsewhere, row.elsewhere, row.others = difference_elsewhere(masked, dense, example)
        if same and row.effect < 10 * TOLERANCE:
            row.status = "can't tell, since what was removed changed nothing"
        elif same and not row.difference_elsewhere <= TOLERANCE:
            said = "refused, for" if _refuses(model, plan, example, groups) else "differs on"
            row.status = f"{said} inputs of shapes {row.elsewhere}"
        elif same:
            row.status = "exact"
            counted, real = pruning.count_parameters(groups, plan), sum(p.numel() for p in dense.parameters())
            if counted != real:
                row.status = f"exact, but {real} parameters where {counted} were counted"
        else:
            row.status = "differs"
    except Exception as fault:  # noqa: BLE001 - whatever a model raises belongs in its row
        row.status = step
        row.error = last_lines(fault)
    return row


def _refuses(model: nn.Module, plan: pruning.Plan, example: Inputs, groups: pruning.Groups) -> bool:
    """Say whether `narrow` finds by itself that the narrowed network differs."""
    try:
        pruning.narrow(model, plan, example, groups=groups)
    except VerificationError:
        return True
    return False


def random_plan(groups: pruning.Groups, rate: float = RATE, seed: int = 0) -> pruning.Plan:
    """Choose round(rate × size) random channels of every group; tied groups lose equal counts."""
    generator = torch.Generator().manual_seed(seed)
    counts: dict[str, int] = {}
    for group in groups:
        tied = [group.name, *(name for name in group.ties if name in groups)]
        count = min(min(round(rate * groups[name].size), groups[name].size - 1) for name in tied)
        counts[group.name] = count - count % group.multiple
    removed = {
        group.name: torch.randperm(group.size, generator=generator)[: counts[group.name]].tolist() for group in groups
    }
    return pruning.Plan.of(groups, removed)


def _describe(row: Measurement, model: nn.Module, groups: pruning.Groups) -> None:
    row.num_groups = len(groups)
    row.unknown_operators = groups.unknown_operators
    report = groups.report()
    total = prunable = aside = 0
    streams = groups.trace.allow_mixed
    for name, parameter in layer_parameters(model).items():
        total += parameter.numel()
        if report[name].prunable:
            prunable += parameter.numel()
            continue
        atoms = [atom for axis in groups.trace.parameters[name] for atom in leaves(axis)]
        normed = [not streams and any(_NORMS.search(why) for why in atom.mixed) for atom in atoms]
        excused = all(n or _excused(atom.frozen) for n, atom in zip(normed, atoms, strict=True))
        # With streams, what lies between inputs and outputs alone; not what an operator works along, as gMLP's tokens.
        between = streams and any((atom.frozen or "").startswith(_ENDS) for atom in atoms)
        set_aside = excused and (between or any(normed))
        if set_aside:
            aside += parameter.numel()
        why = "; ".join(report[name].reasons) or "its extents are no channels"
        text = ("[aside] " if set_aside else "") + re.sub(r"\d+", "#", why)
        row.reasons[text] = row.reasons.get(text, 0) + parameter.numel()
    row.layer_share = prunable / total if total else float("nan")
    row.layer_share_aside = prunable / (total - aside) if total > aside else float("nan")


def _excused(frozen: str | None) -> bool:
    """Whether an axis stays whole in any tool: an input or output of the model, an extent, a single channel."""
    return frozen in (EXTENT, SINGLE) or bool(frozen and frozen.startswith(_ENDS))


def layer_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights and biases of convolution, linear, attention and recurrent layers, by name."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNBase, nn.Bilinear)
    found: dict[str, nn.Parameter] = {}
    names = {id(p): name for name, p in model.named_parameters()}
    for module in model.modules():
        if isinstance(module, kinds) or type(module).__name__ == "Conv1D":  # transformers' linear layer
            # With what is below: a parametrized weight lies in a module of its own.
            found.update({names[id(p)]: p for p in module.parameters()})
    return found


def in_float64(masked: nn.Module, dense: nn.Module, inputs: Any) -> float:
    """The difference in double precision, where a difference that is rounding vanishes; NaN where it can't be run."""

    def widen(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    try:
        wide = with_tensors(inputs, widen)
        return relative_difference(
            outputs_of(deepcopy(masked).double(), wide), outputs_of(deepcopy(dense).double(), wide)
        )
    except Exception:  # noqa: BLE001 - some models insist on float32
        return float("nan")


def last_lines(fault: Exception) -> str:
    """An exception's text and the innermost lines of code that raised it."""
    frames = [f"{Path(f.filename).name}:{f.lineno} {f.line}" for f in traceback.extract_tb(fault.__traceback__)[-4:]]
    return f"{type(fault).__name__}: {str(fault)[:600]} | {' < '.join(reversed(frames))}"


def reset_peak() -> None:
    """Forget the largest resident memory of this process so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mb() -> float:
    """The largest resident memory of this process since the last reset, in megabytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # no Linux: of the process's whole life
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), float("nan"))
