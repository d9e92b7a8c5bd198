"""The settings of the data set and of the task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictInt

from tasks.config.types import TASKS, Arguments, ImportString, Section, named


class Data(Section):
    """Where the samples come from: a function that returns `secateur.Splits`, or data sets (`secateur.DataModule`)."""

    factory: ImportString
    """Import string, such as my_package.data:load, of a function that returns the three splits: secateur.Splits, or
    train, validation and test as torch data sets, as an object or a dict.
    """
    kwargs: Arguments = Field(default_factory=dict)
    """Keyword arguments for the factory."""
    identity: Literal["auto", "content", "files", "declared"] = "auto"
    """What tells whether data sets are the same: the content of all samples; the files, by content, that they name as
    sources; or the fingerprint that they declare, unverified. auto: content where samples are copied, else files where
    sources are named, else declared where there is a fingerprint, else content. Some samples are compared always.
    """
    copy_below_bytes: StrictInt = Field(default=2**30, ge=0, le=10**13)
    """Data sets that are smaller as tensors are copied into data/, unless identity is files or declared, or training
    samples are drawn at random. Of others nothing but an example is kept: every stage opens them again.
    """


class Task(Section):
    """What the model is for: how a batch is taken apart, what is minimised and what is measured."""

    name: Annotated[str, named("task", TASKS)] = TASKS["classification"]
    """classification, multi_label, regression, segmentation, image_to_image, sequence_classification,
    token_classification, causal_lm, embedding, detection, or the import string of a class of your own,
    my_package.task:Counting.
    """
    kwargs: Arguments = Field(default_factory=dict)
    """Keyword arguments for it, such as {ignore_index: 255} for segmentation."""
