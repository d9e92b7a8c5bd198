"""Fine-tuning recipes: the knobs of a training run, and the learning rate at each of its steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, model_validator
from torch import nn

Schedule = Literal["cosine", "linear", "constant", "one_cycle"]
Name = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
Epochs = Annotated[StrictInt, Field(ge=1, le=100_000)]
LearningRate = Annotated[StrictFloat, Field(gt=0, le=1000)]


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
    learning_rate: LearningRate = 0.02
    """Highest learning rate of the run."""
    schedule: Schedule = "cosine"
    """Learning rate over the run, see `learning_rate_at`."""
    warmup_epochs: StrictFloat = Field(default=0.0, ge=0, le=100_000)
    """The rate rises linearly from 0 over so many epochs; for one_cycle, the length of its rise."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum, or AdamW."""
    momentum: StrictFloat = Field(default=0.9, ge=0, lt=1)
    """Of SGD; AdamW has its own."""
    weight_decay: StrictFloat = Field(default=5e-4, ge=0, le=1000)
    """Of parameters with two axes or more; norms and biases are not decayed."""
    batch_size: StrictInt = Field(default=64, ge=1, le=1_000_000)
    """Samples per step."""
    label_smoothing: StrictFloat = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes; for the built-in cross entropy alone."""
    gradient_clip: StrictFloat | None = Field(default=None, gt=0, le=1_000_000)
    """Largest norm of the gradient over all parameters; null leaves it alone."""
    distillation: StrictFloat = Field(default=0.0, ge=0, le=1)
    """Weight of the teacher's answers in the loss; 0 trains without a teacher."""
    temperature: StrictFloat = Field(default=4.0, gt=0, le=1000)
    """Softens teacher and student alike in the distillation."""
    sparsity: Sparsity | None = None
    """Channels that are brought to zero while training; null penalises none."""

    @model_validator(mode="after")
    def _warmup_ends_before_the_run(self) -> Recipe:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs:g}) must be below epochs ({self.epochs})")
        return self


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
    warmup = recipe.warmup_epochs * steps_per_epoch
    peak = recipe.learning_rate
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
    """Build the recipe's optimizer over the parameters that need a gradient."""
    owned = [parameter for parameter in parameters if parameter.requires_grad]
    decayed = [parameter for parameter in owned if parameter.ndim > 1]
    spared = [parameter for parameter in owned if parameter.ndim <= 1]
    families = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(families, lr=recipe.learning_rate)
    return torch.optim.SGD(families, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def _cosine(start: float, end: float, passed: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * passed)) / 2
