"""A user's model, one sample for it, and what could be pruned in it: without training or data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pruning
from pruning.allocation.selection import Rounding
from pruning.containers import Inputs, take
from pruning.errors import SettingsError, TargetError, WorkspaceError
from pruning.graph.contexts import quiet
from pruning.io.huggingface import Pretrained
from pruning.io.weights import load_weights
from pruning.plan.constraints import Freedom, within_first
from pruning.plan.plan import Cost
from tasks.config import import_strings
from tasks.config.prune_schema import Structured
from tasks.config.schema import Settings
from tasks.data import read_description, read_example
from tasks.data_factory import opened
from tasks.data_sets import DataSets
from tasks.models import pretrained
from tasks.pretrained import find_fields
from tasks.workspace import Workspace
from zoo.datasets.splits import inputs_of, shapes_of

REDUCTIONS = (0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Rules:
    """The limits of the predicted plans; the defaults are those of the section `prune`.

    Attributes:
        ignore: Modules or parameters that stay whole.
        round_to: Kept counts are multiples of this, or what kernels reward.
        freedoms: What a plan may do; later ones for what is out of reach within the first.
        pretrained: A Hugging Face folder whose class the result has to fit.
    """

    ignore: Sequence[str] = ()
    round_to: Rounding = "auto"
    freedoms: Sequence[Freedom] = (
        Freedom(pruning.Limits(min_channels=8)),
        Freedom(pruning.Limits(min_channels=8), streams=True),
    )
    pretrained: Pretrained | None = None


@dataclass(frozen=True)
class Source:
    """Where a model and a sample come from.

    Attributes:
        model: Import string of the model's factory.
        data: Import string of the data's factory; None for a random sample.
        model_arguments: Of the model's factory.
        data_arguments: Of the data's factory.
        weights: A file; None for fresh ones.
        shape: Of a random sample [1, ...], if no data are named.
        rules: Of what is predicted.
        pretrained: A Hugging Face folder, in place of the factory and the weights.
    """

    model: str
    data: str | None = None
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    data_arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    shape: tuple[int, ...] | None = None
    rules: Rules = field(default_factory=Rules)
    pretrained: Pretrained | None = None

    @classmethod
    def of(cls, settings: Settings) -> Source:
        """Return what the settings name."""
        prune, given = settings.prune, pretrained(settings)
        rules = Rules(prune.ignore)
        if isinstance(prune, Structured):
            rounding = prune.round_for if prune.round_to == "auto" else prune.round_to
            rules = Rules(prune.ignore, rounding, prune.freedoms, given if settings.keeps_class else None)
        return cls(
            model=settings.model.factory,
            data=settings.data.factory,
            model_arguments=settings.model.kwargs,
            data_arguments=settings.data.kwargs,
            weights=settings.model.weights,
            rules=rules,
            pretrained=given,
        )

    def load(self, workspace: Workspace | None = None) -> tuple[nn.Module, Inputs]:
        """Build the model and get one sample [1, ...].

        Args:
            workspace: The sample is taken from here if `prepare` has run; otherwise the data are loaded.

        Raises:
            SettingsError: Something can't be imported or called, or is of the wrong kind.
            DataError: The data are malformed.
            CheckpointError: The weights don't fit.
        """
        example, offered = self._sample(workspace)
        if self.pretrained is not None:
            made = self.pretrained.build()
            self.pretrained.load_weights(made, trains=True)
            return made, example
        if self.data is None:
            self._refuse_lack_of_classes()
        torch.manual_seed(0)
        model = import_strings.call(self.model, self.model_arguments, offered)
        if not isinstance(model, nn.Module):
            raise SettingsError(f"{self.model!r} returned a {type(model).__name__}; expected a torch.nn.Module")
        if self.weights is not None:
            load_weights(model, self.weights)
        return model.eval(), example

    def _refuse_lack_of_classes(self) -> None:
        """Say that a random sample doesn't tell the number of classes, if the model's function needs it."""
        try:
            wanted = signature(import_strings.resolve(self.model)).parameters.get("num_classes")
        except ValueError:  # a callable without a readable signature is tried as it is
            return
        if wanted is not None and wanted.default is wanted.empty and "num_classes" not in self.model_arguments:
            raise SettingsError(
                f"{self.model!r} needs num_classes, which a random sample doesn't tell; give --data MODULE:NAME in "
                "place of --input, or give num_classes a default"
            )

    def _sample(self, workspace: Workspace | None) -> tuple[Inputs, dict[str, Any]]:
        if self.data is None:
            if self.shape is None:
                raise SettingsError("give --data package.module:name or --input SHAPE, such as --input 3,224,224")
            return torch.randn(1, *self.shape, generator=torch.Generator().manual_seed(0)), {"input_shape": self.shape}
        if workspace is not None:
            try:
                return read_example(workspace), read_description(workspace).offered
            except WorkspaceError:  # `prepare` hasn't run
                pass
        found = opened(import_strings.call(self.data, self.data_arguments), self.data)
        if isinstance(found, DataSets) and found.classes is None:
            found = found.read()
        if isinstance(found, DataSets):
            inputs, classes = found.first["validation"].inputs, found.classes or ()
        else:
            inputs, classes = found.validation.inputs, found.classes
        shape = inputs_of(shapes_of(inputs))
        return take(inputs, slice(0, 1)), {"input_shape": shape, "num_classes": len(classes)}


@dataclass(frozen=True)
class Size:
    """What a model costs.

    Attributes:
        macs: Of one sample.
        parameters: Number of them.
        size_bytes: Of parameters and buffers.
    """

    macs: int
    parameters: int
    size_bytes: int


@dataclass(frozen=True)
class Inspection:
    """What could be pruned in a model.

    Attributes:
        name: The model's class.
        groups: Name and number of channels of each group.
        size: Of the model as it is.
        smallest: Of the model with one channel left in each group: what no plan can go below.
        in_groups: Number of parameters with an axis along which channels can be removed.
        whole: Why parameters stay whole -> their names.
        predicted: Reduction of MACs -> what the model would cost, or why that can't be reached.
    """

    name: str
    groups: dict[str, int]
    size: Size
    smallest: Size
    in_groups: int
    whole: dict[str, list[str]]
    predicted: dict[float, Size | str]

    @property
    def prunable_macs(self) -> float:
        """Share of the MACs that could go at most."""
        return 1 - self.smallest.macs / self.size.macs if self.size.macs else 0.0

    @property
    def prunable_parameters(self) -> float:
        """Share of the parameters that could go at most."""
        return 1 - self.smallest.parameters / self.size.parameters if self.size.parameters else 0.0


def inspect(model: nn.Module, example: Inputs, rules: Rules | None = None) -> Inspection:
    """Find what could be pruned, and predict what is left at several reductions of the MACs.

    Predictions are exact counts for a plan by the norm of the weights with one threshold over all groups; another
    criterion spreads the same reduction differently.

    Args:
        model: Any module; it is left as it was.
        example: One sample [1, ...].
        rules: Of the predicted plans.

    Raises:
        ModelError: The model can't be run on the sample.
        PlanError: `ignore` names nothing.
    """
    rules = rules or Rules()
    with_streams = any(freedom.streams for freedom in rules.freedoms)
    groups = pruning.find_groups(model, example, allow_mixed=with_streams)
    offered = {with_streams: groups}
    if any(group.mixed for group in groups) and not all(freedom.streams for freedom in rules.freedoms):
        offered[False] = pruning.find_groups(model, example)
    if rules.pretrained is not None:
        for streams, found in offered.items():
            offered[streams] = found.with_common_sizes(find_fields(found, rules.pretrained)[1].fields)
    cost = Cost(groups)
    report = groups.report()
    whole: dict[str, list[str]] = {}
    for row in report:
        if not row.prunable:
            whole.setdefault("; ".join(dict.fromkeys(map(_without_axis, row.reasons))), []).append(row.parameter)
    with quiet("pruning", logging.ERROR):  # for each prediction it would say what the result says once
        predicted = {share: _predict(offered, cost, share, rules) for share in REDUCTIONS} if len(groups) else {}
    numel = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return Inspection(
        name=type(model).__name__,
        groups={group.name: group.size for group in groups},
        size=_size(cost, {}),
        smallest=_size(cost, {group.name: 1 for group in groups}),
        in_groups=sum(numel.get(row.parameter, 0) for row in report if row.prunable),
        whole=whole,
        predicted=predicted,
    )


def _size(cost: Cost, kept: dict[str, int]) -> Size:
    return Size(cost.macs(kept), cost.parameters(kept), cost.size_bytes(kept))


def _predict(offered: Mapping[bool, pruning.Groups], cost: Cost, share: float, rules: Rules) -> Size | str:
    """Predict what is left, by the first of the freedoms that lets the reduction be reached.

    Args:
        offered: The groups with residual streams, and those without where they are others.
        cost: By the names of all groups.
        share: Reduction of the MACs.
        rules: Of the plan.
    """
    freedoms = [freedom for freedom in rules.freedoms if freedom.streams in offered and len(offered[freedom.streams])]

    def plan_within(freedom: Freedom) -> pruning.Plan:
        return pruning.make_plan(
            offered[freedom.streams],
            "l2_norm",
            pruning.MacReduction(share),
            scope="global",
            ignore=tuple(rules.ignore),
            round_to=rules.round_to,
            limits=freedom.limits,
        )

    try:
        plan, freedom = within_first(freedoms, plan_within)
    except TargetError as fault:
        return str(fault)
    return _size(cost, plan.kept_sizes(offered[freedom.streams]))


def _without_axis(reason: str) -> str:
    return reason.partition(": ")[2] if reason.startswith("axis ") else reason
