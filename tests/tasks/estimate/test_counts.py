"""Bounds on attempts, epochs and evaluations hold for every history that the loop can have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.allocation.schedule import Attempt, Outcome, ScheduleSettings, expected_goals, goals, next_step
from pruning.training.recipe import EarlyStopping, Recipe, Sparsity
from tasks.config.schema import Settings
from tasks.estimate.counts import Bounds, attempts_of, epochs_of, judged, steps_per_epoch, work_of

SAMPLES = {"train": 100, "validation": 40, "test": 40}
SCHEDULES = st.builds(
    ScheduleSettings,
    target=st.floats(0.1, 0.9),
    iterations=st.integers(1, 6),
    shape=st.sampled_from(("linear", "geometric", "cubic")),
    backoff=st.floats(0.1, 0.9),
    smallest_step=st.floats(0.005, 0.1),
    max_attempts=st.integers(1, 15),
)


@given(SCHEDULES, st.lists(st.tuples(st.booleans(), st.floats(0, 0.3)), min_size=15, max_size=15))
def test_no_history_has_fewer_or_more_attempts_than_the_bounds(
    schedule: ScheduleSettings, fates: list[tuple[bool, float]]
) -> None:
    bounds, history = attempts_of(schedule), list[Outcome]()
    for accepted, beyond in fates:
        if not isinstance(step := next_step(schedule, history), Attempt):
            break
        history.append(Outcome(step.goal, min(1.0, step.goal + beyond) if accepted else 0.0, accepted))
    assert bounds.least <= len(history) <= bounds.most
    assert bounds.least <= bounds.expected <= bounds.most


@given(SCHEDULES)
def test_expected_are_the_scheduled_goals_as_far_as_attempts_go(schedule: ScheduleSettings) -> None:
    found = expected_goals(schedule)
    assert set(found) <= set(goals(schedule))
    if schedule.max_attempts >= schedule.iterations:
        assert found[-1] == schedule.target


def test_what_was_attempted_counts_no_more() -> None:
    schedule = ScheduleSettings(
        target=0.8, iterations=2, shape="linear", backoff=0.5, smallest_step=0.01, max_attempts=9
    )
    assert attempts_of(schedule) == Bounds(1, 2, 9)
    first = Outcome(0.4, 0.4, accepted=True)
    assert attempts_of(schedule, [first]) == Bounds(1, 1, 8)
    assert attempts_of(schedule, [first, Outcome(0.8, 0.8, accepted=True)]) == Bounds(0, 0, 0)


@pytest.mark.parametrize(
    ("recipe", "epochs", "evaluations"),
    [
        (Recipe(epochs=6), Bounds(6, 6, 6), Bounds(1, 1, 1)),
        (Recipe(steps=5, batch_size=50), Bounds(2.5, 2.5, 2.5), Bounds(1, 1, 1)),
        (Recipe(epochs=6, early_stopping=EarlyStopping(patience=2)), Bounds(2, 6, 6), Bounds(4, 8, 8)),
    ],
)
def test_a_recipe_says_its_epochs_and_evaluations(recipe: Recipe, epochs: Bounds, evaluations: Bounds) -> None:
    assert epochs_of(recipe, 100) == epochs
    assert judged(recipe, 100, undo=False) == evaluations


def test_epochs_that_may_be_undone_are_judged_unless_training_has_to_reach_its_end() -> None:
    assert judged(Recipe(epochs=3), 100, undo=True) == Bounds.exactly(1 + 1 + 3)
    sparse = Recipe(epochs=3, sparsity=Sparsity(penalty="bn_scale", share=0.5))
    assert judged(sparse, 100, undo=True) == Bounds(1, 5, 5)


def test_a_last_batch_of_one_sample_is_no_step_of_its_own() -> None:
    assert [steps_per_epoch(Recipe(batch_size=50), number) for number in (100, 101, 102)] == [2, 2, 3]


def test_stages_count_what_their_settings_ask_for() -> None:
    settings = Settings.model_validate(
        {
            "data": {"factory": "zoo.datasets:digits"},
            "model": {"factory": "zoo.models:resnet20"},
            "baseline": {"recipe": {"epochs": 12}},
            "prune": {"target": {"mac_reduction": 0.75}},
            "machine": {"processes": 2},
        }
    )
    found = work_of(settings, SAMPLES, settings.prune.schedule_for(0.75), curves=[3, 0, 2])
    assert found["baseline"].epochs == Bounds.exactly(12)
    assert found["prune"].attempts == Bounds(1, 3, 10)
    assert found["prune"].epochs == Bounds(12, 36, 120)  # two recipes of six epochs
    assert found["prune"].evaluations == Bounds(2, 6, 20)
    assert found["analyze"].evaluations == Bounds(2, 6, 7)  # one whole model in each process
