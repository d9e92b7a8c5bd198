"""Residual streams in their principal components: the same function, in which what matters least is a few channels.

What a stream holds can be turned: whatever writes into it is multiplied by a rotation, whatever reads from it by its
inverse, and nothing changes. A norm stands in between. RMS norm goes with every rotation, once its gain is part of the
layers that read it; layer norm, which subtracts the mean over the channels, with those that leave that mean alone, once
its bias and the mean of what is written are part of the layers too. So a rotation is chosen that puts most of what the
norms see into the first channels. Removing the last ones then costs less than removing any channels would before.

For a layer norm the components lie along Helmert's contrasts: each is a difference between one channel and the mean of
those before it. A norm over the first k + 1 channels then sees the first k components exactly, for every k: what is
left of the others there is the same in all these channels, and a layer norm subtracts it.

Sources: Ashkboos et al. 2024 (SliceGPT), arXiv 2401.15024, for the rotation, which there differs from block to block;
the contrasts are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pruning.batches import Batches, Samples, checked_batches
from pruning.containers import Inputs
from pruning.errors import PlanError, describe, pass_on
from pruning.evaluation import device_of
from pruning.graph.contexts import forked_torch
from pruning.graph.dispatch import examples_of
from pruning.graph.groups import Group, Groups, Slice
from pruning.graph.module_copy import copy_whole
from pruning.plan.verification import TOLERANCE, difference_on
from pruning.statistics.module_hooks import hooked, input_shapes, reached, run_each
from pruning.statistics.moments import contrasts, principal_components

Kind = Literal["layer", "rms", "scale"]

_COMPARED = 8  # samples on which the turned model is compared with the original, beside the example
_CLOSE = 1e-3  # of what a norm gives for random numbers: its eps and rounding


@dataclass(frozen=True)
class Turned:
    """A model whose streams lie in their principal components.

    Attributes:
        model: Computes what the original does, with parameters of the same names and shapes.
        streams: Names of the groups that are turned.
        refused: Why the other streams are as they were, by the name of the group.
    """

    model: nn.Module
    streams: tuple[str, ...]
    refused: Mapping[str, str]


def in_principal_components(groups: Groups, samples: Batches | Samples | Inputs, *, batch_size: int = 64) -> Turned:
    """Turn every residual stream of a model into its principal components, the largest first.

    A stream can be turned where all that reads or writes it is linear in its channels (layers, additions, selections of
    tokens, means over tokens) or a norm over them that is a module, in front of what reads the stream. That is found by
    running the model, and proved by comparing the turned model with the original; a stream of which it doesn't hold
    stays as it is.

    Args:
        groups: Found with `allow_mixed=True`; their model isn't changed.
        samples: Inputs that tell which components are large, [N, ...] each; a few hundred.
        batch_size: Samples per pass.

    Raises:
        DataError: There are no samples.

    Source: see the module.
    """
    batches = checked_batches(samples)
    model = copy_whole(groups.model).eval()
    streams: list[str] = []
    refused: dict[str, str] = {}
    compared_on = [*examples_of(groups.example_inputs), batches.first(_COMPARED).to(device_of(model)).inputs]
    for group in (one for one in groups if one.mixed):
        tried = copy_whole(model)
        try:
            with forked_torch():
                _turn(tried, group, groups.example_inputs, batches, batch_size)
            difference = difference_on(groups.model, tried, compared_on)
            if not difference <= TOLERANCE:
                raise PlanError(
                    f"the turned model gives other outputs (relative difference {difference:.2g}), so that something "
                    "takes the channels one by one, or a gain or a bias can't be moved into the layers that read it"
                )
        except PlanError as fault:
            refused[group.name] = str(fault)
        except Exception as fault:  # noqa: BLE001 - a model's own code may raise anything where its values are moved
            pass_on(fault)
            refused[group.name] = f"what reads it can't be found: {describe(fault)}"
        else:
            model = tried
            streams.append(group.name)
    return Turned(model, tuple(streams), refused)


@dataclass
class _Norm:
    """A module that takes a statistic over the stream's channels, or scales each of them.

    Attributes:
        module: Itself.
        kind: What it does.
        axis: Of its input, along which the channels lie.
        gain: Its parameter that multiplies, [channels]; None if it has none.
        bias: Its parameter that is added.
        neutral: What the gain holds where it changes nothing: 1, or 0 where the code adds 1.
    """

    module: nn.Module
    kind: Kind
    axis: int
    gain: nn.Parameter | None
    bias: nn.Parameter | None
    neutral: float

    def factor(self) -> Tensor:
        """What each channel is multiplied by, float64 [channels]."""
        assert self.gain is not None, "`_norm_of` gives every norm that is asked a gain"
        return self.gain.detach().double() + (1 - self.neutral)

    def shift(self) -> Tensor:
        """What is added to each channel, float64 [channels]."""
        return torch.zeros(()) if self.bias is None else self.bias.detach().double()


@dataclass
class _Stream:
    """The parts of a model along whose channels a stream lies.

    Attributes:
        size: Number of channels.
        writers: What writes into it, each parameter with the axis of the channels.
        readers: What reads from it, likewise, by the module that owns it.
        norms: The norms over it.
        scales: Modules that scale a branch before it is added.
    """

    size: int
    writers: list[tuple[nn.Parameter, int, nn.Module]] = field(default_factory=list)
    readers: list[tuple[nn.Parameter, int, nn.Module, str]] = field(default_factory=list)
    norms: list[_Norm] = field(default_factory=list)
    scales: list[_Norm] = field(default_factory=list)


def _turn(model: nn.Module, group: Group, examples: Inputs, samples: Batches, batch_size: int) -> None:
    """Turn one stream, in place.

    Raises:
        PlanError: It can't be turned.
    """
    stream = _parts(model, group, examples)
    with torch.no_grad():
        for scale in stream.scales:
            _fold_scale(model, stream, scale, examples)
        if any(norm.kind == "layer" for norm in stream.norms):
            if any(norm.kind == "rms" for norm in stream.norms):
                raise PlanError("both layer norms and RMS norms read it")
            for parameter, axis, _ in stream.writers:
                wide = parameter.double()
                parameter.copy_(wide - wide.mean(dim=axis, keepdim=True))
        readers_of = {id(norm): _readers_of(model, stream, norm, examples) for norm in stream.norms}
        for norm in stream.norms:
            _fold_gain(norm, readers_of[id(norm)])
        rotation = _rotation(model, stream, samples, batch_size)
        along = [*((one[0], one[1]) for one in stream.writers), *((one[0], one[1]) for one in stream.readers)]
        for parameter, axis in along:
            turned = parameter.double().movedim(axis, -1) @ rotation.T
            parameter.copy_(turned.movedim(-1, axis))
        for norm in stream.norms:
            if norm.bias is not None:
                norm.bias.copy_(rotation @ norm.bias.double())


def _parts(model: nn.Module, group: Group, examples: Inputs) -> _Stream:
    """Find what each of a stream's parameters does with it.

    Raises:
        PlanError: One of them can't be turned.
    """
    stream, followers = _Stream(group.size), dict[int, list[tuple[Slice, nn.Module]]]()
    named = dict(model.named_parameters())
    for piece in group.slices:
        if piece.parameter not in named:
            raise PlanError(f"{piece.parameter} lies along it and is no parameter")
        if not torch.equal(piece.channels(), torch.arange(group.size)):
            raise PlanError(f"its channels lie several times, or not all, along axis {piece.axis} of {piece.parameter}")
        owner = model.get_submodule(piece.parameter.rpartition(".")[0])
        if piece.role == "follower":
            followers.setdefault(id(owner), []).append((piece, owner))
        elif piece.role == "producer":
            stream.writers.append((named[piece.parameter], piece.axis, owner))
        elif isinstance(owner, nn.Embedding):
            raise PlanError(
                f"{piece.parameter} is an embedding and an output layer at once, and only one of them takes a gain; "
                "untie them (transformers: tie_word_embeddings=False, with a copy of the weights)"
            )
        else:
            stream.readers.append((named[piece.parameter], piece.axis, owner, piece.parameter))
    shapes = input_shapes(model, [owned[0][1] for owned in followers.values()], examples)
    for key, owned in followers.items():
        norm = _norm_of(owned, shapes.get(key), group.size, named)
        if norm is None:
            stream.writers += [(named[piece.parameter], piece.axis, owner) for piece, owner in owned]
        else:
            (stream.scales if norm.kind == "scale" else stream.norms).append(norm)
    return stream


def _norm_of(
    owned: Sequence[tuple[Slice, nn.Module]],
    shape: torch.Size | None,
    size: int,
    named: Mapping[str, nn.Parameter],
) -> _Norm | None:
    """Say what a module does with a stream, going by what it makes of random numbers; None if it is no norm.

    Args:
        owned: Its parameters along the stream.
        shape: Of what it is given; None if it is given no tensor.
        size: Channels of the stream.
        named: The model's parameters.
    """
    module, parameters = owned[0][1], [named[piece.parameter] for piece, _ in owned]
    if shape is None or len(parameters) > 2 or any(one.ndim != 1 for one in parameters):
        return None
    axes = [axis for axis in (len(shape) - 1, 1) if axis < len(shape) and shape[axis] == size]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(shape, generator=generator).to(parameters[0]) + 0.3
    before = [one.detach().clone() for one in parameters]
    try:
        for gain, bias in ((parameters[0], None), *_pairs(parameters)):
            for neutral in (1.0, 0.0):
                gain.data.fill_(neutral)
                if bias is not None:
                    bias.data.fill_(0.0)
                outputs = _called(module, inputs), _called(module, 3 * inputs)
                for axis in dict.fromkeys(axes):
                    kind = _kind(inputs, *outputs, axis)
                    if kind is not None:
                        return _Norm(module, kind, axis, gain, bias, neutral)
    finally:
        for one, values in zip(parameters, before, strict=True):
            one.data.copy_(values)
    return None


def _pairs(parameters: Sequence[nn.Parameter]) -> list[tuple[nn.Parameter, nn.Parameter]]:
    return [(parameters[0], parameters[1]), (parameters[1], parameters[0])] if len(parameters) == 2 else []


def _called(module: nn.Module, inputs: Tensor) -> Tensor | None:
    try:
        found = module(inputs.clone())
    except Exception:  # noqa: BLE001 - a module of the user's may take no random numbers: then it is no norm
        return None
    return found if isinstance(found, Tensor) and found.shape == inputs.shape else None


def _kind(inputs: Tensor, once: Tensor | None, thrice: Tensor | None, axis: int) -> Kind | None:
    """Say what makes these outputs of the inputs and of three times the inputs, over an axis."""

    def is_close(found: Tensor, expected: Tensor) -> bool:
        return bool((found - expected).abs().max() <= _CLOSE * expected.abs().max())

    if once is None or thrice is None:
        return None
    if is_close(once, inputs):
        return "scale"
    if not is_close(once, thrice):
        return None
    centred = inputs - inputs.mean(axis, keepdim=True)
    found: tuple[tuple[Kind, Tensor], ...] = (("layer", centred), ("rms", inputs))
    for kind, given in found:
        if is_close(once, given / given.square().mean(axis, keepdim=True).sqrt()):
            return kind
    return None


def _readers_of(
    model: nn.Module, stream: _Stream, norm: _Norm, examples: Inputs
) -> list[tuple[nn.Parameter, int, nn.Module, str]]:
    """Return what reads a norm.

    Raises:
        PlanError: Another norm does.
    """
    others = [one.module for one in stream.norms if one is not norm]
    ends = {id(one): one for one in (*others, *(owner for _, _, owner, _ in stream.readers))}
    found = {id(one) for one in reached(model, norm.module, norm.axis, stream.size, list(ends.values()), examples)}
    if any(id(one) in found for one in others):
        raise PlanError("what one norm gives comes to another without a layer that reads its channels in between")
    return [reader for reader in stream.readers if id(reader[2]) in found]


def _fold_gain(norm: _Norm, readers: Sequence[tuple[nn.Parameter, int, nn.Module, str]]) -> None:
    """Move a norm's gain, and its bias where all that reads it has one, into what reads it."""
    if norm.gain is None:
        return
    factor, shift = norm.factor(), norm.shift()
    biases = [_bias_of(owner, name) for _, _, owner, name in readers]
    moves_bias = norm.bias is not None and all(bias is not None for bias in biases)
    for (weight, axis, *_), bias in zip(readers, biases, strict=True):
        rows = weight.double().movedim(axis, -1)
        if moves_bias and bias is not None:
            added = rows @ shift
            bias.add_(added.flatten(1).sum(1) if added.ndim > 1 else added)
        weight.copy_((rows * factor).movedim(-1, axis))
    norm.gain.fill_(norm.neutral)
    if norm.bias is not None:
        norm.bias.copy_(torch.zeros_like(shift) if moves_bias else shift / factor)


