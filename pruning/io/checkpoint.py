"""Save and load a narrowed model without pickle.

    folder/
        weights.safetensors     every tensor once; one that holds many zeros as bitmap and values, see `packing`
        plan.json               which channels went, in the factory model's numbering
        meta.json               format, sha256 of the two files above, tied names, and which tensors are packed,
                                which groups have a gate, and what the caller adds

The architecture is rebuilt by calling the model's factory, replaying the plan and adding the gates. The same model,
plan and meta give the same bytes. A folder is written beside its place and renamed into it: what exists is complete.
One that is replaced steps aside first; if the process dies just then, it is put back by whoever comes next.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import Tensor, nn

from pruning.dynamic.gates import GatedModel, add_gates
from pruning.errors import CheckpointError, ModelError, PlanError
from pruning.io.files import parse_json, put_back, read_bytes, writing
from pruning.io.weights import load_state
from pruning.plan.dry_run import find_groups
from pruning.plan.narrow import narrow
from pruning.plan.plan import Plan
from pruning.unstructured.masks import pack, unpack

_FORMAT = 1
_WEIGHTS, _PLAN, _META = "weights.safetensors", "plan.json", "meta.json"
_MEND = "take it from its backup, or delete the folder and run the stage that writes it again"


class _Header(BaseModel):
    """What meta.json holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    weights_sha256: str
    plan_sha256: str
    tied: dict[str, str]
    packed: dict[str, list[Annotated[int, Field(ge=0)]]]
    gates: list[str] | None
    meta: dict[str, JsonValue]


def save_checkpoint(
    folder: str | Path, model: nn.Module, plan: Plan, meta: Mapping[str, JsonValue] | None = None
) -> str:
    """Write a checkpoint, replacing the one that is there.

    Args:
        folder: where it goes; its parent is made.
        model: what `plan` leaves of the factory's model; it may have gates.
        plan: from the factory's model to this one.
        meta: what else belongs to it, as JSON values.

    Returns:
        The sha256 of the weights.
    """
    stored, tied = _untie({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()})
    packed, shapes = pack(stored)
    weights = format_safetensors(packed)
    plan_text = plan.model_dump_json(indent=1).encode()
    digest = hashlib.sha256(weights).hexdigest()
    header = {
        "format": _FORMAT,
        "weights_sha256": digest,
        "plan_sha256": hashlib.sha256(plan_text).hexdigest(),
        "tied": tied,
        "packed": shapes,
        "gates": list(model.names) if isinstance(model, GatedModel) else None,
        "meta": dict(meta or {}),
    }
    meta_text = json.dumps(header, indent=1, sort_keys=True, allow_nan=False).encode()
    with writing(Path(folder)) as beside:
        for name, content in ((_WEIGHTS, weights), (_PLAN, plan_text), (_META, meta_text)):
            with (beside / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    return digest


def load_checkpoint(
    folder: str | Path, factory: Callable[[], nn.Module], example_inputs: Any
) -> tuple[nn.Module, Plan, dict[str, JsonValue]]:
    """Rebuild a model from a checkpoint.

    Args:
        folder: the checkpoint.
        factory: builds the original model, whose weights don't matter; the global random state is left as it was.
        example_inputs: one batch for `narrow`.

    Returns:
        The model in evaluation mode, its plan, and the caller's meta.

    Raises:
        CheckpointError: a file is missing or damaged, or the factory builds another model than the one saved.
    """
    folder = Path(folder)
    put_back(folder)
    header = _read_header(folder)
    weights = _read(folder, _WEIGHTS, header.weights_sha256)
    try:
        stored = unpack(parse_safetensors(weights), header.packed)
    except CheckpointError:
        raise
    except Exception as error:  # a file of the right hash that something else wrote: the parsers raise what they like
        raise CheckpointError(f"checkpoint {folder}: {_WEIGHTS} can't be parsed ({error}); {_MEND}") from error
    content = _read(folder, _PLAN, header.plan_sha256)
    plan = parse_json(content, Plan, source=f"checkpoint {folder}: {_PLAN}", error=CheckpointError, mend=_MEND)
    with torch.random.fork_rng(devices=[]):
        model = factory()
    if plan.blocks or any(plan.removed.values()):
        try:
            model = narrow(model, plan, example_inputs, verify=False)
        except PlanError as error:
            raise CheckpointError(
                f"checkpoint {folder}: its plan doesn't fit the model that the factory builds; "
                f"build the one it was saved from ({error})"
            ) from error
    if header.gates is not None:
        try:
            model, _ = add_gates(find_groups(model, example_inputs), names=header.gates)
        except ModelError as error:
            raise CheckpointError(f"checkpoint {folder}: its gates don't fit the model ({error})") from error
    if lacking := sorted(set(header.tied.values()) - stored.keys()):
        raise CheckpointError(
            f"checkpoint {folder}: {_META} ties tensors to {lacking[:4]}, which aren't there; {_MEND}"
        )
    state = stored | {name: stored[source] for name, source in header.tied.items()}
    load_state(model, state, source=f"checkpoint {folder}")
    return model.eval(), plan, header.meta


def check_checkpoint(folder: str | Path) -> str:
    """Compare a checkpoint's files with the hashes that it was written with, without building the model.

    Returns:
        The sha256 of the weights.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    folder = Path(folder)
    put_back(folder)
    header = _read_header(folder)
    _read(folder, _PLAN, header.plan_sha256)
    _read(folder, _WEIGHTS, header.weights_sha256)
    return header.weights_sha256


def _untie(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Keep one name of each tensor; map the others to it."""
    stored: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and key in seen:
            tied[name] = seen[key]
            continue
        seen[key] = name
        stored[name] = tensor.contiguous().clone()
    return stored, tied


def _read_header(folder: Path) -> _Header:
    """Read meta.json and check its form."""
    content, source = _read(folder, _META), f"checkpoint {folder}: {_META}"
    found = parse_json(content, dict[str, Any], source=source, error=CheckpointError, mend=_MEND).get("format", _FORMAT)
    if found != _FORMAT:
        raise CheckpointError(f"checkpoint {folder}: format {found}; this version reads format {_FORMAT}")
    return parse_json(content, _Header, source=source, error=CheckpointError, mend=_MEND)


def _read(folder: Path, name: str, digest: str | None = None) -> bytes:
    """Read a file of the checkpoint and compare its hash."""
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}; expected a folder with {_WEIGHTS}, {_PLAN} and {_META}")
    try:
        content = read_bytes(folder / name, error=CheckpointError, mend=_MEND, most=None)
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {folder}: {name} is missing; {_MEND}") from error
    found = hashlib.sha256(content).hexdigest()
    if digest is not None and found != digest:
        raise CheckpointError(
            f"checkpoint {folder}: {name} is damaged or was changed: sha256 {found[:12]}…, "
            f"expected {digest[:12]}…; {_MEND}"
        )
    return content
