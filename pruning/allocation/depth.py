"""Depth: what whole blocks are worth, and how many of them go before channels do.

    0 blocks    ──► channels to the target ──► loss
    1 block     ──► channels to the target ──► loss      the least loss wins; the search ends once it rises
    2 blocks    ──► channels to the target ──► loss
    …

A block that goes leaves more of the target to the channels that stay. Which of the two costs less can't be told from
scores, which are of blocks or of channels; so both are tried, and judged by the model that comes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Generic, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from pruning.batches import Batch, Batches, Samples, checked_batches
from pruning.containers import Inputs, as_call, find_tensors
from pruning.errors import DataError, ModelError, OutOfReachError, SettingsError, TargetError, unknown_name
from pruning.evaluation import Loss, cross_entropy, device_of, evaluate, restored_modes
from pruning.graph.dispatch import Listeners, Place, watch
from pruning.graph.rules.call import operator_name, tensors_in
from pruning.plan.blocks import Block, Blocks, find_blocks

Made = TypeVar("Made")
Measure = Literal["loss", "output_error", "block_influence"]


def score_blocks(
    blocks: Blocks,
    samples: Samples | Batches | Inputs,
    measure: Measure = "loss",
    *,
    loss: Loss = cross_entropy,
    batch_size: int = 64,
) -> dict[str, float]:
    """Score each block: the least goes first.

        loss               loss of the model without the block − loss of the model, means over the samples
        output_error       ‖y′ − y‖ / ‖y‖ over all outputs y of the model and y′ of the model without the block
        block_influence    1 − mean over samples of cos(x, x + b), x the stream and b the branch, all values of a sample

    The first two run the model once for each block, the last one runs it once in all. Scores of blocks say nothing of
    blocks that go together: after one has gone, score the rest anew on the model without it.

    Source: Song et al. 2024, SLEB, arXiv 2402.09025, for the loss without a block (there a perplexity); Men et al.
    2024, ShortGPT, arXiv 2403.03853, for block influence (there of whole layers of transformers, and the mean over
    tokens; here a sample's positions are taken together, because which axis holds channels differs between networks).

    Args:
        blocks: Found on the model; it stays as it was.
        samples: With targets for "loss"; inputs alone, [N, ...] or a tuple or dict of such, are enough for the others.
        measure: Which of the three.
        loss: Mean loss of a batch; for "loss".
        batch_size: Samples per forward pass.

    Returns:
        A score for each block, in the order of the blocks.

    Raises:
        DataError: There are no samples, or no targets where a loss is asked for.
        SettingsError: The measure is unknown.
    """
    if measure not in get_args(Measure):
        raise SettingsError(unknown_name("measure of blocks", measure, get_args(Measure)))
    batches = checked_batches(samples)
    if measure == "loss":
        if batches.first(1).targets is None:
            raise DataError(
                "the loss without a block needs samples with inputs and targets; give them, or measure='output_error'"
            )
        return _by_loss(blocks, batches, loss, batch_size)
    ordered = partial(batches.ordered, batch_size)
    return _by_outputs(blocks, ordered) if measure == "output_error" else _by_influence(blocks, ordered)


def _by_loss(blocks: Blocks, samples: Batches, loss: Loss, batch_size: int) -> dict[str, float]:
    def measured(model: nn.Module) -> float:
        return evaluate(model, samples, loss=loss, metric=_no_metric, batch_size=batch_size).loss

    def measured_without(name: str) -> float:
        try:
            return measured(blocks.without([name]))
        except ModelError:  # it has no finite loss: it can't do without this block
            return inf

    whole = measured(blocks.model)
    return {name: measured_without(name) - whole for name in blocks}


def _no_metric(_outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.zeros(len(targets))


@torch.no_grad()
def _by_outputs(blocks: Blocks, ordered: Callable[[], Iterator[Batch]]) -> dict[str, float]:
    def outputs(model: nn.Module) -> Tensor:
        args_of = (as_call(batch.to(device_of(model)).inputs) for batch in ordered())
        with restored_modes(model):
            model.eval()
            given = [find_tensors(model(*args, **kwargs)) for args, kwargs in args_of]
        return torch.cat([t.double().flatten() for tensors in given for t in tensors if t.is_floating_point()])

    whole = outputs(blocks.model)
    size = whole.norm().clamp(min=torch.finfo(torch.float64).tiny)
    return {name: float((outputs(blocks.without([name])) - whole).norm() / size) for name in blocks}


def _by_influence(blocks: Blocks, ordered: Callable[[], Iterator[Batch]]) -> dict[str, float]:
    """Look at the two operands of each addition in one pass on real tensors."""
    places = {name: blocks.addition_of(name) for name in blocks}
    turned, number = dict.fromkeys(places, 0.0), dict.fromkeys(places, 0)
    wanted = {place: name for name, place in places.items()}
    for batch in ordered():
        counted: dict[str, int] = {}

        def on_call(func: Any, args: Any, kwargs: Any, result: Any, place: Place, counted: Any = counted) -> None:
            if operator_name(func) != "add" or not tensors_in(result):
                return
            ordinal = counted.get(place.module, 0)
            counted[place.module] = ordinal + 1
            for stream in (0, 1):
                name = wanted.get((place.module, ordinal, stream))
                if name is not None:
                    operands = tensors_in(args, kwargs)
                    branch = operands[1 - stream]
                    after = tensors_in(result)[0]
                    before = after - branch if after is operands[stream] else operands[stream]  # where it is in place
                    cosine = _cosine(before, after)
                    turned[name] += float((1 - cosine).sum())
                    number[name] += cosine.numel()

        watch(blocks.model, batch.to(device_of(blocks.model)).inputs, Listeners(on_call), "real")
    return {name: turned[name] / max(number[name], 1) for name in places}


def _cosine(before: Tensor, after: Tensor) -> Tensor:
    """Return the cosine of each sample's values, [N]."""
    return nn.functional.cosine_similarity(before.double().flatten(1), after.double().flatten(1), dim=1)


@dataclass(frozen=True)
class Depth(Generic[Made]):
    """What came of a model without some blocks.

    Attributes:
        blocks: Their names, in the order in which they went.
        loss: Of what was made; infinite where the target is out of reach.
        made: What `attempt` returned; None where it didn't.
        fault: Why it didn't.
    """

    blocks: tuple[str, ...]
    loss: float = inf
    made: Made | None = None
    fault: TargetError | None = None

    def __str__(self) -> str:
        gone = f"{len(self.blocks) or 'no'} block{'' if len(self.blocks) == 1 else 's'} gone"
        return f"{gone}, {f'loss {self.loss:.4g}' if self.fault is None else _least(self.fault)}"


def _least(fault: TargetError) -> str:
    return fault.least if isinstance(fault, OutOfReachError) else str(fault)


def saved_macs(blocks: Blocks) -> dict[str, float]:
    """Return the MACs that go with each block."""
    return {name: float(block.macs) for name, block in blocks.items()}


_PATIENCE = 2


def choose_depth(
    model: nn.Module,
    example_inputs: Inputs,
    attempt: Callable[[nn.Module, tuple[str, ...]], tuple[Made, float]],
    score: Callable[[Blocks], Mapping[str, float]],
    *,
    saved: Callable[[Blocks], Mapping[str, float]] = saved_macs,
    may_go: Callable[[Block], bool] = lambda _block: True,
    enough: Callable[[Made], bool] = lambda _made: False,
    watch: Callable[[Depth[Made]], object] = lambda _depth: None,
) -> Depth[Made]:
    """Remove 0, 1, 2, … blocks, reach the target by channels each time, and return the best.

    The next block to go is the one of the least score for each unit of cost that it saves, of the model without those
    before it: scores of blocks that go together don't add up. One without which nothing is lost goes at once, and of
    several such the one that saves most. The search ends after two numbers of blocks that are no better than the best.

    Source: one by one, each time scored anew: Song et al. 2024, SLEB, arXiv 2402.09025. Blocks and widths weighed
    against each other by the loss of the result is ours.

    Args:
        model: Any module; it is left as it was.
        example_inputs: As for `find_groups`.
        attempt: (model without some blocks, their names) -> what channels have to go from it (a plan, a narrowed
            model), and the loss of the result, without training. It raises `TargetError` where the target is out of
            reach.
        score: Of each block of a model, such as `score_blocks` with samples.
        saved: What goes with each block of a model, in whatever unit the target has; by default MACs.
        may_go: Says which blocks may go at all.
        enough: Says that what was made meets the target by blocks alone: no more of them go then.
        watch: Told of each number of blocks.

    Raises:
        OutOfReachError: The target is out of reach with any number of blocks; the text says how far it is without.
        ModelError: The model can't be run on these inputs.
    """
    gone: tuple[str, ...] = ()
    shallow, tried = model, list[Depth[Made]]()
    while True:
        tried.append(_try(attempt, shallow, gone))
        watch(tried[-1])
        best = min(tried, key=lambda one: one.loss)
        if best.made is not None and len(tried) - 1 - tried.index(best) >= _PATIENCE:
            return best
        if tried[-1].made is not None and enough(tried[-1].made):
            return best
        blocks = find_blocks(shallow, example_inputs)
        offered = [name for name, block in blocks.items() if may_go(block)]
        if not offered:
            break
        cheapest = _cheapest(offered, score(blocks), saved(blocks))
        shallow, gone = blocks.without([cheapest]), (*gone, cheapest)
    if best.made is not None:
        return best
    first, last = tried[0].fault, tried[-1].fault
    assert first, "nothing was made of any, so that each has its fault"
    assert last, "likewise"
    reasons = "; ".join(dict.fromkeys(blocks.refused.values())) or "none is found that may"
    further = f"Removing blocks was not enough: {tried[-1]}" if gone else f"No block can go: {reasons}"
    raise OutOfReachError(f"{first}. {further}", _least(last)) from last


def _try(
    attempt: Callable[[nn.Module, tuple[str, ...]], tuple[Made, float]], shallow: nn.Module, gone: tuple[str, ...]
) -> Depth[Made]:
    try:
        made, loss = attempt(shallow, gone)
    except TargetError as fault:
        return Depth(gone, fault=fault)
    return Depth(gone, loss, made)


def _cheapest(offered: Sequence[str], scores: Mapping[str, float], saved: Mapping[str, float]) -> str:
    def price(name: str) -> tuple[float, float]:
        return max(scores[name], 0.0) / max(saved[name], 1e-12), -saved[name]

    return min(offered, key=price)
