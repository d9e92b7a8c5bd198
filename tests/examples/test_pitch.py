"""The parts of the demonstration that need no download: tones, hearing, the network's shapes."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch

from pruning import find_groups
from tests.examples.modules import modules_of


@pytest.fixture(scope="module")
def pitch() -> Iterator[dict[str, ModuleType]]:
    with modules_of("pitch", "crepe", "tones") as found:
        yield found


def test_a_tone_repeats_after_the_period_of_its_pitch(pitch: dict[str, ModuleType]) -> None:
    tones, random = pitch["tones"], np.random.default_rng(0)
    likeness = []
    for _ in range(40):
        sound, cents = tones.tone(random)
        assert sound.shape == (1024,)
        assert sound.std() == pytest.approx(1)
        period = tones.RATE / (10 * 2 ** (cents / 1200))
        times = np.arange(1024)
        around = slice(300, 700)
        later = np.interp(times[around] + period, times, sound)
        likeness.append(np.corrcoef(sound[around], later)[0, 1])
    assert np.median(likeness) > 0.7


def test_tones_of_a_seed_are_the_same_and_those_of_others_not(pitch: dict[str, ModuleType]) -> None:
    first, again, other = (pitch["tones"].samples(3, seed) for seed in (1, 1, 2))
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.inputs, other.inputs)


def test_the_pitch_is_the_mean_around_the_highest_score(pitch: dict[str, ModuleType]) -> None:
    tones, scores = pitch["tones"], torch.full((3, 360), -20.0)
    scores[0, 100] = scores[0, 101] = scores[1, 0] = scores[2, 359] = 10.0
    first, step = tones._FIRST, tones._STEP
    wanted = torch.tensor([first + step * 100.5, first, first + step * 359])
    torch.testing.assert_close(tones.cents(scores), wanted, rtol=0, atol=0.1)
    metric = tones.RawPitchAccuracy()
    metric.update(tones.cents(scores), wanted + torch.tensor([49.0, 51.0, -49.0]))
    assert metric.values.tolist() == [1, 0, 1]
    assert metric.compute() == pytest.approx(2 / 3)


def test_loss_is_least_at_the_pitch(pitch: dict[str, ModuleType]) -> None:
    task, scores = pitch["tones"].Pitch(), torch.full((1, 360), -10.0)
    scores[0, 100] = 10.0
    cents = pitch["tones"].cents(scores)
    assert float(task.loss(scores, cents)) < float(task.loss(scores, cents + 200)) / 1.5


@pytest.mark.parametrize(("capacity", "parameters"), [("full", 22_239_976), ("tiny", 486_552)])
def test_the_network_has_the_published_shapes(pitch: dict[str, ModuleType], capacity: str, parameters: int) -> None:
    torch.manual_seed(0)
    model, frames = pitch["crepe"].make(capacity).eval(), torch.randn(2, 1024)
    assert model(frames).shape == (2, 360)
    assert sum(one.numel() for one in model.parameters()) == parameters
    groups = find_groups(model, frames)
    assert len(groups) == 6
    assert not any(group.mixed for group in groups)
