"""A user's model and one sample for it: named by the settings, or by import strings alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import SettingsError, WorkspaceError
from pruning.io.weights import load_weights
from secateur.inspection import Rules
from tasks.config import import_strings
from tasks.config.prune_schema import Structured
from tasks.config.schema import Settings
from tasks.data import as_splits, read_description, read_example
from tasks.workspace import Workspace


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
    """

    model: str
    data: str | None = None
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    data_arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    shape: tuple[int, ...] | None = None
    rules: Rules = field(default_factory=Rules)

    @classmethod
    def of(cls, settings: Settings) -> Source:
        """Return what the settings name."""
        prune = settings.prune
        rules = Rules(prune.ignore)
        if isinstance(prune, Structured):
            rounding = prune.round_for if prune.round_to == "auto" else prune.round_to
            rules = Rules(prune.ignore, rounding, prune.limits)
        return cls(
            model=settings.model.factory,
            data=settings.data.factory,
            model_arguments=settings.model.kwargs,
            data_arguments=settings.data.kwargs,
            weights=settings.model.weights,
            rules=rules,
        )

    def load(self, workspace: Workspace | None = None) -> tuple[nn.Module, Tensor]:
        """Build the model and get one sample [1, ...].

        Args:
            workspace: The sample is taken from here if `prepare` has run; otherwise the data are loaded.

        Raises:
            SettingsError: Something can't be imported or called, or is of the wrong kind.
            DataError: The data are malformed.
            CheckpointError: The weights don't fit.
        """
        example, offered = self._sample(workspace)
        torch.manual_seed(0)
        model = import_strings.call(self.model, self.model_arguments, offered)
        if not isinstance(model, nn.Module):
            raise SettingsError(f"{self.model!r} returned a {type(model).__name__}; expected a torch.nn.Module")
        if self.weights is not None:
            load_weights(model, self.weights)
        return model.eval(), example

    def _sample(self, workspace: Workspace | None) -> tuple[Tensor, dict[str, Any]]:
        if self.data is None:
            if self.shape is None:
                raise SettingsError("give --data package.module:name or --input SHAPE, such as --input 3,224,224")
            return torch.randn(1, *self.shape, generator=torch.Generator().manual_seed(0)), {"input_shape": self.shape}
        if workspace is not None:
            try:
                return read_example(workspace), read_description(workspace).offered
            except WorkspaceError:  # `prepare` hasn't run
                pass
        splits = as_splits(import_strings.call(self.data, self.data_arguments), self.data)
        offered = {"input_shape": splits.input_shape, "num_classes": len(splits.classes)}
        return splits.validation.inputs[:1], offered
