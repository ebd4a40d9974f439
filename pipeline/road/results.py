"""What a run leaves for people: the table, the exported students, the report, the tracking store's last entries."""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.cache import records, stamps
from pipeline.cache.fingerprint import fingerprint
from pipeline.deploy.shipping import MISSING, export_student, missing_note
from pipeline.means import set_means
from pipeline.metrics import PROTOCOL
from pipeline.recipe.recipe import Recipe
from pipeline.report.pictures import comparison_strip
from pipeline.report.report import File, Report, portable, write_report
from pipeline.report.table import TESTED, Row, render_table
from pipeline.road.run import Outcome, Run, student_identity
from pipeline.tasks.super_resolution.distill import TrainJob
from pipeline.tasks.super_resolution.score import cost
from pipeline.tracking import RunTracker
from pipeline.training import weights

REPORT_STAMP = "report/stamp.json"


@dataclass(frozen=True, slots=True)
class Files:
    """Where everything is."""

    students: dict[str, dict[str, str]]
    """{student: {"safetensors" | "onnx" | "pth" | "card": path or URI}}"""
    report: str
    markdown: str
    ui: str
    """The command that opens MLflow's pages, or their address."""

    def text(self) -> str:
        """For the terminal."""
        lines = [f"{name}: {path}" for name, files in self.students.items() for path in files.values()]
        lines.append(f"report: {self.report}")
        return "\n".join([*lines, f"MLflow: {self.ui}"] if self.ui else lines)


def scores_of(outcome: Outcome, identity: str) -> dict[str, dict[str, Any]]:
    """{set: `set_means`} of the model of that identity."""
    return {
        name: set_means(pictures, outcome.exact(name))
        for name, pictures in outcome.scores[identity].items()
        if pictures
    }


def table_rows(outcome: Outcome) -> list[Row]:
    """A row a model; the seeds of one method and student share a row."""
    rows: dict[str, Row] = {}
    for model in outcome.models:
        name = model.group
        found = scores_of(outcome, model.identity)
        scores = {s: {"psnr_y": [v["psnr_y"]], "ssim_y": [v["ssim_y"]]} for s, v in found.items()}
        if name in rows:
            for set_name, metrics in scores.items():
                for key, values in metrics.items():
                    rows[name].scores[set_name][key].extend(values)  # type: ignore[attr-defined]
            continue
        counted = cost(model, outcome.recipe.scale)
        rows[name] = Row(name, model.role, scores, *(counted or (None, None)))
    return list(rows.values())


def table(outcome: Outcome) -> str:
    """The table for the terminal."""
    return render_table(table_rows(outcome), baseline=baseline(outcome), colour=sys.stdout.isatty())


def baseline(outcome: Outcome) -> str | None:
    """The row that gains are measured against: the student trained alone."""
    alone = [job for job in outcome.jobs if job.recipe["method"]["name"] == "scratch"]
    return next((job.group for job in sorted(alone, key=lambda job: job.method != "scratch")), None)


def compare_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """[{method, student, seed, set, psnr_y, ssim_y[, exact]}], one a student, seed and set."""
    rows = []
    for job in outcome.jobs:
        recipe = job.spec
        for name, score in scores_of(outcome, student_identity(job)).items():
            del score["images"]
            rows.append(
                {
                    "method": job.method,
                    "student": recipe.student.label,
                    "seed": job.seed,
                    "set": name,
                    **score,
                }
            )
    return rows


def summary(outcome: Outcome, files: Files) -> dict[str, Any]:
    """The run as JSON."""
    rows = []
    for model in outcome.models:
        counted = cost(model, outcome.recipe.scale) or (None, None)
        rows.append(
            {
                "model": model.name,
                "role": model.role,
                "parameters": counted[0],
                "multiply_adds": counted[1],
                "sets": scores_of(outcome, model.identity),
            }
        )
    return {"name": outcome.recipe.name, "rows": rows, "students": files.students, "report": files.report}


