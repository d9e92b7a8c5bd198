"""Fine-tuning recipes: the knobs of a training run, and the optimizer that they name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from torch import nn

from pruning.errors import SettingsError, unknown_name

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


def _classes(module: Any, base: type) -> dict[str, type]:
    """Return the public classes of a module of torch's that are of a kind, by name."""
    found = {name: one for name, one in vars(module).items() if inspect.isclass(one) and issubclass(one, base)}
    return {name: one for name, one in found.items() if one is not base and not name.startswith("_")}


OPTIMIZERS = _classes(torch.optim, torch.optim.Optimizer)
SCHEDULERS = _classes(torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler)


def _named(kind: str, own: tuple[str, ...], known: Mapping[str, type], refused: Mapping[str, str]) -> AfterValidator:
    """Accept a name of ours, one of torch's in whatever case, or an import string."""
    names = {name.lower(): name for name in (*known, *own)}  # ours win: SGD is sgd

    def check(value: str) -> str:
        if ":" in value:
            return value
        found = names.get(value.lower())
        if found is None:
            raise ValueError(f"{unknown_name(kind, value, names.values())}, or your own as 'package.module:name'")
        if found in refused:
            raise ValueError(f"{found} {refused[found]}")
        return found

    return AfterValidator(check)


_FUNCTIONS = "is made of functions or of other schedulers; name a function of your own, 'package.module:make'"
OptimizerName = Annotated[
    str,
    _named(
        "optimizer",
        ("auto", "sgd", "adamw"),
        OPTIMIZERS,
        {
            "LBFGS": "evaluates the loss several times in a step, which a recipe can't; choose another optimizer",
            "SparseAdam": "takes sparse gradients alone, which no layer here gives; choose Adam",
        },
    ),
]
ScheduleName = Annotated[
    str,
    _named(
        "schedule",
        ("cosine", "linear", "constant", "one_cycle"),
        SCHEDULERS,
        dict.fromkeys(("LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"), _FUNCTIONS),
    ),
]


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("expected finite numbers") from None
    return value


def _import_string(value: str) -> str:
    module, colon, name = value.partition(":")
    if not (module and colon and name):
        raise ValueError("expected an import string, 'package.module:name'")
    return value


Auto = Literal["auto"]
Kwargs = Annotated[dict[str, JsonValue], AfterValidator(_plain)]
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


class EarlyStopping(BaseModel):
    """When training ends before its last epoch, see `pruning.training.callbacks`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    patience: StrictInt = Field(default=3, ge=1, le=100_000)
    """Epochs without a better score on the validation samples after which training ends."""
    min_delta: StrictFloat = Field(default=0.0, ge=0, le=1_000_000)
    """By how much more than this a score has to be better to count, in the metric's unit."""
    restore_best: StrictBool = False
    """Whether the model goes back to the epoch with the best score, which of several alike is the luckiest."""


