"""What every data set that is read by number has to hold."""

from __future__ import annotations

from typing import Any

from pruning.batches import DatasetBatches
from pruning.task import Task


def digests(train: Any, task: Task, batch_size: int, num_workers: int) -> list[str]:
    """What each batch holds, in order, made by so many worker processes."""
    return [batch.digest() for batch in DatasetBatches(train, task.unpack, num_workers=num_workers).ordered(batch_size)]