def finish(run: Run, outcome: Outcome, warnings: Sequence[str], mlflow: str = "") -> Files:
    """Export every student, write the report, and record both; what is there already is left alone.

    `mlflow` is the command or address that opens the run's pages.
    """
    students = {job.label: _export(run, outcome, job) for job in outcome.jobs}
    recipe = outcome.recipe
    identity = fingerprint(
        [[m.identity for m in outcome.models], outcome.sets, list(warnings), recipe.name, PROTOCOL]
    )
    report, markdown = "report/report.html", "report/report.md"
    files = Files(students, run.output.where(report), run.output.where(markdown), mlflow)
    if not stamps.intact(run.output, REPORT_STAMP, identity):
        _report(run, outcome, warnings, files, identity)
    return files


def _export(run: Run, outcome: Outcome, job: TrainJob) -> dict[str, str]:
    folder = f"students/{job.label}"
    stem = f"{folder}/{job.spec.student.label}_x{job.spec.scale}"
    names = {
        "safetensors": f"{stem}.safetensors",
        "onnx": f"{stem}.onnx",
        "pth": f"{stem}.pth",
        "card": f"{folder}/README.md",
    }
    stamp, missing = f"{folder}/stamp.json", f"{folder}/{MISSING}"
    identity = [job.fingerprint, scores_of(outcome, student_identity(job))]
    if not stamps.intact(run.output, stamp, identity):
        facts = _facts(outcome, job)
        with tempfile.TemporaryDirectory() as temporary:
            raw = Path(temporary, "raw.safetensors")
            raw.write_bytes(weights.read(job.output(), weights.WEIGHTS))
            made = export_student(raw, Path(temporary, "out"), facts)
            for kind, path in made.files.items():
                run.output.put_file(names[kind], path)
        records.save(run.output, missing, made.missing)
        stamps.put(run.output, stamp, identity, [*(names[kind] for kind in made.files), missing])
    if left_out := records.load(run.output, missing):
        run.reporter.warn(missing_note(job.label, left_out))
    return {kind: run.output.where(rel) for kind, rel in names.items() if run.output.exists(rel)}


def _facts(outcome: Outcome, job: TrainJob) -> dict[str, Any]:
    return {
        "recipe": outcome.recipe.name,
        "method": job.spec.method.name,
        "seed": job.seed,
        "training": job.fingerprint,
        "tiles": outcome.tiles.train.fingerprint,
        "teachers": {t.facts.label: t.facts.sha256 for t in outcome.taught},
        "metrics": scores_of(outcome, student_identity(job)),
        "protocol": "Y of BT.601 (grey files as they are), 8 bit, scale pixels shaved, MATLAB bicubic LR",
    }


