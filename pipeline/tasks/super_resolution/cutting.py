"""One shard of tiles as a step by value: which pictures are in it, and how they are cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.cache import records
from pipeline.cache.format import Receipt, write_shard
from pipeline.cache.manifest import write_receipt
from pipeline.cache.store import Store
from pipeline.data.decode import Picture, decode
from pipeline.data.degrade import degrade, modcrop
from pipeline.data.pairs import overlap
from pipeline.data.tiles import Grid, Tile, columns, cut, filled, tile_id
from pipeline.data.upcycle import Upcycled, upcycled
from pipeline.data.views import views
from pipeline.recipe.degradation import Chain

MADE = "made"
"""The column that says what a chain of degradations, or upcycling, did to each tile."""
PICTURES = ".pictures.json"
"""Beside each tile shard: which pictures it holds, and what for."""


@dataclass(frozen=True, slots=True)
class Source:
    """A picture and what it may be used for."""

    picture: Picture
    lr_only: bool
    held_out: bool
    lr: str = ""
    """Of a pair: where its LR lies."""
    moved: tuple[int, int] = (0, 0)
    """LR pixels by which LR is moved against HR."""
    view: Upcycled | None = None
    """The upcycled view of its tiles instead of the tiles."""
    hr: str = ""
    """Of a pair: sha256 of its HR."""

    @property
    def scene(self) -> str:
        """What is trained on or held out as a whole: one HR picture, however many LR it has."""
        return self.hr or self.picture.sha256

    @property
    def use(self) -> tuple[str, bool, bool]:
        """What a shard's note says of it: (sha256 and view, LR only, held out)."""
        name = self.picture.sha256 if self.view is None else f"{self.picture.sha256} {self.view.identity}"
        return name, self.lr_only, self.held_out


@dataclass(frozen=True, slots=True)
class TileTask:
    """Cut these pictures into one shard. Pictures of one task are all HR, all LR-only or all of one upcycled view."""

    cache: str
    folder: str
    key: str
    sources: tuple[Source, ...]
    grid: Grid
    degradation: str | Chain

    def run(self, device: str = "cpu") -> Receipt:
        """Decode, degrade, cut, write. Idempotent: the same pictures give the same bytes."""
        store = Store.open(self.cache)
        cuts = [made for source in self.sources for made in self._tiles(source)]
        facts = {
            "pictures": [s.use[0] for s in self.sources],
            "lr_only": self.sources[0].lr_only,
            "held_out": self.sources[0].held_out,
        }
        records.save(store, f"{self.folder}/{self.key}{PICTURES}", facts)
        made = [said for _, _, said in cuts]
        receipt = write_shard(
            store,
            f"{self.folder}/{self.key}.arrow",
            columns([(name, tile) for name, tile, _ in cuts], self.grid)
            | ({MADE: made} if any(made) else {}),
            metadata={"kind": "tiles", "key": self.key, "folder": self.folder, "units": "grey levels 0..255"},
        )
        write_receipt(store, receipt)
        return receipt

    def _tiles(self, source: Source) -> Iterator[tuple[str, Tile, str]]:
        """(id, tile, what was done to it) of one picture; nothing where LR is somebody else's, or bicubic."""
        picture, sha256, chain = decode(source.picture.path), source.picture.sha256, self.degradation
        lr = None
        if isinstance(chain, Chain) and not (source.lr_only or source.lr):
            # Of several LR of a tile the first is upcycled.
            chain = chain.model_copy(update={"views": 1}) if source.view else chain
            found = [(view.id, view.tile, view.made) for view in views(picture, sha256, self.grid, chain)]
        else:
            hr, lr = (None, picture) if source.lr_only else (picture, None)
            if source.lr:
                lr, hr = overlap(decode(source.lr), picture, source.moved, self.grid.scale)
            kind = chain if isinstance(chain, str) else "bicubic"
            cuts = cut(hr, lr, self.grid, degradation=kind)
            found = [(tile_id(sha256, tile.y, tile.x), tile, "") for tile in cuts]
        if source.view is None:
            yield from found
            return
        if lr is None:
            scale, side = self.grid.scale, self.grid.size
            whole = modcrop(picture, scale) if min(picture.shape[:2]) >= scale else picture
            lr = degrade(filled(whole, side), "bicubic", scale)
        yield from upcycled(source.view, sha256, [tile for _, tile, _ in found], self.grid, lr)
