"""Pictures to tile shards.

Pictures are packed into shards once. When pictures are added, the shards already there are kept as they are
and only the new pictures are packed into new ones; the sampler orders tiles by id, so what a training sees
does not depend on the packing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.cache import records
from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.format import Receipt
from pipeline.cache.manifest import Manifest, committed
from pipeline.cache.store import Store
from pipeline.data.decode import COPY, Quarantined, Survey, survey
from pipeline.data.pairs import pairs, registered
from pipeline.data.tiles import Grid, positions
from pipeline.data.upcycle import NEEDS_HR, Upcycled
from pipeline.data.views import name_of
from pipeline.errors import InputError, shown
from pipeline.recipe.degradation import Chain
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.upcycle import upcycle_of
from pipeline.steps.values import Samples
from pipeline.tasks.super_resolution.cutting import MADE as MADE
from pipeline.tasks.super_resolution.cutting import PICTURES, Source, TileTask

VERSION = 1


@dataclass(frozen=True, slots=True)
class TilePlan:
    """What there is and what is to be made."""

    folder: str
    grid: Grid
    sources: tuple[Source, ...]
    quarantined: tuple[Quarantined, ...]
    kept: dict[str, Receipt]
    steps: tuple[TileTask, ...]
    members: dict[str, bool]
    """Shard key -> held out."""
    surveys: tuple[Survey, ...] = ()
    """How each folder was read."""
    views: tuple[Upcycled, ...] = ()
    """The upcycled views of the training pictures."""

    @property
    def note(self) -> str:
        """For the progress line."""
        new = {source.picture.sha256 for step in self.steps for source in step.sources}
        return f"{len(new)} new pictures"

    def samples(self, receipts: Mapping[str, Receipt], keep: Callable[[str, Manifest], Manifest]) -> Samples:
        """The tiles to train on and, where there are any, the held-out ones."""
        splits = {"train": self.manifest(receipts, held_out=False)}
        held_out = self.manifest(receipts, held_out=True)
        if held_out.shards:
            splits["held_out"] = held_out
        pictures = {s.picture.pixels: s.picture.path for s in self.sources if not s.lr_only}
        return Samples(self.folder, {n: keep(self.folder, m) for n, m in splits.items()}, (), pictures)

    def fingerprint(self, held_out: bool) -> str:
        """Of the tiles themselves: folder (grid, degradation, scale) and pictures, whatever the packing."""
        chosen = sorted((s.picture.sha256, s.lr_only) for s in self.sources if s.held_out == held_out)
        return fingerprint({"folder": self.folder, "pictures": chosen, **self._upcycled(held_out)})

    def _upcycled(self, held_out: bool) -> dict[str, Any]:
        """What the views are called; nothing where there are none, as it was before there were any."""
        return {"upcycled": [v.identity for v in self.views]} if self.views and not held_out else {}

    def manifest(self, receipts: Mapping[str, Receipt], held_out: bool) -> Manifest:
        """The manifest of the training tiles or of the held-out ones."""
        chosen = [s for s in self.sources if s.held_out == held_out]
        inputs = {
            "pictures": {
                s.picture.sha256[:16]: {"name": shown(s.picture.name), "lr_only": s.lr_only} for s in chosen
            },
            "grid": {"scale": self.grid.scale, "size": self.grid.size, "margin": self.grid.margin},
            "degradation": self.folder,
            "quarantined": {shown(q.path): shown(q.reason) for q in self.quarantined},
            **self._upcycled(held_out),
        }
        shards = tuple(receipts[key] for key in sorted(self.members) if self.members[key] == held_out)
        return Manifest(kind="tiles", fingerprint=self.fingerprint(held_out), inputs=inputs, shards=shards)


def sources(recipe: Recipe) -> tuple[tuple[Source, ...], tuple[Quarantined, ...]]:
    """Like `surveyed`, without the surveys."""
    return surveyed(recipe)[:2]


def paired(recipe: Recipe, store: Store) -> tuple[list[Source], list[Survey]]:
    """The recipe's pairs; a pair is known by the bytes of both. Raises InputError (pairs.py)."""
    found: list[Source] = []
    surveys: list[Survey] = []
    for entry in recipe.data.pairs:
        matched, read = pairs(entry.lr, entry.hr, recipe.scale, recipe.data.on_bad)
        surveys += read
        for pair in matched:
            facts = [pair.lr.sha256, pair.hr.sha256, recipe.scale, entry.align]
            rel = f"pairs/{fingerprint(facts)}.json"
            moved = records.load(store, rel, lambda v: (int(v["down"]), int(v["right"])))
            if moved is None:
                moved = registered(pair, recipe.scale, entry.align)
                records.save(store, rel, {"down": moved[0], "right": moved[1]})
            both = hashlib.sha256(f"{pair.lr.sha256} {pair.hr.sha256} {moved}".encode()).hexdigest()
            sides = (
                pair.hr.height - abs(moved[0]) * recipe.scale,
                pair.hr.width - abs(moved[1]) * recipe.scale,
            )
            picture = replace(pair.hr, sha256=both, height=sides[0], width=sides[1])
            held_out = int(pair.hr.sha256[:8], 16) / 2**32 < recipe.data.holdout
            found.append(Source(picture, False, held_out, pair.lr.path, moved, hr=pair.hr.sha256))
    return found, surveys


