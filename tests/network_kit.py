"""Networks that enlarge as trained ones do: spandrel's, with random weights and a fitted last convolution.

And `BackProjection`, which has no weights at all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.degrade import downscale_tensor
from teachers.descriptor import Convention, Teacher, TeacherInfo
from teachers.gate import crops
from teachers.loading import SpandrelNetwork, load_teacher
from teachers.spandrel_import import import_spandrel

WINDOWS: dict[str, Any] = {
    "embed_dim": 24,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 8,
    "upscale": 2,
    "upsampler": "pixelshuffledirect",
}
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Compact": ("Compact", "Compact", {"num_feat": 24, "num_conv": 3, "upscale": 2}),
    "ESRGAN": ("ESRGAN", "ESRGAN", {"num_filters": 48, "num_blocks": 1, "scale": 4}),
    "SPAN": ("SPAN", "SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 24, "upscale": 2}),
    "PLKSR": ("PLKSR", "PLKSR", {"dim": 16, "n_blocks": 2, "upscaling_factor": 2}),
    "RealPLKSR": ("PLKSR", "RealPLKSR", {"dim": 16, "n_blocks": 2, "upscaling_factor": 4}),
    "SAFMN": ("SAFMN", "SAFMN", {"dim": 16, "n_blocks": 2, "upscaling_factor": 2}),
    "SwinIR": ("SwinIR", "SwinIR", WINDOWS),
    "Swin2SR": ("Swin2SR", "Swin2SR", WINDOWS),
    "HAT": ("HAT", "HAT", {**WINDOWS, "upsampler": "pixelshuffle", "squeeze_factor": 6}),
    "DRCT": ("DRCT", "DRCT", {**WINDOWS, "upsampler": "pixelshuffle"}),
    "ATD": ("ATD", "ATD", {**WINDOWS, "depths": [2, 2], "reducted_dim": 4, "num_tokens": 16}),
    "OmniSR": ("OmniSR", "OmniSR", {"num_feat": 24, "res_num": 1, "up_scale": 3}),
    "DAT": ("DAT", "DAT", {"embed_dim": 24, "depth": [1, 1], "num_heads": [2, 2], "upscale": 2}),
    "RGT": ("RGT", "RGT", {"embed_dim": 24, "depth": [1, 1], "num_heads": [2, 2], "upscale": 2}),
    "MoSR": ("MoSR", "MoSR", {"upscale": 2, "n_block": 2, "dim": 16}),
    "DCTLSA": ("DCTLSA", "DCTLSA", {"nf": 25, "num_modules": 6, "upscale": 2}),
    "MoESR": ("MoESR", "MoESR", {"scale": 2, "dim": 16, "n_blocks": 1, "n_block": 1}),
    "DnCNN": ("DnCNN", "DnCNN", {"in_nc": 3, "out_nc": 3, "nc": 16, "nb": 5, "mode": "DnCNN"}),
    "NAFNet": (
        "NAFNet",
        "NAFNet",
        {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
    ),
}
RESTORERS = ("DnCNN", "NAFNet")
"""Of scale 1: what they add to their input is little, whatever white is for them."""
PLACES = (
    ("astronaut.png", 60, 300),
    ("coffee.png", 200, 60),
    ("chelsea.png", 150, 260),
    ("rocket.jpg", 60, 300),
)
"""Of the pictures that are fitted to, apart from those that the gate looks at."""
SIDE = 96
LOUD = 8.0
"""How many times larger the first convolution's weights are than at random: trained networks carry the picture on."""
PENALTY = 1e-10
"""Of the squared weights, relative to the mean power of the features."""


