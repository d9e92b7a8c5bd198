from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pruning.errors import DataError
from tasks.data_factory import as_splits
from zoo.datasets import Splits, image_folder

RED, BLUE = (255, 0, 0), (0, 0, 255)


def write(path: Path, colour: Sequence[int], size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, tuple(colour)).save(path)


def read(folder: Path, **arguments: Any) -> Splits:
    return as_splits(image_folder(folder, **arguments), "zoo.datasets:image_folder")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(10):
        write(tmp_path / "red" / f"{number}.png", (200 + number, 0, 0))
        write(tmp_path / "blue" / f"{number}.PNG", (0, 0, 200 + number))
    return tmp_path


def test_an_unsplit_folder_is_split_by_class_and_seed(folder: Path) -> None:
    splits = read(folder, size=8)
    assert splits.classes == ("blue", "red")
    assert [samples.targets.bincount().tolist() for _, samples in splits.named()] == [[6, 6], [2, 2], [2, 2]]
    assert splits.input_shape == (3, 8, 8)
    assert read(folder, size=8).fingerprint() == splits.fingerprint()
    assert read(folder, size=8, seed=1).fingerprint() != splits.fingerprint()


def test_pixels_are_scaled_and_normalised(folder: Path) -> None:
    splits = read(folder, size=8, mean=(0.0, 0.5, 0.0), std=(1.0, 0.5, 2.0))
    red = splits.train.inputs[splits.train.targets == 1]
    assert torch.all(red[:, 1] == -1)
    assert torch.all(red[:, 2] == 0)
    assert set((red[:, 0, 0, 0] * 255).round().int().tolist()) <= set(range(200, 210))


def test_grey_gives_one_channel(folder: Path) -> None:
    splits = read(folder, size=8, grey=True)
    assert splits.input_shape == (1, 8, 8)
    red = splits.train.inputs[splits.train.targets == 1]
    assert torch.all(((red * 0.25 + 0.5) * 255 - 0.299 * 204).abs() < 3)  # luma of a red between 200 and 209


def test_given_splits_are_kept(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("validation", 2), ("test", 1)):
        for number in range(count):
            write(tmp_path / part / "a" / f"{number}.png", RED)
            write(tmp_path / part / "b" / f"{number}.jpg", BLUE)
    splits = read(tmp_path, size=8)
    assert [len(samples) for _, samples in splits.named()] == [6, 4, 2]
    assert splits.validation.targets.tolist() == [0, 0, 1, 1]


def test_validation_is_taken_from_train_where_it_is_missing(tmp_path: Path) -> None:
    for number in range(8):
        for name, colour in (("a", RED), ("b", BLUE)):
            write(tmp_path / "train" / name / f"{number}.png", colour)
            write(tmp_path / "test" / name / f"{number}.png", colour)
    splits = read(tmp_path, size=8)
    assert [len(samples) for _, samples in splits.named()] == [12, 4, 16]


def test_an_image_keeps_its_shape_and_its_middle(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (8, 0, 24, 16))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            image.save(tmp_path / name / f"{number}.png")
    inputs = read(tmp_path, size=16, mean=(0, 0, 0), std=(1, 1, 1)).train.inputs
    assert torch.all(inputs[:, 2] == 1)
    assert torch.all(inputs[:, 0] == 0)


def test_an_image_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), RED)
    image.paste(BLUE, (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            image.save(tmp_path / name / f"{number}.png", exif=exif)
    inputs = read(tmp_path, size=16, mean=(0, 0, 0), std=(1, 1, 1)).train.inputs
    assert torch.all(inputs[:, 0, :8] == 1)
    assert torch.all(inputs[:, 2, 8:] == 1)


def test_hidden_and_foreign_files_are_passed_over(folder: Path) -> None:
    (folder / "red" / ".DS_Store.png").write_bytes(b"no image")
    (folder / "red" / "notes.txt").write_text("no image")
    (folder / ".cache").mkdir()
    assert len(image_folder(folder, size=8).train) == 12


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_broken_image_is_named(folder: Path, content: bytes) -> None:
    (folder / "red" / "4.png").write_bytes(content)
    with pytest.raises(
        DataError,
        match=r"train: sample \d+: ValueError: .*red/4\.png can't be read as an image .*; mend it or take it away",
    ):
        read(folder, size=8)


def test_an_image_that_is_cut_off_is_named(folder: Path) -> None:
    path = folder / "blue" / "7.PNG"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"blue/7\.PNG can't be read as an image"):
        read(folder, size=8)


def test_a_tilde_stands_for_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(image_folder(f"~/{folder.name}", size=8).train) == 12


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="nowhere is not a folder; expected one folder of images for each class"
    ):
        image_folder(tmp_path / "nowhere")


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "only" / "1.png", RED)
    with pytest.raises(FileNotFoundError, match="has these class folders: only; expected at least two"):
        image_folder(tmp_path)


def test_a_class_without_images_is_refused(folder: Path) -> None:
    (folder / "green").mkdir()
    with pytest.raises(FileNotFoundError, match=r"green holds no image; expected files ending in \.jpeg, \.jpg, \.png"):
        image_folder(folder, size=8)


def test_a_class_that_train_lacks_is_refused(tmp_path: Path) -> None:
    for path in ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"):
        write(tmp_path / path, RED)
    with pytest.raises(ValueError, match="test has classes that train lacks: c; expected a, b"):
        image_folder(tmp_path, size=8)


def test_a_missing_test_folder_is_named(tmp_path: Path) -> None:
    for path in ("train/a/1.png", "train/b/1.png"):
        write(tmp_path / path, RED)
    with pytest.raises(FileNotFoundError, match=r"test is missing; a folder with train/ needs test/ as well"):
        image_folder(tmp_path, size=8)


def test_statistics_for_another_number_of_channels_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has 3 values \[0\.5, 0\.5, 0\.5\], expected 1"):
        image_folder(folder, size=8, grey=True, mean=(0.5, 0.5, 0.5))


def test_no_image_is_read_before_it_is_asked_for(folder: Path) -> None:
    (folder / "red" / "4.png").write_bytes(b"no image")
    found = image_folder(folder, size=8)
    assert (len(found.train), found.sources, found.classes) == (12, [folder], ("blue", "red"))
    with pytest.raises(ValueError, match="can't be read as an image"):
        [part[index] for part in (found.train, found.validation, found.test) for index in range(len(part))]
