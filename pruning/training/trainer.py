"""Train a model on samples, or from a teacher: deterministic on the CPU, whatever happened before in the process.

All randomness of epoch e comes from (seed, e) alone, so that the state between two epochs is the model, the optimizer,
what a penalty, a judge and an average remember and the losses of the epochs done. Within an epoch it is the states of
the random generators and the number of steps beside these: nothing else has to be saved to go on later.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pruning.batches import Batches, Samples, checked_batches
from pruning.containers import as_call
from pruning.errors import ModelError, SettingsError
from pruning.evaluation import (
    Loss,
    cross_entropy,
    device_of,
    distillation_loss,
    restored_modes,
)
from pruning.task import Task
from pruning.training.callbacks import (
    Augment,
    Best,
    Callbacks,
    Checkpointer,
    Patience,
    ShuffledLoader,
    deal_batches,
    train_by_own,
)
from pruning.training.fsdp import Divided, check_recipe
from pruning.training.optimizer import LearningRates, make_optimizer
from pruning.training.recipe import Recipe, recipe_for
from pruning.training.shards import Shard, check_replicas, run_sharded_step
from pruning.training.step import MovingAverage, Position, Precision, Run, run_step
from pruning.world import World, split

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class History:
    """What a training run saw.

    Attributes:
        recipe: name of the recipe.
        losses: mean training loss of each epoch.
        scores: what the judge, or `validate`, said on average: before the first epoch, and after each; empty without.
        kept: the epoch whose end the model is at; 0: as it was before the first.
    """

    recipe: str
    losses: tuple[float, ...]
    scores: tuple[float, ...] = ()
    kept: int = 0


def finetune(
    model: nn.Module,
    samples: Samples | Batches,
    recipe: Recipe,
    *,
    loss: Loss = cross_entropy,
    seed: int,
    teacher: nn.Module | None = None,
    augment: Augment | None = None,
    callbacks: Callbacks | None = None,
) -> History:
    """Train a model in place, by a recipe; module modes and the global random state are restored.

    The loss of a step is (1 − w) · loss + w · distillation + penalty, with w = `recipe.distillation`.

    With a judge, an epoch that ends worse than the best state so far, before training or after an epoch, by more than
    chance explains (the 95 % interval of the mean difference, sample by sample) is undone at once: training goes on
    from the best, with a fresh optimizer and half the rate. What is worse by less may be on its way, so training goes
    on from there; but where the end is below the beginning, by however little, the model stays as it was before. (The
    highest score of all epochs would not be the better model: of several that differ by chance it is the luckiest.)

    A recipe with a `trainer` is left to it whole, see `pruning.training.callbacks`.

    Args:
        model: changed in place, on its own device.
        samples: shuffled anew each epoch; a last batch of a single sample joins the one before it (batch norms
            can't train on one value). What a data set draws at random follows from seed, epoch and sample.
        recipe: the knobs; `auto` is filled in by the model, see `recipe_for`.
        loss: of a batch; a `pruning.task.Task` knows its distillation and its smoothed labels too.
        seed: of the order of the samples, of dropout, of `augment`, and of what a data set draws.
        teacher: needed where the recipe distils; run in evaluation mode.
        augment: applied to each batch of inputs on the CPU.
        callbacks: what else takes part.

    Raises:
        DataError: no samples, inputs and targets differ in number, or one can't be read.
        ModelError: a loss is not one finite number (the text names epoch and step).
        SettingsError: the recipe needs what isn't given (a teacher, `after_step` for sparsity, `validate` for early
            stopping, CUDA for channels_last), smooths labels of a loss other than the built-in cross entropy, mixes
            what can't be mixed, or names an optimizer, a schedule or layers that can't be made or found.
    """
    batches = checked_batches(samples)
    callbacks, device = Callbacks() if callbacks is None else callbacks, device_of(model)
    _check(recipe, callbacks, teacher, device)
    _check_shards(recipe, callbacks)
    if recipe.trainer is not None:
        train_by_own(
            model,
            recipe,
            seed,
            teacher,
            samples=batches,
            loss=loss,
            loader=ShuffledLoader(batches, recipe, seed, device),
        )
        return History(recipe.name, ())
    distillation = loss.distillation if isinstance(loss, Task) else distillation_loss
    if recipe.label_smoothing > 0:
        loss = _smoothed(loss, recipe)
    if recipe.optimizer == "auto":
        recipe = recipe_for(recipe, model)
        _log.info(
            "recipe %s: %s at %g, warm-up over %g epochs, largest norm of the gradient: %s",
            *(recipe.name, recipe.optimizer, recipe.peak_rate, recipe.rise, recipe.largest_gradient or "any"),
        )
    given, divided = model, None
    if callbacks.world.in_parts:
        call = _one_call(batches)
        divided = Divided(model, callbacks.world, call)
        model, device = divided.model, torch.device(callbacks.world.device)
        teacher = None if teacher is None else Divided(teacher, callbacks.world, call).model
    optimizer = make_optimizer(recipe, model)
    run = Run(
        model=model,
        samples=batches,
        recipe=recipe,
        loss=loss,
        distillation=distillation,
        optimizer=optimizer,
        seed=seed,
        teacher=teacher if recipe.distillation else None,
        augment=augment,
        callbacks=callbacks,
        forward=torch.compile(model) if recipe.compile else model,
        rates=LearningRates(recipe, optimizer, _count_batches(len(batches), recipe.batch_size)),
        precision=Precision(recipe, device),
        best=None if callbacks.judge is None else Best(model, callbacks.judge),
        patience=None if recipe.early_stopping is None else Patience(recipe.early_stopping),
        average=None if recipe.ema is None else MovingAverage(model, recipe.ema),
        position=Position(device),
        divided=divided,
    )
    also = model if teacher is None else teacher
    devices = [device] if device.type == "cuda" else []
    with restored_modes(model), restored_modes(also), torch.random.fork_rng(devices=devices):
        model.train()
        if teacher is not None:
            teacher.eval()
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        losses = _run_epochs(run)
        if recipe.channels_last:
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    optimizer.zero_grad(set_to_none=True)
    history = _end(run, losses)
    if divided is not None:
        divided.write_to(given)
    return history


def _one_call(batches: Batches) -> Callable[[nn.Module], Any]:
    """Return what runs a model once, on the first samples."""
    args, kwargs = as_call(next(iter(batches.ordered(2))).inputs)
    return lambda model: model(*args, **kwargs)


def _end(run: Run, losses: Sequence[float]) -> History:
    """Bring the model to what training ends with, and say what it saw."""
    recipe, model = run.recipe, run.model
    if run.average is not None:
        run.average.write_to(model)
    if run.best is None:
        kept = len(losses) if run.patience is None else run.patience.finish(model)
        return History(recipe.name, tuple(losses), () if run.patience is None else tuple(run.patience.scores), kept)
    best = run.best
    if best.scores[best.at] < best.scores[0]:
        _log.warning(
            "recipe %s: training ended at %.4f, below the %.4f that it began with: all of it is undone",
            *(recipe.name, best.scores[best.at], best.scores[0]),
        )
        best.restore_first(model)
    return History(recipe.name, tuple(losses), tuple(best.scores), best.at)


def _check(recipe: Recipe, callbacks: Callbacks, teacher: nn.Module | None, device: torch.device) -> None:
    """See that a recipe has what it needs, and that its parts go together."""
    what, to_its_end = f"recipe {recipe.name!r}", callbacks.penalty is not None
    for wrong, text in (
        (recipe.sparsity is not None and callbacks.after_step is None, "names sparsity but no after_step was given"),
        (
            recipe.distillation > 0 and teacher is None,
            f"distils (weight {recipe.distillation:g}) but no teacher was given",
        ),
        (
            recipe.early_stopping is not None and callbacks.validate is None and recipe.trainer is None,
            "stops early but no `validate` was given that scores the model",
        ),
        (
            callbacks.judge is not None and (recipe.ema is not None or recipe.early_stopping is not None),
            "has ema or early_stopping, and a judge undoes its epochs (prune.undo_training); choose one of both",
        ),
        (
            to_its_end and recipe.early_stopping is not None,
            "stops early, but training with a penalty has to reach its end; remove early_stopping",
        ),
        (to_its_end and recipe.trainer is not None, "names a trainer, but a penalty takes part; remove trainer"),
        (
            recipe.channels_last and device.type != "cuda",
            f"sets channels_last, for CUDA alone; the model is on {device}",
        ),
    ):
        if wrong:
            raise SettingsError(f"{what} {text}")


def _check_shards(recipe: Recipe, callbacks: Callbacks) -> None:
    """See that a recipe's batches can be divided, and the model where it is to be."""
    world = callbacks.world
    if world.shards == 1:
        return
    what = f"recipe {recipe.name!r}"
    if callbacks.world.in_parts:
        check_recipe(recipe)
        if callbacks.penalty is not None or callbacks.after_step is not None:
            raise SettingsError(
                f"{what}: something takes part in its training that needs whole weights, such as masks, gates or "
                "copies of epochs; each rank holds a part of every weight (parallel: fsdp). Let each hold the whole "
                "model (parallel: ddp)"
            )
    if recipe.trainer is not None:
        raise SettingsError(
            f"{what} names a trainer, which takes its batches whole; with {world.shards} shards the batches are "
            "divided: set shards (and ranks) to 1, or remove trainer"
        )
    if recipe.batch_size < 2 * world.shards:
        raise SettingsError(
            f"{what}: a batch of {recipe.batch_size} samples can't be divided into {world.shards} shards of two or "
            f"more; set batch_size to {2 * world.shards} at least, or shards to {max(1, recipe.batch_size // 2)} at "
            "most"
        )


