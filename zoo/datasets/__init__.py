"""The built-in data sets: functions that return [`Splits`][zoo.datasets.splits.Splits] or a `DataModule`.

A data set of one's own is any function that returns one of the two; its arguments come from the settings.
"""

from zoo.datasets.cifar import cifar10, cifar100
from zoo.datasets.hf import hf
from zoo.datasets.image_folder import image_folder
from zoo.datasets.small_images import digits, fashion_mnist, glyphs, mnist
from zoo.datasets.splits import DataModule, Samples, Splits, stratified_split
from zoo.datasets.text_lines import text_lines
from zoo.datasets.webdataset import webdataset

__all__ = [
    "DataModule",
    "Samples",
    "Splits",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "glyphs",
    "hf",
    "image_folder",
    "mnist",
    "stratified_split",
    "text_lines",
    "webdataset",
]
