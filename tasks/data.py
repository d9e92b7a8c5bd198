"""The data set as the pipeline keeps it: one file per split, and what a stage has to know without reading them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import Tensor, nn

from pruning.batches import Batches, TensorBatches, generators_seeded
from pruning.containers import take
from pruning.errors import DataError, SettingsError
from pruning.io.files import read_bytes, replace_file
from pruning.streams import spread_over
from pruning.task import Task
from tasks.config import import_strings
from tasks.config.schema import Settings
from tasks.data_factory import opened
from tasks.data_sets import GIVES_OTHERS, SPLITS, DataSets, Split
from tasks.source_files import hash_sources
from tasks.terminal import command_line
from tasks.workspace import Json, Workspace, contents, digest, write_json
from zoo.datasets.splits import Inputs, Shapes, Splits, inputs_of, shapes_by_name, tensors_of

FOLDER = "data"
DESCRIPTION = "meta.json"
EXAMPLE = "example.safetensors"
CALIBRATION = "calibration.safetensors"
"""Of a training stream: samples spread over it, which criteria and recovery ask for again and again."""
ANSWERS = "answers.safetensors"
"""In the baseline's folder: its answer to each sample, if the data have no labels."""

NUM_PROBES = 64
"""Samples of each split whose hashes `prepare` keeps, where it copies none."""
_NUM_CHECKED = 8  # of these, before a stage reads a split

Identity = Literal["content", "files", "declared"]


class Description(BaseModel):
    """Facts about a data set.

    Attributes:
        fingerprint: sha256 over everything in it; where only files or a declaration stand for it, over these and the
            samples that were looked at.
        classes: Names in the order of the targets; none in a regression.
        input_shape: Of one sample, without the batch axis; of several inputs, by position or name; None in it for a
            size that differs from batch to batch.
        num_samples: Of each split.
        labelled: Whether the samples have labels; if not, the baseline's answers take their place.
        identity: What the fingerprint is of: the content of all samples, the files that they are read from, or what the
            user's function declares, unverified.
        copied: Whether all samples lie in the workspace; if not, every stage opens the user's data set again.
        sources: Where they are not copied: what the data set says that it reads.
        sources_sha256: Over the files that these name, where they tell whether the data are the same.
        declared: What the user's function says that stands for the content.
        probes: Where they are not copied: split -> number of a sample -> hash of it as it is read.
        streams: Splits that are read in passes from their beginning, since nothing else can be asked of a stream.
        input_name: The key of the only input, where a data set's samples give it by name; models get it by position.
        tokens: The text of each token id, where inputs are such and the data say it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    classes: tuple[str, ...]
    input_shape: Shapes
    num_samples: dict[str, int]
    labelled: bool = True
    identity: Identity = "content"
    copied: bool = True
    sources: tuple[str, ...] = ()
    sources_sha256: str | None = None
    declared: str | None = None
    probes: dict[Split, dict[int, str]] = Field(default_factory=dict)
    streams: tuple[Split, ...] = ()
    input_name: str | None = None
    tokens: tuple[str, ...] = ()

    @property
    def offered(self) -> dict[str, Any]:
        """The arguments that a model's factory is offered."""
        named = {"num_classes": len(self.classes)} if self.classes else {}
        return {"input_shape": self.input_shape, **named}


def task_of(settings: Settings) -> Task:
    """Make the task, with the loss that the settings name in place of its own.

    Raises:
        SettingsError: It isn't one.
    """
    reference, chosen = settings.task.name, settings.training.loss
    found = import_strings.call(reference, settings.task.kwargs)
    if not isinstance(found, Task):
        raise SettingsError(
            f"task.name {reference!r} gave a {type(found).__name__}; expected a subclass of secateur.Task, or a "
            "function that returns an object of one"
        )
    needed = {"loss(outputs, targets)": (Task.loss, chosen), "metric()": (Task.metric, settings.training.metric)}
    for what, (undefined, named) in needed.items():
        if named is None and getattr(type(found), undefined.__name__) is undefined:
            name = undefined.__name__
            raise SettingsError(f"task.name {reference!r} defines no {what}; define it, or name a training.{name}")
    return found if chosen is None else found.with_loss(on_device(import_strings.made(chosen), settings))


