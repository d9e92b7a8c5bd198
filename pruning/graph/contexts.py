"""The conditions under which a forward pass is watched; each leaves the process as it was."""

from __future__ import annotations

import functools
import gc
import logging
import random
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.evaluation import restored_modes
from pruning.graph.computed_sizes import Calls

OnModule = Callable[[str, str, Any], None]
_CODE = (ModuleType, FunctionType, BuiltinFunctionType, CodeType, FrameType, type)

# Every fake tensor that the passes of one search made.
_made: ContextVar[list[weakref.ref[Tensor]]] = ContextVar("made")

_keepers: list[weakref.ref[Any]] = []  # the caches that kept a tensor of some pass: most likely to keep one of the next


def remember(tensor: Tensor) -> None:
    """Note a fake tensor, so that `no_leftovers` can tell whether something keeps it."""
    _made.get([]).append(weakref.ref(tensor))


@contextmanager
def no_leftovers() -> Iterator[None]:
    """Empty, at the end, the caches of functions that kept a tensor of some pass: fake ones must not outlive it.

    A fault that the model may raise is to be caught within the block: what its traceback holds would be taken for kept,
    and looked for in all objects of the process, which takes a second.
    """
    token = _made.set([])
    apart = gc.get_freeze_count() == 0
    if apart:  # what was there before isn't looked at by any collection: half a second where much is imported
        gc.freeze()
    try:
        yield
    finally:
        made = _made.get()
        _made.reset(token)
        if any(tensor() is not None for tensor in made):
            gc.collect()
        if any(tensor() is not None for tensor in made):
            _clear_caches(made, [cache for keeper in _keepers if (cache := keeper()) is not None])
        if apart:
            gc.unfreeze()
        if any(tensor() is not None for tensor in made):
            caches = [thing for thing in gc.get_objects() if type(thing) is functools._lru_cache_wrapper]
            _keepers.extend(weakref.ref(cache) for cache in _clear_caches(made, caches))


def _clear_caches(made: Sequence[weakref.ref[Tensor]], caches: Sequence[Any]) -> list[Any]:
    """Empty the caches that keep a tensor, and return them."""
    kept = {id(tensor) for reference in made if (tensor := reference()) is not None}
    keepers = [cache for cache in caches if _may_keep(cache) and _reaches(cache, kept)]
    for cache in keepers:
        cache.cache_clear()
    return keepers


def _reaches(cache: Any, wanted: set[int]) -> bool:
    """Say whether what a cache keeps leads to one of these objects; code leads everywhere, and is left out."""
    own = (id(cache.__wrapped__), id(cache.__dict__))
    seen: set[int] = set()
    ahead = [thing for thing in gc.get_referents(cache) if id(thing) not in own]
    while ahead:
        thing = ahead.pop()
        if id(thing) in wanted:
            return True
        if id(thing) not in seen and not isinstance(thing, _CODE):
            seen.add(id(thing))
            ahead += gc.get_referents(thing)
    return False


def _may_keep(cache: Any) -> bool:
    """Say whether a cache holds anything, and isn't one of torch's own."""
    return cache.cache_info().currsize > 0 and str(getattr(cache, "__module__", "")).partition(".")[0] != "torch"


@contextmanager
def in_mode(model: nn.Module, training: bool, *, small_batches: bool = True) -> Iterator[None]:
    """Set all modules to training or eval mode, and back to what each was.

    Args:
        model: Any module.
        training: Which of the two.
        small_batches: Let norms take statistics of one value, which is no error where nothing is computed.
    """
    functional: Any = nn.functional
    verify = functional._verify_batch_size
    if small_batches:
        functional._verify_batch_size = lambda _size: None
    try:
        with restored_modes(model):
            model.train(training)
            yield
    finally:
        functional._verify_batch_size = verify


@contextmanager
def seeded() -> Iterator[None]:
    """Let a pass that draws random numbers (layers dropped at random) take the same path every time."""
    python, array = random.getstate(), np.random.get_state()
    with forked_torch():
        random.seed(0)
        np.random.seed(0)
        seed_torch()
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


def forked_torch() -> AbstractContextManager[None]:
    """Leave PyTorch's generators as they are now: the CPU's, and those of all GPUs if any is in use."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return torch.random.fork_rng(devices=devices)


def seed_torch() -> None:
    """Seed PyTorch as `torch.manual_seed(0)` does; that keeps a traceback for every kind of device that isn't there."""
    if torch.accelerator.is_available():
        torch.manual_seed(0)
    else:
        torch.default_generator.manual_seed(0)


@contextmanager
def whole_operators() -> Iterator[None]:
    """Under deterministic algorithms PyTorch resizes by indexing, except on the CPU; here resizing arrives whole."""
    before, lenient = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=lenient)


@contextmanager
def quiet(name: str, level: int = logging.CRITICAL) -> Iterator[None]:
    """Let a logger pass on nothing below a level."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def no_attention_fastpath() -> Iterator[None]:
    """Keep attention off its fused path, which is one opaque operator."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def module_paths(model: nn.Module, path: list[str], calls: list[Calls], on_module: OnModule) -> Iterator[None]:
    """Keep the paths of the modules that are being called in `path`, innermost last, and a count for each.

    Args:
        model: What is run.
        path: The paths.
        calls: The counts.
        on_module: Told of each call when it ends: the module's path, its caller's, arguments and result.
    """
    names = {id(module): name for name, module in model.named_modules()}

    def enter(module: nn.Module, _args: Any) -> None:
        path.append(names.get(id(module), path[-1] if path else ""))
        calls.append(Calls())

    def leave(_module: nn.Module, *values: Any) -> None:  # arguments and result; after a fault no keyword arguments
        called = path.pop()
        calls.pop()
        on_module(called, path[-1] if path else "", values)

    hooks = [
        torch.nn.modules.module.register_module_forward_pre_hook(enter),
        torch.nn.modules.module.register_module_forward_hook(leave, with_kwargs=True, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
            # PyTorch leaves this behind, and then warns at every compiled model that the process has global hooks.
            torch.nn.modules.module._global_forward_hooks_with_kwargs.pop(hook.id, None)
