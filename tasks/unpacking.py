"""A batch as a data set gives it, divided into the model's inputs, tensors by position or by name, and the targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruning.containers import count_samples
from pruning.errors import DataError, NotFiniteError
from pruning.metrics import described
from pruning.task import Task
from zoo.datasets.splits import Inputs, Samples, Shape, common_shapes, shapes_of, shown_shapes


def takes(task: Task) -> str:
    """Say what to do where targets are not those of a task."""
    return f"Task {type(task).__name__} takes those; set task.name in the settings to the one that suits the data"


@dataclass(frozen=True)
class Unpack:
    """Divides a batch into inputs and targets, and checks it against what is known of all samples.

    Attributes:
        task: What divides it.
        classes: Their names.
        input_shape: Of one sample, by the names of `tensors_of`; None in it for a size that may differ. Where it is
            None, nothing is known of others yet.
    """

    task: Task
    classes: tuple[str, ...] = ()
    input_shape: Mapping[str, Shape] | None = None

    def __call__(self, joined: Any) -> tuple[Inputs, Tensor | None]:
        """Return inputs and targets; None where there are none.

        Raises:
            DataError: They are no tensors, or not like others.
        """
        inputs, targets = self.task.unpack(joined)
        one = _tensors(inputs)
        labels = None if targets is None else _one_tensor(targets, "targets")
        if self.input_shape is None:
            return one, labels
        try:
            Samples(one, torch.zeros(count_samples(one)) if labels is None else labels)
        except ValueError as fault:
            raise DataError(str(fault)) from fault
        if (found := shapes_of(one)) != self.input_shape and common_shapes(self.input_shape, found) != self.input_shape:
            others = shown_shapes(self.input_shape)
            raise DataError(f"inputs have the shape {shown_shapes(found)}, others {others}; give each the same")
        if labels is not None:
            try:
                self.task.check_targets(labels, self.classes)
            except NotFiniteError:
                raise
            except DataError as fault:
                raise DataError(f"{fault}. {takes(self.task)}") from fault
        return one, labels


def _tensors(value: Any) -> Inputs:
    """Return inputs as tensors: one, several by position, or several by name."""
    if isinstance(value, Mapping | list | tuple) and len(value) == 1:
        (value,) = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping) and value:
        named = {str(name): part for name, part in value.items()}
        parts: dict[str, Any] = {f"input {name!r}": part for name, part in named.items()}
    elif isinstance(value, list | tuple) and value:
        named, parts = {}, {f"input {place}": part for place, part in enumerate(value)}
    else:
        raise DataError(
            f"inputs are {described(value).removeprefix('a ')}; expected a tensor, several in a tuple, or a dict of "
            "them"
        )
    for name, part in parts.items():
        if not isinstance(part, Tensor):
            raise DataError(
                f"{name} is {described(part)}, of {', '.join(parts)}; expected a tensor. Leave out what the model "
                "isn't given, in collate_fn or in the unpack of a task of your own"
            )
    counts = {name: part.shape[:1] for name, part in parts.items()}
    if len(set(counts.values())) != 1 or () in counts.values():
        shown = ", ".join(f"{name} {list(part.shape)}" for name, part in parts.items())
        raise DataError(
            f"the inputs don't have the samples on the first axis of each: {shown}. Repeat for each sample what all "
            "share, or let the model hold it"
        )
    return named or tuple(parts.values())


def _one_tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Mapping) and len(value) == 1:
        (value,) = value.values()
    if isinstance(value, list | tuple) and value and isinstance(value[0], str):
        raise DataError(
            f"{what} are texts, such as {value[0]!r}; expected numbers: give of each class its place among the classes"
        )
    if not isinstance(value, Tensor):
        held = (
            f"{type(value).__name__} of {', '.join(map(str, value))}"
            if isinstance(value, Mapping)
            else described(value)
        )
        raise DataError(
            f"{what} are {held.removeprefix('a ')}; the pipeline takes one tensor of them: join them in collate_fn, or "
            "in the unpack of a task of your own"
        )
    # Python's floats come as float64, masks as bytes
    return value.float() if value.dtype == torch.float64 else value if value.is_floating_point() else value.long()
