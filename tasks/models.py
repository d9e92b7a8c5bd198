"""Build, load and measure models as the settings say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

import pruning
from pruning.checkpoint import load_checkpoint, save_checkpoint
from pruning.criteria import Criterion
from pruning.errors import CheckpointError, SettingsError
from pruning.evaluation import Loss, Metric, Samples, evaluate
from pruning.plan import Plan
from pruning.training import Augment
from tasks import imports
from tasks.data import Description, read_split
from tasks.measured import Measured
from tasks.settings import Settings
from tasks.workspace import Json, Workspace


def begin(settings: Settings, offset: int = 0) -> None:
    """Bring torch to a known state: seed, threads, deterministic algorithms. The first line of every step.

    Args:
        settings: Of the run.
        offset: Added to the seed: a number of the step's own.
    """
    torch.set_num_threads(settings.run.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(settings.run.seed + offset)


def make_factory(settings: Settings, data: Description) -> Callable[[], nn.Module]:
    """Return the function that builds the original model, with fresh weights from the global seed."""

    def build() -> nn.Module:
        model = imports.call(settings.model.factory, settings.model.arguments, data.offered)
        if not isinstance(model, nn.Module):
            raise SettingsError(
                f"model.factory {settings.model.factory!r} returned a {type(model).__name__}; expected a module"
            )
        return model

    return build


def example_inputs(workspace: Workspace, settings: Settings) -> Tensor:
    """Return one validation sample [1, ...] on the device of the run: what models are traced and counted with."""
    return read_split(workspace, "validation").inputs[:1].to(settings.run.device)


def load_model(folder: Path, settings: Settings, data: Description, example: Tensor) -> tuple[nn.Module, Plan, Json]:
    """Load a checkpoint onto the device of the run.

    Raises:
        CheckpointError: It is missing, damaged, or from another model.
    """
    model, plan, meta = load_checkpoint(folder, make_factory(settings, data), example.cpu())
    return model.to(settings.run.device), plan, meta


def save_model(folder: Path, model: nn.Module, plan: Plan, measured: Measured, data_fingerprint: str) -> str:
    """Write a checkpoint with what it scored and which data it learned from; return the sha256 of its weights."""
    meta: dict[str, Json] = {"measured": measured.model_dump(), "data_fingerprint": data_fingerprint}
    return save_checkpoint(folder, copy.deepcopy(model).cpu(), plan, meta)


def measured_in(meta: Json, folder: Path) -> Measured:
    """Return what a checkpoint's model scored when it was saved.

    Raises:
        CheckpointError: The checkpoint doesn't say.
    """
    try:
        return Measured.model_validate(meta["measured"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder} doesn't say what its model scored; run the stage that writes it again"
        ) from error


def measure(model: nn.Module, samples: Samples, settings: Settings, example: Tensor) -> Measured:
    """Evaluate a model and count its costs.

    Args:
        model: Any model, narrowed or not.
        samples: Accuracy and loss are measured on these.
        settings: Loss, metric and batch size.
        example: One sample [1, ...]; MACs are counted for it.
    """
    loss, metric = loss_and_metric(settings)
    found = evaluate(model, samples, loss=loss, metric=metric, batch_size=settings.training.batch_size)
    return Measured(
        accuracy=found.accuracy,
        loss=found.loss,
        macs=pruning.count_macs(pruning.find_groups(model, example)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        size_bytes=size_bytes(model),
    )


def size_bytes(model: nn.Module) -> int:
    """Count the bytes of all parameters and buffers, tied ones once."""
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values() if tensor.numel()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def loss_and_metric(settings: Settings) -> tuple[Loss, Metric]:
    """Import the loss and the metric."""
    return imports.resolve(settings.training.loss), imports.resolve(settings.training.metric)


def augmentation(settings: Settings) -> Augment | None:
    """Import the augmentation, its arguments bound; None where the settings name none."""
    chosen = settings.training.augment
    if chosen is None:
        return None
    return cast(Augment, partial(imports.resolve(chosen.function), **chosen.arguments))


def chosen_criterion(name: str) -> str | Criterion:
    """Return a built-in criterion's name, or the user's own function."""
    return cast(Criterion, imports.resolve(name)) if ":" in name else name
