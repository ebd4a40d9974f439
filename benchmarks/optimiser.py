"""A step of Muon on a student's convolutions against PyTorch's own on the same matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.common import in_turn, row
from pipeline.training.muon import Muon, hidden
from students import build

STUDENTS: dict[str, dict[str, Any]] = {"compact": {"features": 24, "convs": 8}, "span": {"features": 28}}


def rows(rounds: int = 50) -> list[dict[str, Any]]:
    """One row for each student."""
    table = []
    for name, options in STUDENTS.items():
        student = build(name, 2, **options).to(memory_format=torch.channels_last)
        kernels = hidden(student)
        matrices = [nn.Parameter(p.detach().flatten(1).clone()) for p in kernels]
        for own, plain in zip(kernels, matrices, strict=True):
            own.grad = torch.randn_like(own)
            plain.grad = own.grad.flatten(1).clone()
        ours = Muon(kernels, kernels, 1e-6)
        theirs = torch.optim.Muon(matrices, 1e-6, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        seconds = in_turn({"ours": ours.step, "theirs": theirs.step}, rounds, warmup=5)
        what = f"step of Muon on the {len(kernels)} hidden layers of {name} / of torch.optim.Muon on their matrices"
        note = "theirs takes matrices alone and iterates in bfloat16, ours in float32"
        table.append(
            row(what, seconds["ours"] * 1e3, seconds["theirs"] * 1e3, "<= 0.6", unit="ms", note=note)
        )
    return table
