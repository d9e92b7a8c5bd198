"""Build, load and measure models as the settings say."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

import pruning
from pruning.batches import Batches
from pruning.containers import Inputs, with_tensors
from pruning.dynamic.gates import GatedModel, macs_of_samples
from pruning.errors import CheckpointError, SettingsError
from pruning.evaluation import Evaluation, evaluate_together
from pruning.importance import Criterion
from pruning.io.checkpoint import load_checkpoint, save_checkpoint
from pruning.io.huggingface import Pretrained, find_folder
from pruning.io.onnx import dynamic_axes
from pruning.io.weights import load_weights
from pruning.metrics import Measure
from pruning.own_evaluation import Loader, evaluate_by
from pruning.plan.plan import Cost, Plan, count_effective_macs
from pruning.scoring import Scorer
from pruning.task import Task
from pruning.training.callbacks import Augment, Judge
from pruning.training.recipe import Recipe
from pruning.training.sparsity import SparsityTraining
from pruning.unstructured.masks import packed_bytes
from pruning.world import ALONE, World
from tasks.config import import_strings
from tasks.config.schema import Settings
from tasks.data import Description, on_device, read_example, task_of
from tasks.workspace import Json, Workspace
from zoo.datasets.splits import inputs_of, shapes_by_name, tensors_of


class ModelMetrics(BaseModel):
    """What a model scored and what it costs.

    Attributes:
        score: The metric over all samples; the accuracy, in [0, 1], unless the settings say otherwise.
        loss: Mean of the loss over the same samples.
        macs: Of one sample; where gates choose by the sample, the mean over the samples of what is open.
        parameters: How many, zeros among them.
        size_bytes: Of all parameters and buffers as they are stored, zeros as bits where that is shorter.
        weight_sparsity: Share of zeros in weights of two axes or more, where they are stored as bits.
        effective_macs: Where they are: the MACs left to a runtime that skips zero weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: float
    loss: float
    macs: int = Field(gt=0)
    parameters: int = Field(gt=0)
    size_bytes: int = Field(gt=0)
    weight_sparsity: float | None = None
    effective_macs: int | None = None

    def reduction_from(self, original: ModelMetrics) -> dict[str, float]:
        """Return 1 − this/original for MACs, parameters and bytes, by the names of the settings' targets."""
        return {
            "mac_reduction": 1 - self.macs / original.macs,
            "parameter_reduction": 1 - self.parameters / original.parameters,
            "size_bytes": 1 - self.size_bytes / original.size_bytes,
        }


def pretrained(settings: Settings) -> Pretrained | None:
    """Return the Hugging Face folder that the settings name; None where a factory makes the model.

    Raises:
        SettingsError: It is on the hub, and nothing may be downloaded, or can't be.
    """
    chosen = settings.model
    if chosen.from_pretrained is None:
        return None
    allowed, trusted = chosen.allow_download, chosen.trust_remote_code
    folder = find_folder(chosen.from_pretrained, chosen.revision, allow_download=allowed, with_code=trusted)
    return Pretrained(folder, chosen.auto_class, chosen.kwargs, chosen.trust_remote_code)


def load_given_weights(model: nn.Module, settings: Settings) -> None:
    """Load the weights that the settings bring along, if any, in place.

    Raises:
        CheckpointError: They are missing, damaged or don't fit.
    """
    if (given := pretrained(settings)) is not None:
        given.load_weights(model, trains=settings.baseline.recipe is not None)
    elif settings.model.weights is not None:
        load_weights(model, settings.model.weights)


def make_factory(settings: Settings, data: Description) -> Callable[[], nn.Module]:
    """Return the function that builds the original model, with fresh weights from the global seed."""

    def build() -> nn.Module:
        if given is not None:
            return task.adapt(given.build())
        model = import_strings.call(settings.model.factory, settings.model.kwargs, data.offered)
        if not isinstance(model, nn.Module):
            raise SettingsError(f"{settings.model.source} returned a {type(model).__name__}; expected a module")
        return task.adapt(model)

    task, given = task_of(settings), pretrained(settings)
    return build


def example_inputs(workspace: Workspace, settings: Settings) -> Inputs:
    """Return one validation sample [1, ...] on the device of the run: what models are traced and counted with."""
    return on(settings.run.device, read_example(workspace))