def on_device(found: Any, settings: Settings) -> Any:
    """Bring what holds tensors to the device of the run."""
    return found.to(settings.run.device) if isinstance(found, nn.Module) else found


def save_splits(splits: Splits, folder: Path, sets: DataSets | None = None) -> Description:
    """Write a data set into a folder; `sets`: what it was read from."""
    for name, samples in splits.named():
        targets = {"targets": samples.targets.clone()} if splits.labelled else {}  # may be the inputs, as of text
        replace_file(folder / f"{name}.safetensors", _formatted({**tensors_of(samples.inputs), **targets}))
    description = Description(
        fingerprint=splits.fingerprint(),
        classes=splits.classes,
        input_shape=splits.input_shape,
        num_samples={name: len(samples) for name, samples in splits.named()},
        labelled=splits.labelled,
        input_name=None if sets is None else sets.input_name,
        tokens=() if sets is None else sets.tokens,
    )
    save_description(description, take(splits.validation.inputs, slice(0, 1)), folder)
    return description


def _formatted(tensors: Mapping[str, Tensor]) -> bytes:
    return format_safetensors({key: tensor.contiguous() for key, tensor in tensors.items()})


def read_description(workspace: Workspace) -> Description:
    """Read the facts about the workspace's data set.

    Raises:
        WorkspaceError: `prepare` hasn't run, or the file is damaged.
    """
    return workspace.read_json(FOLDER, DESCRIPTION, "prepare", Description)


def with_shapes(sets: DataSets) -> DataSets:
    """Look at some samples, and return the data sets as stages read them: each batch is checked against these.

    Raises:
        DataError: Samples can't be read, or differ in more than sizes; or the classes aren't known.
    """
    few = {
        name: range(min(_NUM_CHECKED, len(part)))
        if name in sets.streams
        else spread_over(len(part), _NUM_CHECKED).tolist()
        for name, part in sets.parts.items()
    }
    return sets.checking(sets.shape(few))


def describe_sets(sets: DataSets, identity: Identity, workspace: Workspace) -> Description:
    """Describe data sets that aren't copied: look at some samples, and at what tells whether they are the same.

    Raises:
        DataError: Samples can't be read, or change from one reading to the next.
    """
    assert sets.input_shape is not None, "they are those of `with_shapes`"
    for name in SPLITS:
        if sets.varies(name) and name != "train":
            raise DataError(
                f"{sets.reference!r}: {name} gives other samples in each epoch; expected the same, since models are "
                "compared on them: leave random transforms to train"
            )
    numbers = {name: _probed(len(part), name in sets.streams) for name, part in sets.parts.items()}
    probes = {name: dict(zip(found, sets.probe(name, found), strict=True)) for name, found in numbers.items()}
    for name in sets.streams:
        if sets.probe(name, numbers[name]) != list(probes[name].values()):
            raise DataError(GIVES_OTHERS.format(f"{sets.reference!r}: {name}"))
    num_samples = {str(name): len(part) for name, part in sets.parts.items()}
    sources_sha256 = hash_sources(sets.sources, workspace) if identity == "files" else None
    content = [sets.content(name) for name in SPLITS] if identity == "content" else None
    known: Json = [identity, content, sources_sha256, sets.declared if identity == "declared" else None]
    classes = sets.classes or ()
    return Description(
        fingerprint=digest([*known, classes, num_samples, probes]),
        classes=classes,
        input_shape=inputs_of(sets.input_shape),
        num_samples=num_samples,
        labelled=sets.labelled,
        identity=identity,
        copied=False,
        sources=sets.sources,
        sources_sha256=sources_sha256,
        declared=sets.declared,
        probes=probes,
        streams=sets.streams,
        input_name=sets.input_name,
        tokens=sets.tokens,
    )


def _probed(number: int, is_stream: bool) -> list[int]:
    """Return which samples are looked at; of a stream the first ones too, which are reached without the rest."""
    first = range(min(_NUM_CHECKED, number)) if is_stream else ()
    return sorted({*spread_over(number, NUM_PROBES).tolist(), *first})


