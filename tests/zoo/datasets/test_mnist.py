from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from zoo.datasets import Splits, fashion_mnist, mnist
from zoo.datasets.small_images import IMAGES, LABELS


def idx(values: numpy.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim])
    return head + b"".join(size.to_bytes(4, "big") for size in values.shape) + values.astype(numpy.uint8).tobytes()


@pytest.fixture(params=["", ".gz"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for part, count in (("train", 40), ("test", 7)):
        images = (numpy.arange(count * 28 * 28) % 251).reshape(count, 28, 28)
        for name, values in ((IMAGES[part], images), (LABELS[part], numpy.arange(count) % 10)):
            content = idx(values)
            content = gzip.compress(content, mtime=0) if request.param else content
            (tmp_path / f"{name}{request.param}").write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(("load", "mean", "std"), [(mnist, 0.1307, 0.3081), (fashion_mnist, 0.2860, 0.3530)])
def test_pixels_rows_and_labels_are_read_as_published(
    folder: Path, load: Callable[..., Splits], mean: float, std: float
) -> None:
    splits = load(folder, verify=False)
    assert splits.test.targets.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert splits.input_shape == (1, 28, 28)
    expected = (torch.arange(7 * 28 * 28) % 251).reshape(7, 1, 28, 28)
    torch.testing.assert_close((splits.test.inputs * std + mean) * 255, expected.float(), rtol=0, atol=1e-3)


def test_validation_is_taken_from_training_in_equal_shares(folder: Path) -> None:
    splits = mnist(folder, validation_fraction=0.25, verify=False)
    assert (len(splits.train), len(splits.validation)) == (30, 10)
    assert splits.validation.targets.bincount().tolist() == [1] * 10
    assert mnist(folder, 0.25, verify=False).fingerprint() == splits.fingerprint()
    assert mnist(folder, 0.25, seed=1, verify=False).fingerprint() != splits.fingerprint()


def test_other_files_than_the_published_ones_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has MD5 [0-9a-f]{32}, expected 6bbc9ace898e44ae57da46a324031adb; it is dam"):
        mnist(folder)


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _other_type(content: bytes) -> bytes:
    return content[:2] + b"\x0d" + content[3:]


@pytest.mark.parametrize("damage", [_cut, _other_type, lambda _: b"", lambda _: b"\x00\x00\x08\x03"])
def test_a_damaged_file_is_one_message(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    path = next(folder.glob(f"{IMAGES['train']}*"))
    content = path.read_bytes()
    packed = path.suffix == ".gz"
    content = damage(gzip.decompress(content) if packed else content)
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\S* is no IDX file of unsigned bytes along 3 axes"):
        mnist(folder, verify=False)
    path.write_bytes(b"\x1f\x8b damaged")
    with pytest.raises(ValueError, match=r"can't be unpacked|is no IDX file"):
        mnist(folder, verify=False)


def test_labels_that_do_not_belong_to_the_images_are_refused(folder: Path) -> None:
    path = next(folder.glob(f"{LABELS['test']}*"))
    packed = path.suffix == ".gz"

    def write(labels: list[int]) -> None:
        content = idx(numpy.array(labels))
        path.write_bytes(gzip.compress(content) if packed else content)

    write([0, 1])
    with pytest.raises(ValueError, match=r"holds 2 labels and images \[7, 28, 28\] in its test files"):
        fashion_mnist(folder, verify=False)
    write([0, 1, 2, 3, 4, 5, 10])
    with pytest.raises(ValueError, match="has class 10, expected less than 10"):
        fashion_mnist(folder, verify=False)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    next(folder.glob(f"{LABELS['train']}*")).unlink()
    with pytest.raises(FileNotFoundError, match="lacks train-labels-idx1-ubyte"):
        mnist(folder)
    with pytest.raises(FileNotFoundError, match="nowhere is no folder; expected one with train-images-idx3-ubyte"):
        mnist(tmp_path / "nowhere")