def surveyed(
    recipe: Recipe, store: Store | None = None
) -> tuple[tuple[Source, ...], tuple[Quarantined, ...], tuple[Survey, ...]]:
    """Every training picture, with its use. The held-out ones are chosen by their content, so adding pictures
    moves none.

    Raises InputError for an unreadable picture (policy `raise`) and when no HR picture is left to train on.
    """
    found: dict[str, Source] = {}
    bad: list[Quarantined] = []
    surveys: list[Survey] = []
    for folder, lr_only in [(f, False) for f in recipe.data.train] + [(f, True) for f in recipe.data.lr_only]:
        # Absolute, because the pictures may be cut by a process in another folder.
        try:
            read = survey(Path(folder).absolute(), min_side=2 * recipe.scale, on_bad=recipe.data.on_bad)
        except InputError as error:
            if recipe.data.on_bad == "quarantine" or error.where == str(Path(folder).absolute()):
                raise
            remedy = f"{error.remedy} data.on_bad: quarantine leaves such pictures out."
            raise InputError(error.where, error.expected, error.found, remedy.strip()) from None
        again = [
            Quarantined(p.path, f"duplicate of {found[p.sha256].picture.path}", COPY)
            for p in read.pictures
            if p.sha256 in found
        ]
        fresh = [p for p in read.pictures if p.sha256 not in found]
        read = Survey(read.source, fresh, read.left_out + again, read.others)
        surveys.append(read)
        bad.extend(read.left_out)
        for picture in fresh:
            rank = int(picture.sha256[:8], 16) / 2**32
            held_out = (not lr_only or not recipe.data.has_hr) and rank < recipe.data.holdout
            found[picture.sha256] = Source(picture, lr_only, held_out)
    if recipe.data.pairs:
        pairs_, read_ = paired(recipe, store or Store.open(recipe.cache.root))
        found |= {source.picture.sha256: source for source in pairs_}
        surveys += read_
    chosen = sorted(found.values(), key=lambda s: s.picture.sha256)
    full = [s for s in chosen if not s.lr_only] if recipe.data.has_hr else chosen
    if recipe.data.holdout and len(full) > 1 and not any(s.held_out for s in full):
        first = min((s.scene for s in full), default="")
        if any(s.scene != first for s in full):
            chosen = [replace(s, held_out=s.scene == first) for s in chosen]
    if not any(not s.held_out for s in chosen):
        where = "data.train" if recipe.data.has_hr else "data.lr_only"
        remedy = "Add pictures or lower data.holdout."
        raise InputError(where, "at least one picture to train on", "none", remedy)
    return tuple(chosen), tuple(bad), tuple(surveys)


