"""The settings of what is trained: model, data, task, training, baseline; and what recipes need of the others."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, StrictBool, StrictInt, model_validator

from pruning.errors import SettingsError
from pruning.training.fsdp import check_recipe
from pruning.training.recipe import Epochs, LearningRate, Name, Recipe, ScheduleName
from tasks.config.loop_schema import Prune
from tasks.config.types import (
    LOSSES,
    METRICS,
    TASKS,
    Arguments,
    ImportString,
    Section,
    existing_file,
    importable,
    named,
)

HUGGING_FACE = "pruning.io.huggingface:Pretrained"
"""The factory of models that `from_pretrained` names."""


class Model(Section):
    """Which network: a function that returns a module, and weights that it starts from; or a Hugging Face folder."""

    factory: ImportString
    """Import string, such as my_package.net:make_model, of a function that returns a torch.nn.Module; input_shape and
    num_classes are passed if it takes them. Left out where from_pretrained is given.
    """
    kwargs: Arguments = Field(default_factory=dict)
    """Keyword arguments for the factory; with from_pretrained fields of the configuration, such as {num_labels: 3}."""
    from_pretrained: str | None = Field(default=None, min_length=1)
    """A Hugging Face folder with config.json and model.safetensors, in place of factory and weights; with
    allow_download also the name of a repository on the hub, org/name. Pickled weights aren't read.
    """
    auto_class: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] | None = None
    """The class that from_pretrained is called of, such as AutoModelForSequenceClassification; null: the one that
    config.json names.
    """
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """Commit of a repository on the hub, which allow_download needs."""
    allow_download: StrictBool = False
    """Whether from_pretrained may name a repository on the hub, which is downloaded into Hugging Face's cache."""
    trust_remote_code: StrictBool = False
    """Whether Python code that the folder brings along is run. Read it first."""
    weights: Annotated[Path, AfterValidator(existing_file)] | None = None
    """Weights to start from: a .safetensors or .pt file, or the index of several, model.safetensors.index.json."""

    @model_validator(mode="before")
    @classmethod
    def _from_pretrained_needs_no_factory(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("from_pretrained") is not None:
            return {"factory": HUGGING_FACE, **given}
        return given

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.from_pretrained is None:
            needless = {"auto_class": None, "revision": None, "allow_download": False, "trust_remote_code": False}
            if given := [name for name, default in needless.items() if getattr(self, name) != default]:
                raise ValueError(f"{given[0]} goes with from_pretrained; remove it, or give from_pretrained")
            if self.factory == HUGGING_FACE:
                raise ValueError("give from_pretrained, a Hugging Face folder, in place of this factory")
            return self
        if self.factory != HUGGING_FACE or self.weights is not None:
            other = "weights" if self.factory == HUGGING_FACE else "factory"
            raise ValueError(f"from_pretrained and {other} are both given; expected one: the folder has the weights")
        if self.allow_download and not Path(self.from_pretrained).is_dir() and self.revision is None:
            raise ValueError(
                "allow_download needs revision, the commit of the repository (40 hexadecimal digits): what a branch "
                "holds changes, and nothing would notice"
            )
        if importlib.util.find_spec("transformers") is None:
            raise ValueError('from_pretrained needs transformers; run `pip install "secateur[hf]"`')
        return self

    @property
    def source(self) -> str:
        """What messages call it: the setting that names it, and the name."""
        if self.from_pretrained is not None:
            return f"model.from_pretrained {self.from_pretrained!r}"
        return f"model.factory {self.factory!r}"


class Data(Section):
    """Where the samples come from: a function that returns `secateur.Splits`, or data sets (`secateur.DataModule`)."""

    factory: ImportString
    """Import string, such as my_package.data:load, of a function that returns the three splits: secateur.Splits, or
    train, validation and test as torch data sets, as an object or a dict.
    """
    kwargs: Arguments = Field(default_factory=dict)
    """Keyword arguments for the factory."""
    identity: Literal["auto", "content", "files", "declared"] = "auto"
    """What tells whether data sets are the same: the content of all samples; the files, by content, that they name as
    sources; or the fingerprint that they declare, unverified. auto: content where samples are copied, else files where
    sources are named, else declared where there is a fingerprint, else content. Some samples are compared always.
    """
    copy_below_bytes: StrictInt = Field(default=2**30, ge=0, le=10**13)
    """Data sets that are smaller as tensors are copied into data/, unless identity is files or declared, or training
    samples are drawn at random. Of others nothing but an example is kept: every stage opens them again.
    """


class Task(Section):
    """What the model is for: how a batch is taken apart, what is minimised and what is measured."""

    name: Annotated[str, named("task", TASKS)] = TASKS["classification"]
    """classification, multi_label, regression, segmentation, image_to_image, sequence_classification,
    token_classification, causal_lm, embedding, detection, or the import string of a class of your own,
    my_package.task:Counting.
    """
    kwargs: Arguments = Field(default_factory=dict)
    """Keyword arguments for it, such as {ignore_index: 255} for segmentation."""


class Augment(Section):
    """How inputs are augmented during training: a function of the inputs and a generator."""

    function: ImportString
    """Import string of a function (inputs, generator) -> inputs."""
    kwargs: Arguments = Field(default_factory=dict)
    """Further keyword arguments for the function."""


class Training(Section):
    """What is minimised, what is reported, and how a batch is varied while training."""

    loss: Annotated[str, named("loss", LOSSES)] | None = None
    """cross_entropy, or the import string of a function (outputs, targets) -> mean over the samples, or (sum, count);
    null: the task's own.
    """
    metric: Annotated[str, named("metric", METRICS)] | None = None
    """accuracy, macro_f1, mean_iou, multi_label_f1, perplexity, psnr, r2, rmse, valid_accuracy; or an import string of
    a function (outputs, targets) -> one value in [0, 1] per sample, or of a class or object with update, compute, reset
    and higher_is_better, as torchmetrics has them. null: the task's own.
    """
    metric_key: str | None = None
    """Which figure decides, where the metric's compute gives several by name."""
    augment: Augment | None = None
    """How a batch of inputs is varied while training, such as {function: 'zoo.augment:crop', kwargs: {padding: 1}};
    null: not at all.
    """
    batch_size: StrictInt = Field(default=256, ge=1, le=1_000_000)
    """Samples per batch of an evaluation."""


class FromScratch(Recipe):
    """How an untrained network is trained: longer and at a higher learning rate than a pruned one."""

    name: Name = "baseline"
    """What reports call it."""
    epochs: Epochs = 12
    """Passes over the training samples."""
    learning_rate: LearningRate = "auto"
    """Highest learning rate of the run. auto: 0.1 with SGD, 0.002 with AdamW, the default of others."""
    schedule: ScheduleName = "one_cycle"
    """Learning rate over the run."""
    rates: ClassVar[dict[str, float]] = {"sgd": 0.1, "adamw": 2e-3}


class Baseline(Section):
    """How the baseline is trained; without a recipe `model.weights` are taken as they are."""

    recipe: FromScratch | None = None
    """How the baseline is trained; null takes model.weights as they are."""
    keep_epochs: tuple[Annotated[StrictInt, Field(ge=1, le=100_000)], ...] = Field(default=(), max_length=1000)
    """Epochs of that training whose weights are kept, for prune.start."""

    @model_validator(mode="after")
    def _epochs_are_trained(self) -> Self:
        last = 0 if self.recipe is None else self.recipe.epochs
        if beyond := [epoch for epoch in self.keep_epochs if epoch > last]:
            raise ValueError(f"keep_epochs names {beyond}; the recipe trains {last} epochs")
        return self


def check_recipes(
    baseline: Recipe | None, kept_epochs: Collection[int], prune: Prune, loss: str | None, device: str
) -> None:
    """See that recipes suit the rest of the settings.

    Args:
        baseline: The baseline's recipe.
        kept_epochs: Of the baseline, whose weights are kept.
        prune: With the recipes of fine-tuning.
        loss: The import string of the loss; None for the task's own.
        device: Of the run.

    Raises:
        ValueError: One doesn't; the text names it.
    """
    if baseline is not None:
        importable(baseline)
        _check_baseline(baseline, kept_epochs)
    for recipe in (*([] if baseline is None else [baseline]), *prune.recipes):
        if recipe.label_smoothing > 0 and loss not in (None, *LOSSES.values()):
            raise ValueError(
                f"recipe {recipe.name!r} sets label_smoothing, which only the built-in loss knows; smooth inside "
                f"{loss!r}, such as an object CrossEntropyLoss(label_smoothing=0.1) of your own "
                "module"
            )
        if recipe.channels_last and not device.startswith("cuda"):
            raise ValueError(
                f"recipe {recipe.name!r} sets channels_last, which is for CUDA alone; run.device is "
                f"{device!r}: set it to false"
            )
    for recipe in prune.recipes:
        if prune.undo_training and (recipe.ema is not None or recipe.early_stopping is not None):
            raise ValueError(
                f"recipe {recipe.name!r} has ema or early_stopping, and prune.undo_training undoes epochs; choose one "
                "of both"
            )
        if prune.kind == "dynamic" and (recipe.early_stopping is not None or recipe.trainer is not None):
            raise ValueError(
                f"recipe {recipe.name!r} has early_stopping or a trainer, but gates have to be trained to their end; "
                "remove it"
            )


def check_shards(baseline: Recipe | None, prune: Prune, shards: int) -> None:
    """See that the batches of all recipes can be divided.

    Raises:
        ValueError: One can't; the text names its recipe.
    """
    for recipe in (*([] if baseline is None else [baseline]), *prune.recipes) if shards > 1 else ():
        if recipe.trainer is not None:
            raise ValueError(
                f"recipe {recipe.name!r} names a trainer, which takes its batches whole; run.shards is {shards}: set "
                "it (and machine.ranks) to 1, or remove trainer"
            )
        if recipe.batch_size < 2 * shards:
            raise ValueError(
                f"recipe {recipe.name!r}: batch_size is {recipe.batch_size} and run.shards {shards}, which leaves a "
                f"shard fewer than two samples; set batch_size to {2 * shards} at least, or run.shards lower"
            )


def check_parts(baseline: Recipe | None, kept_epochs: Collection[int], prune: Prune) -> None:
    """See that everything can be trained while each process holds a part of every weight.

    Raises:
        ValueError: Something can't.
    """
    if prune.kind != "structured":
        raise ValueError(f"machine.parallel is fsdp, but {prune.kind} pruning trains whole weights; set it to ddp")
    if kept_epochs:
        raise ValueError("machine.parallel is fsdp, but baseline.keep_epochs copies whole weights; set it to ddp")
    for recipe in (*([] if baseline is None else [baseline]), *prune.recipes):
        try:
            check_recipe(recipe)
        except SettingsError as fault:
            raise ValueError(str(fault)) from None


def _check_baseline(recipe: Recipe, kept_epochs: Collection[int]) -> None:
    if recipe.distillation > 0:
        raise ValueError("baseline.recipe distils, but there is no teacher before the baseline; set distillation to 0")
    if kept_epochs and (recipe.steps is not None or recipe.trainer is not None or recipe.early_stopping is not None):
        raise ValueError(
            "baseline.keep_epochs counts epochs, but baseline.recipe has steps, a trainer or early_stopping, with "
            "which an epoch may never come; remove one of both"
        )
