"""What `params.yaml` may say: typed, frozen, read once, every fault reported together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StrictFloat, StrictInt, ValidationError, model_validator

from pruning.allocation.sensitivity import Sweep
from pruning.errors import SettingsError
from pruning.importance import FALLBACK
from tasks.config.errors import describe, old_names
from tasks.config.prune_schema import PruneOfAKind, Structured
from tasks.config.quantize_schema import Quantize
from tasks.config.target_schema import MaxDrop, Target
from tasks.config.training_schema import Baseline, Data, Model, Task, Training, check_parts, check_recipes, check_shards
from tasks.config.types import (
    MOST_THREADS,
    Arguments,
    CriterionName,
    Section,
    Share,
    Threads,
    TimedBatch,
    existing_file,
    installed,
    name_for_mlflow,
    power_of_two,
    usable_device,
    without_own_names,
)
from tasks.config.yaml_io import read_mapping


class Run(Section):
    """What holds for every stage."""

    seed: StrictInt = Field(default=0, ge=0, lt=2**31)
    """Seed of every random choice: the same seed gives the same bytes."""
    threads: StrictInt = Field(default=1, ge=1, le=MOST_THREADS)
    """CPU threads of torch; another number may change the last bits of the results."""
    shards: Annotated[StrictInt, AfterValidator(power_of_two)] = Field(default=1, ge=1, le=4096)
    """Into how many parts a batch of training is divided, and the minibatches of statistics and reconstruction, a power
    of two: as many processes can share them (machine.ranks). Another number gives other results; recipe.batch_size
    stays that of the whole batch.
    """
    device: Annotated[str, AfterValidator(usable_device)] = "cpu"
    """Where torch computes: cpu, cuda, cuda:1."""


class TaskRunner(Section):
    """A Prefect task runner whose cluster computes parts."""

    factory: Annotated[str, AfterValidator(installed)]
    """Import string of the class: prefect_ray:RayTaskRunner, prefect_dask:DaskTaskRunner, or your own."""
    arguments: Arguments = Field(default_factory=dict)
    """Keyword arguments for it: {address: "ray://head:10001"}; without an address a cluster on this machine is started.
    """


class Machine(Section):
    """How much of which machines is used; no output depends on it."""

    processes: StrictInt = Field(default=1, ge=1, le=256)
    """How many parts are computed side by side, each with run.threads threads: groups of analyze, recipes and
    allocations of an attempt, targets of `secateur frontier`. 1: one after the other, in one process.
    """
    work_pool: Annotated[str, Field(min_length=1)] | None = None
    """A Prefect work pool whose workers compute the parts, a flow run for each. null: processes of this machine."""
    task_runner: TaskRunner | None = None
    """A Prefect task runner that computes the parts, on Ray or Dask for instance. null: processes of this machine."""
    patience_minutes: StrictFloat = Field(default=10.0, gt=0, le=10_080)
    """For how long no worker may give a sign of life of a part before the process that asked computes it itself."""
    ranks: Annotated[StrictInt, AfterValidator(power_of_two)] = Field(default=1, ge=1, le=256)
    """How many processes train one model together, and share evaluation, statistics and reconstruction; a power of two
    up to run.shards; on cuda, one for each GPU.
    """
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """ddp: each of them holds the whole model. fsdp: a part of every weight, gradient and moment, for models that one
    device can't hold while they are trained. Both give the same bytes.
    """
    num_workers: StrictInt = Field(default=0, ge=0, le=256)
    """How many processes make the samples of data sets that aren't copied, ahead of what reads them."""

    @model_validator(mode="after")
    def _parts_go_to_one_place(self) -> Self:
        named = [name for name in ("work_pool", "task_runner") if getattr(self, name) is not None]
        if len(named) > 1:
            raise ValueError("work_pool and task_runner are both given; parts go to one of them: remove the other")
        if named and self.processes == 1:
            raise ValueError(
                f"{named[0]} is given and processes is 1, so that nothing would be divided into parts; set processes "
                "to how many parts it computes at once"
            )
        return self


