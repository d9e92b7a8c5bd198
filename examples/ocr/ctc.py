"""Reading by CTC: scores of columns become texts, and texts are compared.

Source: Graves et al. 2006, "Connectionist temporal classification".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from crnn import CHARACTERS
from torch import Tensor
from torch.nn import functional

from secateur import Task

BLANK = 0
NOTHING = -100
"""What fills the targets of texts that are shorter than the longest."""


def encode(texts: Sequence[str], length: int) -> Tensor:
    """Return texts as targets, int64 [N, length].

    Raises:
        ValueError: A text is longer, or has a character that the network doesn't know.
    """
    found = torch.full((len(texts), length), NOTHING)
    for row, text in enumerate(texts):
        if len(text) > length or not set(text) <= set(CHARACTERS):
            raise ValueError(f"the text {text!r} has to be at most {length} long, of the characters {CHARACTERS}")
        found[row, : len(text)] = torch.tensor([1 + CHARACTERS.index(one) for one in text])
    return found


def decode(columns: Tensor) -> list[str]:
    """Return the texts that the best character of each column spells, [N, columns]: repeats count once, blanks not."""
    texts = []
    for row in columns.tolist():
        before = [BLANK, *row]
        spelt = [one for one, last in zip(row, before, strict=False) if one not in (last, BLANK, NOTHING)]
        texts.append("".join(CHARACTERS[one - 1] for one in spelt))
    return texts


def words_of(targets: Tensor) -> list[str]:
    """Return the texts that targets stand for: `encode` undone."""
    return ["".join(CHARACTERS[one - 1] for one in row if one != NOTHING) for row in targets.tolist()]


def edits(read: str, written: str) -> int:
    """Return how many characters have to be put in, taken out or replaced (Levenshtein 1966)."""
    row = list(range(len(written) + 1))
    for i, one in enumerate(read, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(written, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return row[-1]


class WordAccuracy:
    """The share of words that are read without a fault, and the faults per character.

    Attributes:
        values: Of each word, whether it was read without a fault.
    """

    name = "word accuracy"
    higher_is_better = is_share = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all words."""
        self.edits, self.characters = list[int](), list[int]()

    def update(self, predictions: Any, targets: Any) -> None:
        """Add a batch: the best character of each column, [N, columns], and targets, [N, length]."""
        for read, written in zip(decode(predictions), words_of(targets), strict=True):
            self.edits.append(edits(read, written))
            self.characters.append(len(written))

    def compute(self) -> float:
        """Return the share."""
        return float(self.values.mean()) if self.edits else 0.0

    @property
    def values(self) -> Tensor:
        """Of each word, [N] float64."""
        return (torch.tensor(self.edits) == 0).to(torch.float64)

    @property
    def character_error_rate(self) -> float:
        """The faults of all words over their characters."""
        return sum(self.edits) / max(1, sum(self.characters))


class Reading(Task):
    """Scores [N, columns, characters], texts as targets [N, length]."""

    targets = "the characters of each text, [N, length] of int64"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return CTC's loss, the mean over the texts of what a character costs."""
        lengths = (targets != NOTHING).sum(1)
        columns = torch.full_like(lengths, outputs.shape[1])
        scores = outputs.log_softmax(2).transpose(0, 1)
        return functional.ctc_loss(scores, targets.clamp(min=0), columns, lengths, BLANK, zero_infinity=True)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the best character of each column, [N, columns]."""
        return outputs.argmax(2)

    def metric(self) -> WordAccuracy:
        """Return the share of words that are read without a fault."""
        return WordAccuracy()

    def distillation(self, outputs: Tensor, teacher_outputs: Tensor, temperature: float) -> Tensor:
        """Return T² · KL(teacher ‖ student), the mean over all columns."""
        student, teacher = (one.flatten(0, 1) / temperature for one in (outputs, teacher_outputs))
        found = functional.kl_div(
            student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True
        )
        return temperature**2 * found
