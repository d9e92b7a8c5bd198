"""Make the final dense model, and prove on real samples that it computes what the masked model computes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from math import inf

import torch
from torch import nn
from typing_extensions import TypedDict  # pydantic reads those of `typing` from Python 3.12 on

import pruning
from pruning.batches import Batches
from pruning.containers import count_samples
from pruning.dynamic.gates import GatedModel, run_masked
from pruning.errors import VerificationError
from pruning.evaluation import device_of
from pruning.plan.masks import find_groups_under, keep_removed
from pruning.plan.narrow import expand
from pruning.plan.verification import TOLERANCE, difference_on, relative_difference
from tasks.config.schema import Settings
from tasks.data import read_description, read_split
from tasks.determinism import begin
from tasks.loop.ledger import read_ledger
from tasks.models import example_inputs, load_model, make_factory, measure_of, measured_in, save_model
from tasks.passes import Passes, SamplesOf
from tasks.pretrained import FOLDER as PRETRAINED
from tasks.pretrained import write_folder
from tasks.workspace import Workspace, write_json

FOLDER = "dense"
EQUIVALENCE = "equivalence.json"
_NUM_GATED = 32  # samples that are masked one by one

log = logging.getLogger("secateur")


class Equivalence(TypedDict):
    """What `equivalence.json` holds."""

    max_relative_difference: float
    num_samples: int
    proven: bool


def transform(settings: Settings, workspace: Workspace) -> None:
    """Write the dense checkpoint: the last accepted one, or the baseline where no attempt was accepted.

    A model with gates is compared with itself, masked for each sample as its gates choose. If no validation sample
    could show a difference, because the outputs don't depend on the channels, that is logged and recorded.

    Raises:
        VerificationError: It doesn't compute what the masked model computes.
        CheckpointError: A checkpoint is damaged.
    """
    begin(settings)
    data = read_description(workspace)
    example = example_inputs(workspace, settings)
    accepted = read_ledger(workspace.folder("iterations")).accepted
    last = accepted[-1].checkpoint if accepted else None
    source = workspace.folder("iterations") / last if last else workspace.folder("baseline")
    dense, plan, meta = load_model(source, settings, data, example)
    validation = read_split(settings, workspace, "validation")
    groups = None
    if isinstance(dense, GatedModel):
        inputs = validation.first(_NUM_GATED).to(torch.device(settings.run.device)).inputs
        found, expected = run_masked(dense.eval(), pruning.find_groups(dense.model, example), inputs)
        difference, num_samples, proven = relative_difference([expected], [found]), count_samples(inputs), True
    else:
        original = make_factory(settings, data)().to(settings.run.device)
        groups = find_groups_under(plan, original, example)
        whole = expand(dense, plan, groups, original)
        masked = pruning.apply_masks(whole, plan, example, groups=groups)
        batch_size = settings.training.batch_size
        difference = Passes("transform", settings, workspace).difference(masked, dense, SamplesOf("validation"))
        others = [whole] if plan.blocks else []
        if any(plan.removed.values()):
            others.append(keep_removed(masked, plan, groups))  # the channels that the plan keeps are zero in it
        proven = not others or any(
            inf > d > TOLERANCE for one in others for d in differences_by_batch(one, dense, validation, batch_size)
        )
        num_samples = len(validation)
    if not difference < TOLERANCE:
        raise VerificationError(
            f"the dense model of {source} differs from the masked one by {difference:.2e} (relative) on "
            f"{num_samples} validation samples; expected below {TOLERANCE:.0e}. Please report the model"
        )
    if not proven:
        log.warning(
            "transform: the dense model isn't proven to compute what the masked one does: on all %s validation samples "
            "its outputs stay the same when its channels are zeroed. They may be constant or saturated",
            num_samples,
        )
    folder = workspace.folder(FOLDER)
    save_model(folder, dense, plan, measured_in(meta, source), meta["data_fingerprint"])
    write_json(
        folder / EQUIVALENCE, {"max_relative_difference": difference, "num_samples": num_samples, "proven": proven}
    )
    log.info("transform: dense and masked model differ by %.1e (relative) at most", difference)
    if settings.model.from_pretrained is not None and groups is not None:
        _, _, before = load_model(workspace.folder("baseline"), settings, data, example)
        figures = measured_in(before, workspace.folder("baseline")), measured_in(meta, source)
        score, learned_from = measure_of(settings, data).name, str(meta["data_fingerprint"])
        write_folder(folder / PRETRAINED, settings, dense, plan, groups, figures, score, learned_from)


def read_equivalence(workspace: Workspace) -> Equivalence:
    """Read how far the dense model is from the masked one.

    Raises:
        WorkspaceError: It isn't there or is damaged.
    """
    return workspace.read_json(FOLDER, EQUIVALENCE, "transform", Equivalence)


def differences_by_batch(expected: nn.Module, found: nn.Module, samples: Batches, batch_size: int) -> Iterator[float]:
    """Yield how far two models are from each other on each batch of the samples, rounding aside."""
    device = device_of(found)
    for batch in samples.ordered(batch_size):
        yield difference_on(expected, found, batch.to(device).inputs)
