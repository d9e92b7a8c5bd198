"""Where a group can be gated: which layer's input a choice is made from, and which layers read the gated channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import ModelError
from pruning.evaluation import restored_modes
from pruning.graph.axes import leaves
from pruning.graph.groups import Group, Groups
from pruning.plan.constraints import Entry, groups_in
from pruning.statistics.collector import unowned
from pruning.statistics.module_hooks import module_channels, owner_of

_SAMPLES = 3  # a number that hardly is another axis's size by accident


@dataclass(frozen=True)
class Reader:
    """A layer that reads a group.

    Attributes:
        module: its path.
        axis: of the channels, in what it reads.
        channels: the group's channel at each index of that axis, or -1; None where the two are the same.
    """

    module: str
    axis: int
    channels: Tensor | None


@dataclass(frozen=True)
class Route:
    """How one group is gated.

    Attributes:
        group: its name.
        source: path of the layer from whose input the gate chooses.
        axis: of the channels of that input.
        num_inputs: channels of that input.
        readers: the layers that read the group.
    """

    group: str
    source: str
    axis: int
    num_inputs: int
    readers: tuple[Reader, ...]


@dataclass(frozen=True)
class _Read:
    """What a layer was given in a forward pass of `_SAMPLES` samples."""

    order: int
    shape: tuple[int, ...]
    times: int


def find_routes(groups: Groups, ignore: Sequence[Entry] = ()) -> tuple[dict[str, Route], dict[str, str]]:
    """Return the routes of all groups that can be gated, and for each other group why it can't.

    Raises:
        ModelError: the model takes something else than one tensor with the samples on axis 0.
        SettingsError: an entry of `ignore` matches nothing.
    """
    ignored = groups_in(groups, ignore, "ignore")
    reads = _run(groups)
    routes: dict[str, Route] = {}
    reasons: dict[str, str] = {}
    for group in groups:
        found = f"ignored by {ignored[group.name]!r}" if group.name in ignored else _route(groups, group, reads)
        if isinstance(found, Route):
            routes[group.name] = found
        else:
            reasons[group.name] = found
    return routes, reasons


def _route(groups: Groups, group: Group, reads: Mapping[str, _Read]) -> Route | str:
    """Return how a group is gated, or why it can't be."""
    model = groups.model
    if (reason := unowned(groups, group)) is not None:
        return str(reason)
    made = [piece for piece in group.slices if piece.role == "producer" and owner_of(model, piece.parameter)]
    sources = [path for path in (_path(piece.parameter) for piece in made) if path in reads]
    if not sources:
        return "no convolution or linear module makes its channels"
    source = min(sources, key=lambda path: reads[path].order)
    pieces = [piece for piece in group.slices if piece.role == "consumer"]
    for path in [source, *(_path(piece.parameter) for piece in pieces)]:
        if path not in reads:
            return f"the forward pass doesn't call {path}"
        if reads[path].times > 1:
            return f"{path} is called {reads[path].times} times"
        if reads[path].shape[0] != _SAMPLES or len(reads[path].shape) < 2:
            return f"the samples do not lie on axis 0 of what {path} reads"
        if path != source and reads[path].order < reads[source].order:
            return f"{path} reads it before {source}, whose input would choose"
    others = [name for piece in made if _path(piece.parameter) == source for name in _across(groups, piece.parameter)]
    if others:
        return f"what {source} reads holds the channels of {others[0]} along an axis that would be pooled over"
    readers = []
    for piece in pieces:
        path = _path(piece.parameter)
        module = model.get_submodule(path)
        channels = module_channels(module, piece)
        same = torch.equal(channels, torch.arange(group.size))
        readers.append(Reader(path, _axis(module, reads[path]), None if same else channels))
    axis = _axis(model.get_submodule(source), reads[source])
    return Route(group.name, source, axis, reads[source].shape[axis], tuple(readers))


def _across(groups: Groups, weight: str) -> list[str]:
    """Return the groups whose channels lie along an axis that a layer neither sums over nor makes."""
    own = {atom for axis in groups.trace.parameters[weight] for atom in leaves(axis)}
    calls = [
        one for one in groups.trace.facts.contractions if any(weight in operand.sources for operand in one.operands)
    ]
    atoms = {atom for one in calls for axis in one.terms for atom in leaves(axis)} - own
    return [group.name for group in groups if groups.atom(group.name) in atoms]


def _run(groups: Groups) -> dict[str, _Read]:
    """Run a few samples through the model, and note what each of its layers reads."""
    example = groups.example_inputs
    if not isinstance(example, Tensor):
        raise ModelError("gates choose from one tensor of inputs; the model was traced with something else")
    reads: dict[str, _Read] = {}

    def note(path: str, _module: nn.Module, args: tuple[Any, ...]) -> None:
        before = reads.get(path)
        if args and isinstance(args[0], Tensor):
            shape, order = tuple(args[0].shape), before.order if before else len(reads)
            reads[path] = _Read(order, shape, before.times + 1 if before else 1)

    handles = [
        module.register_forward_pre_hook(partial(note, path))
        for path, module in groups.model.named_modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    ]
    try:
        with torch.no_grad(), restored_modes(groups.model):
            groups.model.eval()(torch.cat([example[:1]] * _SAMPLES))
    finally:
        for handle in handles:
            handle.remove()
    return reads


def _axis(module: nn.Module, read: _Read) -> int:
    """Return the axis of the channels in what a layer reads."""
    return len(read.shape) - 1 if isinstance(module, nn.Linear) else 1


def _path(weight: str) -> str:
    return weight.rpartition(".")[0]
