"""run --auto: candidates within a time budget, then the best of them for what is left."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial

from pipeline.cache import records
from pipeline.cache.store import Store
from pipeline.cli.common import emit, make_engine, page, read_any, running, tracking_folder
from pipeline.cli.tune import reopen
from pipeline.errors import InputError
from pipeline.progress import Terminal, lasting
from pipeline.road.results import TOLD, finish, summary, table
from pipeline.search.auto import best_file, best_recipe, candidates_of, first_steps, share
from pipeline.search.ladder import Ladder
from pipeline.search.ladder_report import line, told
from pipeline.search.ladder_report import summary as ladder_summary
from pipeline.search.run import Conductor, checker, run_inline, storable
from pipeline.steps.engines import Engine, InlineEngine
from pipeline.tasks.registry import task_of
from pipeline.tracking import NullTracker, RunTracker, Status


def add(run: argparse.ArgumentParser) -> None:
    """Declare the options of `run` that belong to it."""
    run.add_argument(
        "--auto", action="store_true", help="try methods for a part of the time, train the best with the rest"
    )
    run.add_argument(
        "--minutes", type=float, metavar="M", help="with --auto: all that it may take, teachers included"
    )
    run.add_argument(
        "--candidates",
        metavar="NAMES",
        help="with --auto: those to try, by name; scratch always (default: all)",
    )


def run_auto(options: argparse.Namespace) -> None:
    """Carry it out, or go on with it. Raises InputError where the budget is too small."""
    since = time.monotonic()
    recipe, reporter = read_any(options), Terminal()
    if options.minutes is None:
        raise InputError("--minutes", "all that --auto may take", "none given", "Add --minutes 60.")
    if not 0 < options.minutes < math.inf:
        raise InputError("--minutes", "a number above 0: all that --auto may take", f"{options.minutes:g}")
    task = task_of(recipe)
    recipe = task.settled(recipe)
    if len(task.gaps(recipe)) > 1:
        raise InputError(task.gap, "one value with --auto", str(list(task.gaps(recipe))))
    task.comparable(recipe)
    engine = make_engine(options)
    engine.dashboard = recipe.distill.workers != 1  # type: ignore[attr-defined]
    try:
        on_gpu = engine.device_kind(recipe.distill.gpus_per_worker) == "cuda"
        names = tuple(name.strip() for name in (options.candidates or "").split(",") if name.strip())
        candidates, left_out = candidates_of(recipe, checker(engine, reporter), names)
        for name, reason in left_out.items():
            reporter.say(f"{name} is not tried: {reason}")
        seconds = 60 * options.minutes
        first = first_steps(recipe, len(candidates), seconds, on_gpu)
        home = Store.open(recipe.output).below(f"{recipe.name}/auto")
        store = home.below(Ladder.name(recipe, candidates, seconds))
        with store.lock("auto.lock", on_wait=lambda who: reporter.say(f"{who} is at it; waiting")):
            ladder = Ladder(recipe, store, home.below("paces"), candidates, seconds, first, since)
            _climb(options, ladder, engine, reporter)
            _end(options, ladder, engine, reporter, left_out)
    except KeyboardInterrupt:
        reporter.say("the ladder is kept: the same command goes on with it")
        raise
    finally:
        engine.close()


def _climb(options: argparse.Namespace, ladder: Ladder, engine: Engine, reporter: Terminal) -> None:
    """Everything up to the choice; nothing where it is made already."""
    if ladder.state.final is not None:
        ladder.begin(True)
        return
    if ladder.state.rungs:
        reporter.say(f"goes on with the ladder of before: {lasting(ladder.clock())} of its time are used")
    ladder.begin(ladder.store.exists("sweep.json"))
    parent = _opened(ladder)
    status: Status = "FAILED"
    conductor: Conductor | None = None
    try:
        share(ladder, engine, reporter, parent)
        conductor = Conductor(ladder, engine, reporter, parent(), partial(reopen, ladder.plan.recipe))
        names = ", ".join(ladder.candidates)
        reporter.say(f"{len(ladder.candidates)} candidates: {names}")
        if isinstance(engine, InlineEngine):
            run_inline(conductor, engine.device, engine.resume)
        else:
            from pipeline.engine import tune

            tune.run(conductor, options.address, None)
        if ladder.failure is not None:
            ladder.forget()
            raise ladder.failure
        ladder.decide()
        status = "FINISHED"
        ladder.write()
    except InputError:
        ladder.forget()
        raise
    except KeyboardInterrupt:
        status = "KILLED"
        ladder.write()
        raise
    finally:
        if conductor is not None:
            conductor.close()
        parent().finish(status)


def _opened(ladder: Ladder) -> Callable[[], RunTracker]:
    """The ladder's record in MLflow, opened when it is first asked for."""
    known: list[RunTracker] = []
    recipe = ladder.plan.recipe

    def parent() -> RunTracker:
        if known:
            return known[0]
        if not recipe.tracking.enabled:
            known.append(NullTracker())
        elif ladder.record:
            known.append(reopen(recipe, ladder.record))
        else:
            from pipeline.engine.tracking import open_tracker

            known.append(
                open_tracker(
                    recipe.tracking.experiment or recipe.name,
                    f"auto {ladder.seconds / 60:g} min",
                    uri=recipe.tracking.uri,
                    folder=tracking_folder(recipe),
                    tags={"faculty.kind": "auto"},
                    params={**recipe.model_dump(mode="json"), "minutes": ladder.seconds / 60},
                    system_metrics=recipe.tracking.system_metrics,
                )
            )
        ladder.record = storable(known[0].handle())
        ladder.save()
        return known[0]

    return parent


def _end(
    options: argparse.Namespace,
    ladder: Ladder,
    engine: Engine,
    reporter: Terminal,
    left_out: Mapping[str, str],
) -> None:
    """The last training as an ordinary run, with the ladder in its report."""
    final, recipe, begun = ladder.decide(), best_recipe(ladder), ladder.clock()
    shown = told(ladder)
    best = best_file(ladder, recipe, line(ladder))
    reporter.say(f"{shown.title}\n{shown.text()}")
    with running(options, recipe, reporter, engine) as run:
        outcome = run.everything([recipe.method.name], [recipe.seed])
        (job,) = outcome.jobs
        records.save(run.output, TOLD, {"training": job.fingerprint, "extra": asdict(shown)})
        files = finish(run, outcome, reporter.warnings, page(recipe))
    if not ladder.state.training:
        ladder.state.final = replace(final, seconds=ladder.clock() - begun)
        ladder.state.training = job.fingerprint
        ladder.write()
    used = ladder.state.used
    if used > 1.1 * ladder.seconds:
        late = "the machine became slower than it was measured, and no training is cut short"
        reporter.warn(f"{lasting(used)} instead of {lasting(ladder.seconds)}: {late}")
    result = summary(outcome, files) | {"auto": ladder_summary(ladder, best, dict(left_out))}
    text = [table(outcome), "", shown.title, shown.text(), files.text(), f"recipe: {best}"]
    emit(options, result, "\n".join([*text, f"{lasting(used)} of {lasting(ladder.seconds)} used"]))
