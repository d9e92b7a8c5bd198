"""Carry a plan out reversibly: zero every slice that it removes, on the producing and on the consuming side.

sigmoid(0) is not 0, so what makes a masked channel count for nothing is the consuming side.

A norm has no consuming side: zeros count in its mean and its variance. So where a plan removes channels over which a
statistic is computed (`find_groups(..., allow_mixed=True)`), the masked model takes the statistic over the channels
that stay, as the narrowed one does: each such operator, known by where the code calls it, is given these alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from pruning.containers import Inputs
from pruning.errors import PlanError
from pruning.graph.axes import Atom, kept, leaves
from pruning.graph.groups import Groups
from pruning.graph.kept_statistics import KeptMasks, over_kept, statistics_of
from pruning.graph.module_copy import copy_whole
from pruning.graph.unwrapping import unwrap
from pruning.plan.blocks import Blocks, find_blocks, with_zeros
from pruning.plan.dry_run import find_groups
from pruning.plan.plan import Plan


def without_blocks(model: nn.Module, names: Collection[str], example_inputs: Inputs) -> nn.Module:
    """Copy a model without some blocks, its parameters shared with the original; the model itself where none go.

    Some can go only once others have: a branch that code of a module computes goes with the module, once nothing else
    is left of it.

    Raises:
        PlanError: One is unknown.
    """
    for blocks, here in _in_turns(model, names, example_inputs):
        model = blocks.without(here)
    return model


def zero_blocks(model: nn.Module, names: Collection[str], example_inputs: Inputs) -> nn.Module:
    """Copy a model with the parameters of some blocks zeroed: what the model without them is proven against.

    Raises:
        PlanError: One is unknown.
    """
    parameters: list[str] = []
    for blocks, here in _in_turns(model, names, example_inputs):
        parameters += [parameter for name in here for parameter in blocks[name].parameters]
    return with_zeros(model, parameters)


def _in_turns(model: nn.Module, names: Collection[str], example_inputs: Inputs) -> Iterator[tuple[Blocks, list[str]]]:
    """Yield the blocks of a model, and those of some that can go from it; then those of the model without them."""
    left = list(names)
    while left:
        blocks = find_blocks(model, example_inputs)
        here = [name for name in left if name in blocks]
        if not here:
            blocks[left[0]]  # raises
        yield blocks, here
        left = [name for name in left if name not in here]
        model = blocks.without(here) if left else model


def find_groups_of(names: Iterable[str], model: nn.Module, example_inputs: Inputs) -> Groups:
    """Find groups of these names in a model: with residual streams only where one of the names is not found without."""
    groups = find_groups(model, example_inputs)
    found = all(name in groups for name in names)
    return groups if found else find_groups(model, example_inputs, allow_mixed=True)


def find_groups_under(plan: Plan, model: nn.Module, example_inputs: Inputs, names: Iterable[str] = ()) -> Groups:
    """Find the groups by which to read a plan that was made for a model: of the model without the plan's blocks.

    Args:
        plan: Which channels go, and which blocks.
        model: The module that it was made for.
        example_inputs: As for `find_groups`.
        names: Of groups that have to be found too.
    """
    return find_groups_of((*plan.removed, *names), without_blocks(model, plan.blocks, example_inputs), example_inputs)


def compose(first: Plan, second: Plan, model: nn.Module, example_inputs: Inputs) -> Plan:
    """Return one plan that does what two do, the second one made on what the first one leaves of a model.

    Unlike with `Plan.then` the second may remove blocks after the first has removed channels: these are put into the
    numbering of the model without the blocks.

    Args:
        first: Made for the model.
        second: Made for what the first one leaves.
        model: Any instance of the architecture; its weights don't matter.
        example_inputs: As for `find_groups`.

    Raises:
        PlanError: As `Plan.then` and `Plan.with_blocks`.
    """
    if not second.blocks or not any(first.removed.values()):
        return first.then(second)
    before = find_groups_under(first, model, example_inputs)
    shallow = without_blocks(model, (*first.blocks, *second.blocks), example_inputs)
    mixed = any(before[name].mixed for name in first.removed)
    both = first.with_blocks(second.blocks, before, find_groups(shallow, example_inputs, allow_mixed=mixed))
    return both.then(Plan(removed=second.removed, sizes=second.sizes))


def groups_for(model: nn.Module, plan: Plan, example_inputs: Inputs | None, groups: Groups | None) -> Groups:
    """The groups by which to read a plan for a model: those given, those traced anew, or those the plan was made for.

    Raises:
        PlanError: None of the three is there, or they are those of a model with other parameters.
    """
    if groups is None and example_inputs is None:
        groups = plan.groups
    if groups is None:
        if example_inputs is None:
            raise PlanError("a plan that was read from JSON needs example_inputs, to trace what its names stand for")
        groups = find_groups_of(plan.removed, model, example_inputs)
    found = {name: tuple(p.shape) for name, p in model.named_parameters()}
    expected = {name: tuple(p.shape) for name, p in groups.model.named_parameters()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise PlanError(
                f"parameter {name!r} of {type(model).__name__} has shape {found.get(name)}, the plan was made for "
                f"{expected.get(name)}; use the factory and the arguments that the plan was made with"
            )
    return groups


def parameter_masks(groups: Groups, plan: Plan) -> dict[str, Tensor]:
    """The mask of each parameter that a plan touches.

    Returns:
        Bool, in the parameter's shape, True where a value stays. Buffers are left as they are: a batch norm's running
        variance must not become zero.
    """
    return masks_of(groups, plan.masks(groups))


def masks_of(groups: Groups, kept_channels: Mapping[Atom, Tensor]) -> dict[str, Tensor]:
    """The same for any channels, by the atoms of the algebra that stand for their groups; a group may keep none."""
    unmasked = unmasked_places(groups)
    found = {name: mask_of(groups, name, kept_channels, unmasked) for name, _ in groups.model.named_parameters()}
    return {name: mask for name, mask in found.items() if mask is not None}


def unmasked_places(groups: Groups) -> set[tuple[str, int]]:
    """Axes of parameters that stay as they are: name, position."""
    return {place for traced in groups.trace.passes for place in traced.facts.unmasked}


def mask_of(
    groups: Groups, name: str, kept_channels: Mapping[Atom, Tensor], unmasked: Collection[tuple[str, int]]
) -> Tensor | None:
    """The mask of one parameter; None where all of it stays."""
    axes = groups.trace.parameters[name]
    shape = groups.model.get_parameter(name).shape
    mask = torch.ones(shape, dtype=torch.bool)
    for position, axis in enumerate(axes):
        if (name, position) in unmasked:
            continue
        ones = [1] * len(shape)
        ones[position] = -1
        mask = mask & kept(axis, kept_channels).reshape(ones)
    return None if mask.all() else mask


def apply_masks(
    model: nn.Module, plan: Plan, example_inputs: Inputs | None = None, *, groups: Groups | None = None
) -> nn.Module:
    """Zero what a plan removes.

    Args:
        model: The module that the plan was made for; it is left as it was.
        plan: Which channels go.
        example_inputs: What to trace the model with; needed only for a plan that was read from JSON or removes blocks.
        groups: The groups of this model or of another instance of the same architecture, without the blocks that the
            plan removes; by default those of the plan.

    Returns:
        A new module of the same shape. Where channels go over which a norm computes its statistics, its class is
        derived from the model's, and it computes no gradients.

    Raises:
        PlanError: The plan doesn't fit the model.
    """
    model = unwrap(model)
    if not plan.blocks:
        groups = groups_for(model, plan, example_inputs, groups)
        return _masked(model, groups, plan.masks(groups))
    if example_inputs is None:
        raise PlanError("a plan that removes blocks needs example_inputs, to find them in the model")
    shallow = groups_for(without_blocks(model, plan.blocks, example_inputs), plan, example_inputs, groups)
    return _masked(zero_blocks(model, plan.blocks, example_inputs), shallow, plan.masks(shallow))


def keep_removed(model: nn.Module, plan: Plan, groups: Groups) -> nn.Module:
    """Zero what a plan keeps of the groups that lose channels, and keep what it removes: the opposite of masking.

    Outputs that are the same as the masked model's don't depend on the channels, and prove nothing.

    Args:
        model: The module that the plan was made for; it is left as it was.
        plan: Which channels go.
        groups: The groups of this model.

    Returns:
        A new module of the same shape.
    """
    return _masked(model, groups, {atom: ~kept for atom, kept in plan.masks(groups).items()})


def masked_copy(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a model with the values zeroed that the masks of its parameters don't keep."""
    masked = copy_whole(model)
    parameters = dict(masked.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            whole = parameters[name]  # not multiplied: float8 can't be, and infinity times zero is no zero
            whole.copy_(torch.where(mask.to(whole.device), whole, torch.zeros_like(whole)))
    return masked


def _masked(model: nn.Module, groups: Groups, masks: Mapping[Atom, Tensor]) -> nn.Module:
    sites = kept_masks(groups, masks)
    masked = masked_copy(model, masks_of(groups, masks))
    return over_kept(masked, sites) if sites else masked


def kept_masks(groups: Groups, masks: Mapping[Atom, Tensor]) -> KeptMasks:
    """Where a masked model takes statistics over channels of which some go, and which stay."""
    sites: KeptMasks = {}
    for site, candidates in statistics_of(groups.model, groups.trace).items():
        for axes in candidates:
            gone = [any(atom in masks and atom.mixed for atom in leaves(axis)) for axis in axes]
            if any(gone):
                found = [kept(axis, masks) if loses else None for axis, loses in zip(axes, gone, strict=True)]
                sites.setdefault(site, []).append(found)
    return sites
