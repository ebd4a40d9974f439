"""The global batch: what every worker holds, in every worker, with gradients.

A loss over relations between items depends on which items are together. Workers therefore gather their features and
compute the loss of the whole batch, each the same; so a result does not depend on the number of workers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def workers() -> int:
    """How many processes train together; 1 where there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(x: Tensor) -> Tensor:
    """(b, ...) of this worker -> (world * b, ...) of all, in rank order; itself where there is one worker.

    All workers must call it, with equal shapes. Backward keeps this worker's rows and multiplies them by the number of
    workers, since DistributedDataParallel averages the gradients of what is one loss of the whole batch.
    """
    return _Gather.apply(x) if workers() > 1 else x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(workers())]
        dist.all_gather(parts, x.contiguous())
        ctx.rows = len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        first = dist.get_rank() * ctx.rows
        return gradient[first : first + ctx.rows] * workers()


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d with the statistics of the global batch, on any device (torch's SyncBatchNorm needs a GPU)."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or workers() == 1:
            return super().forward(input)
        x = input.float()
        count = x.numel() // x.shape[1] * workers()
        mean = _Sum.apply(x.sum(dim=(0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum(dim=(0, 2, 3))) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked += 1
                rate = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean.detach(), rate)
                self.running_var.lerp_(variance.detach() * count / max(count - 1, 1), rate)
        y = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.weight is not None and self.bias is not None:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y.to(input.dtype)


def globalise(module: nn.Module) -> nn.Module:
    """Give every BatchNorm2d of `module` the statistics of the global batch, in place; weights and names stay."""
    for each in module.modules():
        if type(each) is nn.BatchNorm2d:
            each.__class__ = GlobalBatchNorm2d
    return module