def _bias_of(owner: nn.Module, weight: str) -> nn.Parameter | None:
    found = getattr(owner, weight.rpartition(".")[2].replace("weight", "bias"), None)
    return found if isinstance(found, nn.Parameter) else None


def _fold_scale(model: nn.Module, stream: _Stream, scale: _Norm, examples: Inputs) -> None:
    """Move the factors of a branch into the layer that writes it.

    Raises:
        PlanError: It isn't one layer.
    """
    ends = [one.module for one in (*stream.scales, *stream.norms)]
    writers: dict[int, list[tuple[nn.Parameter, int]]] = {}
    for parameter, axis, owner in stream.writers:
        writers.setdefault(id(owner), []).append((parameter, axis))
    found = [
        owner
        for owner in {id(owner): owner for _, _, owner in stream.writers}.values()
        if scale.module not in owner.modules()  # what it gives comes later
        and scale.module in reached(model, owner, _channels_axis(owner, scale), stream.size, ends, examples)
    ]
    if len(found) != 1 or scale.gain is None:
        raise PlanError(f"{len(found)} layers write what a scale multiplies; one can take its factors over")
    for parameter, axis in writers[id(found[0])]:
        parameter.copy_((parameter.double().movedim(axis, -1) * scale.factor()).movedim(-1, axis))
    scale.gain.fill_(scale.neutral)


