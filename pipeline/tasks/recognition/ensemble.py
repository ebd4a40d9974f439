"""Several networks at HR as one teacher: soft labels averaged class by class, embeddings joined.

    p_c = sum_k share[k, c] softmax(z_k / tau)_c,  renormalised;   fused logits z = tau log p
    fused embedding: the members' embeddings, each of length 1 / sqrt(K), side by side; or its principal components,
                     whitened or not

Equal shares are the mean of soft labels (Hinton, Vinyals, Dean, 2015, section 5), one share a member a weighted mean,
one member a class "best by class". With these logits a student's loss at temperature tau sees the mean of the members'
labels at that temperature. Maps are fused pixel by pixel. Embedders have no part in the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.cache.store import Store

Mean = Callable[[Sequence[Tensor], Tensor, float], Tensor]
"""(logits of K networks, `shares` (K, C), temperature) -> those of all together: `soft_mean`, or a task's own."""
LEAST = 1e-7
"""Probability below which nothing is told apart: float16 keeps the logits of more."""
ROUNDS = 300
RIDGE = 1e-3


class Ensemble(nn.Module):
    """(B, 3, H, W) in [0, 1] -> {"logits": (B, C) or (B, C, h, w), "embedding": (B, D)} of all members together."""

    shares: Tensor
    projection: Tensor
    centre: Tensor

    def __init__(
        self, members: Sequence[nn.Module], tensors: Mapping[str, Tensor], temperature: float, mean: Mean
    ) -> None:
        super().__init__()
        self.members, self.temperature, self.mean = nn.ModuleList(members), temperature, mean
        for name in ("shares", "centre", "projection"):
            self.register_buffer(name, tensors[name])

    @property
    def dropped(self) -> int:
        """Strides of the stems that were dropped for small pictures, the most of any member."""
        return max(int(member.dropped) for member in self.members)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return fuse([member(x) for member in self.members], vars_of(self), self.temperature, self.mean)


def vars_of(ensemble: Ensemble) -> dict[str, Tensor]:
    """The tensors that say how its members are joined."""
    return {"shares": ensemble.shares, "centre": ensemble.centre, "projection": ensemble.projection}


def fuse(
    outputs: Sequence[Mapping[str, Tensor]], tensors: Mapping[str, Tensor], temperature: float, mean: Mean
) -> dict[str, Tensor]:
    """`logits` (of those that have any) and `embedding` of several networks for the same pictures as one network's."""
    answers = [o["logits"].float() for o in outputs if "logits" in o]
    joined = join([o["embedding"].float() for o in outputs])
    if tensors["projection"].numel():
        joined = (joined - tensors["centre"]) @ tensors["projection"]
    logits = {"logits": mean(answers, tensors["shares"], temperature)} if answers else {}
    return {**logits, "embedding": joined}


def soft_mean(logits: Sequence[Tensor], shares: Tensor, temperature: float) -> Tensor:
    """Logits (B, C) or maps (B, C, h, w) of K networks -> those of their labels' mean; `shares` (K, C)."""
    size = logits[0].shape[2:]
    total = torch.zeros_like(logits[0])
    for z, share in zip(logits, shares):
        if z.shape[2:] != size:  # maps on the grid of the first
            z = F.interpolate(z, size, mode="bilinear", align_corners=False)
        total = total + share.view(1, -1, *[1] * len(size)) * (z / temperature).softmax(dim=1)
    return temperature * (total / total.sum(dim=1, keepdim=True)).clamp_min(LEAST).log()


def join(embeddings: Sequence[Tensor]) -> Tensor:
    """(B, D_k) each -> (B, sum D_k), in which squared distances are the means of the members' own."""
    return torch.cat([F.normalize(e, dim=1) for e in embeddings], dim=1) / len(embeddings) ** 0.5


def equal_shares(members: int, classes: int) -> Tensor:
    return torch.full((members, classes), 1 / members)


def fitted_shares(logits: Sequence[Tensor], labels: Tensor, temperature: float) -> Tensor:
    """One share a member, of the greatest likelihood of held-out labels (B,): expectation maximisation of a mixture."""
    probabilities = torch.stack([(z.float() / temperature).softmax(dim=1) for z in logits])
    of_label = probabilities[:, torch.arange(len(labels)), labels].double().clamp_min(LEAST)
    weights = torch.full((len(logits), 1), 1 / len(logits), dtype=torch.float64)
    for _ in range(ROUNDS):
        belief = weights * of_label
        weights = (belief / belief.sum(dim=0)).mean(dim=1, keepdim=True)
    return weights.float().expand(-1, logits[0].shape[1]).contiguous()


def best_shares(logits: Sequence[Tensor], labels: Tensor, temperature: float) -> Tensor:
    """Each class to the member that gives its held-out pictures the highest mean probability; equal where none is."""
    classes = logits[0].shape[1]
    shares = equal_shares(len(logits), classes)
    for c in labels.unique():
        sure = [(z[labels == c].float() / temperature).softmax(dim=1)[:, c].mean() for z in logits]
        shares[:, c] = F.one_hot(torch.stack(sure).argmax(), len(logits)).float()
    return shares


def principal(joined: Tensor, width: int, whiten: bool = False) -> tuple[Tensor, Tensor]:
    """(centre (D,), projection (D, width)) on the first principal components of (n, D), each with a fixed sign.

    `whiten`: each divided by its deviation, so that what many components say does not outweigh what one says (Jegou,
    Chum, ECCV 2012); RIDGE of the largest variance is added to each, or the least would be noise enlarged.
    """
    centre = joined.double().mean(dim=0)
    _, values, rows = torch.linalg.svd(joined.double() - centre, full_matrices=False)
    rows, values = rows[:width], values[:width]
    signs = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()
    rows = rows * signs
    if whiten:
        variance = values**2 / max(len(joined) - 1, 1)
        rows = rows / (variance + RIDGE * variance.max()).sqrt().unsqueeze(1)
    return centre.float(), rows.T.float().contiguous()


def load_joining(store: Store, weights: str) -> dict[str, Tensor]:
    """`shares`, `centre` and `projection` of a fusion."""
    from safetensors.torch import load

    from pipeline.training.weights import read

    return load(read(store, weights))
