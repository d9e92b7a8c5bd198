"""Training that was killed goes on: model, optimizer and losses are kept after every epoch, without pickle."""

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

from pruning.training.recipe import Recipe
from tasks.workspace import Workspace, replace_file

UNFINISHED = ".training.unfinished"

log = logging.getLogger("secateur")


class EpochKeeper:
    """Keeps one training run in one file, replaced after every epoch; see `pruning.training.epochs.Keeper`."""

    def __init__(self, path: Path) -> None:
        """Name the file.

        Args:
            path: Its name tells the run from all others: what is kept under it is gone on from unseen.
        """
        self.path = path

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
        """Bring model and optimizer to where they were, and return the losses of the epochs done."""
        try:
            with safe_open(self.path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                losses: list[float] = json.loads(file.metadata()["losses"])
        except FileNotFoundError:
            return []
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            log.warning("%s can't be read (%s): training begins anew", self.path, error)
            return []
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            family, _, rest = name.partition(".")
            if family == "optimizer":
                index, _, what = rest.partition(".")
                state.setdefault(int(index), {})[what] = tensor
        weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        model.load_state_dict(weights)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        log.info("training goes on after epoch %d", len(losses))
        return losses

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, losses: Sequence[float]) -> None:
        """Keep where they are."""
        tensors = {f"model.{name}": tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
        for index, kept in optimizer.state_dict()["state"].items():
            for name, value in kept.items():
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value).detach().clone().contiguous()
        replace_file(self.path, format_safetensors(tensors, metadata={"losses": json.dumps(list(losses))}))


def keeper_for(recipe: Recipe, path: Path, *, gates: bool = False) -> EpochKeeper | None:
    """Return what keeps a training; None where it begins anew, because a penalty remembers what is not kept."""
    return None if gates or recipe.sparsity is not None else EpochKeeper(path)


def unfinished(workspace: Workspace, run: str) -> Path:
    """Return the folder of a run under way, and remove those of all others: what they were for is settled.

    Args:
        workspace: The folder lies in it.
        run: What tells the run from all others: a hash of all that shapes it.
    """
    place = workspace.root / UNFINISHED
    for other in place.iterdir() if place.exists() else ():
        if other.name != run:
            shutil.rmtree(other)
    return place / run


def forget(workspace: Workspace) -> None:
    """Remove what was kept: what it was for has been recorded."""
    shutil.rmtree(workspace.root / UNFINISHED, ignore_errors=True)
