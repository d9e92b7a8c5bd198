r"""The processes that work on one model together: who they are, how they sum, take turns, and see that they agree.

    shards   0   1   2   3      into which a batch is divided, in their order: they shape the result
              \ /     \ /
              0+1     2+3       a fixed binary tree, whichever process holds a shard
                 \   /
                0+1+2+3

Floating-point addition is commutative but not associative, so that a sum has the same bits for 1, 2 or 4 processes only
if its tree is the same for all of them. A process holds neighbouring shards and sums its own subtree; the rest of the
tree is summed across processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from pruning.errors import LaunchError, SettingsError

T = TypeVar("T")
S = TypeVar("S")
B = TypeVar("B")

Parallel = Literal["ddp", "fsdp"]
"""Whether each process holds the whole model, or a part of every weight."""


class World:
    """One of the processes that work together, called ranks; by default the only one.

    Attributes:
        shards: Into how many parts each batch is divided.
        rank: Number of this process.
        ranks: Number of processes; more than one need torch's default process group, see `pruning.training.launch`.
        device: Of the trained model: "cpu" or "cuda".
        in_parts: Whether each process holds a part of the model's weights while it trains, see `pruning.training.fsdp`.
    """

    def __init__(
        self, shards: int = 1, rank: int = 0, ranks: int = 1, *, parallel: Parallel = "ddp", device: str = "cpu"
    ) -> None:
        """Take what shapes them; `fsdp` of a single process is training as it is.

        Raises:
            SettingsError: They don't go together.
        """
        check_shards(shards, ranks)
        self.shards, self.rank, self.ranks, self.device = shards, rank, ranks, device
        self.in_parts = parallel == "fsdp" and ranks > 1

    @property
    def here(self) -> range:
        """The shards of this process."""
        if self.in_parts:
            return range(self.rank, self.shards, self.ranks)
        each = self.shards // self.ranks
        return range(self.rank * each, (self.rank + 1) * each)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes, logs and reports."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum the processes' tensors [n] in place, by the tree; all end with the same bits.

        By recursive halving and doubling: for R ranks, 2 (1 − 1/R) n values are sent by each, in 2 log₂ R messages.
        Source: Thakur, Rabenseifner & Gropp 2005, "Optimization of Collective Communication Operations in MPICH"; ours
        begins with the nearest rank, which is what makes it a tree over neighbours.
        """
        distances = [1 << level for level in range(self.ranks.bit_length() - 1)]
        ranges = [(0, len(tensor))]
        for distance in distances:
            low, high = ranges[-1]
            middle = (low + high) // 2
            halves = (low, middle), (middle, high)
            kept, given = halves if not self.rank & distance else halves[::-1]
            received = torch.empty_like(tensor[slice(*kept)])
            self._swap(tensor[slice(*given)], received, self.rank ^ distance)
            tensor[slice(*kept)].add_(received)
            ranges.append(kept)
        for distance in reversed(distances):
            (low, high), (kept_low, kept_high) = ranges[-2], ranges.pop()
            other = slice(low, kept_low) if kept_low > low else slice(kept_high, high)
            self._swap(tensor[kept_low:kept_high], tensor[other], self.rank ^ distance)
        return tensor

    def _swap(self, given: Tensor, received: Tensor, partner: int) -> None:
        """Send a tensor to another rank while receiving one from it; empty ones aren't sent."""
        from torch import distributed

        pairs = [(distributed.isend, given), (distributed.irecv, received)]
        calls = [distributed.P2POp(call, one, partner) for call, one in pairs if len(one)]
        for work in distributed.batch_isend_irecv(calls) if calls else ():
            work.wait()

    def join(self, tensor: Tensor) -> Tensor:
        """Return the tensors [n] on the CPU of all processes, [ranks, n], in the order of their ranks."""
        if self.ranks == 1:
            return tensor[None]
        from torch import distributed

        found = [torch.empty_like(tensor) for _ in range(self.ranks)]
        distributed.all_gather(found, tensor)
        return torch.stack(found)

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of their ranks; tensors in them have to be on the CPU."""
        if self.ranks == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.ranks
        distributed.all_gather_object(found, value)
        return found

    def join_in_first(self, value: T, join: Callable[[T, T], T]) -> T:
        """Join what all processes have, by the tree, in the first one; the others are left with a part of it.

        Args:
            value: Of any type that can be pickled; tensors in it have to be on the CPU.
            join: (of earlier shards, of later ones) -> of both.
        """
        from torch import distributed

        for distance in (1 << level for level in range(self.ranks.bit_length() - 1)):
            if self.rank & distance:
                distributed.send_object_list([value], self.rank - distance)
                break
            found: list[Any] = [None]
            distributed.recv_object_list(found, self.rank + distance)
            value = join(value, found[0])
        return value

    def take_turns(
        self, batches: Sequence[S], read: Callable[[Sequence[S]], Iterable[B]], look: Callable[[int, B], T]
    ) -> Iterator[T]:
        """Yield what is found of each batch, in their order, in all processes, each of which looks at some.

        Who has none left in the last turn looks at the last one again: processes may have to gather weights together.

        Args:
            batches: Which samples are in each.
            read: Gives some of them.
            look: (number of the batch, what was read) -> what all get; with several processes, tensors on the CPU.
        """
        if self.ranks == 1:
            yield from (look(number, batch) for number, batch in enumerate(read(batches)))
            return
        mine = range(self.rank, self.rank + len(batches), self.ranks)
        for number, batch in zip(mine, read([batches[min(one, len(batches) - 1)] for one in mine]), strict=True):
            found = look(number, batch)
            yield from (one for some in self.gather([found] if number < len(batches) else []) for one in some)

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what the first process makes; the others wait for it."""
        if self.ranks == 1:
            return make()
        from torch import distributed

        found: list[Any] = [make() if self.is_first else None]
        distributed.broadcast_object_list(found, src=0)
        made: T = found[0]
        return made

    def agree(self, facts: Mapping[str, str], mend: str) -> None:
        """See that something is the same in all processes, such as versions and hashes.

        Args:
            facts: By name.
            mend: What to do where they differ.

        Raises:
            LaunchError: It isn't; in all processes, with the same text.
        """
        all_facts = self.gather(dict(facts))
        for name, value in all_facts[0].items():
            for rank, others in enumerate(all_facts):
                if others.get(name) != value:
                    raise LaunchError(f"rank {rank} has {name} {others.get(name)}, rank 0 has {value}; {mend}")


