"""How users run a model: in evaluation and in training, on one sample and on several, with each optional tensor.

PyTorch takes other paths through a network where no gradients are recorded, where a mask is given or where it trains;
a model's own code does so too. What agrees on one of them says nothing of the others, so that a narrowed model is
compared with the masked one on each of them that the masked one takes.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from pruning.containers import Inputs, as_call, outputs_in, with_tensors
from pruning.errors import pass_on
from pruning.graph.contexts import in_mode, seeded
from pruning.graph.module_copy import copy_whole
from pruning.graph.rules.call import operator_name, tensors_in
from pruning.plan.verification import comparable_outputs, outputs_of

_SAMPLES = 3
_MOST_OPTIONAL = 6  # optional arguments that are given
_MOST_TRIED = 12  # optional arguments for which a value is looked for, and values that are tried for each
_SCALES = (1e-2, 1e-4, 1e2)  # of random inputs
_CACHES = ("cache", "past_key_values", "cache_params", "past")  # arguments that take what a call before has kept
_MASKS = re.compile("mask|pad|valid|keep|causal")


@dataclass(frozen=True)
class Call:
    """One way to run a model.

    Attributes:
        inputs: What it is given.
        how: In words, for messages: how this differs from the example in evaluation.
        training: In training mode and with gradients, dropping nothing out; otherwise in evaluation without them.
        inference: Under `torch.inference_mode` instead of `torch.no_grad`.
        given: The argument of `forward` that the example leaves as it is by default, and this call gives.
        turned: Whether that is a truth or a number, which may ask for other outputs than the example's.
    """

    inputs: Inputs
    how: str = ""
    training: bool = False
    inference: bool = False
    given: str = ""
    turned: bool = False

    def run(self, model: nn.Module) -> list[Tensor]:
        """Run a copy of a model in this way, which shares its parameters alone: the model learns and keeps nothing.

        Returns:
            The tensors that its outputs hold, without their graph.

        Raises:
            ModelError: They hold none, or the inputs can't be copied.
        """
        with warnings.catch_warnings():
            if self.how:
                warnings.simplefilter("ignore")  # nobody has called it in this way yet
            if not self.training and not self.inference:
                return outputs_of(model, self.inputs)
            return self._run(copy_whole(model))

    def run_on(self, model: nn.Module, inputs: Inputs) -> list[Tensor]:
        """Run a model in this way on other inputs."""
        return replace(self, inputs=inputs).run(model)

    def _run(self, model: nn.Module) -> list[Tensor]:
        args, kwargs = with_tensors(as_call(self.inputs), lambda tensor: tensor.detach().clone())
        gradients: AbstractContextManager[Any] = torch.inference_mode() if self.inference else torch.enable_grad()
        with ExitStack() as stack:
            stack.enter_context(in_mode(model, self.training, small_batches=False))
            stack.enter_context(seeded())
            stack.enter_context(gradients)
            if self.training:
                stack.enter_context(_NothingDropped())  # type: ignore[no-untyped-call]
            return [tensor.detach() for tensor in outputs_in(model, model(*args, **kwargs), by_value=True)]


def other_calls(model: nn.Module, example: Inputs) -> Iterator[tuple[Call, list[Tensor]]]:
    """Yield the ways in which users run a model, apart from the example itself in evaluation.

    Random values, the example's with their signs turned, one sample under `torch.inference_mode`, three samples in
    training, and three samples with each optional argument of `forward` in evaluation and in training: a truth is
    turned over, a number is one more; for a tensor, masks of the usual shapes and kinds are tried, and tensors like the
    example's; the first one that the model takes is given. At most 6 arguments are, so that there are at most 16 calls,
    and no more than 144 attempts to find a value.

    Args:
        model: Runs in each of these ways.
        example: Inputs that the model takes.

    Yields:
        A call that the model takes with finite outputs, and the tensors that the outputs hold.
    """
    few = _batch(example, _SAMPLES)
    inputs, on = (example, "") if few is None else (few, f" on a batch of {_SAMPLES}")
    one = _batch(example, 1)
    plain = [_random(example, 1.0), *_negated(example)]
    if one is not None:
        plain.append(Call(one, " under torch.inference_mode on a batch of 1", inference=True))
    plain.append(Call(inputs, f" in training{on}", training=True))
    given: list[Call] = []
    for name, options in list(_options(model, inputs))[:_MOST_TRIED]:
        for option, value in options:
            number = isinstance(value, int | float)
            call = Call(option, f" with {name}{f'={value}' if number else ''}{on}", given=name, turned=number)
            outputs = comparable_outputs(call.run, model)
            if outputs is not None:
                given.append(call)
                yield call, outputs
                break
        if len(given) == _MOST_OPTIONAL:
            break
    trained = [replace(call, how=f"{call.how} in training", training=True) for call in given]
    for call in (*plain, *trained):
        outputs = comparable_outputs(call.run, model)
        if outputs is not None:
            yield call, outputs


def other_values(model: nn.Module, example: Inputs, samples: Iterable[Inputs]) -> Iterator[tuple[Call, list[Tensor]]]:
    """Yield further inputs: at most 8 samples, then random values of other scales in place of the example's.

    Args:
        model: What they are for.
        example: Inputs that the model takes; integers stay below its largest.
        samples: Inputs like it.

    Yields:
        A call that the model takes with finite outputs, and the tensors that the outputs hold.
    """
    given = [Call(sample, f" on sample {number}") for number, sample in enumerate(islice(samples, _MOST_TRIED))]
    for call in (*given, *(_random(example, scale) for scale in _SCALES)):
        outputs = comparable_outputs(call.run, model)
        if outputs is not None:
            yield call, outputs


def _random(example: Inputs, scale: float) -> Call:
    generator = torch.Generator().manual_seed(0)

    def drawn(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dtype == torch.bool or leaf.is_complex() or not leaf.numel():
            return leaf
        if leaf.is_floating_point():
            return (scale * torch.randn(leaf.shape, generator=generator)).to(leaf)
        return torch.randint(max(1, int(leaf.max()) + 1), leaf.shape, generator=generator).to(leaf)

    return Call(tree_map(drawn, example), f" on random inputs of scale {scale:g}")


def _negated(example: Inputs) -> Iterator[Call]:
    """The example with the signs of its numbers turned, if it holds some that are no integers: branches go by them."""
    if any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_flatten(example)[0]):
        turned = tree_map(lambda v: -v if isinstance(v, Tensor) and v.is_floating_point() else v, example)
        yield Call(turned, " on the negated inputs")


def _batch(example: Inputs, number: int) -> Inputs | None:
    """The first samples of an example, or as many as are asked for by turning them; None where it has no batch axis."""
    tensors = [leaf for leaf in tree_flatten(example)[0] if isinstance(leaf, Tensor)]
    sizes = {tensor.shape[:1] for tensor in tensors}
    if len(sizes) != 1 or sizes & {(), (0,)} or any(t.is_nested or t.layout != torch.strided for t in tensors):
        return None
    (size,) = sizes.pop()

    def samples(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        turned = [leaf[i % size].roll(i // size, -1) if leaf.ndim > 1 else leaf[i % size] for i in range(number)]
        return torch.stack(turned)

    resized: Inputs = tree_map(samples, example)
    return resized


def optional_arguments(model: nn.Module, inputs: Inputs) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """The arguments of `forward` that have a default, and that an example leaves so.

    A text (or whatever else has no other value that could be guessed) that an example gives is the caller's choice.

    Returns:
        These, and the example as keyword arguments; nothing where the signature doesn't tell the names of all that the
        example gives.
    """
    args, kwargs = as_call(inputs)
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return [], {}
    first = parameters[: len(args)]
    if len(first) < len(args) or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in first):
        return [], {}
    known = dict(zip((p.name for p in first), args, strict=True)) | kwargs
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    left = [p for p in named if p.default is not p.empty]
    guessed = [p for p in left if p.name not in known or p.default is None or isinstance(p.default, int | float)]
    return [p for p in guessed if known.get(p.name, p.default) is p.default], known


def takes_cache(model: nn.Module, inputs: Inputs) -> str | None:
    """Return the argument of `forward` that takes the cache of a call before, if it has one that the example leaves."""
    left, _ = optional_arguments(model, inputs)
    names = [parameter.name for parameter in left]
    return next((name for name in _CACHES if name in names), None)


def run_from_cache(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run a copy of a model twice, the second time with the cache that it returned the first time.

    Returns:
        The tensors of the second outputs, but for the cache; and how many positions the cache holds, if it says so.
        Nothing where the model returns no cache.

    Raises:
        Exception: Whatever the model raises; the second time it is tried without masks too, which cover the first call.
    """
    name = takes_cache(model, inputs)
    left, known = optional_arguments(model, inputs)
    if "use_cache" in known or any(parameter.name == "use_cache" for parameter in left):
        known["use_cache"] = True
    unmasked = {key: value for key, value in known.items() if not _MASKS.search(key)}

    def run(again: dict[str, Any]) -> list[Tensor]:
        with in_mode(copy := copy_whole(model), False), seeded(), torch.no_grad():
            cache = _entry(copy(**known), name)
            if cache is None:
                return []
            outputs = copy(**again, **{str(name): cache})
            cache = _entry(outputs, name)
        rest = {key: value for key, value in outputs.items() if value is not cache}
        length = getattr(cache, "get_seq_length", lambda: 0)()
        return [*outputs_in(model, rest, by_value=True), torch.as_tensor(length)]

    try:
        return run(known)
    except Exception as fault:
        pass_on(fault)
        if len(unmasked) == len(known):
            raise
        return run(unmasked)


