"""Prove that an ONNX file computes the function of the model that it came from, in every output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.batches import Batches, Samples, as_batches
from pruning.containers import Inputs, as_call, main_output, named_outputs
from pruning.errors import ExportError, pass_on
from pruning.evaluation import device_of, restored_modes
from pruning.io.onnx import feeds_of, open_session
from pruning.plan.verification import TOLERANCE

_TINY = float(np.finfo(np.float32).tiny)  # where the model's outputs are all zero


@dataclass(frozen=True)
class Parity:
    """How far the file's outputs are from the model's.

    Attributes:
        max_abs_difference: max |d| over all batches, d = output of the file − output of the model.
        max_relative_difference: the largest max|d| / max|y| of a batch, y = output of the model.
        close: share of samples whose largest |d| is at most 1e-4 of the largest |y| of their batch.
        top1_agreement: share of samples whose largest output is the same; None where outputs are no classes.
        num_samples: how many samples were compared.
        outputs: where there are several, the largest relative difference of each, by name; the figures above are the
            worst of all, `top1_agreement` that of the output which the loss reads.
    """

    max_abs_difference: float
    max_relative_difference: float
    close: float
    top1_agreement: float | None
    num_samples: int
    outputs: Mapping[str, float] | None = None


def check_parity(
    path: str | Path,
    model: nn.Module,
    inputs: Batches | Samples | Inputs,
    *,
    batch_sizes: Sequence[int] = (1, 3, 7),
    batch_size: int = 256,
    by_class: bool = True,
) -> Parity:
    """Compare an ONNX file with the model it came from, in ONNX Runtime on the CPU, in every output.

    Args:
        path: the file.
        model: run in evaluation mode on its device; modes are restored.
        inputs: samples, or what the model is given, [N, ...] each. The first ones are run at each of `batch_sizes`,
            then all of them by `batch_size`.
        batch_sizes: proves that the batch axis is dynamic; sizes above N are cut to N.
        batch_size: samples per pass over the whole set.
        by_class: whether axis 1 of the output that the loss reads holds classes, of which the largest counts.

    Raises:
        ExportError: the file can't be loaded or run at one of the batch sizes, or has other outputs.
    """
    session = open_session(path)
    samples, device = as_batches(inputs), device_of(model)
    passes = chain((samples.first(size) for size in batch_sizes), samples.ordered(batch_size))
    largest, agreed, close, compared = 0.0, 0, 0, 0
    relative: dict[str, float] = {}
    with restored_modes(model), torch.no_grad():
        model.eval()
        for number, batch in enumerate(passes):
            args, kwargs = as_call(batch.to(device).inputs)
            outputs = model(*args, **kwargs)
            named, counted = named_outputs(outputs)[0], number >= len(batch_sizes)
            found = _run(session, feeds_of(session, batch.inputs), path)
            if len(found) != len(named):
                raise ExportError(f"{path}: {len(found)} outputs; the model's are {', '.join(named)}")
            within = np.ones(batch.size, dtype=bool)
            for (name, tensor), one in zip(named.items(), found, strict=True):
                expected = tensor.cpu().numpy()
                if one.shape != expected.shape:
                    raise ExportError(f"{path}: {name} of shape {one.shape}; the model's is {expected.shape}")
                differences, scale = _differences(one, expected, batch.size)
                largest = max(largest, float(differences.max()))
                relative[name] = max(relative.get(name, 0.0), float(differences.max()) / scale)
                within &= differences <= TOLERANCE * scale
            if counted:
                compared += batch.size
                close += int(within.sum())
                if by_class:
                    agreed += _agreeing(found, named, outputs, batch.size)
    worst, several = max(relative.values()), relative if len(relative) > 1 else None
    return Parity(largest, worst, close / compared, agreed / compared if by_class else None, compared, several)


def _differences(found: NDArray[Any], expected: NDArray[Any], num_samples: int) -> tuple[NDArray[Any], float]:
    """Return the largest |found - expected| of each sample, and the largest finite |expected|.

    What is infinite or no number in one alone is infinitely far. Of an output without samples on its first axis the
    largest difference counts for all.
    """
    if not np.issubdtype(expected.dtype, np.floating):
        found, expected = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        differences = np.abs(found - expected)
    if not np.isfinite(differences).all():
        same = (found == expected) | (np.isnan(found) & np.isnan(expected))
        differences = np.where(same, 0.0, np.where(np.isfinite(differences), differences, np.inf))
    finite = expected[np.isfinite(expected)]
    scale = max(float(np.abs(finite).max()) if finite.size else 0.0, _TINY)
    if expected.shape[:1] == (num_samples,) and expected.size:
        return differences.reshape(num_samples, -1).max(axis=1), scale
    return np.full(num_samples, differences.max() if differences.size else 0.0), scale


def _agreeing(found: Sequence[NDArray[Any]], named: Mapping[str, Tensor], outputs: Any, num_samples: int) -> int:
    """Count the samples whose largest output is the same, in the output that the loss reads."""
    main = main_output(outputs)
    place = next(place for place, one in enumerate(named.values()) if one is main)
    same = found[place].argmax(axis=1) == main.cpu().numpy().argmax(axis=1)
    return int(same.reshape(num_samples, -1).all(axis=1).sum())


def _run(
    session: onnxruntime.InferenceSession, feeds: Mapping[str, NDArray[Any]], path: str | Path
) -> list[NDArray[Any]]:
    try:
        return list(session.run(None, dict(feeds)))
    except Exception as error:  # as above
        pass_on(error)
        shown = ", ".join(f"{name} {list(one.shape)}" for name, one in feeds.items())
        raise ExportError(f"{path} can't be run on {shown}: {error}") from error
