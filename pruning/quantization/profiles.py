"""What a network is quantised for: types of numbers, by the kernels that ONNX Runtime has for a kind of processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pruning.errors import SettingsError, unknown_name

Kind = Literal["static", "dynamic", "half"]


@dataclass(frozen=True)
class QuantizationProfile:
    """Types of numbers.

    Attributes:
        name: As settings have it.
        kind: static: scales of activations are measured beforehand. dynamic: worked out for each input. half: no
            integers, floats of 16 bits.
        activations: Their type.
        weights: Theirs.
        per_channel: Whether each output channel of a weight has a scale of its own.
        reduce_range: Whether weights use 7 of their 8 bits: without VNNI, AVX2 and AVX-512 add products of uint8 and
            int8 in pairs in 16 bits, which saturate with 8.
        symmetric: Whether the zero of activations is the integer 0.
        operators: The layers that are quantised, by their ONNX operator.
    """

    name: str
    kind: Kind
    activations: str
    weights: str
    per_channel: bool = False
    reduce_range: bool = False
    symmetric: bool = False
    operators: tuple[str, ...] = ()

    @property
    def described(self) -> str:
        """The types, for people."""
        if self.kind == "half":
            return f"weights {self.weights}, computed in {self.activations}"
        bits = " of 7 bits" if self.reduce_range else ""
        scales = "a scale per channel" if self.per_channel else "one scale"
        when = "" if self.kind == "static" else ", scaled for each input"
        return f"activations {self.activations}{when}; weights {self.weights}{bits}, {scales}"


_LAYERS = ("Conv", "Gemm", "MatMul", "Gather")
_STATIC = QuantizationProfile("cpu_vnni", "static", "uint8", "int8", per_channel=True, operators=_LAYERS)

PROFILES = {
    "cpu": QuantizationProfile(
        "cpu", "static", "uint8", "int8", per_channel=True, reduce_range=True, operators=_LAYERS
    ),
    "cpu_vnni": _STATIC,
    "tensorrt": QuantizationProfile(
        "tensorrt", "static", "int8", "int8", per_channel=True, symmetric=True, operators=("Conv", "Gemm", "MatMul")
    ),
    "dynamic": QuantizationProfile(
        "dynamic", "dynamic", "uint8", "int8", per_channel=True, reduce_range=True, operators=("Gemm", "MatMul")
    ),
    "fp16": QuantizationProfile("fp16", "half", "float16", "float16"),
    "bf16": QuantizationProfile("bf16", "half", "float32", "bfloat16"),
}
"""By name. ONNX Runtime's advice: uint8 by int8 on x86, int8 by int8, both symmetric, for TensorRT."""


def find_profile(name: str) -> QuantizationProfile:
    """Return the profile of a name.

    Raises:
        SettingsError: There is none.
    """
    if name not in PROFILES:
        raise SettingsError(unknown_name("quantisation profile", name, PROFILES))
    return PROFILES[name]