def save_description(
    description: Description, example: Inputs, folder: Path, kept: TensorBatches | None = None
) -> None:
    """Write what is known of a data set, the inputs of one sample, and those samples of a stream that are kept."""
    if kept is not None:
        targets = {} if kept.targets is None else {"targets": kept.targets}
        replace_file(folder / CALIBRATION, _formatted({**tensors_of(kept.inputs), **targets}))
    replace_file(folder / EXAMPLE, _formatted(tensors_of(example)))
    write_json(folder / DESCRIPTION, description.model_dump(mode="json"))


def identity_of(sets: DataSets, settings: Settings) -> Identity:
    """Return what tells whether data sets are the same, as the settings ask.

    Raises:
        DataError: They don't say what is needed for it.
    """
    asked = settings.data.identity
    if asked == "auto":
        return "files" if sets.sources else "declared" if sets.declared is not None else "content"
    if asked == "files" and not sets.sources:
        raise DataError(
            f"data.identity is files, but {sets.reference!r} names no sources; return the files, folders, globs or "
            "URLs that the data set reads as sources"
        )
    if asked == "declared" and sets.declared is None:
        raise DataError(
            f"data.identity is declared, but {sets.reference!r} gives no fingerprint; return a text that changes "
            "whenever the samples do, such as a version or a hash, as fingerprint"
        )
    return asked


def open_sets(settings: Settings, lengths: Mapping[Split, int] | None = None) -> Splits | DataSets:
    """Call the user's function and open what it returns.

    Args:
        settings: Data, task, machine.
        lengths: Of streams that are read in passes, where they have been counted.

    Raises:
        SettingsError: It can't be called, or raised.
        DataError: It didn't return a data set.
    """
    reference, task = settings.data.factory, task_of(settings)
    with generators_seeded(settings.run.seed):  # in every stage alike: it may divide samples at random
        found = import_strings.call(reference, settings.data.kwargs)
    workers, most_bytes = settings.machine.num_workers, settings.data.copy_below_bytes
    sets = opened(found, reference, task, num_workers=workers, most_bytes=most_bytes, lengths=lengths or {})
    if isinstance(sets, Splits):
        return sets
    return replace(sets, pin_memory=settings.run.device.startswith("cuda"))


_opened: dict[str, DataSets] = {}  # the last that were opened, by what they have to be
_seen: set[tuple[str, Split]] = set()  # splits of theirs that have been probed


def _read_calibration(workspace: Workspace) -> TensorBatches:
    path = workspace.folder(FOLDER) / CALIBRATION
    tensors = _read_tensors(path, "prepare")
    return TensorBatches(_inputs_in(tensors, path), tensors.get("targets"))


def _opened_again(settings: Settings, workspace: Workspace, data: Description, split: Split) -> Batches:
    """Return the samples of a split that isn't copied, after a look at some of them."""
    asked = settings.model_dump(mode="json", include={"data", "task", "machine"})
    key = digest([asked, data.fingerprint])
    if key not in _opened:
        _opened.clear()
        _seen.clear()
        sets = open_sets(settings, {name: data.num_samples[name] for name in data.streams})
        if isinstance(sets, Splits):
            raise _changed(settings, "it returns tensors now")
        kept = _read_calibration(workspace) if "train" in data.streams else None
        _opened[key] = replace(sets.checking(shapes_by_name(data.input_shape)), kept=kept)
    sets, part = _opened[key], _opened[key].parts[split]
    if (key, split) not in _seen:
        if data.identity == "declared" and sets.declared != data.declared:
            raise _changed(settings, f"its fingerprint is {sets.declared!r}, it was {data.declared!r}")
        if len(part) != data.num_samples[split]:
            raise _changed(settings, f"{split} holds {len(part):,} samples, it held {data.num_samples[split]:,}")
        known = data.probes[split]
        places = range(_NUM_CHECKED) if split in data.streams else spread_over(len(known), _NUM_CHECKED).tolist()
        numbers = [list(known)[at] for at in places if at < len(known)]
        for number, found in zip(numbers, sets.probe(split, numbers), strict=True):
            if found != known[number]:
                raise _changed(settings, f"sample {number:,} of {split} isn't what it was")
        _seen.add((key, split))
    return part


