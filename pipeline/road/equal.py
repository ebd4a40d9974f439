"""Comparisons of equal work or of equal time: how many steps each method gets.

The recipe's own method trains for `train.steps`; what that comes to, with what it trains first and what `compare.count`
names, is what every other method gets. What a method pays whatever its student's length (a teacher of PISR's with a
length of its own, teachers that are counted) is taken off first.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cache import records
from pipeline.cache.fingerprint import fingerprint
from pipeline.errors import InputError
from pipeline.recipe.reading import with_method
from pipeline.steps.forecast import Effort
from pipeline.steps.job import Job, Listener
from pipeline.steps.values import Outcome, Prepared

if TYPE_CHECKING:
    from pipeline.road.run import Run

PACED = 30
"""Steps of which a pace is taken, evaluated every `PACED_EVERY`; the first of these warm up."""
PACED_EVERY = 10


def lengths(run: Run, prepared: Prepared, methods: Sequence[str]) -> tuple[dict[str, int], dict[str, float]]:
    """({method: steps}, {method: multiply-adds of all that it pays}), with methods of the recipe's own length too.

    Raises InputError where what a method pays first is more than all that it may.
    """
    recipe, compare = run.recipe, run.recipe.compare
    own = recipe.method.name
    efforts = {m: run.task.effort(with_method(recipe, m), prepared) for m in dict.fromkeys([own, *methods])}
    if len(efforts) == 1:
        return {own: recipe.train.steps}, {own: efforts[own].work(recipe.train.steps, compare.count)}
    if compare.equal == "work":
        price = {m: (e.before(compare.count), e.step + e.helper_step) for m, e in efforts.items()}
    else:
        price = _seconds(run, prepared, efforts)
    before, each = price[own]
    budget = before + recipe.train.steps * each
    found = {own: recipe.train.steps}
    for method, (first, step) in price.items():
        if method == own:
            continue
        if (steps := int((budget - first) / step + 1e-6)) < 1:
            raise InputError(
                f"compare.equal: {compare.equal}",
                f"a method that costs less before its first step than {own} does in all",
                f"{method}, at {first / budget:.3g} times as much",
                "Leave it out, give train.steps more, or count less (compare.count).",
            )
        found[method] = steps
    return found, {m: efforts[m].work(found[m], compare.count) for m in efforts}


def _seconds(run: Run, prepared: Prepared, efforts: Mapping[str, Effort]) -> dict[str, tuple[float, float]]:
    """{method: (seconds before its first step, seconds a step)}, measured once.

    Of what a method trains first, the seconds are those of its multiply-adds at the pace of its student's, or of the
    others' where a student cannot train before that is there; teachers' seconds are those that teaching them took.
    """
    count, paces = run.recipe.compare.count, _paces(run, prepared, list(efforts))
    rates = {m: efforts[m].step / pace for m, pace in paces.items()}
    mean = statistics.fmean(rates.values())
    taught = sum(t.seconds for t in prepared.teachers)
    most = max(e.teaching for e in efforts.values()) or 1.0
    found = {}
    for method, e in efforts.items():
        rate = rates.get(method, mean)
        shared = {"teaching": taught * e.teaching / most + e.training / mean, "fusing": e.fusing / mean}
        first = e.fixed / rate + sum(shared[name] for name in count)
        found[method] = first, (e.step + e.helper_step) / rate
    return found


def _paces(run: Run, prepared: Prepared, methods: Sequence[str]) -> dict[str, float]:
    """{method: seconds a step} of those whose student needs no other training first, from the run's folder or measured
    now, one after the other. A second start reads them: its trainings are the same.
    """
    found: dict[str, float] = {}
    todo: dict[str, tuple[str, Job]] = {}
    for method in methods:
        recipe = with_method(run.recipe, method)
        if run.task.helper(recipe, method, prepared) is not None:
            continue
        job = run.task.student(recipe, prepared, method, run.task.gaps(recipe)[0], recipe.seed)
        rel = f"paces/{method}-{fingerprint([job.fingerprint, PACED])}.json"
        known = records.load(run.output, rel, lambda value: float(value["seconds_a_step"]))
        if known is None:
            todo[method] = rel, job
        else:
            found[method] = known
    for method, (rel, job) in todo.items():
        gpus = run.recipe.distill.gpus_per_worker
        (found[method],) = run.planner.map(f"pace of {method}", paced, [job], "methods", gpus=gpus)
        records.save(run.output, rel, {"seconds_a_step": found[method]})
    if not found:
        raise InputError(
            "compare.equal: time", "a method that needs no training before its student's", "none"
        )
    return found


def paced(job: Job, device: str) -> float:
    """Seconds of one step of a training, evaluations apart; nothing of it is kept."""
    at: list[tuple[int, float]] = []

    def sync(metrics: dict[str, Any], step: int) -> None:
        at.append((step, metrics["at"] - metrics["looked"]))

    with tempfile.TemporaryDirectory() as folder:
        train = {**job.recipe["train"], "steps": PACED, "evaluate_every": PACED_EVERY}
        recipe = {**job.recipe, "output": Path(folder).as_uri(), "train": train}
        replace(job, recipe=recipe, folder="paced").run(device=device, listener=Listener(sync=sync))
    return statistics.median((b - a) / (t - s) for (s, a), (t, b) in zip(at, at[1:]))


def paid_for(outcome: Outcome, job: Job | None) -> dict[str, Any]:
    """{"steps": of a student's training, "work": multiply-adds of all that its method paid for}; nothing where
    comparisons are of equal steps."""
    if job is None or job.method not in outcome.work:
        return {}
    return {"steps": job.steps, "work": outcome.work[job.method]}


def equal_by(outcome: Outcome) -> str:
    """By what comparisons are equal, in words; empty where by steps."""
    compare = outcome.recipe.compare
    if compare.equal == "steps":
        return ""
    counted = " and ".join(compare.count) or "neither teaching nor fusing"
    what = {"work": "multiply-adds", "time": "seconds (steps by a pace that was measured once)"}[
        compare.equal
    ]
    return (
        f"equal {what} for each method, those of {outcome.recipe.method.name} in {outcome.recipe.train.steps:,} steps; "
        f"what a method trains first counts, of what methods share {counted}"
    )
