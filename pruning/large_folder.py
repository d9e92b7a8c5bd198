"""Prune a Hugging Face folder whose model doesn't fit into memory: to uniform sizes, shard by shard.

The class is built without values and traced. Where values are needed, for scores and for the proof, weights are read
from the folder module by module. Each tensor of the result is cut out of the original's file and written in the type
that it has there.

    memory    the largest module in float32, and one file of the result
    time      each run reads all weights once: two for each number of the configuration, one for each sample
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from pruning.allocation.selection import PlanKeywords, make_plan
from pruning.containers import Inputs
from pruning.errors import CheckpointError, PlanError, UnscoredGroupError, VerificationError, describe, pass_on
from pruning.graph.dispatch import state_of
from pruning.graph.groups import Group, Groups
from pruning.graph.kept_statistics import over_kept
from pruning.graph.module_copy import copy_module
from pruning.importance.registry import Criterion
from pruning.io.huggingface import Pretrained
from pruning.io.huggingface_folder import copy_companions, write_config
from pruning.io.offload import FolderWeights, build_without_values, run_from, write_shards
from pruning.plan.carry_over import TOLERANCE, config_after
from pruning.plan.config_fields import find_config_fields, with_stated_numbers
from pruning.plan.configuration import ConfigField, changed, name_of, value_at
from pruning.plan.dry_run import find_groups
from pruning.plan.masks import kept_masks, mask_of, unmasked_places
from pruning.plan.plan import Plan
from pruning.plan.slicing import keep
from pruning.plan.verification import relative_difference
from pruning.statistics.collect import Statistics

SHARD_BYTES = 1 << 30
"""Of a file of the result, which is put together in memory."""


@dataclass(frozen=True)
class PrunedFolder:
    """What `prune_folder` did.

    Attributes:
        plan: What was removed.
        changes: Names of numbers in `config.json`: value before, value after.
        refused: Names of numbers that set sizes and can't be changed: why.
        difference: Of the result's outputs from the masked original's, relative to the largest.
    """

    plan: Plan
    changes: Mapping[str, tuple[int, int]]
    refused: Mapping[str, str]
    difference: float


def prune_folder(
    source: Pretrained,
    into: Path,
    example_inputs: Inputs,
    *,
    samples: Sequence[Inputs] = (),
    criterion: str | Criterion | None = None,
    shard_bytes: int = SHARD_BYTES,
    **target: Unpack[PlanKeywords],
) -> PrunedFolder:
    """Write a smaller folder that the stock class loads, without ever holding the model.

    Nothing is refitted or trained: that is for a machine which holds the smaller model.

    Args:
        source: The folder. Its weights have the names that the class has for them.
        into: A folder that is empty or isn't there.
        example_inputs: What `forward` takes, by name; a short text will do.
        samples: Further inputs like these. With them a channel's score is ‖W‖ · ‖x‖ over the layers that read it.
        criterion: Another one, of the weights alone; by default `l2_norm` where there are no samples.
        shard_bytes: Of a file of the result, at most.
        target: As for `make_plan`: `mac_reduction=0.3` or `parameter_reduction=0.3`, and `scope`, `ignore`, `limits`.

    Raises:
        CheckpointError: The folder's weights aren't those of the class, or `into` holds something.
        PlanError: No number of the configuration can be changed.
        TargetError: The target can't be met.
        VerificationError: The result computes something else than the masked original.

    Source of the score with samples: Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language
    Models" (Wanda, arXiv 2306.11695): |W_ij| · ‖x_j‖, here the root of the sum of squares over a channel's weights.
    """
    if into.exists() and any(into.iterdir()):
        raise CheckpointError(f"{into} isn't empty; name a folder that isn't there yet")
    folder = _Folder(source, example_inputs)
    scores = criterion or (_Reads(folder.groups, folder.weights, samples).wanda if samples else "l2_norm")

    def choose(fields: Sequence[ConfigField]) -> Plan:
        sized = folder.groups.with_common_sizes(fields)
        return make_plan(sized, scores, samples=Statistics(folder.weights), **target)

    plan, fields, refused, expected = folder.proven_plan(choose)
    changes = config_after(plan, fields, folder.config)
    config = changed(folder.config, changes)
    into.mkdir(parents=True, exist_ok=True)
    write_shards(into, folder.weights.files, _Cut(folder.weights, folder.groups, plan).stored, shard_bytes)
    write_config(into, config, source, folder.weights.dtype())
    copy_companions(source, into)
    stock = folder.build(config, False)
    written = FolderWeights.of(Pretrained(into, source.auto_class), stock)
    difference = relative_difference(expected, run_from(stock, written, example_inputs))
    if not difference <= TOLERANCE:
        raise VerificationError(
            f"{source.class_name} from {into} differs from the masked original by {difference:.2e} of the largest "
            f"output; at most {TOLERANCE:.0e} is accepted. Please report the model"
        )
    sizes = {name_of(path): (value_at(folder.config, path), value) for path, value in changes.items()}
    return PrunedFolder(plan, {name: two for name, two in sizes.items() if two[0] != two[1]}, refused, difference)


class _Folder:
    """What is known of the original without its weights, and what is tried on them."""

    def __init__(self, source: Pretrained, example_inputs: Inputs) -> None:
        self._source = source
        model = build_without_values(source)
        self.weights = FolderWeights.of(source, model)
        self.groups = find_groups(model, example_inputs, allow_mixed=True)
        stated = with_stated_numbers(self.groups, source.config_dict(), self.build, source.optional_fields())
        self.config = stated

    def build(self, config: Mapping[str, Any], shapes_only: bool) -> nn.Module:
        """Build the class, without weights in either case."""
        return self._source.build(config, True) if shapes_only else build_without_values(self._source, config)

    def try_plan(self, plan: Plan, fields: Sequence[ConfigField]) -> list[Tensor]:
        """See that the class, given the weights that a plan leaves, computes what the masked original does: return it.

        Raises:
            PlanError: It doesn't, or can't be built or run.
        """
        try:
            stock = self.build(changed(self.config, config_after(plan, fields, self.config)), False)
            found = run_from(stock, _Cut(self.weights, self.groups, plan), self.groups.example_inputs)
            expected = run_masked(self.groups, plan, self.weights)
            difference = relative_difference(expected, found)
        except Exception as fault:
            pass_on(fault)
            raise PlanError(describe(fault)) from fault
        if not difference <= TOLERANCE:
            raise PlanError(
                f"the class computes something else then (relative difference {difference:.1e}): it works out more "
                "than sizes from it, such as a scale or frequencies"
            )
        return expected

    def proven_plan(
        self, choose: Callable[[Sequence[ConfigField]], Plan]
    ) -> tuple[Plan, Sequence[ConfigField], dict[str, str], list[Tensor]]:
        """Return a plan that the class can be built for, and what the masked original gives.

        Between them: the numbers that the plan changes, and those that can't be changed, with the reason.

        Args:
            choose: Makes a plan by some numbers.

        Raises:
            PlanError: No number can be changed.
        """
        found = find_config_fields(self.groups, self.config, self.build, lambda plan, one: self.try_plan(plan, [one]))
        fields, refused = found.fields, dict(found.refused)
        while fields:
            plan = choose(fields)
            try:
                return plan, fields, refused, self.try_plan(plan, fields)
            except PlanError:
                # One step of each was right; more steps show errors that were too small then. Whose are they?
                faults = {field.name: self._fault_of(plan, field) for field in fields}
                if not any(faults.values()):
                    raise
            refused |= {name: reason for name, reason in faults.items() if reason}
            fields = tuple(field for field in fields if not faults[field.name])
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise PlanError(f"no number in the configuration of {self._source.folder} can be changed ({reasons})")

    def _fault_of(self, plan: Plan, field: ConfigField) -> str:
        """Say what is wrong of a plan's share in one number; nothing if it's right."""
        lost = {name: removed for name, removed in plan.removed.items() if name in field.units and removed}
        if lost:
            try:
                self.try_plan(Plan.of(self.groups, lost), [field])
            except PlanError as fault:
                return str(fault)
        return ""


class _Lazy(Mapping[str, Tensor]):
    """Weights of a folder, changed when they are asked for."""

    def __init__(self, weights: FolderWeights, groups: Groups, plan: Plan) -> None:
        self._weights, self._groups, self._kept = weights, groups, plan.masks(groups)
        first = {id(tensor): name for name, tensor in groups.model.named_parameters()}
        self._first = {name: first.get(id(tensor), name) for name, tensor in state_of(groups.model).items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class _Cut(_Lazy):
    """What a plan leaves of them."""

    def stored(self, name: str) -> Tensor:
        """Cut a tensor, in the type that it has in the file."""
        return self._cut(name, self._weights.stored(name))

    def __getitem__(self, name: str) -> Tensor:
        return self._cut(name, self._weights[name])

    def _cut(self, name: str, tensor: Tensor) -> Tensor:
        return keep(tensor, self._groups.trace.parameters[self._first[name]], self._kept)


class _Masked(_Lazy):
    """What a plan removes of them is zero; buffers stay."""

    def __init__(self, weights: FolderWeights, groups: Groups, plan: Plan) -> None:
        super().__init__(weights, groups, plan)
        self._parameters = {name for name, _ in groups.model.named_parameters()}
        self._unmasked = unmasked_places(groups)

    def __getitem__(self, name: str) -> Tensor:
        found, first = self._weights[name], self._first[name]
        if first not in self._parameters:
            return found
        mask = mask_of(self._groups, first, self._kept, self._unmasked)
        return found if mask is None else torch.where(mask, found, torch.zeros_like(found))


def run_masked(groups: Groups, plan: Plan, weights: FolderWeights) -> list[Tensor]:
    """Run the masked original; norms are taken over the channels that stay."""
    masked = over_kept(copy_module(groups.model), kept_masks(groups, plan.masks(groups)))
    return run_from(masked, _Masked(weights, groups, plan), groups.example_inputs)


class _Reads:
    """What linear layers read of each channel: the sum over samples and positions of x²."""

    def __init__(self, groups: Groups, weights: FolderWeights, samples: Sequence[Inputs]) -> None:
        readers = {piece.parameter for group in groups for piece in group.slices if piece.role == "consumer"}
        first = {id(tensor): name for name, tensor in groups.model.named_parameters()}
        self._squares: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for module in groups.model.modules():
                name = first.get(id(module._parameters.get("weight")), "")
                if name in readers:
                    stack.enter_context(module.register_forward_pre_hook(partial(self._add, name)))
            for sample in samples:
                run_from(groups.model, weights, sample)

    def _add(self, name: str, _module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            squares = args[0].double().flatten(0, -2).square().sum(0)
            self._squares[name] = self._squares.get(name, 0) + squares

    def wanda(self, group: Group, statistics: Statistics) -> Tensor:
        """Return √Σ W² Σ x² of each channel, over the layers that read it."""
        total = torch.zeros(group.size, dtype=torch.float64)
        for piece in (one for one in group.slices if one.role == "consumer"):
            at = piece.channels()
            squares = self._squares.get(piece.parameter)
            if squares is None or squares.shape != at.shape:
                raise UnscoredGroupError(group.name, "something else than a linear layer reads them", piece.parameter)
            weight = statistics.tensors[piece.parameter].movedim(piece.axis, 0).flatten(1)
            found = weight.square().sum(1, dtype=torch.float64) * squares
            total.index_add_(0, at[at >= 0], found[at >= 0])
        if not any(piece.role == "consumer" for piece in group.slices):
            raise UnscoredGroupError(group.name, "no layer reads them", group.slices[0].parameter)
        return total.sqrt()
