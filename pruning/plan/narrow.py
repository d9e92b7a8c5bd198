"""Carry a plan out irreversibly, verify that nothing else changed; and the way back to the original shape."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

import torch
from torch import Tensor, nn

from pruning.containers import Inputs
from pruning.errors import ModelError, PlanError, UnprovenWarning, UntriedWarning, VerificationError, describe, pass_on
from pruning.graph.axes import kept
from pruning.graph.dispatch import examples_of, lacks_values
from pruning.graph.groups import Groups
from pruning.graph.kept_statistics import run_alike
from pruning.graph.module_copy import copy_whole
from pruning.graph.unwrapping import unwrap
from pruning.plan.example_variants import Call, optional_arguments, other_calls, other_value, other_values
from pruning.plan.masks import apply_masks, groups_for, keep_removed, without_blocks
from pruning.plan.other_sizes import difference_elsewhere
from pruning.plan.plan import Plan
from pruning.plan.slicing import rebuild
from pruning.plan.verification import (
    TOLERANCE,
    attempt,
    difference_beyond_rounding,
    difference_of_outputs,
    hold_values,
    relative_difference,
)


def narrow(
    model: nn.Module,
    plan: Plan,
    example_inputs: Inputs,
    *,
    groups: Groups | None = None,
    verify: bool = True,
    samples: Iterable[Inputs] = (),
    tolerance: float = TOLERANCE,
) -> nn.Module:
    """Remove for good what a plan removes.

    Args:
        model: The module that the plan was made for; it is left as it was. Wrappers that training puts around one are
            looked through, and the result has none.
        plan: Which channels go, and which blocks.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments, with which the result is
            verified; or a list of such examples.
        groups: The groups of this model, without the blocks that the plan removes, if they are known already; they are
            found otherwise.
        verify: Run the masked and the narrowed model and compare: on the example inputs, on inputs of other batches,
            lengths and sizes, with their signs turned, on one sample and on three, in evaluation and in training, with
            each truth of `forward` turned over, each number one more, and with each of its optional tensors that can be
            guessed (masks). What the masked model doesn't take in this way is left out.
        samples: Further inputs, such as calibration samples. They are used where the outputs on the example inputs
            don't depend on the plan's channels, so that comparing them would say nothing.
        tolerance: Largest accepted difference, relative to the largest output.

    Returns:
        A new dense module with the kept channels' weights.

    Raises:
        PlanError: The plan doesn't fit the model.
        VerificationError: The narrowed model does not compute what the masked model computes.
        ModelError: The model can't be copied, or has no values to verify with.

    Warns:
        UntriedWarning: `forward` takes arguments that have a default, that no example gives and that were not verified:
            no value that it takes was found, or they ask for outputs of other shapes.
        UnprovenWarning: Nothing was found wrong, but on no inputs, nor on random ones, do the outputs depend on the
            plan's channels.
    """
    model = unwrap(model)
    if verify and lacks_values(model):
        raise ModelError(
            f"{type(model).__name__} has tensors on the meta device, without values that could be compared; "
            "pass verify=False to narrow its shapes alone"
        )
    shallow = without_blocks(model, plan.blocks, example_inputs)
    groups = groups_for(shallow, plan, example_inputs, groups)
    dense = rebuild(shallow, groups, plan)
    if verify:
        _verify(model, dense, plan, groups, example_inputs, samples, tolerance)
    return dense


def _verify(
    model: nn.Module,
    dense: nn.Module,
    plan: Plan,
    groups: Groups,
    example_inputs: Inputs,
    samples: Iterable[Inputs],
    tolerance: float,
) -> None:
    masked = apply_masks(model, plan, example_inputs if plan.blocks else None, groups=groups)
    dense = run_alike(dense, masked)
    name = type(model).__name__
    advice = (
        "The plan was not carried out and the model is as it was. Leave the groups of that module out by "
        "`ignore=[...]`, and please report the model: no group may be offered that can't be narrowed exactly."
    )

    further = (
        "Where the model goes another way there, make such inputs a further example (a list of examples): only ways "
        f"that an example takes are known. {advice}"
    )

    def compare(call: Call, expected: Sequence[Tensor]) -> None:
        """Compare on one call, and look whether that can tell a right model from a wrong one."""
        remedy = further if call.how else advice
        try:
            found = call.run(dense)
        except Exception as fault:
            pass_on(fault)
            raise VerificationError(
                f"the narrowed {name} does not run{call.how}: {describe(fault)}. {remedy}"
            ) from fault
        if call.turned and [t.shape for t in found] != [t.shape for t in expected]:
            reshaped.add(call.given)
            return
        difference = relative_difference(expected, found)
        rounded = not difference <= tolerance
        if rounded:
            difference = min(difference, difference_beyond_rounding(masked, dense, call.inputs, call.run_on))
        if not difference <= tolerance:
            raise VerificationError(
                f"the narrowed {name} differs from the masked one{call.how} by {difference:.2e} of the largest output; "
                f"at most {tolerance:.0e} is accepted. {remedy}"
            )
        sight.look(call, expected, beyond_rounding=rounded)

    sight = _Sight(run_alike(model, masked), masked, plan, groups, tolerance)
    examples = examples_of(example_inputs)
    tried: set[str] = set()
    reshaped: set[str] = set()  # truths that ask for outputs of other shapes than the masked model's
    for inputs in examples:
        example = Call(inputs)
        try:
            expected = example.run(masked)
        except Exception as fault:
            pass_on(fault)
            raise ModelError(
                f"the masked {name} does not run on the example inputs, so that nothing can be compared: "
                f"{describe(fault)}. Give inputs on which the model runs with channels that are zero"
            ) from fault
        if not hold_values(expected):
            whose, remedy = f"the outputs of {name}", "give inputs for which there are outputs"
            if hold_values(example.run(model)):
                whose, remedy = f"with the plan's channels zeroed, {whose}", advice
            raise VerificationError(
                f"{whose} hold no value to compare on these inputs (they are empty, or not finite), so the narrowed "
                f"model can't be verified. {remedy[0].upper()}{remedy[1:]}"
            )
        compare(example, expected)
        for call, outputs in other_calls(masked, inputs):
            tried.add(call.given)
            compare(call, outputs)
    for call, outputs in () if sight.sees else other_values(masked, examples[0], samples):
        compare(call, outputs)
    elsewhere, shapes, _ = difference_elsewhere(masked, dense, example_inputs)
    if not elsewhere <= tolerance:
        raise VerificationError(
            f"the narrowed {name} computes what the masked one does on the example inputs, and something else on "
            f"inputs of shapes {shapes}: a difference of {elsewhere:.2e} of the largest output, at most "
            f"{tolerance:.0e} is accepted. {further}"
        )
    if not sight.sees:
        warnings.warn(
            f"the narrowed {name} is not proven to compute what the masked one does: on the example inputs and on "
            f"{sight.looks - 1} others its outputs stay the same whichever of the plan's channels are masked, those "
            "that go or those that stay. They may be constant or saturated. Give example inputs, or `samples=`, on "
            "which its outputs depend on its channels",
            UnprovenWarning,
            stacklevel=3,
        )
    _name_untried(model, examples, tried, reshaped)


def _name_untried(model: nn.Module, examples: Sequence[Inputs], tried: set[str], reshaped: set[str]) -> None:
    """Warn of the arguments of `forward` that no example gives and that could not be compared."""
    left = [optional_arguments(model, example)[0] for example in examples]
    never = {p.name: p for p in left[0] if all(p.name in {q.name for q in others} for others in left)}
    unguessed = ", ".join(name for name in never if name not in tried)
    shapes = [f"{name}={other_value(never[name].default)}" for name in never if name in reshaped]
    said = [f"no value that it takes was found for {unguessed}"] if unguessed else []
    said += [f"outputs have other shapes than the masked one's with {', '.join(shapes)}"] if shapes else []
    if said:
        warnings.warn(
            f"the narrowed {type(model).__name__} is not compared with the masked one where forward is given what no "
            f"example gives: {' and '.join(said)}. Where you use these, make it a further example (a list of examples)",
            UntriedWarning,
            stacklevel=4,
        )


@dataclass
class _Sight:
    """Whether a comparison can tell a right model from a wrong one: do the outputs depend on the plan's channels?

    They do where the masked model's outputs differ from the original's. Where channels go that were zero already they
    don't differ, and still do from those of the model that keeps these channels alone.

    Attributes:
        sees: Whether they did on some call.
        looks: On how many calls that was asked.
    """

    model: nn.Module
    masked: nn.Module
    plan: Plan
    groups: Groups
    tolerance: float
    looks: int = 0

    def __post_init__(self) -> None:
        self.sees = not any(self.plan.removed.values()) and not self.plan.blocks

    def look(self, call: Call, outputs: Sequence[Tensor], *, beyond_rounding: bool) -> None:
        """Look at the outputs that the masked model gives in a call.

        Args:
            call: The call.
            outputs: What the masked model gives in it.
            beyond_rounding: Whether the narrowed model was compared in float64, as its outputs were rounded too much.
        """
        self.looks += 1
        self.sees = (
            self.sees
            or self._differs(self.model, call, outputs, beyond_rounding)
            or self._differs(self._complement, call, outputs, beyond_rounding)
        )

    def _differs(self, other: nn.Module, call: Call, outputs: Sequence[Tensor], beyond_rounding: bool) -> bool:
        if beyond_rounding:
            return inf > difference_beyond_rounding(self.masked, other, call.inputs, call.run_on) > self.tolerance
        found = attempt(call.run, other)
        if found is None or relative_difference(outputs, found) <= self.tolerance:
            return False
        return difference_of_outputs(self.masked, outputs, found, call.inputs, call.run_on) > self.tolerance

    @cached_property
    def _complement(self) -> nn.Module:
        return keep_removed(self.model, self.plan, self.groups)


def expand(dense: nn.Module, plan: Plan, groups: Groups, model: nn.Module | None = None) -> nn.Module:
    """Return a model of the original shape that holds a narrowed model's weights where channels were kept.

    Masked by the plan, it computes what the narrowed one computes. Unmasked, the channels that went are back as the
    original had them, and so are the blocks: a later plan may keep them.

    Args:
        dense: What `plan` left of the original, trained on since.
        plan: From the original to the narrowed model.
        groups: Found on the original, without the blocks that the plan removes. It stays as it is; its values fill the
            places of what went.
        model: The original, where the plan removes blocks; by default that of the groups.

    Raises:
        PlanError: The plan removes blocks, and the original isn't given.
    """
    if plan.blocks and model is None:
        raise PlanError(
            f"the plan removes {', '.join(plan.blocks)}; give the original model, which holds their weights"
        )
    original = groups.model if model is None else unwrap(model)
    masks = plan.masks(groups)
    wide = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    for name, tensor in dense.state_dict().items():
        axes = groups.trace.parameters.get(name, [])
        if axes:
            indices = [kept(axis, masks).nonzero().flatten().to(tensor.device) for axis in axes]
            wide[name][torch.meshgrid(*indices, indexing="ij")] = tensor
        else:
            wide[name].copy_(tensor)
    twin = copy_whole(original)
    twin.load_state_dict(wide)
    return twin
