"""Python's own standard library as text: bytes, in windows, from files that are in one split alone."""

import sysconfig
from pathlib import Path

import torch
from torch import Tensor

from secateur import Samples, Splits

LENGTH = 128


def files() -> dict[str, list[Path]]:
    """Divide the modules of the standard library: of ten in turn eight are for training, one each for the others."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = sorted(path for path in root.rglob("*.py") if not {"site-packages", "test", "tests"} & set(path.parts))
    parts: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    for number, path in enumerate(found):
        parts[{8: "validation", 9: "test"}.get(number % 10, "train")].append(path)
    return parts


def windows(paths: list[Path], count: int, generator: torch.Generator) -> Samples:
    """Take windows from random places; the model predicts each byte from those before it."""
    text = b"".join(path.read_bytes() for path in paths)
    starts = torch.randint(len(text) - LENGTH, (count,), generator=generator)
    whole = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    tokens: Tensor = whole[starts[:, None] + torch.arange(LENGTH)].long()
    return Samples(tokens, tokens)


def load(train: int = 12_000, validation: int = 512, test: int = 1_024, seed: int = 0) -> Splits:
    """Return the splits; which files there are, and so the text, depends on Python's version."""
    parts, generator = files(), torch.Generator().manual_seed(seed)
    counts = {"train": train, "validation": validation, "test": test}
    found = {name: windows(parts[name], count, generator) for name, count in counts.items()}
    return Splits(found["train"], found["validation"], found["test"], classes=tuple(str(byte) for byte in range(256)))
