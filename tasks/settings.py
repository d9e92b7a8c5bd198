"""What `params.yaml` may say: typed, frozen, read once, every fault reported together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pruning.errors import SettingsError
from pruning.recipe import Recipe
from pruning.schedule import ScheduleSettings
from tasks.faults import describe
from tasks.names import LOSSES, METRICS, CriterionName, ImportString, Share, existing_file, named, usable_device
from tasks.yaml_file import read_mapping


class Section(BaseModel):
    """A part of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Run(Section):
    """What holds for every stage."""

    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=1, ge=1)
    device: Annotated[str, AfterValidator(usable_device)] = "cpu"


class Data(Section):
    """Where the samples come from: a function that returns `zoo.datasets.Splits`."""

    factory: ImportString
    arguments: dict[str, Any] = {}


class Model(Section):
    """Which network: a function that returns a module, and weights that it starts from."""

    factory: ImportString
    arguments: dict[str, Any] = {}
    weights: Annotated[Path, AfterValidator(existing_file)] | None = None


class Augment(Section):
    """How a batch of inputs is varied while training: a function of the inputs and a generator."""

    function: ImportString
    arguments: dict[str, Any] = {}


class Training(Section):
    """What is minimised, what is reported, and how a batch is varied while training."""

    loss: Annotated[str, named("loss", LOSSES)] = LOSSES["cross_entropy"]
    metric: Annotated[str, named("metric", METRICS)] = METRICS["accuracy"]
    augment: Augment | None = None
    batch_size: int = Field(default=256, ge=1)


class Baseline(Section):
    """How the baseline is trained; without a recipe `model.weights` are taken as they are."""

    recipe: Recipe | None = None


class Analyze(Section):
    """How the sensitivity of each group is measured."""

    criterion: CriterionName = "l2_norm"
    rates: tuple[Share, ...] = Field(default=(0.2, 0.4, 0.6, 0.8), min_length=1)
    fraction: float = Field(default=1.0, ge=0.5, le=1)


class Target(Section):
    """How small the model is to become, against the baseline: exactly one of the three."""

    mac_reduction: Share | None = None
    parameter_reduction: Share | None = None
    size_bytes: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"expected exactly one of mac_reduction, parameter_reduction, size_bytes; found {found}")
        return self

    @property
    def kind(self) -> str:
        """Which of the three is given."""
        return next(name for name, value in self if value is not None)


class Recalibrate(Section):
    """Batch norms are measured anew on this many training samples after each step."""

    num_samples: int = Field(default=1024, ge=2)


class Prune(Section):
    """The loop: target, pace, floor, what is left alone, how a step is recovered."""

    target: Target
    criterion: CriterionName = "l2_norm"
    schedule: Literal["linear", "geometric", "cubic"] = "linear"
    iterations: int = Field(default=4, ge=1)
    first_step: Share | None = None
    backoff: Share = 0.5
    smallest_step: Share = 0.02
    max_attempts: int = Field(default=12, ge=1)
    max_accuracy_drop: float = Field(default=0.01, ge=0, lt=1)
    max_group_rate: Share = 0.9
    keep_at_least: int = Field(default=1, ge=1)
    round_to: int = Field(default=1, ge=1)
    ignore: tuple[str, ...] = ()
    recalibrate: Recalibrate = Recalibrate()
    recipes: tuple[Recipe, ...] = Field(min_length=1)
    allow_other_data: bool = False

    @model_validator(mode="after")
    def _recipe_names_differ(self) -> Self:
        names = [recipe.name for recipe in self.recipes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two recipes are named {', '.join(map(repr, twice))}; give each its own name")
        return self

    @model_validator(mode="after")
    def _schedule_holds(self) -> Self:
        share = self.target.mac_reduction or self.target.parameter_reduction
        if share is not None and self.first_step is not None and self.first_step > share:
            raise ValueError(f"first_step ({self.first_step:g}) must not be above the target ({share:g})")
        return self

    def schedule_for(self, target: float) -> ScheduleSettings:
        """Return the schedule that rises to a total reduction."""
        return ScheduleSettings(
            target=target,
            iterations=self.iterations,
            shape=self.schedule,
            first_step=self.first_step,
            backoff=self.backoff,
            smallest_step=self.smallest_step,
            max_attempts=self.max_attempts,
        )


class Export(Section):
    """Which ONNX operator set the file uses."""

    opset: int = Field(default=20, ge=18)


class Benchmark(Section):
    """How latency is measured."""

    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 32), min_length=1)
    threads: int = Field(default=1, ge=1)
    rounds: int = Field(default=50, ge=1)


class Tracking(Section):
    """Where MLflow keeps its records, and under which name the model is registered."""

    uri: str = "sqlite:///mlflow.db"
    experiment: str = Field(default="secateur", min_length=1)
    model_name: str = Field(default="pruned", min_length=1)


class Settings(Section):
    """All of `params.yaml`."""

    run: Run = Run()
    data: Data
    model: Model
    training: Training = Training()
    baseline: Baseline = Baseline()
    analyze: Analyze = Analyze()
    prune: Prune
    export: Export = Export()
    benchmark: Benchmark = Benchmark()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _baseline_comes_from_somewhere(self) -> Self:
        if self.baseline.recipe is None and self.model.weights is None:
            raise ValueError("baseline.recipe is null and model.weights too; give a recipe to train by, or weights")
        return self


def load(path: Path) -> Settings:
    """Read the settings.

    Raises:
        SettingsError: With every fault, its path in the file, and the nearest right name.
    """
    try:
        return Settings.model_validate(read_mapping(path))
    except ValidationError as error:
        faults = describe(error, Settings)
        count = "a fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise SettingsError("\n  ".join([f"{path} has {count}:", *faults])) from error
