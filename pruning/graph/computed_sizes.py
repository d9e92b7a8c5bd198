"""Numbers that a model's own code works out and hands to PyTorch: `x.view(n, t, heads, width // heads)`.

No attribute holds such a number, so nothing can be rebound. Where it is the size of an axis that loses channels, the
module of the narrowed model runs with the right number in its place: the function, the line of code and the argument
say where, the rehearsal confirms it. A number that stands in the code as such is its author's, and stays. One that
follows a width and is no size, such as the temperature `width ** -0.5`, keeps the value that it had: the masked model,
as wide as the original, divides by that.
"""

from __future__ import annotations

import ast
import functools
import linecache
import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_INSIDE = (f"{Path(torch.__file__).parent}/", f"{Path(__file__).parent}/", "<")


@dataclass(frozen=True)
class SizeArgument:
    """One call of a function of PyTorch by a model's code.

    Attributes:
        function: Name of the function or method.
        numbers: The integers above 1 among its arguments, with their positions in the flattened arguments.
        floats: Its other numbers, likewise.
        code: The code that calls it.
        instruction: Which instruction of the code.
        ordinal: How many calls of the function on this line came before, since the module was called.
    """

    function: str
    numbers: tuple[tuple[int, int], ...]
    code: CodeType
    instruction: int
    ordinal: int
    floats: tuple[tuple[int, float], ...] = ()

    def worked_out(self) -> list[tuple[int, int]]:
        """The numbers that do not stand in the code as such."""
        literals = _literals(self.code, self.instruction)
        return [(index, value) for index, value in self.numbers if value not in literals.get(index, literals[None])]


# How often each line called each function, since a module was called.
Calls = Counter[tuple[str, str]]


# Methods that give a tensor's values to code outside PyTorch, where no operator shows what becomes of them.
_LEAVING = frozenset({"__array__", "__dlpack__", "numpy", "tolist"})


class Listen(TorchFunctionMode):
    """Know which function of PyTorch a model's code is calling.

    Args:
        calls: One count for each module that is being called, innermost last.
        on_leaving: Told of each tensor whose values are handed to code outside PyTorch, and of the line that does.
    """

    def __init__(self, calls: Sequence[Calls], on_leaving: Callable[[Tensor, str], None]) -> None:
        super().__init__()
        self.calls = calls
        self.on_leaving = on_leaving
        self.current: SizeArgument | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat = list(_flatten((args, kwargs)))
        numbers = tuple((i, v) for i, v in enumerate(flat) if type(v) is int and v > 1)
        floats = tuple((i, v) for i, v in enumerate(flat) if type(v) is float)
        frame, name = calling_frame(), getattr(func, "__name__", "")
        here = (line_of(frame), name)
        ordinal = self.calls[-1][here] if self.calls else 0
        for calls in self.calls:
            calls[here] += 1
        if name in _LEAVING:
            self.on_leaving(args[0], here[0])
        self.current = SizeArgument(name, numbers, frame.f_code, frame.f_lasti, ordinal, floats)
        try:
            return func(*args, **kwargs)
        finally:
            self.current = None


def _flatten(value: Any) -> Iterator[Any]:
    """Yield the arguments of a call, those in shapes, lists and slices one by one."""
    if type(value) in (tuple, list, torch.Size):
        for inner in value:
            yield from _flatten(inner)
    elif type(value) is dict:
        for inner in value.values():
            yield from _flatten(inner)
    elif type(value) is slice:
        yield from (value.start, value.stop, value.step)
    else:
        yield value


def _like(value: Any, flat: Iterator[Any]) -> Any:
    """Build what has the structure of `value` from what `_flatten` gives."""
    if type(value) in (tuple, torch.Size):
        return tuple(_like(inner, flat) for inner in value)
    if type(value) is list:
        return [_like(inner, flat) for inner in value]
    if type(value) is dict:
        return {key: _like(inner, flat) for key, inner in value.items()}
    if type(value) is slice:
        return slice(next(flat), next(flat), next(flat))
    return next(flat)


