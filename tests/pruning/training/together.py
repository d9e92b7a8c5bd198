"""What several ranks do together in tests: functions of a module, so that a process of its own finds them."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning.batches import TensorBatches
from pruning.errors import DataError, LaunchError, ModelError
from pruning.evaluation import evaluate_together
from pruning.metrics import MacroF1
from pruning.training.callbacks import Callbacks
from pruning.training.launch import Report
from pruning.training.recipe import EarlyStopping, Recipe
from pruning.training.trainer import finetune
from pruning.world import World
from tasks.training_state import TrainingCheckpointer
from zoo.datasets import glyphs
from zoo.models import resnet20

PLAIN = Recipe(name="plain", epochs=2, batch_size=20, learning_rate=0.1)
RECIPES = (
    PLAIN,
    Recipe(
        name="rich", epochs=1, batch_size=24, learning_rate=0.1, mixup=0.2, ema=0.9, gradient_clip=1.0,
        gradient_accumulation=5, distillation=0.5,
    ),
    Recipe(name="half", epochs=1, batch_size=20, learning_rate=0.1, precision="bf16"),
    Recipe(name="fp16", epochs=1, batch_size=20, learning_rate=0.1, precision="fp16"),
    Recipe(name="stops", epochs=3, batch_size=20, learning_rate=0.5, early_stopping=EarlyStopping(patience=1)),
    Recipe(name="undone", epochs=2, batch_size=20, learning_rate=30.0),
)  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def samples(number: int = 203) -> TensorBatches:
    """As many that the last batch of 20 has three, which fill one shard of four."""
    drawn = torch.Generator().manual_seed(1)
    inputs = torch.randn(number, 1, 8, 8, generator=drawn)
    return TensorBatches(inputs, (inputs.mean((1, 2, 3)) * 40).round().long().remainder(4))


def noisy(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


class Remembering:
    """A penalty whose strength follows from what it has seen in the first pass of a step."""

    def __init__(self, model: nn.Module) -> None:
        self._weight, self.seen = model[0].weight, 0.0  # type: ignore[index]

    def penalty(self) -> Tensor:
        self.seen += float(torch.rand(()))
        found: Tensor = 1e-3 * self.seen * self._weight.square().sum()
        return found

    def after_step(self, step: int, steps: int, rate: float) -> None:
        self._weight.data[0] *= 0.9

    def state_dict(self) -> dict[str, Tensor]:
        return {"seen": torch.tensor(self.seen, dtype=torch.float64)}

    def load_state_dict(self, state: Any) -> None:
        self.seen = float(state["seen"])


def sha(model: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode() + tensor.detach().numpy().tobytes())
    return found.hexdigest()


@dataclass
class Killing:
    """A keeper that keeps the state after each step, and a rank that is killed at one of them."""

    kept: Path
    rank: int
    step: int


def train(world: World, recipe: Recipe, killing: Killing | None = None, seen: list[int] | None = None) -> str:
    """Train the network and return its hash."""
    torch.set_num_threads(1)
    model, held_out = network(), samples(51)

    def judge(model: nn.Module) -> Tensor:
        found = evaluate_together(world, model, held_out, batch_size=8, each=True).losses
        assert found is not None
        return -found

    def progress(done: int, total: int) -> None:
        if seen is not None:
            seen.append(done)
        if killing is not None and (world.rank, done) == (killing.rank, killing.step):
            os.kill(os.getpid(), signal.SIGKILL)

    penal = Remembering(model) if recipe.name == "rich" else None
    finetune(
        model,
        samples(),
        recipe,
        seed=3,
        teacher=network() if recipe.distillation else None,
        augment=noisy,
        callbacks=Callbacks(
            penalty=None if penal is None else penal.penalty,
            after_step=None if penal is None else penal.after_step,
            memory=penal,
            progress=progress,
            checkpointer=None
            if killing is None
            else TrainingCheckpointer(killing.kept, seconds=0, writes=world.is_first),
            judge=judge if recipe.name == "undone" else None,
            validate=judge if recipe.early_stopping else None,
            world=world,
        ),
    )
    return sha(model)


def work(world: World, report: Report | None = None, recipes: Sequence[Recipe] = RECIPES) -> dict[str, Any]:
    """Do all that has to be the same for any number of ranks."""
    found: dict[str, Any] = {recipe.name: train(world, recipe) for recipe in recipes}
    if report is not None and world.is_first:
        report.progress(1, 1)
    model, prime = network(), samples(509)
    for name, metric in (("mean", None), ("macro F1", MacroF1())):
        given = {} if metric is None else {"metric": metric}
        score = evaluate_together(world, model, prime, batch_size=7, each=True, **given)  # type: ignore[arg-type]
        assert score.losses is not None
        found[name] = (score.score, score.loss, score.num_samples, score.losses.tolist(), dict(score.per_class))
    terms = torch.randn(world.shards, 1001, generator=torch.Generator().manual_seed(2))
    mine = terms[world.here.start : world.here.stop]
    while len(mine) > 1:
        mine = mine[::2] + mine[1::2]
    found["sum"] = world.sum(mine[0].clone()).tolist()
    return found


def go_on(world: World, report: Report | None, killing: Killing | None) -> str:
    return train(world, PLAIN, killing)


def fail_on_last(world: World, report: Report, text: str | None = None) -> None:
    """Meet a fault in one rank, while the others wait for it."""
    if world.rank == world.ranks - 1:
        raise DataError("sample 7 can't be read") if text is None else ValueError(text)
    world.gather(1)


def disagree(world: World, report: Report) -> list[str]:
    """Be ranks of two versions of torch, and ranks of which one changes a weight alone; return what they are told."""
    model, told = network(), list[str]()

    def versions() -> None:
        world.agree({"torch": "2.12.0" if world.rank == 1 else torch.__version__}, "install the same versions")

    def after_step(step: int, steps: int, rate: float) -> None:
        model[0].weight.data += world.rank  # type: ignore[index]

    def drift() -> None:
        finetune(model, samples(), PLAIN, seed=0, callbacks=Callbacks(after_step=after_step, world=world))

    for action in (versions, drift):
        try:
            action()
        except (LaunchError, ModelError) as fault:
            told.append(f"{type(fault).__name__}: {fault}")
    assert len({tuple(one) for one in world.gather(told)}) == 1, "all ranks are told the same"
    return told


def epoch(world: World, report: Report | None, number: int, batch_size: int = 128) -> tuple[str, list[float]]:
    """Train ResNet-20 for an epoch of so many glyphs; return its hash, and each rank's seconds of a processor."""
    torch.set_num_threads(1)
    data = glyphs(number, num_validation=62, num_test=62).train
    torch.manual_seed(0)
    model = resnet20((1, 32, 32), 62)
    recipe = Recipe(epochs=1, batch_size=batch_size, learning_rate=0.1)
    before = time.process_time()
    finetune(model, data, recipe, seed=0, callbacks=Callbacks(world=world))
    return sha(model), world.gather(time.process_time() - before)
