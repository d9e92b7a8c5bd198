"""Images of one's own, one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.datasets.splits import DataModule, stratified_split

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
GREY_STATISTICS = ((0.5,), (0.25,))
COLOUR_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of ImageNet, as most trained models expect


def image_folder(
    folder: str | Path,
    size: int = 32,
    grey: bool = False,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> DataModule:
    """Find PNG and JPEG images whose folder is their class; each is read when it is asked for.

        folder/cat/1.png                 split here, stratified and seeded
        folder/train/cat/1.png           split already: train, test and perhaps validation;
        folder/test/cat/7.png            without one, validation is taken from train

    Each image is turned upright (EXIF), resized so that its shorter side is `size`, and cut to its middle. Inputs are
    float32 [N, 3 or 1, size, size], scaled to [0, 1], minus `mean`, divided by `std`.

    Args:
        folder: Where the images lie. Files and folders that begin with a dot are passed over.
        size: Height and width in pixels.
        grey: One channel instead of three.
        fractions: Shares of train, validation and test. Where the folder is split already, only the proportion of the
            first two is used, and only if there is no validation folder.
        seed: Seed of the split.
        mean: Subtracted from each channel; by default ImageNet's, or 0.5 for grey.
        std: Divides each channel; by default ImageNet's, or 0.25 for grey.

    Raises:
        FileNotFoundError: The folder, or the images in it, are missing.
        ValueError: The classes of the splits differ; or, when it is asked for, an image can't be read.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; expected one folder of images for each class in it")
    channels = 1 if grey else 3
    defaults = GREY_STATISTICS if grey else COLOUR_STATISTICS
    statistics = [
        _per_channel(given or default, channels) for given, default in zip((mean, std), defaults, strict=True)
    ]

    def find(part: Path, classes: Sequence[str]) -> Images:
        paths, targets = _paths(part, classes)
        return Images(paths, targets, classes, size, grey, statistics)

    def module(train: Images, validation: Images, test: Images, classes: Sequence[str]) -> DataModule:
        return DataModule(train, validation, test, sources=[root], classes=classes)

    if not (root / "train").is_dir():
        classes = _class_names(root)
        whole = find(root, classes)
        train, validation, test = (whole.take(part) for part in stratified_split(whole.targets, fractions, seed))
        return module(train, validation, test, classes)
    classes = _class_names(root / "train")
    train, test = find(root / "train", classes), find(root / "test", classes)
    if (root / "validation").is_dir():
        return module(train, find(root / "validation", classes), test, classes)
    share = fractions[1] / (fractions[0] + fractions[1])
    kept, taken = stratified_split(train.targets, [1 - share, share], seed)
    return module(train.take(kept), train.take(taken), test, classes)


class Images(Dataset[tuple[Tensor, int]]):
    """Images by number, each with its class; nothing is kept in memory but their names.

    Attributes:
        paths: Of the files.
        targets: The class of each, int64 [N].
        classes: Their names.
    """

    def __init__(
        self,
        paths: Sequence[str],
        targets: Tensor,
        classes: Sequence[str],
        size: int,
        grey: bool,
        statistics: Sequence[Tensor],
    ) -> None:
        """Open no file yet.

        Args:
            paths: Of the files.
            targets: The class of each, int64 [N].
            classes: Their names.
            size: Height and width in pixels.
            grey: One channel instead of three.
            statistics: Mean and standard deviation of each channel, [channels, 1, 1].
        """
        self.paths, self.targets, self.classes = paths, targets, classes
        self._size, self._grey, self._statistics = size, grey, statistics

    def __len__(self) -> int:
        """Count the images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read an image, float32 [channels, size, size], and its class.

        Raises:
            ValueError: It can't be read.
        """
        mean, std = self._statistics
        return (_read(Path(self.paths[index]), self._size, self._grey) - mean) / std, int(self.targets[index])

    def take(self, numbers: Tensor) -> Images:
        """Return some of the images, in this order."""
        paths = [self.paths[number] for number in numbers.tolist()]
        return Images(paths, self.targets[numbers], self.classes, self._size, self._grey, self._statistics)


def _per_channel(values: Sequence[float], channels: int) -> Tensor:
    if len(values) != channels:
        raise ValueError(
            f"mean or std has {len(values)} values {list(values)}, expected {channels}, one for each channel"
        )
    return torch.tensor(list(values), dtype=torch.float32).reshape(channels, 1, 1)


def _class_names(folder: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        found = ", ".join(names) or "none"
        raise FileNotFoundError(
            f"{folder} has these class folders: {found}; expected at least two, with images in each"
        )
    return tuple(names)


def _paths(folder: Path, classes: Sequence[str]) -> tuple[list[str], Tensor]:
    """List the images of one split, in sorted order, with the class of each."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is missing; a folder with train/ needs test/ as well (validation/ may be left out)"
        )
    unknown = sorted(set(_class_names(folder)) - set(classes))
    if unknown:
        raise ValueError(f"{folder} has classes that train lacks: {', '.join(unknown)}; expected {', '.join(classes)}")
    paths: list[str] = []
    counts = []
    for name in classes:
        place = folder / name
        names = sorted(one.name for one in (place.iterdir() if place.is_dir() else ()) if _is_image(one.name))
        if not names:
            raise FileNotFoundError(f"{place} holds no image; expected files ending in {', '.join(sorted(SUFFIXES))}")
        paths += [str(place / one) for one in names]
        counts.append(len(names))
    return paths, torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def _read(path: Path, size: int, grey: bool) -> Tensor:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("L" if grey else "RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # PIL raises SyntaxError for a broken PNG
        raise ValueError(f"{path} can't be read as an image ({error}); mend it or take it away") from error
    square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    pixels = numpy.asarray(square, dtype=numpy.float32).reshape(size, size, -1) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
