"""What a recipe cannot have together, beyond what one setting says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.recipe.fusion import Aggregate, Best, Regions, Weighted

if TYPE_CHECKING:
    from pipeline.recipe.recipe import Recipe


def unshared(workers: int | tuple[int, int], batch: int, path: str) -> str:
    """Why so many workers cannot share a training's batch; nothing where they can, or where they may be fewer."""
    if not isinstance(workers, int) or batch % workers == 0:
        return ""
    return f"{path}.batch ({batch}) must be a multiple of distill.workers ({workers}), which share it out"


def without_hr(recipe: Recipe) -> list[tuple[bool, str]]:
    """(whether it is so, what is said) of everything that a recipe without HR cannot have."""
    fusion, method, compare = recipe.fusion, recipe.method, recipe.compare
    needs = isinstance(fusion, (Best, Regions, Aggregate)) or (
        isinstance(fusion, Weighted) and fusion.weights == "fit"
    )
    alone = not recipe.data.has_hr
    learned = method.target == "none" or method.name == "pisr"
    said = "; name folders of HR in data.train, or take"
    named = {
        name: compare.variants[name].name if name in compare.variants else name for name in compare.methods
    }
    hungry = [name for name, kind in named.items() if kind in ("scratch", "pisr")]
    return [
        (
            alone and not recipe.data.lr_only,
            "data: name pictures in `train`, or in `lr_only` where there is no HR",
        ),
        (alone and learned, f"method {method.name} learns from HR, and there is none{said} kd or mtkd"),
        (
            alone and bool(hungry),
            f"compare.methods: {', '.join(hungry)} learn from HR, and there is none{said} others",
        ),
        (
            alone and needs,
            f"fusion {fusion.kind} is chosen by HR, and there is none{said} mean, median or weights",
        ),
        (
            alone and len(recipe.teachers) > 1 and getattr(method, "teacher", "") == "best",
            "method.teacher: `best` is the one of the highest PSNR, and there is no HR; name the teacher",
        ),
        (
            alone and recipe.judged_by == "hr",
            "judged_by: hr needs HR, and data.train names none; leave it out",
        ),
        (
            recipe.by_fidelity and isinstance(fusion, Best) and len(recipe.teachers) > 1,
            "judged_by: teachers needs a fusion that test pictures can have too; `best` is chosen by HR",
        ),
        (
            recipe.by_fidelity and not alone and not recipe.teachers,
            "judged_by: teachers needs at least one teacher; add `teachers:`",
        ),
    ]
