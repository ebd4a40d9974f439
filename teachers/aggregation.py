"""Learned fusion: the knowledge-aggregation network of MTKD (Jiang et al., ECCV 2024), DCTSwin.

Several teachers' pictures go in, one better picture comes out. It is SwinIR's layout on pixel-unshuffled
input, except that a window's attention works on the window's 2-D DCT: a token is a frequency, not a pixel.

`official=True` computes what the released code computes: an un-normalised DCT, shifted windows masked by
comparing DCT-transformed region numbers, and a picture synthesised without a skip (network output / 255 + the
DIV2K mean). The default differs where that release is fragile: an orthonormal DCT, in float32 under autocast
too; no mask, since a frequency belongs to no region; and a skip from the teachers with a last convolution
that starts at zero, so that an untrained network returns the skip and training can only set out from there.
The skip is this project's, not the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import InputError
from teachers.windows import dct_matrix, merge, pad, partition, relative_positions, released_mask, transform

Skip = Literal["mean", "weighted", "none"]

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


class Aggregation(nn.Module):
    """N teachers' pictures, (B, N, 3, H, W) or N of (B, 3, H, W), in [0, 1] to one (B, 3, H, W) of the same size.

    The teachers' order is part of the network: keep the one that it was trained with. Any size will do;
    inside, the picture is worked on at 1 / `scale` in whole windows. With `skip="weighted"` the teachers'
    weights in the skip are learned, from `skip_weights` on (a least-squares fit, say; by default alike).
    Without a skip the network's output is added to the DIV2K mean. `drop_path` is the largest rate of
    stochastic depth, 0.1 in the released code; it draws from torch's global generator.

    Parameters for three teachers at the paper's size: 1,094,579 (x2), 1,318,099 (x3), 1,335,603 (x4).

    Raises InputError for settings that do not fit together.
    """

    def __init__(
        self,
        n_teachers: int,
        scale: int,
        dim: int = 96,
        depths: Sequence[int] = (4, 4),
        heads: Sequence[int] = (6, 6),
        window: int = 8,
        mlp_ratio: float = 2.0,
        official: bool = False,
        skip: Skip | None = None,
        *,
        features: int = 64,
        drop_path: float = 0.0,
        skip_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        skip = skip or ("none" if official else "mean")
        _check(n_teachers, scale, dim, depths, heads, official, skip, skip_weights)
        self.n_teachers, self.scale, self.window = n_teachers, scale, window
        self.official, self.skip = official, skip

        rates = iter(torch.linspace(0, drop_path, sum(depths)).tolist())
        self.conv_first = nn.Conv2d(3 * n_teachers * scale**2, dim, 3, padding=1)
        self.norm_first = nn.LayerNorm(dim)
        self.groups = nn.ModuleList(
            Group(
                [
                    Block(dim, h, window, i % 2 * (window // 2), mlp_ratio, next(rates), official)
                    for i in range(d)
                ]
            )
            for d, h in zip(depths, heads)
        )
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv_before_upsample = nn.Conv2d(dim, features, 3, padding=1)
        factors = [2] * int(math.log2(scale)) if scale in (2, 4) else [scale]
        steps = [(nn.Conv2d(features, features * f * f, 3, padding=1), nn.PixelShuffle(f)) for f in factors]
        self.upsample = nn.Sequential(*(layer for step in steps for layer in step))
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)
        self.register_buffer("mean", torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1), persistent=False)

        self.apply(_initialise)
        if skip != "none":
            nn.init.zeros_(self.conv_last.weight)
            nn.init.zeros_(self.conv_last.bias)
        if skip == "weighted":
            weights = torch.tensor(skip_weights or [1.0 / n_teachers] * n_teachers, dtype=torch.float32)
            self.skip_weights = nn.Parameter(weights)

    def forward(self, outputs: Tensor | Sequence[Tensor]) -> Tensor:
        stacked = (
            outputs if isinstance(outputs, Tensor) else torch.stack(tuple(outputs), 1)
        )  # (B, N, 3, H, W)
        if stacked.ndim != 5 or stacked.shape[1:3] != (self.n_teachers, 3):
            raise ValueError(f"expected (B, {self.n_teachers}, 3, H, W), found {tuple(stacked.shape)}")
        height, width = stacked.shape[-2:]
        x = self._synthesise(pad(stacked.flatten(1, 2), self.window * self.scale))[..., :height, :width]
        if self.official:
            x = x / 255.0
        if self.skip == "mean":
            return stacked.mean(1) + x
        if self.skip == "weighted":
            return (stacked * self.skip_weights.view(1, -1, 1, 1, 1)).sum(1) + x
        return x + self.mean

    def _synthesise(self, x: Tensor) -> Tensor:
        """(B, 3 N, H, W) of whole windows to (B, 3, H, W)."""
        shallow = self.conv_first(
            F.pixel_unshuffle(x, self.scale).contiguous(memory_format=torch.channels_last)
        )
        tokens = self.norm_first(
            shallow.permute(0, 2, 3, 1)
        )  # (B, h, w, dim) from here to the end of the groups
        for group in self.groups:
            tokens = group(tokens)
        deep = self.conv_after_body(self.norm(tokens).permute(0, 3, 1, 2)) + shallow
        return self.conv_last(self.upsample(F.leaky_relu(self.conv_before_upsample(deep), 0.01)))


class Group(nn.Module):
    """Residual group: blocks, a convolution, and the group's input. (B, h, w, dim) to the same."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        dim = blocks[0].norm1.weight.numel()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for block in self.blocks:
            y = block(y)
        return x + self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Attention over frequencies, then an MLP, both residual and pre-normed. (B, h, w, dim) to the same."""

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        shift: int,
        mlp_ratio: float,
        drop_path: float,
        official: bool,
    ) -> None:
        super().__init__()
        self.window, self.shift, self.drop_path, self.official = window, shift, drop_path, official
        self.norm1 = nn.LayerNorm(dim)
        self.attn = FrequencyAttention(dim, heads, window, orthonormal=not official)
        self.norm2 = nn.LayerNorm(dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        y = self.norm1(x)
        mask = released_mask(height, width, self.window, self.shift).to(x.device) if self.official else None
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
        y = merge(self.attn(partition(y, self.window), mask), self.window, height, width)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        x = x + self._drop(y)
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, y: Tensor) -> Tensor:
        """Stochastic depth: leaves the branch out for some pictures of the batch while training."""
        if not self.training or self.drop_path == 0.0:
            return y
        keep = torch.rand(len(y), 1, 1, 1, device=y.device) >= self.drop_path
        return y * keep / (1.0 - self.drop_path)


class FrequencyAttention(nn.Module):
    """Multi-head attention among the frequencies of each window: DCT, attention, inverse DCT.

    (n, window^2, dim) pixels to the same; tokens in row-major order. The learned bias depends on the
    difference of two frequencies as Swin's does on that of two positions.
    """

    def __init__(self, dim: int, heads: int, window: int, orthonormal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        matrix = dct_matrix(window, orthonormal)
        # Rows and columns at once: the window's tokens are one vector to the Kronecker product.
        self.register_buffer("dct", torch.kron(matrix, matrix).float(), persistent=False)
        inverse = torch.linalg.inv(matrix)
        self.register_buffer("idct", torch.kron(inverse, inverse).float(), persistent=False)
        self.register_buffer("relative", relative_positions(window), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n, tokens, dim = x.shape
        spectrum = transform(self.dct, x)
        qkv = self.qkv(spectrum).view(n, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (n, heads, tokens, dim / heads)
        bias = self.relative_position_bias_table[self.relative].permute(2, 0, 1)[
            None
        ]  # (1, heads, tokens, tokens)
        if mask is not None:  # (windows of a picture, tokens, tokens)
            bias = (bias + mask[:, None]).repeat(n // len(mask), 1, 1, 1)  # pictures outermost
        # By hand: torch's fused attention is slower for so many small windows with a bias on a CPU.
        attended = (q * q.shape[-1] ** -0.5 @ k.mT + bias).softmax(-1).to(v.dtype) @ v
        return transform(self.idct, self.proj(attended.transpose(1, 2).reshape(n, tokens, dim)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _check(
    n_teachers: int,
    scale: int,
    dim: int,
    depths: Sequence[int],
    heads: Sequence[int],
    official: bool,
    skip: str,
    skip_weights: Sequence[float] | None,
) -> None:
    where = "aggregation network"
    if n_teachers < 1:
        raise InputError(where, "at least one teacher", str(n_teachers))
    if scale not in (1, 2, 3, 4):
        raise InputError(where, "scale 1, 2, 3 or 4", str(scale))
    if not depths or len(depths) != len(heads) or min(depths) < 1:
        raise InputError(
            where, "one depth and one number of heads a group", f"depths {depths}, heads {heads}"
        )
    if any(dim % h for h in heads):
        raise InputError(
            where, "a dim that every number of heads divides", f"dim {dim}, heads {tuple(heads)}"
        )
    if skip not in ("mean", "weighted", "none"):
        raise InputError(where, "skip mean, weighted or none", repr(skip))
    if official and skip != "none":
        raise InputError(where, "no skip in the released network", f"official with skip {skip!r}")
    if skip_weights is not None and (skip != "weighted" or len(skip_weights) != n_teachers):
        found = f"{len(skip_weights)} with skip {skip!r}"
        raise InputError(where, f"skip_weights only with skip 'weighted', {n_teachers} of them", found)