def _entry(outputs: Any, name: str | None) -> Any:
    return outputs.get(name) if isinstance(outputs, Mapping) else None


def other_value(default: float | None) -> float:
    """Return what is tried in place of a default: a truth turned over, a number one more, true for None."""
    return not default if default is None or isinstance(default, bool) else default + 1


def _options(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, list[tuple[Inputs, Any]]]]:
    """The optional arguments of `forward` for which values can be guessed, with inputs that give them."""
    tensors = [leaf for leaf in tree_flatten(inputs)[0] if isinstance(leaf, Tensor) and leaf.ndim > 1]
    left, known = optional_arguments(model, inputs)
    for parameter in left:
        values: list[Any]
        if isinstance(parameter.default, int | float):
            values = [other_value(parameter.default)]
        elif parameter.default is not None:
            continue
        elif _MASKS.search(parameter.name):
            values = [mask for tensor in tensors for mask in _masks(tensor)]
        elif "Tensor" in str(parameter.annotation) or parameter.annotation is inspect.Parameter.empty:
            values = [option for tensor in tensors for option in _like(tensor)]
        elif "bool" in str(parameter.annotation):
            values = [True, False]
        else:
            continue
        yield parameter.name, [(known | {parameter.name: value}, value) for value in values[:_MOST_TRIED]]


