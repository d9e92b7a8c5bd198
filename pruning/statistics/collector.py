"""What a gatherer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pruning.containers import Inputs, as_call, count_samples
from pruning.errors import CriterionError


@dataclass(frozen=True)
class Batch:
    """Some of the samples.

    Attributes:
        inputs: what the model is given, on its device: a tensor, a tuple or a dict, all tensors [N, ...].
        targets: a tensor [N, ...], or a tuple or dict of several; None where the samples have none.
        generator: on the CPU, for gatherers that draw.
    """

    inputs: Inputs
    targets: Any
    generator: torch.Generator

    @property
    def num_samples(self) -> int:
        """N."""
        return count_samples(self.inputs)

    def run(self, model: Callable[..., Any]) -> Any:
        """Return what a model makes of the inputs."""
        args, kwargs = as_call(self.inputs)
        return model(*args, **kwargs)

    def labels(self) -> Any:
        """Return the targets.

        Raises:
            CriterionError: there are none.
        """
        if self.targets is None:
            raise CriterionError("the criterion needs the loss: pass samples with targets, not inputs alone")
        return self.targets


@dataclass(frozen=True)
class Uncounted:
    """Why a group has no values.

    Attributes:
        kind: The reason, the same for all groups of this kind.
        where: What it is about in this group, such as the weights that read it.
    """

    kind: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.where})" if self.where else self.kind


Collected = Mapping[str, Mapping[str, Tensor | Uncounted]]
"""need -> group name -> [size] values, or the reason why this group has none."""


class Collector(ABC):
    """Adds up statistics over batches.

    Attributes:
        NEEDS: what it gathers, by the names that criteria ask for it by.
    """

    NEEDS: ClassVar[tuple[str, ...]]

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Add a batch."""

    @abstractmethod
    def compute(self) -> Collected:
        """Return what was gathered, float64 on the CPU."""
