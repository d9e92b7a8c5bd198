"""CIFAR-10 and CIFAR-100, read from the published binary files."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy
import torch
from torch import Tensor

from zoo.datasets.splits import Samples, Splits, check_md5, stratified_split

IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = 3 * 32 * 32


@dataclass(frozen=True)
class Release:
    """How a data set is published: its files, their records, and the archive that holds them."""

    archive: str
    archive_md5: str
    train: tuple[str, ...]
    test: str
    names: str
    num_classes: int
    label_bytes: int  # of which the last one counts: CIFAR-100 puts its 20 coarse classes first
    num_records: Mapping[str, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


CIFAR10 = Release(
    archive="cifar-10-binary.tar.gz",
    archive_md5="c32a1d4ab5d03f1284b67883e8d87530",
    train=tuple(f"data_batch_{batch}.bin" for batch in range(1, 6)),
    test="test_batch.bin",
    names="batches.meta.txt",
    num_classes=10,
    label_bytes=1,
    num_records={**{f"data_batch_{batch}.bin": 10_000 for batch in range(1, 6)}, "test_batch.bin": 10_000},
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
CIFAR100 = Release(
    archive="cifar-100-binary.tar.gz",
    archive_md5="03b5dce01913d631647c71ecec9e9cb8",
    train=("train.bin",),
    test="test.bin",
    names="fine_label_names.txt",
    num_classes=100,
    label_bytes=2,
    num_records={"train.bin": 50_000, "test.bin": 10_000},
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def cifar10(
    folder: str | Path,
    validation_fraction: float = 0.1,
    seed: int = 0,
    verify: bool = True,
    checksums: Mapping[str, str] | None = None,
) -> Splits:
    """Load CIFAR-10: 60,000 photographs of 10 kinds of things, [3, 32, 32], from its binary version.

    Nothing is downloaded and nothing is unpacked to disk. The published test set is the test split; the validation
    split is taken from the training set, stratified. Inputs are float32, normalised by the published mean and standard
    deviation of each channel; 740 MB for all of it, 1.5 GB while it is read.

    Args:
        folder: The folder with `data_batch_1.bin` to `data_batch_5.bin`, `test_batch.bin` and `batches.meta.txt`; or
            the folder with `cifar-10-binary.tar.gz`; or that archive itself.
        validation_fraction: The share of the training set that becomes the validation split.
        seed: Seed of that choice.
        verify: Compare an archive with its published MD5, and the files with their published sizes. For unpacked
            files no MD5 is published: name your own in `checksums`, or point to the archive.
        checksums: MD5 by file name, compared whenever given; the archive may be among them.

    Raises:
        FileNotFoundError: The folder or a file is missing.
        ValueError: A file is damaged or not the one it should be.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    return _load(CIFAR10, Path(folder).expanduser(), validation_fraction, seed, verify, checksums or {})


def cifar100(
    folder: str | Path,
    validation_fraction: float = 0.1,
    seed: int = 0,
    verify: bool = True,
    checksums: Mapping[str, str] | None = None,
) -> Splits:
    """Load CIFAR-100 with its 100 fine classes from `train.bin`, `test.bin` and `fine_label_names.txt`.

    Arguments, splits and errors are those of [`cifar10`][zoo.datasets.cifar.cifar10]; the archive is
    `cifar-100-binary.tar.gz`.
    """
    return _load(CIFAR100, Path(folder).expanduser(), validation_fraction, seed, verify, checksums or {})


def _load(
    release: Release, place: Path, fraction: float, seed: int, verify: bool, checksums: Mapping[str, str]
) -> Splits:
    content = _read_files(release, place, verify, checksums)
    names = tuple(line.strip() for line in content[release.names].decode(errors="replace").splitlines() if line.strip())
    if len(names) != release.num_classes:
        raise ValueError(f"{release.names} in {place} lists {len(names)} classes, expected {release.num_classes}")
    parts = {name: _decode(release, name, content.pop(name), place, verify) for name in release.num_records}
    images, targets = (torch.cat(tensors) for tensors in zip(*(parts[name] for name in release.train), strict=True))
    rest, validation = stratified_split(targets, [1 - fraction, fraction], seed)
    train, held_back = (_normalise(release, images[part], targets[part]) for part in (rest, validation))
    return Splits(train, held_back, _normalise(release, *parts[release.test]), names)


def _read_files(release: Release, place: Path, verify: bool, checksums: Mapping[str, str]) -> dict[str, bytes]:
    """Read the files that the release names, from an archive or from a folder."""
    wanted = (*release.num_records, release.names)
    archive = place / release.archive if place.is_dir() else place
    if archive.is_file():
        packed = archive.read_bytes()
        check_md5(str(archive), packed, checksums.get(archive.name, release.archive_md5 if verify else None))
        content = _unpack(archive, packed, wanted)
    elif place.is_dir():
        content = {name: (place / name).read_bytes() for name in wanted if (place / name).is_file()}
    else:
        raise FileNotFoundError(
            f"{place} does not exist; expected a folder with {', '.join(wanted)}, or {release.archive}"
        )
    unknown = sorted(checksums.keys() - {*wanted, archive.name})
    if unknown:
        raise ValueError(
            f"checksums name {', '.join(unknown)}; expected names among {', '.join(wanted)}, {archive.name}"
        )
    missing = [name for name in wanted if name not in content]
    if missing:
        raise FileNotFoundError(
            f"{place} lacks {', '.join(missing)}; expected the unpacked binary version (no pickled 'python version'),"
            f" or {release.archive} itself"
        )
    for name, data in content.items():
        check_md5(str(place / name), data, checksums.get(name))
    return content


def _unpack(archive: Path, packed: bytes, wanted: tuple[str, ...]) -> dict[str, bytes]:
    content = {}
    try:
        # unpacked as a whole, so that gzip's own checksum is read: tarfile takes a damaged header for the end
        unpacked = io.BytesIO(gzip.decompress(packed))
        with tarfile.open(fileobj=unpacked) as members:
            for member in members:
                name = PurePosixPath(member.name).name
                file = members.extractfile(member) if name in wanted else None
                if file is not None:
                    content[name] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{archive} can't be read as a .tar.gz archive ({error}); fetch it again") from error
    return content


def _decode(release: Release, name: str, data: bytes, place: Path, verify: bool) -> tuple[Tensor, Tensor]:
    """Turn a file's records (label bytes, then 3,072 bytes of red, green, blue rows) into images and targets."""
    record = release.label_bytes + IMAGE_BYTES
    expected = release.num_records[name] * record
    if len(data) % record or not data or (verify and len(data) != expected):
        size = (
            f"{expected} bytes ({release.num_records[name]} records of {record})" if verify else f"n × {record} bytes"
        )
        raise ValueError(f"{place / name} has {len(data)} bytes, expected {size}; it is cut off or another file")
    records = torch.from_numpy(numpy.frombuffer(bytearray(data), dtype=numpy.uint8)).reshape(-1, record)
    targets = records[:, release.label_bytes - 1].long()
    if int(targets.max()) >= release.num_classes:
        at = int((targets >= release.num_classes).nonzero()[0])
        raise ValueError(
            f"{place / name} has class {int(targets[at])} in record {at}, expected less than {release.num_classes};"
            " it is damaged or another file"
        )
    return records[:, release.label_bytes :].reshape(-1, *IMAGE_SHAPE), targets


def _normalise(release: Release, images: Tensor, targets: Tensor) -> Samples:
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (release.mean, release.std))
    return Samples(images.float().div_(255).sub_(mean).div_(std), targets)
