"""Try everything that training will call on one batch, before anything is trained: a fault costs seconds, not hours."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

import pruning
from pruning.batches import TensorBatches
from pruning.containers import (
    Inputs,
    as_call,
    check_names,
    count_samples,
    described_inputs,
    main_output,
    named_inputs,
    take,
    with_tensors,
)
from pruning.errors import (
    DataError,
    ExportError,
    ModelError,
    ProfileError,
    SecateurError,
    SettingsError,
    UnscoredGroupError,
)
from pruning.evaluation import Loss, losses_of_each, restored_modes
from pruning.graph.groups import Groups
from pruning.graph.unwrapping import unwrap
from pruning.importance import find_criterion, order_channels
from pruning.io.onnx import export_onnx
from pruning.io.parity import check_parity
from pruning.latency.microbenchmarks import check_provider
from pruning.metrics import described, score_of
from pruning.own_evaluation import evaluate_by
from pruning.plan.constraints import groups_in
from pruning.recovery.basis import in_principal_components
from pruning.scoring import MeanOf, Scorer
from pruning.statistics.collect import collect
from pruning.task import Task
from pruning.training.recipe import Recipe
from pruning.training.trainer import finetune
from tasks.config.schema import Settings
from tasks.config.types import LOSSES, METRICS
from tasks.data import Description, read_description, read_inputs, read_split
from tasks.determinism import begin
from tasks.models import (
    augmentation,
    axes_that_differ,
    chosen_criterion,
    example_inputs,
    load_given_weights,
    loss_and_metric,
    make_factory,
    name_of_metric,
    on,
    own_evaluation,
    size_bytes,
    sparsity_training,
)
from tasks.workspace import Workspace

_NUM_SAMPLES = 16
_CLOSE = 1e-4


def sanity_check(settings: Settings, workspace: Workspace, *, exports: bool = False) -> None:
    """Run the model, the loss with its gradient, the metric and the pruning on a few training samples.

    Nothing is kept. The caller brings torch to a known state afterwards.

    Args:
        settings: Of the run.
        workspace: Where the data lie.
        exports: Export the untrained model too. It takes some seconds, so that only who is about to train asks for it.

    Raises:
        SettingsError: The factory, the augmentation or a criterion can't be called, a name matches nothing, or ONNX
            Runtime can't measure as the settings ask.
        CheckpointError: The weights that were brought along are damaged or don't fit.
        ModelError: The model, the loss or the metric gives something else than training needs.
        DataError: There are no labels to train by.
        ExportError: The model can't be exported, or ONNX Runtime doesn't take the file.
    """
    begin(settings)
    _check_provider(settings)
    data = read_description(workspace)
    if not data.labelled and settings.baseline.recipe is not None:
        raise DataError(
            f"{settings.data.factory!r} gives no labels, so no baseline can be trained on them; set baseline.recipe to "
            "null and model.weights to the model's weights, or bring labels along"
        )
    model = _build(settings, data).to(settings.run.device)
    load_given_weights(model, settings)
    inputs, labels = _first_batch(settings, workspace, data)
    task, metric = loss_and_metric(settings)
    with torch.no_grad(), restored_modes(model):
        outputs = _run(model.eval(), on(settings.run.device, inputs), settings, data.input_name)
        targets = task.answers(outputs) if labels is None else labels.to(settings.run.device)
    _check_outputs(task, outputs, targets, settings, data)
    _check_metric(metric, outputs, targets, settings)
    _check_evaluation(task, model, TensorBatches(inputs, targets.cpu()), settings)
    _check_augmentation(inputs, settings)
    trains = settings.baseline.recipe is not None or bool(settings.prune.recipes)
    _check_loss(task, model, on(settings.run.device, inputs), targets, settings, trains=trains)
    groups = pruning.find_groups(model, example_inputs(workspace, settings))
    _check_pruning(model, groups, TensorBatches(inputs, targets.cpu()), task, settings)
    if exports:
        _check_export(model, inputs, data, settings)


def _build(settings: Settings, data: Description) -> nn.Module:
    """Build the model, and see that the factory builds another one each time: what one learns, another must not."""
    make = make_factory(settings, data)
    model, other = make(), make()
    _called(lambda: unwrap(model), f"{settings.model.source}")  # a lazy layer has no weights to compare
    known = {id(parameter) for parameter in model.parameters()}
    shared = [name for name, parameter in other.named_parameters() if id(parameter) in known]
    if shared or model is other:
        what = f"parameter {shared[0]!r}" if shared else "module"
        raise SettingsError(
            f"{settings.model.source} gives the same {what} each time it is called; expected a new "
            "model, or what one learns would change the others: build its parts inside the function, without a cache"
        )
    return model


def _check_provider(settings: Settings) -> None:
    """Make sure that this machine can measure the profile, unless one is given."""
    chosen = settings.profile
    if chosen.path is None and not chosen.batch_sizes:
        return
    try:
        check_provider(chosen.provider)
    except ProfileError as fault:
        raise SettingsError(f"profile.provider: {fault}") from fault
    known = onnxruntime.get_available_providers()
    if chosen.path is None and chosen.provider not in known:
        raise SettingsError(
            f"profile.provider: this ONNX Runtime has no {chosen.provider}; it has {', '.join(known)}. Bring a profile "
            "of another machine along with profile.path, or name one of these"
        )


def _first_batch(settings: Settings, workspace: Workspace, data: Description) -> tuple[Inputs, Tensor | None]:
    """Return a few training samples, spread over all, and their targets; None where there are no labels."""
    if data.labelled:
        samples = read_split(settings, workspace, "train").spread(_NUM_SAMPLES).loaded()
        return samples.inputs, samples.targets
    return read_inputs(settings, workspace, "train").first(_NUM_SAMPLES).inputs, None


def _run(model: nn.Module, inputs: Inputs, settings: Settings, name: str | None = None) -> Any:
    """Run the model on a batch, and check that loss, metric and export can take its outputs."""
    factory = f"{settings.model.source}"
    _called(lambda: check_names(model, inputs, name), factory, ModelError)
    shown = described_inputs(inputs)
    given = with_tensors(inputs, torch.clone)
    args, kwargs = as_call(given)
    found = _called(lambda: model(*args, **kwargs), f"{factory}: the model can't be run on inputs {shown}", ModelError)
    before, after = (list(named_inputs(one).values()) for one in (inputs, given))
    if not all(torch.allclose(*pair, rtol=0, atol=0, equal_nan=True) for pair in zip(after, before, strict=True)):
        raise ModelError(
            f"{factory}: the model writes into its inputs, so the data would differ at the next pass; look for "
            "in-place operations (x -= mean, x[...] = 0, a first layer with inplace=True), or begin with x = x.clone()"
        )
    try:
        outputs = main_output(found)
    except ModelError as fault:
        raise ModelError(f"{factory}: {fault}") from fault
    what, count = f"{factory}: the model gave outputs", count_samples(inputs)
    if not outputs.is_floating_point():
        raise ModelError(f"{what} {described(outputs).removeprefix('a tensor ')}; expected floating point")
    if outputs.shape[:1] != (count,):
        raise ModelError(
            f"{what} of shape {list(outputs.shape)} for {count} samples; expected the samples on the first axis"
        )
    if not bool(outputs.isfinite().all()):
        raise ModelError(f"{what} that are not finite; look for inf or nan in the weights and the inputs")
    return found


def _check_outputs(task: Task, found: Any, targets: Tensor, settings: Settings, data: Description) -> None:
    """See that the outputs are those of the task, unless both loss and metric are the user's own."""
    chosen, outputs = settings.training, main_output(found)
    what = f"{settings.model.source}: the model gave outputs"
    if not {chosen.loss, chosen.metric}.isdisjoint({None, *LOSSES.values(), *METRICS.values()}):
        try:
            task.check_outputs(outputs, targets, data.classes)
        except ModelError as fault:
            raise ModelError(f"{what} {fault}") from fault
    distils = [recipe.name for recipe in settings.prune.recipes if recipe.distillation > 0]
    if distils and task.by_class and (outputs.ndim < 2 or outputs.shape[1] < 2):
        raise ModelError(
            f"{what} of shape {list(outputs.shape)}, and recipe {distils[0]!r} distils, which needs logits "
            "[N, classes, ...]; set its distillation to 0"
        )


