"""Read the test set, for the first time, and write what came out: figures, pictures, one page."""

from __future__ import annotations

import logging
from typing import cast

from torch import nn

import pruning
from pruning.dynamic.gates import GatedModel
from pruning.files.writing import replace_file
from tasks import export, transform
from tasks.data import read_description, read_split
from tasks.determinism import begin
from tasks.loop.clock import clock_warning
from tasks.loop.ledger import Ledger, read_ledger
from tasks.measured import Measured
from tasks.measurements import latency_cost, read_curves, read_profile
from tasks.models import example_inputs, load_model, measure
from tasks.params.settings import Settings
from tasks.prune import Outcome, read_outcome
from tasks.showing.comparison import Summary, compare, compare_latency, nothing_accepted
from tasks.showing.page import render
from tasks.showing.rounding import describe_rounding, rounding_of
from tasks.workspace import Json, Workspace, write_json, writing

FOLDER = "report"
SUMMARY = "summary.json"
PAGE = "report.html"
PICTURES = {"sensitivity.png": "Sensitivity", "attempts.png": "Accuracy against MACs", "widths.png": "Widths"}

log = logging.getLogger("secateur")


def report(settings: Settings, workspace: Workspace) -> None:
    """Write `summary.json`, the pictures, and `report.html`, which holds everything.

    Raises:
        WorkspaceError: An earlier stage hasn't run.
        CheckpointError: A checkpoint is damaged.
    """
    from tasks.showing.plots import (  # only now: Matplotlib takes its time
        as_png,
        draw_attempts,
        draw_sensitivity,
        draw_widths,
    )

    begin(settings)
    data = read_description(workspace)
    example = example_inputs(workspace, settings)
    test = read_split(workspace, "test")
    models, scores = {}, {}
    for name in ("baseline", "dense"):
        models[name], _, _ = load_model(workspace.folder(name), settings, data, example)
        scores[name] = measure(models[name], test, settings, example)
    ledger, outcome, curves = (
        read_ledger(workspace.folder("iterations")),
        read_outcome(workspace),
        read_curves(workspace, "analyze"),
    )
    summary: Json = {
        "measure": data.measure,
        "test_samples": len(test),
        **summarise(scores["baseline"], scores["dense"], ledger, outcome, workspace),
    }
    if any(row.unrounded for row in ledger.accepted):
        groups, dense = (pruning.find_groups(models[name], example) for name in ("baseline", "dense"))
        kept = {group.name: dense[group.name].size for group in groups if group.name in dense}
        latency = latency_cost(workspace, groups, "profile")
        summary["rounding"] = rounding_of(ledger.accepted[-1], kept, groups, latency)
    figures = {
        "attempts.png": draw_attempts(ledger, outcome["floor"]),
        "widths.png": draw_widths(widths(models["baseline"], models["dense"])),
    }
    if curves:
        figures["sensitivity.png"] = draw_sensitivity(curves, curves[0].baseline_accuracy)
    pictures = {name: as_png(figures[name]) for name in PICTURES if name in figures}
    warning = clock_warning(settings.shaped_by_the_clock, read_profile(workspace, "profile"))
    lines = [*compare(cast(Summary, summary)), *compare_latency(workspace)]
    unpruned = nothing_accepted(summary)
    page = render(
        model=settings.subject,
        lines=lines,
        rows=ledger.rows,
        pictures={PICTURES[name]: picture for name, picture in pictures.items()},
        remarks=_remarks(summary, outcome, warning),
        warning=unpruned,
    )
    with writing(workspace.folder(FOLDER)) as folder:
        write_json(folder / SUMMARY, summary)
        for name, picture in pictures.items():
            replace_file(folder / name, picture)
        replace_file(folder / PAGE, page.encode())
    if unpruned:
        log.warning("report: %s", unpruned)
    log.info("report: %s", workspace.folder(FOLDER) / PAGE)


def summarise(baseline: Measured, dense: Measured, ledger: Ledger, outcome: Outcome, workspace: Workspace) -> Json:
    """Return what `summary.json` holds."""
    reduction = dense.reduction_from(baseline)
    equivalence = transform.read_equivalence(workspace)
    return {
        "kind": outcome["kind"],
        "baseline": baseline.model_dump(exclude={"loss"}, exclude_none=True),
        "dense": dense.model_dump(exclude={"loss"}, exclude_none=True),
        "mac_reduction": reduction["mac_reduction"],
        "parameter_reduction": reduction["parameter_reduction"],
        "accuracy_drop": baseline.accuracy - dense.accuracy,
        "parity": {
            "dense_vs_masked": equivalence["max_relative_difference"],
            "onnx_vs_torch": export.read_parities(workspace)["dense"].max_relative_difference,
        },
        "proven": equivalence["proven"],
        "attempts": len(ledger.rows),
        "accepted": len(ledger.accepted),
        "stopped_because": outcome["stopped_because"],
    }


def widths(baseline: nn.Module, dense: nn.Module) -> list[tuple[str, int, int]]:
    """List every layer with a weight of two axes or more: its name, and how many channels it gives before and after."""
    after = dense.model if isinstance(dense, GatedModel) else dense
    return [
        (name.removesuffix(".weight"), _num_outputs(baseline, name), _num_outputs(after, name))
        for name, weight in baseline.named_parameters()
        if weight.ndim > 1
    ]


def _num_outputs(model: nn.Module, name: str) -> int:
    """Count the channels that the layer of a weight gives: rows, but for weights whose first axis is what is read."""
    owner, weight = model.get_submodule(name.rpartition(".")[0]), model.get_parameter(name)
    if getattr(owner, "transposed", False):  # a transposed convolution
        return weight.shape[1] * int(getattr(owner, "groups", 1))
    return weight.shape[1] if isinstance(owner, nn.Embedding | nn.EmbeddingBag) else len(weight)


def _remarks(summary: Json, outcome: Outcome, warning: str | None) -> list[str]:
    parity = summary["parity"]
    return [
        f"{summary['attempts']} attempts, {summary['accepted']} accepted; ended because: {outcome['stopped_because']}. "
        f"Decided on the validation set, with a floor of {outcome['floor']:.2%}; the figures below are of the test "
        f"set, {summary['test_samples']:,} samples that no decision has seen.",
        f"Relative differences: dense against masked {parity['dense_vs_masked']:.1e}, ONNX Runtime against torch "
        f"{parity['onnx_vs_torch']:.1e}.",
        *(() if summary["proven"] else (_UNPROVEN,)),
        "Changes are green for the better, red for the worse, and black where they are within what chance does to an "
        "accuracy on so many samples (95 %), or within the quartiles of the measured times, which stand in brackets.",
        *([describe_rounding(summary["rounding"])] if summary.get("rounding") else ()),
        *([warning] if warning else ()),
        *_TRUTH.get(outcome["kind"], ()),
    ]


_UNPROVEN = (
    "That the dense model computes what the masked one does is not proven: on no validation sample do its outputs "
    "depend on its channels. They may be constant or saturated."
)
_SPARSE = (
    "What went are single weights: they are zeros in the same shapes. A dense runtime computes them all the same, so "
    "that MACs are unchanged and latency gains nothing. Effective MACs are those of a runtime that skips zero weights. "
    "The size is that of the checkpoint, which stores zeros as bits; the ONNX file stores them in full.",
)
_TRUTH = {
    "unstructured": _SPARSE,
    "n_m": _SPARSE,
    "dynamic": (
        "Gates choose channels for each input: MACs are the mean over the samples of what is open, the gates' own "
        "included. A dense runtime computes closed channels all the same, so that latency gains nothing, "
        "and pays for the gates.",
    ),
}