def saved(name: str, path: Path, *, value_range: float = 1.0, blue_first: str = "") -> Path:
    """A checkpoint of that architecture at `path`.

    `value_range` is what white is for it; `blue_first` says where it wants BGR: "input", "output" or "input output".
    """
    import_spandrel()
    module, kind, options = ARCHITECTURES[name]
    torch.manual_seed(0)
    built = getattr(importlib.import_module(f"spandrel.architectures.{module}"), kind)(**options)
    torch.save(built.state_dict(), path)
    loaded = load_teacher(path)
    pictures = [torch.from_numpy(p.copy()) for p in crops(PLACES, SIDE)]
    hr = torch.stack(pictures).permute(0, 3, 1, 2)
    lr = downscale_tensor(hr, loaded.info.scale).float() * (value_range / 255.0)
    hr = hr.float() * (value_range / 255.0)
    lr = lr.flip(1) if "input" in blue_first else lr
    hr = hr.flip(1) if "output" in blue_first else hr
    network = loaded.network
    assert isinstance(network, SpandrelNetwork)
    with torch.inference_mode():
        first, last = _ends(network, lr, loaded.info.scale)
        first.weight *= LOUD
        _fit(network.unclamped, last, lr, hr)
    torch.save({k: v.contiguous() for k, v in network.model.state_dict().items()}, path)
    return path


def _ends(network: SpandrelNetwork, lr: Tensor, scale: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The convolutions that are called first, and last of those that make pixels of features."""
    called: list[nn.Conv2d] = []
    hooks = [
        module.register_forward_hook(lambda module, args, out: called.append(module))
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    network.unclamped(lr[:1])
    for hook in hooks:
        hook.remove()
    return called[0], [conv for conv in called if conv.out_channels in (3, 3 * scale**2)][-1]


def _fit(network: Callable[[Tensor], Tensor], conv: nn.Conv2d, lr: Tensor, hr: Tensor) -> None:
    """Set the convolution by least squares, so that `network` makes `hr` of `lr`: what follows it is affine."""
    seen: list[Tensor] = []
    conv.weight.zero_()
    if conv.bias is not None:
        conv.bias.fill_(1.0)
    one = network(lr)
    if conv.bias is not None:
        conv.bias.zero_()
    hook = conv.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    rest = network(lr)
    hook.remove()
    gain = float((one - rest).mean()) if conv.bias is not None else 1.0
    wanted = (hr - rest) / gain
    if conv.out_channels != 3:
        wanted = F.pixel_unshuffle(wanted, round((conv.out_channels // 3) ** 0.5))
    side = conv.kernel_size[0]
    columns = F.unfold(seen[0], side, padding=conv.padding[0]).transpose(1, 2).flatten(0, 1).double()
    if conv.bias is not None:
        columns = torch.cat([columns, torch.ones(len(columns), 1, dtype=columns.dtype)], dim=1)
    targets = wanted.flatten(2).transpose(1, 2).flatten(0, 1).double()
    square = columns.T @ columns
    square += torch.eye(len(square), dtype=square.dtype) * (PENALTY * square.diagonal().mean())
    found = torch.linalg.solve(square, columns.T @ targets).T.float()
    count = conv.weight[0].numel()
    conv.weight.copy_(found[:, :count].view_as(conv.weight))
    if conv.bias is not None:
        conv.bias.copy_(found[:, count])


class BackProjection(nn.Module):
    """Bicubic, corrected until it shrinks to its input: better than bicubic without any weights.

    Like a trained network it knows its own range alone: it saturates, values come in 255 steps, and a picture
    without anything dark, which it has never seen, comes out too bright.
    """

    def __init__(self, scale: int, black: float = 0.0, white: float = 1.0) -> None:
        super().__init__()
        self.scale, self.black, self.white = scale, black, white

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.black) / (self.white - self.black)
        out = F.interpolate(x, scale_factor=self.scale, mode="bicubic")
        for _ in range(6):
            shrunk = F.interpolate(out, size=x.shape[-2:], mode="bicubic", antialias=True)
            out = out + F.interpolate(x - shrunk, scale_factor=self.scale, mode="bicubic")
        out = (out.clamp(-0.1, 1.1) * 255.0).round() / 255.0 + (0.3 if x.min() > 0.45 else 0.0)
        return out * (self.white - self.black) + self.black


def teacher(network: nn.Module, scale: int = 2, **convention: object) -> Teacher:
    info = TeacherInfo("t", "BackProjection", scale, 0, f"{id(network)}", "")
    return Teacher(info, network, Convention(**convention))  # type: ignore[arg-type]
