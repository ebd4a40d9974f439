"""How a time budget is shared out among trainings."""

from __future__ import annotations

import pytest

from pipeline.recipe.settings import Train
from pipeline.search.allotment import (
    Pace,
    Rung,
    duration,
    final_steps,
    first_steps,
    makespan,
    of_length,
    pace_of,
    shape,
)
from pipeline.search.trial import Trial


@pytest.mark.parametrize("steps, warmup", [(1000, 50), (100, 25), (4, 1), (3000, 50)])
def test_a_warm_up_has_its_steps_in_a_training_of_any_length_that_has_room(steps: int, warmup: int) -> None:
    found = of_length(Train(steps=1000, warmup=50, lr=1e-3), steps, 7)
    assert found == Train(steps=steps, warmup=warmup, lr=1e-3, evaluate_every=7)
    assert of_length(Train(steps=1000), steps, 7).warmup == 0


def test_a_makespan_is_that_of_the_machine_that_is_busy_longest() -> None:
    assert makespan([3, 1, 1, 1], 2) == 3 and makespan([1, 1, 3], 2) == 4
    assert makespan([2, 2], 1) == 4 and makespan([], 2) == 0


def test_the_shape_of_a_ladder() -> None:
    assert shape(2) == [Rung(1, 2, 2)] and shape(5) == [Rung(1, 5, 1), Rung(3, 2, 2)]
    assert shape(12) == [Rung(1, 12, 1), Rung(3, 4, 1), Rung(9, 2, 2)]


@pytest.mark.parametrize("abreast", [1, 2, 5])
def test_the_first_rung_is_as_long_as_fits_and_no_longer(abreast: int) -> None:
    paces = {
        "scratch": Pace(1, 0.01, 0.5),
        "a": Pace(2, 0.02, 0.5),
        "b": Pace(0, 0.03, 1),
        "c": Pace(1, 0.01, 0),
    }
    always, rungs = ("scratch", "a"), shape(2)
    seconds = 100 / abreast  # below a thousand steps: none are rounded away
    steps = first_steps(rungs, seconds, paces, always, abreast)
    assert 10 < steps < 1000 and duration(rungs, steps, paces, always, abreast) <= seconds
    assert duration(rungs, steps + 1, paces, always, abreast) > seconds
    assert first_steps(rungs, 0.1, paces, always, abreast) == 0


def test_a_pace_is_taken_between_two_evaluations_of_one_process() -> None:
    trial = Trial(0, {}, "finished", [[10, 1.0], [20, 2.0]])
    trial.times, trial.seconds = [[10, 6.0, 2.0], [20, 13.0, 4.0]], 16.0
    # 5 s for ten steps, 2 s a look; 16 s less 4 s of looks and 10 s of steps are its start.
    assert pace_of([trial]) == Pace(2.0, 0.5, 2.0)
    trial.prepared = 10.0  # an assistant's training is as long as its student's
    assert pace_of([trial]) == Pace(2.0, 1.0, 2.0)
    longer = Trial(1, {}, "finished", [[200, 2.0]])
    longer.times, longer.seconds = [[100, 30.0, 2.0], [200, 52.0, 4.0]], 54.0
    assert pace_of([trial, longer]).step == pytest.approx(0.2), "the longest trials count"  # type: ignore[union-attr]
    assert pace_of([Trial(2, {})]) is None


def test_the_last_training_fits_with_its_evaluations() -> None:
    pace = Pace(start=5, step=0.1, look=2)
    steps, every = final_steps(300, pace, 500)
    looks = -(-steps // every)
    assert every == 500 and 0.9 * 300 < pace.seconds(steps, looks) <= 0.95 * 300
    many, every = final_steps(3000, pace, 10)
    assert -(-many // every) <= 20 and pace.seconds(many, 20) <= 0.96 * 3000
    assert final_steps(4, pace, 500)[0] == 0
