"""The data set as the pipeline keeps it: one file per split, and what a stage has to know without reading them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from traceback import extract_tb
from typing import Any, Literal

import psutil
import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from pruning.batches import Batches, TensorBatches
from pruning.errors import DataError, SettingsError
from pruning.io.atomic import replace_file
from pruning.io.json_files import read_bytes
from pruning.metrics import described
from pruning.task import MultiLabel, Task
from tasks.code_closure import is_installed_file
from tasks.config import import_strings
from tasks.config.schema import Settings
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
        classes: Names in the order of the targets; none in a regression.
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
    return found if chosen is None else found.with_loss(on_device(import_strings.made(chosen), settings))


def on_device(found: Any, settings: Settings) -> Any:
    """Bring what holds tensors to the device of the run."""
    return found.to(settings.run.device) if isinstance(found, nn.Module) else found


def as_splits(found: Any, reference: str, task: Task | None = None) -> Splits:
    """Check what a user's data function returned, and read it where it is data sets and not tensors yet.

    Accepted are `Splits`; and any object or mapping with train, validation and test, each with inputs and targets, or a
    torch `Dataset`, or a `DataLoader`, of which dataset, `collate_fn` and batch size are taken.

    Args:
        found: What it returned.
        reference: Its import string.
        task: Takes samples apart, and says what targets have to be; None for the usual pairs, unchecked.

    Raises:
        DataError: Something is missing or malformed.
    """
    splits = found if isinstance(found, Splits) else _joined(found, reference, task)
    if task is not None and splits.labelled:
        for name, samples in splits.named():
            try:
                task.check_targets(samples.targets, splits.classes)
            except DataError as fault:
                raise DataError(
                    f"{reference!r}: {name}: {fault}. Task {_name_of(task)} takes those; set task.name "
                    "in the settings to the one that suits the data"
                ) from fault
    return splits


def _name_of(task: Task) -> str:
    return type(task).__name__


def _joined(found: Any, reference: str, task: Task | None) -> Splits:
    get = found.get if isinstance(found, Mapping) else partial(getattr, found)
    try:
        parts = [_given(found, name) for name in SPLITS]
        if any(_is_data_set(part) for part in parts):
            samples = [_read(part, name, reference, task) for part, name in zip(parts, SPLITS, strict=True)]
            return Splits(samples[0], samples[1], samples[2], _classes(get("classes", None), parts[0], samples, task))
        needed = task is None or task.by_class or isinstance(task, MultiLabel)
        classes = tuple(_given(found, "classes") if needed else get("classes", None) or ())
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
    except (AttributeError, KeyError) as error:
        raise DataError(
            f"{reference!r} returned a {type(found).__name__} ({error}); expected zoo.datasets.Splits, or an object "
            "with train, validation and test, each a torch Dataset, or with inputs and targets (or all without), and "
            "classes"
        ) from error
    except ValueError as error:
        raise DataError(f"{reference!r} returned malformed data: {error}") from error


def _given(found: Any, name: str) -> Any:
    return found[name] if isinstance(found, Mapping) else getattr(found, name)


def _is_data_set(part: Any) -> bool:
    """Say whether samples are asked for one by one, as of torch's data sets and those that only look alike."""
    has_samples = hasattr(part, "__getitem__") and hasattr(part, "__len__") and not hasattr(part, "inputs")
    return isinstance(part, Dataset | DataLoader) or (has_samples and not isinstance(part, str | Mapping | Tensor))


def _classes(given: Any, train: Any, samples: Sequence[Samples], task: Task | None) -> tuple[str, ...]:
    """Return the names of the classes: given, or the data set's own, or their numbers."""
    source = train.dataset if isinstance(train, DataLoader) else train
    names = given if given is not None else getattr(source, "classes", None)
    if names is not None:
        return tuple(names)
    if isinstance(task, MultiLabel):
        return tuple(map(str, range(samples[0].targets.shape[1] if samples[0].targets.ndim > 1 else 0)))
    if (task is not None and not task.by_class) or samples[0].targets.is_floating_point():
        return ()
    ignored = getattr(task, "ignore_index", -1)
    return tuple(str(number) for number in range(max(_largest(part.targets, ignored) for part in samples) + 1))


def _largest(targets: Tensor, ignored: int) -> int:
    counted = targets[targets != ignored]
    return int(counted.max()) if counted.numel() else 0


_AT_ONCE = 64


