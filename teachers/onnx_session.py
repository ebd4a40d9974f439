"""ONNX Runtime's session of a graph with one input: threads, providers, fixed batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError, reason

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Session:
    """A graph, from a file's path or its bytes."""

    def __init__(self, source: str | bytes, where: str) -> None:
        """Raises InputError naming `where` for what ONNX Runtime cannot open and for an input of another type."""
        self._source, self.where, self._threads = source, where, 0
        session = self.open()
        self.inputs, self.outputs = session.get_inputs(), session.get_outputs()
        self.shape: list[Any] = self.inputs[0].shape if self.inputs else []
        """Of the first input; a name where a side is free."""
        first = self.shape[0] if self.shape else None
        self._batch = first if isinstance(first, int) and first > 0 else None

    @property
    def fits(self) -> bool:
        """Whether it takes one batch of float pictures."""
        return len(self.inputs) == 1 and len(self.shape) == 4 and self.inputs[0].type in TYPES

    def open(self) -> Any:
        """ONNX Runtime's own, of as many threads as torch has now: neighbours have the other cores."""
        import onnxruntime

        if self._threads != torch.get_num_threads():
            wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
            providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
            settings = onnxruntime.SessionOptions()
            settings.log_severity_level = 4  # a size that does not fit is no news here
            settings.intra_op_num_threads = self._threads = torch.get_num_threads()
            try:
                self.session = onnxruntime.InferenceSession(self._source, settings, providers=providers)
            except Exception as error:  # onnxruntime has an exception class for each of its status codes
                raise InputError(self.where, "an ONNX network", reason(error)) from None
        return self.session

    def run(
        self, x: Tensor, expected: str, outputs: Sequence[str] | None = None, remedy: str = ""
    ) -> list[Tensor]:
        """The outputs (the first, where none are named) of pictures (N, C, h, w), in float32 on the CPU.

        Raises InputError that it was `expected` to take them where it refuses.
        """
        pictures: Any = x.float().cpu().contiguous().numpy().astype(TYPES[self.inputs[0].type])
        batch = self._batch or len(pictures)
        filled = -len(pictures) % batch  # a fixed batch is filled with its last picture
        padded = np.concatenate([pictures, *[pictures[-1:]] * filled])
        names, session = list(outputs or [self.outputs[0].name]), self.open()
        try:
            parts = np.split(padded, len(padded) // batch)
            made = [session.run(names, {self.inputs[0].name: part}) for part in parts]
        except Exception as error:  # as above
            found = f"{' x '.join(map(str, x.shape[2:]))} pixels refused ({reason(error)})"
            raise InputError(self.where, expected, found, remedy) from None
        return [
            torch.from_numpy(np.concatenate(part)[: len(pictures)].astype(np.float32))
            for part in zip(*made, strict=True)
        ]
