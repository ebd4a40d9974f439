"""Draw one picture by a faithful network, by a sharp one, and by their bands together.

python docs/bands.py LOW DETAILS PICTURE OUT   (two checkpoints of one scale, an HR picture, a .png file to write)
"""

from __future__ import annotations

import sys

import torch
from PIL import Image

from pipeline.data.decode import decode
from pipeline.data.degrade import downscale
from pipeline.recipe.fusion import Bands as Defaults
from pipeline.report.pictures import comparison_strip
from teachers.fusion import Bands, fuse_bands
from teachers.loading import load_teacher


def main(low: str, details: str, picture: str, out: str) -> None:
    networks = {"faithful": load_teacher(low), "sharp": load_teacher(details)}
    scale = networks["faithful"].info.scale
    hr = decode(picture)
    hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]
    lr = downscale(hr, scale)
    with torch.inference_mode():
        x = torch.from_numpy(lr).permute(2, 0, 1)[None].float() / 255
        large = {
            name: (network(x)[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            for name, network in networks.items()
        }
    usual = Defaults(kind="bands", low="faithful", details="sharp")
    stack = [y[None] for y in large.values()]
    large["bands"] = fuse_bands(stack, weights=Bands(0, 1, usual.wavelet, usual.shares))[0]
    Image.fromarray(comparison_strip([("LR", lr), *large.items()], hr, shave=scale)).save(out)


main(*sys.argv[1:])
