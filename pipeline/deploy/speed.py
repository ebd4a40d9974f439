"""How long a network takes for one picture on this machine, whatever file it comes in."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from pipeline.errors import FacultyError, InputError, reason

SIZES = {"360p": (360, 640), "480p": (480, 854), "720p": (720, 1280), "1080p": (1080, 1920)}
"""(height, width) of pictures that go in, by their usual names."""
DEFAULT = ("480p", "720p")
RUNS = 5
"""Timed ones, of which the median counts."""
PATIENCE = 20.0
"""Seconds of the warm-up run above which a single run is timed."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of the picture that goes in."""

    name: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Speed:
    """One network at one size, or why there is no figure."""

    file: str
    size: Size
    runtime: str = ""
    """Program and provider that computed."""
    scale: int = 0
    milliseconds: float | None = None
    """Of one picture, batch 1: the median."""
    runs: int = 0
    """How many were timed."""
    failure: str = ""

    @property
    def per_second(self) -> float | None:
        return None if self.milliseconds is None else 1000 / self.milliseconds


def size_of(text: str) -> Size:
    """`480p`, `720p`, ... or HEIGHTxWIDTH in pixels. Raises InputError for anything else."""
    if text in SIZES:
        return Size(text, *SIZES[text])
    if found := re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text):
        return Size(text, int(found[1]), int(found[2]))
    raise InputError("--size", f"one of {', '.join(SIZES)} or HEIGHTxWIDTH", repr(text))


def cores() -> int:
    """Of the CPU, that this process may use."""
    return len(os.sched_getaffinity(0))


def measure(
    files: Sequence[str],
    sizes: Sequence[Size],
    *,
    threads: int,
    device: str = "cpu",
    scale: int | None = None,
    runs: int = RUNS,
) -> Iterator[Speed]:
    """Every file at every size, in a process of its own: one that memory does not suffice for takes nothing with it.

    `scale` as of `teachers.loading.load_teacher`. Raises InputError for a file that is not there.
    """
    for file in files:
        _require_there(file)
    pool: ProcessPoolExecutor | None = None
    try:
        for file in files:
            for size in sizes:
                pool = pool or _pool()
                try:
                    yield pool.submit(_measured, file, size, threads, device, scale, runs).result()
                except BrokenProcessPool:
                    pool.shutdown()
                    pool = None
                    why = "the system ended the measuring process (out of memory?)"
                    yield Speed(file, size, failure=why)
    finally:
        if pool is not None:
            pool.shutdown()


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def _require_there(file: str) -> None:
    from teachers.zoo import ZOO

    if not Path(file).is_file() and file not in ZOO:
        expected = "a file of a student or teacher (.safetensors, .pth, .onnx, .param), or a name of the zoo"
        raise InputError(file, expected, "nothing there")


def _measured(file: str, size: Size, threads: int, device: str, scale: int | None, runs: int) -> Speed:
    """In the measuring process."""
    runtime, its_scale = "", 0
    try:
        if not device.startswith("cuda"):
            _bounded()
        network, its_scale, runtime = _opened(file, threads, device, scale)
        times = _times(network, torch.rand(1, 3, size.height, size.width), device, runs)
    except FacultyError as error:
        return Speed(file, size, runtime, its_scale, failure=_short(file, str(error)))
    except (MemoryError, RuntimeError) as error:  # torch has a RuntimeError for memory of CPUs and GPUs alike
        lacks = isinstance(error, MemoryError) or re.search("alloc|out of memory", str(error), re.IGNORECASE)
        return Speed(
            file, size, runtime, its_scale, failure="out of memory" if lacks else reason(error)[:160]
        )
    return Speed(file, size, runtime, its_scale, 1000 * statistics.median(times), len(times))


def _bounded() -> None:
    """No more than what is free: beyond, an allocation fails here instead of the system choosing a process to end."""
    taken = psutil.Process().memory_info().vms
    limit, most = taken + psutil.virtual_memory().available, resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(
        resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most), most)
    )


def _short(file: str, text: str) -> str:
    lacks = re.search("alloc|out of memory", text, re.IGNORECASE)
    return "out of memory" if lacks else text.removeprefix(f"{file}: ")


@torch.inference_mode()
def _times(network: Callable[[Tensor], Tensor], lr: Tensor, device: str, runs: int) -> list[float]:
    """Seconds a run, the first ones left out: they fetch memory and choose algorithms."""
    lr = lr.to(device)
    first = _seconds(network, lr, device)
    if first > PATIENCE:
        return [_seconds(network, lr, device)]
    _seconds(network, lr, device)
    return [_seconds(network, lr, device) for _ in range(runs)]


def _seconds(network: Callable[[Tensor], Tensor], lr: Tensor, device: str) -> float:
    begun = time.perf_counter()
    network(lr)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - begun


@lru_cache(maxsize=1)
def _opened(
    file: str, threads: int, device: str, scale: int | None
) -> tuple[Callable[[Tensor], Tensor], int, str]:
    """(network, scale, program and provider); the last one stays open for the next size."""
    torch.set_num_threads(threads)
    if file.endswith(".param"):
        from pipeline.deploy.ncnn_file import NcnnUpscaler

        phone = NcnnUpscaler(file, threads)
        return phone, phone.scale, "ncnn CPU"
    if file.endswith(".onnx"):
        return _opened_onnx(file, threads, device)
    from teachers.loading import load_teacher

    teacher = load_teacher(file, scale=scale).to(device)
    teacher.network = _as_used(teacher.network)
    name = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
    return teacher, teacher.info.scale, f"PyTorch {name}"


def _as_used(network: Any) -> Any:
    """Blocks that train as several branches are one convolution, as in every exported file."""
    from students import deployed

    return deployed(network).eval()


def _opened_onnx(file: str, threads: int, device: str) -> tuple[Callable[[Tensor], Tensor], int, str]:
    import onnxruntime

    from teachers.onnx_network import OnnxUpscaler

    network = OnnxUpscaler(file)
    graph = network.graph
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # what fails is raised
    settings.intra_op_num_threads = threads
    wanted = graph.session.get_providers() if device.startswith("cuda") else ["CPUExecutionProvider"]
    graph.session = onnxruntime.InferenceSession(file, settings, providers=wanted)
    provider = graph.session.get_providers()[0].removesuffix("ExecutionProvider")
    tiles = f", tiles of {network.tile[0]}x{network.tile[1]}" if network.tile else ""
    return network, network.scale, f"ONNX Runtime {provider}{tiles}"
