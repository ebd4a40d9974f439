"""Wavelet distillation: the published loss, and a differentiable 2-D wavelet transform to build others with.

The loss is MTKD's (Jiang et al., ECCV 2024): with H_k the three detail bands of level k and LL_K the last low
band,

    L(P, Q) = sum over k = 1..K of mean |H_k(P) - H_k(Q)|  +  mean |LL_K(P) - LL_K(Q)|

each mean over the whole batch. The transform is linear, so one transform of P - Q serves. Everything is
computed in float32 (float64 for float64 inputs), also under autocast.

Published, the low band weighs 1, so one of its coefficients counts three times as much as a detail. A student that
starts near bilinear enlargement has little left to learn there, and the slope of |x| does not fade near 0: what it gets
from the low band is mostly noise. Ours: `low`, a weight for that term; 1/3 makes all coefficients equal.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pywt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import InputError

MODES = ("zero", "symmetric", "reflect", "periodic", "periodization")
"""How a signal goes on beyond its ends, by pywt's names."""

HAAR = ("haar", "db1")

# Haar has two taps, so its transform looks one sample beyond the end of an odd side and no further.
_ODD_PAD = {
    "zero": "constant",
    "symmetric": "replicate",
    "reflect": "reflect",
    "periodic": "circular",
    "periodization": "replicate",
}


def dwt2(x: Tensor, wavelet: str = "haar", mode: str = "zero", level: int = 1) -> tuple[Tensor, list[Tensor]]:
    """Separable wavelet transform of (N, C, H, W): `(ll, details)`, equal to `pywt.wavedec2`.

    `ll` is (N, C, h_K, w_K); `details[k - 1]`, finest first, is (N, C, 3, h_k, w_k) with pywt's horizontal,
    vertical and diagonal bands. Differentiable to any order in every mode of `MODES`, for even and odd sides.
    Haar is slices and sums; any other wavelet is two matrix products a level, whose cost per pixel grows with
    the side: made for training patches. Raises InputError for an unknown wavelet or mode, a level below 1, or
    a 1-pixel side in mode "reflect".
    """
    _check(wavelet, mode, level)
    with torch.autocast(x.device.type, enabled=False):
        ll = _single(x)
        details = []
        for _ in range(level):
            ll, bands = _haar2(ll, mode) if wavelet in HAAR else _matrix2(ll, wavelet, mode)
            details.append(bands)
    return ll, details


class WaveletLoss(nn.Module):
    """The loss above between two (N, C, H, W) pictures: a scalar.

    `level` is K; the paper uses 1, and Haar in mode "zero". `low` weighs the low band's mean. A constant error e costs
    low * 2^K |e|.
    `dual_tree=True` takes the dual-tree complex transform (Kingsbury) of pytorch_wavelets instead, which
    hardly changes when a picture is shifted by a pixel: the mean of |real| and |imaginary| parts of its six
    oriented bands per level; `wavelet` and `mode` then do not apply. Raises InputError as `dwt2` does.
    """

    def __init__(
        self,
        wavelet: str = "haar",
        level: int = 1,
        mode: str = "zero",
        *,
        dual_tree: bool = False,
        low: float = 1.0,
    ) -> None:
        super().__init__()
        _check(wavelet, mode, level)
        self.wavelet, self.level, self.mode, self.low = wavelet, level, mode, low
        self.dual_tree = _dual_tree(level) if dual_tree else None

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        if prediction.shape != target.shape:
            raise ValueError(f"pictures differ in shape: {tuple(prediction.shape)} and {tuple(target.shape)}")
        if self.dual_tree is None and self.wavelet in HAAR:
            return _HaarL1.apply(prediction, target, self.level, self.mode, self.low)
        difference = _single(prediction) - _single(target)
        if self.dual_tree is None:
            ll, details = dwt2(difference, self.wavelet, self.mode, self.level)
        else:
            with torch.autocast(difference.device.type, enabled=False):
                # The loss has nothing to train, so callers need not move it: its filters follow the pictures.
                ll, details = self.dual_tree.to(difference)(difference)
        return self.low * ll.abs().mean() + sum(bands.abs().mean() for bands in details)

    def extra_repr(self) -> str:
        if self.dual_tree is not None:
            return f"dual tree, level={self.level}, low={self.low}"
        return f"{self.wavelet}, level={self.level}, mode={self.mode}, low={self.low}"


