"""The one boundary behind which every teacher looks the same.

A teacher takes LR pictures (N, 3, H, W), RGB, float in [0, 1], and returns (N, 3, scale*H, scale*W), RGB,
float32, nominally in [0, 1] (nothing is clamped). What the network itself wants (0..255, BGR, luminance alone,
a smallest side, a multiple of its window, channels_last, bf16) is handled here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import InputError
from teachers.precision import PROBE_SIDE, delicate_convolutions, keep_in_float32
from teachers.tiling import tiled

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class TeacherInfo:
    """What there is to know about a teacher without running it."""

    name: str
    architecture: str
    scale: int
    parameters: int
    sha256: str
    """Of the checkpoint file's bytes: the teacher's identity in fingerprints."""
    source: str
    """The checkpoint's path, or its download address for a teacher of the zoo."""
    minimum_side: int = 1
    """Smallest LR side the network itself takes; smaller pictures are padded."""
    multiple_of: int = 1
    """LR sides are padded to a multiple of this."""
    convolutional: bool = True
    """No attention over windows or tokens: what bf16 and channels_last speed up."""
    perceptual: bool = False
    """Trained adversarially: its PSNR may lie below bicubic's without anything being wrong."""


@dataclass(frozen=True, slots=True)
class Convention:
    """The network's own units."""

    value_range: float = 1.0
    """What white is, for input and output alike: 1 or 255."""
    bgr: bool = False
    """Blue comes first, in and out."""
    luma: bool = False
    """One channel, the Y of full-range YCbCr; colour is upscaled by bicubic."""
    self_ensemble: bool = False
    """Mean of what it makes of the picture's eight moves, each moved back: eight calls (EDSR+; Timofte et al., "Seven
    ways to improve example-based single image super resolution", CVPR 2016)."""


PLAIN = Convention()
"""RGB in [0, 1], as everywhere in Faculty."""


@runtime_checkable
class Clamping(Protocol):
    """A network whose call holds its output within 0..1, which is no range for one of values up to 255."""

    def unclamped(self, x: Tensor) -> Tensor: ...


