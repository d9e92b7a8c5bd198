"""Continue a training that was killed: its whole state is saved after every epoch, without pickle.

One file: `model.NAME`, `optimizer.INDEX.NAME`, `memory.NAME` (what a penalty remembers), and the losses.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as format_safetensors
from torch import Tensor, nn

from pruning.io.atomic import replace_file
from pruning.io.json_files import JsonError, checked_json
from pruning.training.trainer import Stateful
from tasks.workspace import Workspace

UNFINISHED = ".training.unfinished"

log = logging.getLogger("secateur")


class EpochCheckpointer:
    """Keeps one training run in one file, replaced after every epoch; see `pruning.training.trainer.Checkpointer`."""

    def __init__(self, path: Path) -> None:
        """Name the file.

        Args:
            path: Its name has to identify the run: whatever is saved there is continued unchecked.
        """
        self.path = path

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, memory: Stateful | None) -> list[float]:
        """Restore the saved state, and return the losses of the finished epochs."""
        try:
            with safe_open(self.path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                losses = checked_json(file.metadata()["losses"], list[float])
        except FileNotFoundError:
            return []
        except (SafetensorError, KeyError, TypeError, JsonError) as error:
            log.warning("%s can't be read (%s): training starts over", self.path, error)
            return []
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "memory": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, _, what = name.partition(".")
            state.setdefault(int(index), {})[what] = tensor
        model.load_state_dict(parts["model"])
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if memory is not None:
            memory.load_state_dict(parts["memory"])
        log.info("training continues after epoch %d", len(losses))
        return losses

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, memory: Stateful | None, losses: Sequence[float]
    ) -> None:
        """Save the state."""
        found = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for index, kept in optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in kept.items()}
        if memory is not None:
            found |= {f"memory.{name}": tensor for name, tensor in memory.state_dict().items()}
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}
        replace_file(self.path, format_safetensors(tensors, metadata={"losses": json.dumps(list(losses))}))


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