def _check(wavelet: str, mode: str, level: int) -> None:
    if wavelet not in pywt.wavelist(kind="discrete"):
        raise InputError(
            "wavelet", "a discrete wavelet of pywt such as haar, db2, sym4 or bior4.4", repr(wavelet)
        )
    if mode not in MODES:
        raise InputError("wavelet mode", "one of " + ", ".join(MODES), repr(mode))
    if level < 1:
        raise InputError("wavelet level", "1 or more", str(level))


def _check_side(side: int, mode: str) -> None:
    if mode == "reflect" and side < 2:
        raise InputError(
            "wavelet transform", "sides of 2 pixels or more in mode reflect", str(side), "Lower level."
        )


def _single(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _dual_tree(level: int) -> nn.Module:
    from pytorch_wavelets import DTCWTForward  # slow to import, and warns

    return DTCWTForward(J=level, biort="near_sym_a", qshift="qshift_a")


def _extend(x: Tensor, mode: str) -> Tensor:
    """One more row where the height is odd, one more column where the width is, as `mode` has it."""
    height, width = x.shape[-2:]
    for side in (height, width):
        _check_side(side, mode)
    if height % 2 == 0 and width % 2 == 0:
        return x
    return F.pad(x, (0, width % 2, 0, height % 2), _ODD_PAD[mode])


def _haar2(x: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """One Haar level of (N, C, H, W): (N, C, h, w) and (N, C, 3, h, w)."""
    # unbind, unlike strided slicing, has a backward that writes each element once.
    upper, lower = _extend(x, mode).unflatten(-2, (-1, 2)).unbind(-2)
    sums_l, sums_r = (upper + lower).unflatten(-1, (-1, 2)).unbind(-1)
    differences_l, differences_r = (upper - lower).unflatten(-1, (-1, 2)).unbind(-1)
    bands = (differences_l + differences_r, sums_l - sums_r, differences_l - differences_r)
    return (sums_l + sums_r) / 2, torch.stack(bands, 2) / 2


def _matrix2(x: Tensor, wavelet: str, mode: str) -> tuple[Tensor, Tensor]:
    """One level of any wavelet of (N, C, H, W): (N, C, h, w) and (N, C, 3, h, w)."""
    height, width = x.shape[-2:]
    rows = analysis_matrix(wavelet, mode, height, x.dtype, x.device)
    columns = analysis_matrix(wavelet, mode, width, x.dtype, x.device)
    y = torch.matmul(rows, torch.matmul(x, columns.mT))
    h, w = rows.shape[0] // 2, columns.shape[0] // 2
    bands = (y[..., h:, :w], y[..., :h, w:], y[..., h:, w:])
    return y[..., :h, :w], torch.stack(bands, 2)


@lru_cache(maxsize=128)
def analysis_matrix(wavelet: str, mode: str, side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One level of the 1-D transform of `side` samples as a matrix (2m, side): m low rows, then m high rows.

    Coefficient k is sum over j of filter[j] * x[2k + 1 - j] over the continued signal (x[2k + F/2 - j] in
    mode "periodization", where an odd signal first repeats its last sample), filters from pywt.
    """
    _check_side(side, mode)
    bank = pywt.Wavelet(wavelet)
    filters = np.array([bank.dec_lo, bank.dec_hi])
    taps = filters.shape[1]
    periodization = mode == "periodization"
    rows = (side + 1) // 2 if periodization else (side + taps - 1) // 2
    shift = taps // 2 if periodization else 1
    matrix = np.zeros((2, rows, side))
    for row in range(rows):
        for tap in range(taps):
            source = _source(2 * row + shift - tap, side, mode)
            if source is not None:
                matrix[:, row, source] += filters[:, tap]
    # Cached, so it must also serve autograd where the first caller ran in inference mode.
    with torch.inference_mode(False):
        return torch.from_numpy(matrix.reshape(2 * rows, side)).to(device, dtype)


def _source(index: int, side: int, mode: str) -> int | None:
    """The sample found at `index` of the continued signal; None where the signal goes on as zero."""
    if 0 <= index < side:
        return index
    if mode == "zero":
        return None
    if mode == "periodic":
        return index % side
    if mode == "periodization":
        return min(index % (side + side % 2), side - 1)
    period = 2 * side if mode == "symmetric" else 2 * side - 2
    folded = index % period
    return min(folded, (period - 1 if mode == "symmetric" else period) - folded)


class _HaarL1(torch.autograd.Function):
    """The loss and its gradient in one sweep over the difference.

    The loss is positively homogeneous, so its value is <gradient, P - Q> (Euler), and its gradient is the
    inverse transform (Haar is orthonormal) of the weighted signs of the coefficients.
    """

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor, level: int, mode: str, low: float) -> Tensor:
        p, q = _single(prediction), _single(target)
        difference = torch.empty(p.shape, dtype=torch.promote_types(p.dtype, q.dtype), device=p.device)
        torch.sub(p, q, out=difference)  # contiguous, whatever the pictures are
        slope = _haar_slope(difference, _weights(p.shape, level, low), mode)
        ctx.save_for_backward(slope)
        ctx.dtypes = prediction.dtype, target.dtype
        return torch.dot(slope.view(-1), difference.view(-1))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (slope,) = ctx.saved_tensors
        slope = upstream * slope
        of_prediction = slope.to(ctx.dtypes[0]) if ctx.needs_input_grad[0] else None
        of_target = slope.neg().to(ctx.dtypes[1]) if ctx.needs_input_grad[1] else None
        return of_prediction, of_target, None, None, None


def _weights(shape: torch.Size, level: int, low: float) -> list[float]:
    """What one coefficient weighs in the loss: details of each level, finest first, then the low band."""
    count, channels, height, width = shape
    weights = []
    for _ in range(level):
        height, width = (height + 1) // 2, (width + 1) // 2
        weights.append(1.0 / (3 * count * channels * height * width))
    return [*weights, 3.0 * low * weights[-1]]


def _haar_slope(x: Tensor, weights: list[float], mode: str) -> Tensor:
    """The gradient at contiguous `x` (N, C, H, W) of the weighted sum of coefficient magnitudes.

    Neighbours in a row are taken as one complex number: (a + ib)(1 - i) = (a + b) - i(a - b) is a butterfly
    that runs at memory speed, and multiplying by (1 + i) undoes it; strided slices would not vectorise.
    """
    height, width = x.shape[-2:]
    x = _extend(x, mode)
    upper, lower = x[..., 0::2, :], x[..., 1::2, :]
    rows = x.new_empty(2, *upper.shape)
    torch.add(upper, lower, out=rows[0])
    torch.sub(upper, lower, out=rows[1])
    pairs = torch.view_as_complex(rows.unflatten(-1, (-1, 2)))
    pairs.mul_(0.5 - 0.5j)  # now (ll - i vertical, horizontal - i diagonal)

    low, detail = pairs[0].real, weights[0]
    if len(weights) == 2:
        rows.sign_()
        low.mul_(weights[1] / detail)
    else:
        coarser = _haar_slope(low.contiguous(), weights[1:], mode)
        rows.sign_()
        torch.div(coarser, detail, out=low)
    pairs.mul_(detail * (0.5 + 0.5j))

    slope = torch.empty_like(x)
    torch.add(rows[0], rows[1], out=slope[..., 0::2, :])
    torch.sub(rows[0], rows[1], out=slope[..., 1::2, :])
    return _fold(slope, height, width, mode)


def _fold(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    """The adjoint of `_extend`: what was added goes back to the samples that it repeats."""
    if x.shape[-2:] == (height, width):
        return x
    source = {"reflect": -3, "periodic": 0}.get(mode, -2)
    if mode != "zero":
        if width < x.shape[-1]:
            x[..., source] += x[..., -1]
        if height < x.shape[-2]:
            x[..., source, :] += x[..., -1, :]
    return x[..., :height, :width].contiguous()
