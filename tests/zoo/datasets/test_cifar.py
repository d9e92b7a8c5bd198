from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zoo.datasets import Splits, cifar10, cifar100

NAMES10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def record(labels: tuple[int, ...], red: int, green: int, blue: int) -> bytes:
    return bytes(labels) + bytes([red]) * 1024 + bytes([green]) * 1024 + bytes([blue]) * 1024


@pytest.fixture
def folder10(tmp_path: Path) -> Path:
    for batch in range(1, 6):
        content = b"".join(record((label,), 10 * batch, label, 200) for label in range(10) for _ in range(2))
        (tmp_path / f"data_batch_{batch}.bin").write_bytes(content)
    (tmp_path / "test_batch.bin").write_bytes(b"".join(record((label,), 255, 0, 128) for label in (3, 9)))
    (tmp_path / "batches.meta.txt").write_text("\n".join(NAMES10) + "\n\n")
    return tmp_path


@pytest.fixture
def folder100(tmp_path: Path) -> Path:
    content = b"".join(record((label % 20, label), label, 0, 0) for label in range(100) for _ in range(2))
    (tmp_path / "train.bin").write_bytes(content)
    (tmp_path / "test.bin").write_bytes(record((19, 7), 1, 2, 3))
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"class{label}" for label in range(100)))
    return tmp_path


def pack(folder: Path, archive: Path, inside: str) -> None:
    with tarfile.open(archive, "w:gz") as file:
        for path in sorted(folder.glob("*.[bt][ix][nt]")):
            file.add(path, f"{inside}/{path.name}")


def test_cifar10_reads_labels_and_channels_as_published(folder10: Path) -> None:
    splits = cifar10(folder10, verify=False)
    assert splits.classes == NAMES10
    assert splits.test.targets.tolist() == [3, 9]
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    expected = (torch.tensor([255, 0, 128]) / 255 - mean) / std
    assert torch.allclose(splits.test.inputs, expected.reshape(1, 3, 1, 1).expand(2, 3, 32, 32))


def test_rows_of_a_channel_follow_each_other(folder10: Path) -> None:
    pixels = bytes(range(256)) * 12
    (folder10 / "test_batch.bin").write_bytes(bytes([1]) + pixels)
    image = cifar10(folder10, verify=False).test.inputs[0]
    red = torch.arange(1024).reshape(32, 32) % 256
    assert torch.allclose(image[0], (red / 255 - 0.4914) / 0.2470, atol=1e-6)


def test_validation_is_taken_from_training_in_equal_shares(folder10: Path) -> None:
    splits = cifar10(folder10, validation_fraction=0.2, verify=False)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (80, 20, 2)
    assert splits.validation.targets.bincount().tolist() == [2] * 10
    assert cifar10(folder10, 0.2, seed=1, verify=False).fingerprint() != splits.fingerprint()
    assert cifar10(folder10, 0.2, verify=False).fingerprint() == splits.fingerprint()


def test_cifar100_reads_the_fine_label(folder100: Path) -> None:
    splits = cifar100(folder100, validation_fraction=0.5, verify=False)
    assert splits.test.targets.tolist() == [7]
    assert splits.classes[7] == "class7"
    red = (splits.train.inputs[:, 0, 0, 0] * 0.2673 + 0.5071) * 255
    assert red.round().long().tolist() == splits.train.targets.tolist()


@pytest.mark.parametrize("name", ["cifar-10-binary.tar.gz", "another-name.tar.gz"])
def test_an_archive_gives_the_same_as_its_files(
    folder10: Path, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    archive = tmp_path_factory.mktemp("archive") / name
    pack(folder10, archive, "cifar-10-batches-bin")
    checksums = {name: hashlib.md5(archive.read_bytes()).hexdigest()}
    from_files = cifar10(folder10, verify=False)
    assert cifar10(archive, verify=False, checksums=checksums).fingerprint() == from_files.fingerprint()
    if name == "cifar-10-binary.tar.gz":
        assert cifar10(archive.parent, verify=False).fingerprint() == from_files.fingerprint()
    assert [path.name for path in archive.parent.iterdir()] == [name], "nothing is unpacked to disk"


@pytest.mark.parametrize(
    ("load", "name", "md5"),
    [
        (cifar10, "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
        (cifar100, "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
    ],
)
def test_an_archive_is_held_against_its_published_checksum(
    tmp_path: Path, load: Callable[[Path], Splits], name: str, md5: str
) -> None:
    (tmp_path / name).write_bytes(b"something else")
    found = hashlib.md5(b"something else").hexdigest()
    with pytest.raises(ValueError, match=f"{name} has MD5 {found}, expected {md5}; .* fetch it again"):
        load(tmp_path)


def cut_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


def overwrite_the_middle(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + b"\xff" * 64 + content[middle + 64 :]


def replace_all(_: bytes) -> bytes:
    return b"\x1f\x8b no archive"


@pytest.mark.parametrize("damage", [cut_off, overwrite_the_middle, replace_all], ids=lambda damage: damage.__name__)
def test_a_broken_archive_is_named(
    folder10: Path, tmp_path_factory: pytest.TempPathFactory, damage: Callable[[bytes], bytes]
) -> None:
    archive = tmp_path_factory.mktemp("archive") / "cifar-10-binary.tar.gz"
    pack(folder10, archive, "cifar-10-batches-bin")
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz can't be read as a \.tar\.gz archive"):
        cifar10(archive, verify=False)


def test_a_file_is_held_against_a_given_checksum(folder10: Path) -> None:
    with pytest.raises(ValueError, match=r"data_batch_2\.bin has MD5 [0-9a-f]{32}, expected 00ff"):
        cifar10(folder10, verify=False, checksums={"data_batch_2.bin": "00ff"})


def test_a_file_of_another_size_than_published_is_refused(folder10: Path) -> None:
    expected = r"data_batch_1\.bin has 61460 bytes, expected 30730000 bytes \(10000 records of 3073\)"
    with pytest.raises(ValueError, match=expected):
        cifar10(folder10)


def test_a_file_cut_off_in_a_record_is_refused_without_verification_too(folder10: Path) -> None:
    path = folder10 / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"data_batch_3\.bin has 61459 bytes, expected n × 3073 bytes; it is cut off"):
        cifar10(folder10, verify=False)


def test_a_class_out_of_range_is_refused(folder10: Path) -> None:
    (folder10 / "test_batch.bin").write_bytes(record((3,), 0, 0, 0) + record((10,), 0, 0, 0))
    with pytest.raises(ValueError, match=r"test_batch\.bin has class 10 in record 1, expected less than 10"):
        cifar10(folder10, verify=False)


def test_a_wrong_number_of_class_names_is_refused(folder10: Path) -> None:
    (folder10 / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match="lists 2 classes, expected 10"):
        cifar10(folder10, verify=False)


def test_missing_files_are_named(folder10: Path) -> None:
    (folder10 / "data_batch_4.bin").unlink()
    (folder10 / "test_batch.bin").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"lacks data_batch_4\.bin, test_batch\.bin; expected the unpacked binary"
    ):
        cifar10(folder10)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"nowhere does not exist; expected a folder with train\.bin, test\.bin"
    ):
        cifar100(tmp_path / "nowhere")


def test_a_checksum_for_no_file_is_refused(folder10: Path) -> None:
    with pytest.raises(ValueError, match=r"checksums name data_batch_6\.bin; expected names among data_batch_1\.bin"):
        cifar10(folder10, verify=False, checksums={"data_batch_6.bin": "00"})
