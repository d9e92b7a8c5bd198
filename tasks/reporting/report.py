"""Read the test set, for the first time, and write the report: the result, and what it was made from."""

from __future__ import annotations

import logging
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from json import dumps
from typing import cast

from torch import Tensor, nn

from pruning.batches import Batches
from pruning.dynamic.gates import GatedModel
from pruning.graph.module_copy import removed_tensors
from pruning.io.files import replace_file
from pruning.io.onnx_module import OnnxModule, example_outputs
from pruning.latency.runner import cpu_name
from pruning.metrics import Measure
from pruning.plan.masks import find_groups_under
from tasks import quantization
from tasks.config.schema import Settings
from tasks.data import Description, read_description, read_split, task_of
from tasks.data_sets import SPLITS
from tasks.determinism import begin
from tasks.intervals import compare_pairs, interval_of
from tasks.loop.ledger import Ledger, LoopOutcome, read_ledger, read_outcome
from tasks.loop.measurements import latency_cost, read_curves, read_profile
from tasks.loop.targets import clock_warning
from tasks.models import ModelMetrics, example_inputs, load_model, measure_of, measure_whole, score
from tasks.quantization import read_quantization
from tasks.reporting.html import Report, render
from tasks.reporting.quantized import quantized_part
from tasks.reporting.rounding import describe_rounding, rounding_of
from tasks.reporting.tables import (
    Summary,
    as_sentence,
    compare,
    compare_latency,
    nothing_accepted,
)
from tasks.reporting.verdict import decide
from tasks.stages import benchmark, export, transform
from tasks.workspace import Json, Workspace, write_json, writing

PACKAGES = ("torch", "onnxruntime", "mlflow", "prefect", "dvc")


