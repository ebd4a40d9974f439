"""How good a network is on the held-out tiles while it is trained."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from pipeline.cache.manifest import load as load_manifest
from pipeline.cache.store import Store
from pipeline.methods.base import Phase
from pipeline.steps.seen import Strip
from pipeline.steps.values import Columns
from pipeline.tasks.super_resolution import crops
from pipeline.tasks.super_resolution.teach import as_levels, luma_error, psnr, read, to_stored
from students.colour import grey

HELD_OUT_TILES = 64
REFERENCE = "reference"
"""The column with what all teachers make of a tile, where students are judged by it."""
LABELS = {REFERENCE: "target", "hr": "HR"}
"""What pictures of a column are called; others as the column is."""
METRICS = {REFERENCE: "held_out/fidelity", "hr": "held_out/psnr_y"}


class HeldOut:
    """PSNR of a phase's artefact on the held-out tiles, and a few crops to look at."""

    def __init__(
        self, cache: Store, columns: Mapping[str, Columns], scale: int, phase: Phase, device: str
    ) -> None:
        self.device, self.scale = device, scale
        names = dict.fromkeys(
            (*phase.inputs, REFERENCE, "hr", *(n for n in phase.sources if n != "lr"), "lr")
        )
        self.inputs, self.shown = phase.inputs, phase.shown
        found = {n: self._some(cache, columns[n]) for n in names if n in columns}
        self.tiles = {n: tiles for n, tiles in found.items() if tiles is not None}
        self.judges = {METRICS[n]: n for n in (REFERENCE, "hr") if n in self.tiles}
        self.crops = crops.chosen(self.tiles["hr" if "hr" in self.tiles else REFERENCE])

    @staticmethod
    def _some(cache: Store, columns: Columns) -> np.ndarray | None:
        """Tiles at equal distances, so of all pictures; None for a column that they lack: HR of LR alone."""
        assert columns.held_out is not None
        manifest = load_manifest(cache, columns.held_out)
        total = manifest.rows
        chosen = np.linspace(0, total - 1, min(HELD_OUT_TILES, total)).astype(int)
        rows, begin = [], 0
        for receipt in manifest.shards:
            here = chosen[(chosen >= begin) & (chosen < begin + receipt.rows)] - begin
            begin += receipt.rows
            if not len(here):
                continue
            found = read(cache, receipt).columns.get(columns.column)
            if found is None:
                return None
            rows.append(found[here])
        return np.concatenate(rows)

    @staticmethod
    def quality(cache: Store, outputs: Columns, hr: Columns, scale: int) -> float | None:
        """PSNR in dB of cached outputs on the tiles that students are judged by; None where these have no HR."""
        if outputs.held_out is None or hr.held_out is None:
            return None
        made, truth = HeldOut._some(cache, outputs), HeldOut._some(cache, hr)
        if made is None or truth is None:
            return None
        error, pixels = luma_error(as_levels(made), as_levels(truth), scale)
        return psnr([{"squared_error": error, "pixels": pixels}])

    @torch.inference_mode()
    def __call__(self, model: nn.Module) -> tuple[dict[str, float], Strip]:
        """(PSNR in dB over all tiles together; of two crops LR, targets, HR, the output and how far it is off)."""
        sums = {name: [0.0, 0] for name in self.judges}
        drawn = []
        for begin in range(0, len(self.tiles["lr"]), 8):
            rows = slice(begin, begin + 8)
            tensors = [self._tensor(self.tiles[n][rows]) for n in self.inputs]
            x = tensors[0] if len(tensors) == 1 else torch.stack(tensors, dim=1)
            y = model(x).float()
            sr = to_stored(grey(y) if y.shape[1] == 1 else y, "uint8")
            for name, judge in self.judges.items():
                e, n = luma_error(sr, as_levels(self.tiles[judge][rows]), self.scale)
                sums[name] = [sums[name][0] + e, sums[name][1] + n]
            for crop in (c - begin for c in self.crops if begin <= c < begin + 8):
                also = self.shown(model, x[crop : crop + 1]).float() if self.shown else None
                drawn.append(
                    self._row(begin + crop, sr[crop], None if also is None else to_stored(also, "uint8")[0])
                )
        values = {name: psnr([{"squared_error": e, "pixels": n}]) for name, (e, n) in sums.items()}
        reference = next(n for n in (REFERENCE, "target", "hr") if n in self.tiles)
        return values, crops.strip(drawn, LABELS.get(reference, reference), self.scale)

    def _tensor(self, stored: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(np.array(stored)).to(self.device).permute(0, 3, 1, 2).float()
        return x / 255 if stored.dtype == np.uint8 else x

    def _row(self, crop: int, sr: np.ndarray, also: np.ndarray | None) -> dict[str, np.ndarray]:
        """One crop's pictures, as they are called."""
        row = {"LR": self.tiles["lr"][crop], **({} if also is None else {"student's LR": also})}
        known = ("lr", "hr", *((REFERENCE,) if "target" in self.tiles else ()))
        targets = {n: as_levels(t[crop]) for n, t in self.tiles.items() if n not in known}
        truth = {"hr": self.tiles["hr"][crop]} if "hr" in self.tiles else {}
        row |= {LABELS.get(n, n): picture for n, picture in {**targets, **truth}.items()}
        return {**row, crops.STUDENT: sr}
