"""A setting that is left out has the value of the recipe that was shipped when the file still named every setting."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from pruning.allocation.sensitivity import Sensitivity
from pruning.dynamic.gates import GateTraining
from pruning.evaluation import evaluate
from pruning.io.onnx import export_onnx
from pruning.latency.measure import measure_latency
from pruning.plan.constraints import Limits
from pruning.recovery.reconstruct import reconstruct
from pruning.unstructured.masks import WeightScope
from tasks.config.migration import migrate
from tasks.config.prune_schema import Structured, Weights
from tasks.config.schema import Analyze, Benchmark, Export, Profile, Settings
from tasks.config.target_schema import Gates, Recover
from tasks.config.training_schema import Training
from tasks.config.yaml_io import read_mapping

Place = tuple[str | int, ...]

OF_THE_FACTORY: Place = ("model", "kwargs")
"""What is passed to a function of the user's choice has no default but nothing."""

OF_ONE_RECIPE: tuple[Place, ...] = (
    *(("prune", "recipes", 0, "name"), ("prune", "recipes", 1, "name")),
    ("prune", "recipes", 0, "distillation"),
)
"""What the recipes of the shipped list differ in can't be the default of both."""

BY_THE_MODEL: tuple[Place, ...] = (
    *(("baseline", "recipe", "learning_rate"), ("baseline", "recipe", "optimizer")),
    *(("prune", "recipes"), ("prune", "recipes", 0, "learning_rate"), ("prune", "recipes", 1, "learning_rate")),
)
"""What that file named as numbers is `auto` by default; for the shipped network it comes to the same."""


def _places(value: Any, place: Place = ()) -> Iterator[Place]:
    """List every key, outer ones first."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        if isinstance(value, dict):
            yield (*place, key)
        yield from _places(inner, (*place, key))


def _without(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    changed = copy.deepcopy(settings)
    inner: Any = changed
    for part in place[:-1]:
        inner = inner[part]
    del inner[place[-1]]
    return changed


def test_a_key_that_is_left_out_has_the_shipped_value_or_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes((Path(__file__).parent / "old_params" / "before_the_names.yaml").read_bytes())
    migrate(path)
    shipped = read_mapping(path)
    whole = Settings.model_validate(shipped)
    other, refused = set(), set()
    for place in _places(shipped):
        if len(place) > 2 and place[:2] in (OF_THE_FACTORY, ("prune", "target"), ("frontier", "targets")):
            continue  # a part of what is one value
        try:
            if Settings.model_validate(_without(shipped, place)) != whole:
                other.add(place)
        except ValidationError:
            refused.add(place)
    assert other == {OF_THE_FACTORY, *OF_ONE_RECIPE, *BY_THE_MODEL}
    required: set[Place] = {("data",), ("data", "factory"), ("model",), ("model", "factory")}
    required |= {("baseline",), ("baseline", "recipe")}
    required |= {("prune",), ("prune", "target")}
    assert refused == required


LIBRARY: list[tuple[type[BaseModel], str, Callable[..., Any], str]] = [
    (Training, "batch_size", evaluate, "batch_size"),
    (Analyze, "sweep", Sensitivity, "sweep"),
    (Export, "opset", export_onnx, "opset"),
    (Benchmark, "rounds", measure_latency, "rounds"),
    (Benchmark, "batch_sizes", measure_latency, "batch_sizes"),
    (Profile, "provider", measure_latency, "provider"),
    (Structured, "max_group_rate", Limits, "max_group_rate"),
    (Recover, "ridge", reconstruct, "ridge"),
    (Weights, "max_layer_sparsity", WeightScope, "max_layer_sparsity"),
    (Gates, "weight", GateTraining, "weight"),
    (Gates, "ramp", GateTraining, "ramp"),
]


@pytest.mark.parametrize(
    ("section", "name", "call", "argument"), LIBRARY, ids=lambda one: getattr(one, "__name__", one)
)
def test_the_library_has_the_same_default(
    section: type[BaseModel], name: str, call: Callable[..., Any], argument: str
) -> None:
    assert section.model_fields[name].default == inspect.signature(call).parameters[argument].default
