"""Carry a plan out irreversibly, and verify that the narrowed model computes what the masked one computes."""

from __future__ import annotations

import warnings

from torch import nn

from pruning.errors import ModelError, VerificationError
from pruning.structure.groups import Groups
from pruning.structure.masks import apply_masks, groups_for
from pruning.structure.other_inputs import difference_elsewhere
from pruning.structure.plan import Plan
from pruning.structure.rebuilding import rebuild
from pruning.structure.verification import hold_values, outputs_of, relative_difference
from pruning.tracing.watch import Inputs

TOLERANCE = 1e-4


def narrow(
    model: nn.Module,
    plan: Plan,
    example_inputs: Inputs,
    *,
    groups: Groups | None = None,
    verify: bool = True,
    tolerance: float = TOLERANCE,
) -> nn.Module:
    """Remove for good what a plan removes.

    Args:
        model: The module that the plan was made for; it is left as it was.
        plan: Which channels go.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments, with which the result is
            verified.
        groups: The groups of this model if they are known already; they are found otherwise.
        verify: Run the masked and the narrowed model on the example inputs, and on inputs of other batches, lengths and
            sizes where the model takes them, and compare.
        tolerance: Largest accepted difference, relative to the largest output.

    Returns:
        A new dense module with the kept channels' weights.

    Raises:
        PlanError: The plan doesn't fit the model.
        VerificationError: The narrowed model does not compute what the masked model computes. Where groups that were
            allowed to be mixed lose channels, the difference is a warning instead.
        ModelError: The model can't be copied, or has no values to verify with.
    """
    if verify and any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ModelError(
            f"{type(model).__name__} has tensors on the meta device, without values that could be compared; "
            "pass verify=False to narrow its shapes alone"
        )
    groups = groups_for(model, plan, example_inputs, groups)
    dense = rebuild(model, groups, plan)
    if verify:
        _verify(model, dense, plan, groups, example_inputs, tolerance)
    return dense


def _verify(
    model: nn.Module, dense: nn.Module, plan: Plan, groups: Groups, example_inputs: Inputs, tolerance: float
) -> None:
    masked = apply_masks(model, plan, groups=groups)
    expected = outputs_of(masked, example_inputs)
    name = type(model).__name__
    if not hold_values(expected):
        raise VerificationError(
            f"the outputs of {name} hold no value to compare on these inputs (they are empty, or not finite), so the "
            "narrowed model can't be verified; give inputs for which there are outputs"
        )
    advice = (
        "The plan was not carried out and the model is as it was. Leave the groups of that module out by "
        "`ignore=[...]`, and please report the model: no group may be offered that can't be narrowed exactly."
    )
    try:
        found = outputs_of(dense, example_inputs)
    except Exception as fault:
        raise VerificationError(f"the narrowed {name} does not run: {fault}. {advice}") from fault
    difference = relative_difference(expected, found)
    inexact = [group for group in groups if group.mixed and plan.removed.get(group.name)]
    if inexact:
        reasons = dict.fromkeys(reason for group in inexact for reason in group.mixed)
        warnings.warn(
            f"the narrowed {name} differs from the masked one by {difference:.2e} of the largest output, because "
            f"groups that were allowed to be mixed lost channels ({'; '.join(reasons)}); fine-tune it",
            stacklevel=3,
        )
        return
    if not difference <= tolerance:
        raise VerificationError(
            f"the narrowed {name} differs from the masked one by {difference:.2e} of the largest output; "
            f"at most {tolerance:.0e} is accepted. {advice}"
        )
    difference, shapes = difference_elsewhere(masked, dense, example_inputs)
    if not difference <= tolerance:
        raise VerificationError(
            f"the narrowed {name} computes what the masked one does on the example inputs, and something else on "
            f"inputs of shapes {shapes}: a difference of {difference:.2e} of the largest output, at most "
            f"{tolerance:.0e} is accepted. {advice}"
        )
