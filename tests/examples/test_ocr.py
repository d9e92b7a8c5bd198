"""The parts of the demonstration that need no download: words, reading, the network's shapes."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch

from pruning import find_groups
from tests.examples.modules import modules_of


@pytest.fixture(scope="module")
def ocr() -> Iterator[dict[str, ModuleType]]:
    with modules_of("ocr", "crnn", "ctc", "words") as found:
        yield found


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def many(number: int) -> tuple[str, ...]:
    return tuple(LETTERS[n // 676] + LETTERS[n // 26 % 26] + LETTERS[n % 26] for n in range(number))


def test_splits_have_words_of_their_own_and_are_the_same_each_time(ocr: dict[str, ModuleType]) -> None:
    words = ocr["words"]
    splits = words.divide(many(7000))
    assert splits == words.divide(many(7000))
    texts = [{one.text.lower() for one in split} for split in splits.values()]
    assert [len(split) for split in texts] == list(words.NUM_WORDS.values())
    assert len(set.union(*texts)) == sum(words.NUM_WORDS.values())
    assert all(sum(one.degraded for one in split) == len(split) // 2 for split in splits.values())


def test_a_word_is_drawn_whole_and_the_same_each_time(ocr: dict[str, ModuleType]) -> None:
    words = ocr["words"]
    for text in ("iii", "Keg", "WWWWWWWWW"):
        clean, degraded = (words.render(words.Drawn(text, bad, 7)) for bad in (False, True))
        assert clean.shape == degraded.shape == (64, 192)
        assert clean.dtype == np.uint8
        assert np.array_equal(clean, words.render(words.Drawn(text, False, 7)))
        assert not np.array_equal(clean, degraded)
        edges = np.concatenate([clean[0], clean[-1], clean[:, 0], clean[:, -1]])
        assert int(edges.max()) - int(edges.min()) < 4  # no ink
        assert clean.min() < clean.max() - 60


def test_samples_are_grey_values_and_the_text(ocr: dict[str, ModuleType]) -> None:
    words, ctc = ocr["words"], ocr["ctc"]
    found = words.samples([words.Drawn("taco", False, 1), words.Drawn("Applesauc", True, 2)])
    assert found.inputs.shape == (2, 1, 64, 192)
    assert -1 <= float(found.inputs.min()) < float(found.inputs.max()) <= 1
    assert ctc.words_of(found.targets) == ["taco", "Applesauc"]


def test_reading_joins_repeats_that_no_blank_parts(ocr: dict[str, ModuleType]) -> None:
    ctc = ocr["ctc"]
    h, e, ll, o = ((1 + ctc.CHARACTERS.index(one)) for one in "helo")
    columns = torch.tensor([[0, h, h, e, ll, ll, 0, ll, o, o], [0, 0, h, 0, h, e, 0, 0, 0, 0]])
    assert ctc.decode(columns) == ["hello", "hhe"]
    score = ctc.WordAccuracy()
    score.update(columns, ctc.encode(["hello", "he"], 6))
    assert score.values.tolist() == [1, 0]
    assert score.compute() == 0.5
    assert score.character_error_rate == 1 / 7


@pytest.mark.parametrize(
    ("read", "written", "number"), [("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3), ("ab", "ba", 2)]
)
def test_edits_are_the_least_that_turn_one_word_into_another(
    ocr: dict[str, ModuleType], read: str, written: str, number: int
) -> None:
    assert ocr["ctc"].edits(read, written) == number


def test_a_text_of_other_characters_is_refused(ocr: dict[str, ModuleType]) -> None:
    with pytest.raises(ValueError, match="'naïve'"):
        ocr["ctc"].encode(["naïve"], 9)


def test_loss_falls_where_the_scores_spell_the_text_and_ignores_what_fills_up(ocr: dict[str, ModuleType]) -> None:
    ctc = ocr["ctc"]
    task, targets = ctc.Reading(), ctc.encode(["he"], 9)
    h, e = ((1 + ctc.CHARACTERS.index(one)) for one in "he")
    right, wrong = torch.zeros(1, 6, 97), torch.zeros(1, 6, 97)
    for column, character in enumerate((0, h, 0, e, 0, 0)):
        right[0, column, character] = wrong[0, column, character + 1] = 9
    assert float(task.loss(right, targets)) < 0.1 < float(task.loss(wrong, targets))
    torch.testing.assert_close(task.loss(right, targets), task.loss(right, targets[:, :2]))
    assert float(task.distillation(right, right, 2.0)) == pytest.approx(0, abs=1e-6)
    assert float(task.distillation(right, wrong, 2.0)) > 1


def test_the_network_has_the_published_shapes_and_all_of_its_channels_can_go(ocr: dict[str, ModuleType]) -> None:
    torch.manual_seed(0)
    model, image = ocr["crnn"].make().eval(), torch.randn(2, 1, 64, 192)
    assert model(image).shape == (2, 47, 97)
    assert sum(one.numel() for one in model.parameters()) == 3_781_345
    groups = find_groups(model, image)
    assert len(groups) == 11
    assert not any(group.mixed for group in groups)
