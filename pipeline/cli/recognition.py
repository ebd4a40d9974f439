"""What the commands that take a recipe do with a recognition recipe."""

from __future__ import annotations

import argparse

from pipeline.cli.common import emit, page, running
from pipeline.errors import InputError
from pipeline.progress import Terminal
from pipeline.recipe.recognition import METHODS, Recognition
from pipeline.tasks.recognition.run import RecognitionRun


def run(options: argparse.Namespace, recipe: Recognition) -> None:
    """`faculty run`."""
    from pipeline.tasks.recognition.results import finish, summary, table

    reporter = Terminal()
    methods = list(dict.fromkeys([*recipe.compare.methods, recipe.method.name]))
    with running(options, recipe, reporter, RecognitionRun) as road:
        outcome = road.everything(methods, _seeds(recipe, recipe.compare.seeds))
        files = finish(road, outcome, reporter.warnings, page(recipe))
    emit(options, summary(outcome, files), table(outcome) + "\n" + files.text())


def compare(options: argparse.Namespace, recipe: Recognition) -> None:
    """`faculty compare`."""
    from pipeline.tasks.recognition.results import compare_rows, finish, table

    reporter = Terminal()
    named = options.methods or ",".join(METHODS)
    methods = list(dict.fromkeys(m.strip() for m in named.split(",") if m.strip()))
    known = [*METHODS, *recipe.compare.variants]
    if wrong := [m for m in methods if m not in known] or ([] if methods else ["nothing"]):
        raise InputError("--methods", f"some of {', '.join(known)}", ", ".join(wrong))
    with running(options, recipe, reporter, RecognitionRun) as road:
        outcome = road.everything(methods, _seeds(recipe, options.seeds))
        files = finish(road, outcome, reporter.warnings, page(recipe))
    emit(options, {"rows": compare_rows(outcome)}, table(outcome) + "\n" + files.text())


def teach(options: argparse.Namespace, recipe: Recognition) -> None:
    """`faculty teach`: the teachers, and their outputs for all views."""
    reporter = Terminal()
    with running(options, recipe, reporter, RecognitionRun) as road:
        data, teachers, helpers = road.teach([recipe.method.name])
        made = {helper.label: helper for helper in (*teachers, *helpers.values())}
        views = recipe.data.views.count
        result = {
            "teachers": {
                name: {"pictures": data.splits["train"].rows, "views": views, "seconds": round(h.seconds, 2)}
                for name, h in made.items()
            },
            "shards_written": road.shards_written,
            "shards_reused": road.shards_reused,
        }
    lines = [
        f"{name}: {data.splits['train'].rows} pictures x {views} views in {h.seconds:.1f} s"
        for name, h in made.items()
    ]
    lines.append(f"shards written {road.shards_written}, reused {road.shards_reused}")
    emit(options, result, "\n".join(lines))


def distill(options: argparse.Namespace, recipe: Recognition) -> str:
    """`faculty distill`: the recipe's own method; returns where the weights are."""
    reporter = Terminal()
    with running(options, recipe, reporter, RecognitionRun) as road:
        outcome = road.everything([recipe.method.name], _seeds(recipe, recipe.compare.seeds))
    return "\n".join(job.output().where("weights.safetensors") for job in outcome.jobs)


def _seeds(recipe: Recognition, count: int) -> list[int]:
    if count < 1:
        raise InputError("--seeds", "at least 1", str(count))
    return [recipe.seed + i for i in range(count)]
