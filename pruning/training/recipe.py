"""Fine-tuning recipes: the knobs of a training run, and the learning rate at each of its steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from torch import nn

Schedule = Literal["cosine", "linear", "constant", "one_cycle"]
Name = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
Epochs = Annotated[StrictInt, Field(ge=1, le=100_000)]


def _or_auto(expected: str) -> WrapValidator:
    """Name both that are allowed in one fault, where a union would name each in a fault of its own."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"expected {expected}, or auto") from None

    return WrapValidator(check)


Auto = Literal["auto"]
LearningRate = Annotated[
    Annotated[StrictFloat, Field(gt=0, le=1000)] | Auto, _or_auto("a number above 0, 1,000 at most")
]
WarmupEpochs = Annotated[
    Annotated[StrictFloat, Field(ge=0, le=100_000)] | Auto, _or_auto("a number of 0 or more, 100,000 at most")
]
GradientClip = Annotated[
    Annotated[StrictFloat, Field(gt=0, le=1_000_000)] | Auto, _or_auto("a number above 0, 1,000,000 at most, or null")
]


class Sparsity(BaseModel):
    """Training that brings channels to zero, see `pruning.training.sparsity`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    penalty: Literal["group_lasso", "bn_scale"]
    """group_lasso on all values of a channel, or bn_scale on the scales of batch norms."""
    share: StrictFloat = Field(gt=0, le=0.9)
    """Of the channels that the penalty acts on, how many are at zero in the end."""
    ramp: StrictFloat = Field(default=0.5, gt=0, le=1)
    """Part of the run over which the penalty brings them there; the rest is left to recover."""


class Recipe(BaseModel):
    """How to train: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Name = "recipe"
    """What reports call it, and the file that keeps its training: letters, digits, dashes, dots."""
    epochs: Epochs = 6
    """Passes over the samples."""
    learning_rate: LearningRate = "auto"
    """Highest learning rate of the run. auto: 0.02 with SGD, 0.001 with AdamW."""
    schedule: Schedule = "cosine"
    """Learning rate over the run, see `learning_rate_at`."""
    warmup_epochs: WarmupEpochs = "auto"
    """The rate rises linearly from 0 over so many epochs; for one_cycle, the length of its rise. auto: a tenth of the
    run with AdamW, one epoch at most; 0 with SGD, and for one_cycle its own.
    """
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    """SGD with Nesterov momentum, or AdamW. auto: AdamW where learning_rate is auto too and most of the model's norms
    are layer norms or RMS norms, as in transformers; else SGD. The log says which.
    """
    momentum: StrictFloat = Field(default=0.9, ge=0, lt=1)
    """Of SGD; AdamW has its own."""
    weight_decay: StrictFloat = Field(default=5e-4, ge=0, le=1000)
    """Of parameters with two axes or more; norms and biases are not decayed."""
    batch_size: StrictInt = Field(default=64, ge=1, le=1_000_000)
    """Samples per step."""
    label_smoothing: StrictFloat = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes; for the built-in cross entropy alone."""
    gradient_clip: GradientClip | None = "auto"
    """Largest norm of the gradient over all parameters; null leaves it alone. auto: 1 with AdamW, null with SGD."""
    distillation: StrictFloat = Field(default=0.0, ge=0, le=1)
    """Weight of the teacher's answers in the loss; 0 trains without a teacher."""
    temperature: StrictFloat = Field(default=4.0, gt=0, le=1000)
    """Softens teacher and student alike in the distillation."""
    sparsity: Sparsity | None = None
    """Channels that are brought to zero while training; null penalises none."""

    rates: ClassVar[dict[str, float]] = {"sgd": 0.02, "adamw": 1e-3}

    @model_validator(mode="after")
    def _warmup_ends_before_the_run(self) -> Recipe:
        if self.warmup_epochs != "auto" and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs:g}) must be below epochs ({self.epochs})")
        return self

    @property
    def peak_rate(self) -> float:
        """Highest learning rate of the run, `auto` filled in."""
        if self.learning_rate != "auto":
            return self.learning_rate
        return self.rates["adamw" if self.optimizer == "adamw" else "sgd"]

    @property
    def rise(self) -> float:
        """Epochs over which the rate rises, `auto` filled in."""
        if self.warmup_epochs != "auto":
            return self.warmup_epochs
        return min(1.0, 0.1 * self.epochs) if self.optimizer == "adamw" and self.schedule != "one_cycle" else 0.0

    @property
    def largest_gradient(self) -> float | None:
        """Norm that gradients are clipped to, `auto` filled in; None where they are left alone."""
        if self.gradient_clip != "auto":
            return self.gradient_clip
        return 1.0 if self.optimizer == "adamw" else None


def recipe_for(recipe: Recipe, model: nn.Module) -> Recipe:
    """Return the recipe with the optimizer that `auto` means for a model; one that names its optimizer as it is.

    AdamW where `learning_rate` is `auto` too (a rate that is given is taken for SGD's), and the model has more layer
    norms and RMS norms than batch, instance and group norms. Those two are told by the names of their classes, so that
    other libraries' count (`LlamaRMSNorm`); a norm that is called as a function is not seen.
    """
    if recipe.optimizer != "auto":
        return recipe
    modules = list(model.modules())
    by_layer = sum(any(kind in type(one).__name__.lower() for kind in ("layernorm", "rmsnorm")) for one in modules)
    others = sum(isinstance(one, nn.modules.batchnorm._NormBase | nn.GroupNorm) for one in modules)
    adaptive = recipe.learning_rate == "auto" and by_layer > others
    return recipe.model_copy(update={"optimizer": "adamw" if adaptive else "sgd"})


def learning_rate_at(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step (counted from 0 over the whole run).

    With p in [0, 1) the share of the run after the warm-up that lies behind:

        constant    peak
        linear      peak · (1 − p)
        cosine      peak · (1 + cos πp)/2
        one_cycle   rises by half a cosine from peak/25 over the warm-up (30 % of the run if none is set), then
                    falls by half a cosine to peak/10⁴; Source: Smith & Topin 2018, arXiv 1708.07120 (our momentum
                    stays constant)
    """
    total = recipe.epochs * steps_per_epoch
    warmup = recipe.rise * steps_per_epoch
    peak = recipe.peak_rate
    if recipe.schedule == "one_cycle":
        warmup = warmup or 0.3 * total
        if step < warmup:
            return _cosine(peak / 25, peak, step / warmup)
        return _cosine(peak, peak / 1e4, (step - warmup) / (total - warmup))
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    passed = (step - warmup) / (total - warmup)
    if recipe.schedule == "cosine":
        return _cosine(peak, 0.0, passed)
    return peak * (1 - passed) if recipe.schedule == "linear" else peak


def make_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the recipe's optimizer over the parameters that need a gradient; `auto` is SGD, see `recipe_for`."""
    owned = [parameter for parameter in parameters if parameter.requires_grad]
    decayed = [parameter for parameter in owned if parameter.ndim > 1]
    spared = [parameter for parameter in owned if parameter.ndim <= 1]
    families = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(families, lr=recipe.peak_rate)
    return torch.optim.SGD(families, lr=recipe.peak_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def _cosine(start: float, end: float, passed: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * passed)) / 2