def _read(source: Any, split: Split, reference: str, task: Task | None) -> Samples:
    """Read all samples of a data set, in its order.

    Raises:
        DataError: It can't be read, gives something else each time, or doesn't fit into memory.
    """
    where = f"{reference!r}: {split}"
    loader = source if isinstance(source, DataLoader) else None
    data_set = source if loader is None else loader.dataset
    if not _is_data_set(data_set):
        raise DataError(
            f"{where} is a {type(source).__name__}; expected a torch Dataset or DataLoader, as other splits"
        )
    collate = default_collate if loader is None else loader.collate_fn
    size = _AT_ONCE if loader is None or loader.batch_size is None else loader.batch_size
    unpack = (Task() if task is None else task).unpack
    found: list[tuple[Tensor, Tensor]] = []
    for number, batch in enumerate(_in_batches(data_set, size, where)):
        first = number * size
        which = f"{where}: samples {first} to {first + len(batch) - 1}"
        joined = _by_user(lambda: collate(batch), f"{which} can't be joined to a batch")  # noqa: B023
        inputs, targets = _by_user(lambda: unpack(joined), f"{which} can't be unpacked")  # noqa: B023
        found.append((_one_tensor(inputs, which, "inputs"), _one_tensor(targets, which, "targets")))
        if number == 0:
            _check_memory(found[0], data_set, len(batch), where)
            again = [_by_user(lambda: data_set[i], f"{where}: sample {i}, read again") for i in range(len(batch))]  # noqa: B023
            other = _by_user(lambda: unpack(collate(again)), f"{which}, read again,")  # noqa: B023
            if not _same(found[0], other):
                raise DataError(
                    f"{where} gives other samples each time it is read: every stage has to see the same. Take random "
                    "transforms out of the data set, and name them as training.augment"
                )
    if not found:
        raise DataError(f"{where} holds no samples")
    try:
        inputs, targets = (torch.cat(part) for part in zip(*found, strict=True))
    except RuntimeError as fault:
        raise DataError(
            f"{where}: samples differ in shape from batch to batch ({fault}); give each the same"
        ) from fault
    return Samples(inputs, targets)


def _in_batches(data_set: Any, size: int, where: str) -> Iterator[list[Any]]:
    if isinstance(data_set, IterableDataset) or not hasattr(data_set, "__len__"):
        raise DataError(
            f"{where} is a stream, a {type(data_set).__name__}: it has no length and no order that could be asked for "
            "again; expected a map-style data set, with __len__ and __getitem__"
        )
    for start in range(0, len(data_set), size):
        here = range(start, min(start + size, len(data_set)))
        yield [_by_user(lambda: data_set[index], f"{where}: sample {index}") for index in here]  # noqa: B023


def _by_user(call: Callable[[], Any], what: str) -> Any:
    """Call the user's code; a fault names the last line of theirs that was run."""
    try:
        return call()
    except Exception as fault:
        calls = extract_tb(fault.__traceback__)
        frames = [one for one in calls if one.filename != __file__ and not is_installed_file(Path(one.filename))]
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        text = str(fault).strip().partition("\n")[0] or "no message"
        raise DataError(f"{what}: {type(fault).__name__}: {text}{place}") from fault


def _one_tensor(value: Any, which: str, what: str) -> Tensor:
    if isinstance(value, Mapping) and len(value) == 1:
        (value,) = value.values()
    if not isinstance(value, Tensor):
        held = (
            f"{type(value).__name__} of {', '.join(map(str, value))}"
            if isinstance(value, Mapping)
            else described(value)
        )
        raise DataError(
            f"{which}: {what} are {held.removeprefix('a ')}; the pipeline takes one tensor a sample: join them in "
            "collate_fn, or in the unpack of a task of your own, and let the model take them apart"
        )
    if what == "targets":  # Python's floats come as float64, masks as bytes
        return value.float() if value.dtype == torch.float64 else value if value.is_floating_point() else value.long()
    return value


def _same(one: tuple[Tensor, Tensor], other: tuple[Any, Any]) -> bool:
    again = tuple(_one_tensor(part, "", what) for part, what in zip(other, ("inputs", "targets"), strict=True))
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, again, strict=True))


def _check_memory(first: tuple[Tensor, Tensor], data_set: Any, count: int, where: str) -> None:
    each = sum(part.numel() * part.element_size() for part in first) / count
    needed, free = each * len(data_set), psutil.virtual_memory().available
    if needed > free / 2:
        raise DataError(
            f"{where} holds {len(data_set):,} samples of {each:,.0f} bytes, {needed / 2**30:.1f} GiB as tensors; this "
            f"machine has {free / 2**30:.1f} GiB free, and twice as much is needed to join them. Give fewer or smaller"
        )


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


def read_split(settings: Settings, workspace: Workspace, split: Split) -> Batches:  # noqa: ARG001
    """Return the samples of one split; if it has no labels, the baseline's answers are its targets.

    Raises:
        WorkspaceError: `prepare` hasn't run, or `baseline` where its answers are needed.
        DataError: The file is missing or damaged.
    """
    path = workspace.folder(FOLDER) / f"{split}.safetensors"
    tensors = _read_tensors(path, "prepare", "inputs")
    if "targets" not in tensors:
        tensors["targets"] = _read_tensors(workspace.folder("baseline") / ANSWERS, "baseline", split)[split]
    try:
        return TensorBatches(tensors["inputs"], tensors["targets"])
    except DataError as error:
        raise DataError(f"{path} holds no samples ({error}); {_mend(path, 'prepare')}") from error


def read_inputs(settings: Settings, workspace: Workspace, split: Split) -> Batches:  # noqa: ARG001
    """Return the samples of one split without their targets.

    Raises:
        WorkspaceError: `prepare` hasn't run.
        DataError: The file is missing or damaged.
    """
    path = workspace.folder(FOLDER) / f"{split}.safetensors"
    return TensorBatches(_read_tensors(path, "prepare", "inputs")["inputs"])


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
