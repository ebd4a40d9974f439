"""What a ladder came to: every candidate on every rung, what that cost, and why the last training is of this one."""

from __future__ import annotations

import statistics
from typing import Any

from pipeline.progress import lasting
from pipeline.report.extra import Extra
from pipeline.report.table import PLUS_MINUS, Metric, spread
from pipeline.search import choice
from pipeline.search.ladder import SCRATCH, Ladder
from pipeline.search.ladder_state import Step
from pipeline.search.trial import Trial


def told(ladder: Ladder) -> Extra:
    """The ladder for people."""
    metric, rungs = _metric(ladder), ladder.state.rungs
    unit = f", {metric.unit}" if metric.unit else ""
    head = ["candidate", *(f"{rung.steps:,} steps" for rung in rungs), "seconds", "what became of it"]
    rows = []
    for name in _ordered(ladder):
        cells = [_cell([t for t in ladder.on(rung) if _name(ladder, t) == name], metric) for rung in rungs]
        seconds = sum(t.seconds + t.prepared for t in ladder.of(name))
        rows.append([name, *cells, f"{seconds:.0f}", _fate(ladder, name)])
    took = ["", *(f"{rung.seconds:.0f} s" for rung in rungs), f"{sum(r.seconds for r in rungs):.0f}", ""]
    rows.append(["all, by the clock", *took[1:]])
    title = f"What was tried: {metric.label}{unit} on held-out pictures"
    return Extra(title, head, rows, sentences(ladder), remark=True)


def sentences(ladder: Ladder) -> list[str]:
    """What is to be said of it."""
    state, final = ladder.state, ladder.decide()
    stages = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in state.stages.items())
    found = [
        f"{ladder.seconds / 60:g} minutes: {stages}, {len(state.rungs)} rungs "
        f"{sum(r.seconds for r in state.rungs):.0f} s, then {final.candidate} for {final.steps:,} steps, planned for "
        f"{final.expected:.0f} s.",
        "On a rung all train anew with their whole schedule, for equal steps; the first one measures paces.",
        verdict(ladder),
    ]
    planned, begun = sum(len(rung.trials) for rung in state.rungs), len(ladder.trials)
    if begun < planned:
        found.append(
            f"The machine was slower than measured: {planned - begun} of {planned} trainings did not begin."
        )
    failed = [t for t in ladder.trials.values() if t.status == "failed"]
    return [*found, *(f"{t.label} failed: {t.cause}" for t in failed)]


def verdict(ladder: Ladder) -> str:
    """Why the chosen candidate is trained, and what it brings over scratch at equal steps."""
    last, name, metric = ladder.decided_on(), ladder.decide().candidate, _metric(ladder)
    figures, where = ladder.figures(last), f"after {last.steps:,} steps each"
    unit = f" {metric.unit}" if metric.unit else ""
    best = ladder.standing(last)[0]
    if choice.undecided(figures, ladder.resolution):
        return (
            f"Nobody is ahead {where}, too few to tell: {name} is trained unchosen. More minutes would tell."
        )
    said = ""
    if best != name:
        ahead = statistics.fmean(figures[best]) - statistics.fmean(figures[name])
        chance = choice.doubt(figures, name)
        said = (
            f"{name}, the recipe's own method, stays: {best} is ahead of it by {ahead:.{metric.digits}f}{unit} "
            f"{where}, no more than chance may bring ({chance:.{metric.digits}f}). "
        )
        if SCRATCH in (best, name):
            return said.strip()
    if name == SCRATCH:
        return f"No candidate was better than scratch {where}: scratch it is. More time may change that."
    ours, theirs = figures[name], figures.get(SCRATCH, [])
    if not theirs:
        return said.strip() or f"{name} was the best {where}; scratch did not come so far."
    gain = statistics.fmean(ours) - statistics.fmean(theirs)
    said += f"{name} against scratch {where}: {gain:+.{metric.digits}f}{unit}"
    spreads = [s for s in (spread(ours), spread(theirs)) if s is not None]
    if not spreads:
        return f"{said} (one seed)."
    place = "beyond" if abs(gain) > max(spreads) else "within"
    return f"{said} ({place} the spread of {max(spreads):.{metric.digits}f} between {len(ours)} seeds)."


