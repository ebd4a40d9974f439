"""How good a network is on the held-out tiles while it is trained."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from pipeline.cache.manifest import load as load_manifest
from pipeline.cache.store import Store
from pipeline.methods.base import Phase
from pipeline.steps.values import Columns
from pipeline.tasks.super_resolution.teach import as_levels, luma_error, psnr, read, to_stored
from students.colour import grey

HELD_OUT_TILES = 64
REFERENCE = "reference"
"""The column with what all teachers make of a tile, where students are judged by it."""
METRICS = {REFERENCE: "held_out/fidelity", "hr": "held_out/psnr_y"}


class HeldOut:
    """PSNR of a phase's artefact on the held-out tiles, and a strip of pictures to look at."""

    def __init__(
        self, cache: Store, columns: Mapping[str, Columns], scale: int, phase: Phase, device: str
    ) -> None:
        self.device, self.scale = device, scale
        names = dict.fromkeys(
            (*phase.inputs, REFERENCE, "hr", *(n for n in phase.sources if n != "lr"), "lr")
        )
        self.inputs, self.shown = phase.inputs, phase.shown
        found = {n: self._first(cache, columns[n]) for n in names if n in columns}
        self.tiles = {n: tiles for n, tiles in found.items() if tiles is not None}
        self.judges = {METRICS[n]: n for n in (REFERENCE, "hr") if n in self.tiles}

    @staticmethod
    def _first(cache: Store, columns: Columns) -> np.ndarray | None:
        """The first tiles; None for a column that they lack: HR of LR alone."""
        assert columns.held_out is not None
        manifest = load_manifest(cache, columns.held_out)
        rows, have = [], 0
        for receipt in manifest.shards:
            found = read(cache, receipt).columns.get(columns.column)
            if found is None:
                return None
            rows.append(found[: HELD_OUT_TILES - have])
            have += len(rows[-1])
            if have >= HELD_OUT_TILES:
                break
        return np.concatenate(rows)

    @torch.inference_mode()
    def __call__(self, model: nn.Module) -> tuple[dict[str, float], np.ndarray]:
        """(PSNR in dB over all tiles together, strip HWC uint8 of one tile: LR, targets, output, HR)."""
        sums = {name: [0.0, 0] for name in self.judges}
        shown: np.ndarray | None = None
        extra: np.ndarray | None = None
        for begin in range(0, len(self.tiles["lr"]), 8):
            rows = slice(begin, begin + 8)
            tensors = [self._tensor(self.tiles[n][rows]) for n in self.inputs]
            x = tensors[0] if len(tensors) == 1 else torch.stack(tensors, dim=1)
            y = model(x).float()
            sr = to_stored(grey(y) if y.shape[1] == 1 else y, "uint8")
            if shown is None:
                shown = sr
                extra = to_stored(self.shown(model, x).float(), "uint8") if self.shown else None
            for name, judge in self.judges.items():
                e, n = luma_error(sr, as_levels(self.tiles[judge][rows]), self.scale)
                sums[name] = [sums[name][0] + e, sums[name][1] + n]
        assert shown is not None
        values = {name: psnr([{"squared_error": e, "pixels": n}]) for name, (e, n) in sums.items()}
        return values, self._strip(shown, extra)

    def _tensor(self, stored: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(np.array(stored)).to(self.device).permute(0, 3, 1, 2).float()
        return x / 255 if stored.dtype == np.uint8 else x

    def _strip(self, sr: np.ndarray, extra: np.ndarray | None) -> np.ndarray:
        # The tile with the most detail among those shown says the most.
        detailed = self.tiles["hr" if "hr" in self.tiles else REFERENCE][: len(sr)]
        best = int(np.argmax([t.astype(np.float32).var() for t in detailed]))
        small = [self.tiles["lr"][best], *([] if extra is None else [extra[best]])]
        lr = np.concatenate([p.repeat(self.scale, 0).repeat(self.scale, 1) for p in small], axis=1)
        known = ("lr", "hr", *((REFERENCE,) if "target" in self.tiles else ()))
        targets = [as_levels(t[best]) for n, t in self.tiles.items() if n not in known]
        truth = [self.tiles["hr"][best]] if "hr" in self.tiles else []
        return np.concatenate([lr, *targets, sr[best], *truth], axis=1)
