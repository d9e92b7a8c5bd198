from __future__ import annotations

import matplotlib
import pytest
import torch
from matplotlib.ft2font import FT2Font

from zoo.datasets import Samples, Splits, glyphs
from zoo.datasets.small_images import CHARACTERS, FONTS, _alphabet

SMALL = {"num_samples": 1240, "num_validation": 310, "num_test": 310}


@pytest.fixture(scope="module")
def splits() -> Splits:
    return glyphs(**SMALL)


def test_glyphs_have_the_asked_sizes_and_62_classes(splits: Splits) -> None:
    assert [samples.inputs.shape for _, samples in splits.named()] == [
        (1240, 1, 32, 32),
        (310, 1, 32, 32),
        (310, 1, 32, 32),
    ]
    assert splits.num_classes == 62
    assert glyphs(8, size=17, num_validation=4, num_test=4).input_shape == (1, 17, 17)


def test_glyphs_are_normalised_by_their_constants(splits: Splits) -> None:
    assert abs(splits.train.inputs.mean()) < 0.05
    assert abs(splits.train.inputs.std() - 1) < 0.05


def test_classes_are_balanced() -> None:
    assert glyphs(992, num_validation=1, num_test=1).train.targets.bincount().tolist() == [16] * 62


def test_the_same_seed_gives_the_same_bytes(splits: Splits) -> None:
    assert glyphs(**SMALL).fingerprint() == splits.fingerprint()
    assert glyphs(**SMALL, seed=1).fingerprint() != splits.fingerprint()


def test_more_samples_begin_with_the_fewer(splits: Splits) -> None:
    more = glyphs(2000, num_validation=310, num_test=310)
    assert torch.equal(more.train.inputs[:1240], splits.train.inputs)
    assert torch.equal(more.test.inputs, splits.test.inputs)


def test_splits_of_one_seed_and_of_its_neighbour_share_no_image(splits: Splits) -> None:
    neighbour = glyphs(**SMALL, seed=1)
    first = torch.stack([samples.inputs[0].flatten() for one in (splits, neighbour) for _, samples in one.named()])
    assert torch.pdist(first).min() > 1


def test_every_font_holds_every_character_under_its_own_shape() -> None:
    for name in FONTS:
        charmap = FT2Font(f"{matplotlib.get_data_path()}/fonts/ttf/{name}.ttf").get_charmap()
        assert {ord(letter) for letter in CHARACTERS} <= set(charmap), name
    alphabet = _alphabet().flatten(2)
    assert alphabet.shape[:2] == (len(FONTS), 62)
    for name, letters in zip(FONTS, alphabet, strict=True):
        assert torch.pdist(letters).min() > 1, f"two characters of {name} look the same"


def test_no_character_is_cut_off_by_its_canvas() -> None:
    alphabet = _alphabet()
    border = torch.cat([alphabet[..., :2, :].flatten(), alphabet[..., -2:, :].flatten(), alphabet[..., :2].flatten()])
    assert border.max() == 0
    assert alphabet[..., -2:].max() == 0


def test_a_character_keeps_its_place_on_the_line() -> None:
    sans = _alphabet()[0, :, 0]
    rows = {letter: sans[CHARACTERS.index(letter)].amax(1).nonzero() for letter in "Ccpb"}
    assert rows["C"].min() < rows["c"].min()
    assert rows["p"].max() > rows["c"].max()
    assert rows["b"].min() < rows["p"].min()


def test_classes_can_be_told_apart_by_their_nearest_mean() -> None:
    splits = glyphs(62 * 80, num_validation=62, num_test=620)

    def blur(samples: Samples) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(samples.inputs, 2).flatten(1)

    train = blur(splits.train)
    means = torch.stack([train[splits.train.targets == label].mean(0) for label in range(62)])
    nearest = torch.cdist(blur(splits.test), means).argmin(1)
    assert (nearest == splits.test.targets).float().mean() > 0.3  # chance is 0.016


def test_sizes_and_numbers_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="found size 4 and 0, 1, 1 samples; expected a size of at least 8"):
        glyphs(0, size=4, num_validation=1, num_test=1)
