"""Super-resolution networks of our own, written to load their authors' public checkpoints strictly."""

from __future__ import annotations

from teachers.networks import a2f, bsrn, carn, edsr, imdn, pan, plainusr, rlfn
from teachers.networks.native import Native

NATIVES: tuple[Native, ...] = (
    *carn.NATIVE,
    *edsr.NATIVE,
    *imdn.NATIVE,
    *pan.NATIVE,
    *bsrn.NATIVE,
    *rlfn.NATIVE,
    *a2f.NATIVE,
    *plainusr.NATIVE,
)
