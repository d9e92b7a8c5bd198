"""Tensors in values of any kind: what a model is given, and what it returns, may hold them in any container."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from inspect import Parameter, signature
from numbers import Number
from types import CodeType, FrameType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pruning.errors import DataError, ModelError, describe, pass_on

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a model is given: a tensor, a tuple of arguments, or a dict of keyword arguments; or a list of examples."""

Iterators = Literal["consume", "leave", "refuse"]

_FIRST_NAMES = ("logits", "out", "output", "predictions")
_DEEPEST = 100  # containers within each other
_MOST = 1_000_000  # values

# Values that are looked at no further: what has no tensors, and what leads to the rest of the program.
_PLAIN = (
    *(str, bytes, bytearray, memoryview, range, Number, type, ModuleType, CodeType, FrameType, io.IOBase),
    *(np.ndarray, np.generic, torch.dtype, torch.device, torch.Generator, nn.Module),
)


def find_tensors(value: Any, *, by_value: bool = False, iterators: Iterators = "consume") -> list[Tensor]:
    """Find the tensors that a value holds, each once, in the order in which it holds them.

    Looked through are dictionaries, whatever can be iterated over (generators too, which are used up by it), attributes
    and slots of any object, and what a function has closed over; but no modules, so no parameters.

    Args:
        value: Any value, which may hold itself.
        by_value: Order what is in sets, which have no order of their own, by what the tensors hold.
        iterators: What to do with those, which are used up where they are looked into.

    Raises:
        ModelError: The value has no end or is nested too deeply; or it holds an iterator that is to be refused.
    """
    found: dict[int, Tensor] = {}
    for tensor in _Search(by_value, iterators).tensors(value, 0):
        found.setdefault(id(tensor), tensor)
    return list(found.values())


def outputs_in(model: nn.Module, result: Any, *, by_value: bool = False) -> list[Tensor]:
    """Find the tensors in what a model returned.

    Raises:
        ModelError: There is none, so that there is nothing to keep whole and nothing to compare.
    """
    found = find_tensors(result, by_value=by_value)
    if not found:
        raise ModelError(
            f"{type(model).__name__} returns {_described(result)}, in which no tensor is found: nothing could be kept "
            "whole as an output, and nothing compared. Let forward return its tensors, in whatever container"
        )
    return found


def main_output(outputs: Any) -> Tensor:
    """Return the tensor that a loss reads: the outputs themselves, their `logits` or `out`, or the first of several.

    Args:
        outputs: A tensor, a mapping or dataclass (as the models of transformers and torchvision give them), or a tuple.

    Raises:
        ModelError: It holds none by these rules.
    """
    if isinstance(outputs, Tensor):
        return outputs
    parts = _parts_by_name(outputs) or {}
    if not parts and isinstance(outputs, Sequence) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0]
    for name in _FIRST_NAMES:
        if isinstance(found := parts.get(name), Tensor):
            return found
    tensors = [value for value in parts.values() if isinstance(value, Tensor)]
    if len(tensors) == 1 or (tensors and hasattr(outputs, "_asdict")):
        return tensors[0]
    held = f"{type(outputs).__name__} of {', '.join(map(str, parts)) or 'no tensors'}"
    raise ModelError(
        f"the model returned a {held}; the loss reads one tensor: one named {', '.join(_FIRST_NAMES)}, or the first of "
        "a tuple. Name a task of your own, whose loss and predict pick it"
    )


def _parts_by_name(value: Any) -> Mapping[str, Any] | None:
    """Return what a mapping, a dataclass or a namedtuple holds; None where it is none of these."""
    if isinstance(value, Mapping):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if hasattr(value, "_asdict"):  # a namedtuple
        found: Mapping[str, Any] = value._asdict()
        return found
    return None


INPUT, OUTPUT = "input", "output"
"""What the only input, and the only output, is called where nothing names it."""


def named_inputs(inputs: Inputs, model: nn.Module | None = None) -> dict[str, Tensor]:
    """Return the tensors that a model is given by name, in the order of its `forward`.

    Args:
        inputs: A tensor, which is called `input`; a tuple, whose tensors are called as `forward` calls them, or
            `input_0`, `input_1` …; or a dict, whose keys are the names.
        model: Whose `forward` is looked at; None to go without.

    Raises:
        ModelError: They are anything else, or hold something that is no tensor.
    """
    taken = _parameters_of(model)
    if isinstance(inputs, Tensor):
        parts: dict[str, Any] = {INPUT: inputs}
    elif isinstance(inputs, Mapping):
        given = list(inputs)
        order = sorted(given, key=lambda name: taken.index(name) if name in taken else len(taken) + given.index(name))
        parts = {str(name): inputs[name] for name in order}
    elif isinstance(inputs, tuple) and inputs:
        names = taken[: len(inputs)]
        if len(names) < len(inputs):
            names = [f"{INPUT}_{place}" for place in range(len(inputs))]
        parts = dict(zip(names, inputs, strict=True))
    else:
        raise ModelError(f"a model is given {_described(inputs)}; expected a tensor, a tuple of tensors, or a dict")
    for name, part in parts.items():
        if not isinstance(part, Tensor):
            raise ModelError(f"input {name!r} is {_described(part)}; expected a tensor")
    return parts


