"""What a plan is to reach: a type for each kind of target, all of them of the whole model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from pruning.errors import TargetError
from pruning.timing.profiles import Profile


@dataclass(frozen=True)
class _Share:
    """A share in (0, 1).

    Raises:
        TargetError: It is outside.
    """

    share: float

    name = ""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise TargetError(f"{self.name} is {self.share:g}; expected a share between 0 and 1, both excluded")

    def __str__(self) -> str:
        return f"{self.name} {self.share:g}"


@dataclass(frozen=True)
class ChannelSparsity(_Share):
    """Share of the channels to remove: of each group in local scope, of all groups in global scope."""

    name = "channel_sparsity"


@dataclass(frozen=True)
class MacReduction(_Share):
    """1 − MACs after / before."""

    name = "mac_reduction"


@dataclass(frozen=True)
class ParameterReduction(_Share):
    """1 − parameters after / before."""

    name = "parameter_reduction"


@dataclass(frozen=True)
class LatencyReduction(_Share):
    """1 − latency after / before, as predicted from a profile.

    Attributes:
        profile: Of the model, or of one that it was narrowed from.
    """

    profile: Profile

    name = "latency_reduction"


@dataclass(frozen=True)
class LatencyMs:
    """Latency of a batch of the profile's size, as predicted from it.

    Attributes:
        milliseconds: At most so many.
        profile: Of the model, or of one that it was narrowed from.

    Raises:
        TargetError: The milliseconds are not above 0.
    """

    milliseconds: float
    profile: Profile

    name = "latency_ms"

    def __post_init__(self) -> None:
        if not 0 < self.milliseconds < float("inf"):
            raise TargetError(f"{self.name} is {self.milliseconds:g}; expected milliseconds above 0")

    def __str__(self) -> str:
        return f"{self.name} {self.milliseconds:g}"


Target = ChannelSparsity | MacReduction | ParameterReduction | LatencyReduction | LatencyMs


class TargetKeywords(TypedDict, total=False):
    """Short for the targets that are one number: `mac_reduction=0.5` for `MacReduction(0.5)`."""

    channel_sparsity: float
    mac_reduction: float
    parameter_reduction: float


_BY_KEYWORD = {one.name: one for one in (ChannelSparsity, MacReduction, ParameterReduction)}


def the_target(target: Target | None, keywords: TargetKeywords) -> Target:
    """Return the one target that a caller gave, as a value or by a keyword.

    Raises:
        TargetError: There is none, or more than one.
        TypeError: A keyword is unknown.
    """
    for name in keywords:
        if name not in _BY_KEYWORD:
            raise TypeError(f"unexpected keyword argument {name!r}; targets by keyword are {', '.join(_BY_KEYWORD)}")
    given = [kind(keywords[name]) for name, kind in _BY_KEYWORD.items() if name in keywords]  # type: ignore[literal-required]
    asked = [*given, *([] if target is None else [target])]
    if len(asked) != 1:
        raise TargetError(
            f"give exactly one target, such as mac_reduction=0.5 or LatencyMs(3.0, profile); "
            f"found {', '.join(str(one) for one in asked) or 'none'}"
        )
    return asked[0]
