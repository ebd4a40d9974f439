"""bf16 for networks that end in pixels.

Eight bits of mantissa are too few for pixels themselves: a value in [0.5, 1) would move by up to half a grey level.
So products run in bf16 under autocast, while the convolutions that read or write pixels run in float32, and with
them every residual sum that starts from the first one. So do the gates of channel attention, which cost nothing
and whose error would be the same all over the picture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

PIXELS = 4
"""Up to so many channels a tensor is a picture."""
PROBE_SIDE = 64


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies in bf16: GPUs since Ampere, CPUs with AMX or AVX512_BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def delicate_convolutions(network: nn.Module, probe: Tensor) -> list[nn.Module]:
    """The convolutions that bf16 must spare.

    Those from pixels to features and back, those from pixels to pixels (mean shifts), and those on one pixel
    (gates on pooled features). Found by running `probe` (1, C, H, W) and noting which convolution is called when.
    """
    called: list[nn.Conv2d] = []
    single: list[nn.Conv2d] = []

    def note(module: nn.Conv2d, args: tuple[Tensor, ...]) -> None:
        called.append(module)
        if args[0].shape[-2:] == (1, 1):
            single.append(module)

    hooks = [m.register_forward_pre_hook(note) for m in network.modules() if isinstance(m, nn.Conv2d)]
    try:
        with torch.inference_mode():
            network(probe)
    finally:
        for hook in hooks:
            hook.remove()
    inner = [module for module in called if max(module.in_channels, module.out_channels) > PIXELS]
    pixels = [module for module in called if max(module.in_channels, module.out_channels) <= PIXELS]
    chosen = pixels + inner[:1] + inner[-1:] + single
    return list({id(module): module for module in chosen}.values())


def keep_in_float32(module: nn.Module) -> None:
    """Makes `module` compute in float32 whatever the autocast around it."""
    if not isinstance(module.forward, functools.partial):
        module.forward = functools.partial(_in_float32, module.forward)  # type: ignore[method-assign]


def _in_float32(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float())
