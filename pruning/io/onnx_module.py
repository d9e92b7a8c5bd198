"""An ONNX file as a torch module, so that whatever evaluates models evaluates the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.containers import Inputs, as_call, named_outputs, with_tensors
from pruning.errors import ExportError, pass_on
from pruning.graph.module_copy import copy_whole
from pruning.io.onnx import feeds_of, open_session


class OnnxModule(nn.Module):
    """Runs a file in ONNX Runtime on the CPU, and returns its outputs in the container of the model it came from."""

    def __init__(self, path: str | Path, outputs: Any, *, num_threads: int = 1, device: str = "cpu") -> None:
        """Load a file.

        Args:
            path: The file.
            outputs: What the torch model gave for any batch: the container, whose tensors are replaced.
            num_threads: Threads within an operator.
            device: Where inputs come from and outputs go to; the file is run on the CPU.

        Raises:
            ExportError: The file can't be loaded.
        """
        super().__init__()
        self.path, self._outputs = Path(path), outputs
        self._session = open_session(path, num_threads=num_threads)
        self.register_buffer("_device", torch.empty(0, device=device))
        self.names = list(named_outputs(outputs)[0])

    def feeds(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return inputs as the file takes them, by name.

        Raises:
            ExportError: The file has other inputs.
        """
        return feeds_of(self._session, inputs)

    def run(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the outputs by the names that the torch model's have.

        Raises:
            ExportError: The file can't be run on these, or has other outputs.
        """
        try:
            found = self._session.run(None, self.feeds(inputs))
        except ExportError:
            raise
        except Exception as fault:  # ONNX Runtime's own errors have no public root but Exception
            pass_on(fault)
            raise ExportError(f"{self.path} can't be run: {fault}") from fault
        if len(found) != len(self.names):
            raise ExportError(f"{self.path}: {len(found)} outputs; the model's are {', '.join(self.names)}")
        return dict(zip(self.names, found, strict=True))

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Run the file on a batch."""
        return self.wrap(self.run(inputs_of_call(args, kwargs)))

    def wrap(self, found: Mapping[str, NDArray[Any]]) -> Any:
        """Put outputs by name into the model's container."""
        device = self.get_buffer("_device").device
        named = named_outputs(self._outputs)[0]
        made = {id(named[name]): torch.from_numpy(np.ascontiguousarray(one)).to(device) for name, one in found.items()}
        return with_tensors(self._outputs, lambda tensor: made.get(id(tensor), tensor))


def inputs_of_call(args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Inputs:
    """Return the inputs of a call as one value: a tensor, a tuple, or a dict by name."""
    return dict(kwargs) if kwargs else args[0] if len(args) == 1 else args


def example_outputs(model: nn.Module, inputs: Inputs) -> Any:
    """Return what a model gives in evaluation mode, which leaves it as it was."""
    args, kwargs = as_call(inputs)
    with torch.no_grad():
        return copy_whole(model).eval()(*args, **kwargs)
