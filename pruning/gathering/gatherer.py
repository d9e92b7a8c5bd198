"""What a gatherer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.errors import CriterionError


@dataclass(frozen=True)
class Batch:
    """Some of the samples.

    Attributes:
        inputs: [N, ...] on the model's device.
        targets: [N, ...]; None where the samples have none.
        generator: on the CPU, for gatherers that draw.
    """

    inputs: Tensor
    targets: Tensor | None
    generator: torch.Generator

    def labels(self) -> Tensor:
        """Return the targets.

        Raises:
            CriterionError: there are none.
        """
        if self.targets is None:
            raise CriterionError("the criterion needs the loss: pass samples with targets, not inputs alone")
        return self.targets


Gathered = Mapping[str, Mapping[str, Tensor | str]]
"""need -> group name -> [size] values, or the reason why this group has none."""


class Gatherer(ABC):
    """Adds up statistics over batches."""

    @abstractmethod
    def see(self, batch: Batch) -> None:
        """Add a batch."""

    @abstractmethod
    def results(self) -> Gathered:
        """Return what was gathered, float64 on the CPU."""
