"""Train by a function of the user's: afterwards the model has to have every parameter that it had, in its shape."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pruning.batches import Batches
from pruning.containers import Inputs
from pruning.errors import ModelError, SettingsError, describe_user_fault, pass_on
from pruning.evaluation import device_of, restored_modes
from pruning.graph.unwrapping import unwrap
from pruning.training.recipe import Recipe, imported
from pruning.training.step import deal_batches

_SHOWN = 3


class ShuffledLoader:
    """All samples in batches (inputs, targets) on a device, in another order each time that one goes through it.

    Order and what a data set draws follow from (seed, how often it was gone through).
    """

    def __init__(self, samples: Batches, recipe: Recipe, seed: int, device: torch.device) -> None:
        """Read nothing yet."""
        self._samples, self._seed, self._device = samples, seed, device
        self.batch_size, self.epoch = recipe.batch_size, 0

    def __len__(self) -> int:
        """Count the batches."""
        return len(self._deal())

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        """Yield the inputs and targets of each batch."""
        batches, epoch = self._deal(), self.epoch
        self.epoch += 1
        for batch in self._samples.read(batches, seed=self._seed, epoch=epoch):
            inputs, targets, _ = batch.to(self._device)
            yield inputs, targets

    def _deal(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        return deal_batches(len(self._samples), self.batch_size, generator, self._samples.window)


log = logging.getLogger(__name__)


def train_by_own(model: nn.Module, recipe: Recipe, seed: int, teacher: nn.Module | None, **offered: Any) -> None:
    """Train a model in place by the function that a recipe names as its `trainer`.

    It is given, by name, what its signature takes of: model, recipe, seed, teacher (None without distillation or
    baseline) and what else is offered. It trains the model in place and returns None, or returns a module that has the
    model's parameters. The global random state and module modes are restored.

    Raises:
        SettingsError: The function isn't there, takes something else, raised, rebuilt or changed the architecture, or
            left every weight as it was: no other step would help.
        ModelError: It left weights that are not finite.
    """
    assert recipe.trainer is not None, "the caller has looked"
    what = f"recipe {recipe.name!r}: trainer {recipe.trainer!r}"
    train = imported(recipe.trainer, f"recipe {recipe.name!r}: trainer")
    known: Mapping[str, Any] = {"model": model, "recipe": recipe, "seed": seed, "teacher": teacher, **offered}
    parameters = inspect.signature(train).parameters.values()
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
    given = {name: value for name, value in known.items() if takes_all or name in inspect.signature(train).parameters}
    try:
        inspect.signature(train).bind(**given)
    except TypeError as fault:
        raise SettingsError(f"{what}: {fault}; it is given, by name, what it takes of {', '.join(known)}") from fault
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    device = device_of(model)
    with restored_modes(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model.train()
        try:
            returned = train(**given)
        except Exception as fault:
            pass_on(fault)
            raise SettingsError(f"{what} raised {describe_user_fault(fault)}") from fault
    if returned is not None and not isinstance(returned, nn.Module):
        raise SettingsError(f"{what} returned a {type(returned).__name__}; expected None, or the trained module")
    model.to(device)
    after = (model if returned is None else unwrap(returned)).state_dict()
    _compare(what, before, after, {} if teacher is None else teacher.state_dict())
    if returned is not None and returned is not model:
        model.load_state_dict(after)
    model.zero_grad(set_to_none=True)


def _compare(what: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> None:
    """Hold what a trainer left to what it was given; `first` is what the baseline has."""
    reshaped = [name for name in before if name in after and after[name].shape != before[name].shape]
    if reshaped:
        again = all(name in first and after[name].shape == first[name].shape for name in reshaped)
        listed = [
            f"{name} is {tuple(after[name].shape)}{' again' if again else ''}, it was {tuple(before[name].shape)}"
            for name in reshaped[:_SHOWN]
        ]
        done = "rebuilt the architecture of the baseline" if again else "changed the architecture"
        raise SettingsError(f"{what} {done}: {_listed(listed, reshaped)}; {_MEND}")
    missing, new = ([name for name in a if name not in b] for a, b in ((before, after), (after, before)))
    if missing or new:
        parts = [f"{_listed(names[:_SHOWN], names)} {how}" for names, how in ((missing, "gone"), (new, "new")) if names]
        raise SettingsError(f"{what} changed the architecture: {', '.join(parts)}; {_MEND}")
    for name, tensor in after.items():
        if tensor.dtype != before[name].dtype:
            dtypes = [str(one.dtype).removeprefix("torch.") for one in (tensor, before[name])]
            raise SettingsError(
                f"{what} left {name} as {dtypes[0]}, it was {dtypes[1]}; convert the model back at its end"
            )
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{what} left values in {name} that are not finite; lower its learning rate")
    if all(torch.equal(tensor.to(before[name].device), before[name]) for name, tensor in after.items()):
        raise SettingsError(f"{what} left every weight as it was; {_MEND}")


_MEND = "train the module that is given, in place, or return a module with the same parameters"


def _listed(shown: list[str], names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "; ".join(shown) + more if " " in shown[0] else ", ".join(shown) + more
