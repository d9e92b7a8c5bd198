"""What `params.yaml` may say: typed, frozen, read once, every fault reported together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from pruning.choosing.sensitivity import Sweep
from pruning.errors import SettingsError
from pruning.training.recipe import Recipe
from tasks.params.faults import describe
from tasks.params.names import LOSSES, METRICS, CriterionName, ImportString, Share, existing_file, named, usable_device
from tasks.params.prune_parts import Target
from tasks.params.prune_settings import Prune
from tasks.params.section import Section
from tasks.params.yaml_file import read_mapping


class Run(Section):
    """What holds for every stage."""

    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=1, ge=1)
    device: Annotated[str, AfterValidator(usable_device)] = "cpu"


class Machine(Section):
    """What of this machine is used; no output depends on it."""

    processes: int = Field(default=1, ge=1, le=256)


class Data(Section):
    """Where the samples come from: a function that returns `zoo.datasets.Splits`."""

    factory: ImportString
    arguments: dict[str, Any] = Field(default_factory=dict)


class Model(Section):
    """Which network: a function that returns a module, and weights that it starts from."""

    factory: ImportString
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: Annotated[Path, AfterValidator(existing_file)] | None = None


class Augment(Section):
    """How a batch of inputs is varied while training: a function of the inputs and a generator."""

    function: ImportString
    arguments: dict[str, Any] = Field(default_factory=dict)


class Training(Section):
    """What is minimised, what is reported, and how a batch is varied while training."""

    loss: Annotated[str, named("loss", LOSSES)] = LOSSES["cross_entropy"]
    metric: Annotated[str, named("metric", METRICS)] = METRICS["accuracy"]
    augment: Augment | None = None
    batch_size: int = Field(default=256, ge=1)


class Baseline(Section):
    """How the baseline is trained; without a recipe `model.weights` are taken as they are."""

    recipe: Recipe | None = None
    keep_epochs: tuple[Annotated[int, Field(ge=1)], ...] = ()

    @model_validator(mode="after")
    def _epochs_are_trained(self) -> Self:
        last = 0 if self.recipe is None else self.recipe.epochs
        if beyond := [epoch for epoch in self.keep_epochs if epoch > last]:
            raise ValueError(f"keep_epochs names {beyond}; the recipe trains {last} epochs")
        return self


class Analyze(Section):
    """How the sensitivity of each group is measured."""

    criterion: CriterionName = "l2_norm"
    rates: tuple[Share, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    sweep: Sweep = "knee"
    fraction: float = Field(default=1.0, ge=0.5, le=1)
    criterion_samples: int = Field(default=1024, ge=1)


class Profile(Section):
    """What latencies are predicted from: measured here, or brought along as a file."""

    provider: str = "CPUExecutionProvider"
    threads: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(1,), min_length=1)
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = (1, 32)
    path: Annotated[Path, AfterValidator(existing_file)] | None = None


class Export(Section):
    """Which ONNX operator set the file uses."""

    opset: int = Field(default=20, ge=18)


class Benchmark(Section):
    """How latency is measured."""

    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 32), min_length=1)
    threads: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(1, 0), min_length=1)
    rounds: int = Field(default=50, ge=1)


class Tracking(Section):
    """Where MLflow keeps its records, and under which name the model is registered."""

    uri: str = "sqlite:///mlflow.db"
    artifacts: Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*:/")] | None = None
    experiment: str = Field(default="secateur", min_length=1)
    model_name: str = Field(default="pruned", min_length=1)


class Promote(Section):
    """What a candidate has to show against production before it takes its place."""

    max_accuracy_drop: float = Field(default=0.005, ge=0, lt=1)
    min_parity: float = Field(default=1.0, ge=0, le=1)
    max_more_macs: float = Field(default=0.0, ge=0)
    max_more_size: float = Field(default=0.0, ge=0)
    max_more_latency: float = Field(default=0.1, ge=0)
    require_approval: bool = False


class Tidy(Section):
    """What `flows.tidy` removes."""

    keep_days: int = Field(default=30, ge=0, le=36500)


class Frontier(Section):
    """What `flows.frontier` compares: `prune.target` by each of these."""

    targets: tuple[Target, ...] = Field(
        default=tuple(Target(mac_reduction=share) for share in (0.3, 0.5, 0.7, 0.85)), min_length=1
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

    @model_validator(mode="after")
    def _baseline_comes_from_somewhere(self) -> Self:
        if self.baseline.recipe is None and self.model.weights is None:
            raise ValueError("baseline.recipe is null and model.weights too; give a recipe to train by, or weights")
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
