"""How good targets of several teachers can be: parts of the fusion in turn, on Set5 and every seventh of BSD100.

python docs/targets.py SCALE FOLDER TEACHER...   (checkpoints; outputs are kept in FOLDER; $SR_DATA holds the pictures)

Weights are fitted on one crop of each picture of T91 and BSD200_sub64, 48 LR pixels a side; all outputs are of 8 bits.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from pipeline.data.decode import decode
from pipeline.data.degrade import downscale, modcrop
from pipeline.metrics import psnr_y
from teachers.descriptor import Teacher
from teachers.fusion import WeightFit, fuse_mean, fuse_weighted
from teachers.loading import load_teacher
from teachers.regional import RegionalFit, fuse_regions

SETS = {"set5": "Set5/HR", "bsd": "BSD100/HR"}
CROP = 48


def enlarged(teacher: Teacher, lr: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        y = teacher(torch.from_numpy(lr).permute(2, 0, 1)[None].float() / 255)[0].clamp(0, 1)
    return (y * 255).round().byte().permute(1, 2, 0).numpy()


def outputs(checkpoint: str, scale: int, folder: Path) -> dict[str, np.ndarray]:
    """{set_number_what: picture}: `hr`, `one` (a single pass; not of training crops) or `se` (its eight moves)."""
    file = folder / f"x{scale}_{Path(checkpoint).stem.rpartition('_')[0]}.npz"
    if not file.exists():
        alone = load_teacher(checkpoint, scale=scale)
        eight, data = alone.with_convention(self_ensemble=True), Path(os.environ["SR_DATA"])
        found: dict[str, np.ndarray] = {}
        drawn, items = np.random.default_rng(1), []
        for name, place in SETS.items():
            files = sorted((data / place).iterdir())
            items += [(name, path) for path in (files if name == "set5" else files[::7])]
        for place in ("T91", "BSD200_sub64"):
            items += [("train", path) for path in sorted((data / "train" / place).iterdir())]
        for number, (name, path) in enumerate(items):
            hr = modcrop(decode(path), scale)
            if name == "train":
                height, width = (min(CROP * scale, side // scale * scale) for side in hr.shape[:2])
                y, x = (
                    int(drawn.integers(0, side - size + 1))
                    for side, size in zip(hr.shape, (height, width), strict=False)
                )
                hr = hr[y : y + height, x : x + width]
            lr, key = downscale(hr, scale), f"{name}_{number}"
            found[f"{key}_hr"], found[f"{key}_se"] = hr, enlarged(eight, lr)
            if name != "train":
                found[f"{key}_one"] = enlarged(alone, lr)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(file, allow_pickle=False, **found)
    return dict(np.load(file))


def main(scale: int, folder: str, checkpoints: Sequence[str]) -> None:
    known = {Path(c).stem: outputs(c, scale, Path(folder)) for c in checkpoints}
    first = next(iter(known.values()))
    keys = [key.removesuffix("_hr") for key in first if key.endswith("_hr")]

    def pile(key: str, what: str) -> list[np.ndarray]:
        return [found[f"{key}_{what}"][None] for found in known.values()]

    def said(what: str, picture: Callable[[str], np.ndarray]) -> None:
        means = {
            name: fmean(
                psnr_y(picture(key), first[f"{key}_hr"], scale) for key in keys if key.startswith(name)
            )
            for name in SETS
        }
        figures = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        sys.stdout.write(f"{what:<32}{figures}\n")

    for name, found in known.items():
        said(name, lambda key, found=found: found[f"{key}_one"])
        said(f"{name}, self-ensemble", lambda key, found=found: found[f"{key}_se"])
    said("mean", lambda key: fuse_mean(pile(key, "one"))[0])
    said("mean of self-ensembles", lambda key: fuse_mean(pile(key, "se"))[0])
    fits = {"least squares": WeightFit(len(known))}
    fits |= {f"... by region, {levels} bands": RegionalFit(len(known), levels) for levels in (0, 1, 2)}
    for name, fit in fits.items():
        for key in (key for key in keys if key.startswith("train")):
            fit.add(pile(key, "se"), first[f"{key}_hr"][None])
        weights, fuse = fit.solve(), fuse_weighted if isinstance(fit, WeightFit) else fuse_regions
        said(name, lambda key, fuse=fuse, weights=weights: fuse(pile(key, "se"), weights=weights)[0])


main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
