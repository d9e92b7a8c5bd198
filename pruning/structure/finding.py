"""Find the groups of channels of any model that can be pruned: trace it, then rehearse that its code goes along."""

from __future__ import annotations

from torch import nn

from pruning.structure.groups import Groups
from pruning.structure.rehearsal import confirm
from pruning.tracing.trace import trace
from pruning.tracing.unwrapping import unwrap
from pruning.tracing.watch import Inputs


def find_groups(
    model: nn.Module, example_inputs: Inputs, *, allow_mixed: bool = False, ignore_unused: bool = False
) -> Groups:
    """Find all groups of channels that can be pruned.

    Args:
        model: Any module; it is left as it was. Wrappers that training puts around one (`nn.DataParallel`,
            `torch.compile`) are looked through: the groups are those of the module inside.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments. MACs are those of one pass of
            them, so a batch of 1 gives MACs per sample. Where inputs decide which path is taken, a list of such
            examples: all of them are traced, and MACs are those of the first. (A model whose one argument is a list is
            given a tuple with the list inside.)
        allow_mixed: Offer groups, too, over which a norm, a softmax or a mean computes a statistic (the residual stream
            of a transformer, for instance). What remains then computes another statistic: the narrowed model is not
            the masked one, `narrow` warns by how much, and only fine-tuning mends it.
        ignore_unused: Take parameters that no example uses to be of no use at all. Otherwise channels that could reach
            them stay whole, because another input may lead there.

    Returns:
        The groups; `print(groups)` lists them, `groups.report()` says what stays whole and why.

    Raises:
        ModelError: The model can't be run on these inputs, or carries what has to be removed first.
    """
    model = unwrap(model)
    traced = trace(model, example_inputs)
    traced.allow_mixed, traced.ignore_unused = allow_mixed, ignore_unused
    return confirm(Groups(model, traced.example, traced))
