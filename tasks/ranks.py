"""Train a model in this process, or in several that share each batch: `machine.ranks` of them, or those of `torchrun`.

    this process ─► RECIPE.ranks/ ─► each rank: load, compare, train ─► RECIPE.ranks/trained.safetensors ─► this process

What a rank needs is values and files: the job, the checkpoint of the model, the data of the workspace. Under `torchrun`
rank 0 runs the command, and the others wait for its jobs; the workspace has to lie where all hosts see it.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import nn

from pruning.evaluation import Progress
from pruning.io.checkpoint import check_checkpoint, save_checkpoint
from pruning.io.files import replace_file
from pruning.plan.plan import Plan
from pruning.training.launch import Report, launch
from pruning.training.trainer import History
from pruning.world import World
from tasks.data import read_description
from tasks.determinism import begin
from tasks.models import example_inputs, load_model
from tasks.rank_group import agree, group, on, on_own_device
from tasks.terminal import shown
from tasks.training import Job, fit

_TRAINED = "trained.safetensors"


def train(job: Job, model: nn.Module, plan: Plan, teacher: nn.Module | None, title: str) -> History:
    """Train a model in place, by as many processes as there are to be; their number changes no bit.

    Args:
        job: What to do.
        model: On the device of the run.
        plan: What was removed from the factory's model to get it.
        teacher: Where the recipe distils; the job names its checkpoint.
        title: Of the progress bar.

    Raises:
        LaunchError: A rank was ended, or isn't like the others.
        SecateurError: As `finetune`.
    """
    settings = job.settings
    shards, ranks = settings.run.shards, settings.machine.ranks
    with shown(title) as progress:
        if ranks == 1 and not group.is_of_torchrun:
            return fit(job, model, teacher, World(shards), progress)
        folder = job.checkpointed.with_suffix(".ranks")
        save_checkpoint(folder, copy.deepcopy(model).cpu(), plan)
        device, parallel = settings.run.device, settings.machine.parallel
        if group.is_of_torchrun:
            history = group.lead(
                train_together, (job, folder), shards=shards, device=device, parallel=parallel, progress=progress
            )
        else:
            history = launch(
                _train_as_rank,
                job,
                folder,
                ranks=ranks,
                shards=shards,
                device=device,
                parallel=parallel,
                progress=progress,
            )
    model.load_state_dict(parse_safetensors((folder / _TRAINED).read_bytes()))
    shutil.rmtree(folder)
    return history


def _train_as_rank(world: World, report: Report, job: Job, folder: Path) -> History:
    """Do a job as one of the processes of a launch."""
    return train_together(world, report.progress if world.is_first else None, job, folder)


def train_together(world: World, progress: Progress | None, job: Job, folder: Path) -> History:
    """Do a job together with other ranks; the first one writes the trained weights into the folder.

    Args:
        world: This process and the others.
        progress: Told after each batch.
        job: What to do.
        folder: The checkpoint of the model.

    Raises:
        LaunchError: They aren't alike; in all of them, with the same text.
        SecateurError: As `finetune`.
    """
    settings = on_own_device(job.settings)
    job = Job(**(vars(job) | {"settings": settings}))
    begin(settings)
    agree(world, job.stage, settings, job.workspace, **{"the model": check_checkpoint(folder)[:12]})
    held = on(settings, "cpu") if world.in_parts else settings
    data, example = read_description(job.workspace), example_inputs(job.workspace, held)
    model, _, _ = load_model(folder, held, data, example)
    teacher = None
    if job.teacher is not None and job.recipe.distillation > 0:
        teacher, _, _ = load_model(job.teacher, held, data, example)
    history = fit(job, model, teacher, world, progress)
    if world.is_first:
        state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
        replace_file(folder / _TRAINED, format_safetensors(state))
    return history


def enter_group() -> bool:
    """Be one of the ranks that `torchrun` has started; return whether this one is to run the command."""
    return group.enter()


def follow() -> None:
    """Do with rank 0 what it does together with others, until its command has ended."""
    group.follow()


def dismiss() -> None:
    """Let the other ranks end, if there are any."""
    group.dismiss()
