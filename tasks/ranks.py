"""Train a model in this process, or in several that share each batch: `machine.ranks` of them, or those of `torchrun`.

    this process ─► RECIPE.ranks/ ─► each rank: load, compare, train ─► RECIPE.ranks/trained.safetensors ─► this process

What a rank needs is values and files: the job, the checkpoint of the model, the data of the workspace. Under `torchrun`
rank 0 runs the command, and the others wait for its jobs; the workspace has to lie where all hosts see it.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import platform
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import nn

from pruning.errors import LaunchError, SecateurError
from pruning.evaluation import Progress
from pruning.io.checkpoint import check_checkpoint, save_checkpoint
from pruning.io.files import replace_file
from pruning.plan.plan import Plan
from pruning.training.launch import Member, Report, joined, launch
from pruning.training.trainer import History
from pruning.world import World
from tasks.data import read_description
from tasks.determinism import begin
from tasks.fingerprint import executed
from tasks.models import example_inputs, load_model
from tasks.stage_table import find_stage
from tasks.terminal import shown
from tasks.training import Job, fit
from tasks.workspace import digest

_TRAINED = "trained.safetensors"
_WAIT = timedelta(minutes=1)
_MEND = "install the same versions and the same code on all hosts, and let them share one workspace"

log = logging.getLogger("secateur")


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
        if ranks == 1 and not _group.is_there:
            return fit(job, model, teacher, World(shards), progress)
        folder = job.checkpointed.with_suffix(".ranks")
        save_checkpoint(folder, copy.deepcopy(model).cpu(), plan)
        if _group.is_there:
            history = _group.lead(job, folder, progress)
        else:
            device = settings.run.device
            parallel = settings.machine.parallel
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
    return train_together(world, job, folder, report.progress if world.is_first else None)


def train_together(world: World, job: Job, folder: Path, progress: Progress | None) -> History:
    """Do a job together with other ranks; the first one writes the trained weights into the folder.

    Args:
        world: This process and the others.
        job: What to do.
        folder: The checkpoint of the model.
        progress: Told after each batch.

    Raises:
        LaunchError: They aren't alike; in all of them, with the same text.
        SecateurError: As `finetune`.
    """
    job = _on_own_device(job)
    settings = job.settings
    begin(settings)
    world.agree(_facts(job, folder), _MEND)
    held = _on(job, "cpu").settings if world.in_parts else settings
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


def _facts(job: Job, folder: Path) -> dict[str, str]:
    """Return what has to be the same for the same bits, short enough for a message."""
    device = torch.device(job.settings.run.device)
    is_gpu = device.type == "cuda"
    ran = executed(find_stage(job.stage), job.settings)
    return {
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "packages": digest(ran["versions"])[:12],
        "code": digest(ran["modules"])[:12],
        "data": read_description(job.workspace).fingerprint[:12],
        "the model": check_checkpoint(folder)[:12],
        "the device": torch.cuda.get_device_name(device) if is_gpu else torch.backends.cpu.get_cpu_capability(),
    }


def _on_own_device(job: Job) -> Job:
    """Return a job for this process: on the GPU of its number, where it is on GPUs."""
    return job if job.settings.run.device != "cuda" else _on(job, f"cuda:{torch.cuda.current_device()}")


def _on(job: Job, device: str) -> Job:
    run = job.settings.run.model_copy(update={"device": device})
    return Job(**(vars(job) | {"settings": job.settings.model_copy(update={"run": run})}))


class _Group:
    """The ranks that `torchrun` has started, of which this process is one; nothing else that it starts is."""

    def __init__(self) -> None:
        self._member: Member | None = None
        self._store: Any = None
        self._jobs = 0

    @property
    def is_there(self) -> bool:
        """Whether there is one."""
        return self._member is not None

    def enter(self) -> bool:
        """Take this process's place from the environment; return whether it is to run the command."""
        from torch.distributed.rendezvous import rendezvous

        if self._member is None:
            self._store, rank, ranks = next(rendezvous("env://"))
            self._member = Member(rank, ranks, int(os.environ.get("LOCAL_RANK", "0")))
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
                os.environ.pop(name, None)
        return self._member.rank == 0

    def lead(self, job: Job, folder: Path, progress: Progress) -> History:
        """Do a job as rank 0, together with those who follow."""
        run = job.settings.run
        parallel = job.settings.machine.parallel
        asked = {"device": run.device, "shards": run.shards, "parallel": parallel, "folder": str(folder)}
        self._store.set(self._name(), json.dumps(asked))
        return self._join(asked, job, progress)

    def follow(self) -> None:
        """Do jobs until the last one is done."""
        from torch import distributed

        while True:
            try:
                self._store.wait([self._name()], _WAIT)
            except distributed.DistStoreError:  # none within that time
                continue
            asked = json.loads(self._store.get(self._name()))
            if not asked:
                return
            try:
                self._join(asked)
            except SecateurError as fault:
                log.info("%s", fault)  # rank 0 has met it as well, and decides what comes next

    def dismiss(self) -> None:
        """Let those who follow end."""
        if self._member is not None:
            self._store.set(self._name(), "{}")

    def _name(self) -> str:
        return f"secateur job {self._jobs}"

    def _join(self, asked: dict[str, Any], job: Job | None = None, progress: Progress | None = None) -> History:
        """Be a rank of a group that does one job, which rank 0 knows."""
        from torch import distributed

        store = distributed.PrefixStore(f"group {self._jobs}", self._store)  # type: ignore[attr-defined]
        self._jobs += 1
        try:
            parallel = asked["parallel"]
            with joined(asked["device"], asked["shards"], self._member, store, parallel=parallel) as world:
                given = world.from_first(lambda: job)
                assert given is not None, "rank 0 knows it"
                return train_together(world, given, Path(asked["folder"]), progress)
        except distributed.DistError as fault:
            raise _lost(fault) from fault
        except RuntimeError as fault:
            if "gloo" not in str(fault).lower():
                raise
            raise _lost(fault) from fault


def _lost(fault: Exception) -> LaunchError:
    return LaunchError(
        f"another rank can't be reached any more ({str(fault).strip().splitlines()[0]}); its own message says why. "
        "What was kept before is there: start all ranks again to go on from it"
    )


_group = _Group()


def enter_group() -> bool:
    """Be one of the ranks that `torchrun` has started; return whether this one is to run the command."""
    return _group.enter()


def follow() -> None:
    """Train what rank 0 trains, until its command has ended."""
    _group.follow()


def dismiss() -> None:
    """Let the other ranks end, if there are any."""
    _group.dismiss()
