"""How far a quantised file's answers are from those of the float one, output by output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log10, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.containers import main_output
from pruning.io.onnx_module import OnnxModule, inputs_of_call

MOST_DB = 200.0
"""Signal to noise where there is no noise: that of numbers in float64 is below."""


@dataclass
class OutputError:
    """The error of one output, added up batch by batch.

    Attributes:
        signal: Sum of the squares of the float file's values.
        noise: Sum of the squares of the differences; what is no number in one file alone makes it infinite.
    """

    signal: float = 0.0
    noise: float = 0.0

    def add(self, found: NDArray[Any], expected: NDArray[Any]) -> None:
        """Add a batch; what is infinite or no number in both files alike counts for nothing."""
        one, two = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
        if one.shape != two.shape:
            self.noise = float("inf")
            return
        finite = np.isfinite(two)
        if not finite.all():
            with np.errstate(invalid="ignore"):
                same = (one == two) | (np.isnan(one) & np.isnan(two))
            if not same[~finite].all():
                self.noise = float("inf")
            one, two = one[finite], two[finite]
        difference = float(np.square(one - two).sum())
        self.signal += float(np.square(two).sum())
        self.noise += difference if np.isfinite(difference) else float("inf")

    @property
    def relative(self) -> float:
        """‖quantised − float‖ / ‖float‖ over all values; infinite where the float file gives zeros alone."""
        if self.noise == 0:
            return 0.0
        return sqrt(self.noise / self.signal) if self.signal else float("inf")

    @property
    def snr_db(self) -> float:
        """Signal to noise in decibels: −20 log₁₀ of the relative error."""
        if self.relative == 0:
            return MOST_DB
        return max(-MOST_DB, min(MOST_DB, -20 * log10(self.relative))) if np.isfinite(self.relative) else -MOST_DB


@dataclass
class Differences:
    """What two files' answers to the same samples have and have not in common.

    Attributes:
        outputs: Name -> error.
        agreed: Samples whose largest output is the same, in the output that the loss reads.
        compared: Samples that this was looked at for.
    """

    outputs: dict[str, OutputError] = field(default_factory=dict)
    agreed: int = 0
    compared: int = 0

    @property
    def agreement(self) -> float | None:
        """The share of samples on which they agree; None where outputs are no classes."""
        return self.agreed / self.compared if self.compared else None

    @property
    def worst_db(self) -> float:
        """Signal to noise of the worst output."""
        return min((one.snr_db for one in self.outputs.values()), default=MOST_DB)

    def add(self, found: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> None:
        """Add a batch."""
        for name, values in expected.items():
            self.outputs.setdefault(name, OutputError()).add(found[name], values)


class BesideFloat(nn.Module):
    """A quantised file, run beside the float one: answers as the quantised file, and adds up the differences."""

    def __init__(self, quantized: OnnxModule, reference: OnnxModule, *, by_class: bool) -> None:
        """Take both files.

        Args:
            quantized: Whose answers are given.
            reference: The float file.
            by_class: Whether axis 1 of the output that the loss reads holds classes, of which the largest counts.
        """
        super().__init__()
        self.quantized, self.reference, self._by_class = quantized, reference, by_class
        self.differences = Differences()

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Run both on a batch."""
        inputs = inputs_of_call(args, kwargs)
        found, expected = self.quantized.run(inputs), self.reference.run(inputs)
        self.differences.add(found, expected)
        outputs = self.quantized.wrap(found)
        if self._by_class:
            self._agree(outputs, self.reference.wrap(expected))
        return outputs

    def _agree(self, outputs: Any, reference: Any) -> None:
        one, two = (main_output(given).argmax(dim=1) for given in (outputs, reference))
        same = (one == two).reshape(len(one), -1).all(dim=1)
        self.differences.agreed += int(same.sum())
        self.differences.compared += len(same)
