"""Settings by themselves: import strings, built-in losses, metrics and criteria, files, devices, bounded numbers."""

from __future__ import annotations

import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictFloat, StrictInt

from pruning.allocation.hardware_widths import find_kernel_widths
from pruning.errors import SettingsError, unknown_name
from pruning.importance import criterion_names
from pruning.training.recipe import Recipe
from pruning.unstructured.criteria import weight_criterion_names
from tasks.config import import_strings

KIND = "kind"
"""The key by which the models of a section that is a union are told apart."""


class Section(BaseModel):
    """A part of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)


TASKS = {
    "classification": "pruning.task:Classification",
    "multi_label": "pruning.task:MultiLabel",
    "regression": "pruning.task:Regression",
    "segmentation": "pruning.task:Segmentation",
    "image_to_image": "pruning.task:ImageToImage",
    "sequence_classification": "pruning.task:Classification",
    "token_classification": "pruning.task:TokenClassification",
    "causal_lm": "pruning.task:CausalLM",
    "detection": "pruning.detection:Detection",
    "embedding": "pruning.embedding:Embedding",
}
LOSSES = {"cross_entropy": "pruning.evaluation:cross_entropy"}
METRICS = {
    "accuracy": "pruning.evaluation:top1",
    "macro_f1": "pruning.metrics:MacroF1",
    "mae": "pruning.metrics:MeanAbsoluteError",
    "mean_iou": "pruning.metrics:MeanIoU",
    "multi_label_f1": "pruning.metrics:MultiLabelF1",
    "perplexity": "pruning.metrics:Perplexity",
    "psnr": "pruning.metrics:PeakSignalToNoiseRatio",
    "r2": "pruning.metrics:CoefficientOfDetermination",
    "rmse": "pruning.metrics:RootMeanSquaredError",
    "valid_accuracy": "pruning.metrics:ValidAccuracy",
}

MOST_THREADS = 1024
_WIDEST = 4096  # of the multiples that widths are rounded to


def _importable(reference: str) -> str:
    try:
        import_strings.resolve(reference)
    except SettingsError as error:
        raise ValueError(str(error)) from error
    return reference


def named(kind: str, known: dict[str, str]) -> AfterValidator:
    """Accept a built-in name or an import string; the value becomes the import string."""

    def check(value: str) -> str:
        if value in known:
            return known[value]
        if ":" in value:
            return _importable(value)
        raise ValueError(f"{unknown_name(kind, value, known)}, or your own as 'package.module:name'")

    return AfterValidator(check)


_EXTRAS = {"prefect_ray": "ray", "prefect_dask": "dask"}
"""What brings modules along that a setting may name."""


def installed(reference: str) -> str:
    """Accept an import string whose package is installed; it isn't imported before it is used."""
    name = reference.partition(":")[0].partition(".")[0]
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", reference):
        raise ValueError(f"{reference!r} is no import string; expected 'package.module:name'")
    if name in _EXTRAS and find_spec(name) is None:
        raise ValueError(f'{name} isn\'t installed; run `pip install "secateur[{_EXTRAS[name]}]"`')
    return reference if name in _EXTRAS else _importable(reference)


def without_own_names(settings: Any) -> Any:
    """Leave out cross_entropy and accuracy where a classification has them by itself: one setting, one value."""
    if not isinstance(settings, dict) or not isinstance(training := settings.get("training"), dict):
        return settings
    task = settings.get("task")
    name = task.get("name", "classification") if isinstance(task, dict) else "classification"
    if name not in ("classification", TASKS["classification"]):
        return settings
    own = {"loss": ("cross_entropy", LOSSES["cross_entropy"]), "metric": ("accuracy", METRICS["accuracy"])}
    return {**settings, "training": {key: one for key, one in training.items() if one not in own.get(key, ())}}


def _known_criterion(value: str) -> str:
    if ":" in value:
        return _importable(value)
    if value not in criterion_names():
        raise ValueError(f"{unknown_name('criterion', value, criterion_names())}, or your own as 'package.module:name'")
    return value


def _known_weight_criterion(value: str) -> str:
    if ":" in value:
        return _importable(value)
    if value not in (known := weight_criterion_names()):
        raise ValueError(
            f"{unknown_name('criterion for single weights', value, known)}, or your own as 'package.module:name'"
        )
    return value


