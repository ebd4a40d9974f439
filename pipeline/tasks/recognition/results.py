"""What a recognition run leaves for people: the table, the report, the tracking store's last entries."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.cache import stamps
from pipeline.cache.fingerprint import fingerprint
from pipeline.recipe.recognition import Recognition
from pipeline.report.report import File, Report, portable, write_report
from pipeline.report.table import TESTED, Row, render_table
from pipeline.tasks.recognition.drawings import drawings
from pipeline.tasks.recognition.export import export_recogniser, file_stem
from pipeline.tasks.recognition.jobs import RecognitionJob
from pipeline.tasks.recognition.run import Outcome, RecognitionRun
from pipeline.tasks.recognition.tasks import METRICS
from pipeline.training import weights

REPORT_STAMP = "report/stamp.json"


@dataclass(frozen=True, slots=True)
class Files:
    """Where everything is."""

    students: dict[str, str]
    report: str
    ui: str
    """The command that opens MLflow's pages, or their address."""

    def text(self) -> str:
        """For the terminal."""
        lines = [f"{name}: {path}" for name, path in self.students.items()] + [f"report: {self.report}"]
        return "\n".join([*lines, f"MLflow: {self.ui}"] if self.ui else lines)


def table_rows(outcome: Outcome) -> list[Row]:
    """A row a network: teacher and assistant at HR, students with their seeds together, one for each gap."""
    (name,) = outcome.sets
    rows: dict[str, Row] = {}
    roles = outcome.roles
    for label, scored in outcome.scores.items():
        role = roles.get(label, "student")
        group = label.rsplit("-s", 1)[0] if role == "student" else f"{label} (HR)"
        if group in rows:
            for key, value in scored.values.items():
                rows[group].scores[name][key].append(value)  # type: ignore[attr-defined]
            continue
        scores = {name: {key: [value] for key, value in scored.values.items()}}
        rows[group] = Row(
            group,
            role,
            scores,
            scored.parameters,
            scored.multiply_adds,
            scored.latency_ms,  # type: ignore[arg-type]
        )
    return list(rows.values())


def baseline(outcome: Outcome) -> dict[str, str]:
    """Of each student the one that its gains are measured against: trained alone, at the same gap."""
    scratch = [job for job in outcome.jobs if job.recipe["method"]["name"] == "scratch"]
    # The method itself, before variants of it, wherever it stands.
    alone = {job.gap: job.group for job in sorted(scratch, key=lambda job: job.method == "scratch")}
    return {job.group: alone[job.gap] for job in outcome.jobs if job.gap in alone}


def table(outcome: Outcome) -> str:
    """The table for the terminal."""
    metrics = METRICS[outcome.recipe.task]
    return render_table(
        table_rows(outcome), metrics=metrics, baseline=baseline(outcome), colour=sys.stdout.isatty()
    )


def compare_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """[{method, student, seed, set, gap, parameters, multiply_adds, latency_ms, <metrics>}], one a student."""
    rows = []
    for job in outcome.jobs:
        scored = outcome.scores[job.label]
        rows.append(
            {
                "method": job.method,
                "student": job.spec.student.label,
                "seed": job.seed,
                "set": outcome.sets[0],
                "gap": job.gap,
                "parameters": scored.parameters,
                "multiply_adds": scored.multiply_adds,
                "latency_ms": scored.latency_ms,
                **scored.values,
            }
        )
    return rows


def summary(outcome: Outcome, files: Files) -> dict[str, Any]:
    """The run as JSON."""
    helpers = {
        label: {
            "parameters": s.parameters,
            "multiply_adds": s.multiply_adds,
            "latency_ms": s.latency_ms,
            **s.values,
        }
        for label, s in outcome.scores.items()
        if label in outcome.roles
    }
    return {
        "name": outcome.recipe.name,
        "task": outcome.recipe.task,
        **helpers,
        "rows": compare_rows(outcome),
        "students": files.students,
        "report": files.report,
    }


def finish(run: RecognitionRun, outcome: Outcome, warnings: Sequence[str], mlflow: str = "") -> Files:
    """Write the report and record it; what is there already is left alone.

    `mlflow` is the command or address that opens the run's pages.
    """
    recipe = outcome.recipe
    students = {job.label: _export(run, outcome, job) for job in outcome.jobs}
    files = Files(students, run.output.where("report/report.html"), mlflow)
    identity = fingerprint([[s.identity for s in outcome.scores.values()], list(warnings), recipe.name])
    if not stamps.intact(run.output, REPORT_STAMP, identity):
        _report(run, outcome, warnings, files, identity)
    return files


def _export(run: RecognitionRun, outcome: Outcome, job: RecognitionJob) -> str:
    """The student's file; ONNX and its page lie beside it."""
    folder = f"students/{job.label}"
    name = f"{folder}/{file_stem(job.network.name, job.gap)}.safetensors"
    stamp = f"{folder}/stamp.json"
    scores = outcome.scores[job.label].values
    identity = [job.fingerprint, scores]
    if not stamps.intact(run.output, stamp, identity):
        with tempfile.TemporaryDirectory() as temporary:
            raw = Path(temporary, "raw.safetensors")
            raw.write_bytes(weights.read(job.output(), weights.WEIGHTS))
            classes = outcome.data.classes if outcome.recipe.task == "classification" else ()
            made = export_recogniser(
                raw, Path(temporary, "out"), outcome.sets[0], scores, classes, run.reporter.warn
            )
            for path in made.values():
                run.output.put_file(f"{folder}/{path.name}", path)
        stamps.put(run.output, stamp, identity, [f"{folder}/{path.name}" for path in made.values()])
    return run.output.where(name)


