"""One step of training on a batch that is divided into shards: the same bits, whichever process holds which.

    shard v:   its own random numbers, of (seed, epoch, step, v)     the buffers and the memory that the step began with
               gᵥ = cᵥ ∇ meanᵥ                                       cᵥ: what its loss is the mean of
    the step:  g = Σ gᵥ / Σ cᵥ   by the tree of `pruning.world`      buffers = mean of the shards' buffers, likewise

So the gradient is that of Σ sumᵥ / Σ cᵥ, exact for shards of any sizes and for losses that count tokens or pixels. Each
batch norm sees its own shard, and its running statistics move by the mean of what the shards have seen: the variance
stays unbiased, and every process has the same buffers after every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice

import torch
from torch import Tensor, nn

from pruning.batches import Batch
from pruning.errors import ModelError
from pruning.training.step import Run, change_weights, loss_of
from pruning.world import TreeSum, World, is_part, own_part, seed_of


@dataclass(frozen=True)
class Shard:
    """A part of a batch.

    Attributes:
        number: Among the batch's shards.
        parts: The numbers of its samples, which are read and passed through the model one part after the other.
        is_empty: Whether it has no samples. Where ranks hold parts of the weights it passes others through all the
            same, which count nothing: each rank has to gather what the others gather.
    """

    number: int
    parts: tuple[Tensor, ...]
    is_empty: bool = False


def run_sharded_step(run: Run, read: Iterator[Batch], shards: Sequence[Shard], at: tuple[int, int]) -> float:
    """Take one optimizer step, unless the loss of a shard is not finite, and return the loss.

    Args:
        run: What takes part.
        read: Gives the parts of these shards, in their order.
        shards: Those of this process, empty ones included.
        at: Epoch and step, the step counted over the whole run.
    """
    world, state = run.callbacks.world, _State(run)
    facts = torch.zeros(len(shards), 3, dtype=torch.float64)  # count · mean, count, whether it has any samples
    present = torch.zeros(len(state.parameters), dtype=torch.float64)
    sums = TreeSum()
    for number, shard in enumerate(shards):
        state.restore()
        run.optimizer.zero_grad(set_to_none=True)
        of_shard, scale = _pass_through(run, islice(read, len(shard.parts)), shard, at)
        if not shard.is_empty:
            facts[number] = torch.tensor(of_shard, dtype=torch.float64)
            present += torch.tensor(state.has_gradient(), dtype=torch.float64)
        sums.add(state.collect(scale, is_empty=shard.is_empty))
        if number == 0:
            state.note()
    whole = world.join(torch.cat([facts.flatten(), present]))
    found = whole[:, : facts.numel()].reshape(-1, 3).tolist()
    if unusable := [float(total) for total, _, _ in found if not math.isfinite(total)]:
        return unusable[0]
    count = max(1.0, math.fsum(one[1] for one in found))
    num_filled = sum(int(one[2]) for one in found)
    summed = state.sum(sums.result())
    state.spread(summed, whole[:, facts.numel() :].sum(0) > 0, count, num_filled)
    state.share_noted(some_empty=num_filled < world.shards)
    change_weights(run, at[1])
    return math.fsum(one[0] for one in found) / count


def _pass_through(
    run: Run, parts: Iterator[Batch], shard: Shard, at: tuple[int, int]
) -> tuple[tuple[float, float, float], float]:
    """Pass a shard forward and backward.

    Returns:
        Its loss times what it is the mean of, the latter, and 1 if it has samples; what its gradients are to be
        multiplied by.
    """
    key, num_parts = (*at, shard.number), len(shard.parts)
    torch.manual_seed(seed_of(run.seed, *key))
    generator = torch.Generator().manual_seed(seed_of(run.seed, *key, "augmentation"))
    total, weight, whole = 0.0, 0.0, 0.0
    for number, part in enumerate(parts):
        value, count = loss_of(run, part, generator, (run.seed, *key, number))
        of_part = float(part.size) if count is None else count
        one = value.item()
        if run.divided is None and not math.isfinite(one):
            return (one, 0.0, 1.0), 0.0
        if number == 0:
            whole = max(1.0, of_part) * num_parts
        if run.divided is not None:
            run.divided.before_backward(0.0 if shard.is_empty else whole, is_last=number == num_parts - 1)
        run.precision.backward(value * (of_part / whole))
        total, weight = total + one * of_part, weight + of_part
    return (total, weight, float(num_parts > 0)), whole


class _State:
    """What a step changes in a model: gradients, buffers, and what a penalty remembers."""

    def __init__(self, run: Run) -> None:
        self._run, self._world = run, run.callbacks.world
        trained = [one for one in run.model.parameters() if one.requires_grad]
        self.parameters = sorted(trained, key=is_part, reverse=True)
        self._num_parts = sum(map(is_part, trained))
        self._memory = run.callbacks.memory if run.callbacks.penalty is not None else None
        self._before = _copies(self._buffers())
        self._remembered = {} if self._memory is None else self._memory.state_dict()
        self._noted: dict[str, Tensor] = {}
        self._counters: list[Tensor] = []

    def _buffers(self) -> list[Tensor]:
        return list(self._run.model.buffers())

    def _floating(self) -> list[Tensor]:
        return [one for one in self._buffers() if one.is_floating_point()]

    @torch.no_grad()
    def restore(self) -> None:
        """Be where the step began."""
        for buffer, before in zip(self._buffers(), self._before, strict=True):
            buffer.copy_(before)
        if self._memory is not None:
            self._memory.load_state_dict(self._remembered)
        if self._run.divided is not None:
            self._run.divided.begin()

    def note(self) -> None:
        """Note what can't be averaged, after the first shard: counters, and what a penalty remembers."""
        self._counters = _copies([one for one in self._buffers() if not one.is_floating_point()])
        self._noted = {} if self._memory is None else self._memory.state_dict()

    def has_gradient(self) -> list[bool]:
        """Say of each parameter whether the shard that was passed has given it a gradient."""
        if self._run.divided is not None:
            return self._run.divided.has_gradient(self.parameters)
        return [one.grad is not None for one in self.parameters]

    @torch.no_grad()
    def collect(self, scale: float, *, is_empty: bool) -> list[Tensor]:
        """Return gradients times a factor, and buffers, as a few long tensors: zeros for a shard without samples.

        Where ranks hold parts of the weights these are summed over the ranks: gradients of parts by the backward pass.
        """
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in self.parameters]
        if any(one.is_sparse for one in gradients):
            raise ModelError("a gradient is sparse, which can't be summed over shards; build Embedding(sparse=False)")
        of_parts, of_gradients = (
            _packed([own_part(one) for one in some])
            for some in (gradients[: self._num_parts], gradients[self._num_parts :])
        )
        for one in of_gradients:
            one.mul_(scale)
        of_buffers = _packed(self._floating())
        if is_empty:
            for one in of_gradients + of_buffers:
                one.zero_()
        if self._run.divided is None:
            return of_gradients + of_buffers
        return of_parts + [self._world.sum(one) for one in of_gradients + of_buffers]

    def sum(self, summed: list[Tensor]) -> list[Tensor]:
        """Sum over the ranks what `collect` gave, summed over the shards of this one."""
        return summed if self._run.divided is not None else [self._world.sum(one) for one in summed]

    @torch.no_grad()
    def spread(self, summed: list[Tensor], present: Tensor, count: float, num_filled: int) -> None:
        """Give gradients and buffers what `collect` gave, summed over all shards.

        Args:
            summed: The tensors.
            present: Which parameters have a gradient in any shard.
            count: What the gradients are divided by.
            num_filled: What the buffers are divided by.
        """
        parts, wholes = self.parameters[: self._num_parts], self.parameters[self._num_parts :]
        of_buffers = summed[len(_kinds(parts)) + len(_kinds(wholes)) :]
        for one in summed[: len(summed) - len(of_buffers)]:
            one.div_(count)
        gradients = [
            *_unpacked(summed, [own_part(one) for one in parts]),
            *_unpacked(summed[len(_kinds(parts)) :], wholes),
        ]
        for parameter, gradient, there in zip(self.parameters, gradients, present.tolist(), strict=True):
            parameter.grad = torch.empty_like(parameter) if there else None
            if parameter.grad is not None:
                own_part(parameter.grad).copy_(gradient)
        for one in of_buffers:
            one.div_(num_filled)
        for buffer, found in zip(self._floating(), _unpacked(of_buffers, self._floating()), strict=True):
            buffer.copy_(found)

    @torch.no_grad()
    def share_noted(self, *, some_empty: bool) -> None:
        """Let all processes have what can't be averaged as it is after the batch's first shard.

        Args:
            some_empty: Whether one of them may have had no samples, so that its counters stand still.
        """
        if some_empty:
            self._counters = self._world.from_first(lambda: [one.cpu() for one in self._counters])
        counters = [one for one in self._buffers() if not one.is_floating_point()]
        for buffer, found in zip(counters, self._counters, strict=True):
            buffer.copy_(found)
        if self._memory is not None:
            self._memory.load_state_dict(self._world.from_first(lambda: self._noted))


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [one.detach().clone() for one in tensors]


