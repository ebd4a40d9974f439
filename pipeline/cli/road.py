"""run, teach, distill, compare, recipe: the commands that take a recipe."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

import yaml

from pipeline.cli import auto
from pipeline.cli.common import add_json, add_recipe, emit, page, read_any, running, write
from pipeline.errors import InputError
from pipeline.methods import METHODS
from pipeline.progress import Terminal
from pipeline.recipe.reading import changed
from pipeline.recipe.schedule import Piecewise, Ramp
from pipeline.recipe.settings import Section
from pipeline.tasks.recipes import kind_of
from pipeline.tasks.registry import task_of

SEEDS = 3
"""Of a comparison, where nobody says how many."""


def add(commands: argparse._SubParsersAction) -> None:
    """Declare these commands."""
    run = commands.add_parser("run", help="the whole road: teach, fuse, distill, evaluate, export, report")
    add_recipe(run)
    auto.add(run)
    add_json(run)
    run.set_defaults(run=_run)

    teach = commands.add_parser("teach", help="cache the teachers' outputs")
    add_recipe(teach)
    add_json(teach)
    teach.set_defaults(run=_teach)

    distill = commands.add_parser(
        "distill", help="train the recipe's method (and what it needs from the cache)"
    )
    add_recipe(distill)
    distill.set_defaults(run=_distill)

    compare = commands.add_parser(
        "compare", help="several methods at the same budget, with spread over seeds"
    )
    add_recipe(compare)
    compare.add_argument(
        "--methods",
        help=f"of {','.join(METHODS)} or the recipe's variants (default: compare.methods and the recipe's own)",
    )
    compare.add_argument(
        "--seeds", type=int, help=f"seeds per method (default: compare.seeds, without it {SEEDS})"
    )
    compare.add_argument(
        "--folds", type=int, metavar="N", help="cross-validate: a run for each of data.fold [1, N] to [N, N]"
    )
    add_json(compare)
    compare.set_defaults(run=_compare)

    recipe = commands.add_parser("recipe", help="check a recipe")
    actions = recipe.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="validate, and show every setting with its value and meaning")
    check.add_argument("recipe", metavar="FILE")
    check.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=VALUE")
    check.add_argument(
        "--schema", action="store_true", help="print the settings' documentation instead of the values"
    )
    check.set_defaults(run=_check)


def _run(options: argparse.Namespace) -> None:
    if options.auto:
        from pipeline.cli.auto import run_auto

        return run_auto(options)
    if options.minutes is not None or options.candidates:
        raise InputError("--minutes, --candidates", "--auto with them", "none")
    from pipeline.road.results import finish, summary, table

    recipe, reporter = read_any(options), Terminal()
    methods = list(dict.fromkeys([*recipe.compare.methods, recipe.method.name]))
    with running(options, recipe, reporter) as run:
        outcome = run.everything(methods, seeds(recipe, recipe.compare.seeds))
        files = finish(run, outcome, reporter.warnings, page(recipe))
    emit(options, summary(outcome, files), table(outcome) + "\n" + files.text())


def _compare(options: argparse.Namespace) -> None:
    from pipeline.road.results import compare_rows, finish, table

    recipe = read_any(options)
    named = (options.methods or "").split(",") if options.methods else task_of(recipe).compared(recipe)
    methods = list(dict.fromkeys(m.strip() for m in named if m.strip()))
    known(recipe, methods)
    count = own_seeds(recipe) if options.seeds is None else options.seeds
    outcomes, rows, made = [], [], []
    for part in folds(recipe, options.folds):
        reporter = Terminal()
        with running(options, part, reporter) as run:
            outcome = run.everything(methods, seeds(part, count))
            made.append(finish(run, outcome, reporter.warnings, page(part)).text())
        outcomes.append(outcome)
        own = {"fold": part.data.fold[0]} if options.folds else {}
        rows += [{**row, **own} for row in compare_rows(outcome)]
    emit(options, {"rows": rows}, "\n".join([table(*outcomes), *made]))


def own_seeds(recipe: Any) -> int:
    """Of `compare`: what the recipe says, where it says anything."""
    said = "compare" in recipe.model_fields_set and "seeds" in recipe.compare.model_fields_set
    return int(recipe.compare.seeds) if said else SEEDS


def folds(recipe: Any, count: int | None) -> list[Any]:
    """The recipe, or one for each fold, under a name of its own. Raises InputError where its data has no folds."""
    if count is None:
        return [recipe]
    if count < 2:
        raise InputError("--folds", "at least 2", str(count))
    parts = range(1, count + 1)
    return [
        changed(recipe, {"name": f"{recipe.name}-fold{k}", "data.fold": [k, count]}, f"--folds {count}")
        for k in parts
    ]


def known(recipe: Any, methods: Sequence[str]) -> None:
    """Raise InputError for a name that is neither a method nor one of the recipe's variants."""
    names = [*recipe.known_methods, *recipe.compare.variants]
    if wrong := [m for m in methods if m not in names] or ([] if methods else ["nothing"]):
        raise InputError("--methods", f"some of {', '.join(names)}", ", ".join(wrong))