def _report(run: Run, outcome: Outcome, warnings: Sequence[str], files: Files, identity: str) -> None:
    recipe = outcome.recipe
    rows = table_rows(outcome)
    pictures = []
    if outcome.strip:
        names = {"LR": "LR", **{m.identity: m.name for m in outcome.models}}
        shown = [(names[key], picture) for key, picture in outcome.strip.items() if key != "HR"]
        strip = comparison_strip(shown, outcome.strip["HR"], shave=recipe.scale, title=recipe.name)
        pictures.append(("One test picture by every model, with the error of each below", strip))
    report = Report(
        title=recipe.name,
        rows=rows,
        summary=_sentence(outcome),
        baseline=baseline(outcome),
        facts=_settings(recipe, outcome),
        recipe=yaml.safe_dump(portable(recipe.model_dump(mode="json")), sort_keys=False),
        warnings=portable(list(warnings)),
        curves=_curves(outcome.jobs),
        pictures=pictures,
        files=[
            File(f"{n}, {kind}", path) for n, made in files.students.items() for kind, path in made.items()
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
        _record(run, outcome, rows, Path(temporary), pictures)
    stamps.put(run.output, REPORT_STAMP, identity, made)


def _record(run: Run, outcome: Outcome, rows: list[Row], folder: Path, pictures: list[Any]) -> None:
    run.tracked.begin()
    tracker = run.tracked.parent
    assert tracker is not None
    for row in rows:
        values = {
            f"{TESTED}/{set_name}/{key}/{row.name}": statistics.fmean(metrics[key])
            for set_name, metrics in row.scores.items()
            for key in metrics
        }
        tracker.metrics({k: v for k, v in values.items() if math.isfinite(v)}, 0)
    for job in outcome.jobs:
        record = run.tracked.trainings.get(job.label) or _earlier(run, job)
        for set_name, score in scores_of(outcome, student_identity(job)).items():
            values = {f"{TESTED}/{set_name}/{key}": score[key] for key in ("psnr_y", "ssim_y")}
            record.metrics({k: v for k, v in values.items() if math.isfinite(v)}, 0)
    tracker.tags({"tiles": outcome.tiles.train.fingerprint})
    tracker.tags({f"sha256.{t.facts.label}": t.facts.sha256 for t in outcome.taught})
    if outcome.fused is not None:
        tracker.tags({"fused": outcome.fused.cached.train.fingerprint})
    for _, picture in pictures:
        tracker.image("comparison", picture, 0)
    tracker.text(yaml.safe_dump(outcome.recipe.model_dump(mode="json"), sort_keys=False), "recipe.yaml")
    tracker.artifact(folder, "report")
    tracker.flush()


def _earlier(run: Run, job: TrainJob) -> RunTracker:
    """A record of a training that an earlier run did, so that this run's page compares all its students."""
    record = run.tracked.training(job)
    record.tags({"trained": "earlier"})
    result = job.result()
    curves = result["curves"].values() if result else ()
    for metrics in curves:
        for name, points in metrics.items():
            for step, value in points:
                record.metrics({name: value}, int(step))
    return record


def _sentence(outcome: Outcome) -> str:
    recipe = outcome.recipe
    teachers = ", ".join(t.facts.label for t in outcome.taught) or "none"
    return f"{recipe.student.name} at x{recipe.scale}; teachers: {teachers}; {recipe.train.steps:,} steps per training."


def _settings(recipe: Recipe, outcome: Outcome) -> dict[str, str]:
    facts = {
        "scale": f"x{recipe.scale}",
        "degradation": f"{recipe.data.degradation} (MATLAB)",
        "training tiles": f"{outcome.tiles.train.rows:,} of {recipe.data.tile} pixels",
        "budget": f"{recipe.train.steps:,} steps of {recipe.train.batch} patches of {recipe.train.patch} LR pixels",
        "protocol": f"Y of BT.601 (grey files as they are), 8 bit, {recipe.scale} pixels shaved",
        "multiply-adds": "of one 48 x 48 LR picture",
        "tiles fingerprint": outcome.tiles.train.fingerprint,
    }
    for t in outcome.taught:
        facts[f"teacher {t.facts.label}"] = (
            f"{t.facts.architecture}, {t.facts.precision}, {t.psnr_y:.2f} dB on held-out tiles, {t.seconds:.0f} s for "
            f"{t.tiles:,} tiles, sha256 {t.facts.sha256[:16]}"
        )
    if outcome.fused is not None:
        facts["fusion"] = f"{outcome.fused.kind}, {outcome.fused.psnr_y:.2f} dB on held-out tiles"
    return facts


def _curves(jobs: Sequence[TrainJob]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """{metric: {training: points}} of every student's last phase; one seed a method."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for job in jobs:
        name = job.group
        result = job.result()
        if result is None:
            continue
        for metrics in result["curves"].values():
            for metric, points in metrics.items():
                if metric in ("held_out/psnr_y", "train/loss"):
                    curves.setdefault(metric, {}).setdefault(name, [(int(s), v) for s, v in points])
    return curves
