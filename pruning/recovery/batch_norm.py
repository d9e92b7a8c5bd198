"""Recompute the running statistics of batch norms after channels went."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pruning.batches import Batches, Samples, checked_batches
from pruning.containers import Inputs, as_call
from pruning.evaluation import device_of, restored_modes


@torch.no_grad()
def recalibrate(
    model: nn.Module, samples: Samples | Batches | Inputs, *, num_samples: int = 1024, batch_size: int = 128
) -> int:
    """Recompute every batch norm's running mean and variance, in place; nothing else changes.

    They become the plain average of the batches' statistics, not an exponential one, over batches whose sizes differ by
    one at most. The samples used are spread evenly over the set, so that one sorted by class serves as well. All
    modules but the batch norms run in evaluation mode. No random number is drawn.

    Args:
        model: changed in place, on its own device; module modes are restored.
        samples: only the inputs are read.
        num_samples: how many of them, at most.
        batch_size: samples per forward pass, at most.

    Returns:
        The number of batch norms recalibrated.

    Raises:
        DataError: no samples, or one can't be read.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return 0
    chosen, device = checked_batches(samples).spread(num_samples), device_of(model)
    batches = torch.arange(len(chosen)).tensor_split(max(1, -(-len(chosen) // batch_size)))
    momenta = [norm.momentum for norm in norms]
    with restored_modes(model):
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        try:
            for batch in chosen.read(batches):
                args, kwargs = as_call(batch.to(device).inputs)
                model(*args, **kwargs)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return len(norms)
