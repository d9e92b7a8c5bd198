"""Scores of blocks, against what they say by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning.errors import DataError, SettingsError
from pruning.evaluation import evaluate
from pruning.importance.block_scores import Measure, score_blocks
from pruning.plan.blocks import Blocks, find_blocks


class Times(nn.Module):
    """x + linear(x) for a linear layer that multiplies by a matrix; in place where asked, on one side or the other."""

    def __init__(self, matrix: Tensor, how: str = "new") -> None:
        super().__init__()
        self.layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        self.layer.weight.data = matrix
        self.how = how

    def forward(self, x: Tensor) -> Any:
        if self.how == "on the branch":
            branch = self.layer(x)
            branch += x
            return branch
        if self.how == "on the stream":
            x = x * 1
            x += self.layer(x)
            return x
        return x + self.layer(x)


def found(*modules: nn.Module) -> Blocks:
    return find_blocks(nn.Sequential(*modules).eval(), torch.ones(1, 2))


QUARTER = torch.tensor([[0.0, -1.0], [1.0, 0.0]])


@pytest.mark.parametrize("how", ["new", "on the branch", "on the stream"])
def test_influence_is_one_minus_the_cosine_by_hand(how: str) -> None:
    # x + 2x keeps its direction; x + a quarter turn of x is an eighth of a turn away, so 1 - cos 45° = 0.2929.
    blocks = found(Times(2 * torch.eye(2), how), Times(QUARTER, how))
    scores = score_blocks(blocks, torch.tensor([[1.0, 0.0], [3.0, 4.0]]), "block_influence", batch_size=1)
    assert scores == pytest.approx({"0.layer": 0.0, "1.layer": 1 - 0.5**0.5}, abs=1e-6)


def test_output_error_is_that_of_the_outputs_without_each_block() -> None:
    # The model gives 3x by its first block and then turns: without the first 2/3 is missing, without the second
    # |(x + Rx) - x| / |x + Rx| = 1 / sqrt 2.
    blocks = found(Times(2 * torch.eye(2)), Times(QUARTER))
    scores = score_blocks(blocks, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "output_error", batch_size=1)
    assert scores == pytest.approx({"0.layer": 2 / 3, "1.layer": 0.5**0.5}, abs=1e-6)


def test_loss_is_the_difference_of_two_evaluations_and_the_model_stays() -> None:
    blocks = found(Times(2 * torch.eye(2)), Times(QUARTER))
    samples = SimpleNamespace(inputs=torch.tensor([[1.0, 2.0], [3.0, 4.0]]), targets=torch.tensor([0, 1]))
    before = {name: tensor.clone() for name, tensor in blocks.model.state_dict().items()}
    scores = score_blocks(blocks, samples)
    for name in blocks:
        masked = evaluate(blocks.masked([name]), samples).loss
        assert scores[name] == pytest.approx(masked - evaluate(blocks.model, samples).loss, abs=1e-6)
    assert scores["0.layer"] != pytest.approx(scores["1.layer"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in blocks.model.state_dict().items())


def test_faults_are_named() -> None:
    blocks = found(Times(QUARTER))
    unknown: Any = "perplexity"
    measures: tuple[Measure, ...] = ("output_error", "block_influence")
    with pytest.raises(SettingsError, match="perplexity"):
        score_blocks(blocks, torch.ones(2, 2), unknown)
    with pytest.raises(DataError, match="targets"):
        score_blocks(blocks, torch.ones(2, 2))
    for measure in measures:
        with pytest.raises(DataError, match="no samples"):
            score_blocks(blocks, torch.ones(0, 2), measure)
