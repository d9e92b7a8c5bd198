"""What `params.yaml` may say: typed, frozen, read once, every fault reported together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, StrictFloat, StrictInt, ValidationError, model_validator

from pruning.choosing.sensitivity import Sweep
from pruning.errors import SettingsError
from pruning.training.recipe import Epochs, LearningRate, Name, Recipe, Schedule
from tasks.params.faults import describe
from tasks.params.names import (
    LOSSES,
    METRICS,
    MOST_THREADS,
    Arguments,
    CriterionName,
    ImportString,
    Share,
    Threads,
    TimedBatch,
    existing_file,
    name_for_mlflow,
    named,
    usable_device,
)
from tasks.params.prune_parts import Target
from tasks.params.prune_settings import Prune
from tasks.params.section import Section
from tasks.params.yaml_file import read_mapping


class Run(Section):
    """What holds for every stage."""

    seed: StrictInt = Field(default=0, ge=0, lt=2**31)
    threads: StrictInt = Field(default=1, ge=1, le=MOST_THREADS)
    device: Annotated[str, AfterValidator(usable_device)] = "cpu"


class Machine(Section):
    """What of this machine is used; no output depends on it."""

    processes: StrictInt = Field(default=1, ge=1, le=256)


class Data(Section):
    """Where the samples come from: a function that returns `zoo.datasets.Splits`."""

    factory: ImportString
    arguments: Arguments = Field(default_factory=dict)


class Model(Section):
    """Which network: a function that returns a module, and weights that it starts from."""

    factory: ImportString
    arguments: Arguments = Field(default_factory=dict)
    weights: Annotated[Path, AfterValidator(existing_file)] | None = None


class Augment(Section):
    """How a batch of inputs is varied while training: a function of the inputs and a generator."""

    function: ImportString
    arguments: Arguments = Field(default_factory=dict)


class Training(Section):
    """What is minimised, what is reported, and how a batch is varied while training."""

    loss: Annotated[str, named("loss", LOSSES)] = LOSSES["cross_entropy"]
    metric: Annotated[str, named("metric", METRICS)] = METRICS["accuracy"]
    augment: Augment | None = None
    batch_size: StrictInt = Field(default=256, ge=1, le=1_000_000)


class FromScratch(Recipe):
    """How a network that has learned nothing yet is trained: longer and at a higher rate than a pruned one."""

    name: Name = "baseline"
    epochs: Epochs = 12
    learning_rate: LearningRate = 0.1
    schedule: Schedule = "one_cycle"


class Baseline(Section):
    """How the baseline is trained; without a recipe `model.weights` are taken as they are."""

    recipe: FromScratch | None = None
    keep_epochs: tuple[Annotated[StrictInt, Field(ge=1, le=100_000)], ...] = Field(default=(), max_length=1000)

    @model_validator(mode="after")
    def _epochs_are_trained(self) -> Self:
        last = 0 if self.recipe is None else self.recipe.epochs
        if beyond := [epoch for epoch in self.keep_epochs if epoch > last]:
            raise ValueError(f"keep_epochs names {beyond}; the recipe trains {last} epochs")
        return self


class Analyze(Section):
    """How the sensitivity of each group is measured, and whether it is where the allocation reads none."""

    for_report: bool = False
    criterion: CriterionName = "l2_norm"
    rates: tuple[Share, ...] = Field(default=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), max_length=100)
    sweep: Sweep = "knee"
    fraction: StrictFloat = Field(default=1.0, ge=0.5, le=1)
    criterion_samples: StrictInt = Field(default=1024, ge=1, le=10_000_000)


class Profile(Section):
    """What latencies are predicted from: measured here, or brought along as a file."""

    provider: str = "CPUExecutionProvider"
    threads: tuple[Threads, ...] = Field(default=(1,), min_length=1, max_length=20)
    batch_sizes: tuple[TimedBatch, ...] = Field(default=(1, 32), max_length=20)
    path: Annotated[Path, AfterValidator(existing_file)] | None = None


class Export(Section):
    """Which ONNX operator set the file uses."""

    opset: StrictInt = Field(default=20, ge=18, le=25)


class Benchmark(Section):
    """How latency is measured."""

    batch_sizes: tuple[TimedBatch, ...] = Field(default=(1, 32), min_length=1, max_length=20)
    threads: tuple[Threads, ...] = Field(default=(1, 0), min_length=1, max_length=20)
    rounds: StrictInt = Field(default=50, ge=1, le=100_000)


MlflowName = Annotated[str, AfterValidator(name_for_mlflow)]


class Tracking(Section):
    """Where MLflow keeps its records, and under which name the model is registered."""

    uri: str = "sqlite:///mlflow.db"
    artifacts: Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*:/")] | None = None
    experiment: MlflowName = "secateur"
    model_name: MlflowName = "pruned"


class Promote(Section):
    """What a candidate has to show against production before it takes its place."""

    max_accuracy_drop: StrictFloat = Field(default=0.005, ge=0, lt=1)
    min_parity: StrictFloat = Field(default=1.0, ge=0, le=1)
    max_more_macs: StrictFloat = Field(default=0.0, ge=0, le=1000)
    max_more_size: StrictFloat = Field(default=0.0, ge=0, le=1000)
    max_more_latency: StrictFloat = Field(default=0.1, ge=0, le=1000)
    require_approval: bool = False


class Tidy(Section):
    """What `flows.tidy` removes."""

    keep_days: StrictInt = Field(default=30, ge=0, le=36500)


class Frontier(Section):
    """What `flows.frontier` compares: `prune.target` by each of these."""

    targets: tuple[Target, ...] = Field(
        default=(
            *(Target(mac_reduction=share) for share in (0.5, 0.7, 0.85)),
            *(Target(latency_reduction=share) for share in (0.3, 0.5, 0.7)),
        ),
        min_length=1,
        max_length=100,
    )

    @model_validator(mode="after")
    def _targets_differ(self) -> Self:
        if twice := [target for target in self.targets if self.targets.count(target) > 1]:
            raise ValueError(f"the target {twice[0].model_dump(exclude_none=True)} occurs twice")
        return self


class Settings(Section):
    """All of `params.yaml`."""

    run: Run = Run()
    data: Data
    model: Model
    training: Training = Training()
    baseline: Baseline = Baseline()
    analyze: Analyze = Analyze()
    profile: Profile = Profile()
    prune: Prune
    export: Export = Export()
    benchmark: Benchmark = Benchmark()
    tracking: Tracking = Tracking()
    tidy: Tidy = Tidy()
    machine: Machine = Machine()
    frontier: Frontier = Frontier()
    promote: Promote = Promote()

    @property
    def subject(self) -> str:
        """What is pruned, as people read it: the names of the model's and the data's factories."""
        model, data = (factory.partition(":")[2] for factory in (self.model.factory, self.data.factory))
        return f"{model} on {data}"

    @property
    def measures_curves(self) -> bool:
        """Whether anything asks for sensitivity curves."""
        return bool(self.analyze.rates) and (self.prune.reads_curves or self.analyze.for_report)

    @property
    def goes_by(self) -> list[str]:
        """Which measurements the loop goes by."""
        asked = {"curves": self.prune.reads_curves, "profile": self.prune.reads_profile}
        return [name for name, is_read in asked.items() if is_read]

    @property
    def shaped_by_the_clock(self) -> list[str]:
        """Which settings let the time that this machine takes shape the result: none without a latency target."""
        asked = {"profile.path": self.profile.path is None, "prune.measure_latency": self.prune.measure_latency}
        return [name for name, is_so in asked.items() if is_so and self.prune.reads_profile]

    @model_validator(mode="after")
    def _baseline_comes_from_somewhere(self) -> Self:
        if self.baseline.recipe is None and self.model.weights is None:
            raise ValueError("baseline.recipe is null and model.weights too; give a recipe to train by, or weights")
        return self

    @model_validator(mode="after")
    def _recipes_suit_the_loss(self) -> Self:
        if self.baseline.recipe is not None and self.baseline.recipe.distillation > 0:
            raise ValueError(
                "baseline.recipe distils, but there is no teacher before the baseline; set distillation to 0"
            )
        trained = [recipe for recipe in (self.baseline.recipe, *self.prune.recipes) if recipe is not None]
        smoothed = [recipe.name for recipe in trained if recipe.label_smoothing > 0]
        if smoothed and self.training.loss not in LOSSES.values():
            raise ValueError(
                f"recipe {smoothed[0]!r} sets label_smoothing, which only the built-in loss knows; smooth inside "
                f"{self.training.loss!r}, such as an object CrossEntropyLoss(label_smoothing=0.1) of your own module"
            )
        return self

    @model_validator(mode="after")
    def _allocation_has_what_it_needs(self) -> Self:
        if not self.analyze.rates and self.prune.kind == "structured" and self.prune.allocation.by == "sensitivity":
            raise ValueError("prune.allocation.by is 'sensitivity' but analyze.rates is empty; give rates to measure")
        if (epoch := self.prune.start.epoch) is not None and epoch not in self.baseline.keep_epochs:
            kept = ", ".join(map(str, self.baseline.keep_epochs)) or "none"
            raise ValueError(
                f"prune.start.epoch is {epoch}, but baseline.keep_epochs keeps {kept}; add it there (the baseline then "
                "trains anew)"
            )
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
