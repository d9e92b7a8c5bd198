"""A narrowed model as its class builds it: from a configuration with smaller numbers, with the narrowed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import PlanError, describe, pass_on
from pruning.graph.axes import kept, leaves
from pruning.graph.contexts import forked_torch
from pruning.graph.groups import Groups
from pruning.plan.configuration import Build, ConfigField, Keys, changed, name_of, numbers_after
from pruning.plan.plan import Plan
from pruning.plan.verification import difference_on

TOLERANCE = 1e-5
"""Of the largest output: how far the class may be from the narrowed model."""


def carry_over(
    dense: nn.Module,
    plan: Plan,
    groups: Groups,
    fields: Sequence[ConfigField],
    config: Mapping[str, Any],
    build: Build,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the class, built from the configuration of a narrowed model, with its weights, and that configuration.

    Where the class works out the scale of its attention from the width of a head, queries and keys are scaled by as
    much.

    Args:
        dense: the narrowed model; it is left as it is.
        plan: what was removed.
        groups: of the original model.
        fields: of the original model.
        config: of the original model.
        build: builds the class.

    Raises:
        PlanError: no numbers of the configuration give the narrowed model, or the class computes something else.
    """
    changes = config_after(plan, fields, config)
    after = changed(config, changes)
    try:
        with forked_torch():
            stock = build(after, False).to(next(dense.parameters()).device).eval()
    except Exception as fault:
        pass_on(fault)
        raise PlanError(f"the class can't be built with {_shown(changes)}: {describe(fault)}") from fault
    differences = []
    for scaled in ({}, _scaled(dense, plan, groups)):
        state = {**dense.state_dict(), **scaled}
        try:
            stock.load_state_dict(state)
        except RuntimeError as fault:
            raise PlanError(
                f"the class has other tensors than the narrowed model: {str(fault).splitlines()[-1].strip()}"
            ) from fault
        differences.append(difference_on(dense, stock, groups.example_inputs))
        if differences[-1] <= TOLERANCE:
            return stock, after
    raise PlanError(
        f"the class computes something else than the narrowed model (relative difference {min(differences):.1e}): it "
        "works out more than sizes from its configuration, such as frequencies from the width of a head"
    )


def config_after(plan: Plan, fields: Sequence[ConfigField], config: Mapping[str, Any]) -> dict[Keys, int]:
    """Return the numbers of the configuration that change with a plan.

    Raises:
        PlanError: no numbers of the configuration give what the plan leaves.
    """
    lost = {name: len(indices) for name, indices in plan.removed.items()}
    taken: list[tuple[ConfigField, int]] = []
    for field in fields:
        counts = {Fraction(lost.pop(name, 0), unit) for name, unit in field.units.items()}
        if len(counts) > 1 or next(iter(counts)).denominator > 1:
            raise PlanError(f"the groups that {field.name} sets have lost unequal shares; they aren't uniform")
        taken.append((field, int(counts.pop())))
    if any(lost.values()):
        name = next(name for name, count in lost.items() if count)
        raise PlanError(f"no number of the configuration sets the size of {name} alone")
    return numbers_after(config, taken)


def _scaled(dense: nn.Module, plan: Plan, groups: Groups) -> dict[str, Tensor]:
    """Scale queries and keys so that their products grow by √(width after / width before) of a head.

    What makes the channels of a head is multiplied by the root of that root; what sums over them, as the layer behind
    the values does, is divided by it.
    """
    found: dict[str, Tensor] = {}
    state, masks = dense.state_dict(), plan.masks(groups)
    for name, removed in plan.removed.items():
        group = groups[name]
        if not removed or not _is_width_of_heads(groups, name):
            continue
        factor = (1 - len(removed) / group.size) ** 0.25
        for piece in group.slices:
            own = piece.channels()[kept(groups.trace.parameters[piece.parameter][piece.axis], masks)]
            tensor = found.setdefault(piece.parameter, state[piece.parameter].clone())
            shape = [1] * tensor.ndim
            shape[piece.axis] = -1
            here = 1 / factor if piece.role == "consumer" else factor
            tensor.mul_(torch.where(own >= 0, here, 1.0).to(tensor).reshape(shape))
    return found


def _is_width_of_heads(groups: Groups, name: str) -> bool:
    """Whether a product of two activations sums over the channels, or gives them: queries and keys, or values."""
    atom = groups.atom(name)
    products = (c for traced in groups.trace.passes for c in traced.facts.contractions if not c.operands)
    return any(atom in leaves(axis) for product in products for axis in product.terms[-2:])


def _shown(changes: Mapping[Keys, int]) -> str:
    return ", ".join(f"{name_of(path)} {value}" for path, value in changes.items())
