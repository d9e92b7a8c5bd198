"""Word accuracy and faults per character of the test words, clean and degraded: `python score.py`, after a run."""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime as ort
import torch
from ctc import WordAccuracy
from words import NUM_WORDS, load

BATCH = 50


def read(file: Path, inputs: torch.Tensor) -> torch.Tensor:
    """Return the best character of each column, [N, columns], by ONNX Runtime on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(file, options)
    name = session.get_inputs()[0].name
    scores = [torch.from_numpy(session.run(None, {name: part.numpy()})[0]) for part in inputs.split(BATCH)]
    return torch.cat(scores).argmax(2)


def main(workspace: str = "artifacts") -> None:
    """Print a table of the baseline and the pruned model, as their ONNX files read."""
    test, half = load().test, NUM_WORDS["test"] // 2
    print(f"{'':10} {'clean':>23} {'degraded':>23}")
    for what, name in (("baseline", "baseline.onnx"), ("pruned", "model.onnx")):
        columns, row = read(Path(workspace, "onnx", name), test.inputs), f"{what:10}"
        for part in (slice(half), slice(half, None)):
            score = WordAccuracy()
            score.update(columns[part], test.targets[part])
            row += f" {score.compute():10.2%} {score.character_error_rate:8.2%} CER"
        print(row)


if __name__ == "__main__":
    main(*sys.argv[1:2])