def plan(recipe: Recipe, store: Store) -> TilePlan:
    """Which shards hold the recipe's pictures already and which must be made."""
    grid = Grid(scale=recipe.scale, size=recipe.data.tile, margin=recipe.data.margin)
    inputs = {
        "version": VERSION,
        "scale": recipe.scale,
        "size": grid.size,
        "margin": grid.margin,
        "degradation": name_of(recipe.data.degradation, recipe.scale),
    }
    folder = f"tiles/x{recipe.scale}-{fingerprint(inputs)}"
    chosen, bad, surveys = surveyed(recipe, store)
    made = _views(recipe)
    cut = [*chosen, *(replace(s, view=v) for v in made for s in chosen if _has(s, v))]
    wanted = {s.use for s in cut}
    kept: dict[str, Receipt] = {}
    members: dict[str, bool] = {}
    for key, receipt in sorted(committed(store, folder, PICTURES).items()):
        held = records.load(store, f"{folder}/{key}{PICTURES}", _members)
        if held is None:
            continue
        if held <= wanted:
            kept[key] = receipt
            members[key] = next(iter(held))[2]
            wanted -= held
    missing = [s for s in cut if s.use in wanted]
    tasks = _pack(missing, recipe, grid, folder, store)
    members.update({t.key: t.sources[0].held_out for t in tasks})
    return TilePlan(folder, grid, chosen, bad, kept, tuple(tasks), members, surveys, made)


def _views(recipe: Recipe) -> tuple[Upcycled, ...]:
    upcycle = upcycle_of(recipe)
    if upcycle is None:
        return ()
    return tuple(
        Upcycled(kind, n, upcycle.seed) for kind, count in upcycle.counts.items() for n in range(count)
    )


def _has(source: Source, view: Upcycled) -> bool:
    """Whether a picture has the view: held-out ones are looked at as they are."""
    return not source.held_out and not (source.lr_only and view.kind in NEEDS_HR)


def _members(facts: dict[str, Any]) -> set[tuple[str, bool, bool]]:
    """What a shard's note says of its pictures: `use` of each."""
    uses = bool(facts["lr_only"]), bool(facts["held_out"])
    members = {(str(sha256), *uses) for sha256 in facts["pictures"]}
    if not members:
        raise ValueError("it names no picture")
    return members


def _pack(missing: Sequence[Source], recipe: Recipe, grid: Grid, folder: str, store: Store) -> list[TileTask]:
    lr_side = grid.size // grid.scale
    tasks: list[TileTask] = []
    uses = [(None, *use) for use in ((False, False), (False, True), (True, False), (True, True))]
    views = dict.fromkeys(s.view for s in missing if s.view is not None)
    for view, lr_only, held_out in [*uses, *((v, alone, False) for v in views for alone in (False, True))]:
        group = [s for s in missing if (s.view, s.lr_only, s.held_out) == (view, lr_only, held_out)]
        tile_bytes = 3 * (lr_side**2 + (0 if lr_only or view else grid.size**2))
        limit = max(int(recipe.cache.shard_mb * 1e6 / tile_bytes), 1)
        batch: list[Source] = []
        rows = 0
        for source in group:
            count = _count(source, grid, recipe.data.degradation)
            if batch and rows + count > limit:
                tasks.append(_task(batch, recipe, grid, folder, store))
                batch, rows = [], 0
            batch.append(source)
            rows += count
        if batch:
            tasks.append(_task(batch, recipe, grid, folder, store))
    return tasks


def _count(source: Source, grid: Grid, degradation: str | Chain) -> int:
    zoom = grid.scale if source.lr_only else 1
    once = source.lr_only or source.lr or source.view
    each = degradation.views if isinstance(degradation, Chain) and not once else 1
    return each * len(positions(source.picture.height * zoom, source.picture.width * zoom, grid))


def _task(batch: list[Source], recipe: Recipe, grid: Grid, folder: str, store: Store) -> TileTask:
    content = [s.use for s in batch]
    return TileTask(store.uri, folder, fingerprint(content), tuple(batch), grid, recipe.data.degradation)
