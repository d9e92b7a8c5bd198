"""Layers as matrix products, and a group's channels along the axes of their tensors.

    outputs[row, g] = matrix[g] @ columns[row, g] + bias        for each group g of a grouped convolution

A row is a sample and a position of the output; the columns are the values that the layer reads there, a channel's taps
after one another. A transposed convolution is one over its input with zeros in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.errors import ModelError
from pruning.graph.groups import Group, Slice
from pruning.graph.rules.call import arguments_of, operator_name

_CHUNK = 1 << 23  # unfolded values at a time
_WIDE_CHUNK = 1 << 25  # where there are many columns: products of few rows take less time than adding them up
_PRODUCTS = {"linear": (0, 1, 2), "addmm": (1, 2, 0), "mm": (0, 1, None), "matmul": (0, 1, None)}


@dataclass(frozen=True)
class Geometry:
    """How a layer reads its input.

    Attributes:
        kernel: taps along each spatial axis; empty for a linear layer.
        stride: along each spatial axis.
        dilation: along each spatial axis.
        padding: zeros before and after, along each spatial axis.
        groups: of a grouped convolution.
        transposed: the convolution is transposed; `stride` is then that of its output.
        input_axis: the axis of the weights that is summed over.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    groups: int = 1
    transposed: bool = False
    input_axis: int = 1


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer in a forward pass.

    Attributes:
        weight: name of its weights.
        bias: name of its bias, if it has one that is a parameter.
        inputs: what it read; the channels on axis 1, of a linear layer on the last.
        outputs: what it gave, likewise.
        geometry: how it reads.
        recurrent: of a product within a recurrent layer (`pruning.graph.recurrent`) what it reads: what goes in, or the
            layer's own state.
    """

    weight: str
    bias: str | None
    inputs: Tensor
    outputs: Tensor
    geometry: Geometry
    recurrent: Literal["input", "state"] | None = None

    def channels_first(self) -> Tensor:
        """Return the inputs as [samples, channels, positions]."""
        inputs = _batched(self.inputs, self.geometry)
        if not self.geometry.kernel:
            inputs = inputs.movedim(-1, 1)
        return inputs.flatten(2) if inputs.ndim > 2 else inputs[:, :, None]

    def rows(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the unfolded inputs in chunks.

        Yields:
            Which samples, and their columns [rows, groups, columns].
        """
        if self.inputs.ndim <= len(self.geometry.kernel) + 1:
            yield slice(None), unfold(_batched(self.inputs, self.geometry), self.geometry)
            return
        values = self.inputs[:1].numel() * prod(self.geometry.kernel)
        channels = self.inputs.shape[1] // self.geometry.groups if self.geometry.kernel else self.inputs.shape[-1]
        columns = channels * prod(self.geometry.kernel)
        step = max(1, max(_CHUNK, min(columns**2, _WIDE_CHUNK)) // max(1, values))
        for start in range(0, len(self.inputs), step):
            here = slice(start, start + step)
            yield here, unfold(self.inputs[here], self.geometry)


def is_product(name: str) -> bool:
    """Say whether the operator of a name is what layers compute."""
    return name in _PRODUCTS or "conv" in name


def read_call(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, names: Mapping[int, str]
) -> LayerCall | None:
    """Recognise the call of a layer: a product of an input with a parameter.

    Args:
        func: the operator.
        args: its arguments.
        kwargs: its keyword arguments.
        result: what it gave.
        names: the parameters' names by the identity of their tensors.

    Returns:
        None where the operator is no such product.
    """
    name = operator_name(func)
    if not is_product(name):
        return None
    named = arguments_of(func, args, kwargs)
    given = list(named.values())
    if name in _PRODUCTS:
        at_input, at_weight, at_bias = _PRODUCTS[name]
        inputs, weight, bias = given[at_input], given[at_weight], None if at_bias is None else given[at_bias]
        geometry: Geometry | None = Geometry(input_axis=1 if name == "linear" else 0)
        if weight.ndim != 2 or (name == "addmm" and any(factor != 1 for factor in given[3:])):
            return None
    else:
        inputs, weight, bias = named["input"], named["weight"], named["bias"]
        geometry = _convolution(named, "transpose" in name or bool(named.get("transposed")))
    if id(weight) not in names or id(inputs) in names or geometry is None:
        return None
    return LayerCall(names[id(weight)], names.get(id(bias)), inputs, result, geometry)


def unfold(inputs: Tensor, geometry: Geometry) -> Tensor:
    """Lay out what a layer reads for each of its outputs, [rows, groups, columns]."""
    if not geometry.kernel:
        return inputs.reshape(-1, 1, inputs.shape[-1])
    stride = geometry.stride
    if geometry.transposed:
        inputs, stride = _spread(inputs, stride), (1,) * len(stride)
    windows = F.pad(inputs, [side for pair in reversed(geometry.padding) for side in pair])
    for axis, (taps, step, gap) in enumerate(zip(geometry.kernel, stride, geometry.dilation, strict=True)):
        windows = windows.unfold(2 + axis, gap * (taps - 1) + 1, step)[..., ::gap]
    spatial = len(geometry.kernel)
    grouped = windows.reshape(len(windows), geometry.groups, -1, *windows.shape[2:])
    order = (0, *range(3, 3 + spatial), 1, 2, *range(3 + spatial, 3 + 2 * spatial))
    columns = (inputs.shape[1] // geometry.groups) * prod(geometry.kernel)
    return grouped.permute(order).reshape(-1, geometry.groups, columns)


def output_rows(outputs: Tensor, geometry: Geometry) -> Tensor:
    """Arrange a layer's outputs as `unfold` does its inputs, [rows, groups, outputs of a group]."""
    if not geometry.kernel:
        return outputs.reshape(-1, 1, outputs.shape[-1])
    outputs = _batched(outputs, geometry)
    return outputs.movedim(1, -1).reshape(-1, geometry.groups, outputs.shape[1] // geometry.groups)


def to_matrix(weight: Tensor, geometry: Geometry) -> Tensor:
    """Arrange weights as [groups, outputs of a group, columns]."""
    if not geometry.kernel:
        return (weight if geometry.input_axis == 1 else weight.T)[None]
    if not geometry.transposed:
        return weight.reshape(geometry.groups, -1, prod(weight.shape[1:]))
    flipped = weight.flip(tuple(range(2, weight.ndim)))
    split = flipped.reshape(geometry.groups, -1, *flipped.shape[1:])
    return split.transpose(1, 2).flatten(2)


def from_matrix(matrix: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """Arrange a matrix as weights of a shape again: the inverse of `to_matrix`."""
    if not geometry.kernel:
        first = matrix[0]
        return first if geometry.input_axis == 1 else first.T
    if not geometry.transposed:
        return matrix.reshape(shape)
    inputs = shape[0] // geometry.groups
    split = matrix.reshape(geometry.groups, shape[1], inputs, *shape[2:]).transpose(1, 2)
    return split.reshape(shape).flip(tuple(range(2, len(shape))))


def input_channels(piece: Slice, geometry: Geometry) -> Tensor:
    """Tell which channel of a group lies at each input channel of a layer; -1 where none does.

    Args:
        piece: a slice of the layer's weights along the axis that is summed over.
        geometry: of the layer.
    """
    channels = piece.channels()
    return channels if geometry.transposed else channels.repeat(geometry.groups)


def column_channels(piece: Slice, geometry: Geometry) -> Tensor:
    """Tell which channel of a group lies at each column of a layer's matrix, [groups, columns]; -1 where none does."""
    inputs = input_channels(piece, geometry).reshape(geometry.groups, -1)
    return inputs.repeat_interleave(prod(geometry.kernel), dim=1)


def _convolution(named: Mapping[str, Any], transposed: bool) -> Geometry | None:
    weight = named["weight"]
    kernel = tuple(weight.shape[2:])
    stride, dilation = (_each(named[key], len(kernel)) for key in ("stride", "dilation"))
    reach = [gap * (taps - 1) for gap, taps in zip(dilation, kernel, strict=True)]
    if named["padding"] == "same":
        padding = tuple((total // 2, total - total // 2) for total in reach)
    else:
        sides = (0,) * len(kernel) if named["padding"] == "valid" else _each(named["padding"], len(kernel))
        padding = tuple((side, side) for side in sides)
    if transposed:
        extra = _each(named["output_padding"], len(kernel))
        padding = tuple(
            (total - before, total - after + more)
            for total, (before, after), more in zip(reach, padding, extra, strict=True)
        )
    axis = 0 if transposed else 1
    return Geometry(kernel, stride, dilation, padding, int(named["groups"]), transposed, axis)


def _each(value: Any, count: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


def _batched(tensor: Tensor, geometry: Geometry) -> Tensor:
    return tensor[None] if tensor.ndim == len(geometry.kernel) + 1 else tensor


def _spread(inputs: Tensor, stride: Sequence[int]) -> Tensor:
    """Put stride − 1 zeros between neighbours along each spatial axis."""
    sizes = [(size - 1) * step + 1 for size, step in zip(inputs.shape[2:], stride, strict=True)]
    spread = inputs.new_zeros(*inputs.shape[:2], *sizes)
    places = tuple(slice(None, None, step) for step in stride)
    spread[(slice(None), slice(None), *places)] = inputs
    return spread


def own_slices(group: Group, parameters: Iterable[str]) -> list[Slice]:
    """Return the slices that make a channel what it is: those of producers and followers that are parameters.

    A group without any (its channels come from nowhere but are consumed) gives all its slices that are parameters.
    """
    known = set(parameters)
    learned = [piece for piece in group.slices if piece.parameter in known]
    return [piece for piece in learned if piece.role != "consumer"] or learned


def rows_of(tensor: Tensor, piece: Slice, size: int) -> Tensor:
    """Arrange a tensor by the channels that a slice puts on one of its axes.

    Args:
        tensor: the slice's parameter, or anything of its shape.
        piece: the slice.
        size: channels of the group.

    Returns:
        [size, values per channel]. Where a channel has several places on the axis, they follow one another.

    Raises:
        ModelError: the channels have unequal numbers of places.
    """
    places = places_of(piece.channels(), size)
    if places is None:
        raise ModelError(
            f"{piece.parameter}, axis {piece.axis}: the channels of a group have unequal numbers of places"
        )
    return tensor.movedim(piece.axis, 0)[places.to(tensor.device)].reshape(size, -1)


def places_of(channels: Tensor, size: int) -> Tensor | None:
    """Return the indices at which each channel lies, [size, places]; None where they are unequal in number.

    Args:
        channels: the channel at each index of an axis, or -1.
        size: channels of the group.
    """
    order = torch.argsort(channels, stable=True)[int((channels < 0).sum()) :]
    counts = torch.bincount(channels[channels >= 0], minlength=size)
    if len(counts) != size or bool((counts != counts[0]).any()) or not bool(counts[0]):
        return None
    return order.reshape(size, -1)
