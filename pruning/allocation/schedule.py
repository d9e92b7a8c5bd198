"""The rate of each iteration, and the back-off: a pure state machine.

What to try next is derived from the settings and the list of past attempts alone, so a loop that was killed and a loop
that was not can't differ.

                    accepted: the reduction reached counts
        ┌───────────────────────────────────────────────────┐
        ▼                                                   │
    next goal ──► attempt ──► judged by the caller ─────────┤
        ▲                                                   │
        └───────────────────────────────────────────────────┘
                    rejected: undo; step × backoff from now on
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_CLOSE = 1e-9

Reason = Literal["target reached", "smallest step reached", "attempts used up"]
REACHED: Reason = "target reached"


class ScheduleSettings(BaseModel):
    """How a loop moves to its target.

    `smallest_step` and `max_attempts` only say when to stop: no goal depends on them, so that lowering the one or
    raising the other continues a history that is there.

    Attributes:
        target: the reduction to end at, relative to the original model, in (0, 1).
        iterations: number of scheduled goals.
        shape: how the goals rise, see `goals`.
        first_step: the reduction that the first attempt goes to; None leaves it to the shape.
        backoff: a rejected step is multiplied by this, in (0, 1).
        smallest_step: stop when the step left after a rejection is below this.
        max_attempts: stop after so many attempts, accepted or not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: float = Field(gt=0, lt=1)
    iterations: int = Field(ge=1)
    shape: Literal["linear", "geometric", "cubic"]
    first_step: float | None = Field(default=None, gt=0, lt=1)
    backoff: float = Field(gt=0, lt=1)
    smallest_step: float = Field(gt=0, lt=1)
    max_attempts: int = Field(ge=1)

    @model_validator(mode="after")
    def _first_step_within_target(self) -> ScheduleSettings:
        if self.first_step is not None and self.first_step > self.target:
            raise ValueError(f"first_step ({self.first_step:g}) must not be above target ({self.target:g})")
        return self


@dataclass(frozen=True)
class Outcome:
    """One past attempt: the goal, the reduction it reached, and whether it was accepted."""

    goal: float
    reached: float
    accepted: bool


@dataclass(frozen=True)
class Attempt:
    """Go on: reduce the original model by `goal` in all, starting from the last accepted model.

    Attributes:
        number: 0 for the first attempt of the history.
        goal: cumulative reduction to reach.
        step: goal − the reduction accepted so far.
    """

    number: int
    goal: float
    step: float


@dataclass(frozen=True)
class Stop:
    """Stop, and why."""

    reason: Reason


def goals(settings: ScheduleSettings) -> tuple[float, ...]:
    """Return the scheduled cumulative reductions, rising to the target T.

    With t = i/N for i = 1 … N:

        linear      T · t
        geometric   1 − (1 − T)^t            each step keeps the same share of what is left
        cubic       T · (1 − (1 − t)³)       large steps first; Source: Zhu & Gupta 2017, arXiv 1710.01878

    A `first_step` f is the first goal; the other N − 1 rise from f to T by the same law (one is added where N is 1).
    """
    start = settings.first_step or 0.0
    if start >= settings.target:
        return (settings.target,)
    num_steps = max(1, settings.iterations - 1) if start else settings.iterations
    rising = (min(_between(settings, start, step / num_steps), settings.target) for step in range(1, num_steps))
    first, *rest = accumulate(rising, max, initial=start)  # rounding must not lead back
    return (*([first] if start else []), *rest, settings.target)


def next_step(settings: ScheduleSettings, history: Sequence[Outcome]) -> Attempt | Stop:
    """Return what to do after a history.

    After a rejection the step (goal − reduction accepted so far) is multiplied by `backoff`; that shorter step stays
    the longest one allowed, after acceptances too. A scheduled goal closer than half its own increment is passed over.

    >>> pace = {"shape": "linear", "backoff": 0.5, "smallest_step": 0.01, "max_attempts": 9}
    >>> settings = ScheduleSettings(target=0.8, iterations=2, **pace)
    >>> round(next_step(settings, [Outcome(0.4, 0.4, True), Outcome(0.8, 0.8, False)]).goal, 6)
    0.6
    """
    accepted, cap = _replay(settings, history)
    if accepted >= settings.target - _CLOSE:
        return Stop(REACHED)
    if cap < settings.smallest_step - _CLOSE:
        return Stop("smallest step reached")
    if len(history) >= settings.max_attempts:
        return Stop("attempts used up")
    goal = _scheduled(settings, accepted)
    if goal - accepted > cap:
        goal = accepted + cap
    return Attempt(number=len(history), goal=goal, step=goal - accepted)


def expected_goals(settings: ScheduleSettings, history: Sequence[Outcome] = ()) -> tuple[float, ...]:
    """Return the goals of the attempts that follow a history if each is accepted and reaches its goal, no more.

    Fewer follow where an attempt goes beyond its goal, more where one is rejected: one at least, if any, and what
    `max_attempts` leaves at most.

    >>> pace = {"shape": "linear", "backoff": 0.5, "smallest_step": 0.01, "max_attempts": 9}
    >>> expected_goals(ScheduleSettings(target=0.8, iterations=2, **pace))
    (0.4, 0.8)
    """
    found = list(history)
    while isinstance(step := next_step(settings, found), Attempt):
        found.append(Outcome(step.goal, step.goal, accepted=True))
    return tuple(one.goal for one in found[len(history) :])


def _replay(settings: ScheduleSettings, history: Sequence[Outcome]) -> tuple[float, float]:
    """Return the reduction accepted so far and the longest step allowed."""
    accepted, cap = 0.0, 1.0
    for past in history:
        if past.accepted:
            accepted = max(accepted, past.reached)
        else:
            cap = min(cap, max(past.goal - accepted, 0.0) * settings.backoff)
    return accepted, cap


def _scheduled(settings: ScheduleSettings, accepted: float) -> float:
    """Return the next scheduled goal above what was accepted."""
    before = 0.0
    for goal in goals(settings):
        if goal - accepted > (goal - before) / 2:
            return goal
        before = goal
    return settings.target


def _between(settings: ScheduleSettings, start: float, passed: float) -> float:
    target = settings.target
    if settings.shape == "linear":
        return start + (target - start) * passed
    if settings.shape == "geometric":
        return float(1 - (1 - start) * ((1 - target) / (1 - start)) ** passed)
    return float(start + (target - start) * (1 - (1 - passed) ** 3))
