"""What training leaves on a model: what is looked through, and what has to be removed first, by which call.

Looked through, because the module inside computes the same function: `nn.DataParallel`, `DistributedDataParallel` and
what `torch.compile` returns. Names in plans and masks are those of the module inside, and `narrow` returns a narrowed
module inside, without a wrapper.

Left as it is, because it does no harm: hooks that copies carry along, autocast inside `forward`, kept activations and
other tensors that hold a graph (copies hold them without their graph), inference tensors, `model.compile()` (copies
aren't compiled), weights that a parametrization or a hook computes (`torch.nn.utils.weight_norm`, `spectral_norm`).

Named, because nothing exact could be said of it as it is: the rest of the table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.prune import BasePruningMethod

from pruning.containers import closed_over
from pruning.errors import ModelError

_SHOWN = 5
_NO_FUNCTIONS = {"_parameters", "_buffers", "_modules", "_compiled_call_impl"}  # the last one isn't copied


@dataclass(frozen=True)
class _Remnant:
    """One kind of thing that training leaves on a module.

    Attributes:
        what: What the place says of itself.
        find: Yields the name of each attribute of a module that is one; "" for the module itself. It is given the ids
            of all modules, parameters and buffers of the model too.
        remedy: The call that removes it; {module} and {name} stand for where it was found.
    """

    what: str
    find: Callable[[nn.Module, Collection[int]], Iterator[str]]
    remedy: str


def _pruned(module: nn.Module, _own: Collection[int]) -> Iterator[str]:
    """Weights with a mask: criteria would score what the mask hides."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            yield hook._tensor_name


def _uninitialized(module: nn.Module, _own: Collection[int]) -> Iterator[str]:
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    if any(nn.parameter.is_lazy(tensor) for tensor in own):
        yield ""


def _scripted(module: nn.Module, _own: Collection[int]) -> Iterator[str]:
    if isinstance(module, torch.jit.ScriptModule):
        yield ""


def _sharded(module: nn.Module, _own: Collection[int]) -> Iterator[str]:
    """FSDP in both its forms, known by name: importing it is slow and not possible everywhere."""
    classes = {f"{cls.__module__}.{cls.__name__}" for cls in type(module).__mro__}
    tensors = {f"{type(p).__module__}.{type(p).__name__}" for p in module.parameters(recurse=False)}
    if (
        any(name.startswith("torch.distributed.fsdp.") for name in classes)
        or "torch.distributed.tensor.DTensor" in tensors
    ):
        yield ""


def _captured(module: nn.Module, own: Collection[int]) -> Iterator[str]:
    """Hooks and other functions that a module holds and that captured a part of the model.

    Copies follow methods, objects and `functools.partial`; a function itself is never copied, and with it what it
    captured: a copy would run, and train, the original's layers.
    """
    for name, value in vars(module).items():
        if name not in _NO_FUNCTIONS and _captures(value, own, set()):
            yield name


def _captures(value: Any, own: Collection[int], seen: set[tuple[int, bool]], by: bool = False) -> bool:
    """Whether a value, or what a function in it (`by`) closes over, has as a default or reads as a global, is own."""
    if id(value) in own:
        return by
    if (id(value), by) in seen:
        return False
    seen.add((id(value), by))
    if isinstance(value, FunctionType):
        if any(id(value.__globals__.get(name)) in own for name in value.__code__.co_names):
            return True
        inner, by = (*closed_over(value), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()), True
    elif isinstance(value, MethodType):
        inner = (value.__self__,)
    elif isinstance(value, partial):
        inner = (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, Mapping):
        inner = tuple(value.values())
    else:
        inner = tuple(value) if isinstance(value, list | tuple | set) else ()
    return any(_captures(one, own, seen, by) for one in inner)


def _wrappers() -> dict[type, str]:
    """Return what is looked through, with the attribute that holds the module inside.

    What `torch.compile` returns is among it once that was called: until then its module, which takes a third as long to
    import as torch itself, isn't there.
    """
    compiled = getattr(sys.modules.get("torch._dynamo"), "OptimizedModule", None)
    known: dict[type, str] = {nn.DataParallel: "module", DistributedDataParallel: "module"}
    return known if compiled is None else {**known, compiled: "_orig_mod"}


_REMNANTS = (
    _Remnant(
        "carries a mask of torch.nn.utils.prune", _pruned, "call torch.nn.utils.prune.remove({module}, {name!r}) first"
    ),
    _Remnant(
        "is a lazy layer that has not run, and so has no size yet",
        _uninitialized,
        "call the model once on the example inputs first",
    ),
    _Remnant(
        "is a TorchScript module, which holds no Python code to follow",
        _scripted,
        "pass the module that torch.jit.script or torch.jit.trace was given; script or trace the narrowed one",
    ),
    _Remnant(
        "holds a function that captured a part of the model, which it would go on to use where the model is copied",
        _captured,
        "remove it (a hook by its handle's remove()), or let it be a method, or a functools.partial that gives the "
        "module to a function: copies follow these",
    ),
    _Remnant(
        "is a module whose parameters FSDP has cut up",
        _sharded,
        "load its full state dict (torch.distributed.checkpoint.state_dict.get_model_state_dict with "
        "StateDictOptions(full_state_dict=True)) into a module without FSDP, and pass that",
    ),
)


def unwrap(model: nn.Module) -> nn.Module:
    """Look through what training wraps around a model, and refuse what has to be removed first.

    Returns:
        The module inside; the model itself where nothing is wrapped around it.

    Raises:
        ModelError: Something in it has to be removed first; the text says what, where and by which call.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{type(model).__name__} is no nn.Module; pass the module itself, not a function that calls it"
        )
    while (inside := next((name for cls, name in _wrappers().items() if isinstance(model, cls)), None)) is not None:
        model = getattr(model, inside)
    own = {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())}
    faults: list[str] = []
    whole: set[tuple[str, _Remnant]] = set()  # modules that are one themselves: it needn't be said of their parts
    for path, module in model.named_modules():
        for remnant in _REMNANTS:
            if any((above, remnant) in whole for above in _above(path)):
                continue
            for name in remnant.find(module, own):
                if not name:
                    whole.add((path, remnant))
                place = _expression(model, path)
                faults.append(
                    f"{place}{f'.{name}' if name else ''} {remnant.what}: "
                    f"{remnant.remedy.format(module=place, name=name)}"
                )
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ModelError(f"{type(model).__name__} can't be pruned as it is: {'; '.join(faults[:_SHOWN])}{more}")
    return model


def _above(path: str) -> Iterator[str]:
    """Yield the paths of the modules that hold a module; the model's own is empty."""
    while path:
        path = path.rpartition(".")[0]
        yield path


def wrappers_inside(model: nn.Module) -> str:
    """Advise to remove wrappers around parts of a model, which may be why it fails; empty where there are none."""
    found = [
        f"{_expression(model, path)} = {_expression(model, path)}.{inside}"
        for path, module in model.named_modules()
        for cls, inside in _wrappers().items()
        if path and isinstance(module, cls)
    ]
    return f" It holds wrapped parts; try without: {', '.join(found[:_SHOWN])}." if found else ""


def _expression(model: nn.Module, path: str) -> str:
    """The Python expression for a part of `model`, as in model.features[0]."""
    if not path:
        return "model"
    before, _, part = path.rpartition(".")
    owner = dict(model.named_modules())[before]
    item = repr(part) if isinstance(owner, nn.ModuleDict) else part
    return _expression(model, before) + (f"[{item}]" if part.isdigit() or item != part else f".{part}")
