"""What criteria look at: weights, and what one pass over the data tells of every group at once."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from pruning.batches import Batches, Samples, checked_batches
from pruning.containers import Inputs, with_tensors
from pruning.errors import CriterionError, UnscoredGroupError, unknown_name
from pruning.evaluation import Loss, Progress, cross_entropy, device_of, mean_loss
from pruning.graph.dispatch import state_copied_once, state_of
from pruning.graph.groups import Group, Groups, Slice
from pruning.graph.layers import rows_of
from pruning.statistics.activations import ActivationGatherer
from pruning.statistics.collector import Batch, Collector, Uncounted
from pruning.statistics.contributions import ContributionGatherer
from pruning.statistics.disturbed_inputs import InversionGatherer, KnockoffGatherer
from pruning.statistics.gradients import CurvatureGatherer, GradientGatherer
from pruning.statistics.layer_hooks import Layer
from pruning.statistics.moments import MomentGatherer, Moments, RowMoments
from pruning.world import ALONE, Tree, World, joined, seed_of, shares

Result = TypeVar("Result")

_WITH_LOSS = (*GradientGatherer.NEEDS, *CurvatureGatherer.NEEDS, *KnockoffGatherer.NEEDS)
_WITHOUT_LOSS = (*ActivationGatherer.NEEDS, *InversionGatherer.NEEDS, *MomentGatherer.NEEDS)

NEEDS = ("weights", *_WITH_LOSS, *_WITHOUT_LOSS)
"""What a criterion may ask for. "weights" needs no samples; each gatherer says what its needs are."""


@dataclass(frozen=True)
class Statistics:
    """What is known of a model's groups.

    Attributes:
        tensors: parameters and buffers by name, detached.
        seed: of the criteria that draw random numbers.
        gathered: need -> group name -> [size] values, or the reason why the group has none.
        layers: where "moments" were asked for: the layers that consume groups, by their weights.
        moments: likewise, of these layers' unfolded inputs.
        contributions: likewise, of the groups that something else than a layer reads: G [size, size] of
            `pruning.statistics.contributions`, or why it can't be told. None where moments weren't asked for.
        gains: likewise, of the groups that layers and other things read: what the errors of each reader, a layer by its
            weights, are weighed by (`pruning.statistics.contributions`).
        worked_out: what `once` keeps.
    """

    tensors: Mapping[str, Tensor]
    seed: int = 0
    gathered: Mapping[str, Mapping[str, Tensor | Uncounted]] = field(default_factory=dict)
    layers: Mapping[str, Layer] = field(default_factory=dict)
    moments: Mapping[str, Moments | RowMoments] = field(default_factory=dict)
    contributions: Mapping[str, Tensor | Uncounted] | None = None
    gains: Mapping[str, Mapping[int | str, float]] = field(default_factory=dict)
    worked_out: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    def once(self, what: Hashable, work: Callable[[], Result]) -> Result:
        """Return what was worked out from these statistics, or work it out: for criteria that are asked twice.

        Args:
            what: Its name, which nothing else has.
            work: Gives it.
        """
        if what not in self.worked_out:
            self.worked_out[what] = work()
        found: Result = self.worked_out[what]
        return found

    def of(self, need: str, group: Group) -> Tensor:
        """Return what was gathered of a group, [size] float64 on the CPU.

        Raises:
            CriterionError: it was not asked for.
            UnscoredGroupError: the group has none; the text says why.
        """
        found = self.gathered.get(need, {}).get(group.name)
        if found is None:
            raise CriterionError(
                f"no {need.replace('_', ' ')} of group {group.name!r}; "
                f"gather the statistics with needs={{{need!r}}} on the same groups"
            )
        if isinstance(found, Uncounted):
            raise UnscoredGroupError(group.name, found.kind, found.where)
        return found

    def rows(self, piece: Slice, size: int) -> Tensor:
        """Return a slice's values by channel, [size, values per channel], float64 on the CPU; two for a complex one."""
        rows = rows_of(self.tensors[piece.parameter], piece, size)
        if rows.is_complex():
            rows = torch.view_as_real(rows.to(torch.complex128)).flatten(1)
        return rows.to("cpu", torch.float64)

    def generator(self, group: Group) -> torch.Generator:
        """Return a generator of the group's own, the same whatever order groups are scored in."""
        return generator_of(self.seed, group.name)


