from __future__ import annotations

import pytest
import torch

from pruning.errors import ModelError
from pruning.evaluation import distillation_loss


def test_loss_of_a_case_worked_by_hand() -> None:
    # teacher (ln 3, 0) -> p = (3/4, 1/4); student (0, 0) -> q = (1/2, 1/2); KL = 3/4 ln 3/2 + 1/4 ln 1/2
    teacher, student = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    expected = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    assert distillation_loss(student, teacher, 1.0).item() == pytest.approx(expected.item(), rel=1e-5)
    assert distillation_loss(2 * student, 2 * teacher, 2.0).item() == pytest.approx(4 * expected.item(), rel=1e-5)


def test_loss_agrees_with_torch_and_vanishes_for_equal_answers() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 7, generator=generator)
    theirs = torch.nn.functional.kl_div(
        (student / 3).log_softmax(1), (teacher / 3).log_softmax(1), reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(distillation_loss(student, teacher, 3.0), 9 * theirs)
    assert distillation_loss(student, student.clone(), 3.0).item() == 0


def test_answers_of_another_shape_are_refused() -> None:
    with pytest.raises(ModelError, match=r"\(2, 3\).*\(2, 4\)"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4), 1.0)
