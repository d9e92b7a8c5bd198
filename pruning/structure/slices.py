"""A group's channels along the axes of tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pruning.errors import ModelError
from pruning.structure.groups import Group, Slice


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
