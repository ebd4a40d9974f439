"""Every network's figures on the test pictures; what was scored before is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.cache import records
from pipeline.steps.job import Job, located
from pipeline.steps.values import Outputs, Prepared, Result
from pipeline.tasks.recognition.jobs import RecognitionJob
from pipeline.tasks.recognition.score import Scored, ScoreTask

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
    known = {t.label: records.load(run.output, _file(t.identity), lambda v: Scored(**v)) for _, t in tasks}
    missing = [t for _, t in tasks if known[t.label] is None]
    gpus = run.planner.actors.gpus_per_actor
    for scored in run.planner.map(
        "evaluate", _scored, missing, "networks", note=lambda s: s.label, gpus=gpus
    ):
        known[scored.label] = scored
        records.save(run.output, _file(scored.identity), scored.plain())
    return [_result(owner, found, set_name) for owner, t in tasks if (found := known[t.label]) is not None]


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
