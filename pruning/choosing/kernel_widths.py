"""Widths that kernels reward, by what a model is to run on: a versioned table, so that no clock shapes a plan.

A table is measured once, and says where. What a machine measures by itself is a profile (`pruning.timing`), which is
an input of whoever hands it over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pruning.errors import SettingsError, unknown_name

Admits = Callable[[int, int], bool]
"""(channels that a group keeps, channels that it has in the original model) -> whether that count is admitted."""

PORTABLE = "portable"

_AVX2_TIMES = {8: 2.40, 16: 1.40, 24: 1.09, 32: 1.02, 40: 1.26, 48: 1.11, 56: 1.02, 64: 1.00}
"""Channels that a convolution makes -> time for each of them, 64 channels = 1."""

_AVX2_PERIOD = 64


@dataclass(frozen=True)
class KernelWidths:
    """The counts that one kind of kernel rewards.

    Attributes:
        name: what settings call it.
        source: where the figures come from.
        steps: which counts are admitted, the most rewarded first; a later step is taken where an earlier one can't
            reach a target.
    """

    name: str
    source: str
    steps: tuple[Admits, ...]


def find_kernel_widths(name: str) -> KernelWidths:
    """Return the table of a name.

    Raises:
        SettingsError: There is none.
    """
    if name not in _TABLES:
        raise SettingsError(unknown_name("target of rounding", name, _TABLES))
    return _TABLES[name]


def kernel_widths_names() -> tuple[str, ...]:
    """Return the names of all tables, the default first."""
    return tuple(_TABLES)


def _multiples(block: int) -> Admits:
    """Admit multiples of a block, of 8 in groups narrower than four blocks."""

    def admits(kept: int, original: int) -> bool:
        return kept % (8 if original < 4 * block else block) == 0

    return admits


def _within(limit: float) -> Admits:
    """Admit multiples of 8 at which a channel takes at most so many times as long as one of 64."""

    def admits(kept: int, _original: int) -> bool:
        whole, rest = divmod(kept, _AVX2_PERIOD)
        taken = whole * _AVX2_PERIOD + (rest * _AVX2_TIMES[rest] if rest in _AVX2_TIMES else 0.0)
        return kept % 8 == 0 and taken <= limit * kept

    return admits


_TABLES = {
    one.name: one
    for one in (
        KernelWidths(
            name=PORTABLE,
            source="Vectors of 32-bit floats hold 8 (AVX2) or 16 (AVX-512), and the kernels of oneDNN, of ONNX Runtime "
            "and of GPUs' matrix units work on blocks of 8 or 16 channels: multiples of 16 fill both, multiples of 8 "
            "lose least in groups where 16 is too coarse. Not measured: no machine is preferred.",
            steps=(_multiples(16), _multiples(8)),
        ),
        KernelWidths(
            name="onnxruntime_x86_avx2",
            source="2026-11-21, ONNX Runtime 1.31.1, CPUExecutionProvider, one thread, batch 1, AMD EPYC 25/1/1 "
            "(x86_64, AVX2): a 3 × 3 convolution of 64 channels on 16 × 16, by the channels that it makes "
            "(docs/latency.md). Above 64 the pattern begins anew, and what it costs is shared by more channels.",
            steps=(_within(1.15), _within(1.3), _within(1.5), _within(float("inf"))),
        ),
    )
}
