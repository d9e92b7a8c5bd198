"""Continue a training that was killed: its whole state is saved after every epoch and within it, without pickle.

One file: `model.NAME`, `optimizer.NUMBER`, `memory.NAME` (what a penalty, a judge and an average remember, and how far
the epoch has got), the optimizer's state as JSON with these numbers for its tensors, and the losses.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as format_safetensors
from torch import Tensor, nn

from pruning.errors import ModelError
from pruning.io.files import JsonError, checked_json, replace_file
from pruning.training.callbacks import Stateful
from pruning.world import like, whole
from tasks.workspace import Workspace

UNFINISHED = ".training.unfinished"

log = logging.getLogger("secateur")


class TrainingCheckpointer:
    """Keeps one training run in one file, which is replaced; see `pruning.training.callbacks.Checkpointer`."""

    def __init__(self, path: Path, *, seconds: float = 60.0, writes: bool = True) -> None:
        """Name the file.

        Args:
            path: Its name has to identify the run: whatever is saved there is continued unchecked.
            writes: Whether this process writes it; others help to gather what they hold parts of.
            seconds: Within an epoch, the state is kept after the first step that ends so long after it was kept last.
        """
        self.path, self._seconds, self._writes = path, seconds, writes
        self._last = monotonic()

    def is_due(self) -> bool:
        """Say whether to keep the state after this step; the clock decides where a run can be continued, not how."""
        return monotonic() - self._last >= self._seconds

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, memory: Stateful | None) -> list[float]:
        """Restore the saved state, and return the losses of the finished epochs."""
        self._last = monotonic()
        try:
            with safe_open(self.path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                losses = checked_json(file.metadata()["losses"], list[float])
                state = json.loads(file.metadata()["optimizer"])
        except FileNotFoundError:
            return []
        except (SafetensorError, KeyError, TypeError, JsonError) as error:
            log.warning("%s can't be read (%s): training starts over", self.path, error)
            return []
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "memory": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        model.load_state_dict(parts["model"])
        found = _from_json(state, parts["optimizer"])
        owned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        optimizer.state.clear()  # its own load_state_dict would give numbers and moments the parameters' type
        for key, kept in found["state"].items():
            if isinstance(key, int):
                own = owned[key]
                optimizer.state[own] = {
                    name: like(own, one) if isinstance(one, Tensor) else one for name, one in kept.items()
                }
            else:
                optimizer.state[key] = kept
        for group, options in zip(optimizer.param_groups, found["param_groups"], strict=True):
            group.update(options)
        if memory is not None:
            memory.load_state_dict(parts["memory"])
        log.info("training continues after epoch %d", len(losses))
        return losses

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, memory: Stateful | None, losses: Sequence[float]
    ) -> None:
        """Save the state.

        Raises:
            ModelError: The optimizer remembers something that can't be kept.
        """
        found = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        kept: dict[str, Tensor] = {}
        state = optimizer.state_dict()
        options = [{name: one for name, one in group.items() if name != "params"} for group in state["param_groups"]]
        what = f"the optimizer {type(optimizer).__name__}"
        as_json = _to_json({"state": dict(state["state"]), "param_groups": options}, kept, what)
        found |= {f"optimizer.{number}": tensor for number, tensor in kept.items()}
        if memory is not None:
            found |= {f"memory.{name}": tensor for name, tensor in memory.state_dict().items()}
        tensors = {name: whole(tensor).detach().clone().contiguous() for name, tensor in found.items()}
        self._last = monotonic()
        if not self._writes:
            return
        metadata = {"losses": json.dumps(list(losses)), "optimizer": json.dumps(as_json)}
        replace_file(self.path, format_safetensors(tensors, metadata=metadata))


def _to_json(value: Any, kept: dict[str, Tensor], what: str) -> Any:
    """Return what `_from_json` makes the same value of; tensors go into `kept`, and their numbers into the JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        number = str(len(kept))
        kept[number] = value
        return {"tensor": number, "device": str(value.device)}
    if isinstance(value, dict):
        pairs = [[_to_json(key, kept, what), _to_json(one, kept, what)] for key, one in value.items()]
        return {"mapping": pairs}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_to_json(one, kept, what) for one in value]}
    raise ModelError(
        f"{what} remembers a {type(value).__name__}, which can't be kept for a training that is killed; expected "
        "tensors, numbers and texts in lists and mappings: choose another optimizer"
    )


def _from_json(value: Any, kept: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return kept[value["tensor"]].to(value["device"])
    if "mapping" in value:
        return {_from_json(key, kept): _from_json(one, kept) for key, one in value["mapping"]}
    (kind, parts), *_ = value.items()
    found = [_from_json(one, kept) for one in parts]
    return tuple(found) if kind == "tuple" else found


def unfinished(workspace: Workspace, run: str) -> Path:
    """Return the folder for a run's state, and remove those of all other runs, which have finished.

    Args:
        workspace: The folder lies in it.
        run: Identifies the run: a hash of everything that shapes it.
    """
    place = workspace.root / UNFINISHED
    for other in place.iterdir() if place.exists() else ():
        if other.name != run:
            shutil.rmtree(other)
    return place / run


def forget(workspace: Workspace) -> None:
    """Remove the saved state once the result has been recorded."""
    shutil.rmtree(workspace.root / UNFINISHED, ignore_errors=True)


def epoch_folder(workspace: Workspace, epoch: int) -> Path:
    """Return the folder of the baseline as it was after an epoch of its training."""
    return workspace.folder("baseline") / "epochs" / f"{epoch:04d}"
