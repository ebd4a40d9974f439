"""plan: what a recipe will take, before it is run."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, replace
from typing import Any

from pipeline.cli.common import add_json, emit, read_any
from pipeline.errors import InputError
from pipeline.steps.forecast import Prediction, Work, gpu_rates, predict
from pipeline.tasks.registry import task_of

SIDES = (1404, 2040)
"""Usual height and width of DIV2K's pictures."""


def add(commands: argparse._SubParsersAction) -> None:
    """Declare this command."""
    plan = commands.add_parser("plan", help="what a recipe will take: bytes, hours, money")
    plan.add_argument("recipe", metavar="RECIPE", help="recipe file (YAML)")
    plan.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=VALUE")
    plan.add_argument("--pictures", type=int, required=True, help="HR training pictures")
    plan.add_argument(
        "--height", type=int, default=SIDES[0], help="their height in pixels (default: %(default)s)"
    )
    plan.add_argument(
        "--width", type=int, default=SIDES[1], help="their width in pixels (default: %(default)s)"
    )
    plan.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64], help="(default: 1 8 64)")
    plan.add_argument("--gpus-per-node", type=int, dest="devices", help="(default: 8)")
    plan.add_argument(
        "--teach-rate", type=float, dest="teach", help="multiply-adds/s of a GPU running teachers"
    )
    plan.add_argument(
        "--train-rate", type=float, dest="train", help="multiply-adds/s of a GPU training the student"
    )
    plan.add_argument("--network", type=float, help="bytes/s between a node and the store")
    plan.add_argument("--price", type=float, help="of a GPU for an hour (default: 1)")
    plan.add_argument(
        "--teacher-macs",
        type=float,
        nargs="+",
        metavar="N",
        help="multiply-adds of each teacher for a 48 x 48 input, or for one picture of recognition",
    )
    add_json(plan)
    plan.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> None:
    recipe = read_any(options)
    task = task_of(recipe)
    called = {"teach": "teach-rate", "train": "train-rate", "devices": "gpus-per-node"}
    for name in ("pictures", "height", "width", "teach", "train", "network", "price", "devices"):
        if (value := getattr(options, name)) is not None and not 0 < value < math.inf:
            raise InputError(f"--{called.get(name, name)}", "a number above 0", str(value))
    if min(options.gpus) < 1:
        raise InputError("--gpus", "at least 1", str(min(options.gpus)))
    given = options.teacher_macs or []
    if wrong := [n for n in given if not 0 < n < math.inf]:
        raise InputError("--teacher-macs", "numbers above 0", f"{wrong[0]:g}")
    teachers_of = getattr(recipe, "seen_by", None) or getattr(recipe, "teachers", ())
    if given and teachers_of and len(given) != (wanted := len(teachers_of)):
        raise InputError(
            "--teacher-macs", f"{wanted}, one for each teacher of {recipe.name}", f"{len(given)}"
        )
    teachers = [round(n) for n in given] or task.teacher_costs(recipe)
    todo = task.work(recipe, options.pictures, options.height, options.width, teachers)
    rows = {"", *recipe.compare.methods} - {recipe.method.name}  # "": the recipe's own method
    todo = replace(todo, trainings=len(rows) * recipe.compare.seeds * len(task.gaps(recipe)))
    rates = gpu_rates(
        **{n: getattr(options, n) for n in ("teach", "train", "network", "price", "devices")},
    )
    found = [predict(todo, rates, gpus) for gpus in options.gpus]
    result: dict[str, Any] = {"work": asdict(todo), "predictions": [asdict(p) for p in found]}
    emit(options, result, text(todo, found))


def text(todo: Work, found: list[Prediction]) -> str:
    """The work and a table of predictions."""
    lines = [
        f"{todo.pictures:,} pictures, {todo.tiles:,} samples, {todo.shards:,} shards; {todo.cache_bytes / 1e9:,.4g} GB "
        f"of cache; {todo.tiles * todo.teacher_ops / 1e15:,.4g} P multiply-adds of teachers, "
        f"{todo.trainings * todo.steps * todo.step_ops / 1e15:,.4g} P of "
        f"{'a training' if todo.trainings == 1 else f'{todo.trainings} trainings'}",
        f"{'GPUs':>5} {'tiles':>9} {'teach':>9} {'fuse':>9} {'distill':>9} {'in all':>9} {'GPU hours':>10} {'spend':>9}"
        f" {'shards/s a node':>16}  held up by",
    ]
    for p in found:
        parts = [duration(s) for s in (p.tiles, p.teach, p.fuse, p.distill, p.seconds)]
        held = ", ".join(f"{stage}: {limit}" for stage, limit in p.limits.items())
        lines.append(
            f"{p.gpus:>5} "
            + " ".join(f"{part:>9}" for part in parts)
            + f" {p.device_hours:>10,.4g} {p.spend:>9,.4g} {p.shards_per_second:>16.3g}  {held}"
        )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.3g} {unit}"
    return f"{seconds:.3g} s"
