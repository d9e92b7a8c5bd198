"""How a model is trained as the settings say: by values alone, so that any process can do the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pruning.evaluation import Progress
from pruning.training.callbacks import Callbacks
from pruning.training.recipe import Recipe
from pruning.training.trainer import History, finetune
from pruning.world import World
from tasks.config.schema import Settings
from tasks.data import read_split
from tasks.models import augmentation, judge_by, loss_and_metric
from tasks.training_state import TrainingCheckpointer
from tasks.workspace import Workspace


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        stage: That trains.
        settings: Of the run.
        workspace: Holds the data.
        recipe: What is trained by.
        seed: Of the training.
        checkpointed: The file that its state is kept in until it ends.
        hooks: What takes part beside the recipe.
        teacher: The checkpoint of the model to distil from; None where there is none yet.
        undoes: Whether epochs that do harm are undone, unless training has to reach its end.
    """

    stage: str
    settings: Settings
    workspace: Workspace
    recipe: Recipe
    seed: int
    checkpointed: Path
    hooks: Hooks
    teacher: Path | None = None
    undoes: bool = False


Hooks = Callable[[nn.Module, Job, World], AbstractContextManager[dict[str, Any]]]
"""(model, job, world) -> fields of `Callbacks`, for as long as the model is trained: a function of a module with what
has to be kept bound to it, so that it can be sent to another process.
"""


def fit(job: Job, model: nn.Module, teacher: nn.Module | None, world: World, progress: Progress | None) -> History:
    """Train a model in place; a training that was killed goes on where it was kept.

    Args:
        job: What to do.
        model: On its device; on the CPU where each process is to hold a part of it.
        teacher: Where the recipe distils.
        world: This process among those that train the same model.
        progress: Told after each batch.
    """
    settings, recipe = job.settings, job.recipe
    asked = job.undoes or recipe.early_stopping is not None
    judge = judge_by(read_split(settings, job.workspace, "validation"), settings, world) if asked else None
    with job.hooks(model, job, world) as hooks:
        to_its_end = any(hook is not None for hook in hooks.values())
        return finetune(
            model,
            read_split(settings, job.workspace, "train"),
            recipe,
            loss=loss_and_metric(settings)[0],
            seed=job.seed,
            teacher=teacher,
            augment=augmentation(settings),
            callbacks=Callbacks(
                **hooks,
                progress=progress,
                checkpointer=TrainingCheckpointer(job.checkpointed, writes=world.is_first),
                judge=judge if job.undoes and not to_its_end else None,
                validate=judge,
                world=world,
            ),
        )