class Teacher:
    """A network with its conventions. Calls run in inference mode on the device that `to` has set.

    `variants` are the same weights read for other scales, where their shapes fit several and only one is right;
    the gate compares them.
    """

    def __init__(
        self,
        info: TeacherInfo,
        network: nn.Module,
        convention: Convention = PLAIN,
        variants: tuple[Teacher, ...] = (),
    ) -> None:
        self.info = info
        self.network = _channels_last(network.eval().requires_grad_(False))
        self.convention = convention
        self.variants = variants
        self.device = torch.device("cpu")
        self.dtype: Precision = "fp32"

    def __repr__(self) -> str:
        return f"Teacher({self.info.name}, {self.info.architecture} x{self.info.scale}, {self.dtype})"

    def to(self, device: torch.device | str) -> Teacher:
        """Moves the network; pictures are moved to it by each call."""
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    def precision(self, dtype: Precision) -> Teacher:
        """`bf16`: products in bfloat16 except those that touch pixels (precision.py). `fp32`: all in float32."""
        if dtype not in ("fp32", "bf16"):
            raise InputError(f"precision of teacher {self.info.name}", "fp32 or bf16", repr(dtype))
        if dtype == "bf16" and next(self.network.parameters(), None) is None:
            found = "bf16 for a network without parameters that could be cast, as graphs of ONNX are"
            raise InputError(f"precision of teacher {self.info.name}", "auto or fp32", found)
        if dtype == "bf16" and self.dtype != "bf16":
            side = (
                -(-max(PROBE_SIDE, self.info.minimum_side) // self.info.multiple_of) * self.info.multiple_of
            )
            probe = torch.zeros(1, 1 if self.convention.luma else 3, side, side, device=self.device)
            for module in delicate_convolutions(self.network, probe):
                keep_in_float32(module)
        self.dtype = dtype
        return self

    def with_convention(self, **changes: Any) -> Teacher:
        """The same network read in other units; weights are shared. So are the readings for other scales."""
        variants = tuple(variant.with_convention(**changes) for variant in self.variants)
        other = Teacher(self.info, self.network, replace(self.convention, **changes), variants)
        other.device, other.dtype = self.device, self.dtype
        return other

    def __call__(self, lr: Tensor) -> Tensor:
        """(N, 3, H, W) RGB float in [0, 1], any side >= 1 -> (N, 3, scale*H, scale*W) float32.

        Raises InputError where the input is not such a tensor or the network's output has another size.
        """
        info = self.info
        if lr.ndim != 4 or lr.shape[1] != 3 or not lr.is_floating_point():
            found = f"{tuple(lr.shape)} {lr.dtype}"
            raise InputError(f"input of teacher {info.name}", "(N, 3, H, W) floats in [0, 1]", found)
        if self.convention.self_ensemble:
            return self._ensembled(lr)
        height, width = lr.shape[-2] * info.scale, lr.shape[-1] * info.scale
        with torch.inference_mode():
            x = pad(lr.to(self.device, torch.float32), info.minimum_side, info.multiple_of)
            y = self._run(x)
            expected = (lr.shape[0], 3, x.shape[-2] * info.scale, x.shape[-1] * info.scale)
            if tuple(y.shape) != expected:
                wanted, remedy = (
                    f"output {expected} for x{info.scale}",
                    "The network is made for another scale.",
                )
                raise InputError(f"teacher {info.name}", wanted, f"{tuple(y.shape)}", remedy)
            return y[..., :height, :width]

    def _ensembled(self, lr: Tensor) -> Tensor:
        alone = self.with_convention(self_ensemble=False)
        with torch.inference_mode():
            total: Tensor | float = 0.0
            for turns in range(4):
                for mirrored in (False, True):
                    moved = torch.rot90(lr.flip(3) if mirrored else lr, turns, (2, 3))
                    back = torch.rot90(alone(moved), -turns, (2, 3))
                    total = total + (back.flip(3) if mirrored else back)
            assert isinstance(total, Tensor)
            return total / 8

    def _run(self, x: Tensor) -> Tensor:
        convention = self.convention
        colour = None
        if convention.luma:
            x, colour = split_luma(x, self.info.scale)
        elif convention.bgr:
            x = x.flip(1)
        # `mul` makes a new tensor: some networks write into their input
        x = x.mul(convention.value_range).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.dtype == "bf16"):
            y = self._call(x)
        y = y.float() / convention.value_range
        if colour is not None:
            # a wrong size is reported by the caller
            return join_luma(y, colour) if y.shape[-2:] == colour.shape[-2:] else y
        return y.flip(1) if convention.bgr else y

    def _call(self, x: Tensor) -> Tensor:
        if self.convention.value_range > 1.0 and isinstance(self.network, Clamping):
            return self.network.unclamped(x)
        out: Tensor = self.network(x)
        return out

    def upscale(self, lr: Tensor, tile: int | None = None, overlap: int = 16) -> Tensor:
        """Like a call; pictures larger than `tile` LR pixels a side go in overlapping tiles (tiling.py)."""
        if tile is None:
            return self(lr)
        return tiled(self, lr, self.info.scale, tile, overlap)


def _channels_last(network: nn.Module) -> nn.Module:
    """The network in that layout; torch has none like it for weights of three dimensions."""
    deep = any(tensor.dim() == 5 for tensor in (*network.parameters(), *network.buffers()))
    return network if deep else network.to(memory_format=torch.channels_last)


def pad(x: Tensor, minimum: int | tuple[int, int], multiple: int) -> Tensor:
    """Mirrors (N, C, H, W) beyond the lower and right border up to `minimum` and a multiple of `multiple`.

    `minimum` is a side, or (height, width).

    Half-sample mirroring repeated as often as needed, so that a picture of one pixel works too.
    """
    least = (minimum, minimum) if isinstance(minimum, int) else minimum
    for dim, smallest in zip((2, 3), least):
        side = x.shape[dim]
        target = -(-max(side, smallest) // multiple) * multiple
        if target > side:
            index = torch.arange(target, device=x.device) % (2 * side)
            x = x.index_select(dim, torch.where(index < side, index, 2 * side - 1 - index))
    return x


# Full-range BT.601, as JPEG and OpenCV have it.
TO_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)


def split_luma(x: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """RGB (N, 3, H, W) -> Y (N, 1, H, W) and CbCr upscaled by bicubic (N, 2, scale*H, scale*W), around 0."""
    ycbcr = torch.einsum("oc,nchw->nohw", torch.tensor(TO_YCBCR, device=x.device), x)
    colour = F.interpolate(ycbcr[:, 1:], scale_factor=scale, mode="bicubic", align_corners=False)
    return ycbcr[:, :1], colour


def join_luma(y: Tensor, colour: Tensor) -> Tensor:
    """The inverse of `split_luma` at HR: (N, 1, H, W) and (N, 2, H, W) -> RGB (N, 3, H, W)."""
    inverse = torch.linalg.inv(torch.tensor(TO_YCBCR, dtype=torch.float64)).to(y)
    return torch.einsum("oc,nchw->nohw", inverse, torch.cat([y, colour], dim=1))
