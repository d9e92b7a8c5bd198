"""The built-in data sets: functions that return [`Splits`][zoo.datasets.splits.Splits].

A data set of one's own is any function that returns a `Splits`; its arguments come from the settings.
"""

from zoo.datasets.cifar import cifar10, cifar100
from zoo.datasets.digits import digits, fashion_mnist, mnist
from zoo.datasets.glyphs import glyphs
from zoo.datasets.image_folder import image_folder
from zoo.datasets.splits import Samples, Splits, stratified_split

__all__ = [
    "Samples",
    "Splits",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "glyphs",
    "image_folder",
    "mnist",
    "stratified_split",
]