class Tree(Generic[T]):
    """Joins what the shards of one process give, in the order of the tree, holding log₂ of their number."""

    def __init__(self, join: Callable[[T, T], T]) -> None:
        """Take (of earlier shards, of later ones) -> of both, which may change both."""
        self._join = join
        self._held: list[tuple[int, T]] = []

    def add(self, value: T) -> None:
        """Take the next shard's."""
        height = 0
        while self._held and self._held[-1][0] == height:
            _, before = self._held.pop()
            value, height = self._join(before, value), height + 1
        self._held.append((height, value))

    def result(self) -> T:
        """Return what joins all shards taken, whose number is a power of two."""
        ((_, value),) = self._held
        return value


class TreeSum(Tree[list[Tensor]]):
    """Sums tensors so, in place."""

    def __init__(self) -> None:
        super().__init__(_add)


def _add(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    for one, other in zip(left, right, strict=True):
        one.add_(other)
    return left


def joined(left: Any, right: Any) -> Any:
    """Join what was added up over some samples and over later ones: a `join` for anything made of sums.

    Tensors and numbers are added, sets united, dictionaries, lists and tuples joined part by part, objects by their own
    `joined`; of all else, such as the reason why something couldn't be added up, the first that is not None stays.
    """
    if hasattr(left, "joined"):
        return left if right is None else left.joined(right)
    if isinstance(left, Mapping):
        return {
            key: joined(left[key], right[key]) if key in left and key in right else left.get(key, right.get(key))
            for key in (*left, *(key for key in right if key not in left))
        }
    if isinstance(left, set):
        return left | right
    if isinstance(left, list | tuple):
        return type(left)(joined(*pair) for pair in zip(left, right, strict=True))
    if isinstance(left, Tensor | int | float):
        return left + right
    return right if left is None else left


def sum_neighbours(terms: Tensor) -> Tensor:
    """Sum [n, …] over its first axis by the tree; n is a power of two."""
    while len(terms) > 1:
        terms = terms[::2] + terms[1::2]
    return terms[0]


def check_shards(shards: int, ranks: int) -> None:
    """See that shards can be shared out among ranks.

    Raises:
        SettingsError: They can't.
    """
    for name, number in (("shards", shards), ("ranks", ranks)):
        if number < 1 or number & (number - 1):
            raise SettingsError(
                f"{name} is {number}; expected a power of two (1, 2, 4, …): gradients are summed in a binary tree over "
                "the shards, of which each rank holds a whole branch"
            )
    if ranks > shards:
        raise SettingsError(
            f"{ranks} ranks for {shards} shard{'s' if shards > 1 else ''}: each rank needs one at least; set shards to "
            f"{ranks}, which gives other bytes than {shards}, or ranks to {shards} at most"
        )


def split(batch: Tensor, shards: int) -> list[Tensor]:
    """Divide the numbers of a batch's samples into adjacent shards, none of a single sample unless it is the only one.

    Sizes differ by one at most. A batch of fewer than two samples for each shard fills the first ones; the rest are
    empty.

    Args:
        batch: [N].
        shards: How many: a power of two.
    """
    filled = shards
    while filled > 1 and len(batch) < 2 * filled:
        filled //= 2
    return [*torch.tensor_split(batch, filled), *[batch[:0]] * (shards - filled)]


def seed_of(*key: int | str) -> int:
    """Return the seed of the random numbers that belong to a key, such as a shard's."""
    return int.from_bytes(sha256(" ".join(map(str, key)).encode()).digest()[:8], "big")


def shares(number: int, shards: int) -> list[range]:
    """Divide numbers 0 … number − 1 into adjacent shares, one for each shard; sizes differ by one at most."""
    bounds = [number * shard // shards for shard in range(shards + 1)]
    return [range(*pair) for pair in pairwise(bounds)]


def like(own: Tensor, tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor that stands for another one, if that is in parts; else the tensor."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(own, DTensor) or isinstance(tensor, DTensor) or tensor.shape != own.shape:
        return tensor
    given = tensor.detach().to(own.device)
    return distribute_tensor(given, own.device_mesh, own.placements, src_data_rank=None)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole; of one in parts all ranks have to ask."""
    found: Tensor = tensor.full_tensor() if is_part(tensor) else tensor  # type: ignore[attr-defined]
    return found


def is_part(tensor: Tensor) -> bool:
    """Say whether this rank holds a part of a tensor alone."""
    return hasattr(tensor, "full_tensor")


def own_part(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor, in the same memory."""
    found: Tensor = tensor.to_local() if is_part(tensor) else tensor  # type: ignore[attr-defined]
    return found


ALONE = World()
"""A process by itself."""
