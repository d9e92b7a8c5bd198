"""What is timed: the user's model and a few of their samples, whether `prepare` has run or not. Nothing is written."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from pruning.batches import Batches, TensorBatches
from pruning.containers import Inputs, as_call, take
from pruning.errors import DataError
from pruning.task import MultiLabel
from tasks.config.schema import Settings
from tasks.data import (
    FOLDER,
    Description,
    open_sets,
    read_description,
    read_inputs,
    save_description,
    save_splits,
    task_of,
    with_shapes,
)
from tasks.data_factory import check_targets
from tasks.data_sets import SPLITS, DataSets, Split
from tasks.determinism import begin
from tasks.models import load_given_weights, loss_and_metric, make_factory, on
from tasks.stages.prepare import is_copied
from tasks.workspace import Workspace, seal
from zoo.datasets.splits import Samples, Splits, inputs_of, tensors_of

_FEW = 16  # samples that stand for the data where the pipeline's own checks run


@dataclass(frozen=True)
class Subject:
    """A model and samples to time things on.

    Attributes:
        settings: Of the run.
        data: What is known of the samples.
        inputs: The samples of each split; without targets, if they aren't labelled.
        num_bytes: What `prepare` writes of them, about.
    """

    settings: Settings
    data: Description
    inputs: Mapping[Split, Batches]
    num_bytes: float

    @cached_property
    def example(self) -> Inputs:
        """One validation sample, [1, ...], on the device of the run."""
        return on(self.settings.run.device, take(self.inputs["validation"].first(1).inputs, slice(0, 1)))

    @cached_property
    def model(self) -> nn.Module:
        """The original model, on the device of the run, with the weights that were brought along, if any."""
        begin(self.settings)
        made = make_factory(self.settings, self.data)().to(self.settings.run.device)
        load_given_weights(made, self.settings)
        return made.eval()

    def copy_of_model(self) -> nn.Module:
        """Return a copy that may be trained."""
        return copy.deepcopy(self.model)

    def some(self, split: Split, count: int) -> Batches:
        """Return so many samples of a split, spread over it; where they have no targets, the model's answers."""
        found = self.inputs[split].spread(count)
        if self.data.labelled:
            return found
        loaded, task = found.loaded(), loss_and_metric(self.settings)[0]
        answers = []
        with torch.no_grad():
            for batch in loaded.ordered(self.settings.training.batch_size):
                args, kwargs = as_call(batch.to(torch.device(self.settings.run.device)).inputs)
                answers.append(task.answers(self.model(*args, **kwargs)).cpu())
        return loaded.with_targets(task.join(answers))

    def as_workspace(self, root: Path) -> Workspace:
        """Write a few samples as `prepare` would, so that the pipeline's own checks can run on them."""
        place = Workspace(root)
        parts = {name: self.inputs[name].spread(_FEW).loaded() for name in SPLITS}
        folder = place.folder(FOLDER)
        folder.mkdir(parents=True)
        example = take(parts["validation"].inputs, slice(0, 1))
        if self.data.labelled:
            train, validation, test = (Samples(one.inputs, one.targets) for one in parts.values())
            splits = Splits(train, validation, test, self.data.classes)
        else:
            whole = parts["train"].inputs, parts["validation"].inputs, parts["test"].inputs
            splits = Splits.unlabelled(*whole, self.data.classes)
        description = save_splits(splits, folder)
        save_description(description.model_copy(update={"input_shape": self.data.input_shape}), example, folder)
        seal(folder, "samples of a dry run")
        return place


class UncountedError(DataError):
    """A stream, whose samples nobody has counted."""


def open_subject(settings: Settings, workspace: Workspace, *, prepared: bool) -> Subject:
    """Open the samples: those of the workspace, or, before `prepare` has run, those that the user's function gives.

    Args:
        settings: Of the run.
        workspace: Of the run; it is only read.
        prepared: Whether `prepare` is current there.

    Raises:
        UncountedError: They are a stream that `prepare` hasn't counted.
        DataError: They aren't what `prepare` takes.
        SettingsError: The function can't be called.
    """
    if prepared:
        held = sum(file.stat().st_size for file in workspace.folder(FOLDER).iterdir())
        inputs = {name: read_inputs(settings, workspace, name) for name in SPLITS}
        return Subject(settings, read_description(workspace), inputs, held)
    begin(settings)
    found = open_sets(settings, dict.fromkeys(SPLITS, 0))
    if isinstance(found, DataSets):
        if found.streams:
            raise UncountedError(f"{', '.join(found.streams)} of {settings.data.factory!r} is a stream, counted")
        task, copied = task_of(settings), is_copied(found, settings)
        if not (copied and found.classes is None and (task.by_class or isinstance(task, MultiLabel))):
            return _of_sets(settings, with_shapes(found), copied)
        found = found.read()  # to count the classes, as `prepare` does
    check_targets(found, settings.data.factory, task_of(settings))
    data = Description(
        fingerprint="",
        classes=found.classes,
        input_shape=found.input_shape,
        num_samples={name: len(part) for name, part in found.named()},
        labelled=found.labelled,
    )
    samples: dict[Split, Samples] = {"train": found.train, "validation": found.validation, "test": found.test}
    parts = {name: TensorBatches(one.inputs, one.targets if found.labelled else None) for name, one in samples.items()}
    tensors = [tensor for one in samples.values() for tensor in (*tensors_of(one.inputs).values(), one.targets)]
    return Subject(settings, data, parts, sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _of_sets(settings: Settings, sets: DataSets, copied: bool) -> Subject:
    assert sets.input_shape is not None, "they are those of `with_shapes`"
    data = Description(
        fingerprint="",
        classes=sets.classes or (),
        input_shape=inputs_of(sets.input_shape),
        num_samples={str(name): len(part) for name, part in sets.parts.items()},
        labelled=sets.labelled,
        copied=copied,
    )
    return Subject(settings, data, sets.parts, sets.num_bytes if copied else 0)
