"""The students of a run as files for people, each made once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pipeline.cache import records, stamps
from pipeline.deploy.shipping import missing_note
from pipeline.road.run import Run
from pipeline.steps.job import Job
from pipeline.steps.values import Outcome
from pipeline.training import weights

MADE = "made.json"
"""Beside a student's files: which there are, and which could not be made."""
VERSION = 2
"""Version of what lies beside a student's files."""


def formats(outcome: Outcome) -> list[Any]:
    """The recipe's wishes about exported files; nothing at their default, as exports of before have it."""
    asked = outcome.recipe.model_dump(mode="json").get("export")
    return [asked] if asked else []


def export_all(run: Run, outcome: Outcome) -> dict[str, dict[str, str]]:
    """{student: {kind: where its file is}}."""
    todo = {job.label for job in outcome.jobs if not stamps.intact(run.output, *_stamp(run, outcome, job))}
    if not todo:
        return {job.label: _export(run, outcome, job, False) for job in outcome.jobs}
    found = {}
    with run.reporter.line("export", len(todo), "students") as line:  # seconds each, and there may be dozens
        for job in outcome.jobs:
            found[job.label] = _export(run, outcome, job, job.label in todo)
            line.advance(job.label in todo, job.label)
    return found


def _stamp(run: Run, outcome: Outcome, job: Job) -> tuple[str, list[Any]]:
    """Where it stands that a student was exported, and as what."""
    identity = [VERSION, job.fingerprint, run.task.exported(outcome, job), *formats(outcome)]
    return f"students/{job.label}/stamp.json", identity


def _export(run: Run, outcome: Outcome, job: Job, anew: bool) -> dict[str, str]:
    """{kind: where its file is} of a student, which is exported first where that is to be done `anew`."""
    folder = f"students/{job.label}"
    listed, (stamp, identity) = f"{folder}/{MADE}", _stamp(run, outcome, job)
    if anew:
        with tempfile.TemporaryDirectory() as temporary:
            raw, out = Path(temporary, "raw.safetensors"), Path(temporary, "out")
            raw.write_bytes(weights.read(job.output(), weights.WEIGHTS))
            made, left_out = run.task.export(run, outcome, job, raw, out)
            names = {kind: f"{folder}/{name}" for kind, name in made.items()}
            for kind, name in made.items():
                run.output.put_file(names[kind], out / name)
        records.save(run.output, listed, {"files": names, "missing": left_out})
        stamps.put(run.output, stamp, identity, [*names.values(), listed])
    found: dict[str, Any] = records.load(run.output, listed) or {"files": {}, "missing": {}}
    if found["missing"]:
        run.reporter.warn(missing_note(job.label, found["missing"]))
    return {kind: run.output.where(rel) for kind, rel in found["files"].items()}