def _parameters_of(model: nn.Module | None) -> list[str]:
    """Return the names of the arguments that `forward` takes by position; none where they can't be read."""
    if model is None:
        return []
    try:
        found = signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [one.name for one in found if one.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.POSITIONAL_ONLY)]


def described_inputs(inputs: Inputs) -> str:
    """Write shapes and types of what a model is given, with the names of several."""
    named = named_inputs(inputs)
    texts = {name: f"{list(one.shape)} of {str(one.dtype).removeprefix('torch.')}" for name, one in named.items()}
    return texts[INPUT] if isinstance(inputs, Tensor) else ", ".join(f"{name} {one}" for name, one in texts.items())


def check_names(model: nn.Module, inputs: Inputs, known_as: str | None = None) -> None:
    """See that a model's `forward` takes the inputs that are given by name, and lacks none.

    Args:
        model: What takes them.
        inputs: Those of a batch.
        known_as: What the data call the only input, which the model is given by position.

    Raises:
        ModelError: It doesn't, or it takes another one first.
    """
    try:
        taken = signature(model.forward)
    except ValueError:  # it can't be read
        return
    if known_as in taken.parameters and known_as != (first := next(iter(taken.parameters))):
        raise ModelError(
            f"the data give {known_as!r} alone, and a single input is given by position, where the model's forward "
            f"takes {first!r}; wrap the model so that its forward takes {known_as!r} first"
        )
    if not isinstance(inputs, Mapping):
        return
    try:
        taken.bind(**inputs)
    except TypeError as fault:
        known = [name for name, one in taken.parameters.items() if one.kind not in _ANY_NUMBER]
        raise ModelError(
            f"the data give {', '.join(inputs)}, the model's forward takes {', '.join(known)}: {fault}. Name them "
            "alike, in the data set, its collate_fn or the unpack of a task of your own, and leave out what isn't taken"
        ) from fault


_ANY_NUMBER = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def named_outputs(outputs: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors that a model gave by name, in its order, and what it gave beside them.

    A single tensor is called `output`; of a mapping, dataclass or namedtuple the keys are the names, of a tuple or list
    `output_0`, `output_1` …; the names of what lies deeper are joined by dots. None is nothing.

    Returns:
        The tensors; and the types of objects, by name, that are not looked into, such as a cache of keys and values.

    Raises:
        ModelError: There is a number, a text or an array among them, or no tensor at all.
    """
    found: dict[str, Tensor] = {}
    others: dict[str, str] = {}

    def look(value: Any, name: str, depth: int) -> None:
        if isinstance(value, Tensor):
            if name in found:
                raise ModelError(f"the model gave two outputs that are called {name!r}; name them differently")
            found[name] = value
        elif value is not None:
            parts = _parts_by_name(value)
            if parts is None and isinstance(value, tuple | list):
                parts = {f"{OUTPUT}_{place}" if not name else str(place): one for place, one in enumerate(value)}
            if parts is not None and depth < _DEEPEST:
                for key, part in parts.items():
                    look(part, f"{name}.{key}" if name else str(key), depth + 1)
            elif isinstance(value, _PLAIN):
                what = f"output {name!r}" if name else "what the model gave"
                raise ModelError(f"{what} is {_described(value)}; expected tensors: return it as one, or leave it out")
            else:
                others[name or OUTPUT] = type(value).__qualname__

    look(outputs, OUTPUT if isinstance(outputs, Tensor) else "", 0)
    if list(found) == [f"{OUTPUT}_0"]:
        found = {OUTPUT: found[f"{OUTPUT}_0"]}
    if not found:
        raise ModelError(f"the model gave {_described(outputs)}, in which there is no tensor; expected its outputs")
    return found, others


def with_tensors(value: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    """Copy a value with other tensors in it, one for each; what holds none stays the same object.

    Raises:
        ModelError: It holds an iterator, which could be read only once; or it can't be copied.
    """
    made: dict[int, Tensor] = {}

    def other(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = replace(tensor)
        return made[id(tensor)]

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return other(leaf)
        inner = find_tensors(leaf, iterators="refuse")
        if not inner:
            return leaf
        try:
            return deepcopy(leaf, {id(tensor): other(tensor) for tensor in inner})
        except Exception as fault:
            pass_on(fault)
            raise ModelError(
                f"the inputs hold tensors in {_described(leaf)}, which can't be copied: {describe(fault)}. "
                "Give them in what copy.deepcopy can copy"
            ) from fault

    return tree_map(copy, value)


def as_call(example: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turn one example (a tensor, a tuple of arguments, or a dict of keyword arguments) into args and kwargs.

    Raises:
        ModelError: It is something else.
    """
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, tuple):
        return tuple(example), {}
    raise ModelError(
        f"an example is a tensor, a tuple of arguments or a dict of keyword arguments; found {type(example).__name__}. "
        "A list holds several examples; for a model whose one argument is a list, give a tuple with the list inside"
    )