def _changed(settings: Settings, what: str) -> DataError:
    return DataError(
        f"the data of {settings.data.factory!r} changed after {command_line('run prepare')}: {what}. Bring back what "
        f"was there, or delete the folder of prepared data and run {command_line('run prepare')} again"
    )


def read_split(settings: Settings, workspace: Workspace, split: Split) -> Batches:
    """Return the samples of one split; if it has no labels, the baseline's answers are its targets.

    Raises:
        WorkspaceError: `prepare` hasn't run, or `baseline` where its answers are needed.
        DataError: A file is missing or damaged, or the user's data set changed.
    """
    inputs = _read(settings, workspace, split)
    if isinstance(inputs, TensorBatches) and inputs.targets is not None:
        return inputs
    if not isinstance(inputs, TensorBatches) and read_description(workspace).labelled:
        return inputs
    answers = _read_tensors(workspace.folder("baseline") / ANSWERS, "baseline", split)[split]
    try:
        return inputs.with_targets(answers)
    except DataError as error:
        path = workspace.folder("baseline") / ANSWERS
        raise DataError(f"{path} doesn't fit the data ({error}); {_mend(path, 'baseline')}") from error


def read_inputs(settings: Settings, workspace: Workspace, split: Split) -> Batches:
    """Return the samples of one split, whose targets mean nothing if there are no labels.

    Raises:
        WorkspaceError: `prepare` hasn't run.
        DataError: A file is missing or damaged, or the user's data set changed.
    """
    return _read(settings, workspace, split)


def _read(settings: Settings, workspace: Workspace, split: Split) -> Batches:
    data = read_description(workspace)
    if not data.copied:
        return _opened_again(settings, workspace, data, split)
    path = workspace.folder(FOLDER) / f"{split}.safetensors"
    tensors = _read_tensors(path, "prepare")
    try:
        return TensorBatches(_inputs_in(tensors, path), tensors.get("targets"))
    except DataError as error:
        raise DataError(f"{path} holds no samples ({error}); {_mend(path, 'prepare')}") from error


def read_example(workspace: Workspace) -> Inputs:
    """Read the inputs of the first validation sample, [1, ...]: a file of its own, so that no split is read for it.

    Of several, tensors by position or by name.

    Raises:
        WorkspaceError: `prepare` hasn't run.
        DataError: The file is missing or damaged.
    """
    path = workspace.folder(FOLDER) / EXAMPLE
    return _inputs_in(_read_tensors(path, "prepare"), path)


def _inputs_in(tensors: Mapping[str, Tensor], path: Path) -> Inputs:
    try:
        found: Inputs = inputs_of(tensors)
        return found
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} holds no inputs; {_mend(path, 'prepare')}") from error


def save_answers(answers: Mapping[Split, Tensor], folder: Path) -> None:
    """Write the baseline's answers to each split into its folder."""
    replace_file(folder / ANSWERS, format_safetensors({str(split): found for split, found in answers.items()}))


def _mend(path: Path, maker: str) -> str:
    return f"delete {path.parent} and run {command_line(f'run {maker}')} again"


def _read_tensors(path: Path, maker: str, *names: str) -> dict[str, Tensor]:
    """Read these tensors from a file whose hash was recorded."""
    mend = _mend(path, maker)
    written = contents(path.parent, maker).get(path.name)
    try:
        content = read_bytes(path, error=DataError, mend=mend, most=None)
    except FileNotFoundError:
        raise DataError(f"{path} isn't there; {mend}") from None
    if sha256(content).hexdigest() != written:
        raise DataError(f"{path} changed after it was written; {mend}")
    try:
        found = dict(parse_safetensors(content))
    except Exception as error:  # a file of the right hash that something else wrote: the parser raises what it likes
        raise DataError(f"{path} can't be read ({error}); {mend}") from error
    if lacking := [name for name in names if name not in found]:
        raise DataError(f"{path} holds no {', '.join(lacking)}; {mend}")
    return found
