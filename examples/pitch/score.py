"""Raw pitch accuracy on the test tones of full, what a run made of it, and tiny: `python score.py`, after a run."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from crepe import make
from tones import RawPitchAccuracy, cents, load
from torch import Tensor, nn

from secateur import count_macs, find_groups, load_checkpoint, load_weights

BATCH = 50


@torch.no_grad()
def score(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Return the share of tones that a model tells to within half a semitone."""
    metric = RawPitchAccuracy()
    for frames, pitches in zip(inputs.split(BATCH), targets.split(BATCH), strict=True):
        metric.update(cents(model(frames)), pitches)
    return metric.compute()


def main(workspace: str = "artifacts") -> None:
    """Print a table of the three."""
    test = load().test
    example = test.inputs[:1]
    models = {"full": make("full"), "pruned": None, "tiny": make("tiny")}
    for name in ("full", "tiny"):
        load_weights(models[name], f"{name}.pth")
    models["pruned"] = load_checkpoint(Path(workspace, "dense"), make, example)[0]
    for name, model in models.items():
        macs, right = count_macs(find_groups(model.eval(), example)), score(model, test.inputs, test.targets)
        print(f"{name:8} {macs / 1e6:8.1f} million MACs {right:8.1%} of {len(test)} tones right")


if __name__ == "__main__":
    main(*sys.argv[1:2])
