"""What the activations tell, without the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.graph.groups import Group
from pruning.importance.registry import criterion
from pruning.statistics.collect import Statistics


@criterion("apoz", needs={"activity"})
def apoz(group: Group, statistics: Statistics) -> Tensor:
    """Score channel i by 1 − APoZ, the share of its activations after the ReLU that are not zero.

    Taken over all samples and positions, after every ReLU that acts on the group (in a residual stage one follows each
    sum). No slice is read. The channel with most zeros goes first.

    Source: Hu et al. 2016, arXiv 1607.03250.

    Raises:
        UnscoredGroupError: no ReLU acts on the group; the text names the layer that makes its channels.
    """
    return statistics.of("activity", group)


@criterion("activation_variance", needs={"contribution_variance"})
def activation_variance(group: Group, statistics: Statistics) -> Tensor:
    """Score channel c by Σ over outputs i of Var over samples of ‖X_c * W_{i,c}‖_F ("inbound").

    Taken over the consumers' slices, for what they read; several consumers add up. A channel whose contribution is the
    same for every sample can go into the bias.

    Source: Polyak & Wolf, IEEE Access 2015, "Channel-level acceleration of deep face representations",
    which removes single connections c → i; ours adds up over i, so that the channel goes as a whole.

    Raises:
        UnscoredGroupError: something else than a convolution or linear layer reads the channels; the text names it.
    """
    return statistics.of("contribution_variance", group)


@criterion("entropy", needs={"entropy"})
def entropy(group: Group, statistics: Statistics) -> Tensor:
    """Score channel i by −Σ p log p, p being the distribution over samples of its average over positions.

    Of what the consumers read; several consumers are averaged. No slice is read. Bins are shared by the channels of a
    layer, between 64 and 128 of them over the layer's range (`gathering.activations.Entropies`).

    Source: Luo & Wu 2017, arXiv 1706.05791, which bins each channel over its own range.

    Raises:
        UnscoredGroupError: something else than a convolution or linear layer reads the channels; the text names it.
    """
    return statistics.of("entropy", group)


@criterion("output_inversion", needs={"weights", "inversions"})
def output_inversion(group: Group, statistics: Statistics) -> Tensor:
    """Score channel i by the probability that its output changes sign when the inputs are disturbed, times Σ |w_out|.

    The sign is that of the ReLU's input (of what the consumers read, where no ReLU acts), at any position. The weights
    are the consumers' slices; several consumers add up.

    Source: Zeng et al. 2009 ("sensitivity" of a unit times its outgoing weights), Neural Computing & Applications. The
    paper derives the probability for Gaussian inputs and sigmoid units; ours is measured on the samples, with noise of
    a tenth of the inputs' standard deviation.

    Raises:
        UnscoredGroupError: something else than a layer reads the channels, and no ReLU acts on them.
    """
    outgoing = [
        statistics.rows(piece, group.size).abs().sum(dim=1) for piece in group.slices if piece.role == "consumer"
    ]
    inverted = statistics.of("inversions", group)
    return inverted * torch.stack(outgoing).sum(dim=0) if outgoing else torch.zeros_like(inverted)


@criterion("minitron", needs={"mean_magnitude"})
def minitron(group: Group, statistics: Statistics) -> Tensor:
    """Score channel c by the root of Σ over samples of (mean over positions of |x_c|)².

    Of what the consumers read; several consumers, and several columns of a channel in one (a head's dimensions), add up
    their squares. No slice is read.

    Source: Muralidharan et al. 2024 (Minitron), arXiv 2407.14679: aggregated by the mean over the sequence and the L2
    norm over the batch; a head is scored there by the L2 norm over its dimensions too.

    Raises:
        UnscoredGroupError: something else than a convolution or linear layer reads the channels; the text names it.
    """
    return statistics.of("mean_magnitude", group)
