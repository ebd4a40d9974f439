"""What a run leaves for people: the table, the exported students, the report, the tracking store's last entries."""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.cache import records, stamps
from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.local_store import LocalStore
from pipeline.deploy.shipping import LOSSES
from pipeline.report.extra import Extra
from pipeline.report.report import File, Report, portable, write_report
from pipeline.report.table import TESTED, Row, render_table
from pipeline.road.equal import equal_by, paid_for
from pipeline.road.exports import export_all, formats
from pipeline.road.run import Run
from pipeline.steps.job import STUDENT, Job
from pipeline.steps.values import Outcome
from pipeline.tasks.base import Drawing, Task
from pipeline.tasks.registry import task_of
from pipeline.tracking import ROLE, RunTracker

REPORT_STAMP = "report/stamp.json"
TOLD = "auto/told.json"
"""What is to be said of how a training was chosen, beside that training's fingerprint."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where everything is."""

    students: dict[str, dict[str, str]]
    """{student: {"safetensors" | "onnx" | "pth" | "card": path or URI}}"""
    report: str
    ui: str
    """The command that opens MLflow's pages, or their address."""

    def text(self) -> str:
        """For the terminal: where each student's files are, a line each."""
        lines = []
        for name, files in self.students.items():
            folder = next(iter(files.values()), "").rpartition("/")[0]
            lines.append(f"{name}: {folder} ({', '.join(files)})")
        lines.append(f"report: {self.report}")
        return "\n".join([*lines, f"MLflow: {self.ui}"] if self.ui else lines)


def table_rows(*outcomes: Outcome) -> list[Row]:
    """A row a model; the seeds of one method and student share a row, and so do those of several runs of a recipe."""
    rows: dict[str, Row] = {}
    several = len({job.gap for outcome in outcomes for job in outcome.jobs}) > 1
    results = [(outcome, result) for outcome in outcomes for result in outcome.results]
    for outcome, result in results:
        scores = {name: {k: [v] for k, v in figures(found).items()} for name, found in result.sets.items()}
        if (row := rows.get(result.group)) is None:
            cost = (result.parameters, result.multiply_adds, result.latency_ms)
            at = _place(result.job) if several and result.job is not None else ("", "")
            paid = paid_for(outcome, result.job) if result.role == STUDENT else {}
            rows[result.group] = Row(result.group, result.role, scores, *cost, *at, **paid)
            continue
        for set_name, metrics in scores.items():
            for key, values in metrics.items():
                row.scores[set_name][key].extend(values)  # type: ignore[attr-defined]
    return list(rows.values())


def _place(job: Job) -> tuple[str, str]:
    """(what a method's trainings at several gaps share, which of them it is)."""
    point = f"x{job.gap}"
    return (job.group.removesuffix(f"-{point}"), point) if job.role == STUDENT else ("", "")


def figures(found: Mapping[str, Any]) -> dict[str, float]:
    """Of what is known of a model on a set the metrics, not counts and names."""
    return {key: value for key, value in found.items() if isinstance(value, float)}


def table(outcome: Outcome, *folds: Outcome) -> str:
    """The table for the terminal, over further folds too."""
    return render_table(
        table_rows(outcome, *folds),
        metrics=_task(outcome).metrics(outcome.recipe),
        baseline=baseline(outcome),
        colour=sys.stdout.isatty(),
    )


def baseline(outcome: Outcome) -> dict[str, str]:
    """Of each student's row the one that its gains are measured against: trained alone, at the same gap."""
    scratch = [job for job in outcome.jobs if job.recipe["method"]["name"] == "scratch"]
    # The method itself, before variants of it, wherever it stands.
    alone = {job.gap: job.group for job in sorted(scratch, key=lambda job: job.method == "scratch")}
    rows = {job.group: alone[job.gap] for job in outcome.jobs if job.gap in alone}
    if _task(outcome).same_input:  # then teachers may be compared with it too
        rows |= {result.group: name for result in outcome.results for name in alone.values()}
    return rows


def compare_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """[{method, student, seed, set, <metrics>, ...}], one a student, seed and set."""
    rows = []
    for job in outcome.jobs:
        result = outcome.of(job)
        for set_name, found in result.sets.items():
            row = {
                "method": job.method,
                "student": job.spec.student.label,
                "seed": job.seed,
                "set": set_name,
                **_task(outcome).compare_row(outcome, result),
                **paid_for(outcome, job),
                **{key: value for key, value in found.items() if key != "images"},
            }
            rows.append(row)
    return rows


def summary(outcome: Outcome, files: Files) -> dict[str, Any]:
    """The run as JSON."""
    own = _task(outcome).summary(outcome, compare_rows(outcome), files.students)
    paid = {job.method: paid_for(outcome, job) for job in outcome.jobs if outcome.work}
    equal = {"equal": {"by": equal_by(outcome), "methods": paid}} if paid else {}
    return {"name": outcome.recipe.name, **own, **equal, "report": files.report}


