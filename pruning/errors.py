"""The errors that Secateur raises on purpose.

SecateurError            a fault that the caller can mend; its text says what, where, what was expected, what to do
├── ModelError           the model can't be run, traced, built or trained
├── PlanError            the plan doesn't fit the model
├── VerificationError    the narrowed model doesn't compute what the masked model computes
├── CriterionError       the criterion is unknown or doesn't apply
│   └── UnscoredGroupError    by its definition it has no scores for one group
├── TargetError          the target can't be met
│   └── OutOfReachError  within the limits
├── DataError            the data are missing, damaged, or not the ones they should be
│   └── NotFiniteError   they hold infinities, or what is no number
├── CheckpointError      a checkpoint is missing, damaged, or from another model
├── ExportError          the exported file isn't what was asked for
├── ProfileError         a latency profile is missing, damaged, or of another machine or network
├── SettingsError        a setting is unknown or out of bounds
├── LaunchError          processes that work together can't start, aren't alike, or one of them was ended
└── WorkspaceError       the workspace can't be read, written, or locked

UnprovenWarning          a model was narrowed, and no inputs were found on which that could be verified
UntriedWarning           a model was narrowed, and what some arguments of its forward lead to was not verified
"""

from __future__ import annotations

import copy
import signal
import sysconfig
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from traceback import extract_tb


class SecateurError(Exception):
    """A fault that the caller can mend."""


class ModelError(SecateurError):
    """The model can't be run, traced, built or trained."""


class PlanError(SecateurError):
    """The plan doesn't fit the model."""


class VerificationError(SecateurError):
    """The narrowed model doesn't compute what the masked model computes."""


class CriterionError(SecateurError):
    """The criterion is unknown or doesn't apply."""


class UnscoredGroupError(CriterionError):
    """By its definition a criterion has no scores for a group; another one scores it then.

    Args:
        group: The group's name.
        kind: Why, the same for all groups of this kind.
        where: What it is about in this group, such as the weights that read it.
    """

    def __init__(self, group: str, kind: str, where: str = "") -> None:
        super().__init__(group, kind, where)
        self.group, self.kind, self.where = group, kind, where

    def __str__(self) -> str:
        about = f" ({self.where})" if self.where else ""
        return (
            f"group {self.group!r}: {self.kind}{about}; leave the group whole (ignore) or choose a criterion that "
            "reads weights, such as l2_norm"
        )


class TargetError(SecateurError):
    """The target can't be met."""


class OutOfReachError(TargetError):
    """No plan within the limits meets the target.

    Attributes:
        least: how far a plan within them comes, such as "73.8% less".
    """

    def __init__(self, message: str, least: str) -> None:
        super().__init__(message, least)
        self.least = least

    def __str__(self) -> str:
        return str(self.args[0])


class DataError(SecateurError):
    """The data are missing, damaged, or not the ones they should be."""


class NotFiniteError(DataError):
    """The data hold infinities, or what is no number."""


class CheckpointError(SecateurError):
    """A checkpoint is missing, damaged, or from another model."""


class ExportError(SecateurError):
    """The exported file isn't what was asked for."""


class ProfileError(SecateurError):
    """A latency profile is missing, damaged, or of another machine or network."""


class SettingsError(SecateurError):
    """A setting is unknown or out of bounds."""


class LaunchError(SecateurError):
    """Processes that work together can't start, aren't alike, or one of them was ended."""


class WorkspaceError(SecateurError):
    """The workspace can't be read, written, or locked."""


class UnprovenWarning(UserWarning):
    """A model was narrowed, and no inputs were found on which that could be verified."""


class UntriedWarning(UserWarning):
    """A model was narrowed, and what some arguments of its forward lead to was not verified."""


def pass_on(fault: Exception) -> None:
    """Raise a fault again that isn't of the code that was run: before a model's faults are turned into messages.

    Such are the end of memory, the interpreter's own faults, time-outs, and whatever a signal handler raised.
    """
    import torch  # takes seconds, which only those have waited for who have run a model

    foreign = (TimeoutError, InterruptedError, MemoryError, SystemError, torch.OutOfMemoryError)
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()} - {None}
    step = fault.__traceback__
    while step is not None and step.tb_frame.f_code not in handlers:
        step = step.tb_next
    if step is not None or isinstance(fault, foreign):
        raise fault


def describe(fault: Exception) -> str:
    """Say what a fault of a model says, by its own class where it says nothing, and which line of code raised it."""
    import torch

    # Whose lines say nothing of a model.
    inside = (f"{Path(torch.__file__).parent}/", f"{Path(__file__).parent}/", copy.__file__, "<")
    text = str(fault).strip() or type(fault).__name__
    lines = [
        f"{Path(f.filename).name}:{f.lineno}"
        for f in extract_tb(fault.__traceback__)
        if not f.filename.startswith(inside)
    ]
    notes = [*getattr(fault, "__notes__", []), *(f"raised at {line}" for line in lines[-1:])]
    return f"{text} ({notes[0]})" if notes else text


def describe_user_fault(fault: Exception) -> str:
    """Say what a fault in the user's own functions says, by its class, and the last line of theirs that was run."""
    ours = {Path(__file__).parent, Path(__file__).parent.parent / "tasks"}
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
    frames = [
        one
        for one in extract_tb(fault.__traceback__)
        if one.filename[0] != "<" and not ours.union(installed).intersection(Path(one.filename).parents)
    ]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    text = str(fault).strip().partition("\n")[0] or "no message"
    return f"{type(fault).__name__}: {text}{place}"


def unknown_name(kind: str, found: str, known: Iterable[str]) -> str:
    """Say that a name is unknown, with the nearest known one and all of them.

    >>> unknown_name("criterion", "l2norm", ["l1_norm", "l2_norm"])
    "unknown criterion 'l2norm'; did you mean 'l2_norm'? Known: l1_norm, l2_norm"
    """
    names = sorted(known)
    near = get_close_matches(found, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {found!r}{hint} Known: {', '.join(names) or 'none'}"
