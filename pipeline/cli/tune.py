"""tune: search a space of recipe values."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any

from pipeline.cache.store import Store
from pipeline.cli.common import add_json, add_recipe, emit, make_engine, read_any, tracking_folder
from pipeline.errors import InputError
from pipeline.progress import Terminal
from pipeline.search.report import summary, table, write
from pipeline.search.run import Conductor, checker, run_inline, storable
from pipeline.search.space import BUILT_IN, load_space
from pipeline.search.sweep import Plan, Sweep
from pipeline.tasks.registry import task_of
from pipeline.tracking import NullTracker, RunTracker, Status


def add(commands: argparse._SubParsersAction) -> None:
    """Declare this command."""
    tune = commands.add_parser(
        "tune", help="search loss weights, resolution gap, fusion or a space of your own"
    )
    add_recipe(tune)
    tune.add_argument(
        "--space",
        required=True,
        metavar="NAME|FILE",
        help=f"{', '.join(BUILT_IN)}, or a file with SPACE = {{...}}",
    )
    tune.add_argument("--trials", type=int, default=12, help="trials in all (default: %(default)s)")
    tune.add_argument("--concurrency", type=int, help="trials at a time (default and at most: what fits)")
    tune.add_argument(
        "--budget", type=int, metavar="STEPS", help="longest training of a trial (default: train.steps)"
    )
    tune.add_argument(
        "--objective",
        choices=("accuracy", "pareto"),
        default="accuracy",
        help="accuracy alone, or accuracy against multiply-adds (default: %(default)s)",
    )
    tune.add_argument("--seed", type=int, default=0, help="seed of the search (default: %(default)s)")
    tune.add_argument("--resume", action="store_true", help="go on with the sweep that was stopped or killed")
    add_json(tune)
    tune.set_defaults(run=_tune)


def _tune(options: argparse.Namespace) -> int:
    recipe, reporter = read_any(options), Terminal()
    for name in ("trials", "concurrency", "budget"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise InputError(f"--{name}", "at least 1", str(value))
    task = task_of(recipe)
    task.comparable(recipe)
    engine = make_engine(options)
    try:
        engine.device_kind("auto")  # a cluster that does not let us in is no fault of the space's
        space = load_space(options.space, recipe, checker(engine, reporter))
        for note in space.notes:
            reporter.warn(note)
        if options.objective == "accuracy" and task.gap in [a.path for a in space.axes]:
            reporter.warn(
                f"the least {task.gap} wins by accuracy alone; --objective pareto weighs the cost too"
            )
        plan = Plan(recipe, space, options.budget or recipe.train.steps, options.objective, options.seed)
        store = Store.open(recipe.output).below(f"{recipe.name}/sweeps/{plan.name}")
        with store.lock(
            "sweep.lock", on_wait=lambda who: reporter.say(f"this sweep is being run by {who}; waiting")
        ):
            return _run(options, Sweep(plan, store, options.trials), engine, reporter)
    finally:
        engine.close()


def _run(options: argparse.Namespace, sweep: Sweep, engine: Any, reporter: Terminal) -> int:
    sweep.begin(options.resume)
    parent = _parent(sweep, options)
    if not sweep.record:
        sweep.record = storable(parent.handle())
    sweep.save()
    conductor = Conductor(sweep, engine, reporter, parent, partial(reopen, sweep.plan.recipe))
    status: Status = "FAILED"
    try:
        if options.inline:
            from pipeline.steps.engines import InlineEngine

            assert isinstance(engine, InlineEngine)
            run_inline(conductor, engine.device, engine.resume)
        else:
            from pipeline.engine import tune

            tune.run(conductor, options.address, options.concurrency)
        files = write(sweep)
        _record(parent, sweep, files)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        reporter.say("the sweep is kept: the same command with --resume goes on with it")
        raise
    finally:
        conductor.close()
        parent.finish(status)
    shown = "\n".join([table(sweep), *files.values()])
    emit(options, summary(sweep, files), shown)
    if sweep.best() is None:
        reporter.warn("no trial came to its end")
        return 1
    return 0


def _parent(sweep: Sweep, options: argparse.Namespace) -> RunTracker:
    recipe = sweep.plan.recipe
    if not recipe.tracking.enabled:
        return NullTracker()
    from pipeline.engine.tracking import open_tracker

    if sweep.record:
        return reopen(recipe, sweep.record)
    plan = sweep.plan
    return open_tracker(
        recipe.tracking.experiment or recipe.name,
        f"tune {plan.space.name}",
        uri=recipe.tracking.uri,
        folder=tracking_folder(recipe),
        tags={"faculty.kind": "sweep", "space": plan.space.name, "objective": plan.objective},
        params={**recipe.model_dump(mode="json"), "space": plan.space.dump(), "budget": plan.budget},
        system_metrics=recipe.tracking.system_metrics,
    )


def reopen(recipe: Any, handle: Mapping[str, Any]) -> RunTracker:
    """The tracker of an earlier record; one that records nothing where there is none."""
    if not handle or not recipe.tracking.enabled:
        return NullTracker()
    from pipeline.engine.store import resolve_uri
    from pipeline.engine.tracking import resume

    uri = resolve_uri(recipe.tracking.uri, tracking_folder(recipe))
    return resume({**handle, "uri": uri}, reopen=True)


def _record(parent: RunTracker, sweep: Sweep, files: Mapping[str, str]) -> None:
    """The sweep's results beside its run."""
    import io

    import numpy as np
    from PIL import Image

    trials = len(sweep.trials)  # the step: more of them later have figures of their own
    if (best := sweep.best()) is not None:
        parent.metrics({"accuracy": best.accuracy, "multiply_adds": best.multiply_adds}, trials)
        parent.tags({"best": best.label})
    for name in files:
        data = sweep.store.read_bytes(name)
        if name.endswith(".png"):
            parent.image(
                name.removesuffix(".png"), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), trials
            )
        else:
            parent.text(data.decode(), name)
    parent.flush()