class Analyze(Section):
    """How the sensitivity of each group is measured, and whether also if the allocation doesn't need it."""

    for_report: bool = False
    """Whether the curves are measured for the report even if the allocation doesn't need them. Changes no result."""
    criterion: CriterionName = "l2_norm"
    """The criterion that decides which channels of a group go first."""
    fallback: CriterionName = FALLBACK
    """What decides in groups for which the criterion has no scores by its definition."""
    rates: tuple[Share, ...] = Field(default=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), max_length=100)
    """Shares of its channels that a group loses in turn; [] measures nothing."""
    sweep: Sweep = "knee"
    """knee: a third of the rates for each group, where its loss rises most. full: all of them."""
    sample_fraction: StrictFloat = Field(default=1.0, ge=0.5, le=1)
    """Share of the validation samples that curves are measured on."""
    criterion_samples: StrictInt = Field(default=1024, ge=1, le=10_000_000)
    """Number of training samples that the criterion uses."""


class Profile(Section):
    """What latencies are predicted from: a measurement on this machine, or a given file."""

    provider: str = "CPUExecutionProvider"
    """ONNX Runtime's execution provider."""
    threads: tuple[Threads, ...] = Field(default=(1,), min_length=1, max_length=20)
    """Numbers of threads; the first one decides plans. 0: one for each core."""
    batch_sizes: tuple[TimedBatch, ...] = Field(default=(1, 32), max_length=20)
    """Batch sizes; the first one decides plans. [] measures nothing."""
    path: Annotated[Path, AfterValidator(existing_file)] | None = None
    """A profile that was made on the machine that the model is for, by artifacts/profile/questions/measure.py; commit
    it. null measures here; with a latency target, this machine's clock then shapes the result.
    """


class Export(Section):
    """Which ONNX operator set the file uses, and which sizes it takes."""

    opset: StrictInt = Field(default=20, ge=18, le=25)
    """Version of the ONNX operator set."""
    dynamic_axes: Literal["batch", "auto", "all"] = "auto"
    """Which axes of the inputs are dynamic. batch: that of the samples, and those whose sizes differ from batch to
    batch in the data. auto: also the length of sequences of token ids, where the model allows another one. all: also
    height and width of images.
    """


class Benchmark(Section):
    """How latency is measured."""

    batch_sizes: tuple[TimedBatch, ...] = Field(default=(1, 32), min_length=1, max_length=20)
    """Samples per call; latency is measured for each."""
    threads: tuple[Threads, ...] = Field(default=(1, 0), min_length=1, max_length=20)
    """Numbers of threads; a promotion measures with the first. 0: one for each core."""
    rounds: StrictInt = Field(default=50, ge=1, le=100_000)
    """Calls per measurement."""


MlflowName = Annotated[str, AfterValidator(name_for_mlflow)]


class Tracking(Section):
    """Where MLflow keeps its records, and under which name the model is registered."""

    uri: str = "sqlite:///mlflow.db"
    """MLflow's store: a file here, or a server such as http://127.0.0.1:5000."""
    artifacts: Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*:/")] | None = None
    """Where MLflow's files go: s3://bucket/folder, file:///folder. null: mlartifacts/ here, or the server's place."""
    experiment: MlflowName = "secateur"
    """Name of MLflow's experiment."""
    model_name: MlflowName = "pruned"
    """Name under which the model is registered."""


class Promote(Section):
    """The limits that a candidate has to keep against production to replace it."""

    max_accuracy_drop: StrictFloat = Field(default=0.005, ge=0, lt=1)
    """Largest loss of test accuracy against production, as a fraction; of production's figure, if that is no share."""
    max_drop: MaxDrop | None = None
    """In place of max_accuracy_drop, in the metric's own direction: {absolute: 0.5} or {relative: 0.02}."""
    min_parity: StrictFloat = Field(default=1.0, ge=0, le=1)
    """Least share of test samples on which ONNX Runtime and PyTorch agree; for kind dynamic 0.99 may be needed."""
    max_macs_increase: StrictFloat = Field(default=0.0, ge=0, le=1000)
    """Largest increase of MACs, as a share of production's."""
    max_size_increase: StrictFloat = Field(default=0.0, ge=0, le=1000)
    """Largest increase of the stored size, as a share of production's."""
    max_latency_increase: StrictFloat = Field(default=0.1, ge=0, le=1000)
    """Largest increase of latency at any batch size of the benchmark, as a share of production's; latency is noisy."""
    serve_quantized: bool = False
    """Whether a version serves its quantised file, where that passes its gate and is nowhere slower than in float."""
    require_approval: bool = False
    """Whether a person has to say yes, on Prefect's page or by --approve."""