def origin_of_report(settings: Settings, workspace: Workspace, data: Description) -> list[tuple[str, str]]:
    """Return what a reader needs to reproduce the result: name and value.

    Args:
        settings: Of the run.
        workspace: Of the run.
        data: The data set.
    """
    onnx_file = workspace.folder(export.FOLDER) / export.FILES["dense"]
    samples = ", ".join(f"{data.num_samples[name]:,} {name}" for name in SPLITS)
    return [
        ("written", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("code", commit()),
        ("seed", str(settings.run.seed)),
        ("data", f"{data.fingerprint[:16]} ({samples} samples)"),
        (
            "ONNX file",
            f"sha256 {sha256(onnx_file.read_bytes()).hexdigest()[:16]}; the registered version has it as a tag",
        ),
        ("machine", f"{cpu_name()}, {platform.system()}; device {settings.run.device}, threads {settings.run.threads}"),
        (
            "versions",
            ", ".join([f"Python {platform.python_version()}", *(f"{name} {_version(name)}" for name in PACKAGES)]),
        ),
    ]


def commit() -> str:
    """Return Git's commit that is checked out, and whether files were edited since."""
    found, edited = (_git(*command) for command in (("rev-parse", "HEAD"), ("status", "--porcelain")))
    if not found:
        return "not committed" if _git("rev-parse", "--git-dir") else "not in a Git repository"
    count = len((edited or "").splitlines())
    return f"commit {found[:12]}" + (f", {count} file{'s' * (count > 1)} edited since" if count else "")


def flat(settings: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Return the settings by their paths."""
    for name, value in settings.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{path}.")
        else:
            yield path, value if isinstance(value, str) else dumps(value)


def _git(*command: str) -> str | None:
    try:
        done = subprocess.run(["git", *command], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


FOLDER = "report"
SUMMARY = "summary.json"
PAGE = "report.html"
PICTURES = {
    "attempts.png": "{} against MACs, by attempt",
    "widths.png": "Channels of each layer",
    "curves.png": "{} where one group loses channels",
    "sensitivity.png": "{} lost, by group",
}

log = logging.getLogger("secateur")


def report(settings: Settings, workspace: Workspace) -> None:
    """Write `summary.json`, the pictures, and `report.html`, which holds everything.

    Raises:
        WorkspaceError: An earlier stage hasn't run.
        CheckpointError: A checkpoint is damaged.
    """
    from tasks.reporting.plots import (  # imported late, because Matplotlib takes long to import
        as_png,
        as_svg,
        draw_attempts,
        draw_curves,
        draw_sensitivity,
        draw_widths,
    )

    begin(settings)
    data = read_description(workspace)
    example = example_inputs(workspace, settings)
    test = read_split(settings, workspace, "test")
    models, plans, found, scores = {}, {}, {}, {}
    for name in ("baseline", "dense"):
        models[name], plans[name], _ = load_model(workspace.folder(name), settings, data, example)
        found[name], scores[name] = measure_whole(models[name], test, settings, example)
    ledger, outcome, curves = (
        read_ledger(workspace.folder("iterations")),
        read_outcome(workspace),
        read_curves(workspace, "analyze"),
    )
    measure = measure_of(settings, data)
    summary: Json = {
        "measure": measure.name,
        "higher_is_better": measure.higher_is_better,
        "is_share": measure.is_share,
        "test_samples": len(test),
        **summarise(found["baseline"], found["dense"], ledger, outcome, workspace),
        "score_drop": measure.gain(found["dense"].score, found["baseline"].score),
        "pairs": None,
        "per_class": _per_class(data.classes, scores["baseline"].per_class, scores["dense"].per_class),
    }
    each = {name: found.values for name, found in scores.items() if found.values is not None}
    if len(each) == len(models):
        summary["pairs"] = compare_pairs(each["baseline"], each["dense"], measure)
        for name, of_samples in each.items():
            summary[name]["score_interval"] = list(interval_of(of_samples))
    if read_quantization(workspace) is not None:
        summary["quantized"] = _score_quantized(models["dense"], scores["dense"].values, test, settings, workspace)
    if any(row.unrounded for row in ledger.accepted):
        last, plan = ledger.accepted[-1], plans["dense"]
        groups = find_groups_under(plan, models["baseline"], example, last.unrounded or ())
        latency = latency_cost(workspace, groups, "profile")
        summary["rounding"] = rounding_of(last, plan.kept_sizes(groups), groups, latency)
    figures = {
        "attempts.png": draw_attempts(ledger, outcome["floor"], measure),
        "widths.png": draw_widths(widths(models["baseline"], models["dense"])),
    }
    if curves:
        figures["curves.png"] = draw_curves(curves, curves[0].baseline_score, measure)
        figures["sensitivity.png"] = draw_sensitivity(curves, curves[0].baseline_score, measure)
    latencies = benchmark.read_latencies(workspace)
    warning = clock_warning(settings.shaped_by_the_clock, read_profile(workspace, "profile"))
    page = render(
        Report(
            subject=settings.subject,
            verdict=decide(cast(Summary, summary), latencies, settings.promote),
            lines=[*compare(cast(Summary, summary)), *compare_latency(workspace)],
            rows=ledger.rows,
            pictures={
                text.format(as_sentence(measure.name)): as_svg(figures[name])
                for name, text in PICTURES.items()
                if name in figures
            },
            notes=_notes(summary, outcome, ledger, plans["dense"].blocks, warning),
            tried=_tried(summary, outcome, measure),
            measure=measure,
            per_class=summary["per_class"],
            samples=_samples(models, settings, workspace, data),
            origin=origin_of_report(settings, workspace, data),
            settings=list(flat(settings.unlike_default)),
            quantized=quantized_part(workspace, cast(Summary, summary)),
        )
    )
    with writing(workspace.folder(FOLDER)) as folder:
        write_json(folder / SUMMARY, summary)
        for name, figure in figures.items():
            replace_file(folder / name, as_png(figure))
        replace_file(folder / PAGE, page.encode())
    if unpruned := nothing_accepted(summary):
        log.warning("report: %s", unpruned)
    log.info("report: %s", workspace.folder(FOLDER) / PAGE)


def _score_quantized(
    dense: nn.Module, values: Tensor | None, test: Batches, settings: Settings, workspace: Workspace
) -> Json:
    """Return what the quantised file scores on the test samples, beside the dense model."""
    path, run = workspace.folder(quantization.FOLDER) / quantization.ONNX, settings.run
    outputs = example_outputs(dense, example_inputs(workspace, settings))
    found = score(OnnxModule(path, outputs, num_threads=run.threads, device=run.device), test, settings)
    if found.values is None or values is None:
        return {"score": found.score, "pairs": None}
    pairs = compare_pairs(values, found.values, measure_of(settings, read_description(workspace)))
    return {"score": found.score, "pairs": pairs, "score_interval": list(interval_of(found.values))}


def _per_class(
    classes: Sequence[str], before: Mapping[int, float], after: Mapping[int, float]
) -> dict[str, tuple[float, float]]:
    """Return the scores of both models by the name of each class that both have one of."""
    names = {label: classes[label] if label < len(classes) else str(label) for label in sorted(before.keys() & after)}
    return {name: (before[label], after[label]) for label, name in names.items()}


def _samples(models: Mapping[str, nn.Module], settings: Settings, workspace: Workspace, data: Description) -> str:
    """Return some validation samples with what both models answer, as HTML."""
    from tasks.reporting.samples import choose_samples, render_samples  # imported late, as it draws

    shown = choose_samples(
        {"baseline": models["baseline"], "pruned": models["dense"]},
        read_split(settings, workspace, "validation"),
        task_of(settings),
        data.classes,
        labelled=data.labelled,
        texts=data.tokens,
        batch_size=settings.training.batch_size,
    )
    return render_samples(shown, data.classes) if shown else ""


def summarise(
    baseline: ModelMetrics, dense: ModelMetrics, ledger: Ledger, outcome: LoopOutcome, workspace: Workspace
) -> Json:
    """Return what `summary.json` holds."""
    reduction = dense.reduction_from(baseline)
    equivalence, parity = transform.read_equivalence(workspace), export.read_parities(workspace)["dense"]
    last = ledger.accepted[-1].measured if ledger.accepted else None
    return {
        "kind": outcome["kind"],
        "baseline": baseline.model_dump(exclude={"loss"}, exclude_none=True),
        "dense": dense.model_dump(exclude={"loss"}, exclude_none=True),
        "mac_reduction": reduction["mac_reduction"],
        "parameter_reduction": reduction["parameter_reduction"],
        "floor": outcome["floor"],
        "validation": {"baseline": ledger.baseline.score, "dense": (last or ledger.baseline).score},
        "parity": {
            "dense_vs_masked": equivalence["max_relative_difference"],
            "onnx_vs_torch": parity.max_relative_difference,
            "onnx_close": parity.close,
            "num_samples": parity.num_samples,
        },
        "proven": equivalence["proven"],
        "attempts": len(ledger.rows),
        "accepted": len(ledger.accepted),
        "stopped_because": outcome["stopped_because"],
    }


def widths(baseline: nn.Module, dense: nn.Module) -> list[tuple[str, int, int]]:
    """List every layer with a weight of two axes or more: its name, and how many channels it gives before and after."""
    after = dense.model if isinstance(dense, GatedModel) else dense
    gone = removed_tensors(after)
    return [
        (name.removesuffix(".weight"), _num_outputs(baseline, name), 0 if name in gone else _num_outputs(after, name))
        for name, weight in baseline.named_parameters()
        if weight.ndim > 1
    ]


def _num_outputs(model: nn.Module, name: str) -> int:
    """Count the channels that the layer of a weight gives: rows, but for weights whose first axis is what is read."""
    owner, weight = model.get_submodule(name.rpartition(".")[0]), model.get_parameter(name)
    if getattr(owner, "transposed", False):  # a transposed convolution
        return weight.shape[1] * int(getattr(owner, "groups", 1))
    return weight.shape[1] if isinstance(owner, nn.Embedding | nn.EmbeddingBag) else len(weight)


def _notes(
    summary: Json, outcome: LoopOutcome, ledger: Ledger, blocks: Sequence[str], warning: str | None
) -> list[str]:
    streams = dict.fromkeys(name for row in ledger.accepted for name in row.streams)
    return [
        *([describe_rounding(summary["rounding"])] if summary.get("rounding") else ()),
        *([_STREAMS.format(", ".join(streams))] if streams else ()),
        *([_BLOCKS.format(", ".join(blocks))] if blocks else ()),
        *([warning] if warning else ()),
        *_TRUTH.get(outcome["kind"], ()),
    ]


def _tried(summary: Json, outcome: LoopOutcome, measure: Measure) -> str:
    attempts = f"{summary['attempts']} attempt{'s' if summary['attempts'] != 1 else ''}"
    return (
        f"{attempts}, {summary['accepted']} accepted; ended because: {outcome['stopped_because']}. "
        f"Decisions were made on the validation set, with a floor of {measure.show(outcome['floor'])}. The figures "
        f"above are from the test set, {summary['test_samples']:,} samples that no decision has used."
    )


_STREAMS = (
    "Residual streams lost channels: {}. Their norms compute means and variances over the channels that stay, in the "
    "masked model that the dense one was compared with as well; so the channels that stay are scaled otherwise than in "
    "the original, which reconstruction and training make up for."
)
_BLOCKS = (
    "Residual branches went whole, named by their last layers: {}. The masked model that the dense one was compared "
    "with has them, and their parameters are zero."
)
_SPARSE = (
    "Single weights were set to zero; the shapes are the same. A dense runtime computes the zeros too, so the MACs "
    "are unchanged and latency gains nothing. Effective MACs are those of a runtime that skips zero weights. "
    "The size is that of the checkpoint, which stores zeros as bits; the ONNX file stores them in full.",
)
_TRUTH = {
    "unstructured": _SPARSE,
    "n_m": _SPARSE,
    "dynamic": (
        "Gates choose channels for each input: MACs are the mean over the samples of the open channels, the gates' own "
        "included. A dense runtime computes closed channels too, so latency gains nothing "
        "and the gates add to it.",
    ),
}