def _channels_axis(owner: nn.Module, scale: _Norm) -> int:
    return 1 if "Conv" in type(owner).__name__ and hasattr(owner, "kernel_size") else scale.axis


def _rotation(model: nn.Module, stream: _Stream, samples: Batches, batch_size: int) -> Tensor:
    """Return the rotation whose first rows hold most of what the norms see, float64 [channels, channels].

    Raises:
        PlanError: No norm reads the stream.
    """
    if not stream.norms:
        raise PlanError("no module is a norm over it")
    size = stream.size
    sums = {id(norm.module): torch.zeros(size, size, dtype=torch.float64) for norm in stream.norms}
    rows = dict.fromkeys(sums, 0)

    def add(norm: _Norm) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def look(_module: nn.Module, _inputs: tuple[Any, ...], outputs: Tensor) -> None:
            found = outputs.detach().movedim(norm.axis, -1).reshape(-1, size).to("cpu", torch.float64)
            if norm.bias is not None:
                found = found - norm.bias.detach().double().cpu()
            sums[id(norm.module)] += found.T @ found
            rows[id(norm.module)] += len(found)

        return look

    with hooked([norm.module.register_forward_hook(add(norm)) for norm in stream.norms]):
        for batch in samples.ordered(batch_size):
            run_each(model, batch.to(device_of(model)).inputs)
    moment = torch.stack([sums[key] / max(1, rows[key]) for key in sums]).sum(0)
    if all(norm.kind == "rms" for norm in stream.norms):
        return principal_components(moment).T.contiguous()
    differences = contrasts(size)
    components = principal_components(differences @ moment @ differences.T)
    return differences.T @ components.T @ differences + 1 / size
