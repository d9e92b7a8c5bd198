"""Tones, synthesised, so that their pitch is known; and how far what a network hears is from it."""

from __future__ import annotations

import numpy as np
import torch
from crepe import FRAME, PITCHES
from torch import Tensor
from torch.nn import functional

from secateur import Samples, Splits, Task

RATE = 16000
LOWEST, HIGHEST = 60.0, 1400.0
"""Fundamentals, in Hz."""
NUM_TONES = {"train": 256, "validation": 200, "test": 1000}
CLOSE = 50.0
"""Cents by which a pitch that counts as right may differ: half a semitone."""
_FIRST, _STEP, _REFERENCE = 1997.3794084376191, 20.0, 10.0  # the first pitch and their distance, cents above 10 Hz
_WIDTH = 25.0  # of the targets, in cents
_NEIGHBOURS = 4  # pitches on each side of the loudest one, over which the mean is taken


def tone(random: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return 64 ms of a tone and its pitch in cents above 10 Hz in the middle of them.

    Up to 24 harmonics of random phase and fading strength, a vibrato, and noise of 5 to 25 dB below the tone.
    """
    fundamental = LOWEST * (HIGHEST / LOWEST) ** random.random()
    time = (np.arange(FRAME) - FRAME / 2) / RATE
    depth, rate = random.uniform(0, 0.004), random.uniform(3, 7)
    start = random.uniform(0, 2 * np.pi)
    swing = depth / (2 * np.pi * rate) * (np.sin(2 * np.pi * rate * time + start) - np.sin(start))
    turns = fundamental * (time + swing)
    number = int(min(24, RATE / 2 // (1.02 * fundamental)))
    strengths = np.arange(1, number + 1) ** -random.uniform(0.5, 2.0) * random.uniform(0.3, 1.0, number)
    phases = random.uniform(0, 2 * np.pi, number)
    sound = sum(
        strength * np.sin(2 * np.pi * harmonic * turns + phase)
        for harmonic, (strength, phase) in enumerate(zip(strengths, phases, strict=True), start=1)
    )
    noise = random.normal(size=FRAME) * np.std(sound) * 10 ** (-random.uniform(5, 25) / 20)
    heard = sound + noise
    pitch = 1200 * np.log2(fundamental * (1 + depth * np.cos(start)) / _REFERENCE)
    return (heard - heard.mean()) / heard.std(), float(pitch)


def samples(number: int, seed: int) -> Samples:
    """Return tones [N, 1024] and their pitches in cents, [N]."""
    random = np.random.default_rng(seed)
    frames, pitches = zip(*(tone(random) for _ in range(number)), strict=True)
    return Samples(torch.tensor(np.stack(frames), dtype=torch.float32), torch.tensor(pitches, dtype=torch.float32))


def load() -> Splits:
    """Return the three splits, by seeds of their own."""
    found = {name: samples(number, seed) for seed, (name, number) in enumerate(NUM_TONES.items())}
    return Splits(found["train"], found["validation"], found["test"], classes=())


def cents(scores: Tensor) -> Tensor:
    """Return the pitch that scores [N, 360] mean, [N]: the mean of those around the highest, weighed by the sigmoid."""
    loudest = scores.argmax(1, keepdim=True)
    places = loudest + torch.arange(-_NEIGHBOURS, _NEIGHBOURS + 1, device=scores.device)
    inside = (places >= 0) & (places < PITCHES)
    weights = scores.gather(1, places.clamp(0, PITCHES - 1)).sigmoid() * inside
    return (weights * (_FIRST + _STEP * places)).sum(1) / weights.sum(1)


class RawPitchAccuracy:
    """The share of tones whose pitch is told to within half a semitone.

    Attributes:
        values: Of each tone, whether it is.
    """

    name = "raw pitch accuracy"
    higher_is_better = is_share = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all tones."""
        self._close = list[Tensor]()

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch of pitches in cents, [N] each."""
        self._close.append(((predictions - targets).abs() <= CLOSE).to("cpu", torch.float64))

    def compute(self) -> float:
        """Return the share."""
        return float(self.values.mean()) if self._close else 0.0

    @property
    def values(self) -> Tensor:
        """Of each tone, [N] float64."""
        return torch.cat(self._close) if self._close else torch.empty(0, dtype=torch.float64)


class Pitch(Task):
    """Scores [N, 360], pitches in cents [N]."""

    targets = "the pitch of each tone in cents above 10 Hz, [N] of float32"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the binary cross entropy, the targets being a bell of 25 cents around the pitch, as published."""
        places = _FIRST + _STEP * torch.arange(PITCHES, device=outputs.device)
        wanted = torch.exp(-((places - targets[:, None]) ** 2) / (2 * _WIDTH**2))
        return functional.binary_cross_entropy_with_logits(outputs, wanted)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the pitch in cents, [N]."""
        return cents(outputs)

    def metric(self) -> RawPitchAccuracy:
        """Return the share of tones whose pitch is told to within half a semitone."""
        return RawPitchAccuracy()