def summary(ladder: Ladder, best: str, left_out: dict[str, str]) -> dict[str, Any]:
    """The ladder as JSON."""
    state, final, key = ladder.state, ladder.decide(), _metric(ladder).key
    rungs = [
        {
            "steps": rung.steps,
            "seconds": round(rung.seconds, 1),
            "trials": [
                {
                    "candidate": _name(ladder, t),
                    "seed": ladder.seed_of(t),
                    "status": t.status,
                    "steps": t.steps,
                    "seconds": round(t.seconds + t.prepared, 1),
                    key: t.accuracy,
                    "cause": t.cause,
                }
                for t in ladder.on(rung)
            ],
        }
        for rung in state.rungs
    ]
    return {
        "minutes": ladder.seconds / 60,
        "seconds": round(state.used, 1),
        "stages": {what: round(seconds, 1) for what, seconds in state.stages.items()},
        "metric": key,
        "candidates": {name: dict(values) for name, values in ladder.candidates.items()},
        "left_out": left_out,
        "rungs": rungs,
        "chosen": final.candidate,
        "verdict": verdict(ladder),
        "final": {
            "steps": final.steps,
            "planned": round(final.expected, 1),
            "seconds": round(final.seconds, 1),
        },
        "best": best,
    }


def _metric(ladder: Ladder) -> Metric:
    return ladder.plan.task.metric(ladder.plan.recipe)


def _name(ladder: Ladder, trial: Trial) -> str:
    return ladder.place(trial.number)[1]


def _values(ladder: Ladder, rung: Step, name: str) -> list[float]:
    mine = [t for t in ladder.on(rung) if _name(ladder, t) == name]
    return [t.accuracy for t in mine if t.status == "finished" and t.curve]


def _ordered(ladder: Ladder) -> list[str]:
    """The candidates: how far they came, then how good they were there."""

    def key(name: str) -> tuple[int, float]:
        own = [t for t in ladder.of(name) if t.curve]
        came = max((t.number for t in own), default=-1)
        rung = ladder.state.rungs.index(ladder.place(came)[0]) if own else -1
        values = _values(ladder, ladder.state.rungs[rung], name) if own else []
        return -rung, -statistics.fmean(values) if values else 0.0

    return sorted(ladder.candidates, key=key)


def _cell(trials: list[Trial], metric: Metric) -> str:
    if not trials:
        return ""
    if any(t.status == "failed" for t in trials):
        return "failed"
    values = [t.accuracy for t in trials if t.curve]
    if not values:
        return "-"
    deviation = spread(values)
    shown = f"{statistics.fmean(values):.{metric.digits}f}"
    return shown if deviation is None else f"{shown} {PLUS_MINUS}{deviation:.{metric.digits}f}"


def _fate(ladder: Ladder, name: str) -> str:
    final, rungs = ladder.decide(), ladder.state.rungs
    if name == final.candidate:
        return f"chosen: {final.steps:,} steps"
    last = max((rungs.index(ladder.place(t.number)[0]) for t in ladder.of(name)), default=0)
    if any(t.status == "failed" for t in ladder.of(name)):
        return "failed"
    if last == len(rungs) - 1:
        if name == SCRATCH:
            return "stays the baseline"
        kept = name == ladder.standing(rungs[last])[0]
        return "the best there, by no more than chance" if kept else "not the best there"
    return f"left after {rungs[last].steps:,} steps"


def line(ladder: Ladder) -> str:
    """For the head of best.yaml."""
    final = ladder.decide()
    count, rungs = len(ladder.candidates), len(ladder.state.rungs)
    return (
        f"Of {count} candidates on {rungs} rungs in {lasting(ladder.clock())}: {final.candidate}. "
        f"{verdict(ladder)}"
    )