def _check_metric(metric: Scorer, outputs: Any, targets: Tensor, settings: Settings) -> None:
    name = name_of_metric(settings)
    metric.measure(name)
    with torch.no_grad():
        metric.reset()
        _called(lambda: metric.update(outputs, targets), _on(name, outputs, targets), ModelError)
    if not isinstance(metric.inner, MeanOf):
        _called(lambda: score_of(metric, metric.key), name, ModelError)
        return
    low, high = metric.inner.values.min().item(), metric.inner.values.max().item()
    if not (low >= 0 and high <= 1):
        raise ModelError(
            f"{name} gave values from {low:g} to {high:g}; expected them in [0, 1], where 1 is right: their mean is "
            "shown as percent, and floors and drops are in its unit. Anything else is a class with update, compute, "
            "reset and higher_is_better"
        )


def _check_evaluation(task: Task, model: nn.Module, samples: TensorBatches, settings: Settings) -> None:
    """Try the task's own `evaluate`, if it has one."""
    if (own := own_evaluation(task)) is None:
        return
    name = f"task {settings.task.name!r}"
    if settings.training.metric is not None:
        raise SettingsError(
            f"{name} has an `evaluate` of its own, whose score would be called by training.metric "
            f"{settings.training.metric!r}; remove training.metric: the task's metric() says which way is up"
        )
    _called(lambda: evaluate_by(own, model, samples), name, ModelError)


