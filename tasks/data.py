"""The data set as the pipeline keeps it: one file per split, and what a stage has to know without reading them."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import Tensor

from pruning.errors import DataError
from pruning.io.atomic import replace_file
from pruning.io.json_files import read_bytes
from tasks.terminal import command_line
from tasks.workspace import Workspace, contents, write_json
from zoo.datasets.splits import Samples, Splits

FOLDER = "data"
DESCRIPTION = "meta.json"
EXAMPLE = "example.safetensors"
ANSWERS = "answers.safetensors"
"""In the baseline's folder: its answer to each sample, if the data have no labels."""

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Description(BaseModel):
    """Facts about a data set.

    Attributes:
        fingerprint: sha256 over everything in it.
        classes: Names in the order of the targets.
        input_shape: Of one sample, without the batch axis.
        num_samples: Of each split.
        labelled: Whether the samples have labels; if not, the baseline's answers take their place.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    num_samples: dict[str, int]
    labelled: bool = True

    @property
    def measure(self) -> str:
        """The name of the share of right answers."""
        return "accuracy" if self.labelled else "agreement with the baseline"

    @property
    def offered(self) -> dict[str, Any]:
        """The arguments that a model's factory is offered."""
        return {"input_shape": self.input_shape, "num_classes": len(self.classes)}


def as_splits(found: Any, reference: str) -> Splits:
    """Check what a user's data function returned: any object with the three splits and the classes is accepted.

    Raises:
        DataError: Something is missing or malformed.
    """
    if isinstance(found, Splits):
        return found
    try:
        parts, classes = [getattr(found, name) for name in SPLITS], tuple(found.classes)
        bare = [name for name, part in zip(SPLITS, parts, strict=True) if getattr(part, "targets", None) is None]
        if bare and len(bare) < len(SPLITS):
            raise DataError(
                f"{reference!r}: {bare[0]} has no targets, other splits have; expected all or none with them"
            )
        if bare:
            train, validation, test = (part.inputs for part in parts)
            return Splits.unlabelled(train, validation, test, classes)
        labelled = [Samples(part.inputs, part.targets) for part in parts]
        return Splits(labelled[0], labelled[1], labelled[2], classes)
    except AttributeError as error:
        raise DataError(
            f"{reference!r} returned a {type(found).__name__} ({error}); expected zoo.datasets.Splits, or an object "
            "with train, validation and test, each with inputs and targets (or all without), and classes"
        ) from error
    except ValueError as error:
        raise DataError(f"{reference!r} returned malformed data: {error}") from error


def save_splits(splits: Splits, folder: Path) -> Description:
    """Write a data set into a folder."""
    for name, samples in splits.named():
        tensors = {"inputs": samples.inputs.contiguous()}
        if splits.labelled:
            tensors["targets"] = samples.targets.contiguous()
        replace_file(folder / f"{name}.safetensors", format_safetensors(tensors))
    replace_file(folder / EXAMPLE, format_safetensors({"inputs": splits.validation.inputs[:1].contiguous()}))
    description = Description(
        fingerprint=splits.fingerprint(),
        classes=splits.classes,
        input_shape=splits.input_shape,
        num_samples={name: len(samples) for name, samples in splits.named()},
        labelled=splits.labelled,
    )
    write_json(folder / DESCRIPTION, description.model_dump(mode="json"))
    return description


def read_description(workspace: Workspace) -> Description:
    """Read the facts about the workspace's data set.

    Raises:
        WorkspaceError: `prepare` hasn't run, or the file is damaged.
    """
    return workspace.read_json(FOLDER, DESCRIPTION, "prepare", Description)


def read_split(workspace: Workspace, split: Split) -> Samples:
    """Read one split; if it has no labels, the baseline's answers are its targets.

    Raises:
        WorkspaceError: `prepare` hasn't run, or `baseline` where its answers are needed.
        DataError: The file is missing or damaged.
    """
    path = workspace.folder(FOLDER) / f"{split}.safetensors"
    tensors = _read_tensors(path, "prepare", "inputs")
    if "targets" not in tensors:
        tensors["targets"] = _read_tensors(workspace.folder("baseline") / ANSWERS, "baseline", split)[split]
    try:
        return Samples(tensors["inputs"], tensors["targets"])
    except ValueError as error:
        raise DataError(f"{path} holds no samples ({error}); {_mend(path, 'prepare')}") from error


def read_inputs(workspace: Workspace, split: Split) -> Tensor:
    """Read the inputs of one split, [N, ...].

    Raises:
        WorkspaceError: `prepare` hasn't run.
        DataError: The file is missing or damaged.
    """
    return _read_tensors(workspace.folder(FOLDER) / f"{split}.safetensors", "prepare", "inputs")["inputs"]


def read_example(workspace: Workspace) -> Tensor:
    """Read the inputs of the first validation sample, [1, ...]: a file of its own, so that no split is read for it.

    Raises:
        WorkspaceError: `prepare` hasn't run.
        DataError: The file is missing or damaged.
    """
    return _read_tensors(workspace.folder(FOLDER) / EXAMPLE, "prepare", "inputs")["inputs"]


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


def spread(samples: Samples, count: int) -> Samples:
    """Return this many of the samples, spread evenly; all of them if there are no more."""
    return samples if count >= len(samples) else samples.take(torch.arange(count) * len(samples) // count)