class Cleanup(Section):
    """What `secateur cleanup` removes."""

    keep_days: StrictInt = Field(default=30, ge=0, le=36500)
    """Age in days from which trials, frontier workspaces and runs that no version came from are removed."""


class Frontier(Section):
    """The targets that `secateur frontier` compares."""

    targets: tuple[Target, ...] = Field(
        default=(
            *(Target(mac_reduction=share) for share in (0.5, 0.7, 0.85)),
            *(Target(latency_reduction=share) for share in (0.3, 0.5, 0.7)),
        ),
        min_length=1,
        max_length=100,
    )
    """The pipeline runs once for each of these in place of prune.target."""

    @model_validator(mode="after")
    def _targets_differ(self) -> Self:
        if twice := [target for target in self.targets if self.targets.count(target) > 1]:
            raise ValueError(f"the target {twice[0].model_dump(exclude_none=True)} occurs twice")
        return self


class Settings(Section):
    """All of `params.yaml`."""

    run: Run = Run()
    """What holds for every stage."""
    task: Task = Task()
    """What the model is for: what targets are, what is minimised, what is measured."""
    data: Data
    """Where the samples come from."""
    model: Model
    """Which network is pruned, and the weights that it starts from."""
    training: Training = Training()
    """What is minimised, what is reported, and how a batch is varied while training."""
    baseline: Baseline = Baseline()
    """How the baseline is trained; without a recipe, model.weights are taken as they are."""
    analyze: Analyze = Analyze()
    """How much accuracy each channel group costs on validation samples, if prune.allocation or for_report asks."""
    profile: Profile = Profile()
    """How long ONNX Runtime takes for each layer by its widths: latencies are predicted from it (docs/latency.md).
    Nothing but a latency target goes by it.
    """
    prune: PruneOfAKind
    """The loop: what goes, how far, at which pace, above which floor, and how each step is recovered."""
    export: Export = Export()
    """The ONNX file."""
    quantize: Quantize = Quantize()
    """A second ONNX file in integers or 16 bits, and what it has to keep of the first one's answers."""
    benchmark: Benchmark = Benchmark()
    """How latency is measured in ONNX Runtime; the report alone depends on it."""
    tracking: Tracking = Tracking()
    """Where MLflow keeps its records, and the model's name there. No stage runs again because of it."""
    cleanup: Cleanup = Cleanup()
    """What `secateur cleanup` removes. No stage runs again because of it."""
    machine: Machine = Machine()
    """What of which machines is used. No result depends on it, and no stage runs again because of it."""
    frontier: Frontier = Frontier()
    """What `secateur frontier` compares. No stage runs again because of it."""
    promote: Promote = Promote()
    """What a candidate has to show to go to production. Both are measured again, side by side, on the test samples; the
    first candidate is compared with its own baseline.
    """

    @property
    def subject(self) -> str:
        """What is pruned, as people read it: the registered name, and the factories of model and data."""
        named = self.model.from_pretrained
        model, data = (
            factory.partition(":")[2] if factory.startswith("zoo.") else factory
            for factory in (self.model.factory if named is None else Path(named).name, self.data.factory)
        )
        return f"{self.tracking.model_name} ({model} on {data})"

    @property
    def keeps_class(self) -> bool:
        """Whether the result has to be one that the stock class of a Hugging Face folder loads."""
        named = self.model.from_pretrained is not None
        return named and isinstance(self.prune, Structured) and self.prune.sizes != "per_layer"

    @property
    def measures_curves(self) -> bool:
        """Whether anything needs sensitivity curves."""
        return bool(self.analyze.rates) and (self.prune.reads_curves or self.analyze.for_report)

    @property
    def offers_streams(self) -> bool:
        """Whether channels of residual streams may go, and so have curves."""
        return self.prune.offers_streams

    @property
    def profiles_streams(self) -> bool:
        """Whether layers are timed at the widths of residual streams too, which takes ten times as many timings."""
        return self.prune.offers_streams and self.prune.reads_profile

    @property
    def goes_by(self) -> list[str]:
        """Which measurements the loop goes by."""
        asked = {"curves": self.prune.reads_curves, "profile": self.prune.reads_profile}
        return [name for name, is_read in asked.items() if is_read]

    @property
    def shaped_by_the_clock(self) -> list[str]:
        """Which settings let the time that this machine takes shape the result: none without a latency target."""
        asked = {"profile.path": self.profile.path is None, "prune.measure_latency": self.prune.measures_latency}
        return [name for name, is_so in asked.items() if is_so and self.prune.reads_profile]

    @property
    def unlike_default(self) -> dict[str, Any]:
        """What differs from the default among the settings that shape a model or judge it."""
        spared = {"machine", "tracking", "cleanup", "frontier"}
        return self.model_dump(mode="json", exclude_defaults=True, exclude=spared)

    @model_validator(mode="before")
    @classmethod
    def _own_loss_and_metric_need_no_name(cls, given: Any) -> Any:
        return without_own_names(given)

    @model_validator(mode="after")
    def _baseline_comes_from_somewhere(self) -> Self:
        if self.baseline.recipe is None and self.model.weights is None and self.model.from_pretrained is None:
            raise ValueError("baseline.recipe and model.weights are both null; give a recipe to train by, or weights")
        return self

    @model_validator(mode="after")
    def _sizes_suit_the_model(self) -> Self:
        chosen = self.prune
        if isinstance(chosen, Structured) and chosen.sizes == "uniform" and self.model.from_pretrained is None:
            raise ValueError(
                "prune.sizes is 'uniform', which goes by the numbers in a config.json; give model.from_pretrained"
            )
        if self.keeps_class and isinstance(chosen, Structured):
            blocks = chosen.blocks != "never"
            if blocks or chosen.reads_curves:
                against = "prune.blocks 'allowed'" if blocks else "an allocation by sensitivity"
                raise ValueError(
                    f"{against} treats layers of a kind unlike, which no config.json can state; set prune.sizes to "
                    "per_layer, whose result only secateur.from_pretrained loads, or choose another"
                )
        return self

    @model_validator(mode="after")
    def _recipes_suit_the_rest(self) -> Self:
        baseline = self.baseline
        check_recipes(baseline.recipe, baseline.keep_epochs, self.prune, self.training.loss, self.run.device)
        check_shards(baseline.recipe, self.prune, self.run.shards)
        return self

    @model_validator(mode="after")
    def _ranks_have_shards_and_devices(self) -> Self:
        shards, ranks, device = self.run.shards, self.machine.ranks, self.run.device
        if ranks > shards:
            raise ValueError(
                f"machine.ranks is {ranks}, run.shards {shards}; each rank needs a shard at least. Set run.shards to "
                f"{ranks} (other bytes than with {shards}), or machine.ranks to {shards} at most"
            )
        if ranks > 1 and device not in ("cpu", "cuda"):
            raise ValueError(f"run.device is {device!r} for {ranks} ranks; set it to cuda, so that rank r has cuda:r")
        if self.machine.parallel == "fsdp":
            check_parts(self.baseline.recipe, self.baseline.keep_epochs, self.prune)
        return self

    @model_validator(mode="after")
    def _allocation_has_what_it_needs(self) -> Self:
        if not self.analyze.rates and self.prune.reads_curves:
            raise ValueError("prune.allocation goes by sensitivity but analyze.rates is empty; give rates to measure")
        if (epoch := self.prune.begins_with.epoch) is not None and epoch not in self.baseline.keep_epochs:
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
    document = read_mapping(path)
    if renamed := old_names(document):
        mend = f"`secateur params --migrate {path}` rewrites it"
        raise SettingsError("\n  ".join([f"{path} was written for an earlier version; {mend}:", *renamed]))
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        faults = describe(error, Settings)
        count = "a fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise SettingsError("\n  ".join([f"{path} has {count}:", *faults])) from error
