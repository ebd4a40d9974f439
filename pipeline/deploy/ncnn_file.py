"""Students as ncnn files, the runtime of phones: `.param` with the layers, `.bin` with the weights.

pnnx turns the traced network into them. ncnn lacks one layer that our students use, bicubic enlargement with
a = -0.5; it is written as convolutions, exactly (`_BicubicAsConvolutions`).
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.deploy.export import write_whole
from pipeline.errors import FacultyError, InputError, reason

PACKAGES = "pip install 'faculty[ncnn]'"
"""How to get what these files need."""
EXAMPLES = ((24, 32), (37, 29))
"""Two sizes, (height, width), that tell pnnx which sides are free."""
MINUTES = 5
"""After which pnnx is ended."""
_TAPS = range(-2, 3)
"""LR pixels around the nearest one that a cubic kernel reaches, whatever the phase."""


class NcnnUpscaler:
    """(N, 3, h, w) RGB in [0, 1] -> (N, 3, scale*h, scale*w) float32 by ncnn's runtime on the CPU."""

    def __init__(self, param: str | Path, threads: int = 1) -> None:
        """Open `param` and the `.bin` beside it.

        Raises InputError for missing files, for layers that ncnn does not have and where ncnn is not installed.
        """
        self.where = str(param)
        beside = Path(param).with_suffix(".bin")
        for path in (Path(param), beside):
            if not path.is_file():
                raise InputError(self.where, "a .param file with its .bin beside it", f"no {path.name}")
        ncnn = _package("ncnn", self.where)
        _require_known_layers(Path(param))
        self._ncnn = ncnn
        self._net: Any = ncnn.Net()
        options = self._net.opt
        options.num_threads, options.use_vulkan_compute = threads, False
        # Values that are the same on every machine; phones may choose half precision themselves.
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_storage = False
        if self._net.load_param(self.where) or self._net.load_model(str(beside)):
            raise InputError(self.where, "an ncnn network", "files that ncnn's runtime refuses")
        (self._input, *more), (self._output, *others) = self._net.input_names(), self._net.output_names()
        if more or others:
            raise InputError(self.where, "one input and one output", f"{[self._input, *more]} and the like")
        self.scale = self._measured_scale()

    def _measured_scale(self) -> int:
        height, width = 16, 24
        made = self._one(np.full((3, height, width), 0.5, np.float32))
        scale = made.shape[-2] // height
        if made.shape != (3, scale * height, scale * width) or scale < 1:
            found = f"one that makes {made.shape} of {(3, height, width)}"
            raise InputError(self.where, "a network that enlarges RGB pictures", found)
        return scale

    def _one(self, picture: np.ndarray) -> np.ndarray:
        extractor = self._net.create_extractor()
        # ncnn's Mat borrows numpy's memory without holding it: a name does, until the clone has its own.
        borrowed = np.ascontiguousarray(picture)
        extractor.input(self._input, self._ncnn.Mat(borrowed).clone())
        failed, made = extractor.extract(self._output)
        if failed:
            size = " x ".join(map(str, picture.shape[1:]))
            raise FacultyError(f"{self.where}: ncnn fails for pictures of {size} pixels (out of memory?)")
        return np.array(made, dtype=np.float32)

    def __call__(self, lr: Tensor) -> Tensor:
        pictures = lr.detach().float().cpu().numpy()
        return torch.from_numpy(np.stack([self._one(picture) for picture in pictures])).to(lr.device)