def generator_of(seed: int, name: str) -> torch.Generator:
    """Return a generator of a group's or layer's own, the same whatever others there are."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def collect(
    groups: Groups,
    needs: Collection[str],
    samples: Samples | Batches | Inputs | None = None,
    loss: Loss = cross_entropy,
    *,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
    world: World = ALONE,
) -> Statistics:
    """Gather all that the criteria need in one pass over the samples.

    "weights" needs no samples. Every other need adds up over minibatches, in evaluation mode; what is kept does not
    grow with the samples. The model and the global random state are untouched.

    Args:
        groups: found on the model to be scored.
        needs: any of `NEEDS`.
        samples: shuffled into minibatches by the seed; inputs alone where no need looks at the loss (a tensor, or a
            tuple or dict of several as the model is given, [N, ...] each); None where only weights are needed.
        loss: of a batch: the mean, or (sum, count).
        batch_size: samples per minibatch.
        seed: of the minibatches, and of whatever draws random numbers.
        progress: told after each minibatch.
        world: the processes that all call this with the same; each gathers on the minibatches of its own shards, and
            the first one returns what all have found. Knockoffs, which are learned from minibatch to minibatch, are
            gathered by the first one.

    Raises:
        CriterionError: a need is unknown, or samples or their targets are needed and there are none.
        DataError: there are no samples, several inputs hold different numbers of them, or one can't be read.
    """
    for need in needs:
        if need not in NEEDS:
            raise CriterionError(unknown_name("statistic", need, NEEDS))
    tensors = {name: tensor.detach() for name, tensor in state_of(groups.model).items()}
    asked = [need for need in NEEDS if need in needs and need != "weights"]
    if not asked:
        return Statistics(tensors, seed)
    if samples is None:
        what = "samples (and the loss)" if set(asked) & set(_WITH_LOSS) else "samples (inputs alone will do)"
        raise CriterionError(f"the criterion needs {', '.join(asked)}: pass {what} to gather them on")
    with state_copied_once():
        gatherers = _gatherers(groups, asked, partial(mean_loss, loss))
        _pass_over(groups, samples, gatherers, batch_size, seed, progress, world)
    gathered = {need: found for gatherer in gatherers for need, found in gatherer.compute().items()}
    layers = next((one for one in gatherers if isinstance(one, MomentGatherer)), None)
    others = next((one for one in gatherers if isinstance(one, ContributionGatherer)), None)
    if layers is None or others is None:
        return Statistics(tensors, seed, gathered)
    return Statistics(tensors, seed, gathered, layers.layers, layers.moments, others.contributions, others.gains)


def _gatherers(groups: Groups, asked: Collection[str], loss: Loss) -> list[Collector]:
    made: list[tuple[type[Collector], tuple[Any, ...]]] = [
        (GradientGatherer, (groups, asked, loss)),
        (CurvatureGatherer, (groups, asked, loss)),
        (KnockoffGatherer, (groups, loss)),
        (ActivationGatherer, (groups, asked)),
        (InversionGatherer, (groups,)),
        (MomentGatherer, (groups,)),
        (ContributionGatherer, (groups,)),
    ]
    return [gatherer(*given) for gatherer, given in made if set(gatherer.NEEDS) & set(asked)]


def _pass_over(
    groups: Groups,
    samples: Samples | Batches | Inputs,
    gatherers: list[Collector],
    batch_size: int,
    seed: int,
    progress: Progress | None,
    world: World,
) -> None:
    read, device = checked_batches(samples), device_of(groups.model)
    generator = torch.Generator().manual_seed(seed)
    batches = torch.split(torch.randperm(len(read), generator=generator), batch_size)
    all_shares = shares(len(batches), world.shards)
    # of its own, so that none depends on which others there are
    drawn = {gatherer: torch.Generator().manual_seed(seed) for gatherer in gatherers}
    adding = [gatherer for gatherer in gatherers if not gatherer.in_order]
    nothing, sums = copy.deepcopy([gatherer.sums() for gatherer in adding]), Tree[list[Any]](joined)
    done, total = 0, len(batches) if adding != gatherers else sum(len(all_shares[shard]) for shard in world.here)
    for shard, numbers in enumerate(all_shares):
        is_own = shard in world.here
        active = [one for one in gatherers if (world.is_first if one.in_order else is_own)]
        if is_own and shard:
            for gatherer, none in zip(adding, copy.deepcopy(nothing), strict=True):
                gatherer.go_on_from(none)
                drawn[gatherer].manual_seed(seed_of(seed, shard))
        seen = numbers if active else range(0)
        for number, batch in zip(seen, read.read(batches[seen.start : seen.stop]), strict=True):
            inputs, targets, _ = batch.to(device)
            for gatherer in active:
                own = with_tensors(inputs, Tensor.clone)
                gatherer.update(Batch(own, targets, drawn[gatherer], number, shard))
            done += 1
            if progress is not None:
                progress(done, total)
        if is_own:
            sums.add([gatherer.sums() for gatherer in adding])
    for gatherer, found in zip(adding, world.join_in_first(sums.result(), joined), strict=True):
        gatherer.go_on_from(found)
