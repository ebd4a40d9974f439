"""An ONNX file as a network: ONNX Runtime opens it, and what sizes the graph takes is found out by asking it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from teachers import onnx_graph
from teachers.descriptor import join_luma, pad, split_luma
from teachers.onnx_session import Session
from teachers.tiling import tiled

SMALLEST = 16
"""Smaller pictures are mirrored up to this before they go into a graph: few graphs take a single pixel."""
MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
"""Of which a graph may want its sides to be, as window and U networks do."""


class OnnxUpscaler:
    """(N, 3, h, w) RGB in [0, 1] on any device -> (N, 3, scale*h, scale*w) float32 on the same one.

    A graph of one channel gets luma; colour is enlarged by bicubic. Graphs of a fixed batch, of a fixed size
    (done in tiles of it) and of sides that must be multiples of something (padded and cropped) take any pictures so.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises InputError for a file that ONNX Runtime cannot open and for one that does not enlarge RGB pictures."""
        self.where = str(path)
        if not Path(path).is_file():
            raise InputError(self.where, "an .onnx file", "nothing there")
        self.graph = session = Session(self.where, self.where)
        inputs, outputs, shape = session.inputs, session.outputs, session.shape
        fits = session.fits and (shape[1] in (1, 3) or not isinstance(shape[1], int))
        if len(outputs) != 1 or not fits:
            first = f", the first input {inputs[0].type} {shape}" if inputs else ""
            found = f"{len(inputs)} inputs, {len(outputs)} outputs{first}"
            expected = "one float32 or float16 input (batch, 3 or 1, height, width) and one output"
            raise InputError(self.where, expected, found)
        self.channels = 1 if shape[1] == 1 else 3
        fixed = [side if isinstance(side, int) else None for side in shape[2:]]
        self.tile: tuple[int, int] | None = None
        """(height, width) of all that a graph of fixed size takes."""
        if any(fixed):
            side = max(s or 0 for s in fixed)
            self.tile = (fixed[0] or side, fixed[1] or side)
        self.multiple, self.scale = self._explore()

    def _explore(self) -> tuple[int, int]:
        """(what sides must be multiples of, scale), from the smallest pictures that tell."""
        if self.tile is not None:
            return 1, self._scale_at(*self.tile)
        failure: InputError | None = None
        for multiple in MULTIPLES:
            # Odd multiples: a graph that wants twice as much refuses them.
            times = max(1, -(-SMALLEST // multiple)) | 1
            try:
                return multiple, self._scale_at(times * multiple, (times + 2) * multiple)
            except InputError as error:
                failure = failure or error
        assert failure is not None
        raise failure

    def _scale_at(self, height: int, width: int) -> int:
        shape = tuple(self._run(torch.full((1, self.channels, height, width), 0.5)).shape)
        scale = shape[2] // height if len(shape) == 4 else 0
        if shape != (1, self.channels, scale * height, scale * width) or scale < 1:
            found = f"one that makes {shape} of (1, {self.channels}, {height}, {width})"
            raise InputError(self.where, "a network that enlarges RGB pictures or luma", found)
        return scale

    def _run(self, lr: Tensor) -> Tensor:
        (made,) = self.graph.run(lr, "a network that takes pictures of any size")
        return made

    def __call__(self, lr: Tensor) -> Tensor:
        if self.channels == 3:
            return self.enlarged(lr)
        luma, colour = split_luma(lr, self.scale)
        return join_luma(self.enlarged(luma), colour)

    def enlarged(self, lr: Tensor) -> Tensor:
        """(N, `channels`, h, w) -> (N, `channels`, scale*h, scale*w) float32: as the graph itself has it."""
        height, width = lr.shape[-2:]
        if self.tile:
            return tiled(self._whole, lr, self.scale, self.tile, min(self.tile) // 8).to(lr.device)
        sr = self._run(pad(lr, SMALLEST, self.multiple))
        return sr[..., : height * self.scale, : width * self.scale].to(lr.device)

    def _whole(self, lr: Tensor) -> Tensor:
        """A picture of at most the graph's own size."""
        assert self.tile is not None
        height, width = lr.shape[-2:]
        return self._run(pad(lr, self.tile, 1))[..., : height * self.scale, : width * self.scale]


class OnnxNetwork(nn.Module):
    """An ONNX file as the module behind a teacher: it has no parameters of its own, and moves nowhere."""

    def __init__(self, path: Path) -> None:
        """Raises InputError as `OnnxUpscaler` does."""
        super().__init__()
        self.path = path
        self.run = OnnxUpscaler(path)

    @property
    def scale(self) -> int:
        return self.run.scale

    def multiply_adds(self, side: int) -> int | None:
        """For one LR picture of `side` pixels a side; None where the graph does not tell."""
        return onnx_graph.multiply_adds(self.path, (1, self.run.channels, side, side))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, h, w) -> (N, channels, scale*h, scale*w) float32, of the graph's 3 channels or 1."""
        return self.run.enlarged(x.float())
