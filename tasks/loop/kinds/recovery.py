"""Recovery without training: what a narrowed model gets back by looking at inputs alone."""

from __future__ import annotations

from torch import nn

from pruning.gathering.statistics import Statistics
from pruning.recovery.folding import fold
from pruning.recovery.least_squares import MEAN_ALONE
from pruning.recovery.recalibration import recalibrate
from pruning.recovery.reconstruction import reconstruct
from pruning.structure.groups import Groups
from pruning.structure.plan import Plan
from tasks.data import read_split, spread
from tasks.loop.kinds.step import Situation
from tasks.models import chosen_criterion
from tasks.progress import shown


def recover(narrowed: nn.Module, chosen: Plan, groups: Groups, statistics: Statistics, situation: Situation) -> None:
    """Recover a narrowed model in place, by the settings' method.

    Args:
        narrowed: What `chosen` leaves of the model that the groups were found on.
        chosen: Which channels are gone.
        groups: Found on the model before; read for what they join alone.
        statistics: What the criterion looked at; its solution is folded from them.
        situation: Names settings and data.
    """
    settings, training = situation.settings.prune, situation.settings.training
    method, num_samples = settings.recover.method, settings.recover.num_samples
    samples = read_split(situation.workspace, "train")
    if method == "recalibrate":
        recalibrate(narrowed, samples, num_samples=num_samples, batch_size=training.batch_size)
    elif method == "fold":
        fold(narrowed, chosen, groups, statistics, chosen_criterion(settings.criterion))
    elif method in ("absorb_means", "reconstruct"):
        ridge = MEAN_ALONE if method == "absorb_means" else settings.recover.ridge
        inputs = spread(samples, num_samples).inputs
        with shown("reconstruction: layers") as progress:
            reconstruct(narrowed, situation.reference, chosen, groups, inputs, ridge=ridge, progress=progress)
