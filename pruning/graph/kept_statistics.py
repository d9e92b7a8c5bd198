"""Run a model whose statistics over some channels (norms, means, variances) are taken over the kept ones alone.

Zeros count in a mean and in a variance, so a model of the original shape whose removed channels are zero computes
another norm than the narrowed model. Here each operator that computes one is given the kept channels alone. Which
operator that is shows where the code calls it: by the module, the line, and the sizes of the axes it computes over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.graph.axes import Atom, Axis, leaves
from pruning.graph.computed_sizes import calling_frame, line_of
from pruning.graph.contexts import module_paths, no_attention_fastpath, whole_operators
from pruning.graph.module_copy import copy_module
from pruning.graph.rules import find_rule
from pruning.graph.rules.call import arguments_of, is_pointwise, operator_name
from pruning.graph.rules.reductions import BATCH_NORMS, NORMS, OVER_KEPT
from pruning.graph.trace import Trace

Site = tuple[str, str, str, int]
"""Path of the module, line of its code (none where that is PyTorch's), operator, and over how many axes it computes."""

KeptMasks = dict[Site, list[list[Tensor | None]]]
"""For each site, for each kind of channels there, which stay: bool [size] for each axis, None where all do."""


def statistics_of(model: nn.Module, traced: Trace) -> dict[Site, list[tuple[Axis, ...]]]:
    """Where a model computes statistics that can be taken over the kept channels, and the axes over which it does."""
    found: dict[Site, list[tuple[Axis, ...]]] = {}
    lines = _with_lines(model)
    for operation in (operation for one in traced.passes for operation in one.operations):
        if operation.name not in OVER_KEPT or not operation.inputs:
            continue
        read = operation.inputs[0]
        over = tuple(axis for axis in read if any(axis is one for one in operation.summed))
        over = read[1:2] if operation.name == "group_norm" else over
        module = operation.place.module
        site = (module, operation.place.line if module in lines else "", operation.name, len(over))
        known = found.setdefault(site, [])
        if not any(_leaves_of(over) == _leaves_of(other) for other in known):
            known.append(over)
    return found


def _with_lines(model: nn.Module) -> set[str]:
    """The paths of modules whose code is not PyTorch's; of the others, the line would be that of some caller."""
    return {path for path, module in model.named_modules() if not type(module).__module__.startswith("torch.")}


def _leaves_of(axes: Sequence[Axis]) -> list[list[Atom]]:
    return [list(leaves(axis)) for axis in axes]


def over_kept(masked: nn.Module, sites: KeptMasks) -> nn.Module:
    """Let a model take statistics over the channels that stay; it computes no gradients from then on.

    Args:
        masked: The model, which gets a class of its own, derived from the one it has.
        sites: Where, and which channels stay.
    """
    kind = type(masked)
    bases = (kind,) if issubclass(kind, _OverKept) else (_OverKept, kind)
    # A class and no attribute: a copy of the model runs with its own parameters, whatever their precision.
    masked.__class__ = type(kind.__name__, bases, {"_sites": sites, "__module__": kind.__module__})
    return masked


def run_alike(model: nn.Module, masked: nn.Module) -> nn.Module:
    """Return a model that calls operators as a masked one does: below autograd, where dropout is taken apart otherwise.

    Args:
        model: It is left as it was; the result shares its parameters.
        masked: Another one. If it takes no statistics over kept channels, the model itself is returned.
    """
    return over_kept(copy_module(model), {}) if isinstance(masked, _OverKept) else model


class _OverKept(nn.Module):
    """A masked model whose statistics are taken over the channels that stay."""

    _sites: KeptMasks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        path: list[str] = []
        with ExitStack() as stack:
            stack.enter_context(module_paths(self, path, [], lambda _called, _caller, _values: None))
            stack.enter_context(no_attention_fastpath())
            stack.enter_context(whole_operators())
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch._C._AutoDispatchBelowAutograd())  # where a norm is one operator, as in the trace
            stack.enter_context(_KeptAlone(self._sites, path, _with_lines(self)))
            return super().__call__(*args, **kwargs)


class _KeptAlone(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Give the operators at some sites the kept channels alone; what a norm gives has zeros for the others."""

    def __init__(self, sites: KeptMasks, path: Sequence[str], lines: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sites = sites
        self._path = path
        self._lines = lines

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "prim" and find_rule(func) is None and not is_pointwise(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if operator_name(func) not in OVER_KEPT:
            return func(*args, **kwargs)
        named = arguments_of(func, args, kwargs)
        x = next(iter(named.values()))
        dims = _dims(operator_name(func), x, named)
        chosen = self._chosen(operator_name(func), [x.shape[dim] for dim in dims])
        at = {dim: mask for dim, mask in zip(dims, chosen, strict=True) if mask is not None}
        if not at:
            return func(*args, **kwargs)
        narrow = _selected(x, at)
        if operator_name(func) not in NORMS:
            return func(narrow, *args[1:], **kwargs) if args else func(**kwargs | {next(iter(named)): narrow})
        return _normalized(func, x, narrow, named, at)

    def _chosen(self, name: str, sizes: Sequence[int]) -> Sequence[Tensor | None]:
        """Which channels stay on each of the axes of these sizes over which an operator computes; None: all do."""
        module = self._path[-1] if self._path else ""
        line = line_of(calling_frame()) if module in self._lines else ""
        for masks in self._sites.get((module, line, name, len(sizes)), ()):
            if all(mask is None or len(mask) == size for mask, size in zip(masks, sizes, strict=True)):
                return masks
        return [None] * len(sizes)


def _dims(name: str, x: Tensor, named: Mapping[str, Any]) -> list[int]:
    """The axes over which a call of an operator computes; of a group norm the channels' axis, which it divides."""
    if name == "group_norm":
        return [1]
    if name in BATCH_NORMS:
        first = [0] if name == "batch_norm" else []
        return [*first, *range(2, x.ndim)] if named.get("training") or named.get("use_input_stats") else []
    if name in NORMS:
        return list(range(x.ndim - len(named["normalized_shape"]), x.ndim))
    given = named.get("dim")
    if given is None or (not isinstance(given, int) and not len(given)):
        return list(range(x.ndim))
    return sorted(dim % max(1, x.ndim) for dim in ([given] if isinstance(given, int) else given))


def _selected(x: Tensor, at: Mapping[int, Tensor]) -> Tensor:
    for dim, mask in at.items():
        x = x.index_select(dim, mask.nonzero().flatten().to(x.device))
    return x


def _normalized(func: Any, x: Tensor, narrow: Tensor, named: dict[str, Any], at: Mapping[int, Tensor]) -> Tensor:
    """Call a norm on what is kept, with the gains and shifts of that, and lay zeros where channels went."""
    if operator_name(func) not in BATCH_NORMS:
        first = 1 if "num_groups" in named else x.ndim - len(named["normalized_shape"])
        for name in ("weight", "bias"):
            if named.get(name) is not None:
                named[name] = _selected(named[name], {dim - first: mask for dim, mask in at.items()})
        if "num_groups" in named:
            for mask in at.values():
                named["num_groups"] = int(mask.reshape(named["num_groups"], -1).any(dim=1).sum())
        else:
            named["normalized_shape"] = narrow.shape[first:]
    out: Tensor = func(narrow, *list(named.values())[1:])
    for dim, mask in at.items():
        shape = [*out.shape[:dim], len(mask), *out.shape[dim + 1 :]]
        out = out.new_zeros(shape).index_copy_(dim, mask.nonzero().flatten().to(out.device), out)
    return out
