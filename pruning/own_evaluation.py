"""Evaluate a model by a task's own `evaluate`: for metrics that need the whole model, or a loop of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from pruning.batches import Batches, Samples, checked_batches
from pruning.containers import Inputs
from pruning.errors import ModelError, SecateurError, describe_user_fault, pass_on
from pruning.evaluation import Evaluation, device_of, restored_modes
from pruning.metrics import described


class Loader:
    """All samples in their order, in batches (inputs, targets) on a device, as often as one goes through it."""

    def __init__(self, samples: Samples | Batches, batch_size: int, device: torch.device) -> None:
        """Read nothing yet."""
        self._batches, self.batch_size, self._device = checked_batches(samples), batch_size, device
        self.num_samples = len(self._batches)

    def __len__(self) -> int:
        """Count the batches."""
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        """Yield the inputs and targets of each batch."""
        for batch in self._batches.ordered(self.batch_size):
            inputs, targets, _ = batch.to(self._device)
            yield inputs, targets


@torch.no_grad()
def evaluate_by(
    own: Callable[[nn.Module, Loader], Any], model: nn.Module, samples: Samples | Batches, *, batch_size: int = 256
) -> Evaluation:
    """Evaluate a model by a task's own `evaluate`, in evaluation mode.

    Args:
        own: (model, loader) -> mapping with metric, loss and num_samples.
        model: on its own device; its modes are restored.
        samples: what the loader gives.
        batch_size: samples per batch of the loader.

    Raises:
        ModelError: it raised, gave something else, or didn't see every sample once.
    """
    loader = Loader(samples, batch_size, device_of(model))
    with restored_modes(model):
        model.eval()
        try:
            found = own(model, loader)
        except SecateurError:
            raise
        except Exception as fault:
            pass_on(fault)
            raise ModelError(f"the task's evaluate raised {describe_user_fault(fault)}") from fault
    names = ("metric", "loss", "num_samples")
    try:
        score, loss, count = (float(found[name]) for name in names)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as fault:
        held = f"a mapping of {', '.join(map(str, found))}" if isinstance(found, Mapping) else described(found)
        raise ModelError(
            f"the task's evaluate gave {held} ({type(fault).__name__}: {fault}); expected a mapping with a number for "
            f"each of {', '.join(names)}"
        ) from fault
    if not (math.isfinite(score) and math.isfinite(loss)):
        raise ModelError(f"the task's evaluate gave metric {score:g} and loss {loss:g}; expected finite numbers")
    if count != loader.num_samples:
        raise ModelError(
            f"the task's evaluate saw {count:g} of {loader.num_samples} samples (num_samples); expected each once, "
            "none left out and none padded in"
        )
    return Evaluation(score=score, loss=loss, num_samples=loader.num_samples)
