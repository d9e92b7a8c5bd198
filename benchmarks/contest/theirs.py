"""Torch-Pruning's entries: its criteria by its own pruner, at the channel sparsity that comes nearest to the target."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from benchmarks.contest.networks import Attention
from benchmarks.contest.ours import MAX_SPARSITY, better, distilling
from benchmarks.contest.terms import Entry, Pruned, Terms, macs
from pruning.recovery.calibrate import recalibrate

TOOL = "torch-pruning"
_BISECTIONS = 10

# Its name for each criterion, arguments, and what it has to see first: a batch's gradients, or each sample's.
_CRITERIA: dict[str, tuple[str, dict[str, Any], str]] = {
    "magnitude_l1": ("MagnitudeImportance", {"p": 1}, ""),
    "magnitude_l2": ("MagnitudeImportance", {"p": 2}, ""),
    "group_magnitude_l1": ("GroupMagnitudeImportance", {"p": 1}, ""),
    "group_magnitude_l2": ("GroupMagnitudeImportance", {"p": 2}, ""),
    "bn_scale": ("BNScaleImportance", {}, ""),
    "lamp": ("LAMPImportance", {}, ""),
    "fpgm": ("FPGMImportance", {}, ""),
    "taylor": ("TaylorImportance", {}, "batch"),
    "group_taylor": ("GroupTaylorImportance", {}, "batch"),
    "group_hessian": ("GroupHessianImportance", {}, "samples"),
}
_LOOKED_AT = 64  # samples whose gradients it sees


def entries() -> list[Entry]:
    """List ten of its criteria, each fine-tuned plainly, and with our distillation."""
    plain = [Entry(TOOL, name, partial(_by_criterion, name)) for name in _CRITERIA]
    return [*plain, *(Entry(TOOL, f"{name}, distilled", partial(_distilled, name)) for name in _CRITERIA)]


def _distilled(name: str, terms: Terms, baseline: nn.Module, seed: int, reduction: float) -> Pruned:
    """The same, fine-tuned as our default is."""
    found = _by_criterion(name, terms, baseline, seed, reduction)
    return replace(found, recipe=distilling(terms), teacher=baseline)


def _by_criterion(name: str, terms: Terms, baseline: nn.Module, seed: int, reduction: float) -> Pruned:
    """One criterion, by the better of its two ways: the same share in every layer, and one threshold for all."""
    found: list[Pruned | None] = []
    faults: list[Exception] = []
    for everywhere in (False, True):
        try:
            model = _to_target(terms, reduction, partial(_pruned, name, terms, baseline, seed, everywhere))
        except Exception as fault:  # noqa: BLE001 - one of its ways may fail where the other works
            faults.append(fault)
            continue
        narrowed = deepcopy(model)
        recalibrate(model, terms.seen, num_samples=len(terms.unlabelled))
        found.append(Pruned(model, narrowed, note="global" if everywhere else "local"))
    if not found:
        raise faults[0]
    return better(terms, found[0], found[1] if len(found) > 1 else None)


def _to_target(terms: Terms, reduction: float, prune: Callable[[float], nn.Module]) -> nn.Module:
    """Bisect the channel sparsity; return the model nearest to the target that has reached it within half a percent."""
    low, high, whole = 0.0, 1.0, macs(prune(0.0), terms)
    best: tuple[float, nn.Module] | None = None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        model = prune(middle)
        removed = 1 - macs(model, terms) / whole
        if removed >= reduction - 0.005:
            high = middle
            if best is None or removed < best[0]:
                best = (removed, model)
        else:
            low = middle
    if best is None:
        raise ValueError(f"no channel sparsity reaches {reduction:.0%}")
    return best[1]


def _pruned(name: str, terms: Terms, baseline: nn.Module, seed: int, everywhere: bool, share: float) -> nn.Module:
    torch_pruning = import_module("torch_pruning")
    kind, arguments, looks_at = _CRITERIA[name]
    torch.manual_seed(seed)
    model = deepcopy(baseline)
    importance = getattr(torch_pruning.importance, kind)(**arguments)
    pruner = torch_pruning.pruner.BasePruner(
        model,
        terms.data.test.inputs[:1],
        importance=importance,
        global_pruning=everywhere,
        pruning_ratio=share,
        max_pruning_ratio=MAX_SPARSITY if everywhere else 1.0,
        ignored_layers=[next(layer for layer in reversed(list(model.modules())) if isinstance(layer, nn.Linear))],
        num_heads={layer.qkv: layer.heads for layer in model.modules() if isinstance(layer, Attention)},
    )
    if looks_at:
        _show_gradients(model, importance, terms, looks_at)
    pruner.step()
    return model


def _show_gradients(model: nn.Module, importance: Any, terms: Terms, looks_at: str) -> None:
    inputs, targets = (part[:_LOOKED_AT] for part in (terms.seen.inputs, terms.seen.targets))
    model.eval().zero_grad()
    if looks_at == "batch":
        torch.autograd.backward(nn.functional.cross_entropy(model(inputs), targets))
        return
    importance.zero_grad()
    for single, target in zip(torch.split(inputs, 1), torch.split(targets, 1), strict=True):
        model.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(single), target))
        importance.accumulate_grad(model)