def on(device: str, inputs: Inputs) -> Inputs:
    """Return inputs, of any container, on a device."""
    found: Inputs = with_tensors(inputs, lambda tensor: tensor.to(device))
    return found


def axes_that_differ(model: nn.Module, batch: Inputs, data: Description) -> dict[str, dict[int, str]]:
    """Return the axes beside the first whose sizes differ from batch to batch in the data, as `export_onnx` takes them.

    Args:
        model: Whose `forward` names its inputs.
        batch: What it is given.
        data: Say which sizes differ.
    """
    shapes = shapes_by_name(data.input_shape)
    return dynamic_axes(batch, resized(batch, lambda key, axis: shapes[key][axis - 1] is None), model)


def resized(batch: Inputs, chosen: Callable[[str, int], bool]) -> Inputs:
    """Return inputs that are half as long on some axes, twice where they have one element.

    Args:
        batch: A tensor or several.
        chosen: (name as `tensors_of` gives it, axis from 1) -> whether.
    """
    cut = tensors_of(batch)
    for key, tensor in cut.items():
        for axis in range(1, tensor.ndim):
            if chosen(key, axis):
                one = cut[key]
                size = one.shape[axis]
                cut[key] = one.narrow(axis, 0, ceil(size / 2)) if size > 1 else torch.cat([one, one], axis)
    found: Inputs = inputs_of(cut)
    return found


def load_model(folder: Path, settings: Settings, data: Description, example: Inputs) -> tuple[nn.Module, Plan, Json]:
    """Load a checkpoint onto the device of the run.

    Raises:
        CheckpointError: It is missing, damaged, or from another model.
    """
    model, plan, meta = load_checkpoint(folder, make_factory(settings, data), on("cpu", example))
    return model.to(settings.run.device), plan, meta


def save_model(folder: Path, model: nn.Module, plan: Plan, measured: ModelMetrics, data_fingerprint: str) -> str:
    """Write a checkpoint with what it scored and which data it learned from; return the sha256 of its weights."""
    meta: dict[str, Json] = {"measured": measured.model_dump(), "data_fingerprint": data_fingerprint}
    return save_checkpoint(folder, copy.deepcopy(model).cpu(), plan, meta)


def measured_in(meta: Json, folder: Path) -> ModelMetrics:
    """Return what a checkpoint's model scored when it was saved.

    Raises:
        CheckpointError: The checkpoint doesn't say.
    """
    try:
        return ModelMetrics.model_validate(meta["measured"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder} doesn't say what its model scored; run the stage that writes it again"
        ) from error


def measure_whole(
    model: nn.Module, samples: Batches, settings: Settings, example: Inputs
) -> tuple[ModelMetrics, Evaluation]:
    """Evaluate a model and count its costs.

    Args:
        model: Any model, narrowed or not.
        samples: Score and loss are measured on these.
        settings: Loss, metric and batch size.
        example: One sample [1, ...]; MACs are counted for it.

    Returns:
        The figures, and what was found by sample and by class.
    """
    found = score(model, samples, settings)
    return with_costs(found, model, samples, settings, example), found


def with_costs(
    found: Evaluation, model: nn.Module, samples: Batches, settings: Settings, example: Inputs
) -> ModelMetrics:
    """Count the costs of a model that was evaluated; arguments as of `measure_whole`."""
    inner = model.model if isinstance(model, GatedModel) else model
    groups = pruning.find_groups(inner, example)
    macs = pruning.count_macs(groups)
    if isinstance(model, GatedModel):
        macs = int(macs_of_samples(model, Cost(groups), samples, batch_size=settings.training.batch_size).mean())
    weights = [parameter for parameter in inner.parameters() if parameter.ndim > 1]
    zeros, stored = sum(int((weight == 0).sum()) for weight in weights), size_bytes(model)
    sparse = stored < size_bytes(model, packed=False)
    return ModelMetrics(
        score=found.score,
        loss=found.loss,
        macs=macs,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        size_bytes=stored,
        weight_sparsity=zeros / sum(weight.numel() for weight in weights) if sparse else None,
        effective_macs=count_effective_macs(groups) if sparse else None,
    )


