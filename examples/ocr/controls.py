"""The same without the pipeline, by other criteria: `python controls.py [CRITERION ...]`, on the test words."""

from __future__ import annotations

import sys

import torch
from crnn import make
from ctc import WordAccuracy
from torch import Tensor, nn
from words import NUM_WORDS, load

from secateur import calibrate, find_groups, load_weights

BATCH = 50
NUM_SAMPLES = 256
CRITERIA = ("structured_obs", "l2_norm", "random")


@torch.no_grad()
def score(model: nn.Module, inputs: Tensor, targets: Tensor) -> str:
    """Return word accuracy and faults per character, clean and degraded."""
    columns, half = torch.cat([model(part).argmax(2) for part in inputs.split(BATCH)]), NUM_WORDS["test"] // 2
    found = ""
    for part in (slice(half), slice(half, None)):
        metric = WordAccuracy()
        metric.update(columns[part], targets[part])
        found += f" {metric.compute():10.2%} {metric.character_error_rate:8.2%} CER"
    return found


def main(criteria: tuple[str, ...]) -> None:
    """Print a row for each criterion."""
    data, model = load(), make().eval()
    load_weights(model, "english_g2.pth")
    inputs = data.train.inputs[:: len(data.train) // NUM_SAMPLES]
    groups = find_groups(model, inputs[:1])
    for criterion in criteria:
        found = calibrate(groups, inputs, criterion, mac_reduction=0.5, scope="global", round_to=8)
        print(f"{criterion:16}{score(found.model, data.test.inputs, data.test.targets)}", flush=True)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or CRITERIA)
