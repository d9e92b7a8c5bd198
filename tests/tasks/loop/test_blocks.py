"""Whole blocks in the pipeline: taken where a target needs them, with channels; proven, exported, reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from pruning.graph.module_copy import removed_tensors
from pruning.io.checkpoint import load_checkpoint
from pruning.plan.verification import TOLERANCE
from tasks.config.prune_schema import Structured
from tasks.config.target_schema import Allocation, Target
from tasks.loop.ledger import Row
from tasks.stage_table import NAMES
from tests.tasks.loop.test_residual_streams import changed, rows_of, vit
from tests.tasks.test_pipeline import BEFORE_THE_LOOP, Project, made

pytestmark = pytest.mark.thorough

Writer = Callable[..., Path]
OUT_OF_REACH = {"target": {"mac_reduction": 0.6}, "residual_streams": "never", "relaxed_limits": []}
"""Channels alone don't come that far."""


def final_plan(project: Project) -> Any:
    return load_checkpoint(project.root / "artifacts/dense", vit, torch.zeros(1, 1, 8, 8))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, project_writer: Writer) -> Iterator[Project]:
    """A run in two steps, whose target needs both branches of the second block and channels of the first."""
    root = tmp_path_factory.mktemp("blocks")
    common = {"blocks": "allowed", "iterations": 2, "max_attempts": 2, "ignore": ["blocks.0.out", "blocks.0.mlp.2"]}
    project = made(root, project_writer, NAMES, changed("vit", **OUT_OF_REACH, **common))
    with chdir(root):
        yield project


def test_blocks_and_channels_go_where_a_target_needs_both(finished: Project) -> None:
    first, second = rows_of(finished)
    assert first.accepted
    assert second.accepted
    assert second.reached >= second.goal
    model, plan, _ = final_plan(finished)
    assert (*first.blocks, *second.blocks) == plan.blocks
    assert set(plan.blocks) == {"blocks.1.out", "blocks.1.mlp.2"}
    assert any(plan.removed.values())
    assert removed_tensors(model)
    summary = finished.json("report", "summary.json")
    assert summary["proven"]
    assert summary["parity"]["dense_vs_masked"] < TOLERANCE
    assert summary["parity"]["onnx_vs_torch"] < TOLERANCE
    assert summary["mac_reduction"] == pytest.approx(second.reached)
    page = (finished.root / "artifacts/report/report.html").read_text(encoding="utf-8")
    assert all(f"blocks went whole: {', '.join(row.blocks)}" in page for row in (first, second) if row.blocks)
    assert f"Residual branches went whole, named by their last layers: {', '.join(plan.blocks)}" in page


def test_exported_file_has_no_layer_of_a_block_that_is_gone(finished: Project) -> None:
    model, _, _ = final_plan(finished)
    file = onnx.load(finished.root / "artifacts/onnx/model.onnx")
    weights = {one.name for one in file.graph.initializer}
    assert not weights & {f"model.{name}" for name in removed_tensors(model)}
    assert not any("blocks.1" in node.name for node in file.graph.node if node.op_type in ("MatMul", "Gemm", "Softmax"))


def test_without_blocks_the_same_target_is_refused(tmp_path: Path, project_writer: Writer) -> None:
    change = changed("vit", **OUT_OF_REACH)
    (row,) = rows_of(made(tmp_path, project_writer, [*BEFORE_THE_LOOP, "prune"], change))
    assert row.refused is not None
    assert "is the least" in row.refused


@pytest.mark.slow
def test_target_beyond_all_blocks_says_how_far_they_get(tmp_path: Path, project_writer: Writer) -> None:
    change = changed(
        "vit", **{**OUT_OF_REACH, "target": {"mac_reduction": 0.99}}, blocks="allowed", ignore=["blocks.0"]
    )
    (row,) = rows_of(made(tmp_path, project_writer, [*BEFORE_THE_LOOP, "prune"], change))
    assert row.refused is not None
    assert "Removing blocks was not enough: 2 blocks gone, " in row.refused


@pytest.mark.slow
def test_blocks_and_channels_may_come_back(tmp_path: Path, project_writer: Writer) -> None:
    """Each step chooses among all blocks of the original; the plan of the last one is all that is gone."""
    common = {"blocks": "allowed", "reversible": True, "iterations": 2, "max_attempts": 2, "first_step": 0.4}
    project = made(
        tmp_path,
        project_writer,
        [*BEFORE_THE_LOOP, "prune", "transform"],
        changed("vit", **{**OUT_OF_REACH, "target": {"mac_reduction": 0.8}}, **common),
    )
    rows: list[Row] = rows_of(project)
    assert [row.accepted for row in rows] == [True, True]
    assert all(row.blocks for row in rows)
    with chdir(tmp_path):
        assert project.json("dense", "equivalence.json")["max_relative_difference"] < TOLERANCE
        assert final_plan(project)[1].blocks == rows[-1].blocks


@pytest.mark.slow
def test_blocks_go_from_fresh_weights_as_they_were_chosen_on_trained_ones(
    tmp_path: Path, project_writer: Writer
) -> None:
    recipe = {"name": "plain", "epochs": 1}
    common = {"blocks": "allowed", "start": {"weights": "random"}, "recipes": [recipe], "recover": {"method": "none"}}
    project = made(
        tmp_path, project_writer, [*BEFORE_THE_LOOP, "prune", "transform"], changed("vit", **OUT_OF_REACH, **common)
    )
    (row,) = rows_of(project)
    assert row.accepted
    assert row.blocks
    assert final_plan(project)[1].blocks == row.blocks


def test_curves_of_groups_that_change_are_refused_with_blocks() -> None:
    chosen = Allocation(strategy="sensitivity")
    with pytest.raises(ValueError, match=r"blocks is 'allowed' and allocation\.strategy 'sensitivity'"):
        Structured(target=Target(mac_reduction=0.5), blocks="allowed", allocation=chosen)