def export_ncnn(model: nn.Module, param: Path, scale: int) -> NcnnUpscaler:
    """Write a student, collapsed and in float32, as `param` and its `.bin` (weights in float16); return it opened.

    Raises FacultyError, and leaves no file, where pnnx is not installed, fails, or leaves a layer that ncnn lacks.
    """
    pnnx = _package("pnnx", str(param))
    _package("ncnn", str(param))
    beside = param.with_suffix(".bin")
    with tempfile.TemporaryDirectory() as folder:  # pnnx leaves a dozen files where it runs
        trace, made = Path(folder, "student.pt"), Path(folder, "student.param")
        with warnings.catch_warnings(), torch.no_grad(), _BicubicAsConvolutions(scale):
            warnings.simplefilter("ignore")  # torch recommends other exporters, which pnnx does not read
            try:
                torch.jit.trace(model, torch.rand(1, 3, *EXAMPLES[0]), check_trace=False).save(str(trace))
            except Exception as error:  # third-party networks fail in their own ways
                raise FacultyError(
                    f"{param}: this network cannot be traced: {reason(error)[:200]}"
                ) from error
        shapes = [f"[1,3,{height},{width}]" for height, width in EXAMPLES]
        command = [
            pnnx.EXEC_PATH,
            trace.name,
            f"inputshape={shapes[0]}",
            f"inputshape2={shapes[1]}",
            "fp16=1",
        ]
        command += [f"ncnnparam={made.name}", f"ncnnbin={made.stem}.bin"]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=60 * MINUTES
            )
        except subprocess.TimeoutExpired:
            raise FacultyError(f"{param}: pnnx took more than {MINUTES} minutes") from None
        if done.returncode or not made.is_file():
            last = (done.stderr or done.stdout).strip().rpartition("\n")[2]
            raise FacultyError(f"{param}: pnnx cannot convert this network ({last[:160]})")
        _require_known_layers(made, param)
        write_whole(beside, made.with_suffix(".bin").read_bytes())
        write_whole(param, made.read_bytes())
    try:
        return NcnnUpscaler(param)
    except FacultyError:
        remove(param)
        raise


def remove(param: Path) -> None:
    """Take away both files."""
    for path in (param, param.with_suffix(".bin")):
        path.unlink(missing_ok=True)


def _require_known_layers(file: Path, named: Path | None = None) -> None:
    """ncnn's runtime would end the process over a layer that it does not know; those of pnnx have a dot in their names.

    Raises InputError, which speaks of `named`.
    """
    where, lines = str(named or file), file.read_text(errors="replace").splitlines()
    if not lines or lines[0].strip() != "7767517":  # ncnn's magic number
        raise InputError(where, "ncnn's text format", "another file")
    unknown = sorted(
        {kind for line in lines[2:] if (kind := line.split(maxsplit=1)[0]) and re.search("[.:]", kind)}
    )
    if unknown:
        raise InputError(where, "a network of layers that ncnn has", f"{', '.join(unknown)} too")


def _package(name: str, where: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            where, f"the package {name} for ncnn files", "none installed", f"{PACKAGES} brings it."
        ) from None


class _BicubicAsConvolutions(TorchFunctionMode):
    """Enlarging by the cubic kernel with a = -0.5 (Keys 1981, equation 4) as a convolution of `scale`^2 phases.

    At the border the taps inside the picture are weighted to sum 1, as torch does: the same convolution of ones
    tells by how much. Other calls pass.
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        rows = [[_cubic(tap - ((phase + 0.5) / scale - 0.5)) for tap in _TAPS] for phase in range(scale)]
        phases = torch.tensor(rows)
        self.scale = scale
        self.weight = torch.einsum("ia,jb->ijab", phases, phases).reshape(scale**2, 1, len(_TAPS), len(_TAPS))

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not F.interpolate or not kwargs.get("antialias"):
            return function(*args, **kwargs)
        x = args[0]
        channels = int(x.shape[1])
        weight = self.weight.repeat(channels, 1, 1, 1)

        def phases(y: Tensor) -> Tensor:
            return F.conv2d(y, weight, padding=len(_TAPS) // 2, groups=channels)

        return F.pixel_shuffle(phases(x) / phases(x * 0 + 1), self.scale)


def _cubic(distance: float) -> float:
    a, t = -0.5, abs(distance)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0
