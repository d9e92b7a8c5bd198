"""Parameters that no pass used, and the channels that could reach them on a path that the examples didn't take.

    def forward(self, x, task):                     traced with task "a": nothing tells what heads["b"] reads
        return self.heads[task](self.stem(x))       or gives, so stem's channels stay

A parameter without a use is read, if ever, by code of its own module, or of the nearest one above that was called. What
that code handles is what it computes with itself, and what it gives to other modules or gets from them. Of that, an
axis is suspect if its size fits the parameter's width: the same, a multiple or a part of it (a reshape, a split), or
what is missing of a concatenation. Suspect axes stay whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from pruning.graph.axes import Axis, freeze, leaves
from pruning.graph.dispatch import state_of
from pruning.graph.trace import Trace


def freeze_around_unused(traced: Trace, model: nn.Module) -> None:
    """Freeze what may reach parameters and buffers that no pass used, with their names as the reason."""
    state, reached = state_of(model), traced.reached
    unused: dict[str, list[str]] = {}
    for name, tensor in state.items():
        if name not in reached and (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel() > 1:
            unused.setdefault(_caller(name, traced.called), []).append(name)
    handled = {path: list(_handled(traced, path)) for path in unused}
    for path, names in unused.items():
        sizes = {axis.size for axis in handled[path]}
        for axis in handled[path]:
            if any(not atom.frozen and atom.size > 1 for atom in leaves(axis)):
                near = [name for name in names if _fits(axis.size, sizes, *_widths(model, name))]
                if near:
                    freeze(axis, _reason(near))


def _reason(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return (
        f"it may reach {', '.join(names[:2])}{more}, which no example used: give a further example that does "
        "(a list of examples), or say ignore_unused=True if nothing ever does"
    )


def _caller(name: str, called: set[str]) -> str:
    """The innermost module around a parameter that a pass called."""
    path = name.rpartition(".")[0]
    while path and path not in called:
        path = path.rpartition(".")[0]
    return path


def _handled(traced: Trace, path: str) -> Iterator[Axis]:
    """What the code of a module computes with, gives to other modules and gets from them, each axis once."""
    seen: set[int] = set()
    for axis in (axis for part in traced.passes for axis in _in_pass(part, path)):
        if id(axis) not in seen and axis.size > 1:
            seen.add(id(axis))
            yield axis


def _in_pass(traced: Trace, path: str) -> Iterable[Axis]:
    yield from traced.handed.get(path, {}).values()
    for operation in traced.operations:
        if operation.place.module == path:
            for axes in (*operation.inputs, *operation.outputs):
                yield from axes


def _widths(model: nn.Module, name: str) -> tuple[set[int], set[int]]:
    """What a parameter may read, and what it may give; both where its layer doesn't tell them apart."""
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, nn.Linear):
        return {owner.in_features}, {owner.out_features}
    if isinstance(owner, nn.modules.conv._ConvNd):
        return {owner.in_channels}, {owner.out_channels}
    shape = set(state_of(model)[name].shape)
    return shape, shape


def _fits(size: int, sizes: set[int], read: set[int], given: set[int]) -> bool:
    whole = any(width > 1 and width % size == 0 for width in read | given)
    part = any(width > 1 and size % width == 0 for width in read)
    joined = any(width - size in sizes for width in read) or any(size - width in sizes for width in given)
    return whole or part or joined
