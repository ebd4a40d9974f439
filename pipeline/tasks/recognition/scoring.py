"""Every network's figures on the test pictures; what was scored before is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.cache import records
from pipeline.report.table import Metric
from pipeline.steps.job import Job, located
from pipeline.steps.values import Outputs, Prepared, Result
from pipeline.tasks.recognition.jobs import RecognitionJob
from pipeline.tasks.recognition.recipe import Recognition
from pipeline.tasks.recognition.score import NEAREST, Scored, ScoreTask

if TYPE_CHECKING:
    from pipeline.road.run import Run
    from pipeline.tasks.recognition.task import RecognitionTask


def results(
    task: RecognitionTask, run: Run, prepared: Prepared, jobs: Sequence[Job], set_name: str
) -> list[Result]:
    """The networks at HR, then the students. Of several assistants the first is a row."""
    assistants = list(prepared.helpers.values())[:1]
    recipe, test = located(run.recipe), prepared.samples.path("test")
    tasks: list[tuple[Outputs | Job, ScoreTask]] = []
    for helper in (*prepared.all, *assistants):
        tasks.append(
            (helper, ScoreTask(task, helper.label, recipe, 1, helper.network, run.planner.store.uri, test))
        )
    for job in jobs:
        assert isinstance(job, RecognitionJob)
        tasks.append(
            (job, ScoreTask(task, job.label, job.recipe, job.gap, job.source(), run.output.uri, test))
        )
    val = prepared.samples.path("val")
    watched = [
        replace(t, label=f"{t.label}, held out", pictures=val) for o, t in tasks if o in prepared.teachers
    ]
    known = _known(run, [*(t for _, t in tasks), *watched])
    _judge(task, run, watched, known, jobs)
    return [_result(owner, known[t.label], set_name) for owner, t in tasks]


def under_others(figure: Metric, recipe: Recognition) -> list[Metric]:
    """The first figure under each degradation of LR but the first, which all figures are of."""
    return [
        replace(figure, key=f"{figure.key}_{kind}", label=f"{figure.label}, {kind}")
        for kind in recipe.other_degradations
    ]


def _known(run: Run, tasks: Sequence[ScoreTask]) -> dict[str, Scored]:
    """Scores by label; what was scored before is read."""
    read = {t.label: records.load(run.output, _file(t.identity), lambda v: Scored(**v)) for t in tasks}
    known = {label: found for label, found in read.items() if found is not None}
    missing = [t for t in tasks if t.label not in known]
    gpus = run.planner.actors.gpus_per_actor
    for scored in run.planner.map(
        "evaluate", _scored, missing, "networks", note=lambda s: s.label, gpus=gpus
    ):
        known[scored.label] = scored
        records.save(run.output, _file(scored.identity), scored.plain())
    return known


def _judge(
    task: RecognitionTask,
    run: Run,
    watched: Sequence[ScoreTask],
    known: Mapping[str, Scored],
    jobs: Sequence[Job],
) -> None:
    """Say how good each teacher is on the held-out pictures, and warn of one that is below the best student there."""
    metric = task.metric(run.recipe)
    students = {job.label: found for job in jobs if (found := _held_out(job, metric.key)) is not None}
    best = max(students, key=lambda label: students[label], default=None)
    for each in watched:
        values = known[each.label].values
        value = values.get(metric.key)
        if value is None:
            run.planner.reporter.say(f"{each.label}: {NEAREST.label} {values[NEAREST.key]:.4f}")
            continue
        run.planner.reporter.say(f"{each.label}: {metric.label} {value:.4f}")
        if best is not None and value < students[best]:
            run.planner.reporter.warn(
                f"{each.label}: {metric.label} {value:.4f} is below the best student's ({best}: {students[best]:.4f}); "
                "a teacher that knows less has little to tell. Train it longer, or name a better one."
            )


def _held_out(job: Job, key: str) -> float | None:
    """A student's last figure on the held-out pictures."""
    curves = (job.result() or {}).get("curves", {})
    for phase in reversed(list(curves.values())):
        if curve := phase.get(f"held_out/{key}"):
            return float(curve[-1][1])
    return None


def _result(owner: Outputs | Job, scored: Scored, set_name: str) -> Result:
    job = owner if isinstance(owner, Job) else owner.job
    return Result(
        name=owner.label,
        role="student" if isinstance(owner, Job) else owner.role,
        identity=scored.identity,
        sets={set_name: scored.values},
        parameters=scored.parameters,
        multiply_adds=scored.multiply_adds,
        latency_ms=scored.latency_ms,
        job=job,
        row=owner.group if isinstance(owner, Job) else f"{owner.label} (HR)",
        curves={**scored.curves, "dropped": scored.dropped},
    )


def _file(identity: str) -> str:
    return f"scores/{identity}.json"


def _scored(task: ScoreTask, device: str) -> Scored:
    return task.run(device)
