"""run, teach, distill, compare, recipe: the commands that take a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import yaml

from pipeline.cli import recognition
from pipeline.cli.common import add_json, add_recipe, emit, page, read_any, running, write
from pipeline.errors import InputError
from pipeline.methods import PICTURES
from pipeline.progress import Terminal
from pipeline.recipe.reading import kind_of
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.recognition import METHODS as RECOGNITION_METHODS
from pipeline.recipe.recognition import Recognition
from pipeline.recipe.schedule import Piecewise, Ramp
from pipeline.road.run import Run


def add(commands: argparse._SubParsersAction) -> None:
    """Declare these commands."""
    run = commands.add_parser("run", help="the whole road: teach, fuse, distill, evaluate, export, report")
    add_recipe(run)
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
        help=f"of {','.join(PICTURES)} or the recipe's variants (default: compare.methods and the recipe's own)",
    )
    compare.add_argument("--seeds", type=int, default=3, help="seeds per method (default: %(default)s)")
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
    from pipeline.road.results import finish, summary, table

    recipe, reporter = read_any(options), Terminal()
    if isinstance(recipe, Recognition):
        return recognition.run(options, recipe)
    methods = list(dict.fromkeys([*recipe.compare.methods, recipe.method.name]))
    with running(options, recipe, reporter, Run) as run:
        outcome = run.everything(methods, seeds(recipe, recipe.compare.seeds))
        files = finish(run, outcome, reporter.warnings, page(recipe))
    emit(options, summary(outcome, files), table(outcome) + "\n" + files.text())


def _compare(options: argparse.Namespace) -> None:
    from pipeline.road.results import compare_rows, finish, table

    recipe, reporter = read_any(options), Terminal()
    if isinstance(recipe, Recognition):
        return recognition.compare(options, recipe)
    named = options.methods or ",".join([*recipe.compare.methods, recipe.method.name])
    methods = list(dict.fromkeys(m.strip() for m in named.split(",") if m.strip()))
    known(recipe, methods)
    with running(options, recipe, reporter, Run) as run:
        outcome = run.everything(methods, seeds(recipe, options.seeds))
        files = finish(run, outcome, reporter.warnings, page(recipe))
    emit(options, {"rows": compare_rows(outcome)}, table(outcome) + "\n" + files.text())


def known(recipe: Recipe, methods: Sequence[str]) -> None:
    """Raise InputError for a name that is neither a method nor one of the recipe's variants."""
    names = [*PICTURES, *recipe.compare.variants]
    if wrong := [m for m in methods if m not in names] or ([] if methods else ["nothing"]):
        raise InputError("--methods", f"some of {', '.join(names)}", ", ".join(wrong))


def seeds(recipe: Recipe, count: int) -> list[int]:
    """The recipe's seed and the ones after it."""
    if count < 1:
        raise InputError("--seeds", "at least 1", str(count))
    return [recipe.seed + i for i in range(count)]


def _teach(options: argparse.Namespace) -> None:
    recipe, reporter = read_any(options), Terminal()
    if isinstance(recipe, Recognition):
        return recognition.teach(options, recipe)
    if not recipe.teachers:
        raise InputError(f"{options.recipe}: teachers", "at least one teacher", "none")
    with running(options, recipe, reporter, Run) as run:
        tiles, taught = run.teach()
        rows = {
            t.facts.label: {"tiles": t.tiles, "seconds": round(t.seconds, 2), "psnr_y": t.psnr_y}
            for t in taught
        }
        result = {
            "teachers": rows,
            "shards_written": run.road.shards_written,
            "shards_reused": run.road.shards_reused,
        }
    where = "held-out tiles" if tiles.held_out else "training tiles"
    width = max(len(n) for n in rows)
    lines = [f"{'teacher':<{width}}  {'tiles':>7}  {'seconds':>8}  PSNR-Y on {where}"]
    lines += [
        f"{n:<{width}}  {r['tiles']:>7}  {r['seconds']:>8.1f}  {r['psnr_y']:.2f} dB" for n, r in rows.items()
    ]
    lines.append(f"shards written {result['shards_written']}, reused {result['shards_reused']}")
    emit(options, result, "\n".join(lines))


def _distill(options: argparse.Namespace) -> None:
    recipe, reporter = read_any(options), Terminal()
    if isinstance(recipe, Recognition):
        return write(recognition.distill(options, recipe))
    with running(options, recipe, reporter, Run) as run:
        _, _, _, jobs = run.distill([recipe.method.name], seeds(recipe, recipe.compare.seeds))
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


def documentation(model: type, indent: str = "") -> str:
    """Every field of a settings model with its meaning, nested."""
    from pipeline.recipe.methods import KD, MTKD, PISR, Scratch
    from pipeline.recipe.recipe import Aggregate, Best, Mean, Median, Weighted
    from pipeline.recipe.settings import Section

    choices: dict[str, tuple[type, ...]] = {
        "fusion": (Mean, Median, Best, Weighted, Aggregate),
        "method": (Scratch, KD, MTKD, PISR) if model is Recipe else tuple(RECOGNITION_METHODS.values()),
    }
    lines = []
    for name, entry in model.model_fields.items():  # type: ignore[attr-defined]
        lines.append(f"{indent}{name}: {' '.join((entry.description or '').split())}".rstrip())
        nested = [
            a for a in (entry.annotation, *getattr(entry.annotation, "__args__", ())) if isinstance(a, type)
        ]
        for section in [s for s in nested if issubclass(s, Section)]:
            lines.append(f"{indent}  ({' '.join((section.__doc__ or '').split())})")
            lines.append(documentation(section, indent + "  "))
        for choice in choices.get(name, ()) if model in (Recipe, Recognition) else ():
            lines.append(f"{indent}  {choice.__name__.lower()}: {' '.join((choice.__doc__ or '').split())}")
            lines.append(documentation(choice, indent + "    "))
    return "\n".join(lines)
