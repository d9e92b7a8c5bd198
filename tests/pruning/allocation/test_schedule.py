from __future__ import annotations

import itertools
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pruning.allocation.schedule import Attempt, Outcome, ScheduleSettings, Stop, goals, next_step

SHAPES = ["linear", "geometric", "cubic"]
scheduled = partial(
    ScheduleSettings, iterations=5, shape="linear", backoff=0.5, smallest_step=0.01, max_attempts=20
)  # what a case doesn't say


def play(settings: ScheduleSettings, verdicts: list[bool]) -> tuple[list[float], Stop | None]:
    """Run the machine with attempts that reach their goals exactly; after the verdicts all are rejected."""
    history: list[Outcome] = []
    while isinstance(step := next_step(settings, history), Attempt):
        verdict = verdicts[len(history)] if len(history) < len(verdicts) else False
        history.append(Outcome(step.goal, step.goal, verdict))
        if len(history) > 500:
            raise AssertionError("the schedule doesn't end")
    return [past.goal for past in history], step


@st.composite
def schedules(draw: st.DrawFn) -> ScheduleSettings:
    target = draw(st.floats(0.05, 0.98))
    return ScheduleSettings.model_validate(
        {
            "target": target,
            "iterations": draw(st.integers(1, 8)),
            "shape": draw(st.sampled_from(SHAPES)),
            "first_step": draw(st.one_of(st.none(), st.floats(0.02, target))),
            "backoff": draw(st.floats(0.2, 0.8)),
            "smallest_step": draw(st.floats(0.005, 0.2)),
            "max_attempts": draw(st.integers(1, 25)),
        }
    )


def test_goals_of_each_shape_worked_by_hand() -> None:
    assert goals(scheduled(target=0.8, iterations=4)) == pytest.approx((0.2, 0.4, 0.6, 0.8))
    assert goals(scheduled(target=0.75, iterations=2, shape="geometric")) == pytest.approx((0.5, 0.75))
    assert goals(scheduled(target=0.8, iterations=2, shape="cubic")) == pytest.approx((0.7, 0.8))


def test_first_step_comes_first_and_the_rest_rises_from_there() -> None:
    assert goals(scheduled(target=0.8, iterations=3, first_step=0.2)) == pytest.approx((0.2, 0.5, 0.8))
    assert goals(scheduled(target=0.8, iterations=1, first_step=0.2)) == pytest.approx((0.2, 0.8))
    assert goals(scheduled(target=0.8, iterations=3, first_step=0.8)) == (0.8,)


@settings(deadline=None)
@given(schedules())
@example(scheduled(target=0.42053718695817766, iterations=6, shape="geometric", first_step=0.4205371869581776))
def test_goals_rise_and_end_at_the_target(settings: ScheduleSettings) -> None:
    found = goals(settings)
    assert all(0 < earlier <= later for earlier, later in itertools.pairwise(found))
    assert found[-1] == settings.target


def test_accepted_attempts_walk_to_the_target() -> None:
    found, stop = play(scheduled(target=0.8, iterations=4), [True] * 4)
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert stop == Stop("target reached")


def test_failed_step_is_halved_and_stays_halved() -> None:
    settings = scheduled(target=0.98, iterations=3, first_step=0.9, smallest_step=0.1)
    found, _ = play(settings, [False, True, True])
    assert found[:3] == pytest.approx([0.9, 0.45, 0.9])
    found, _ = play(settings, [False, False, True, True, True])
    assert found[:5] == pytest.approx([0.9, 0.45, 0.225, 0.45, 0.675])


def test_repeated_failure_ends_at_the_smallest_step() -> None:
    found, stop = play(scheduled(target=0.8, iterations=1, smallest_step=0.15), [])
    assert found == pytest.approx([0.8, 0.4, 0.2])
    assert stop == Stop("smallest step reached")


def test_last_attempt_ends_it() -> None:
    found, stop = play(scheduled(target=0.8, iterations=8, max_attempts=3), [True] * 9)
    assert len(found) == 3
    assert stop == Stop("attempts used up")


def test_goal_that_was_overshot_is_passed_over() -> None:
    settings = scheduled(target=0.8, iterations=4)
    step = next_step(settings, [Outcome(0.2, 0.39, True)])
    assert isinstance(step, Attempt)
    assert step.goal == pytest.approx(0.6)
    assert step.step == pytest.approx(0.21)
    assert next_step(settings, [Outcome(0.2, 0.81, True)]) == Stop("target reached")


@settings(deadline=None)
@given(schedules(), st.lists(st.booleans(), max_size=30))
def test_every_history_ends_and_no_goal_passes_the_target(settings: ScheduleSettings, verdicts: list[bool]) -> None:
    found, stop = play(settings, verdicts)
    assert stop is not None
    assert len(found) <= settings.max_attempts
    assert all(0 < goal <= settings.target for goal in found)


@settings(deadline=None)
@given(schedules(), st.lists(st.booleans(), max_size=30), st.integers(0, 10), st.floats(0.1, 1.0))
def test_later_stop_only_continues_a_history(
    settings: ScheduleSettings, verdicts: list[bool], more: int, factor: float
) -> None:
    looser = settings.model_copy(
        update={
            "max_attempts": settings.max_attempts + more,
            "smallest_step": settings.smallest_step * factor,
        }
    )
    short, _ = play(settings, verdicts)
    long, _ = play(looser, verdicts)
    assert long[: len(short)] == short


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": 1.0},
        {"target": 0},
        {"backoff": 1},
        {"iterations": 0},
        {"first_step": 0.9},
        {"shape": "square"},
        {"x": 1},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ScheduleSettings.model_validate({"target": 0.8} | wrong)
