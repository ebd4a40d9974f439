"""SwinIR, light variant (Liang et al.; ICCV Workshops 2021): windowed self-attention with one-step pixel shuffle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import InputError
from students.layers import Features, MeanShift, Positive, conv3, pixel_shuffle_head, start_bilinear

PARAMETERS = {2: 910_152, 3: 918_267, 4: 929_628}
"""Of `swinir_light()`."""


def relative_index(window: int) -> Tensor:
    """(window^2, window^2) index into the bias table of (2*window - 1)^2 relative positions."""
    steps = torch.arange(window)
    rows, columns = (grid.flatten() for grid in torch.meshgrid(steps, steps, indexing="ij"))
    down = rows[:, None] - rows[None, :] + window - 1
    right = columns[:, None] - columns[None, :] + window - 1
    return down * (2 * window - 1) + right


def shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """(windows, window^2, window^2): 0 where two pixels of a shifted window are neighbours, -100 where rolled together.

    Plain tensor arithmetic on the sizes, so that an exported graph computes it for any picture.
    """

    def regions(length: int) -> Tensor:
        at = torch.arange(length, device=device)
        return (at >= length - window).int() + (at >= length - window // 2).int()

    region = regions(height)[:, None] * 3 + regions(width)[None, :]
    region = to_windows(region[None, :, :, None], window)[..., 0]  # (windows, window^2)
    return (region[:, None, :] != region[:, :, None]).float() * -100.0


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, h, w, C) -> (B*windows, window^2, C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `to_windows`: (B*windows, window^2, C) -> (B, h, w, C)."""
    x = x.reshape(-1, height // window, width // window, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, x.shape[-1])


def reflect_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Mirror x (B, C, h, w) at its lower and right border up to a multiple of `multiple`; any size, 1x1 too.

    What lies further than one mirror image away repeats the mirrored first pixel.
    """

    def mirrored(length: int) -> Tensor:
        at = torch.arange((length + multiple - 1) // multiple * multiple, device=x.device)
        return (length - 1 - (at - (length - 1)).abs()).clamp(min=0)

    return x[:, :, mirrored(x.shape[2])][:, :, :, mirrored(x.shape[3])]


class WindowAttention(nn.Module):
    """Multi-head self-attention among the pixels of each window, with a learned relative position bias."""

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_index(window), persistent=False)
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B*windows, n, dim), n = window^2; mask (windows, n, n) or None."""
        count, n, dim = x.shape
        q, k, v = self.qkv(x).reshape(count, n, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q * (dim // self.heads) ** -0.5) @ k.transpose(-2, -1)  # (count, heads, n, n)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        scores = scores + bias.reshape(n, n, self.heads).permute(2, 0, 1)
        if mask is not None:
            scores = scores.reshape(-1, mask.shape[0], self.heads, n, n) + mask[:, None]
            scores = scores.reshape(-1, self.heads, n, n)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(count, n, dim)
        return self.proj(y)


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Window attention and an MLP, each normalised before and added to its input. (B, h, w, dim) throughout."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float, drop: float) -> None:
        super().__init__()
        self.window, self.shift, self.drop = window, shift, drop
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def _drop_path(self, x: Tensor) -> Tensor:
        """Stochastic depth: in training a sample's branch is left out with probability `drop`."""
        if not self.training or self.drop == 0.0:
            return x
        kept = torch.empty(x.shape[0], 1, 1, 1, device=x.device, dtype=x.dtype).bernoulli_(1 - self.drop)
        return x * kept / (1 - self.drop)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        y = self.norm1(x)
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
        y = self.attn(to_windows(y, self.window), mask if self.shift else None)
        y = from_windows(y, self.window, height, width)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        x = x + self._drop_path(y)
        return x + self._drop_path(self.mlp(self.norm2(x)))


class BlockGroup(nn.Module):
    """The blocks of one residual group; shifted and unshifted windows take turns."""

    def __init__(
        self, dim: int, depth: int, heads: int, window: int, mlp_ratio: float, drops: list[float]
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, heads, window, window // 2 if i % 2 else 0, mlp_ratio, drops[i]) for i in range(depth)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return x


class ResidualGroup(nn.Module):
    """A group of blocks and a 3x3 convolution, added to the input."""

    def __init__(self, dim: int, *args: object) -> None:
        super().__init__()
        self.residual_group = BlockGroup(dim, *args)
        self.conv = conv3(dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.residual_group(x, mask).permute(0, 3, 1, 2)
        return x + self.conv(y).permute(0, 2, 3, 1)


class PatchNorm(nn.Module):
    """The layer norm of the published network's patch embedding (its patches are single pixels)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class SwinIRLight(nn.Module):
    """(B, 3, h, w) RGB in [0, 1] -> (B, 3, scale*h, scale*w); sizes are mirrored up to a multiple of the window.

    dim: channels, a multiple of heads. depths: blocks of each residual group. drop_path: stochastic depth, rising
    linearly to this value over the blocks; the published training code has 0.1, 0 keeps training deterministic.
    """

    def __init__(
        self,
        scale: int,
        *,
        dim: Features = 60,
        depths: tuple[Positive, ...] = (6, 6, 6, 6),
        heads: Positive = 6,
        window: Positive = 8,
        mlp_ratio: float = 2.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise InputError("student.options.dim", f"a multiple of its {heads} heads", f"{dim}")
        self.scale, self.window = scale, window
        self.shift = MeanShift(1.0)
        self.conv_first = conv3(3, dim)
        self.patch_embed = PatchNorm(dim)
        drops = torch.linspace(0, drop_path, sum(depths)).tolist()
        groups = []
        for depth in depths:
            groups.append(ResidualGroup(dim, depth, heads, window, mlp_ratio, drops[:depth]))
            drops = drops[depth:]
        self.layers = nn.ModuleList(groups)
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = conv3(dim, dim)
        self.upsample = pixel_shuffle_head(dim, 3, scale)
        self._start()
        start_bilinear(self.conv_first, self.conv_after_body, self.upsample, None)

    def _start(self) -> None:
        """Truncated normal 0.02 for linear layers and bias tables, as published."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = self.conv_first(self.shift(reflect_to_multiple(x, self.window)))
        mask = shift_mask(x.shape[2], x.shape[3], self.window, x.device)
        y = self.patch_embed(x.permute(0, 2, 3, 1))
        for group in self.layers:
            y = group(y, mask)
        y = self.norm(y).permute(0, 3, 1, 2)
        y = self.upsample(self.conv_after_body(y) + x)
        return self.shift.undo(y)[:, :, : height * self.scale, : width * self.scale]

    def spandrel_state_dict(self) -> dict[str, Tensor]:
        """The state dict as spandrel's SwinIR has it: with the index and mask buffers of a two by two window picture.

        From them it reads the window's size and that windows shift; it computes the mask of other sizes itself.
        """
        state = self.state_dict()
        mask = shift_mask(2 * self.window, 2 * self.window, self.window, torch.device("cpu"))
        for name, module in self.named_modules():
            if isinstance(module, Block):
                state[f"{name}.attn.relative_position_index"] = relative_index(self.window)
                if module.shift:
                    state[f"{name}.attn_mask"] = mask.clone()
        return state