def _masks(tensor: Tensor) -> Iterator[Tensor]:
    """Masks of a sequence: of its padding, [batch, length], and of what no position may see, [length, length]."""
    first, second = tensor.shape[:2]
    padding = _padding(first, second, tensor.device)
    yield padding
    yield (~padding).long()
    yield _padding(second, first, tensor.device)
    for length in dict.fromkeys((second, first)):
        yield torch.ones(length, length, dtype=torch.bool, device=tensor.device).triu(1)


def _padding(batch: int, length: int, device: torch.device) -> Tensor:
    """Bool [batch, length]: True at the end of every sequence but the first."""
    lengths = length - torch.arange(batch, device=device) % length
    return torch.arange(length, device=device) >= lengths[:, None]


def _like(tensor: Tensor) -> Iterator[Tensor]:
    first, second = tensor.shape[:2]
    yield tensor.flip(0)
    yield torch.arange(second, device=tensor.device).expand(first, second)
    yield torch.zeros(first, second, dtype=torch.long, device=tensor.device)


class _NothingDropped(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Let dropout drop nothing and what else is drawn be one half, so that outputs compare."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        name = operator_name(func)
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        schema = func._schema.arguments
        position = next((i for i, argument in enumerate(schema) if argument.name == "dropout_p"), None)
        if position is not None:
            args = tuple(0.0 if i == position else value for i, value in enumerate(args))
            kwargs |= {"dropout_p": 0.0} if "dropout_p" in kwargs else {}
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        for tensor in tensors_in(result):
            if tensor.is_floating_point():
                tensor.fill_(1.0 if name.startswith("bernoulli") else 0.5)
        return result
