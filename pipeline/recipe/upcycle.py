"""Upcycled tiles: further LR views that have no HR and that teachers alone explain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.recipe.settings import Section, Seed

if TYPE_CHECKING:
    from pipeline.recipe.recipe import Recipe

Views = Annotated[int, Field(ge=0, le=16)]


class Upcycle(Section):
    """How many further views of each training tile are cut, without HR, and answered by every teacher once, as LR-only
    pictures are (DUKD, arXiv 2309.14162). Methods that learn from HR alone leave them out."""

    zoom_in: Views = 1
    """Pieces of the tile's HR taken as LR; none of pictures without HR."""
    zoom_out: Views = 1
    """Windows of LR shrunk once more by the scale (bicubic, whatever the degradation)."""
    mixed: Views = 0
    """Ours: the tile's LR mixed with another one's of the same picture."""
    recoloured: Views = 0
    """Ours: the tile's LR with its channels permuted, darker or lighter, or inverted."""
    seed: Seed = 0
    """Seed of what is drawn."""

    @property
    def counts(self) -> dict[str, int]:
        """Views by kind, of the kinds that there are."""
        asked = self.model_dump(exclude={"seed"})
        return {kind: count for kind, count in asked.items() if count}


def named(recipe: Recipe) -> set[str]:
    """Methods that a run of the recipe trains, by what they are."""
    variants = recipe.compare.variants
    return {recipe.method.name, *(variants[m].name if m in variants else m for m in recipe.compare.methods)}


def upcycle_of(recipe: Recipe) -> Upcycle | None:
    """What a run of the recipe upcycles. All its methods share the tiles, so `dukd` brings its views for all."""
    if recipe.data.upcycle is None and "dukd" in named(recipe):
        return Upcycle()
    return recipe.data.upcycle


def checks(recipe: Recipe) -> list[tuple[bool, str]]:
    """(whether it is so, what is said) of views that a recipe cannot have."""
    asked, own, method = upcycle_of(recipe), recipe.data.upcycle, recipe.method
    labels = [t.label for t in recipe.teachers]
    teacher = method.teacher if method.name == "dukd" else "fused"
    counts = asked.counts if asked else {}
    off = "data.upcycle: {zoom_in: 0, zoom_out: 0}"
    return [
        (
            recipe.scale == 1 and bool(counts.keys() & {"zoom_in", "zoom_out"}),
            f"data.upcycle zooms by the scale, and at scale 1 nothing is nearer or farther; take {off}",
        ),
        (
            own is not None and set(own.counts) == {"zoom_in"} and not recipe.data.has_hr,
            "data.upcycle: zoom_in takes pieces of HR, and there is none; take zoom_out, mixed or recoloured",
        ),
        (
            bool(counts) and recipe.fusion.kind == "best" and recipe.method.target == "fused",
            "fusion best is chosen by HR, and upcycled tiles (data.upcycle, method dukd) have none; take mean, "
            f"median or weighted, or {off}",
        ),
        (
            teacher not in ("fused", "best", *labels),
            f"method.teacher must be `fused`, `best` or one of {labels}, found {teacher!r}",
        ),
        (
            method.name == "dukd" and teacher == "fused" and "fused" in labels,
            "method.teacher: `fused` means all teachers as one, and a teacher is called so; give that teacher "
            "(teachers) another `name`",
        ),
        (
            own is not None and bool(own.counts) and not recipe.teachers,
            "data.upcycle makes tiles that teachers alone explain; add `teachers:`",
        ),
    ]