def score(
    model: nn.Module, samples: Batches, settings: Settings, *, each: bool = False, world: World = ALONE
) -> Evaluation:
    """Evaluate a model: by the task's own `evaluate` where it has one, else batch by batch.

    Args:
        model: Any model.
        samples: What it is scored on.
        settings: Task, loss, metric and batch size.
        each: Whether to give the loss of each sample too, where the score is no mean; not of an `evaluate` of its own.
        world: The processes that share the batches; an `evaluate` of its own runs in the first one.
    """
    task, metric = loss_and_metric(settings)
    batch_size = settings.training.batch_size
    if (own := own_evaluation(task)) is not None:
        if world.in_parts:
            raise SettingsError(
                f"task {type(task).__name__} has an `evaluate` of its own, which runs in one process, and each holds a "
                "part of the model (machine.parallel: fsdp); set it to ddp, or prune.undo_training to false"
            )
        return world.from_first(lambda: evaluate_by(own, model, samples, batch_size=batch_size))
    each = each and metric.values is None
    return evaluate_together(world, model, samples, loss=task, metric=metric, batch_size=batch_size, each=each)


def own_evaluation(task: Task) -> Callable[[nn.Module, Loader], Any] | None:
    """Return the task's own way to evaluate a model; None where it has none."""
    own: Callable[[nn.Module, Loader], Any] | None = getattr(task, "evaluate", None)
    return own


def judge_by(samples: Batches, settings: Settings, world: World = ALONE) -> Judge:
    """Return what scores a model on each of some samples: by the metric if it is a mean, else by minus the loss.

    A task with an `evaluate` of its own gives one score for all, which counts in the metric's direction.
    """

    def judge(model: nn.Module) -> Tensor:
        found = score(model, samples, settings, each=True, world=world)
        higher = loss_and_metric(settings)[1].measure(name_of_metric(settings)).higher_is_better
        if found.values is not None:
            return found.values if higher else -found.values
        if found.losses is not None:
            return -found.losses
        return torch.tensor([found.score if higher else -found.score], dtype=torch.float64)

    return judge


def size_bytes(model: nn.Module, *, packed: bool = True) -> int:
    """Count the bytes of all parameters and buffers as checkpoints store them, tied ones once.

    Args:
        model: Any model.
        packed: Whether zeros count as bits where that is shorter; else every value counts in full.
    """
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values() if tensor.numel()}
    return sum(packed_bytes(t) if packed else t.numel() * t.element_size() for t in tensors.values())


def loss_and_metric(settings: Settings) -> tuple[Task, Scorer]:
    """Make the task, which is the loss too, and what scores; tensors that they hold go to the device of the run."""
    task, chosen = task_of(settings), settings.training
    metric = None if chosen.metric is None else on_device(import_strings.made(chosen.metric), settings)
    scorer = Scorer(task.metric() if metric is None else metric, task.predict, chosen.metric_key, task.wanted)
    on_device(scorer.inner, settings)
    return task, scorer


def name_of_metric(settings: Settings) -> str:
    """Return what messages call the metric."""
    chosen = settings.training.metric
    return f"the metric of task {settings.task.name!r}" if chosen is None else f"training.metric {chosen!r}"


def measure_of(settings: Settings, data: Description) -> Measure:
    """Return what the score is called, which way is up, and how it is written.

    Raises:
        SettingsError: The metric doesn't say which way is up.
    """
    found = loss_and_metric(settings)[1].measure(name_of_metric(settings))
    if data.labelled:
        return found
    name = "agreement with the baseline" if found.name == "accuracy" else f"{found.name} against the baseline"
    return replace(found, name=name)


def augmentation(settings: Settings) -> Augment | None:
    """Import the augmentation, its arguments bound; None where the settings name none."""
    chosen = settings.training.augment
    if chosen is None:
        return None
    return cast(Augment, partial(import_strings.resolve(chosen.function), **chosen.kwargs))


def chosen_criterion(name: str) -> str | Criterion:
    """Return a built-in criterion's name, or the user's own function."""
    return cast(Criterion, import_strings.resolve(name)) if ":" in name else name


def sparsity_training(
    recipe: Recipe, model: nn.Module, example: Inputs, ignore: Sequence[str] = ()
) -> SparsityTraining | None:
    """Return what brings about the sparsity that a recipe names; None if it names none."""
    if recipe.sparsity is None:
        return None
    return SparsityTraining(pruning.find_groups(model, example), model, recipe, ignore)
