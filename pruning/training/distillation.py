"""Learn from the answers of a teacher: knowledge distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.errors import ModelError


def distillation_loss(outputs: Tensor, teacher_outputs: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(softmax(teacher/T) ‖ softmax(student/T)), the mean over samples (and positions, if any).

    The factor T² keeps the gradient's size independent of T.

    Source: Hinton, Vinyals & Dean 2015, arXiv 1503.02531.

    Args:
        outputs: the student's logits, [N, classes, ...].
        teacher_outputs: the teacher's, of the same shape.
        temperature: T, above 0.

    Raises:
        ModelError: the two differ in shape.
    """
    if outputs.shape != teacher_outputs.shape:
        raise ModelError(
            f"the student's outputs are {tuple(outputs.shape)}, the teacher's {tuple(teacher_outputs.shape)}; "
            "distillation needs both of one shape: set distillation to 0 or bring another teacher"
        )
    student = torch.log_softmax(outputs / temperature, dim=1)
    teacher = torch.log_softmax(teacher_outputs / temperature, dim=1)
    divergence = (teacher.exp() * (teacher - student)).sum(dim=1)
    return divergence.mean() * temperature**2
