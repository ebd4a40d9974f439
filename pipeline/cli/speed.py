"""speed: how long networks take for a picture on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.common import add_json, emit
from pipeline.errors import FacultyError, InputError

if TYPE_CHECKING:
    from pipeline.deploy.speed import Speed


def add(commands: argparse._SubParsersAction) -> None:
    """Declare this command."""
    speed = commands.add_parser(
        "speed", help="milliseconds a picture of students and teachers, in any format, on this machine"
    )
    speed.add_argument(
        "files", nargs="+", metavar="FILE", help=".safetensors, .pth, .onnx, .param or zoo name"
    )
    speed.add_argument(
        "--size",
        nargs="+",
        default=[],
        metavar="SIZE",
        help="of pictures that go in: 360p, 480p, 720p, 1080p or HEIGHTxWIDTH (default: 480p 720p)",
    )
    speed.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: all cores)")
    speed.add_argument("--runs", type=int, default=5, metavar="N", help="timed runs (default: %(default)s)")
    speed.add_argument("--device", help="cpu or cuda (default: cuda where there is one); ncnn files: CPU")
    speed.add_argument(
        "--scale", type=int, choices=(2, 3, 4), help="for checkpoints that hold several scales"
    )
    add_json(speed)
    speed.set_defaults(run=_speed)


def _speed(options: argparse.Namespace) -> None:
    import torch

    from pipeline.deploy.speed import DEFAULT, cores, measure, size_of
    from pipeline.progress import Terminal

    sizes = [size_of(text) for text in dict.fromkeys(options.size or DEFAULT)]
    files = list(dict.fromkeys(options.files))
    for name in ("threads", "runs"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise InputError(f"--{name}", "at least 1", str(value))
    threads = options.threads or cores()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    found: list[Speed] = []
    with Terminal().line("speed", len(files) * len(sizes), "measurements") as line:
        for one in measure(
            files, sizes, threads=threads, device=device, scale=options.scale, runs=options.runs
        ):
            found.append(one)
            line.advance(note=f"{Path(one.file).name} {one.size.name}")
    rows = rows_of(found)
    result = {"threads": threads, "device": device, "cores": cores(), "rows": rows}
    emit(options, result, text(found, rows, threads))
    if all(one.milliseconds is None for one in found):
        raise FacultyError("nothing could be measured")


def rows_of(found: Sequence[Speed]) -> list[dict[str, Any]]:
    """As JSON; `times_as_fast` is against the first file at the same size, null where that has no figure."""
    first = {one.size.name: one.milliseconds for one in found if one.file == found[0].file}
    rows = []
    for one in found:
        base = first[one.size.name]
        known = base is not None and one.milliseconds is not None
        rows.append(
            {
                "file": one.file,
                "size": one.size.name,
                "height": one.size.height,
                "width": one.size.width,
                "scale": one.scale,
                "runtime": one.runtime,
                "milliseconds": one.milliseconds,
                "pictures_per_second": one.per_second,
                "times_as_fast": base / one.milliseconds if known else None,  # type: ignore[operator]
                "runs": one.runs,
                "failure": one.failure,
            }
        )
    return rows


def text(found: Sequence[Speed], rows: Sequence[dict[str, Any]], threads: int) -> str:
    """A block a size, a line a file."""
    names = {one.file: _name(one.file, [f.file for f in found]) for one in found}
    wide = max(map(len, [*names.values(), "file"]))
    run_by = max(map(len, [*(one.runtime for one in found), "run by"]))
    many = f"{threads} thread" + "s" * (threads > 1)
    lines = [f"On this machine, {many}, one picture at a time, median; another machine has other figures."]
    for size in dict.fromkeys(one.size for one in found):
        lines += ["", f"{size.name}: {size.width} x {size.height} pixels in"]
        lines.append(
            f"{'file':{wide}}  scale  {'run by':{run_by}}  {'ms':>9}  {'pictures/s':>10}  times as fast  runs"
        )
        for one, row in zip(found, rows, strict=True):
            if one.size != size:
                continue
            if one.milliseconds is None:
                lines.append(f"{names[one.file]:{wide}}  {one.failure}")
                continue
            ratio = f"{row['times_as_fast']:.2f}" if row["times_as_fast"] else "-"
            figures = f"{one.milliseconds:>9.1f}  {one.per_second:>10.2f}  {ratio:>13}  {one.runs:>4}"
            lines.append(f"{names[one.file]:{wide}}  {f'x{one.scale}':>5}  {one.runtime:{run_by}}  {figures}")
    return "\n".join(lines)


def _name(file: str, others: Sequence[str]) -> str:
    """The file's own name, with its folder where another one is called so."""
    name = Path(file).name
    return file if any(Path(o).name == name and o != file for o in others) else name