def _kind(tensor: Tensor) -> torch.dtype:
    """Return in which type a tensor's values are summed: halves in fp32, complex numbers as pairs of real ones."""
    return torch.float64 if tensor.dtype in (torch.float64, torch.complex128) else torch.float32


def _real(tensor: Tensor) -> Tensor:
    """Return a tensor [...] of complex numbers as [..., 2]; others as they are."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _kinds(tensors: Sequence[Tensor]) -> list[torch.dtype]:
    return sorted({_kind(one) for one in tensors}, key=str)


def _packed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return one long tensor for each type that values are summed in; it shares no memory with them."""
    return [
        torch.cat([_real(one.detach()).reshape(-1).to(kind) for one in tensors if _kind(one) == kind])
        for kind in _kinds(tensors)
    ]


def _unpacked(packed: Sequence[Tensor], tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield of long tensors what belongs to each of these, in its shape."""
    left = dict(zip(_kinds(tensors), packed, strict=False))
    for one in tensors:
        kind, real = _kind(one), _real(one.detach())
        found, left[kind] = left[kind][: real.numel()], left[kind][real.numel() :]
        found = found.view(real.shape)
        yield torch.view_as_complex(found.clone()) if one.is_complex() else found


def check_replicas(world: World, model: nn.Module, when: str) -> None:
    """See that all processes have the same model, to the bit; of weights that each holds a part of, nothing is said.

    Raises:
        ModelError: They haven't; in all processes, with the same text.
    """
    if world.ranks == 1:
        return
    all_hashes = world.gather(_hashes(model.state_dict()))
    for rank, hashes in enumerate(all_hashes):
        if differing := [name for name, found in hashes.items() if found != all_hashes[0].get(name)]:
            more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
            raise ModelError(
                f"{when}, {differing[0]}{more} of rank {rank} has other values than that of rank 0; all ranks have to "
                "compute the same: buffers that aren't of floating point may not depend on the samples, what a "
                "penalty or a step changes may not depend on the rank, and all devices have to be of one kind"
            )


def _hashes(state: Mapping[str, Tensor]) -> dict[str, str]:
    def content(tensor: Tensor) -> bytes:
        return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    return {name: sha256(content(tensor)).hexdigest() for name, tensor in state.items() if not is_part(tensor)}