def _smoothed(loss: Loss, recipe: Recipe) -> Loss:
    amount = recipe.label_smoothing
    known = partial(nn.functional.cross_entropy, label_smoothing=amount) if loss is cross_entropy else None
    found = loss.smoothed(amount) if isinstance(loss, Task) else known
    if found is None:
        raise SettingsError(
            f"recipe {recipe.name!r} sets label_smoothing, which only the built-in cross entropy knows: "
            "set it to 0 and smooth inside your own loss"
        )
    return found


def _run_epochs(run: Run) -> list[float]:
    """Train from where a run was left to its end, or to where it is stopped; return the mean loss of each epoch."""
    recipe, model, checkpointer = run.recipe, run.model, run.callbacks.checkpointer
    losses = [] if checkpointer is None else checkpointer.load(model, run.optimizer, run)
    check_replicas(run.callbacks.world, model, "before the first step")
    checkpointer = checkpointer if _takes_part(run.callbacks.world) else None
    steps_per_epoch = _count_batches(len(run.samples), recipe.batch_size)
    run.rates.go_on(len(losses) * steps_per_epoch + run.position.steps, losses)
    if run.patience is not None and not run.patience.scores:
        _validate(run)
    for epoch in range(len(losses), -(-run.rates.num_steps // steps_per_epoch)):
        if run.patience is not None and run.patience.is_over:
            _log.info("recipe %s: no better score since epoch %d: training ends", recipe.name, run.patience.epoch)
            break
        losses.append(_run_epoch(run, epoch, losses))
        check_replicas(run.callbacks.world, model, f"after epoch {epoch + 1}")
        run.rates.after_epoch(losses[-1])
        if run.best is not None and run.best.see(model):
            run.optimizer.state.clear()
            _log.warning(
                "recipe %s: epoch %d of %d ended at %.4f, worse than the %.4f of epoch %d beyond chance: undone; "
                "training goes on from there at half the rate",
                *(recipe.name, epoch + 1, recipe.epochs, run.best.scores[-1]),
                *(run.best.scores[run.best.epoch], run.best.epoch),
            )
        if run.patience is not None:
            _validate(run)
        if checkpointer is not None:
            checkpointer.save(model, run.optimizer, run, losses)
    return losses


def _validate(run: Run) -> None:
    """Score the model that training would end with."""
    assert run.patience is not None, "the caller has looked"
    assert run.callbacks.validate is not None, "`_check` has looked"
    with nullcontext() if run.average is None else run.average.swapped_in(run.model):
        run.patience.see(float(run.callbacks.validate(run.model).double().mean()), run.model)


def _run_epoch(run: Run, epoch: int, before: Sequence[float] = ()) -> float:
    """Train one epoch, or what is left of it, and return its mean loss."""
    generator = torch.Generator().manual_seed(run.seed * 1_000_003 + epoch)
    torch.manual_seed(run.seed * 1_000_003 + epoch)
    batches = deal_batches(len(run.samples), run.recipe.batch_size, generator, run.samples.window)
    first, num_steps, world = epoch * len(batches), run.rates.num_steps, run.callbacks.world
    checkpointer = run.callbacks.checkpointer if _takes_part(world) else None
    num_epochs = -(-num_steps // len(batches))
    batches = batches[: num_steps - first]
    total = run.position.total
    run.position.restore(generator)
    left = list(enumerate(batches))[run.position.steps :]
    divided = [_divide(batch, run) for _, batch in left]
    parts = [one for shards in divided for shard in shards for one in shard.parts]
    read = run.samples.read(parts, seed=run.seed, epoch=epoch)
    for (index, batch), shards in zip(left, divided, strict=True):
        at = epoch, first + index
        if world.shards > 1:
            value = run_sharded_step(run, read, shards, at)
        else:
            (whole,) = shards
            value = run_step(run, islice(read, len(whole.parts)), len(whole.parts), generator, at)
        if not math.isfinite(value):
            raise ModelError(
                f"recipe {run.recipe.name!r}: the loss became {value} in epoch {epoch + 1} of {num_epochs}, "
                f"step {index + 1} of {len(batches)}; lower the learning rate ({run.recipe.peak_rate:g}) "
                "or set gradient_clip"
            )
        total += value * len(batch)
        if checkpointer is not None and index + 1 < len(batches) and _is_due(checkpointer, world):
            run.position.note(index + 1, total, generator)
            checkpointer.save(run.model, run.optimizer, run, before)
        if (progress := run.callbacks.progress) is not None:
            progress(first + index + 1, num_steps)
    run.position.begin()
    return total / sum(map(len, batches))


def _takes_part(world: World) -> bool:
    """Say whether this process has something to do when the state is kept: the first one, and all that hold parts."""
    return world.is_first or world.in_parts


def _is_due(checkpointer: Checkpointer, world: World) -> bool:
    return world.from_first(checkpointer.is_due) if world.in_parts else checkpointer.is_due()


def _divide(batch: Tensor, run: Run) -> list[Shard]:
    """Divide a batch into shards, of which those of this process are returned, and each of them into parts."""
    world = run.callbacks.world
    shards, num_parts = split(batch, world.shards), -(-run.recipe.gradient_accumulation // world.shards)
    num_parts = max(1, min(num_parts, min(len(one) for one in shards if len(one)) // 2))
    unseen = (batch[:2],) * num_parts if world.in_parts else ()
    return [
        Shard(number, torch.tensor_split(shards[number], num_parts))
        if len(shards[number])
        else Shard(number, unseen, is_empty=True)
        for number in world.here
    ]


def _count_batches(num_samples: int, batch_size: int) -> int:
    """Return how many batches `deal_batches` deals."""
    whole, rest = divmod(num_samples, batch_size)
    return max(1, whole + (rest > (1 if whole else 0)))