def finish(run: Run, outcome: Outcome, warnings: Sequence[str], mlflow: str = "") -> Files:
    """Export every student, write the report, and record both; what is there already is left alone.

    `mlflow` is the command or address that opens the run's pages.
    """
    students = export_all(run, outcome)
    files = Files(students, run.output.where("report/report.html"), mlflow)
    seen = [
        [[r.identity, r.sets] for r in outcome.results],
        list(outcome.sets),
        list(warnings),
        outcome.recipe.name,
    ]
    measured = [metric.key for metric in run.task.metrics(outcome.recipe)]
    extras = _extras(run, outcome)
    identity = fingerprint(
        [*seen, measured, run.task.report_version, *formats(outcome), *map(asdict, extras)]
    )
    if not stamps.intact(run.output, REPORT_STAMP, identity):
        _report(run, outcome, warnings, files, identity)
    return files


def _extras(run: Run, outcome: Outcome) -> list[Extra]:
    """How its training was chosen, where `--auto` chose it."""
    found = records.load(run.output, TOLD, lambda v: (v["training"], Extra.read(v["extra"])))
    mine = {job.fingerprint for job in outcome.jobs}
    return [found[1]] if found is not None and found[0] in mine else []


def _task(outcome: Outcome) -> Task:
    return task_of(outcome.recipe)


def _report(run: Run, outcome: Outcome, warnings: Sequence[str], files: Files, identity: str) -> None:
    recipe, rows = outcome.recipe, table_rows(outcome)
    pictures = run.task.drawings(run, outcome)
    report = Report(
        title=recipe.name,
        rows=rows,
        metrics=run.task.metrics(recipe),
        summary=run.task.sentence(outcome),
        baseline=baseline(outcome),
        facts={**run.task.facts(outcome), **({"compared at": said} if (said := equal_by(outcome)) else {})},
        recipe=yaml.safe_dump(portable(recipe.model_dump(mode="json")), sort_keys=False),
        warnings=portable(list(warnings)),
        extras=[*_extras(run, outcome), *run.task.tables(outcome)],
        curves=_curves(outcome),
        pictures=list(pictures.values()),
        files=[
            File(f"{n}, {kind}", path, _loss(run, n, kind))
            for n, made in files.students.items()
            for kind, path in made.items()
        ],
        home=run.output.where("report"),
        mlflow=portable(files.ui),
    )
    with tempfile.TemporaryDirectory() as temporary:
        write_report(temporary, report)
        made: list[str] = []
        for path in sorted(Path(temporary).rglob("*")):
            if path.is_file():
                made.append(f"report/{path.relative_to(temporary).as_posix()}")
                run.output.put_file(made[-1], path)
        # What stays in place reaches MLflow even where that is away for long.
        local = run.output.path("report") if isinstance(run.output, LocalStore) else Path(temporary)
        _record(run, outcome, rows, local, pictures)
    stamps.put(run.output, REPORT_STAMP, identity, made)


def _loss(run: Run, student: str, kind: str) -> str:
    """What an exported file loses against the student, where that was measured."""
    found = (records.load(run.output, f"students/{student}/{LOSSES}") or {}).get(kind)
    return f"{found['loss_db']:+.3f} dB lost on {found['tried_on']}" if found else ""


def _record(
    run: Run, outcome: Outcome, rows: Sequence[Row], folder: Path, pictures: dict[str, Drawing]
) -> None:
    run.tracked.begin()
    tracker = run.tracked.parent
    assert tracker is not None
    for row in rows:
        means = {
            f"{TESTED}/{set_name}/{key}/{row.name}": statistics.fmean(values)
            for set_name, metrics in row.scores.items()
            for key, values in metrics.items()
        }
        if row.multiply_adds:
            means[f"cost/multiply_adds/{row.name}"] = float(row.multiply_adds)
        tracker.metrics({k: v for k, v in means.items() if math.isfinite(v)}, 0)
    for result in outcome.results:
        if result.job is None:
            continue
        record = run.tracked.trainings.get(result.job.label) or _earlier(run, result.job)
        record.tags({ROLE: result.role})
        for set_name, found in result.sets.items():
            values = {f"{TESTED}/{set_name}/{k}": v for k, v in figures(found).items()}
            record.metrics({k: v for k, v in values.items() if math.isfinite(v)}, 0)
    tracker.tags(run.task.tags(outcome.prepared))
    for name, (_, picture) in pictures.items():
        tracker.image(name, picture, 0)
    tracker.text(yaml.safe_dump(outcome.recipe.model_dump(mode="json"), sort_keys=False), "recipe.yaml")
    tracker.artifact(folder, "report")
    tracker.flush()


def _earlier(run: Run, job: Job) -> RunTracker:
    """A record of a training that an earlier run did, so that this run's page compares all its students."""
    record = run.tracked.training(job)
    record.tags({"trained": "earlier"})
    result = job.result()
    for metrics in result["curves"].values() if result else ():
        for name, points in metrics.items():
            for step, value in points:
                record.metrics({name: value}, int(step))
    return record


def _curves(outcome: Outcome) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """{metric: {training: points}} of every student's phases; one seed a method."""
    shown = ("train/loss", f"held_out/{_task(outcome).metrics(outcome.recipe)[0].key}")
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for job in outcome.jobs:
        result = job.result()
        for metrics in result["curves"].values() if result else ():
            for metric, points in metrics.items():
                if metric in shown:
                    curves.setdefault(metric, {}).setdefault(job.group, [(int(s), v) for s, v in points])
    return curves
