"""An ONNX file as a network: ONNX Runtime opens it, and what sizes the graph takes is found out by asking it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import InputError, reason
from teachers import onnx_graph
from teachers.descriptor import join_luma, pad, split_luma
from teachers.tiling import tiled

SMALLEST = 16
"""Smaller pictures are mirrored up to this before they go into a graph: few graphs take a single pixel."""
MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
"""Of which a graph may want its sides to be, as window and U networks do."""
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


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
        self._threads = 0
        session = self._session()
        inputs, outputs = session.get_inputs(), session.get_outputs()
        shape = inputs[0].shape if inputs else []
        fits = len(shape) == 4 and (shape[1] in (1, 3) or not isinstance(shape[1], int))
        if len(inputs) != 1 or len(outputs) != 1 or not fits or inputs[0].type not in TYPES:
            first = f", the first input {inputs[0].type} {shape}" if inputs else ""
            found = f"{len(inputs)} inputs, {len(outputs)} outputs{first}"
            expected = "one float32 or float16 input (batch, 3 or 1, height, width) and one output"
            raise InputError(self.where, expected, found)
        self._input, self._type = inputs[0].name, TYPES[inputs[0].type]
        self.channels = 1 if shape[1] == 1 else 3
        self._batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
        fixed = [side if isinstance(side, int) else None for side in shape[2:]]
        self.tile: tuple[int, int] | None = None
        """(height, width) of all that a graph of fixed size takes."""
        if any(fixed):
            side = max(s or 0 for s in fixed)
            self.tile = (fixed[0] or side, fixed[1] or side)
        self.multiple, self.scale = self._explore()

    def _session(self) -> Any:
        """ONNX Runtime's session, of as many threads as torch has now: neighbours have the other cores."""
        import onnxruntime

        if self._threads != torch.get_num_threads():
            wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
            providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
            settings = onnxruntime.SessionOptions()
            settings.log_severity_level = 4  # a size that does not fit is no news here
            settings.intra_op_num_threads = self._threads = torch.get_num_threads()
            try:
                self.session = onnxruntime.InferenceSession(self.where, settings, providers=providers)
            except Exception as error:  # onnxruntime has an exception class for each of its status codes
                raise InputError(self.where, "an ONNX network", reason(error)) from None
        return self.session

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
        pictures: Any = lr.float().cpu().contiguous().numpy().astype(self._type)
        batch = self._batch or len(pictures)
        filled = -len(pictures) % batch  # a fixed batch is filled with its last picture
        padded = np.concatenate([pictures, *[pictures[-1:]] * filled])
        session = self._session()
        try:
            parts = np.split(padded, len(padded) // batch)
            made = [session.run(None, {self._input: part})[0] for part in parts]
        except Exception as error:  # as above
            found = f"{' x '.join(map(str, lr.shape[2:]))} pixels refused ({reason(error)})"
            raise InputError(self.where, "a network that takes pictures of any size", found) from None
        return torch.from_numpy(np.concatenate(made)[: len(pictures)].astype(np.float32))

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
