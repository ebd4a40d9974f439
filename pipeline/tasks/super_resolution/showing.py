"""What reports and the JSON say of a super-resolution run."""

from __future__ import annotations

import math
from typing import Any

from pipeline.deploy import perceptual
from pipeline.recipe.comparing import equal_steps
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.upcycle import upcycle_of
from pipeline.report.pictures import comparison_strip
from pipeline.report.strip import columns
from pipeline.report.table import CONSISTENCY, FIDELITY, PSNR, SHARPNESS, SSIM, Metric
from pipeline.steps.values import Outcome, Outputs
from pipeline.tasks.base import Drawing

PROTOCOL_WORDS = "Y of BT.601 (grey files as they are), 8 bit, {} pixels shaved"


FIDELITY_WORDS = (
    "PSNR-Y against what all teachers make of the same LR picture; consistency: of the output, shrunk again, against "
    "LR; sharpness: gradient energy over the teachers'"
)
UNMEASURED_WORDS = (
    "how near students and teachers come to the scene itself: there is no HR to train on, and fidelity says only how "
    "well a student does what its teachers do, their mistakes included"
)


def sentence(outcome: Outcome) -> str:
    """The run in one sentence."""
    recipe: Recipe = outcome.recipe
    teachers = ", ".join(t.label for t in outcome.prepared.teachers) or "none"
    length = equal_steps(recipe.compare, recipe.method.name, recipe.train.steps, "training")
    return f"{recipe.student.name} at x{recipe.scale}; teachers: {teachers}; {length}."


def metrics(recipe: Recipe) -> tuple[Metric, ...]:
    """What a run's table shows; the first leads."""
    own = (FIDELITY, CONSISTENCY, SHARPNESS) if recipe.by_fidelity else (PSNR, SSIM)
    return (*own, *(measure.metric for measure in perceptual.found()))


def made_by(recipe: Recipe) -> str:
    """How LR was made of HR."""
    chain = recipe.data.degradation
    if isinstance(chain, str):
        return f"{chain} (MATLAB)"
    what = chain.preset or f"a chain of {len(chain.steps)} steps"
    return f"{what}, {chain.views} views a tile, seed {chain.seed}; test pictures: one view"


def upcycled(recipe: Recipe) -> str:
    """The further views of the training tiles; nothing where there are none."""
    upcycle = upcycle_of(recipe)
    counts = upcycle.counts if upcycle else {}
    listed = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return f"{listed} a training tile, without HR, counted among the tiles" if counts else ""


def unmeasured(recipe: Recipe) -> bool:
    """Whether there is no HR at all."""
    return not (recipe.data.has_hr or recipe.data.test or recipe.data.test_pairs)


def protocol(recipe: Recipe) -> str:
    """The protocol of a student's figures, as its files tell it."""
    chain = recipe.data.degradation
    made = "MATLAB bicubic LR" if isinstance(chain, str) else f"LR by {made_by(recipe)}"
    return f"{PROTOCOL_WORDS.format('scale')}, {made}"


def facts(outcome: Outcome) -> dict[str, str]:
    """How it was made."""
    recipe, prepared = outcome.recipe, outcome.prepared
    train = recipe.train
    facts = {
        "scale": f"x{recipe.scale}",
        "degradation": made_by(recipe),
        "training tiles": f"{prepared.samples.train.rows:,} of {recipe.data.tile} pixels",
        **({"upcycled views": counted} if (counted := upcycled(recipe)) else {}),
        "budget": f"{train.steps:,} steps of {train.batch} patches of {train.patch} LR pixels",
        "protocol": PROTOCOL_WORDS.format(recipe.scale),
        **({"fidelity": FIDELITY_WORDS} if recipe.by_fidelity else {}),
        **({"not measured": UNMEASURED_WORDS} if unmeasured(recipe) else {}),
        **({"perceptual distances": lacking} if (lacking := perceptual.missing()) else {}),
        "multiply-adds": "of one 48 x 48 LR picture",
        "tiles fingerprint": prepared.samples.train.fingerprint,
    }
    for t in prepared.teachers:
        facts[f"teacher {t.label}"] = (
            f"{t.network.architecture}, {t.network.precision}, {_held_out(t)}, "
            f"{t.seconds:.0f} s for {t.rows:,} tiles, sha256 {t.network.sha256[:16]}"
        )
    for helper in {h.label: h for h in prepared.helpers.values() if h.cached}.values():
        facts[helper.label] = f"{_held_out(helper)}, learned from the teachers"
    if prepared.fused is not None:
        facts["fusion"] = f"{prepared.fused.network.kind}, {_held_out(prepared.fused)}"
    return facts


def _held_out(outputs: Outputs) -> str:
    """How good a network is, where HR tells."""
    if not math.isfinite(outputs.quality):
        return "no HR to compare it with"
    tiles = "held-out" if outputs.cached is not None and outputs.cached.held_out else "training"
    return f"{outputs.quality:.2f} dB on {tiles} tiles"


def drawings(outcome: Outcome) -> dict[str, Drawing]:
    """One test picture by every model."""
    return {**_tested(outcome), **_learned(outcome)}


def _tested(outcome: Outcome) -> dict[str, Drawing]:
    strip = outcome.scores
    if not strip:
        return {}
    names = {"LR": "LR", **{r.identity: r.name for r in outcome.results}}
    shown = [(names[key], picture) for key, picture in strip.items() if key != "HR"]
    recipe: Recipe = outcome.recipe
    picture = comparison_strip(shown, strip["HR"], shave=recipe.scale, title=recipe.name)
    return {"comparison": ("One test picture by every model, with the error of each below", picture)}


def _learned(outcome: Outcome) -> dict[str, Drawing]:
    """Two held-out crops of each method at a few moments of its training, of one seed."""
    found: dict[str, Drawing] = {}
    for job in outcome.jobs:
        if f"learning {job.group}" in found or not (moments := job.seen()):
            continue
        last = moments[-1][1]
        *fixed, student, off = last.columns
        named = [(name, last.column(name)) for name in fixed]
        named += [(f"step {step:,}", strip.column(student)) for step, strip in moments]
        named.append((off, last.column(off)))
        what = f"{job.group}: held-out crops while it learned, and how far it is off at the end"
        found[f"learning {job.group}"] = (what, columns(named, last.side))
    return found


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Every model's figures, for the JSON of `run`."""
    return [
        {
            "model": r.name,
            "role": r.role,
            "parameters": r.parameters,
            "multiply_adds": r.multiply_adds,
            "sets": r.sets,
        }
        for r in outcome.results
    ]
