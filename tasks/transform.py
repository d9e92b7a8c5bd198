"""Make the final dense model, and prove on real samples that it computes what the masked model computes."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

import pruning
from pruning.errors import VerificationError
from pruning.evaluation import Samples, restored_modes
from pruning.gates import GatedModel, run_masked
from pruning.groups import Groups
from pruning.plan import Plan
from pruning.verification import relative_difference
from tasks.data import read_description, read_split
from tasks.ledger import read_ledger
from tasks.models import begin, example_inputs, load_model, make_factory, measured_in, save_model
from tasks.settings import Settings
from tasks.workspace import Workspace, write_json

FOLDER = "dense"
EQUIVALENCE = "equivalence.json"
TOLERANCE = 1e-4
_NUM_GATED = 32  # samples whose choices are carried out one by one

log = logging.getLogger("secateur")


def transform(settings: Settings, workspace: Workspace) -> None:
    """Write the dense checkpoint: the last accepted one, or the baseline where no attempt was accepted.

    A model with gates is compared with itself, masked for each sample as its gates choose.

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
    validation = read_split(workspace, "validation")
    if isinstance(dense, GatedModel):
        inputs = validation.inputs[:_NUM_GATED].to(settings.run.device)
        found, expected = run_masked(dense.eval(), pruning.find_groups(dense.model, example), inputs)
        difference, num_samples = relative_difference([expected], [found]), len(inputs)
    else:
        original = make_factory(settings, data)().to(settings.run.device)
        masked = masked_twin(dense, plan, pruning.find_groups(original, example))
        difference = largest_difference(dense, masked, validation, settings.training.batch_size)
        num_samples = len(validation.inputs)
    if not difference < TOLERANCE:
        raise VerificationError(
            f"the dense model of {source} differs from the masked one by {difference:.2e} (relative) on "
            f"{num_samples} validation samples; expected below {TOLERANCE:.0e}. Please report the model"
        )
    folder = workspace.folder(FOLDER)
    save_model(folder, dense, plan, measured_in(meta, source), meta["data_fingerprint"])
    write_json(folder / EQUIVALENCE, {"max_relative_difference": difference, "num_samples": num_samples})
    log.info("transform: dense and masked model differ by %.1e (relative) at most", difference)


def masked_twin(dense: nn.Module, plan: Plan, groups: Groups) -> nn.Module:
    """Return a model of the original shape that holds the dense model's weights where channels were kept, masked.

    Args:
        dense: What `plan` left of the original, trained on since.
        plan: From the original to the dense model.
        groups: Found on the original, whose own weights fill the places of removed channels before they are masked.
    """
    kept = _kept_indices(plan, groups)
    wide = {name: tensor.clone() for name, tensor in groups.model.state_dict().items()}
    for name, tensor in dense.state_dict().items():
        grid = [kept.get((name, axis), torch.arange(size)) for axis, size in enumerate(wide[name].shape)]
        if grid:
            wide[name][torch.meshgrid(*grid, indexing="ij")] = tensor
        else:
            wide[name].copy_(tensor)
    twin = pruning.apply_masks(groups.model, Plan(removed={}, sizes={}), groups=groups)
    twin.load_state_dict(wide)
    return pruning.apply_masks(twin, plan, groups=groups)


def _kept_indices(plan: Plan, groups: Groups) -> dict[tuple[str, int], Tensor]:
    """Map (parameter, axis) to the indices that the plan keeps, where it removes any."""
    gone: dict[tuple[str, int], Tensor] = {}
    for name, removed in plan.removed.items():
        for piece in groups[name].slices:
            here = torch.isin(piece.channels(), torch.tensor(removed, dtype=torch.long))
            place = (piece.parameter, piece.axis)
            gone[place] = gone[place] | here if place in gone else here
    return {place: torch.nonzero(~mask).flatten() for place, mask in gone.items()}


@torch.no_grad()
def largest_difference(one: nn.Module, other: nn.Module, samples: Samples, batch_size: int) -> float:
    """Return the largest max|y − y'| / max|y| of a batch, over all samples, in evaluation mode."""
    device = next(one.parameters()).device
    largest = 0.0
    with restored_modes(one), restored_modes(other):
        one.eval()
        other.eval()
        for batch in torch.split(samples.inputs, batch_size):
            found, expected = one(batch.to(device)), other(batch.to(device))
            scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
            largest = max(largest, float((found - expected).abs().max() / scale))
    return largest
