"""What several commands share: options, output, engines."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.progress import Terminal
from pipeline.recipe.recipe import Recipe
from pipeline.road.run import Run
from pipeline.steps.engines import Engine, InlineEngine
from pipeline.tasks.recipes import load_any, load_recipe
from pipeline.tracking import NullTracker, RunTracker, Status


def add_json(command: argparse.ArgumentParser) -> None:
    """`--json FILE` on a command that prints a table."""
    command.add_argument(
        "--json", metavar="FILE", help="also write the result as JSON; - for standard output"
    )


def add_recipe(command: argparse.ArgumentParser) -> None:
    """The recipe and where it runs."""
    command.add_argument("recipe", metavar="RECIPE", help="recipe file (YAML)")
    command.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="override one setting",
    )
    command.add_argument("--address", help="Ray cluster (default: this machine)")
    command.add_argument(
        "--inline", action="store_true", help="no Ray: everything in this process, one after the other"
    )


def write(text: str) -> None:
    """A result for the user."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def emit(options: argparse.Namespace, result: Any, text: str) -> None:
    """The table on standard output, and the JSON where it was asked for (instead, if it goes to standard
    output too).
    """
    if getattr(options, "json", None) != "-":
        write(text)
    if getattr(options, "json", None):
        body = json.dumps(finite(result), indent=1, allow_nan=False)
        if options.json == "-":
            write(body)
        else:
            Path(options.json).write_text(body + "\n")


def finite(value: Any) -> Any:
    """JSON has no infinities and no NaN: they become null."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe of the command line."""
    return load_recipe(options.recipe, tuple(options.overrides))


def read_any(options: argparse.Namespace) -> Any:
    """The recipe of the command line, of any task."""
    place = getattr(options, "json", None)
    if place not in (None, "-") and not Path(place).absolute().parent.is_dir():
        raise InputError("--json", "a file in a folder that is there", place)
    return load_any(options.recipe, tuple(options.overrides))


@contextmanager
def running(
    options: argparse.Namespace, recipe: Any, reporter: Terminal, engine: Engine | None = None
) -> Iterator[Run]:
    """A run on this engine, or on the one that the command line asks for, closed and marked whatever happens."""
    engine = engine or make_engine(options)
    open_record = tracking(recipe, reporter)

    def begin() -> RunTracker:
        engine.warm()
        return open_record() if open_record else NullTracker()

    run = Run(recipe, engine, reporter, begin)
    status: Status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        run.tracked.finish(status)
        engine.close()


def make_engine(options: argparse.Namespace) -> Engine:
    """The engine that the command line asks for."""
    if not options.inline:
        from pipeline.engine.ray_engine import RayEngine

        return RayEngine(options.address)
    if options.address:
        raise InputError("--inline", "no --address with it", options.address, "Leave one of them out.")
    try:
        from pipeline.engine.tracking import resume
    except ImportError:  # a machine without mlflow can still train inline
        return InlineEngine()
    return InlineEngine(resume=resume)


def tracking(recipe: Any, reporter: Terminal) -> Callable[[], RunTracker] | None:
    """What opens the run's record; None where the recipe wants none."""
    if not recipe.tracking.enabled:
        return None

    def open_run() -> RunTracker:
        from pipeline.engine.tracking import open_tracker

        folder = tracking_folder(recipe)
        tracker = open_tracker(
            recipe.tracking.experiment or recipe.name,
            recipe.name,
            uri=recipe.tracking.uri,
            folder=folder,
            params=recipe.model_dump(mode="json"),
            system_metrics=recipe.tracking.system_metrics,
        )
        return tracker

    return open_run


def tracking_folder(recipe: Any) -> Path:
    """Where the default store lies: the output folder, or ./runs where that is a URI."""
    return Path("runs") if "://" in recipe.output else Path(recipe.output)


def page(recipe: Any) -> str:
    """The command or address that opens MLflow's pages on the recipe's runs; empty where it records none."""
    if not recipe.tracking.enabled:
        return ""
    from pipeline.engine.store import page

    return page(recipe.tracking.uri, tracking_folder(recipe))
