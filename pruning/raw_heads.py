"""A detector's outputs as its heads give them, before post-processing; and how to go on from there.

torchvision's detectors, and many others, return a dict of losses in training mode, for which they need the targets, and
in evaluation mode a list of dicts, after boxes that overlap were dropped. Neither can be compared, distilled or
exported. So such a model is run up to its heads, in either mode:

    images ──backbone──► … ──heads──► RawHeads, tensors by name ──┬─ losses(targets) ─► the model's own losses
                                                                  └─ detections() ────► its own post-processing

Both run the model's own forward once more, in which every part with parameters gives what it gave before.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from pruning.containers import take, with_tensors
from pruning.errors import ModelError, SettingsError, describe, pass_on
from pruning.metrics import described


class RawHeads(dict[str, Tensor]):
    """What the heads of a detector gave, by name, before post-processing; and how to go on from there."""

    def __init__(self, forward: _Pass) -> None:
        """Take the pass that ended at the heads."""
        several = len(forward.heads) > 1
        super().__init__(
            pair for name in forward.heads for pair in _named(name if several else "", forward.given[name][0], name)
        )
        self._forward = forward

    def _asdict(self) -> dict[str, Tensor]:
        """Say, as a namedtuple does, that the first tensor stands for all where one is read."""
        return dict(self)

    def losses(self, targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Return the sum of the model's own losses, [] floating point.

        Args:
            targets: Of each image a dict of boxes and labels.

        Raises:
            ModelError: The model gives something else, or runs layers again with other inputs for it.
        """
        found = self._forward.go_on(targets)
        parts = list(found.values()) if isinstance(found, Mapping) else []
        if not parts or not all(isinstance(part, Tensor) and part.numel() == 1 for part in parts):
            held = f"a dict of {', '.join(map(str, found))}" if isinstance(found, Mapping) else described(found)
            raise ModelError(
                f"in training mode, given targets, {self._forward.name} returned {held}; expected a dict of losses, "
                "one number each, as torchvision's detectors return it"
            )
        return torch.stack([part.reshape(()) for part in parts]).sum()

    def detections(self) -> list[dict[str, Tensor]]:
        """Return of each image `boxes`, `scores` and `labels`, by the model's own post-processing.

        Raises:
            ModelError: The model gives something else, or runs layers again for it.
        """
        found = self._forward.go_on(None)
        if isinstance(found, Sequence) and all(isinstance(one, Mapping) for one in found):
            return [dict(one) for one in found]
        raise ModelError(
            f"in evaluation mode {self._forward.name} returned {described(found)}; expected a list with a dict of "
            "boxes, scores and labels for each image, as torchvision's detectors return it"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> RawHeads:
        """Copy it with the tensors that take the place of others; model and images stay."""
        one = self._forward
        given = one.with_given(lambda part: with_tensors(part, lambda tensor: memo.get(id(tensor), tensor)), one.images)
        return RawHeads(given)

    def of_image(self, number: int) -> RawHeads:
        """Return the same of one image."""
        return RawHeads(self._forward.of_image(number))


def _named(prefix: str, value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a head gave, with a name for each."""
    if isinstance(value, Tensor):
        yield prefix or name, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _named(f"{prefix}.{key}".lstrip("."), one, name)
    elif isinstance(value, Sequence):
        for number, one in enumerate(value):
            yield from _named(f"{prefix or name}.{number}", one, name)
    else:
        raise ModelError(f"head {name!r} gave {described(value)}; expected tensors, in tuples or dicts")


class _AtHeads(Exception):  # noqa: N818 - no error: the way out of the model's forward
    """All heads have run."""


class _Ended:
    """In place of what the last head gave: whatever is done with it ends the model's forward.

    An exception inside the head would leave the exporter, which follows calls of modules, within it.
    """

    def __getattr__(self, name: str) -> Any:
        raise _AtHeads

    @classmethod
    def __torch_function__(cls, *_args: Any, **_kwargs: Any) -> Any:
        raise _AtHeads


def _end(*_args: Any, **_kwargs: Any) -> Any:
    raise _AtHeads


_USES = "getitem iter len bool contains call add radd sub rsub mul rmul truediv neg matmul lt le gt ge"
for _use in _USES.split():
    setattr(_Ended, f"__{_use}__", _end)


class _Pass(nn.Module):
    """One forward pass up to the heads. A module, so that nothing looks for outputs in what it holds.

    Attributes:
        model: The detector.
        own: Its forward as it was.
        images: What it was given.
        heads: Names of its parts that run last.
        given: Name of a part with parameters -> what each call of it gave.
        state: Of the generator before the pass.
    """

    model: nn.Module
    own: Callable[..., Any]
    images: Any
    heads: tuple[str, ...]
    given: dict[str, list[Any]]
    state: Tensor

    def __init__(self, model: nn.Module, forward: Any, images: Any, heads: tuple[str, ...]) -> None:
        super().__init__()
        vars(self).update(model=model, own=forward, images=images, heads=heads, given={}, state=torch.get_rng_state())
        self.name = f"the model, a {type(model).__name__},"

    def run(self) -> None:
        """Run the model's own forward, and keep what each part with parameters gave."""
        model, given = self.model, self.given

        def keep(name: str) -> Any:
            def after(_module: nn.Module, _inputs: Any, outputs: Any) -> Any:
                given.setdefault(name, []).append(outputs)
                return _Ended() if all(head in given for head in self.heads) else outputs

            return after

        parts = [(name, part) for name, part in model.named_children() if next(part.parameters(), None) is not None]
        hooks = [part.register_forward_hook(keep(name)) for name, part in parts]
        try:
            with _mode(model, training=False):
                self.own(model, self.images)
        except _AtHeads:
            pass
        except Exception as fault:
            pass_on(fault)
            if not model.training:
                raise
            raise ModelError(
                f"{self.name} can't be run up to its heads without targets where its parts are in training mode "
                f"({describe(fault)}); a detector of two stages needs a task of your own"
            ) from fault
        finally:
            for hook in hooks:
                hook.remove()
        if missing := ", ".join(repr(head) for head in self.heads if head not in given):
            raise ModelError(f"{self.name} returned before its part {missing} had run; set task.kwargs.heads to others")

    def go_on(self, targets: Any) -> Any:
        """Run the model's own forward to its end, with what its parts gave."""
        model = self.model
        left = {name: iter(outputs) for name, outputs in self.given.items()}

        def give(name: str) -> Any:
            def forward(*_args: Any, **_kwargs: Any) -> Any:
                try:
                    return next(left[name])
                except (KeyError, StopIteration):
                    raise ModelError(
                        f"{self.name} runs its part {name!r} {'again ' if name in left else ''}after its heads "
                        f"({', '.join(self.heads)}): with other inputs, such as regions that it proposed itself, or "
                        "once for each level. Name the parts that run last as task.kwargs.heads, each of which runs "
                        "once; a detector of two stages needs a task of your own"
                    ) from None

            return forward

        parts = [(name, part) for name, part in model.named_children() if next(part.parameters(), None) is not None]
        before = [vars(part).get("forward") for _, part in parts]
        for name, part in parts:
            vars(part)["forward"] = give(name)
        try:
            with torch.random.fork_rng(devices=[]), _mode(model, training=targets is not None):
                torch.set_rng_state(self.state)  # what is drawn on the way to the heads has to be the same
                return self.own(model, self.images, *([] if targets is None else [targets]))
        finally:
            for (_, part), forward in zip(parts, before, strict=True):
                del vars(part)["forward"]
                if forward is not None:
                    vars(part)["forward"] = forward

    def of_image(self, number: int) -> _Pass:
        """Return the same pass of one image."""
        here = slice(number, number + 1)
        return self.with_given(lambda one: take(one, here), self.images[here])

    def with_given(self, change: Callable[[Any], Any], images: Any) -> _Pass:
        """Return the same pass with what its parts gave changed."""
        other = _Pass(self.model, self.own, images, self.heads)
        vars(other).update(given={name: change(one) for name, one in self.given.items()}, state=self.state)
        return other


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Set the training flag of the model alone, not of its parts: it says what forward returns."""
    before = model.training
    model.training = training
    try:
        yield
    finally:
        model.training = before


@cache
def _up_to_heads(kind: Any, heads: tuple[str, ...]) -> type[nn.Module]:
    """Return a subclass whose forward ends at the heads; names and parameters stay the same."""

    def forward(self: nn.Module, images: Any, *targets: Any) -> Any:
        if targets:  # as its own training calls it
            return kind.forward(self, images, *targets)
        one = _Pass(self, kind.forward, images, heads)
        one.run()
        return RawHeads(one)

    def reduce(self: nn.Module, protocol: int) -> Any:
        made = object.__reduce_ex__(self, protocol)
        return (_made, (kind, heads), *made[2:])

    members = {
        "forward": forward,
        "ends_at": heads,
        "__reduce_ex__": reduce,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
    }
    return type(kind.__name__, (kind,), members)


def _made(kind: Any, heads: tuple[str, ...]) -> Any:
    return copyreg.__newobj__(_up_to_heads(kind, heads))  # type: ignore[attr-defined]


def up_to_heads(model: nn.Module, heads: Sequence[str] = ()) -> nn.Module:
    """Let a detector that takes targets, as torchvision's do, return `RawHeads` from now on; in place.

    Args:
        model: Its forward takes images and targets; others are returned as they are.
        heads: Names of the parts, children of the model, that run last; by default those with `head` in their name.

    Raises:
        SettingsError: It has no such parts.
    """
    if "targets" not in signature(model.forward).parameters or hasattr(model, "ends_at"):
        return model
    children = [name for name, part in model.named_children() if next(part.parameters(), None) is not None]
    chosen = tuple(heads) or tuple(name for name in children if "head" in name.lower())
    if not chosen or not set(chosen) <= set(children):
        raise SettingsError(
            f"heads {', '.join(map(repr, chosen)) or 'not named'}: {type(model).__name__} has the parts "
            f"{', '.join(children)}; name those that run last, whose outputs are classes and boxes before "
            "post-processing, as task.kwargs.heads"
        )
    kind: Any = type(model)
    model.__class__ = _up_to_heads(kind, chosen)
    return model