def seeds(recipe: Any, count: int) -> list[int]:
    """The recipe's seed and the ones after it."""
    if count < 1:
        raise InputError("--seeds", "at least 1", str(count))
    return [recipe.seed + i for i in range(count)]


def _teach(options: argparse.Namespace) -> None:
    recipe, reporter = read_any(options), Terminal()
    with running(options, recipe, reporter) as run:
        prepared = run.teach()
    rows = {o.label: run.task.teach_row(recipe, o) for o in prepared.all}
    written, reused = run.planner.shards_written, run.planner.shards_reused
    result = {"teachers": rows, "shards_written": written, "shards_reused": reused}
    emit(options, result, f"{taught(rows)}\nshards written {written}, reused {reused}")


def taught(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What teachers did, as a table."""
    keys = list(next(iter(rows.values())))
    name = max(len("teacher"), *map(len, rows))
    cells = {label: [_figure(row[key]) for key in keys] for label, row in rows.items()}
    widths = [max(len(key), *(len(row[i]) for row in cells.values())) for i, key in enumerate(keys)]
    lines = [f"{'teacher':<{name}}  " + "  ".join(f"{k:>{w}}" for k, w in zip(keys, widths))]
    for label, row in cells.items():
        lines.append(f"{label:<{name}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(row, widths)))
    return "\n".join(lines)


def _figure(value: float) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _distill(options: argparse.Namespace) -> None:
    recipe, reporter = read_any(options), Terminal()
    with running(options, recipe, reporter) as run:
        _, jobs = run.distill([recipe.method.name], seeds(recipe, recipe.compare.seeds))
    write("\n".join(job.output().where("weights.safetensors") for job in jobs))


def _check(options: argparse.Namespace) -> None:
    if options.schema:  # also of a recipe that is refused: it is then that one asks
        write(documentation(kind_of(options.recipe, tuple(options.overrides))))
        write("\nWhere a setting is a loss term's weight, it is a number or one of these schedules:")
        for schedule in (Ramp, Piecewise):
            write(f"  {' '.join((schedule.__doc__ or '').split())}\n{documentation(schedule, '    ')}")
        return
    recipe = read_any(options)
    write(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=110))
    write(f"# {options.recipe}: valid. `--schema` explains every setting.")


def documentation(model: type, indent: str = "", above: tuple[type, ...] = ()) -> str:
    """Every field of a settings model with its meaning, nested; what stands above already is not said again."""
    lines = []
    for name, entry in model.model_fields.items():  # type: ignore[attr-defined]
        lines.append(f"{indent}{name}: {' '.join((entry.description or '').split())}".rstrip())
        nested = [s for s in sections(entry.annotation) if s not in above]
        for section in nested:
            meaning = " ".join((section.__doc__ or "").split())
            several = len(nested) > 1  # one of several, by its name
            lines.append(
                f"{indent}  {section.__name__.lower()}: {meaning}" if several else f"{indent}  ({meaning})"
            )
            deeper = indent + ("    " if several else "  ")
            lines.append(documentation(section, deeper, (*above, *nested)))
    return "\n".join(lines)


def sections(annotation: Any) -> list[type[Section]]:
    """The tables of settings that a field may hold, by itself, as one of several or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) is dict:  # by names of the user's own: described where they are chosen
        return []
    return list(dict.fromkeys(s for part in get_args(annotation) for s in sections(part)))
