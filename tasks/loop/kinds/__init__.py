"""The kinds of pruning: how each takes a step towards a goal, and what it asks of the training that follows.

What goes: whole channels (structured), single weights (unstructured), all but N of every M weights (n_m), or for each
input other channels, which gates choose (dynamic).
"""

from __future__ import annotations

from collections.abc import Callable

from tasks.loop.kinds.dynamic import gate_channels
from tasks.loop.kinds.step import Situation, Step
from tasks.loop.kinds.structured import narrow_channels
from tasks.loop.kinds.weights import zero_all_but_n_of_m, zero_share
from tasks.params.prune_parts import Kind

__all__ = ["Situation", "Step", "take_step"]

_KINDS: dict[Kind, Callable[[Situation], Step]] = {
    "structured": narrow_channels,
    "unstructured": zero_share,
    "n_m": zero_all_but_n_of_m,
    "dynamic": gate_channels,
}


def take_step(situation: Situation) -> Step:
    """Take a step of the kind that the settings name.

    Raises:
        TargetError: The goal can't be met.
    """
    return _KINDS[situation.settings.prune.kind](situation)
