"""What whole blocks are worth: what the model loses without each, or how far each turns what it is added to."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pruning.containers import Inputs, as_call, count_samples, find_tensors, in_batches, take
from pruning.errors import DataError, SettingsError, unknown_name
from pruning.evaluation import Loss, Samples, cross_entropy, device_of, evaluate, restored_modes
from pruning.graph.dispatch import Listeners, Place, watch
from pruning.graph.rules.call import operator_name, tensors_in
from pruning.plan.blocks import Blocks

Measure = Literal["loss", "output_error", "block_influence"]


def score_blocks(
    blocks: Blocks,
    samples: Samples | Inputs,
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
    if measure == "loss":
        if not hasattr(samples, "targets"):
            raise DataError(
                "the loss without a block needs samples with inputs and targets; give them, or measure='output_error'"
            )
        return _by_loss(blocks, samples, loss, batch_size)  # type: ignore[arg-type]  # it has targets
    inputs: Any = getattr(samples, "inputs", samples)
    if count_samples(inputs) == 0:
        raise DataError("no samples; at least one is needed")
    batches = in_batches(inputs, batch_size)
    return _by_outputs(blocks, batches) if measure == "output_error" else _by_influence(blocks, batches)


def _by_loss(blocks: Blocks, samples: Samples, loss: Loss, batch_size: int) -> dict[str, float]:
    def measured(model: nn.Module) -> float:
        return evaluate(model, samples, loss=loss, metric=_no_metric, batch_size=batch_size).loss

    whole = measured(blocks.model)
    return {name: measured(blocks.without([name])) - whole for name in blocks}


def _no_metric(_outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.zeros(len(targets))


@torch.no_grad()
def _by_outputs(blocks: Blocks, batches: list[Any]) -> dict[str, float]:
    def outputs(model: nn.Module) -> Tensor:
        args_of = [as_call(take(batch, slice(None), device_of(model))) for batch in batches]
        with restored_modes(model):
            model.eval()
            given = [find_tensors(model(*args, **kwargs)) for args, kwargs in args_of]
        return torch.cat([t.double().flatten() for tensors in given for t in tensors if t.is_floating_point()])

    whole = outputs(blocks.model)
    size = whole.norm().clamp(min=torch.finfo(torch.float64).tiny)
    return {name: float((outputs(blocks.without([name])) - whole).norm() / size) for name in blocks}


def _by_influence(blocks: Blocks, batches: list[Any]) -> dict[str, float]:
    """Look at the two operands of each addition in one pass on real tensors."""
    places = {name: blocks.addition_of(name) for name in blocks}
    turned, number = dict.fromkeys(places, 0.0), dict.fromkeys(places, 0)
    wanted = {place: name for name, place in places.items()}
    for batch in batches:
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

        watch(blocks.model, take(batch, slice(None), device_of(blocks.model)), Listeners(on_call), "real")
    return {name: turned[name] / max(number[name], 1) for name in places}


def _cosine(before: Tensor, after: Tensor) -> Tensor:
    """Return the cosine of each sample's values, [N]."""
    return nn.functional.cosine_similarity(before.double().flatten(1), after.double().flatten(1), dim=1)