def calling_frame() -> FrameType:
    """The innermost frame that is neither PyTorch's nor ours."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame = frame.f_back
    return frame


def line_of(frame: FrameType) -> str:
    """File and line of a frame, as reports name it."""
    return f"{_name_of(frame.f_code.co_filename)}:{frame.f_lineno}"


@functools.cache
def _name_of(path: str) -> str:
    return Path(path).name


@functools.cache
def _literals(code: CodeType, instruction: int) -> dict[int | None, set[int]]:
    """The integers that stand in a call's text: by position among the arguments, under None where that isn't known."""
    first, last, start, end = list(code.co_positions())[instruction // 2]
    lines = linecache.getlines(code.co_filename)[(first or 1) - 1 : last]
    if not lines or start is None:
        return {None: set()}
    lines[-1] = lines[-1].encode()[:end].decode()
    lines[0] = lines[0].encode()[start:].decode()
    try:
        call = ast.parse("(" + "".join(lines) + ")", mode="eval").body
    except SyntaxError:
        return {None: set()}
    everywhere = {n.value for n in ast.walk(call) if isinstance(n, ast.Constant) and type(n.value) is int}
    if not isinstance(call, ast.Call):
        return {None: everywhere}
    given = [inner for argument in call.args for inner in _flat(argument)]
    if any(isinstance(argument, ast.Starred) for argument in given):
        return {None: everywhere}
    # A method's tensor comes first among the arguments; the tensor that a function is given stands in its call.
    method = isinstance(call.func, ast.Attribute) and not (
        isinstance(call.func.value, ast.Name) and call.func.value.id in ("torch", "F", "functional")
    )
    found: dict[int | None, set[int]] = {None: everywhere}
    for index, argument in enumerate(given, start=int(method)):
        found[index] = {argument.value} if isinstance(argument, ast.Constant) and type(argument.value) is int else set()
    return found


def _flat(argument: ast.expr) -> Sequence[ast.expr]:
    if isinstance(argument, ast.Tuple | ast.List):
        return [inner for element in argument.elts for inner in _flat(element)]
    return [argument]


# Where a number stands: line of code, function, which of its calls (None: all), position among the flattened arguments.
Spot = tuple[str, str, int | None, int]


class _Correct(TorchFunctionMode):
    def __init__(self, corrections: Sequence[Mapping[Spot, float]]) -> None:
        super().__init__()
        self.corrections = corrections
        self.functions = {function for numbers in corrections for _, function, *_ in numbers}
        self.calls = Calls()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in self.functions:
            here = (line_of(calling_frame()), name)
            flat = list(_flatten((args, kwargs)))
            for numbers in self.corrections:
                for index, value in enumerate(flat):
                    right = numbers.get((*here, None, index)) or numbers.get((*here, self.calls[here], index))
                    found_by_torch = type(value) is int and value <= 0  # -1, as in `view`
                    if type(value) is type(right) and not found_by_torch:
                        flat[index] = right
            self.calls[here] += 1
            args, kwargs = _like((args, kwargs), iter(flat))
        return func(*args, **kwargs)


def correct(module: nn.Module, numbers: Mapping[Spot, float]) -> None:
    """Let a module run with other numbers in place of those that its code works out.

    Args:
        module: Its class becomes one that inherits from its own.
        numbers: The right number of each spot.
    """
    known: tuple[Mapping[Spot, float], ...] = vars(module).get("_corrections", ())
    if not known:
        module.__class__ = _corrected(type(module))  # type: ignore[arg-type]  # classes do hash
    vars(module)["_corrections"] = (*known, dict(numbers))


@functools.cache
def _corrected(cls: type[nn.Module]) -> type[nn.Module]:
    """Make a class that passes for its base: of the same name and signature, and stored as an instance of the base."""

    @functools.wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _Correct(vars(self)["_corrections"]):
            return cls.forward(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: SupportsIndex) -> Any:
        stored: Any = object.__reduce_ex__(self, max(2, operator.index(protocol)))
        return _new_corrected, (cls,), *stored[2:]

    named = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, (cls,), {**named, "forward": forward, "__reduce_ex__": reduce})


def _new_corrected(cls: type[nn.Module]) -> nn.Module:
    corrected = _corrected(cls)  # type: ignore[arg-type]  # classes do hash
    return corrected.__new__(corrected)
