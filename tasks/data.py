"""The data set as the pipeline keeps it: one file per split, and what a stage has to know without reading them."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import Tensor

from pruning.errors import DataError
from tasks.workspace import Workspace, contents, replace_file, write_json
from zoo.datasets.splits import Samples, Splits

FOLDER = "data"
DESCRIPTION = "meta.json"
Split = Literal["train", "validation", "test"]


class Description(BaseModel):
    """What is known of a data set.

    Attributes:
        fingerprint: sha256 over everything in it.
        classes: Names in the order of the targets.
        input_shape: Of one sample, without the batch axis.
        num_samples: Of each split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    num_samples: dict[str, int]

    @property
    def offered(self) -> dict[str, Any]:
        """What a model's factory may want to know of the data."""
        return {"input_shape": self.input_shape, "num_classes": len(self.classes)}


def as_splits(found: Any, reference: str) -> Splits:
    """Check what a user's data function returned: anything with the three splits and the classes will do.

    Raises:
        DataError: Something is missing or malformed.
    """
    if isinstance(found, Splits):
        return found
    try:
        train, validation, test = (Samples(part.inputs, part.targets) for part in (getattr(found, n) for n in _SPLITS))
        return Splits(train, validation, test, tuple(found.classes))
    except AttributeError as error:
        raise DataError(
            f"{reference!r} returned a {type(found).__name__} ({error}); expected zoo.datasets.Splits, or an object "
            "with train, validation and test, each with inputs and targets, and classes"
        ) from error
    except ValueError as error:
        raise DataError(f"{reference!r} returned malformed data: {error}") from error


def save_splits(splits: Splits, folder: Path) -> Description:
    """Write a data set into a folder."""
    for name, samples in splits.named():
        tensors = {"inputs": samples.inputs.contiguous(), "targets": samples.targets.contiguous()}
        replace_file(folder / f"{name}.safetensors", format_safetensors(tensors))
    description = Description(
        fingerprint=splits.fingerprint(),
        classes=splits.classes,
        input_shape=splits.input_shape,
        num_samples={name: len(samples) for name, samples in splits.named()},
    )
    write_json(folder / DESCRIPTION, description.model_dump(mode="json"))
    return description


def read_description(workspace: Workspace) -> Description:
    """Read what is known of the workspace's data set.

    Raises:
        WorkspaceError: `prepare` hasn't run, or the file is damaged.
        DataError: The file lacks something.
    """
    found = workspace.read_json(FOLDER, DESCRIPTION, "prepare")
    try:
        return Description.model_validate(found)
    except ValidationError as error:
        raise DataError(f"{workspace.folder(FOLDER) / DESCRIPTION} is damaged; {_MEND}") from error


def read_split(workspace: Workspace, split: Split) -> Samples:
    """Read one split.

    Raises:
        WorkspaceError: `prepare` hasn't run.
        DataError: The file is missing or damaged.
    """
    folder = workspace.folder(FOLDER)
    path = folder / f"{split}.safetensors"
    written = contents(folder, "prepare").get(path.name)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} isn't there; {_MEND}") from None
    if sha256(content).hexdigest() != written:
        raise DataError(f"{path} changed after it was written; {_MEND}")
    try:
        tensors: dict[str, Tensor] = parse_safetensors(content)
        return Samples(tensors["inputs"], tensors["targets"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} can't be read ({error}); {_MEND}") from error


def spread(samples: Samples, count: int) -> Samples:
    """Return so many of the samples, spread evenly over them: all, where there are no more."""
    return samples if count >= len(samples) else samples.take(torch.arange(count) * len(samples) // count)


_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_MEND = "delete the folder of the data and run `python -m flows.prepare` again"
