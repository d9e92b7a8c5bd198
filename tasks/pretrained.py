"""A Hugging Face folder in the pipeline: which sizes its class can have, and the folder that comes out."""

from __future__ import annotations

import copy
import logging
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

import pruning
from pruning.containers import Inputs
from pruning.errors import PlanError
from pruning.graph.groups import Groups
from pruning.io.huggingface import Pretrained
from pruning.io.huggingface_folder import check_pretrained, save_per_layer, save_pretrained
from pruning.plan.carry_over import carry_over
from pruning.plan.config_fields import ConfigFields, find_config_fields, with_stated_numbers
from pruning.plan.configuration import ConfigField
from pruning.plan.plan import Plan
from tasks.config.schema import Settings
from tasks.models import ModelMetrics, on, pretrained

FOLDER = "huggingface"

log = logging.getLogger("secateur")

_known: dict[str, tuple[dict[str, Any], ConfigFields]] = {}
"""At most one: what this process found last, by the settings of the model and the groups."""


def fields_of(settings: Settings, model: nn.Module, example: Inputs, *, streams: bool) -> tuple[ConfigField, ...]:
    """Return the numbers of the configuration by which groups of the original may change.

    Args:
        settings: Name the folder.
        model: The original.
        example: One sample.
        streams: Whether channels of residual streams are among the groups.
    """
    given = pretrained(settings)
    assert given is not None, "`keeps_class` asks for one"
    key = f"{given!r} {streams}"
    if key not in _known:
        groups = pruning.find_groups(model, example, allow_mixed=streams)
        found = find_fields(groups, given)
        _known.clear()
        _known[key] = found
        log.info("prune: sizes that %s can have: %s", given.class_name, _described(found[1]))
        for name, reason in found[1].refused.items():
            log.debug("prune: %s can't change: %s", name, reason)
    return _known[key][1].fields


def find_fields(groups: Groups, given: Pretrained) -> tuple[dict[str, Any], ConfigFields]:
    """Return a folder's configuration, stated as far as sizes go, and which of its numbers set the sizes of groups."""
    config = with_stated_numbers(groups, given.config_dict(), given.build, given.optional_fields())
    return config, find_config_fields(groups, config, given.build)


def _described(found: ConfigFields) -> str:
    steps = [f"{field.name} (steps of {', '.join(map(str, field.steps.values()))})" for field in found.fields]
    return ", ".join(steps) or "none but those of the folder"


def write_folder(
    into: Path,
    settings: Settings,
    dense: nn.Module,
    plan: Plan,
    groups: Groups,
    measured: tuple[ModelMetrics, ModelMetrics],
    score: str,
    data: str,
) -> None:
    """Write the folder of the dense model, and prove in a fresh process that the stock class loads it.

    Where layers of a kind have sizes of their own, the folder is one that `secateur.from_pretrained` loads.

    Args:
        into: An empty folder.
        settings: Name the original's folder.
        dense: The dense model.
        plan: What was removed.
        groups: Of the original, without the blocks that the plan removes.
        measured: Of the baseline and of the dense model.
        score: What the score is called.
        data: The fingerprint of the data that it learned from.

    Raises:
        VerificationError: The stock class doesn't load it, or computes something else.
        PlanError: The result was to fit the class, and doesn't.
    """
    given = pretrained(settings)
    assert given is not None, "who calls this has looked"
    example, card = groups.example_inputs, _Card(settings, given, measured, score, data)
    try:
        if plan.blocks:
            raise PlanError(f"blocks are gone ({', '.join(plan.blocks)})")
        config, found = given.config_dict(), ConfigFields((), {})
        if any(plan.removed.values()):
            config, found = find_fields(groups, given)
        stock, config = carry_over(dense, plan, groups, found.fields, config, given.build)
    except PlanError as fault:
        if settings.keeps_class:
            raise
        log.info("transform: the class %s can't be built with these sizes: %s", given.class_name, fault)
        save_per_layer(into, copy.deepcopy(dense).cpu(), plan, given, example, card.per_layer())
        log.info("transform: %s is loaded by secateur.from_pretrained; transformers, GGUF and vLLM don't take it", into)
        return
    save_pretrained(into, stock.cpu(), config, given, card.uniform())
    difference = check_pretrained(into, copy.deepcopy(dense).cpu(), on("cpu", example), given)
    log.info("transform: %s loads %s in a fresh process; outputs differ by %.1e", given.class_name, into, difference)


class _Card:
    """The model card."""

    def __init__(
        self, settings: Settings, given: Pretrained, measured: tuple[ModelMetrics, ModelMetrics], score: str, data: str
    ) -> None:
        self._settings, self._given, self._score, self._data = settings, given, score, data
        self._before, self._after = measured

    def uniform(self) -> str:
        """Of a model that the stock class loads."""
        name = self._given.class_name
        return self._text(f"from transformers import {name}\n\nmodel = {name}", "")

    def per_layer(self) -> str:
        """Of a model whose layers have sizes of their own."""
        limits = (
            "Layers have sizes of their own, which `config.json` (that of the original) can't state: transformers, "
            "GGUF and vLLM don't load this folder.\n\n"
        )
        return self._text("import secateur\n\nmodel = secateur", limits)

    def _text(self, code: str, limits: str) -> str:
        before, after = self._before, self._after
        rows = [
            (f"{self._score}, validation", f"{before.score:.4g}", f"{after.score:.4g}"),
            ("MACs of one sample", f"{before.macs:,}", f"{after.macs:,}"),
            ("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
            ("bytes", f"{before.size_bytes:,}", f"{after.size_bytes:,}"),
        ]
        table = "\n".join(f"| {name} | {old} | {new} |" for name, old, new in rows)
        named = self._settings.model.from_pretrained
        return (
            f"---\nlibrary_name: transformers\ntags: [pruned, secateur]\n---\n\n"
            f"# {Path(str(named)).name}, pruned\n\n"
            f"{self._given.class_name}, pruned by Secateur from `{named}`. The licence is that of the original.\n\n"
            f"| | original | this |\n|---|---|---|\n{table}\n\n{limits}"
            f'```python\n{code}.from_pretrained("path/to/this/folder")\n```\n\n'
            f"| lineage | sha256 |\n|---|---|\n{self._lineage()}"
        )

    def _lineage(self) -> str:
        files = {path.name: path for path in self._given.weight_files()}
        found = {f"original's {name}": sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
        found["data that it learned from"] = self._data
        return "".join(f"| {name} | `{digest}` |\n" for name, digest in found.items())