def count_samples(inputs: Any) -> int:
    """Return how many samples inputs hold: what all their tensors have on axis 0.

    Raises:
        DataError: They hold no tensor, or tensors of different lengths.
    """
    tensors = find_tensors(inputs, iterators="refuse")
    lengths = {tensor.shape[:1] for tensor in tensors}
    if len(lengths) != 1 or () in lengths:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "none"
        raise DataError(
            f"samples lie along axis 0 of every tensor that a model is given, as many in each; found shapes {shapes}. "
            "Repeat for each sample what all of them share, or let the model hold it"
        )
    return int(tensors[0].shape[0])


def take(inputs: Any, index: slice | Tensor, device: torch.device | None = None) -> Any:
    """Return some of the samples in inputs of any kind, along axis 0 of every tensor."""
    return with_tensors(inputs, lambda tensor: tensor[index] if device is None else tensor[index].to(device))


def in_batches(inputs: Any, size: int) -> list[Any]:
    """Return inputs of any kind in batches of so many samples, the last one of what is left."""
    return [take(inputs, slice(start, start + size)) for start in range(0, count_samples(inputs), size)]


@dataclass
class _Search:
    by_value: bool
    iterators: Iterators
    seen: dict[int, Any] = field(default_factory=dict)  # kept alive: an id belongs to a living object
    count: int = 0

    def tensors(self, value: Any, depth: int) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
            return
        self.count += 1
        if depth > _DEEPEST or self.count > _MOST:
            limit = f"nested more than {_DEEPEST} deep" if depth > _DEEPEST else f"more than {_MOST:,} values"
            raise ModelError(f"looking for tensors in {_described(value)} has no end: {limit}; give and return less")
        if value is None or isinstance(value, _PLAIN) or id(value) in self.seen:
            return
        self.seen[id(value)] = value
        if isinstance(value, Iterator) and self.iterators == "leave":
            return
        if isinstance(value, Iterator) and self.iterators == "refuse":
            raise ModelError(
                f"the inputs hold {_described(value)}, which can be read only once, and a model is run several times; "
                "give a list or a tuple instead"
            )
        if isinstance(value, Set):
            members = [list(self.tensors(member, depth + 1)) for member in value]
            for member in sorted(members, key=lambda m: [*map(_content, m)]) if self.by_value else members:
                yield from member
        else:
            for inner in _inside(value):
                yield from self.tensors(inner, depth + 1)


def _inside(value: Any) -> Iterator[Any]:
    """Yield what a value holds: what its attributes and slots hold, and what iterating over it gives."""
    if isinstance(value, FunctionType):
        yield from closed_over(value)
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield inner
    elif isinstance(value, Iterable):
        yield from value
    yield from getattr(value, "__dict__", {}).values()
    for kind in type(value).__mro__:
        for member in vars(kind).values():
            if isinstance(member, MemberDescriptorType):
                try:
                    yield member.__get__(value)
                except AttributeError:  # a slot that holds nothing
                    continue


def closed_over(function: FunctionType) -> Iterator[Any]:
    """Yield what a function has closed over."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that has no value yet
            continue


def _content(tensor: Tensor) -> tuple[Any, ...]:
    plain = tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)
    return (tuple(tensor.shape), str(tensor.dtype), float(plain.abs().sum()), float(plain.real.sum()))


def _described(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__qualname__}"


def check_count(inputs: Any, expected: int) -> int:
    """See that none was dropped or doubled, where inputs are plain tensors."""
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
    for part in parts:
        if isinstance(part, Tensor) and part.shape[:1] != (expected,):
            raise DataError(
                f"collate_fn gave a tensor {list(part.shape)} of {expected} samples; expected as many on its first axis"
            )
    return expected