def _report(
    run: RecognitionRun, outcome: Outcome, warnings: Sequence[str], files: Files, identity: str
) -> None:
    recipe, rows = outcome.recipe, table_rows(outcome)
    pictures = drawings(run, outcome)
    report = Report(
        title=recipe.name,
        rows=rows,
        metrics=METRICS[recipe.task],
        summary=_sentence(outcome),
        baseline=baseline(outcome),
        facts=_facts(outcome),
        recipe=yaml.safe_dump(portable(recipe.model_dump(mode="json")), sort_keys=False),
        warnings=portable(list(warnings)),
        curves=_curves(outcome),
        pictures=list(pictures.values()),
        files=[File(name, path) for name, path in files.students.items()],
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
        _record(run, outcome, rows, Path(temporary), pictures)
    stamps.put(run.output, REPORT_STAMP, identity, made)


def _record(
    run: RecognitionRun, outcome: Outcome, rows: Sequence[Row], folder: Path, pictures: dict[str, Any]
) -> None:
    run.tracked.begin()
    tracker = run.tracked.parent
    assert tracker is not None
    for row in rows:
        found = {
            f"{TESTED}/{name}/{key}/{row.name}": statistics.fmean(values)
            for name, metrics in row.scores.items()
            for key, values in metrics.items()
        }
        tracker.metrics(found | {f"cost/multiply_adds/{row.name}": float(row.multiply_adds or 0)}, 0)
    for label, record in run.tracked.trainings.items():
        if label in outcome.scores:
            values = outcome.scores[label].values
            record.metrics({f"{TESTED}/{outcome.sets[0]}/{key}": value for key, value in values.items()}, 0)
    tracker.tags({helper.label: helper.source.identity for helper in outcome.teachers})
    tracker.tags({"pictures": outcome.data.splits["train"].fingerprint})
    for name, (_, picture) in pictures.items():
        tracker.image(name, picture, 0)
    tracker.text(yaml.safe_dump(outcome.recipe.model_dump(mode="json"), sort_keys=False), "recipe.yaml")
    tracker.artifact(folder, "report")
    tracker.flush()


def _sentence(outcome: Outcome) -> str:
    recipe = outcome.recipe
    gaps = " and ".join(str(gap) for gap in recipe.gaps)
    teachers = ", ".join(teacher.network.name for teacher in recipe.seen_by)
    height, width = recipe.hr_size
    return (
        f"{recipe.task.capitalize()}: {recipe.student.name} at a resolution gap of {gaps}, teacher {teachers} at "
        f"{height} x {width}; {recipe.train.steps:,} steps per student."
    )


def _facts(outcome: Outcome) -> dict[str, str]:
    recipe, splits = outcome.recipe, outcome.data.splits
    sizes = ", ".join(f"x{g}: {recipe.lr_size(g)[0]} x {recipe.lr_size(g)[1]}" for g in recipe.gaps)
    facts = {
        "pictures": ", ".join(f"{m.rows:,} {name}" for name, m in splits.items()),
        "classes": f"{len(outcome.data.classes)} to train on",
        "HR": f"{recipe.hr_size[0]} x {recipe.hr_size[1]}",
        "LR": f"{sizes}; {recipe.input}",
        "degradation": "bicubic (MATLAB), of the same view",
        "views": f"{recipe.data.views.count} a picture, shift {recipe.data.views.shift}, "
        + ("flipped" if recipe.data.views.flip else "not flipped")
        + f", zoom {recipe.data.views.zoom}, light {recipe.data.views.light}",
        "budget": f"{recipe.train.steps:,} steps of {recipe.train.batch} pictures",
        "cost": "multiply-adds and milliseconds of one picture at the network's own input size, one CPU thread",
        **{helper.label: helper.source.identity for helper in outcome.teachers},
    }
    if seconds := sum(helper.seconds for helper in outcome.teachers):
        facts["teacher outputs"] = f"{seconds:.1f} s for all views, cached"
    if dropped := max(s.dropped for s in outcome.scores.values()):
        facts["stem"] = f"{dropped} stride(s) dropped so that small pictures keep a map of at least 2 x 2"
    return facts


def _curves(outcome: Outcome) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """{metric: {training: points}} of one seed a method."""
    shown = ("train/loss", f"held_out/{METRICS[outcome.recipe.task][0].key}")
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for job in outcome.jobs:
        result = job.result()
        for metric, points in (result["curves"]["train"] if result else {}).items():
            if metric in shown:
                curves.setdefault(metric, {}).setdefault(job.group, [(int(s), v) for s, v in points])
    return curves


def settings(recipe: Recognition) -> str:
    """The recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=110)