def _check_augmentation(inputs: Inputs, settings: Settings) -> None:
    augment = augmentation(settings)
    if augment is None or settings.training.augment is None:
        return
    name = f"training.augment {settings.training.augment.function!r}"
    copy_of = with_tensors(inputs, torch.clone)
    given: Any = _called(
        lambda: augment(copy_of, torch.Generator()), f"{name}, called with inputs {described_inputs(inputs)}"
    )
    try:
        before, after = named_inputs(inputs), named_inputs(given)
    except ModelError as fault:
        raise SettingsError(f"{name} gave {described(given)}; expected inputs as it was given ({fault})") from fault
    wanted, found = ([(key, one.shape, one.dtype) for key, one in part.items()] for part in (before, after))
    if type(given) is not type(inputs) or found != wanted:
        gave = described(given) if isinstance(given, Tensor) else described_inputs(given)
        wants = described_inputs(inputs)
        raise SettingsError(f"{name} gave {gave} for inputs {wants}; expected the same names, shapes and types")
    if not all(bool(one.isfinite().all()) for one in after.values()):
        raise SettingsError(f"{name} gave inputs that are not finite")


def _check_loss(
    task: Task, model: nn.Module, inputs: Inputs, targets: Tensor, settings: Settings, *, trains: bool
) -> None:
    """See that the loss is one finite number, the mean over the samples, and that its gradient reaches the model."""
    chosen = settings.training.loss
    name = f"the loss of task {settings.task.name!r}" if chosen is None else f"training.loss {chosen!r}"
    model.train(trains)
    outputs = _run(model, inputs, settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Using a target size")  # torch would stretch one over the other
        value = _called(lambda: task(outputs, targets), _on(name, outputs, targets), ModelError)
    if not bool(value.isfinite()):
        raise ModelError(f"{name} gave {value.item():g} on the model's first outputs; expected a finite number")
    with torch.no_grad():
        total = _called(lambda: losses_of_each(task, outputs, targets), _on(name, outputs, targets), ModelError)
        is_mean = not isinstance(task.sum_and_count(outputs, targets), tuple)
    whole, total = value.detach().double(), total.double().sum()
    if (
        is_mean
        and len(targets) > 1
        and bool((whole - total).abs() <= _CLOSE * whole.abs())
        and bool(whole.abs() > _CLOSE)
    ):
        raise ModelError(
            f"{name} gave the sum over the samples, {whole.item():.4g} for {len(targets)}; expected their mean "
            "(reduction='mean'): steps and figures would depend on the size of a batch"
        )
    if not trains:
        return
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learned:
        raise ModelError(
            f"no parameter of the model is trained: {settings.model.source} gave none that requires a gradient; set "
            "requires_grad, or train nothing: baseline.recipe null and prune.recipes []"
        )
    if value.requires_grad:
        _called(lambda: torch.autograd.backward(value), f"the gradient of {name}", ModelError)
    gradients = [parameter.grad for parameter in learned if parameter.grad is not None]
    if not gradients:
        raise ModelError(
            f"{name}: no gradient flows from it to the model's parameters; look for detach, item, argmax, numpy or "
            "no_grad in the loss and in the model's forward"
        )
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        raise ModelError(f"{name}: its gradient is not finite on the model's first outputs")


def _check_pruning(model: nn.Module, groups: Groups, samples: TensorBatches, loss: Loss, settings: Settings) -> None:
    """Check that names in the settings exist in the model, that own criteria score it, and that sparsity can be met."""
    chosen = settings.prune
    groups_in(groups, chosen.ignore, "prune.ignore")
    scopes = chosen.allocation.scopes if chosen.kind == "structured" else {}
    for scope, entries in scopes.items():
        groups_in(groups, entries, f"prune.allocation.scopes[{scope!r}]")
    if chosen.kind == "structured" and chosen.basis == "principal_components":
        streams = pruning.find_groups(model, groups.example_inputs, allow_mixed=True)
        turned = in_principal_components(streams, samples)
        if not turned.streams:
            why = "; ".join(f"{name}: {fault}" for name, fault in turned.refused.items()) or "it has none"
            raise SettingsError(
                f"prune.basis is {chosen.basis!r}, but no residual stream of the model can be turned: {why}. Set it to "
                "'auto'"
            )
    baseline: tuple[Recipe, ...] = () if settings.baseline.recipe is None else (settings.baseline.recipe,)
    for recipe in (*baseline, *chosen.recipes):
        sparsity_training(recipe, model, on(settings.run.device, take(samples.inputs, slice(0, 1))))
        _try_recipe(recipe, model, samples, loss, settings)
    if chosen.target.size_bytes is not None and chosen.target.size_bytes >= (size := size_bytes(model)):
        raise SettingsError(
            f"prune.target.size_bytes is {chosen.target.size_bytes:,}, but the baseline takes {size:,} bytes already; "
            "ask for less"
        )
    own = {settings.analyze.criterion, settings.analyze.fallback} if settings.analyze.rates else set()
    own |= {chosen.criterion, chosen.fallback} if chosen.kind == "structured" else set()
    for name in sorted(one for one in own if ":" in one):
        criterion = chosen_criterion(name)
        statistics = collect(groups, find_criterion(criterion).needs, samples, loss, seed=settings.run.seed)
        for group in list(groups)[:1]:
            with suppress(UnscoredGroupError):  # another criterion scores it
                _called(lambda: order_channels(criterion, group, statistics), f"criterion {name!r}")  # noqa: B023


def _try_recipe(recipe: Recipe, model: nn.Module, samples: TensorBatches, loss: Loss, settings: Settings) -> None:
    """Take two steps, with a copy of the model, by a recipe that asks for more than what is built in.

    A trainer of the user's is only tried when its turn comes: it may train for hours.
    """
    if recipe.trainer is not None or not recipe.is_special:
        return
    one = recipe.model_copy(update={"steps": 2, "early_stopping": None, "sparsity": None, "warmup_epochs": "auto"})
    teacher = copy.deepcopy(model) if recipe.distillation > 0 else None
    seed, augment = settings.run.seed, augmentation(settings)
    finetune(copy.deepcopy(model), samples, one, loss=loss, seed=seed, teacher=teacher, augment=augment)


def _check_export(model: nn.Module, inputs: Inputs, data: Description, settings: Settings) -> None:
    """See that the model, as it is before training, becomes an ONNX file that ONNX Runtime runs."""
    axes = axes_that_differ(model, inputs, data)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(folder) / "untrained.onnx"
            export_onnx(model, inputs, path, opset=settings.export.opset, optimize=False, axes=axes)
            check_parity(path, model, inputs, by_class=False)
        except (ExportError, ModelError) as fault:
            raise type(fault)(
                f"{settings.model.source}: {fault}. Tried before anything is trained, since no run "
                "could end in an ONNX file; mend the model's forward"
            ) from fault


def _called(call: Callable[[], Any], what: str, error: type[SecateurError] = SettingsError) -> Any:
    """Call the user's code; whatever it raises is reported as their fault, in one line."""
    try:
        return call()
    except UnscoredGroupError:
        raise
    except SecateurError as fault:
        raise type(fault)(f"{what}: {fault}") from fault
    except Exception as fault:
        raise error(f"{what} raised {type(fault).__name__}: {_first_line(fault)}") from fault


def _first_line(fault: Exception) -> str:
    lines = str(fault).strip().splitlines()
    return lines[0] if lines else "no message"


def _on(name: str, outputs: Any, targets: Tensor) -> str:
    shown = (described(one).removeprefix("a tensor ") for one in (outputs, targets))
    return "{}, called with outputs {} and targets {}".format(name, *shown)