class Recipe(BaseModel):
    """How to train: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Name = "recipe"
    """What reports call it, and the file that keeps its training: letters, digits, dashes, dots."""
    epochs: Epochs = 6
    """Passes over the samples."""
    steps: StrictInt | None = Field(default=None, ge=1, le=1_000_000_000)
    """Steps of the optimizer, in place of epochs."""
    learning_rate: LearningRate = "auto"
    """Highest learning rate of the run. auto: 0.02 with SGD, 0.001 with AdamW, the default of any other optimizer."""
    layer_rates: dict[str, Annotated[StrictFloat, Field(gt=0, le=1000)]] = Field(default_factory=dict)
    """Factors on the learning rate by names, prefixes or patterns of modules or parameters, such as {layer1: 0.1}; the
    first that fits counts.
    """
    schedule: ScheduleName = "cosine"
    """Learning rate over the run: cosine, linear, constant, one_cycle (see `learning_rate_at`), a scheduler of
    torch.optim.lr_scheduler, such as StepLR, or the import string of one.
    """
    schedule_kwargs: Kwargs = Field(default_factory=dict)
    """Keyword arguments for a scheduler of torch's or of your own, such as {step_size: 30}."""
    schedule_interval: Literal["step", "epoch"] = "step"
    """Whether that scheduler counts steps or epochs."""
    warmup_epochs: WarmupEpochs = "auto"
    """The rate rises linearly from 0 over so many epochs; for one_cycle, the length of its rise. auto: a tenth of the
    run with AdamW, one epoch at most; 0 with others, and for one_cycle its own.
    """
    optimizer: OptimizerName = "auto"
    """sgd with Nesterov momentum, adamw, any class of torch.optim by its name, such as RAdam, or the import string of
    one. auto: adamw where learning_rate is auto too and most of the model's norms are layer norms or RMS norms, as in
    transformers; else sgd. The log says which.
    """
    optimizer_kwargs: Kwargs = Field(default_factory=dict)
    """Further keyword arguments for the optimizer, such as {betas: [0.9, 0.95]}."""
    momentum: StrictFloat = Field(default=0.9, ge=0, lt=1)
    """Of sgd; others have their own."""
    weight_decay: StrictFloat = Field(default=5e-4, ge=0, le=1000)
    """Of parameters with two axes or more; norms and biases are not decayed."""
    batch_size: StrictInt = Field(default=64, ge=1, le=1_000_000)
    """Samples per step."""
    gradient_accumulation: StrictInt = Field(default=1, ge=1, le=1_000_000)
    """Into how many parts the samples of a step are divided, whose gradients add up to that of the whole: less memory.
    Batch norms see the parts.
    """
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward pass: bf16 and fp16 by torch.autocast, fp16 with a scaled loss. Weights stay fp32, and what is
    judged is computed in fp32.
    """
    compile: StrictBool = False
    """Whether the model is trained through torch.compile; worth it where training takes much longer than compiling."""
    channels_last: StrictBool = False
    """Whether it is trained in the memory format channels_last; for CUDA alone."""
    label_smoothing: StrictFloat = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes; for the built-in cross entropy alone."""
    mixup: StrictFloat = Field(default=0.0, ge=0, le=100)
    """α of mixup: each input is mixed with another of its batch; 0 mixes none. With cutmix, a batch gets one."""
    cutmix: StrictFloat = Field(default=0.0, ge=0, le=100)
    """α of CutMix: a box of each image comes from another of its batch; 0 cuts none."""
    ema: StrictFloat | None = Field(default=None, gt=0, lt=1)
    """Decay of a moving average of the weights, such as 0.999, which is what training ends with; null keeps none."""
    early_stopping: EarlyStopping | None = None
    """Ends training where the score on the validation samples gets no better; null trains to the end."""
    gradient_clip: GradientClip | None = "auto"
    """Largest norm of the gradient over all parameters; null leaves it alone. auto: 1 with AdamW, null with others."""
    distillation: StrictFloat = Field(default=0.0, ge=0, le=1)
    """Weight of the teacher's answers in the loss; 0 trains without a teacher."""
    temperature: StrictFloat = Field(default=4.0, gt=0, le=1000)
    """Softens teacher and student alike in the distillation."""
    sparsity: Sparsity | None = None
    """Channels that are brought to zero while training; null penalises none."""
    trainer: Annotated[str, AfterValidator(_import_string)] | None = None
    """Import string of a function that trains the model in place of all this: see docs/own-model.md."""

    rates: ClassVar[dict[str, float]] = {"sgd": 0.02, "adamw": 1e-3}

    @model_validator(mode="after")
    def _warmup_ends_before_the_run(self) -> Recipe:
        if self.warmup_epochs == "auto":
            return self
        if self.steps is None and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs:g}) must be below epochs ({self.epochs})")
        if self.warmup_epochs > 0 and not self.has_own_schedule:
            raise ValueError(
                f"warmup_epochs is for cosine, linear, constant and one_cycle; {self.schedule} has its own"
            )
        return self

    @model_validator(mode="after")
    def _keys_go_together(self) -> Recipe:
        for wrong, text in (
            (
                self.steps is not None and self.epochs != type(self).model_fields["epochs"].default,
                "epochs and steps are both given; keep one of them",
            ),
            (
                self.optimizer == "auto" and self.optimizer_kwargs,
                "optimizer_kwargs needs an optimizer that takes them; name it, such as optimizer: sgd",
            ),
            (
                {"lr", "weight_decay"} & self.optimizer_kwargs.keys(),
                "optimizer_kwargs has lr or weight_decay; set learning_rate and weight_decay of the recipe",
            ),
            (
                self.has_own_schedule and (self.schedule_kwargs or self.schedule_interval != "step"),
                f"schedule_kwargs and schedule_interval are for schedulers of torch's; {self.schedule} takes none",
            ),
            (
                self.schedule == "ReduceLROnPlateau" and self.schedule_interval != "epoch",
                "ReduceLROnPlateau looks at the loss of an epoch; set schedule_interval to epoch",
            ),
            (
                self.gradient_accumulation > self.batch_size,
                f"gradient_accumulation ({self.gradient_accumulation}) must be batch_size ({self.batch_size}) at most",
            ),
            (
                self.sparsity is not None and (self.ema is not None or self.early_stopping is not None),
                "sparsity has to reach its end, and an average would fill its zeros; remove ema and early_stopping",
            ),
            (
                self.sparsity is not None and self.trainer is not None,
                "sparsity needs the built-in trainer; remove trainer",
            ),
        ):
            if wrong:
                raise ValueError(text)
        return self

    @property
    def has_own_schedule(self) -> bool:
        """Whether the schedule is one of ours, not torch's or the user's."""
        return self.schedule in ("cosine", "linear", "constant", "one_cycle")

    @property
    def is_special(self) -> bool:
        """Whether it names an optimizer, schedule, precision or mixing that may not suit a model or its samples."""
        plain = self.optimizer in ("auto", *self.rates) and self.has_own_schedule and self.precision == "fp32"
        extras = (self.optimizer_kwargs, self.layer_rates, self.mixup, self.cutmix, self.compile, self.channels_last)
        return not plain or any(extras)

    @property
    def peak_rate(self) -> float:
        """Highest learning rate of the run, `auto` filled in.

        Raises:
            SettingsError: It is left to an optimizer that has no default.
        """
        if self.learning_rate != "auto":
            return self.learning_rate
        name = "sgd" if self.optimizer == "auto" else self.optimizer
        return self.rates[name] if name in self.rates else _default_rate(name)

    @property
    def rise(self) -> float:
        """Epochs over which the rate rises, `auto` filled in; of a run that is given in epochs."""
        if self.warmup_epochs != "auto":
            return self.warmup_epochs
        return min(1.0, 0.1 * self.epochs) if self.optimizer == "adamw" and self.schedule != "one_cycle" else 0.0

    @property
    def largest_gradient(self) -> float | None:
        """Norm that gradients are clipped to, `auto` filled in; None where they are left alone."""
        if self.gradient_clip != "auto":
            return self.gradient_clip
        return 1.0 if self.optimizer == "adamw" else None


def imported(reference: str, place: str) -> Callable[..., Any]:
    """Import what a recipe names.

    Raises:
        SettingsError: It isn't there, or can't be called.
    """
    try:
        found = resolve_name(reference)
    except (ImportError, AttributeError, ValueError) as fault:
        raise SettingsError(f"{place} {reference!r} can't be imported: {fault}") from fault
    if not callable(found):
        raise SettingsError(f"{place} {reference!r} is a {type(found).__name__}; expected a function or a class")
    made: Callable[..., Any] = found
    return made


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


def find_optimizer(name: str) -> Callable[..., Any]:
    """Return the class of an optimizer that isn't one of ours, or the function that makes it."""
    return imported(name, "optimizer") if ":" in name else OPTIMIZERS[name]


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return what a function takes, nothing if it doesn't say."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def _default_rate(name: str) -> float:
    parameter = parameters_of(find_optimizer(name)).get("lr")
    if parameter is None or not isinstance(parameter.default, int | float | torch.Tensor):
        raise SettingsError(f"optimizer {name!r} has no default of lr; set learning_rate to a number")
    return float(parameter.default)