def as_pattern(value: Any) -> tuple[int, int]:
    """Read N:M, such as "2:4"; unquoted, YAML 1.1 takes 2:4 for the number 124. [2, 4] is how JSON has it."""
    if isinstance(value, list) and [type(part) for part in value] == [int, int]:
        value = "{}:{}".format(*value)
    found = re.fullmatch(r"(\d+):(\d+)", value) if isinstance(value, str) else None
    num_kept, of = (int(part) for part in found.groups()) if found else (0, 0)
    if not 1 <= num_kept < of:
        raise ValueError("expected N:M in quotes with 1 ≤ N < M, such as '2:4'")
    return num_kept, of


def existing_file(value: Path) -> Path:
    """Accept a file that is there; a device or a pipe might never end."""
    if not value.exists():
        raise ValueError(f"there is no file {value}")
    if not value.is_file():
        raise ValueError(f"{value} is no file")
    return value


def name_for_mlflow(value: str) -> str:
    """Accept a name that MLflow takes, in its addresses and filters too, and that can be a folder's."""
    if not re.fullmatch(r"[^\W_][\w .+-]{0,199}", value) or value != value.strip():
        raise ValueError(
            "expected at most 200 letters, digits, spaces and signs . + - _, a letter or a digit first: MLflow "
            "registers no other name, and would say so only when everything is made"
        )
    return value


def power_of_two(number: int) -> int:
    """Accept 1, 2, 4, …: gradients are summed in a binary tree, of which each process holds a whole branch."""
    if number & (number - 1):
        raise ValueError(f"{number} is no power of two; gradients are summed in a binary tree: expected 1, 2, 4, 8, …")
    return number


def usable_device(value: str) -> str:
    """Accept a device on which this machine can compute; `meta` is none, its tensors have no values."""
    try:
        torch.zeros(1, device=value).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"this machine can't compute on it ({str(error).splitlines()[0]}); expected cpu or cuda"
        ) from error
    return value


def _count_or_auto(value: int | str) -> int | str:
    if value != "auto" and (isinstance(value, str) or value < 1):
        raise ValueError("expected a number of 1 or more, or auto")
    if isinstance(value, int) and value > _WIDEST:
        raise ValueError(f"expected {_WIDEST:,} at most, or auto")
    return value


def _known_kernels(value: str) -> str:
    try:
        return find_kernel_widths(value).name
    except SettingsError as error:
        raise ValueError(str(error)) from error


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """Accept what JSON can say: it has one text, by which it is hashed, and the same text again means the same."""
    if wrong := _not_plain(value, ""):
        raise ValueError(f"{wrong}; expected texts, finite numbers, true, false, null, lists, and mappings by name")
    return value


def _not_plain(value: Any, place: str) -> str | None:
    """Return what of a value JSON can't say; None if nothing."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{place} is {value}"
    if isinstance(value, dict | list):
        parts = value if isinstance(value, dict) else dict(enumerate(value))
        if odd := [key for key in value if isinstance(value, dict) and not isinstance(key, str)]:
            return f"the key {odd[0]!r} is no text"
        return next((wrong for key, part in parts.items() if (wrong := _not_plain(part, f"{place}[{key!r}]"))), None)
    return None if value is None or isinstance(value, str | int) else f"{place} is a {type(value).__name__}, {value!r}"


ImportString = Annotated[str, AfterValidator(_importable)]
CriterionName = Annotated[str, AfterValidator(_known_criterion)]
WeightCriterionName = Annotated[str, AfterValidator(_known_weight_criterion)]
RoundFor = Annotated[str, AfterValidator(_known_kernels)]
RoundTo = Annotated[StrictInt | str, AfterValidator(_count_or_auto)]
Arguments = Annotated[dict[str, Any], AfterValidator(_plain)]
Share = Annotated[StrictFloat, Field(gt=0, lt=1)]
Threads = Annotated[StrictInt, Field(ge=0, le=MOST_THREADS)]
TimedBatch = Annotated[StrictInt, Field(ge=1, le=4096)]


def importable(recipe: Recipe) -> Recipe:
    """Accept a recipe whose import strings can be imported."""
    for name in ("optimizer", "schedule", "trainer"):
        reference = getattr(recipe, name)
        if reference is not None and ":" in reference:
            try:
                import_strings.resolve(reference)
            except SettingsError as error:
                raise ValueError(f"{name}: {error}") from error
    return recipe


ImportableRecipe = Annotated[Recipe, AfterValidator(importable)]
"""A recipe whose import strings can be imported."""
