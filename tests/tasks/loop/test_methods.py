"""The whole pipeline by each kind of pruning that leaves the model's shape as it is, on a small project."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from pruning import find_groups
from pruning.dynamic.gates import GatedModel, macs_of_samples
from pruning.errors import SettingsError
from pruning.evaluation import Evaluation
from pruning.plan.plan import Cost
from tasks.config.prune_schema import MODELS
from tasks.config.schema import load
from tasks.data import read_description, read_split
from tasks.loop.ledger import Ledger, read_ledger
from tasks.models import ModelMetrics, example_inputs, load_model
from tasks.passes import Passes
from tasks.reporting.tables import compare
from tasks.workspace import Workspace
from tests.tasks.test_pipeline import BEFORE_THE_LOOP, Project, made

RECIPES = [{"name": "plain", "epochs": 4, "learning_rate": 0.05, "batch_size": 32}]
KINDS: dict[str, dict[str, Any]] = {
    "unstructured": {"target": {"weight_sparsity": 0.8}, "iterations": 2},
    "n_m": {"target": {"pattern": "2:4"}, "iterations": 2, "ignore": ["0"]},
    "dynamic": {"target": {"mac_reduction": 0.4}, "iterations": 2},
}
Writer = Callable[..., Path]


def made_of_kind(kind: str, prune: dict[str, Any]) -> None:
    """Turn the section `prune` of the structured project into one of another kind."""
    for key in prune.keys() - MODELS[kind].model_fields.keys():
        del prune[key]
    prune["kind"] = kind


def finished(kind: str, factory: pytest.TempPathFactory, writer: Writer) -> Iterator[Project]:
    root = factory.mktemp(kind)

    def change(settings: dict[str, Any]) -> None:
        settings["prune"].update(recipes=RECIPES, **KINDS[kind])
        made_of_kind(kind, settings["prune"])

    project = made(root, writer, change=change)
    with chdir(root):
        yield project


def model_in(project: Project, folder: str = "dense") -> nn.Module:
    data, example = read_description(project.workspace), example_inputs(project.workspace, project.settings)
    return load_model(project.workspace.folder(folder), project.settings, data, example)[0]


def ledger_of(project: Project) -> Ledger:
    return read_ledger(project.workspace.folder("iterations"))


@pytest.fixture(scope="module", params=["unstructured", "n_m"])
def sparse(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, project_writer: Writer
) -> Iterator[Project]:
    yield from finished(request.param, tmp_path_factory, project_writer)


def test_sparse_pipeline_meets_its_target_and_tells_the_truth(sparse: Project) -> None:
    summary = sparse.json("report", "summary.json")
    whole = summary["baseline"]
    assert summary["stopped_because"] == "target reached"
    assert summary["kind"] == sparse.settings.prune.kind
    assert summary["dense"]["macs"] == whole["macs"]
    assert summary["dense"]["parameters"] == whole["parameters"]
    assert summary["score_drop"] <= 0.25
    model = model_in(sparse)
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    zeros, total = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    assert summary["dense"]["weight_sparsity"] == pytest.approx(zeros / total)
    assert summary["dense"]["effective_macs"] < 0.8 * whole["macs"]
    stored = (sparse.workspace.folder("dense") / "weights.safetensors").stat().st_size
    assert summary["dense"]["size_bytes"] == pytest.approx(stored, rel=0.2)
    assert summary["dense"]["size_bytes"] < whole["size_bytes"] * (1 - zeros / total + 0.1)
    page = (sparse.workspace.folder("report") / "report.html").read_text(encoding="utf-8")
    assert "A dense runtime computes the zeros too" in page
    assert [line.quantity for line in compare(summary)][-2:] == ["weights that are zero", "effective MACs"]


def test_sparse_attempts_rise_and_their_zeros_lie_within_each_other(sparse: Project) -> None:
    rows = ledger_of(sparse).accepted
    assert [row.reached for row in rows] == sorted(row.reached for row in rows)
    assert len(rows) == 2
    first, second = (model_in(sparse, f"iterations/{row.checkpoint}") for row in rows)
    for before, after in zip(first.parameters(), second.parameters(), strict=True):
        if before.ndim > 1:
            assert not bool(((before == 0) & (after != 0)).any())


def test_pattern_holds_after_training_and_in_the_onnx_file(sparse: Project) -> None:
    model, path = model_in(sparse), sparse.workspace.folder("onnx") / "model.onnx"
    inputs = read_split(sparse.settings, sparse.workspace, "test").loaded().inputs
    (found,) = onnxruntime.InferenceSession(str(path)).run(None, {"input": inputs.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(inputs), rtol=1e-4, atol=1e-5)
    stored = [numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer]
    zeros = sum(int((weight == 0).sum()) for weight in model.parameters() if weight.ndim > 1)
    assert sum(int((values == 0).sum()) for values in stored if values.ndim > 1) >= zeros
    if sparse.settings.prune.kind == "n_m":
        conv, linear = model.get_parameter("3.weight"), model.get_parameter("8.weight")
        for weight in (conv.movedim(1, -1), linear):
            assert bool(((weight != 0).reshape(-1, 4).sum(1) == 2).all())


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory, project_writer: Writer) -> Iterator[Project]:
    yield from finished("dynamic", tmp_path_factory, project_writer)


@pytest.mark.thorough
def test_gated_pipeline_meets_its_target_on_the_mean_over_validation(gated: Project) -> None:
    model, example = model_in(gated), example_inputs(gated.workspace, gated.settings)
    assert isinstance(model, GatedModel)
    summary = gated.json("report", "summary.json")
    cost, whole = Cost(find_groups(model.model, example)), ledger_of(gated).baseline.macs
    found = macs_of_samples(
        model, cost, read_split(gated.settings, gated.workspace, "validation").loaded().inputs
    ).mean()
    assert 0.98 * 0.6 * whole <= float(found) <= 0.6 * whole
    assert summary["stopped_because"] == "target reached"
    assert summary["dense"]["macs"] < 0.65 * whole
    assert summary["parity"]["dense_vs_masked"] < 1e-4
    measured = ledger_of(gated).accepted[-1].measured
    assert measured is not None
    assert measured.macs == int(found)
    assert "MACs, mean over inputs" in [line.quantity for line in compare(summary)]
    page = (gated.workspace.folder("report") / "report.html").read_text(encoding="utf-8")
    assert "A dense runtime computes closed channels too" in page


def interrupted_writes_the_same(project: Project, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    written = project.bytes_of("iterations")
    shutil.copytree(project.root, elsewhere, dirs_exist_ok=True)
    monkeypatch.chdir(elsewhere)
    shutil.rmtree("artifacts/iterations")
    project.prune(most=1)
    assert len(ledger_of(project).rows) == 1
    project.run("prune")
    return project.bytes_of("iterations") == written


def test_sparse_loop_that_was_interrupted_writes_the_same_bytes(
    sparse: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert interrupted_writes_the_same(sparse, tmp_path, monkeypatch)


def test_gated_loop_that_was_interrupted_writes_the_same_bytes(
    gated: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert interrupted_writes_the_same(gated, tmp_path, monkeypatch)


def test_recipes_bring_channels_to_zero_before_and_between_the_steps(
    write_params: Callable[[Callable[[dict[str, Any]], object]], Path],
) -> None:
    sparsity = {"penalty": "group_lasso", "share": 0.4}

    def change(settings: dict[str, Any]) -> None:
        settings["baseline"]["recipe"]["sparsity"] = sparsity
        settings["prune"].update(
            target={"mac_reduction": 0.3}, iterations=1, recipes=[{**RECIPES[0], "sparsity": sparsity}]
        )

    project = Project(Path(), load(write_params(change)), Workspace(Path("artifacts")))
    for name in BEFORE_THE_LOOP:
        project.run(name)
    project.prune(most=1)
    for folder in ("baseline", "iterations/01"):
        first, second = (model_in(project, folder).get_parameter(name) for name in ("0.weight", "3.weight"))
        zero = sum(int((weight.flatten(1) == 0).all(1).sum()) for weight in (first, second))
        assert zero == pytest.approx(0.4 * (len(first) + len(second)), abs=2), folder


def test_pattern_rises_by_single_weights_and_backs_off_to_the_one_before(
    write_params: Callable[[Callable[[dict[str, Any]], object]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goals of 2:4 in two geometric steps are 0.29 and 0.5; every attempt at 2:4 is made to fail."""

    def change(settings: dict[str, Any]) -> None:
        settings["prune"].update(recipes=RECIPES, schedule="geometric", max_accuracy_drop=0.9, **KINDS["n_m"])
        made_of_kind("n_m", settings["prune"])

    project = Project(Path(), load(write_params(change)), Workspace(Path("artifacts")))
    for name in BEFORE_THE_LOOP:
        project.run(name)
    whole = Passes.measure

    def failing(passes: Passes, *given: Any) -> tuple[ModelMetrics, Evaluation]:
        found, evaluated = whole(passes, *given)
        assert found.weight_sparsity is not None
        return found.model_copy(update={"score": 0.0}) if found.weight_sparsity > 0.4 else found, evaluated

    monkeypatch.setattr(Passes, "measure", failing)
    project.prune()
    rows = ledger_of(project).rows
    assert [row.reached for row in rows[:2]] == [0.25, 0.5]
    assert [row.accepted for row in rows[:2]] == [True, False]
    assert "no pattern of 4 lies between 3:4, which is reached, and 2:4, which failed" in (rows[2].refused or "")
    assert not any(row.measured for row in rows[2:])


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "unstructured"}, "the target of kind 'unstructured' is weight_sparsity; found mac_reduction"),
    ({"kind": "n_m", "target": {"pattern": "4:2"}}, "expected N:M in quotes"),
    ({"kind": "n_m", "target": {"pattern": 124}}, "found 124: expected N:M in quotes"),
    (
        {"kind": "unstructured", "target": {"weight_sparsity": 0.5}, "criterion": "apoz"},
        "prune.criterion: unknown criterion for single weights 'apoz'",
    ),
    (
        {"kind": "dynamic", "recipes": [{"name": "thin", "sparsity": {"penalty": "group_lasso", "share": 0.5}}]},
        "recipe 'thin' names sparsity",
    ),
    ({"kind": "structurd"}, "prune.kind: unknown choice 'structurd'; did you mean 'structured'"),
    ({"kind": ["n_m"]}, "prune.kind: unknown choice"),
]


@pytest.mark.parametrize(("change", "text"), FAULTS, ids=[text[:30] for _, text in FAULTS])
def test_settings_that_do_not_suit_the_kind_are_named(
    write_params: Callable[..., Path], change: dict[str, Any], text: str
) -> None:
    def changed(settings: dict[str, Any]) -> None:
        if change["kind"] in [*KINDS]:
            made_of_kind(change["kind"], settings["prune"])
        settings["prune"].update(change)

    with pytest.raises(SettingsError) as caught:
        load(write_params(changed))
    assert text in str(caught.value)
