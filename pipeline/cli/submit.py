"""submit: a faculty command as a job of a Ray cluster."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pipeline.cli.common import write
from pipeline.errors import InputError
from pipeline.progress import Terminal
from pipeline.recipe_file import load_recipe


def add(commands: argparse._SubParsersAction) -> None:
    """Declare this command."""
    submit = commands.add_parser(
        "submit", help="run a faculty command as a job of a Ray cluster: faculty submit run recipe.yaml"
    )
    submit.add_argument("--address", help="the cluster's dashboard (default: http://127.0.0.1:8265)")
    submit.add_argument(
        "--working-dir",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="folder that goes along (default: this one)",
    )
    submit.add_argument("--no-wait", action="store_true", help="do not follow the job's output")
    submit.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="the command with its options"
    )
    submit.set_defaults(run=_submit)


def _submit(options: argparse.Namespace) -> int:
    from pipeline.engine.submit import submit

    arguments = [a for i, a in enumerate(options.arguments) if not (i == 0 and a == "--")]
    if not arguments or arguments[0] == "submit":
        raise InputError("faculty submit", "a command, as in `faculty submit run recipe.yaml`", "none")
    if arguments[0] in ("run", "teach", "distill", "compare", "tune"):
        _check(arguments, options.working_dir)
    reporter = Terminal()
    return submit(
        arguments,
        address=options.address,
        folder=options.working_dir,
        wait=not options.no_wait,
        say=reporter.say,
        write=write,
    )


def _check(arguments: list[str], folder: Path) -> None:
    """Refuse here what would fail there: a wrong recipe, and outputs in the job's folder, which goes with the job."""
    names = [a for a in arguments[1:] if a.endswith((".yaml", ".yml"))]
    if not names:
        return
    overrides = [b for a, b in zip(arguments, arguments[1:], strict=False) if a == "--set"]
    recipe = load_recipe(folder / names[0], tuple(overrides))
    for path, value in (("output", recipe.output), ("cache.root", recipe.cache.root)):
        if "://" not in value and not os.path.isabs(value):
            raise InputError(
                f"{names[0]}: {path}",
                "a place that outlives the job: an s3:// or gs:// address, or an absolute path of a shared folder",
                value,
                f"Add --set {path}=...",
            )
